//! Firewalls of hosts: shown, proposed, applied; against the fake of the API.

use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::check;
use crate::fake::Fake;

fn proto_tcp() -> i32 {
    node::Protocol::Tcp.into()
}

fn detail() -> node::FirewallDetail {
    let allowlist = |pattern: &str| node::Allowlist {
        names: vec![node::AllowedName { pattern: pattern.to_owned(), ports: vec![443] }],
        mode: node::AllowlistMode::Observed.into(),
        networks: Vec::new(),
    };
    let demo = node::InstanceFirewall {
        name: "demo".to_owned(),
        bridge: "claw-i0".to_owned(),
        policy: Some(node::NetworkPolicy {
            egress: Some(node::Egress {
                denied_ports: Some(node::DeniedPorts { ports: vec![25] }),
                allowlist: Some(allowlist("api.example.com")),
            }),
            web_sources: vec!["192.0.2.0/24".to_owned()],
        }),
        refused: vec![node::RefusedDestination {
            address: "203.0.113.7".to_owned(),
            protocol: proto_tcp(),
            port: 443,
            packets: 12,
            names: vec!["www.example.org".to_owned()],
        }],
        proposal: Some(allowlist("*.example.org")),
    };
    let other = node::InstanceFirewall {
        name: "other".to_owned(),
        bridge: "claw-i1".to_owned(),
        policy: Some(node::NetworkPolicy::default()),
        ..node::InstanceFirewall::default()
    };
    node::FirewallDetail {
        backend: "1.8.9 (nf_tables)".to_owned(),
        host: Some(node::HostFirewall {
            ssh: Some(node::SshPolicy {
                interfaces: vec!["wg0".to_owned()],
                brute_force: Some(node::BruteForce {
                    failures: Some(5),
                    window: Some(claw_proto::convert::duration_to_wire(
                        std::time::Duration::from_secs(600),
                    )),
                    ban: Some(claw_proto::convert::duration_to_wire(
                        std::time::Duration::from_secs(60),
                    )),
                }),
                ..node::SshPolicy::default()
            }),
            web: Some(node::WebAccess::default()),
            extra: vec![node::ExtraPort {
                protocol: node::Protocol::Udp.into(),
                port: 51820,
                ..node::ExtraPort::default()
            }],
            blocked: vec!["198.51.100.0/24".to_owned()],
        }),
        ssh_ports: vec![22, 2222],
        web_ports: vec![8080],
        instances: vec![demo, other],
        rules_v4: "*raw\n[12:600] -A CLAW-PRE -i lo -j RETURN\n\u{1b}[2J\n".to_owned(),
        rules_v6: "*raw\n".to_owned(),
        omitted: Vec::new(),
    }
}

/// A fake with a firewall and an instance that was refused something.
async fn fake() -> Fake {
    let fake = Fake::start().await;
    let status = node::FirewallStatus {
        applied_generation: 7,
        problem: "cut off from the coordinator: reverted".to_owned(),
        backend: "1.8.9 (nf_tables)".to_owned(),
        repairs: 2,
        ingress_refused: 30,
        login_failures: 4,
        banned: 1,
    };
    let view = fleet::HostFirewallView {
        desired: Some(node::HostFirewall::default()),
        status: Some(status.clone()),
        detail: Some(detail()),
    };
    let blocked = node::BlockedTraffic {
        ports: vec![node::BlockedPort { protocol: proto_tcp(), port: 25, attempts: 340 }],
        outside: 12,
        closed: 0,
        dns_queries: 99,
        dns_refused: 3,
    };
    let demo = fleet::Instance {
        name: "instances/demo".to_owned(),
        host: "hosts/vps-1".to_owned(),
        spec: Some(fleet::InstanceSpec { image: "a:1".to_owned(), ..Default::default() }),
        status: Some(fleet::InstanceStatus {
            report: Some(node::InstanceReport { blocked: Some(blocked), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let host = fleet::Host {
        name: "hosts/vps-1".to_owned(),
        status: Some(fleet::HostStatus { firewall: Some(status), ..Default::default() }),
        ..Default::default()
    };
    {
        let mut state = fake.state();
        state.firewalls.insert("hosts/vps-1".to_owned(), view);
        state.instances.insert(demo.name.clone(), demo);
        state.hosts.insert(host.name.clone(), host);
    }
    fake
}

#[tokio::test]
async fn a_firewall_for_people() {
    let fake = fake().await;
    let expected = "\
host           vps-1
state          generation 7 in force, problem: cut off from the coordinator: reverted
backend        1.8.9 (nf_tables)
ssh            22, 2222 from anywhere through wg0
logins         5 failures within 600s: banned for 60s
web            8080 from anywhere
extra          51820/udp from anywhere
blocked        198.51.100.0/24
banned now     1
failed logins  4
refused        30
repairs        2

INSTANCE  BRIDGE   EGRESS                    DENIED  OUTSIDE  CLOSED  NAMES  REFUSED
demo      claw-i0  observed, 1 destinations  340     12       0       99     3
other     claw-i1  open                      -       -        -       -      -
";
    check(&fake.run("host firewall vps-1").await, 0, expected, "");
    assert_eq!(fake.calls(), ["firewall of hosts/vps-1", "list instances hosts/vps-1"]);
}

#[tokio::test]
async fn a_firewall_for_programs() {
    let fake = fake().await;
    let json = fake.run("host firewall vps-1 -o json").await.stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["status"]["appliedGeneration"], 7);
    assert_eq!(json["effective"]["ssh"]["interfaces"], serde_json::json!(["wg0"]));
    assert_eq!(json["rulesV6"], "*raw\n");
    let demo = &json["instances"][0];
    assert_eq!(demo["blocked"]["ports"][0]["attempts"], 340);
    assert_eq!(demo["refused"][0]["names"][0], "www.example.org");
    assert_eq!(demo["network"]["egress"]["deniedPorts"], serde_json::json!([25]));
    assert_eq!(demo["proposal"]["names"][0]["pattern"], "*.example.org");
}

#[tokio::test]
async fn rules_are_shown_and_obeyed_by_no_terminal() {
    let fake = fake().await;
    let expected = "\
# IPv4
*raw
[12:600] -A CLAW-PRE -i lo -j RETURN
?[2J
# IPv6
*raw
";
    check(&fake.run("host firewall vps-1 --rules").await, 0, expected, "");
}

#[tokio::test]
async fn a_proposal_can_be_applied() {
    let fake = fake().await;
    let outcome = fake.run("host firewall vps-1 --proposal demo").await;
    let expected = "\
spec:
  network:
    egress:
      deniedPorts:
      - 25
      allowlist:
        mode: observed
        names:
        - pattern: '*.example.org'
          ports:
          - 443
    webSources:
    - 192.0.2.0/24
";
    check(&outcome, 0, expected, "");
    let file = format!("kind: Instance\nname: demo\nhost: vps-1\n{expected}  image: a:1\n");
    check(&fake.run_with("apply -f -", &file).await, 0, "instances/demo updated\n", "");
    let network = {
        let state = fake.state();
        state.instances["instances/demo"].spec.as_ref().unwrap().network.clone().unwrap()
    };
    assert_eq!(network.egress.unwrap().allowlist, detail().instances[0].proposal);
    // A file that says nothing of the network leaves it.
    let silent = "kind: Instance\nname: demo\nhost: vps-1\nspec: {image: 'a:2'}\n";
    check(&fake.run_with("apply -f -", silent).await, 0, "instances/demo updated\n", "");
    assert!(fake.state().instances["instances/demo"].spec.as_ref().unwrap().network.is_some());
    let outcome = fake.run("host firewall vps-1 --proposal other").await;
    check(
        &outcome,
        1,
        "",
        "error: hosts/vps-1 proposes no list for instances/other\n\
         hint: give it an allowlist first: spec.network.egress.allowlist with mode: observed \
         records what it reaches\n",
    );
}

#[tokio::test]
async fn a_host_that_is_away_says_so() {
    let fake = fake().await;
    let mut details = ErrorDetails::new();
    let text = "hosts/vps-1 is not connected, and only its agent knows";
    details.add_precondition_failure_violation("HOST_NOT_CONNECTED", "hosts/vps-1", text);
    let status = Status::with_error_details(Code::FailedPrecondition, text, details);
    fake.state().failures.push_back(status);
    let outcome = fake.run("host firewall vps-1").await;
    assert_eq!((outcome.status, outcome.stdout.as_str()), (1, ""));
    assert!(outcome.stderr.contains(text), "{outcome:?}");
}

#[tokio::test]
async fn firewalls_are_applied_and_left_alone() {
    let fake = Fake::start().await;
    let file = "kind: Host\nname: vps-1\nfirewall: {web: {exposure: loopback}}\n";
    check(&fake.run_with("apply -f -", file).await, 0, "hosts/vps-1 created\n", "");
    let exposure = || fake.state().hosts["hosts/vps-1"].firewall.clone().unwrap().web.unwrap();
    assert_eq!(exposure().exposure(), node::WebExposure::Loopback);
    check(&fake.run_with("apply -f -", file).await, 0, "hosts/vps-1 unchanged\n", "");
    fake.calls();
    let labels = "kind: Host\nname: vps-1\nlabels: {a: b}\n";
    check(&fake.run_with("apply -f -", labels).await, 0, "hosts/vps-1 updated\n", "");
    assert_eq!(exposure().exposure(), node::WebExposure::Loopback, "it was not named");
    let open = "kind: Host\nname: vps-1\nfirewall: {}\n";
    check(&fake.run_with("apply -f -", open).await, 0, "hosts/vps-1 updated\n", "");
    assert!(fake.calls().iter().any(|call| call.contains("labels,cordoned,firewall")));
    assert_eq!(fake.state().hosts["hosts/vps-1"].firewall, Some(node::HostFirewall::default()));
}

#[tokio::test]
async fn what_was_refused_is_seen_with_the_instance_and_the_host() {
    let fake = fake().await;
    let demo = fake.run("get demo").await.stdout;
    assert!(demo.contains("blocked      25/tcp 340 times, outside its list 12 times\n"), "{demo}");
    assert!(demo.contains("names asked  99, 3 refused\n"), "{demo}");
    let hosts = fake.run("host list").await.stdout;
    assert!(hosts.contains("firewall: cut off from the coordinator: reverted"), "{hosts}");
    let host = fake.run("host get vps-1").await.stdout;
    assert!(host.contains("generation 7 in force, problem: cut off"), "{host}");
}
