//! Every command against a fake of the API, over real mTLS on loopback.
#![expect(clippy::unwrap_used, reason = "what the fake cannot do fails the test")]

mod data;
mod fake;
mod firewall;
mod offsite;

use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1::Phase;
use fake::{Fake, Outcome, clawctl};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

const FLEET: &str = "\
kind: Instance
name: demo
host: vps-1
spec:
  image: example/openclaw:1
  tier: pro
  secrets: {API_KEY: first}
---
kind: Host
name: vps-1
labels: {region: eu}
";

#[track_caller]
fn check(outcome: &Outcome, status: u8, stdout: &str, stderr: &str) {
    let expected = Outcome { status, stdout: stdout.to_owned(), stderr: stderr.to_owned() };
    assert_eq!(outcome, &expected);
}

fn instance(name: &str, phase: Phase) -> fleet::Instance {
    fleet::Instance {
        name: format!("instances/{name}"),
        host: "hosts/vps-1".to_owned(),
        spec: Some(fleet::InstanceSpec { image: "a:1".to_owned(), ..Default::default() }),
        status: Some(fleet::InstanceStatus {
            phase: i32::from(phase),
            current: true,
            host_state: i32::from(fleet::HostState::Online),
            ..fleet::InstanceStatus::default()
        }),
        etag: "e".to_owned(),
        ..fleet::Instance::default()
    }
}

fn message(kind: fleet::WatchKind, name: &str, phase: Phase) -> fleet::WatchInstancesResponse {
    fleet::WatchInstancesResponse { kind: i32::from(kind), instance: Some(instance(name, phase)) }
}

fn with_instances(fake: &Fake, names: &[&str]) {
    for name in names {
        let instance = instance(name, Phase::Running);
        fake.state().instances.insert(instance.name.clone(), instance);
    }
}

#[tokio::test]
async fn apply_creates_then_changes_nothing_then_updates() {
    let fake = Fake::start().await;
    let file = fake.file("fleet.yaml", FLEET);
    let apply = format!("apply -f {file}");
    check(&fake.run(&apply).await, 0, "hosts/vps-1 created\ninstances/demo created\n", "");
    assert_eq!(
        fake.calls(),
        [
            "get hosts/vps-1",
            "create hosts/vps-1 dry=false",
            "get instances/demo",
            "create instances/demo on hosts/vps-1 dry=false"
        ]
    );
    check(&fake.run(&apply).await, 0, "hosts/vps-1 unchanged\ninstances/demo unchanged\n", "");
    assert_eq!(
        fake.calls(),
        ["get hosts/vps-1", "get instances/demo", "update instances/demo dry=false etag=etag-2"]
    );
    let changed = FLEET.replace("tier: pro", "tier: budget").replace("region: eu", "region: us");
    let outcome = fake.run_with("apply -f -", &changed).await;
    check(&outcome, 0, "hosts/vps-1 updated\ninstances/demo updated\n", "");
    let state = fake.state();
    assert_eq!(state.hosts["hosts/vps-1"].labels["region"], "us");
    assert_eq!(state.instances["instances/demo"].spec.as_ref().unwrap().tier, "budget");
    let ids: std::collections::BTreeSet<&String> = state.request_ids.iter().collect();
    assert_eq!(ids.len(), state.request_ids.len(), "every mutation has an id of its own");
}

#[tokio::test]
async fn apply_leaves_alone_what_the_file_does_not_say() {
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    {
        let mut state = fake.state();
        let spec = state.instances.get_mut("instances/demo").unwrap().spec.as_mut().unwrap();
        spec.run_state = i32::from(fleet::RunState::Stopped);
        let secrets = [("OPENCLAW_GATEWAY_TOKEN", "made"), ("OLD", "old")];
        let secrets = secrets.map(|(name, value)| (name.to_owned(), value.to_owned()));
        spec.secrets = secrets.clone().map(|(name, _)| (name, String::new())).into();
        state.secrets.insert("instances/demo".to_owned(), secrets.into());
    }
    let document = |more: &str| {
        format!("kind: Instance\nname: demo\nhost: vps-1\nspec:\n  image: b:2\n{more}")
    };
    fake.run_with("apply -f -", &document("")).await;
    assert_eq!(fake.state().secrets["instances/demo"].len(), 2);
    let secrets = document("  secretsFrom: {NEW: {env: FROM_ENVIRONMENT}}\n");
    check(&fake.run_with("apply -f -", &secrets).await, 0, "instances/demo updated\n", "");
    let state = fake.state();
    let spec = state.instances["instances/demo"].spec.clone().unwrap();
    assert_eq!((spec.image.as_str(), spec.run_state), ("b:2", 2));
    let kept: Vec<(&str, &str)> = state.secrets["instances/demo"]
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(kept, [("NEW", "value-of-env"), ("OPENCLAW_GATEWAY_TOKEN", "made")]);
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_says_what_would_be() {
    let fake = Fake::start().await;
    let file = fake.file("fleet.yaml", FLEET);
    let expected = "hosts/vps-1 would be created\ninstances/demo would be created\n";
    check(&fake.run(&format!("apply --dry-run -f {file}")).await, 0, expected, "");
    assert!(fake.state().instances.is_empty() && fake.state().hosts.is_empty());
    fake.run(&format!("apply -f {file}")).await;
    let changed = FLEET.replace("tier: pro", "tier: budget");
    let outcome = fake.run_with("apply --dry-run -f -", &changed).await;
    check(&outcome, 0, "hosts/vps-1 unchanged\ninstances/demo would be updated\n", "");
    let tier = fake.state().instances["instances/demo"].spec.clone().unwrap().tier;
    assert_eq!(tier, "pro");
    let json = fake.run_with("apply --dry-run -o json -f -", &changed).await.stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[1]["resource"], "instances/demo");
    assert_eq!(json[1]["outcome"], "updated");
    assert_eq!(json[1]["dryRun"], true);
}

#[tokio::test]
async fn an_instance_does_not_move() {
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    let document = "kind: Instance\nname: demo\nhost: vps-2\nspec: {image: a}\n";
    check(
        &fake.run_with("apply -f -", document).await,
        1,
        "",
        "error: instances/demo is on hosts/vps-1 and cannot move to hosts/vps-2\n\
         hint: move it with `clawctl migrate INSTANCE HOST`, or correct the file\n",
    );
}

#[tokio::test]
async fn every_document_is_tried_and_every_failure_shown() {
    let fake = Fake::start().await;
    let mut details = ErrorDetails::new();
    details.add_bad_request_violation("spec.image", "must not be empty");
    details.add_bad_request_violation("spec.tier", "unknown tier \"pro\"");
    fake.state().failures.extend([
        Status::not_found("no host"),
        Status::permission_denied("viewers may not"),
        Status::not_found("no instance"),
        Status::with_error_details(Code::InvalidArgument, "2 fields", details),
    ]);
    let file = fake.file("fleet.yaml", FLEET);
    check(
        &fake.run(&format!("apply -f {file}")).await,
        1,
        "",
        "error: cannot create hosts/vps-1: permission denied: viewers may not\n\
         hint: the role in this certificate may not do that: use an identity of another role\n\
         error: cannot create instances/demo: invalid argument\n  \
         spec.image: must not be empty\n  \
         spec.tier: unknown tier \"pro\"\n\
         hint: correct what is listed above and try again\n\
         error: 2 of 2 failed\n",
    );
}

#[tokio::test]
async fn wrong_files_are_noticed_before_anything_is_dialled() {
    let fake = Fake::start().await;
    let words = ["apply", "-f", "-"];
    let nowhere = "127.0.0.1:1";
    let bad = "kind: Instance\nname: demo\nhost: vps-1\nspec:\n  imagee: x\n";
    let outcome = clawctl(nowhere, &fake.identity("alice"), &words, bad).await;
    assert_eq!(outcome.status, 2);
    assert!(
        outcome.stderr.starts_with("error: -:5:3: spec: unknown field `imagee`"),
        "{outcome:?}"
    );
    let unset = "kind: Instance\nname: d\nhost: v\nspec: {image: x, secretsFrom: {A: {env: NO}}}\n";
    let outcome = clawctl(nowhere, &fake.identity("alice"), &words, unset).await;
    check(
        &outcome,
        2,
        "",
        "error: what the file points to cannot be had\n  \
         spec.secretsFrom[A]: the environment has no variable NO\n",
    );
    assert_eq!(fake.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn lists_take_every_page() {
    let fake = Fake::start().await;
    with_instances(&fake, &["a", "b", "c", "d", "e"]);
    let names = "instances/a\ninstances/b\ninstances/c\ninstances/d\ninstances/e\n";
    check(&fake.run("list -o name").await, 0, names, "");
    assert_eq!(fake.calls().len(), 3);
    check(&fake.run("instance list --host hosts/other -o json").await, 0, "[]\n", "");
    check(
        &fake.run("token list -o name").await,
        0,
        "joinTokens/t1\njoinTokens/t2\njoinTokens/t3\n",
        "",
    );
    let events = fake.run("host events vps-1 --instance demo").await.stdout;
    assert_eq!(events.lines().count(), 4, "{events}");
    assert!(
        events.ends_with("3      -     error     demo      out_of_memory  event 3\n"),
        "{events}"
    );
    fake.calls();
    let audit = fake.run("audit --limit 3 -o name").await.stdout;
    assert_eq!(audit, "auditEntries/5\nauditEntries/4\nauditEntries/3\n");
    assert_eq!(fake.calls(), ["audit  size=3", "audit  size=3"]);
    let audit = fake.run("audit --limit 0 -o name").await.stdout;
    assert_eq!(audit.lines().count(), 5);
}

#[tokio::test]
async fn get_prints_what_apply_takes_back() {
    let fake = Fake::start().await;
    fake.run_with("apply -f -", FLEET).await;
    let yaml = fake.run("get demo -o yaml").await.stdout;
    assert!(!yaml.contains("first"), "{yaml}");
    check(&fake.run_with("apply -f -", &yaml).await, 0, "instances/demo unchanged\n", "");
    assert_eq!(fake.state().secrets["instances/demo"]["API_KEY"], "first");
    let yaml = fake.run("host get vps-1 -o yaml").await.stdout;
    check(&fake.run_with("apply -f -", &yaml).await, 0, "hosts/vps-1 unchanged\n", "");
    check(
        &fake.run("get nobody").await,
        1,
        "",
        "error: cannot get instances/nobody: not found: instances/nobody does not exist\n\
         hint: see what there is with `clawctl list` and `clawctl host list`\n",
    );
}

#[tokio::test]
async fn hosts() {
    let fake = Fake::start().await;
    check(&fake.run("host create vps-1 --label a=b").await, 0, "hosts/vps-1 created\n", "");
    assert_eq!(fake.state().hosts["hosts/vps-1"].labels["a"], "b");
    check(&fake.run("host cordon vps-1").await, 0, "hosts/vps-1 cordoned\n", "");
    assert!(fake.state().hosts["hosts/vps-1"].cordoned);
    assert_eq!(fake.state().hosts["hosts/vps-1"].labels["a"], "b");
    check(&fake.run("host uncordon hosts/vps-1").await, 0, "hosts/vps-1 uncordoned\n", "");
    assert!(!fake.state().hosts["hosts/vps-1"].cordoned);
    check(&fake.run("host revoke vps-1").await, 0, "hosts/vps-1 revoked\n", "");
    check(&fake.run("host list -o name").await, 0, "hosts/vps-1\n", "");
    check(&fake.run("host delete vps-1").await, 0, "hosts/vps-1 deleted\n", "");
    assert!(fake.state().hosts.is_empty());
    assert_eq!(fake.run("host delete vps-1").await.status, 1);
}

#[tokio::test]
async fn tokens_go_to_standard_output_alone() {
    let fake = Fake::start().await;
    let outcome = fake.run("token create vps-1 --ttl 30m").await;
    assert_eq!(outcome.stdout, "clw1.t1.secret.pin\n");
    assert!(!outcome.stderr.contains("secret"), "{outcome:?}");
    assert!(outcome.stderr.contains("clawd join --coordinator 127.0.0.1:"), "{outcome:?}");
    assert_eq!(fake.calls(), ["token for hosts/vps-1 ttl=Some(1800)"]);
    let line = fake.run("token create vps-1 --print join-command").await.stdout;
    let expected = format!(
        "echo 'clw1.t1.secret.pin' | clawd join --coordinator {} --host-name vps-1 --token-file -\n",
        fake.endpoint()
    );
    assert_eq!(line, expected);
    let json = fake.run("token create vps-1 -o json").await;
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(
        (value["token"].as_str(), value["host"].as_str()),
        (Some("clw1.t1.secret.pin"), Some("vps-1"))
    );
    assert_eq!(json.stderr, "");
    check(&fake.run("token delete t1").await, 0, "joinTokens/t1 deleted\n", "");
    check(&fake.run("gateway-token demo").await, 0, "gateway-secret\n", "");
    // Shown once: a lost answer must not lead to a second token behind the operator's back.
    fake.calls();
    fake.state().failures.push_back(Status::unavailable("busy"));
    assert_eq!(fake.run("token create vps-1").await.status, 1);
    assert_eq!(fake.calls().len(), 1);
}

#[tokio::test]
async fn an_unavailable_server_is_asked_again_with_the_same_request() {
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    fake.state().failures.extend([Status::unavailable("one"), Status::unavailable("two")]);
    check(&fake.run("restart demo").await, 0, "instances/demo will restart\n", "");
    assert_eq!(fake.calls(), ["restart instances/demo"; 3]);
    let ids = fake.state().request_ids.clone();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
    let details = ErrorDetails::with_retry_info(Some(std::time::Duration::from_secs(3600)));
    let busy = Status::with_error_details(Code::Unavailable, "draining", details);
    fake.state().failures.push_back(busy);
    check(
        &fake.run("stop demo").await,
        1,
        "",
        "error: cannot stop instances/demo: unavailable: draining\nhint: try again in 3600 s\n",
    );
}

#[tokio::test]
async fn waiting_shows_the_way_on_the_error_stream() {
    use fleet::WatchKind::{Changed, Current};
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    fake.state().watches.extend([
        vec![message(Current, "demo", Phase::Applying)],
        vec![
            message(Current, "demo", Phase::Applying),
            message(Changed, "demo", Phase::Starting),
            message(Changed, "demo", Phase::Running),
        ],
    ]);
    let outcome = fake.run("restart demo --wait").await;
    assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "instances/demo running\n"));
    let phases: Vec<&str> =
        outcome.stderr.lines().filter_map(|line| line.rsplit("  ").next()).collect();
    assert_eq!(phases, ["applying", "starting", "running"], "{outcome:?}");
    assert_eq!(
        fake.calls(),
        [
            "restart instances/demo",
            "watch instances/demo",
            "watch instances/demo",
            "get instances/demo"
        ]
    );
}

#[tokio::test]
async fn apply_waits_for_what_the_instances_should_be() {
    use fleet::WatchKind::Current;
    let fake = Fake::start().await;
    with_instances(&fake, &["down"]);
    {
        let mut state = fake.state();
        let spec = state.instances.get_mut("instances/down").unwrap().spec.as_mut().unwrap();
        spec.run_state = i32::from(fleet::RunState::Stopped);
        state.watches.extend([
            vec![message(Current, "up", Phase::Running)],
            vec![message(Current, "down", Phase::Stopped)],
        ]);
    }
    let document =
        |name: &str| format!("kind: Instance\nname: {name}\nhost: vps-1\nspec: {{image: b}}\n");
    let both = format!("{}---\n{}", document("up"), document("down"));
    let outcome = fake.run_with("apply --wait -f -", &both).await;
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(outcome.stdout, "instances/up created\ninstances/down updated\n");
    let watches: Vec<String> =
        fake.calls().into_iter().filter(|call| call.starts_with("watch")).collect();
    assert_eq!(watches, ["watch instances/up", "watch instances/down"]);
}

#[tokio::test]
async fn watch_ends_with_its_verdict() {
    use fleet::WatchKind::{Current, Deleted};
    let fake = Fake::start().await;
    fake.state().watches.push_back(vec![message(Current, "demo", Phase::CrashLoop)]);
    let outcome = fake.run("watch demo --until running").await;
    assert_eq!(outcome.status, 1);
    assert_eq!(
        outcome.stderr,
        "error: instances/demo cannot get running: crash-loop\n\
         hint: `clawctl get demo` shows what happened\n"
    );
    fake.state().watches.push_back(vec![message(Current, "demo", Phase::Pulling)]);
    let outcome = fake.run("watch demo --until running --timeout 1s").await;
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.starts_with("error: "), "{outcome:?}");
    fake.state().watches.push_back(vec![
        message(Current, "demo", Phase::Removing),
        message(Deleted, "demo", Phase::Removed),
    ]);
    let outcome = fake.run("watch demo --until deleted -o json").await;
    assert_eq!(outcome.status, 0);
    let lines: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["event"], "current");
    assert_eq!(lines[0]["instance"]["status"]["phase"], "removing");
    assert_eq!(lines[1]["event"], "deleted");
}

#[tokio::test]
async fn a_timeout_says_what_was_pending() {
    let fake = Fake::start().await;
    let pulling = vec![message(fleet::WatchKind::Current, "demo", Phase::Pulling)];
    // Every stream ends at once and comes back the same.
    fake.state().watches.extend(std::iter::repeat_n(pulling, 100));
    check(
        &fake.run("watch demo --until running --timeout 1s -o name").await,
        1,
        "instances/demo\n",
        "error: not running within 1s: demo is pulling\n\
         hint: it may still get there: `clawctl get NAME` shows more, --timeout waits longer\n",
    );
}

#[tokio::test]
async fn deletion() {
    use fleet::WatchKind::{Current, Deleted};
    let fake = Fake::start().await;
    with_instances(&fake, &["a", "b", "c"]);
    check(&fake.run("delete a").await, 0, "instances/a deleting\n", "");
    check(
        &fake.run("delete a").await,
        1,
        "",
        "error: cannot delete instances/a: not found: instances/a does not exist\n\
         hint: see what there is with `clawctl list` and `clawctl host list`\n",
    );
    fake.calls();
    fake.state().watches.extend([vec![
        message(Current, "b", Phase::Removing),
        message(Deleted, "b", Phase::Removed),
    ]]);
    let outcome = fake.run("instance delete b --wait -o name").await;
    check(&outcome, 0, "instances/b\n", "");
    assert_eq!(fake.calls(), ["delete instances/b", "watch instances/b"]);
    // No watch is prepared: the fake answers that it does not exist, and so does get.
    check(&fake.run("delete c --wait -o name").await, 0, "instances/c\n", "");
    assert_eq!(fake.calls(), ["delete instances/c", "watch instances/c", "get instances/c"]);
}

#[tokio::test]
async fn files_are_deleted_instances_first() {
    let fake = Fake::start().await;
    fake.run_with("apply -f -", FLEET).await;
    fake.calls();
    let outcome = fake.run_with("delete -f -", FLEET).await;
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(outcome.stdout, "instances/demo deleting\nhosts/vps-1 deleted\n");
    let expected = [
        "delete instances/demo",
        "watch instances/demo",
        "get instances/demo",
        "delete hosts/vps-1",
    ];
    assert_eq!(fake.calls(), expected);
    let again = fake.run_with("delete -f -", FLEET).await;
    check(&again, 0, "instances/demo absent\nhosts/vps-1 absent\n", "");
}

#[tokio::test]
async fn create_from_flags() {
    let fake = Fake::start().await;
    let key = fake.file("key", "from-file\n");
    let line = format!(
        "instance create demo --host vps-1 --image a:1 --memory 2GiB --cpu 1.5 --pids 300 --env A=b=c \
         --secret-file KEY={key} --secret-env OTHER=FROM_ENVIRONMENT --hostname d.example --stopped"
    );
    check(&fake.run(&line).await, 0, "instances/demo created\n", "");
    let state = fake.state();
    let spec = state.instances["instances/demo"].spec.clone().unwrap();
    let resources = spec.resources.unwrap();
    assert_eq!(
        (resources.memory_bytes, resources.cpu_millis, resources.pids_limit),
        (2 << 30, 1500, 300)
    );
    assert_eq!(spec.env["A"], "b=c");
    assert_eq!(spec.run_state, i32::from(fleet::RunState::Stopped));
    assert_eq!(spec.hostnames, ["d.example"]);
    let secrets = &state.secrets["instances/demo"];
    assert_eq!((secrets["KEY"].as_str(), secrets["OTHER"].as_str()), ("from-file", "value-of-env"));
}

#[tokio::test]
async fn unusable_identities_are_told_apart() {
    let fake = Fake::start().await;
    let list = |identity: &'static str| {
        let path = fake.identity(identity);
        let endpoint = fake.endpoint().to_owned();
        async move { clawctl(&endpoint, &path, &["list"], "").await }
    };
    let absent = list("nobody").await;
    assert_eq!(absent.status, 1);
    assert!(absent.stderr.contains("nobody/key.pem does not exist"), "{absent:?}");
    let expired = list("expired").await;
    assert!(
        expired.stderr.starts_with("error: the certificate of operator/alice ended at 20"),
        "{expired:?}"
    );
    assert!(expired.stderr.contains("\nhint: get a new certificate"), "{expired:?}");
    let foreign = list("foreign").await;
    assert!(foreign.stderr.contains("tls handshake: invalid peer certificate"), "{foreign:?}");
    assert!(foreign.stderr.contains("\nhint: the server is not this fleet's"), "{foreign:?}");
    let stranger = list("stranger").await;
    assert!(stranger.stderr.contains("refused this client's certificate"), "{stranger:?}");
    assert!(
        stranger.stderr.contains("\nhint: this certificate is expired, revoked"),
        "{stranger:?}"
    );
    assert_eq!(fake.calls(), Vec::<String>::new());
    let nowhere = clawctl("127.0.0.1:1", &fake.identity("alice"), &["list"], "").await;
    check(
        &nowhere,
        1,
        "",
        "error: cannot connect to 127.0.0.1:1: tcp: Connection refused (os error 111)\n\
         hint: check that claw-coordinator runs and listens at 127.0.0.1:1\n",
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_waited_for() {
    let fake = Fake::start().await;
    // Accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    let words = ["list", "--timeout", "300ms"];
    let outcome = clawctl(&endpoint, &fake.identity("alice"), &words, "").await;
    let expected = format!(
        "error: cannot connect to {endpoint}: no answer within 300ms\n\
         hint: check that claw-coordinator runs and listens at {endpoint}\n"
    );
    check(&outcome, 1, "", &expected);
}

#[tokio::test]
async fn usage_and_generated_documents() {
    let fake = Fake::start().await;
    let wrong = fake.run("frobnicate").await;
    assert_eq!((wrong.status, wrong.stdout.as_str()), (2, ""));
    assert!(wrong.stderr.contains("Usage: clawctl"), "{wrong:?}");
    let help = fake.run("--help").await;
    assert_eq!((help.status, help.stderr.as_str()), (0, ""));
    for shell in ["bash", "zsh", "fish"] {
        let completions = fake.run(&format!("completions {shell}")).await;
        assert_eq!(completions.status, 0);
        for word in ["gateway-token", "recovery-password", "snapshot", "rollback"] {
            assert!(completions.stdout.contains(word), "{shell}: {word}");
        }
    }
    let mut generated = Vec::new();
    let mut surroundings = clawctl::Surroundings {
        stdin: &mut std::io::empty(),
        stdout: &mut generated,
        stderr: &mut std::io::sink(),
        terminal: false,
        variable: &|_| None,
    };
    let words = ["clawctl", "--generate", "man"].map(std::ffi::OsString::from);
    assert_eq!(clawctl::status(words, &mut surroundings).await, 0);
    let page = String::from_utf8(generated).unwrap();
    for part in [
        ".TH clawctl 1",
        "clawctl host cordon",
        "clawctl snapshot verify",
        "clawctl rollback",
        "kind: Instance",
        "Exit status",
    ] {
        assert!(page.replace("\\-", "-").contains(part), "{part}");
    }
}
