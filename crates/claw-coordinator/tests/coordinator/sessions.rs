//! The protocol between coordinator and agent, from the agent's side.

use std::time::Duration;

use claw_coordinator::limits::Rate;
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::{self as node};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::fixture::{Agent, Clients, Fleet, create_request, event, hello, reason, report, until};

async fn state_of(operator: &Clients, host: &str) -> fleet::HostState {
    operator.clone().host(host).await.unwrap().status.unwrap().state()
}

#[tokio::test]
async fn the_state_comes_at_once_and_after_every_change_but_not_again() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    assert_eq!(agent.welcome.heartbeat_interval.unwrap().seconds, 10);
    assert_eq!(agent.welcome.resume_event, 1);
    let (first, state) = agent.desired().await;
    assert_eq!((first.epoch, first.generation), (1, 1));
    assert!(state.instances.is_empty());
    assert_eq!(state_of(&operator, "a").await, fleet::HostState::Online);

    operator.create_instance("demo", "a").await.unwrap();
    let (second, state) = agent.desired().await;
    assert_eq!(second.generation, 2);
    let instance = &state.instances[0];
    assert_eq!((instance.name.as_str(), instance.memory_bytes), ("demo", 2 << 30));
    assert_eq!(instance.secrets["OPENCLAW_GATEWAY_TOKEN"].len(), 43);
    drop(agent);

    // An agent that has it is not told again: the next message is about the next change.
    let known = node::Hello { persisted: Some(second.clone()), ..hello("a", "boot-1") };
    let mut agent = Agent::connect(&fleet, &identity, known).await;
    let name = "instances/demo".to_owned();
    let restart = fleet::RestartInstanceRequest { name, ..Default::default() };
    operator.instances.restart_instance(restart).await.unwrap();
    let (third, state) = agent.desired().await;
    assert_eq!((third.generation, state.instances[0].restarts), (3, 1));
}

#[tokio::test]
async fn what_a_host_reports_is_shown() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    agent.desired().await;
    operator.create_instance("demo", "a").await.unwrap();
    let (stamp, _state) = agent.desired().await;
    let resources = node::HostResources { cpu_count: 2, ..Default::default() };
    agent.send(Up::Heartbeat(node::Heartbeat { resources: Some(resources) })).await;
    agent
        .send(Up::Status(node::Status {
            persisted: Some(stamp.clone()),
            applying_generation: stamp.generation,
            refused: Some(node::Refusal {
                stamp: Some(stamp.clone()),
                reason: "no room".to_owned(),
            }),
            instances: vec![
                report("demo", stamp.generation, node::Phase::Running),
                report("stray", 1, node::Phase::Running),
            ],
            runtime_problem: "docker hangs".to_owned(),
            ..Default::default()
        }))
        .await;
    let status = until(|| async {
        let status = operator.clone().host("a").await.unwrap().status.unwrap();
        status.refused.is_some().then_some(status)
    })
    .await;
    assert_eq!(status.strays, ["stray"]);
    assert_eq!(status.refused.unwrap().reason, "no room");
    assert_eq!(status.runtime_problem, "docker hangs");
    assert_eq!(status.applying_generation, stamp.generation);
    assert_eq!(status.persisted, status.desired);
    assert_eq!(status.resources.unwrap().cpu_count, 2);
    assert_eq!(status.boot_id, "boot-1");
    let instance = operator.instance("demo").await.unwrap().status.unwrap();
    assert_eq!(instance.phase(), node::Phase::Running);
    assert!(instance.persisted && instance.current);

    // After the next change the report is an old one.
    let name = "instances/demo".to_owned();
    let restart = fleet::RestartInstanceRequest { name, ..Default::default() };
    operator.instances.restart_instance(restart).await.unwrap();
    let instance = operator.instance("demo").await.unwrap().status.unwrap();
    assert!(!instance.persisted && !instance.current);
    assert_eq!(instance.phase(), node::Phase::Running);
}

#[tokio::test]
async fn a_newer_session_ends_the_older_one_and_not_the_reverse() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let operator = fleet.operator().await;
    let mut old = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let mut new = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    assert_ne!(old.welcome.session, new.welcome.session);
    assert_eq!(old.end().await.code(), Code::Aborted);
    drop(old);
    new.desired().await;
    assert_eq!(state_of(&operator, "a").await, fleet::HostState::Online);
    operator.clone().create_instance("demo", "a").await.unwrap();
    assert_eq!(new.desired().await.1.instances.len(), 1);
    drop(new);
    until(|| async { (state_of(&operator, "a").await == fleet::HostState::Offline).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_stalled_reader_gets_the_newest_state_and_holds_nobody_up() {
    let fleet = Fleet::start().await;
    let mut stalled = fleet.agent("stalled").await;
    let mut other = fleet.agent("other").await;
    let mut operator = fleet.operator().await;
    stalled.desired().await;
    other.desired().await;
    let mut request = create_request("big", "stalled");
    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.files.insert("big".to_owned(), "x".repeat(200 * 1024));
    operator.instances.create_instance(request).await.unwrap();
    let name = "instances/big".to_owned();
    let restart = fleet::RestartInstanceRequest { name, ..Default::default() };
    for _change in 0..60 {
        operator.instances.restart_instance(restart.clone()).await.unwrap();
    }
    operator.create_instance("small", "other").await.unwrap();
    assert_eq!(other.desired().await.1.instances.len(), 1);

    let mut received = 0;
    loop {
        received += 1;
        let (stamp, state) = stalled.desired().await;
        if stamp.generation == 62 {
            assert_eq!(state.instances[0].restarts, 60);
            break;
        }
    }
    assert!(received < 30, "{received} states were queued");
}

#[tokio::test]
async fn events_are_stored_once_acknowledged_and_resumed() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    agent.desired().await;
    let batch = |range: std::ops::RangeInclusive<u64>| {
        let events = range.map(|sequence| event(sequence, "step_done")).collect();
        Up::Events(node::EventBatch { events })
    };
    agent.send(batch(1..=3)).await;
    assert!(matches!(agent.next().await.unwrap(), Down::EventAck(ack) if ack.sequence == 3));
    // A lost acknowledgement: they come again, with more.
    agent.send(batch(2..=5)).await;
    assert!(matches!(agent.next().await.unwrap(), Down::EventAck(ack) if ack.sequence == 5));
    let sequences = |events: Vec<node::Event>| -> Vec<u64> {
        events.into_iter().map(|event| event.sequence).collect()
    };
    assert_eq!(sequences(operator.events("a").await), [1, 2, 3, 4, 5]);
    drop(agent);

    let again = node::Hello { next_event: 8, ..hello("a", "boot-1") };
    let mut agent = Agent::connect(&fleet, &identity, again).await;
    assert_eq!(agent.welcome.resume_event, 6);
    agent.desired().await;
    // A kind that this version does not know is kept all the same.
    agent.send(Up::Events(node::EventBatch { events: vec![event(6, "from_the_future")] })).await;
    assert!(matches!(agent.next().await.unwrap(), Down::EventAck(ack) if ack.sequence == 6));
    // What the host has lost will not come: the gap is noted and passed over.
    agent.send(batch(8..=8)).await;
    assert!(matches!(agent.next().await.unwrap(), Down::EventAck(ack) if ack.sequence == 8));
    let stored = operator.events("a").await;
    let kinds: Vec<&str> = stored.iter().map(|event| event.kind.as_str()).skip(5).collect();
    assert_eq!(kinds, ["from_the_future", "events_lost", "step_done"]);
    assert_eq!(stored[6].message, "events 7 to 7 were lost on the host");
}

#[tokio::test]
async fn a_journal_that_lost_events_or_began_anew_goes_on() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let lost = node::Hello { oldest_event: 5, next_event: 9, ..hello("a", "boot-1") };
    let mut agent = Agent::connect(&fleet, &identity, lost).await;
    assert_eq!(agent.welcome.resume_event, 5);
    agent.desired().await;
    agent.send(Up::Events(node::EventBatch { events: vec![event(5, "exited")] })).await;
    assert!(matches!(agent.next().await.unwrap(), Down::EventAck(ack) if ack.sequence == 5));
    let mut anew = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    assert_eq!(anew.welcome.resume_event, 1);
    anew.desired().await;
    anew.send(Up::Events(node::EventBatch { events: vec![event(1, "agent_started")] })).await;
    assert!(matches!(anew.next().await.unwrap(), Down::EventAck(ack) if ack.sequence == 1));
    let kinds: Vec<String> =
        operator.events("a").await.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["events_lost", "exited", "events_restarted", "agent_started"]);
}

#[tokio::test]
async fn a_greeting_must_be_right() {
    let fleet = Fleet::start_with(|config| {
        config.terms.hello_deadline = Duration::from_millis(200);
    })
    .await;
    let identity = fleet.join("a").await;
    fleet.join("b").await;
    let try_hello = async |hello| Agent::try_connect(&fleet, &identity, hello).await.err().unwrap();
    let status = try_hello(hello("b", "boot-1")).await;
    assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, "HOST_MISMATCH".into()));
    let status = try_hello(node::Hello { protocol_version: 2, ..hello("a", "boot-1") }).await;
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::FailedPrecondition, "PROTOCOL_VERSION".into())
    );
    let status = try_hello(node::Hello { inventory: vec!["A".into()], ..hello("a", "1") }).await;
    assert_eq!(status.code(), Code::InvalidArgument);

    let first = Up::Heartbeat(node::Heartbeat::default());
    let status = Agent::over(fleet.channel_as(&identity).await, first).await.err().unwrap();
    assert_eq!(status.code(), Code::InvalidArgument);

    let mut client =
        node::node_service_client::NodeServiceClient::new(fleet.channel_as(&identity).await);
    let silent = tokio_stream::pending::<node::SessionRequest>();
    let mut down = client.session(silent).await.unwrap().into_inner();
    let status = crate::fixture::soon(down.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(fleet.coordinator.fleet().registry.online(), 0);
}

#[tokio::test]
async fn hostile_messages_end_the_session_and_change_nothing() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let end_of = async |message: Up| -> Status {
        let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
        agent.send(message).await;
        agent.end().await
    };
    let bad = node::Status {
        persisted: Some(node::Stamp { epoch: 1, generation: 1, digest: vec![1] }),
        instances: vec![report("NOT VALID", 1, node::Phase::Running)],
        ..Default::default()
    };
    let status = end_of(Up::Status(bad)).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(crate::fixture::fields(&status).len(), 2, "{status}");

    assert_eq!(end_of(Up::Hello(hello("a", "boot-1"))).await.code(), Code::InvalidArgument);
    let many = (1..=257).map(|sequence| event(sequence, "exited")).collect();
    let status = end_of(Up::Events(node::EventBatch { events: many })).await;
    assert_eq!(crate::fixture::fields(&status), ["events.events"]);
    let named = node::Event { kind: "DROP TABLE".to_owned(), ..event(1, "x") };
    let status = end_of(Up::Events(node::EventBatch { events: vec![named] })).await;
    assert_eq!(crate::fixture::fields(&status), ["events.events[0].kind"]);

    let huge = node::Event { message: "x".repeat(4 * 1024 * 1024), ..event(1, "exited") };
    let status = end_of(Up::Events(node::EventBatch { events: vec![huge] })).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(operator.events("a").await.is_empty());
}

#[tokio::test]
async fn a_flood_of_messages_ends_the_session() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    for _message in 0..5_000 {
        agent.send(Up::Heartbeat(node::Heartbeat::default())).await;
    }
    let status = agent.end().await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_error_details().retry_info().is_some());
}

#[tokio::test]
async fn silence_ends_a_session() {
    let fleet = Fleet::start_with(|config| {
        config.terms.heartbeat_interval = Duration::from_millis(100);
    })
    .await;
    let mut agent = fleet.agent("a").await;
    let operator = fleet.operator().await;
    let status = agent.end().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "three heartbeats were missed");
    until(|| async { (state_of(&operator, "a").await == fleet::HostState::Offline).then_some(()) })
        .await;
}

#[tokio::test]
async fn two_boots_with_one_certificate_are_an_alarm() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let _first = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let mut second = Agent::connect(&fleet, &identity, hello("a", "boot-2")).await;
    for _retry in 0..3 {
        let refused = Agent::try_connect(&fleet, &identity, hello("a", "boot-1")).await;
        let status = refused.err().unwrap();
        assert_eq!(
            (status.code(), reason(&status)),
            (Code::FailedPrecondition, "HOST_CLONED".into())
        );
    }
    second.desired().await;
    let host = operator.host("a").await.unwrap().status.unwrap();
    assert!(host.clone_alarm.contains("boot-1"), "{}", host.clone_alarm);
    let kinds: Vec<String> =
        operator.events("a").await.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["clone_alarm"], "once, however often it tries");
}

#[tokio::test]
async fn a_revoked_host_hears_so_on_its_live_stream() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let mut bystander = fleet.agent("b").await;
    let mut operator = fleet.operator().await;
    let revoke = fleet::RevokeHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    let revoked = operator.hosts.revoke_host(revoke).await.unwrap().into_inner().host.unwrap();
    assert_eq!(revoked.status.unwrap().state(), fleet::HostState::Revoked);
    let status = agent.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::PermissionDenied, "CERTIFICATE_REVOKED".into())
    );
    let refused = Agent::try_connect(&fleet, &identity, hello("a", "boot-1")).await;
    assert_eq!(reason(&refused.err().unwrap()), "CERTIFICATE_REVOKED");
    bystander.desired().await;
    assert_eq!(state_of(&operator, "b").await, fleet::HostState::Online);
}

#[tokio::test]
async fn a_deleted_host_is_sent_away() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let mut operator = fleet.operator().await;
    let delete = fleet::DeleteHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    operator.hosts.delete_host(delete).await.unwrap();
    assert_eq!(agent.end().await.code(), Code::PermissionDenied);
    let refused = Agent::try_connect(&fleet, &identity, hello("a", "boot-1")).await;
    assert_eq!(refused.err().unwrap().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn too_many_at_once_are_told_when_to_come_back() {
    let fleet = Fleet::start_with(|config| {
        config.admission = Rate { per_second: 0.001, burst: 1.0 };
    })
    .await;
    let identity = fleet.join("a").await;
    let _agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let refused = Agent::try_connect(&fleet, &identity, hello("a", "boot-1")).await;
    let status = refused.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    let retry = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!(retry >= Duration::from_secs(1), "{retry:?}");
}

#[tokio::test]
async fn a_shutdown_says_good_bye() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    agent.desired().await;
    let Fleet { coordinator, dir: _dir, .. } = fleet;
    let shutdown = tokio::spawn(coordinator.shutdown());
    let Down::GoAway(go_away) = agent.next().await.unwrap() else { panic!("no GoAway") };
    assert_eq!(go_away.reason, "the coordinator is shutting down");
    let retry = go_away.retry_after.unwrap();
    assert!((1..=2).contains(&retry.seconds), "{retry:?}");
    let status = agent.end().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.get_error_details().retry_info().is_some());
    crate::fixture::soon(shutdown).await.unwrap();
}

#[tokio::test]
async fn a_connection_grows_old() {
    let fleet = Fleet::start_with(|config| {
        config.lifetimes.connection = Duration::from_millis(500);
    })
    .await;
    let mut agent = fleet.agent("a").await;
    agent.desired().await;
    let Down::GoAway(go_away) = agent.next().await.unwrap() else { panic!("no GoAway") };
    assert_eq!(go_away.reason, "the connection is old; connect again");
    assert_eq!(agent.end().await.code(), Code::Unavailable);
}
