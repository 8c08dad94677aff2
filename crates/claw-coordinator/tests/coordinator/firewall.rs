//! Firewalls: policies of hosts and instances reach agents, and what agents say of them comes back.

use claw_identity::Role;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command_result::Payload;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_store::rusqlite::Connection;
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::fixture::{
    Agent, Clients, Fleet, create_request, fields, hello, reason, report, spec, until,
};

fn policy(source: &str) -> node::HostFirewall {
    node::HostFirewall {
        ssh: Some(node::SshPolicy {
            sources: vec![source.to_owned()],
            ..node::SshPolicy::default()
        }),
        web: Some(node::WebAccess {
            exposure: node::WebExposure::Loopback.into(),
            ..node::WebAccess::default()
        }),
        extra: Vec::new(),
        blocked: vec!["203.0.113.0/24".to_owned()],
    }
}

fn update(firewall: Option<node::HostFirewall>) -> fleet::UpdateHostRequest {
    fleet::UpdateHostRequest {
        host: Some(fleet::Host { name: "hosts/a".to_owned(), firewall, ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["firewall".to_owned()] }),
        ..Default::default()
    }
}

async fn view(clients: &Clients, host: &str) -> Result<fleet::HostFirewallView, Status> {
    let request = fleet::GetHostFirewallRequest { name: format!("hosts/{host}") };
    let answer = clients.clone().hosts.get_host_firewall(request).await?;
    Ok(answer.into_inner().firewall.unwrap())
}

/// The next question to an agent.
async fn question(agent: &mut Agent) -> node::Command {
    match agent.next().await.unwrap() {
        Down::Command(command) => command,
        other => panic!("instead of a question: {other:?}"),
    }
}

fn answer(id: String, error: &str, payload: Option<node::FirewallDetail>) -> Up {
    let payload = payload.map(Payload::Firewall);
    Up::CommandResult(node::CommandResult { id, error: error.to_owned(), payload })
}

#[tokio::test]
async fn a_policy_reaches_the_agent_and_is_audited() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    let (before, state) = agent.desired().await;
    assert_eq!(state.firewall, None, "the default is not spelled out");

    let given = policy("192.0.2.7");
    let host = operator.hosts.update_host(update(Some(given.clone()))).await.unwrap();
    let host = host.into_inner().host.unwrap();
    assert_eq!(host.firewall, Some(given.clone()), "shown as it was given");
    let (after, state) = agent.desired().await;
    assert_eq!(after.generation, before.generation + 1);
    assert_eq!(host.status.unwrap().desired, Some(after.clone()));
    let ssh = state.firewall.unwrap().ssh.unwrap();
    assert_eq!(ssh.sources, ["192.0.2.7/32"]);
    assert_eq!(ssh.brute_force.unwrap().failures, Some(5), "defaults are filled in");
    let audit = &operator.audit("hosts/a").await[0];
    assert_eq!(
        audit.summary,
        "labels {}, cordoned false, firewall: ssh from 1 networks, web from the host itself, 0 further ports, 1 networks blocked"
    );

    // The same again changes nothing; other words for the same policy change the etag only.
    let again = operator.hosts.update_host(update(Some(given))).await.unwrap();
    assert_eq!(again.into_inner().host.unwrap().etag, host.etag);
    let other_words = operator.hosts.update_host(update(Some(policy("192.0.2.7/32")))).await;
    let other_words = other_words.unwrap().into_inner().host.unwrap();
    assert_ne!(other_words.etag, host.etag);
    assert_eq!(other_words.status.unwrap().desired, Some(after));

    // None is the default again.
    let reset = operator.hosts.update_host(update(None)).await.unwrap().into_inner().host.unwrap();
    assert_eq!(reset.firewall, None);
    assert_eq!(agent.desired().await.1.firewall, None);
}

#[tokio::test]
async fn a_policy_is_there_from_the_start_and_after_a_restart() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    let create = fleet::CreateHostRequest {
        host_id: "a".to_owned(),
        host: Some(fleet::Host { firewall: Some(policy("2001:db8::/32")), ..Default::default() }),
        ..Default::default()
    };
    let made = operator.hosts.create_host(create).await.unwrap().into_inner().host.unwrap();
    let desired = made.status.unwrap().desired.unwrap();
    assert!(operator.audit("hosts/a").await[0].summary.starts_with("registered, firewall: ssh"));
    // Labels leave it alone.
    let labels = fleet::UpdateHostRequest {
        host: Some(fleet::Host {
            name: "hosts/a".to_owned(),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            ..Default::default()
        }),
        update_mask: Some(FieldMask { paths: vec!["labels".to_owned()] }),
        ..Default::default()
    };
    operator.hosts.update_host(labels).await.unwrap();
    let fleet = fleet.restart(|_data_dir| {}).await;
    let mut operator = fleet.operator().await;
    let host = operator.host("a").await.unwrap();
    assert_eq!(host.status.unwrap().desired, Some(desired.clone()), "a restart changes nothing");
    assert_eq!(host.firewall, Some(policy("2001:db8::/32")));
    operator.create_instance("demo", "a").await.unwrap();
    let host = operator.host("a").await.unwrap();
    assert_eq!(host.status.unwrap().desired.unwrap().generation, desired.generation + 1);
}

#[tokio::test]
async fn every_wrong_field_of_a_policy_is_named_and_nothing_changes() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let mut wrong = policy("192.0.2.0/24");
    wrong.ssh.as_mut().unwrap().sources = vec!["192.0.2.0/24".into(), "192.0.2.7/24".into()];
    wrong.blocked.push("nobody".to_owned());
    let mut request = update(Some(wrong));
    request.host.as_mut().unwrap().labels = [(String::new(), String::new())].into();
    request.update_mask.as_mut().unwrap().paths.push("labels".to_owned());
    let status = operator.hosts.update_host(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let expected = ["host.labels[]", "host.firewall.ssh.sources[1]", "host.firewall.blocked[1]"];
    assert_eq!(fields(&status), expected);

    // Faults between values name the entry as the caller wrote it, not as it is sorted.
    let mut overlapping = policy("192.0.2.0/24");
    overlapping.blocked =
        ["203.0.113.0/24", "198.51.100.9", "198.51.100.0/24"].map(Into::into).into();
    let status = operator.hosts.update_host(update(Some(overlapping))).await.unwrap_err();
    assert_eq!(fields(&status), ["host.firewall.blocked[1]"]);

    let mut create = create_request("demo", "a");
    create.instance.as_mut().unwrap().spec.as_mut().unwrap().network =
        Some(node::NetworkPolicy { web_sources: vec!["x".to_owned()], egress: None });
    let status = operator.instances.create_instance(create).await.unwrap_err();
    assert_eq!(fields(&status), ["instance.spec.network.web_sources[0]"]);

    let mut dry = update(Some(policy("192.0.2.0/24")));
    dry.validate_only = true;
    let answer = operator.hosts.update_host(dry).await.unwrap().into_inner().host.unwrap();
    assert_eq!(answer.status.unwrap().desired.unwrap().generation, 2, "what would be");
    let host = operator.host("a").await.unwrap();
    assert_eq!((host.firewall, host.status.unwrap().desired.unwrap().generation), (None, 1));
}

#[tokio::test]
async fn many_faults_still_make_an_answer() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let mut wrong = policy("192.0.2.0/24");
    wrong.blocked = (0..1000).map(|number| format!("not a network {number}")).collect();
    let status = operator.hosts.update_host(update(Some(wrong))).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let told = fields(&status);
    assert_eq!(told[0], "host.firewall.blocked[0]");
    let more = 1001 - told.len();
    let last = format!("{}: is the first of {more} more that are wrong", told[told.len() - 1]);
    assert!(status.message().ends_with(&last), "{status}");
}

#[tokio::test]
async fn the_network_of_an_instance_changes_by_its_mask() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    agent.desired().await;
    operator.create_instance("demo", "a").await.unwrap();
    agent.desired().await;
    let network = node::NetworkPolicy {
        egress: Some(node::Egress {
            denied_ports: Some(node::DeniedPorts::default()),
            allowlist: Some(node::Allowlist {
                names: vec![node::AllowedName {
                    pattern: "*.example.com".into(),
                    ports: vec![443],
                }],
                mode: node::AllowlistMode::Observed.into(),
                ..Default::default()
            }),
        }),
        web_sources: vec!["192.0.2.0/24".to_owned()],
    };
    let request = fleet::UpdateInstanceRequest {
        instance: Some(fleet::Instance {
            name: "instances/demo".to_owned(),
            spec: Some(fleet::InstanceSpec { network: Some(network.clone()), ..spec() }),
            ..Default::default()
        }),
        update_mask: Some(FieldMask { paths: vec!["spec.network.egress".to_owned()] }),
        ..Default::default()
    };
    operator.instances.update_instance(request).await.unwrap();
    let (_stamp, state) = agent.desired().await;
    let arrived = state.instances[0].network.clone().unwrap();
    assert_eq!(arrived.egress, network.egress);
    assert_eq!(arrived.web_sources, Vec::<String>::new(), "it was not named");
}

#[tokio::test]
async fn what_a_host_reports_of_its_firewall_is_shown() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    agent.desired().await;
    operator.create_instance("demo", "a").await.unwrap();
    let (stamp, _state) = agent.desired().await;
    assert_eq!(operator.host("a").await.unwrap().status.unwrap().firewall, None);
    let firewall = node::FirewallStatus {
        applied_generation: 1,
        problem: "cut off from the coordinator".to_owned(),
        repairs: 3,
        ..Default::default()
    };
    let blocked = node::BlockedTraffic {
        ports: vec![node::BlockedPort {
            protocol: node::Protocol::Tcp.into(),
            port: 25,
            attempts: 340,
        }],
        ..Default::default()
    };
    let demo = node::InstanceReport {
        blocked: Some(blocked.clone()),
        ..report("demo", stamp.generation, node::Phase::Running)
    };
    agent
        .send(Up::Status(node::Status {
            persisted: Some(stamp),
            firewall: Some(firewall.clone()),
            instances: vec![demo],
            ..Default::default()
        }))
        .await;
    let shown = until(async || operator.clone().host("a").await.unwrap().status.unwrap().firewall);
    assert_eq!(shown.await, firewall);
    let demo = operator.instance("demo").await.unwrap().status.unwrap();
    assert_eq!(demo.report.unwrap().blocked, Some(blocked));
}

#[tokio::test]
async fn an_agent_is_asked_and_its_answer_shown() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    agent.desired().await;
    operator.hosts.update_host(update(Some(policy("192.0.2.0/24")))).await.unwrap();
    agent.desired().await;
    let viewer = Clients::new(fleet.channel(Role::Viewer, "eve").await);
    let detail = node::FirewallDetail {
        backend: "1.8.9 (nf_tables)".to_owned(),
        ssh_ports: vec![22],
        instances: vec![node::InstanceFirewall {
            name: "demo".to_owned(),
            bridge: "claw-i0".to_owned(),
            ..Default::default()
        }],
        rules_v4: "*raw\n".repeat(200_000),
        ..Default::default()
    };
    let said = detail.clone();
    let (shown, ()) = tokio::join!(view(&viewer, "a"), async {
        let command = question(&mut agent).await;
        let wanted = node::command::Command::FetchFirewall(node::FetchFirewall {});
        assert_eq!(command.command, Some(wanted));
        assert!(command.deadline.is_some());
        agent.send(answer("nobody asked this".to_owned(), "", None)).await;
        agent.send(answer(command.id, "", Some(said))).await;
    });
    let shown = shown.unwrap();
    assert_eq!(shown.detail, Some(detail));
    let ssh = shown.desired.unwrap().ssh.unwrap();
    assert_eq!(
        (ssh.sources, ssh.brute_force.unwrap().failures),
        (vec!["192.0.2.0/24".into()], Some(5))
    );

    // Errors and nonsense of an agent are said as such.
    let wrong = node::FirewallDetail { ssh_ports: vec![0], ..Default::default() };
    let nonsense =
        "the answer of hosts/a makes no sense: ssh_ports[0]: must be a port from 1 to 65535, got 0";
    for (error, payload, expected) in [
        ("iptables is gone", None, "hosts/a answered: iptables is gone"),
        ("", None, "the agent of hosts/a gave no answer"),
        ("", Some(wrong), nonsense),
    ] {
        let (status, ()) = tokio::join!(view(&viewer, "a"), async {
            let command = question(&mut agent).await;
            agent.send(answer(command.id, error, payload)).await;
        });
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!((reason(&status).as_str(), status.message()), ("COMMAND_FAILED", expected));
    }
}

#[tokio::test]
async fn nobody_waits_for_an_agent_that_is_not_there() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let operator = fleet.operator().await;
    let status = view(&operator, "b").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = view(&operator, "a").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status), "HOST_NOT_CONNECTED");

    // A session that ends takes its questions with it.
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    agent.desired().await;
    let (status, _newer) = tokio::join!(view(&operator, "a"), async {
        question(&mut agent).await;
        Agent::connect(&fleet, &identity, hello("a", "boot-1")).await
    });
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_too_late() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    agent.desired().await;
    let operator = fleet.operator().await;
    let (status, command) = tokio::join!(view(&operator, "a"), question(&mut agent));
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(reason(&status), "TOO_LATE");
    // Its answer after all does no harm, and the next question is answered.
    agent.send(answer(command.id, "", Some(node::FirewallDetail::default()))).await;
    let (shown, ()) = tokio::join!(view(&operator, "a"), async {
        let command = question(&mut agent).await;
        agent.send(answer(command.id, "", Some(node::FirewallDetail::default()))).await;
    });
    assert!(shown.is_ok(), "{shown:?}");
}

#[tokio::test]
async fn a_database_from_before_the_firewall_is_taken() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    operator.create_instance("demo", "a").await.unwrap();
    let before = operator.host("a").await.unwrap();
    let fleet = fleet
        .restart(|data_dir| {
            let database = Connection::open(data_dir.join("fleet.db")).unwrap();
            database
                .execute_batch(
                    "ALTER TABLE host DROP COLUMN firewall; DROP TABLE snapshot;
                     DROP TABLE repository; DROP TABLE revision;
                     ALTER TABLE instance DROP COLUMN restore;
                     ALTER TABLE host DROP COLUMN offsite;
                     ALTER TABLE host DROP COLUMN offsite_sealed;
                     DROP TABLE migration; DROP TABLE departed;",
                )
                .unwrap();
            database.pragma_update(None, "user_version", 1).unwrap();
        })
        .await;
    let mut operator = fleet.operator().await;
    let after = operator.host("a").await.unwrap();
    assert_eq!((&after.firewall, &after.etag), (&None, &before.etag));
    assert_eq!(after.status.unwrap().desired, before.status.unwrap().desired, "nobody restarts");
    operator.hosts.update_host(update(Some(policy("192.0.2.0/24")))).await.unwrap();
    assert!(operator.host("a").await.unwrap().firewall.is_some());
    let kept = operator.revisions("demo").await;
    assert_eq!(kept.len(), 1, "the present spec can be gone back to");
}
