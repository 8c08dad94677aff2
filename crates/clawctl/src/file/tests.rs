use std::collections::BTreeMap;

use claw_core::firewall::{Mode, Reach};
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;

use super::content::{Origins, wanted};
use super::*;

fn instance(text: &str) -> InstanceDocument {
    match parse(Path::new("f.yaml"), text).unwrap().pop() {
        Some(Document::Instance(instance)) => *instance,
        other => panic!("no instance: {other:?}"),
    }
}

#[track_caller]
fn check_refused(file: &str, text: &str, expected: &str) {
    let error = parse(Path::new(file), text).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn the_shipped_example_is_read() {
    let text = include_str!("../../../../packaging/clawctl/examples/fleet.yaml");
    let documents = parse(Path::new("fleet.yaml"), text).unwrap();
    let kinds: Vec<Kind> = documents.iter().map(Document::kind).collect();
    assert_eq!(kinds, [Kind::Host, Kind::Instance]);
    let Document::Instance(instance) = &documents[1] else { panic!("second is an instance") };
    let variable = |name: &str| Some(format!("value of {name}"));
    let origins = Origins { directory: Path::new(""), variable: &variable };
    let wanted = wanted(&instance.spec, origins).unwrap();
    assert_eq!(wanted.spec.secrets["LLM_PROXY_TOKEN"], "value of LLM_PROXY_TOKEN");
    assert_eq!(wanted.spec.resources.unwrap().memory_bytes, 3 << 30);
    let network = wanted.spec.network.as_ref().unwrap();
    let policy = claw_proto::convert::firewall::network_policy_from_wire(network).unwrap();
    let Reach::Allowlist(list) = policy.egress.reach else { panic!("it has an allowlist") };
    assert_eq!((list.networks.len(), list.names.len(), list.mode), (2, 2, Mode::Enforced));
    let Document::Host(host) = &documents[0] else { panic!("first is a host") };
    let firewall = host.firewall.as_ref().unwrap().to_wire();
    let policy = claw_proto::convert::firewall::host_policy_from_wire(&firewall).unwrap();
    assert_eq!((policy.extra.len(), policy.blocked.len()), (1, 1));
    let config: serde_json::Value = serde_json::from_str(&wanted.spec.config).unwrap();
    assert_eq!(config["agents"]["defaults"]["model"]["primary"], "llmproxy/gpt-test");
}

#[test]
fn places_of_faults_are_named() {
    check_refused(
        "a.yaml",
        "kind: Instance\nname: demo\nhost: vps-1\nspec:\n  image: x\n  imagee: y\n",
        "a.yaml:6:3: spec: unknown field `imagee`, expected one of `image`, `tier`, `resources`, \
         `runState`, `env`, `secrets`, `secretsFrom`, `config`, `configFrom`, `identity`, \
         `identityFrom`, `files`, `filesFrom`, `hostnames`, `allowedOrigins`, `health`, `stopGrace`, `network`, `backup`, `update`",
    );
    check_refused(
        "b.yaml",
        "kind: Host\nname: a\n---\nkind: Instance\nname: demo\nhost: vps-1\nspec:\n  tier: pro\n",
        "b.yaml:8:3: spec: missing field `image`",
    );
    check_refused(
        "c.yaml",
        "kind: Instance\nname: d\nhost: v\nspec:\n  image: x\n  resources:\n    memory: lots\n",
        "c.yaml:7:13: spec.resources.memory: invalid value: string \"lots\", expected a size such \
         as 2GiB, 768MiB or a number of bytes",
    );
    check_refused(
        "d.yaml",
        "kind: Pod\n",
        "d.yaml:1:7: kind: unknown variant `Pod`, expected `Host` or `Instance`",
    );
    check_refused(
        "e.json",
        "{\n  \"kind\": \"Host\",\n  \"nam\": 1\n}",
        "e.json:3:7: unknown field `nam`, expected one of `kind`, `name`, `labels`, `cordoned`, `firewall`, `status`, `etag`, `createTime`, `updateTime`",
    );
    let spec = "kind: Instance\nname: d\nhost: v\nspec:\n  image: x\n  network:\n    egress:\n";
    check_refused(
        "h.yaml",
        &format!("{spec}      allowlist:\n        names: [a.example, {{name: b.example}}]\n"),
        "h.yaml:9:29: spec.network.egress.allowlist.names[1]: unknown field `name`, expected `pattern` or `ports`",
    );
    check_refused(
        "i.yaml",
        &format!("{spec}      allowlist:\n        networks: [7]\n"),
        "i.yaml:9:20: spec.network.egress.allowlist.networks[0]: invalid type: integer `7`, expected a network such as 192.0.2.0/24, or {network: …, ports: […]}",
    );
    check_refused(
        "j.yaml",
        "kind: Host\nname: a\nfirewall:\n  web: {exposure: everyone}\n",
        "j.yaml:4:19: firewall.web.exposure: unknown variant `everyone`, expected `reachable` or `loopback`",
    );
    let spec = "kind: Instance\nname: d\nhost: v\nspec:\n  image: x\n  backup:\n";
    check_refused(
        "k.yaml",
        &format!("{spec}    every: daily\n"),
        "k.yaml:7:12: spec.backup.every: invalid value: string \"daily\", expected a time such as 15m, 12h or 7d, or never",
    );
    check_refused(
        "l.yaml",
        &format!("{spec}    retention: {{yearly: 1}}\n"),
        "l.yaml:7:17: spec.backup.retention: unknown field `yearly`, expected one of `last`, `hourly`, `daily`, `weekly`, `monthly`",
    );
    check_refused(
        "m.yaml",
        "kind: Instance\nname: d\nhost: v\nspec: {image: x, update: {rehearsal: maybe}}\n",
        "m.yaml:4:38: spec.update.rehearsal: unknown variant `maybe`, expected one of `auto`, `always`, `never`",
    );
    check_refused("f.json", "{\"kind\": \"Host\"", "f.json:1:15: EOF while parsing an object");
    check_refused("g.yaml", "name: x\n", "g.yaml:1:1: missing field `kind`");
}

#[test]
fn a_fault_never_quotes_a_secret() {
    for value in ["12345678", "true", "1.25", "[hunter2]", "{hunter2: x}", "-77777", "1e300"] {
        let text = format!(
            "kind: Instance\nname: d\nhost: v\nspec:\n  image: x\n  secrets:\n    A: {value}\n"
        );
        let error = parse(Path::new("f.yaml"), &text).unwrap_err().to_string();
        let quoted = value.trim_matches(|c: char| !c.is_alphanumeric());
        assert!(!error.contains(quoted), "{value}: {error}");
        assert!(error.starts_with("f.yaml:"), "{error}");
    }
    let text = "kind: Instance\nname: d\nhost: v\nspec: {image: x, secrets: {A: hunter2}}\n";
    let document = instance(text);
    assert!(!format!("{document:?}").contains("hunter2"));
    assert!(!serde_yaml_ng::to_string(&document.spec).unwrap().contains("hunter2"));
}

#[test]
fn json_comes_alone_or_in_a_row() {
    let one = r#"{"kind": "Host", "name": "a", "labels": {"emoji": "\ud83d\ude00"}}"#;
    for (file, text, count) in [
        ("a.json", one.to_owned(), 1),
        ("-", format!("{one}\n{one}\n"), 2),
        ("a.yaml", "{kind: Host, name: a}".to_owned(), 1),
        ("a.yaml", "# nothing\n---\n---\nkind: Host\nname: a\n".to_owned(), 1),
        ("a.yaml", String::new(), 0),
    ] {
        assert_eq!(parse(Path::new(file), &text).unwrap().len(), count, "{text}");
    }
}

#[test]
fn files_are_read_in_order_and_standard_input_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    std::fs::write(&path, "kind: Host\nname: from-file\n").unwrap();
    let mut stdin = "kind: Host\nname: from-stdin\n".as_bytes();
    let located = read(&[path.clone(), PathBuf::from("-")], &mut stdin).unwrap();
    assert_eq!(located[0].file, path);
    assert_eq!(located[1].file, Path::new("-"));
    let absent = directory.path().join("absent.yaml");
    assert!(matches!(read(&[absent], &mut io::empty()), Err(FileError::Read { .. })));
    std::fs::write(&path, "# only a comment\n").unwrap();
    assert!(matches!(read(&[path], &mut io::empty()), Err(FileError::Empty { .. })));
    let mut endless = io::repeat(b' ');
    let unbounded = read(&[PathBuf::from("-")], &mut endless);
    assert!(matches!(unbounded, Err(FileError::TooLarge { .. })));
}

#[test]
fn texts_come_from_where_they_are_said_to_be() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("token"), "from a file\r\n").unwrap();
    std::fs::write(directory.path().join("openclaw.json"), "{ a: 1 }\n").unwrap();
    let document = instance(
        "kind: Instance\nname: d\nhost: v\nspec:\n  image: x\n  \
         secretsFrom: {A: {file: token}, B: {env: VARIABLE}}\n  \
         configFrom: {file: openclaw.json}\n  \
         filesFrom: {workspace/X.md: {file: token}}\n",
    );
    let variable = |name: &str| (name == "VARIABLE").then(|| "from a variable".to_owned());
    let origins = Origins { directory: directory.path(), variable: &variable };
    let wanted = wanted(&document.spec, origins).unwrap();
    let secrets = BTreeMap::from([
        ("A".to_owned(), "from a file".to_owned()),
        ("B".to_owned(), "from a variable".to_owned()),
    ]);
    assert_eq!(wanted.spec.secrets, secrets);
    assert_eq!(wanted.spec.config, "{ a: 1 }\n");
    assert_eq!(wanted.spec.files["workspace/X.md"], "from a file\r\n");
}

#[test]
fn everything_that_cannot_be_had_is_listed() {
    let document = instance(
        "kind: Instance\nname: d\nhost: v\nspec:\n  image: x\n  config: '{}'\n  \
         configFrom: {file: a}\n  secrets: {C: x}\n  \
         secretsFrom: {A: {env: NOPE}, B: {}, C: {env: YES}}\n  identityFrom: {file: /absent}\n",
    );
    let variable = |name: &str| (name == "YES").then(String::new);
    let origins = Origins { directory: Path::new(""), variable: &variable };
    let error = wanted(&document.spec, origins).unwrap_err();
    let faults: Vec<String> = error.0.iter().map(ToString::to_string).collect();
    assert_eq!(
        faults,
        [
            "spec.secretsFrom[A]: the environment has no variable NOPE",
            "spec.secretsFrom[B]: exactly one of file and env must be given",
            "spec.secretsFrom[C]: is also given as spec.secrets[C]",
            "spec.configFrom: is also given as spec.config",
            "spec.identityFrom: cannot read /absent: No such file or directory (os error 2)",
        ]
    );
}

#[test]
fn a_document_decides_only_what_it_says() {
    let mask = |spec: &str| {
        let document =
            instance(&format!("kind: Instance\nname: d\nhost: v\nspec:\n  image: x\n{spec}"));
        let origins = Origins { directory: Path::new(""), variable: &|_| None };
        wanted(&document.spec, origins).unwrap().mask
    };
    let has = |mask: &[String], path: &str| mask.iter().any(|known| known == path);
    let least = mask("");
    assert!(has(&least, "spec.image") && has(&least, "spec.env") && !has(&least, "spec"));
    let open = ["spec.run_state", "spec.secrets", "spec.network", "spec.backup", "spec.update"];
    for path in open {
        assert!(!has(&least, path), "{path}");
    }
    let most =
        mask("  runState: paused\n  secrets: {}\n  network: {}\n  backup: {}\n  update: {}\n");
    for path in open {
        assert!(has(&most, path), "{path}");
    }
    assert!(!has(&most, "spec.network.egress"), "the whole is named");
}

#[test]
fn a_printed_spec_is_read_back() {
    let wire = fleet::InstanceSpec {
        image: "ghcr.io/openclaw/openclaw:2026.9.6".to_owned(),
        tier: "pro".to_owned(),
        resources: Some(fleet::Resources {
            memory_bytes: 3 << 30,
            cpu_millis: 1500,
            pids_limit: 0,
        }),
        run_state: 3,
        env: [("A".to_owned(), "yes".to_owned())].into(),
        secrets: [("S".to_owned(), String::new())].into(),
        config: "{\n  a: 1,\n}\n".to_owned(),
        identity: "# I\n".to_owned(),
        files: [("workspace/X.md".to_owned(), "x: y\n".to_owned())].into(),
        hostnames: vec!["a.example".to_owned()],
        allowed_origins: vec!["https://a.example".to_owned()],
        health: Some(fleet::HealthPolicy {
            startup_deadline: Some(claw_proto::convert::duration_to_wire(
                std::time::Duration::from_millis(1500),
            )),
            ..fleet::HealthPolicy::default()
        }),
        stop_grace: None,
        network: Some(node::NetworkPolicy {
            egress: Some(node::Egress {
                denied_ports: Some(node::DeniedPorts::default()),
                allowlist: Some(node::Allowlist {
                    networks: vec![
                        node::AllowedNetwork { network: "192.0.2.0/24".to_owned(), ports: vec![] },
                        node::AllowedNetwork { network: "2001:db8::1".to_owned(), ports: vec![53] },
                    ],
                    names: vec![node::AllowedName {
                        pattern: "*.example.com".to_owned(),
                        ports: vec![80, 443],
                    }],
                    mode: node::AllowlistMode::Observed.into(),
                }),
            }),
            web_sources: vec!["192.0.2.7".to_owned()],
        }),
        backup: Some(node::BackupPolicy {
            every: Some(claw_proto::convert::duration_to_wire(std::time::Duration::ZERO)),
            retention: Some(node::Retention { last: 2, weekly: 5, ..node::Retention::default() }),
            drill_every: Some(claw_proto::convert::duration_to_wire(
                std::time::Duration::from_secs(7 * 86_400),
            )),
            offsite: node::OffsitePolicy::Required.into(),
        }),
        update: Some(node::UpdatePolicy {
            rehearsal: node::Rehearsal::Always.into(),
            keep_replaced: Some(claw_proto::convert::duration_to_wire(
                std::time::Duration::from_secs(90),
            )),
        }),
    };
    let printed = serde_yaml_ng::to_string(&SpecDocument::from(wire.clone())).unwrap();
    assert!(printed.contains("every: never") && printed.contains("runState: paused"), "{printed}");
    let read: SpecDocument = serde_yaml_ng::from_str(&printed).unwrap();
    let origins = Origins { directory: Path::new(""), variable: &|_| None };
    assert_eq!(wanted(&read, origins).unwrap().spec, wire, "{printed}");
}

#[test]
fn a_printed_firewall_is_read_back() {
    let wire = node::HostFirewall {
        ssh: Some(node::SshPolicy {
            ports: vec![22, 2222],
            sources: vec!["192.0.2.0/24".to_owned()],
            interfaces: vec!["wg0".to_owned()],
            brute_force: Some(node::BruteForce {
                failures: Some(0),
                window: Some(claw_proto::convert::duration_to_wire(
                    std::time::Duration::from_secs(600),
                )),
                ban: None,
            }),
        }),
        web: Some(node::WebAccess {
            exposure: node::WebExposure::Loopback.into(),
            ..node::WebAccess::default()
        }),
        extra: vec![node::ExtraPort {
            protocol: node::Protocol::Udp.into(),
            port: 51820,
            sources: vec!["198.51.100.7".to_owned()],
            interfaces: Vec::new(),
        }],
        blocked: vec!["203.0.113.0/24".to_owned()],
    };
    let printed = serde_yaml_ng::to_string(&FirewallDocument::from(wire.clone())).unwrap();
    let read: FirewallDocument = serde_yaml_ng::from_str(&printed).unwrap();
    assert_eq!(read.to_wire(), wire, "{printed}");
    let least: FirewallDocument = serde_yaml_ng::from_str("{}").unwrap();
    assert_eq!(least.to_wire(), node::HostFirewall::default());
}
