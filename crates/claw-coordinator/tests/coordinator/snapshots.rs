//! Snapshots: what hosts say is kept and shown, what people want is asked of hosts, and the passwords of
//! repositories outlive their hosts.

use std::time::Duration;

use claw_coordinator::store::snapshots;
use claw_identity::Role;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use tonic::Code;

use crate::fixture::{Agent, Clients, Fleet, IMAGE, fields, hello, reason, report, until};

const REQUEST_ID: &str = "7f1c9a52-30f4-4b9e-8d47-5d3a9a0e6b11";
const RECOVERY: &str = "orbit-velvet-cactus-maple";
const SECRET: &str = "00112233445566778899aabbccddeeff";
const TAKEN: i64 = 1_795_237_200;

/// A snapshot as a host lists it; `nth` orders them.
pub(crate) fn listed(name: &str, nth: i64, generation: u64, image: &str) -> node::SnapshotInfo {
    node::SnapshotInfo {
        name: name.to_owned(),
        id: vec![7; 32],
        taken_at: Some(prost_types::Timestamp { seconds: TAKEN + nth, nanos: 0 }),
        cause: node::SnapshotCause::Scheduled.into(),
        image: image.to_owned(),
        generation,
        files: 10,
        bytes: 4096,
        added_bytes: 512,
        health: node::SnapshotHealth::Sound.into(),
        offsite: false,
    }
}

pub(crate) fn status(instance: &str, snapshots: Vec<node::SnapshotInfo>) -> Up {
    let report = node::BackupReport { snapshots, stored_bytes: 99, ..Default::default() };
    Up::BackupStatus(node::BackupStatus { instance: instance.to_owned(), report: Some(report) })
}

fn escrow(instance: &str) -> Up {
    Up::RepositoryEscrow(node::RepositoryEscrow {
        instance: instance.to_owned(),
        secret: SECRET.to_owned(),
        recovery: RECOVERY.to_owned(),
    })
}

fn create(id: &str) -> fleet::CreateSnapshotRequest {
    fleet::CreateSnapshotRequest {
        parent: "instances/demo".to_owned(),
        snapshot_id: id.to_owned(),
        ..Default::default()
    }
}

async fn get(clients: &Clients, id: &str) -> Option<fleet::Snapshot> {
    let name = format!("instances/demo/snapshots/{id}");
    let request = fleet::GetSnapshotRequest { name, ..Default::default() };
    clients.clone().snapshots.get_snapshot(request).await.ok()?.into_inner().snapshot
}

/// Waits until a snapshot is in a state.
pub(crate) async fn in_state(
    clients: &Clients,
    id: &str,
    state: fleet::SnapshotState,
) -> fleet::Snapshot {
    until(|| async { get(clients, id).await.filter(|snapshot| snapshot.state() == state) }).await
}

/// Answers the next command with `error`, and returns it.
pub(crate) async fn answer(agent: &mut Agent, error: &str) -> Command {
    loop {
        match agent.next().await.unwrap() {
            Down::Command(command) => {
                let result =
                    node::CommandResult { id: command.id, error: error.to_owned(), payload: None };
                agent.send(Up::CommandResult(result)).await;
                return command.command.unwrap();
            }
            Down::DesiredState(_) => {}
            other => panic!("instead of a command: {other:?}"),
        }
    }
}

/// A fleet with host `a`, its agent, and instance `demo` on it.
async fn demo() -> (Fleet, Agent, Clients, fleet::Instance) {
    let fleet = Fleet::start().await;
    let agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    let instance = operator.create_instance("demo", "a").await.unwrap();
    (fleet, agent, operator, instance)
}

#[tokio::test]
async fn what_a_host_lists_is_shown_and_kept() {
    let (fleet, agent, mut operator, instance) = demo().await;
    let empty = operator.list_snapshots("demo").await.unwrap();
    assert!(empty.snapshots.is_empty());
    assert_eq!(empty.repository.unwrap().report_time, None, "the host has not said anything yet");

    let damaged = node::SnapshotInfo {
        health: node::SnapshotHealth::Damaged.into(),
        ..listed("nightly-2", 2, 2, IMAGE)
    };
    agent.send(status("demo", vec![listed("nightly-1", 1, 2, IMAGE), damaged])).await;
    let first = in_state(&operator, "nightly-1", fleet::SnapshotState::Ready).await;
    assert_eq!(first.instance_uid, instance.uid);
    assert_eq!((first.bytes, first.generation, first.revision), (4096, 2, 1));
    assert_eq!(first.cause(), node::SnapshotCause::Scheduled);
    assert_eq!(first.restic_id, "07".repeat(32));
    let second = get(&operator, "nightly-2").await.unwrap();
    assert_eq!(second.state(), fleet::SnapshotState::Damaged);

    // A restart keeps them, and pages are in order.
    drop(agent);
    let fleet = fleet.restart(|_data| {}).await;
    let mut operator = fleet.operator().await;
    let all = operator.list_snapshots("demo").await.unwrap();
    let names: Vec<&str> = all.snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
    let [new, old] = ["instances/demo/snapshots/nightly-2", "instances/demo/snapshots/nightly-1"];
    assert_eq!(names, [new, old]);
    assert_eq!(all.repository.unwrap().stored_bytes, 99);
    let page = |page_token: String| fleet::ListSnapshotsRequest {
        parent: "instances/demo".to_owned(),
        page_size: 1,
        page_token,
        ..Default::default()
    };
    let one = operator.snapshots.list_snapshots(page(String::new())).await.unwrap().into_inner();
    assert_eq!(one.snapshots[0].name, new);
    let two = operator.snapshots.list_snapshots(page(one.next_page_token)).await.unwrap();
    let two = two.into_inner();
    assert_eq!((two.snapshots[0].name.as_str(), two.next_page_token.as_str()), (old, ""));
}

#[tokio::test]
async fn the_last_report_says_everything_and_a_repeated_one_is_not_written() {
    let (fleet, agent, operator, _instance) = demo().await;
    let both = vec![listed("s-1", 1, 2, IMAGE), listed("s-2", 2, 2, IMAGE)];
    agent.send(status("demo", both.clone())).await;
    in_state(&operator, "s-2", fleet::SnapshotState::Ready).await;
    let repository =
        || async { operator.clone().list_snapshots("demo").await.unwrap().repository.unwrap() };
    let before = repository().await.report_time;
    fleet.clock.advance(Duration::from_secs(60));
    agent.send(status("demo", both)).await;
    // One after the other: what comes after it has been handled says that it was.
    agent.send(status("other", Vec::new())).await;
    agent.send(Up::Heartbeat(node::Heartbeat::default())).await;
    until(|| async {
        let host = operator.clone().host("a").await.unwrap().status.unwrap();
        (host.last_seen_time.unwrap().seconds > before.unwrap().seconds).then_some(())
    })
    .await;
    assert_eq!(repository().await.report_time, before, "nothing new was written");
    agent.send(status("demo", vec![listed("s-2", 2, 2, IMAGE)])).await;
    until(|| async { get(&operator, "s-1").await.is_none().then_some(()) }).await;
    assert!(repository().await.report_time.unwrap().seconds > before.unwrap().seconds);
}

#[tokio::test]
async fn a_snapshot_is_asked_for_and_followed() {
    let (fleet, mut agent, mut operator, _instance) = demo().await;
    let mut asking = operator.clone();
    let request = fleet::CreateSnapshotRequest {
        request_id: REQUEST_ID.to_owned(),
        ..create("before-lunch")
    };
    let (made, command) =
        tokio::join!(asking.snapshots.create_snapshot(request.clone()), answer(&mut agent, ""));
    let made = made.unwrap().into_inner();
    let snapshot = made.snapshot.clone().unwrap();
    assert_eq!(snapshot.state(), fleet::SnapshotState::Taking);
    assert_eq!(snapshot.cause(), node::SnapshotCause::Requested);
    let expected = node::TakeSnapshot { instance: "demo".into(), name: "before-lunch".into() };
    assert_eq!(command, Command::TakeSnapshot(expected));
    let audit = operator.audit("instances/demo/snapshots/before-lunch").await;
    assert_eq!(audit.len(), 1);
    assert_eq!(
        (audit[0].principal.as_str(), audit[0].summary.as_str()),
        ("operator/alice", "asked for")
    );

    // The same request again is answered without asking; another one finds it there.
    let again = operator.snapshots.create_snapshot(request).await.unwrap().into_inner();
    assert_eq!(again, made);
    let taken = operator.snapshots.create_snapshot(create("before-lunch")).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);

    agent.send(status("demo", vec![listed("before-lunch", 1, 2, IMAGE)])).await;
    in_state(&operator, "before-lunch", fleet::SnapshotState::Ready).await;

    // A job that fails after it was accepted is told.
    let mut asking = operator.clone();
    let (made, _command) =
        tokio::join!(asking.snapshots.create_snapshot(create("too-big")), answer(&mut agent, ""));
    made.unwrap();
    let report = node::BackupReport {
        snapshots: vec![listed("before-lunch", 1, 2, IMAGE)],
        problem: "no room for archiving".to_owned(),
        ..Default::default()
    };
    let told = node::BackupStatus { instance: "demo".to_owned(), report: Some(report) };
    agent.send(Up::BackupStatus(told)).await;
    let failed = in_state(&operator, "too-big", fleet::SnapshotState::Failed).await;
    assert_eq!(failed.problem, "no room for archiving");

    // One that is never heard of again has failed as well.
    let mut asking = operator.clone();
    let (made, _command) =
        tokio::join!(asking.snapshots.create_snapshot(create("lost")), answer(&mut agent, ""));
    made.unwrap();
    fleet.clock.advance(Duration::from_secs(6 * 3600 + 1));
    in_state(&operator, "lost", fleet::SnapshotState::Failed).await;
}

#[tokio::test]
async fn deleting_and_verifying_are_asked_of_the_host() {
    let (_fleet, mut agent, operator, _instance) = demo().await;
    agent.send(status("demo", vec![listed("s-1", 1, 2, IMAGE)])).await;
    in_state(&operator, "s-1", fleet::SnapshotState::Ready).await;
    let delete = || fleet::DeleteSnapshotRequest {
        name: "instances/demo/snapshots/s-1".to_owned(),
        ..Default::default()
    };
    let mut asking = operator.clone();
    let (refused, _command) =
        tokio::join!(asking.snapshots.delete_snapshot(delete()), answer(&mut agent, "is busy"));
    let refused = refused.unwrap_err();
    assert_eq!(reason(&refused), "COMMAND_FAILED");
    assert!(refused.message().contains("is busy"), "{refused}");
    assert_eq!(get(&operator, "s-1").await.unwrap().state(), fleet::SnapshotState::Ready);

    let (deleted, command) =
        tokio::join!(asking.snapshots.delete_snapshot(delete()), answer(&mut agent, ""));
    let deleted = deleted.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(deleted.state(), fleet::SnapshotState::Deleting);
    let expected = node::ForgetSnapshot { instance: "demo".into(), name: "s-1".into() };
    assert_eq!(command, Command::ForgetSnapshot(expected));
    agent.send(status("demo", Vec::new())).await;
    until(|| async { get(&operator, "s-1").await.is_none().then_some(()) }).await;

    let verify = fleet::VerifySnapshotsRequest {
        parent: "instances/demo".to_owned(),
        depth: fleet::VerifyDepth::Data.into(),
        ..Default::default()
    };
    let (verified, command) =
        tokio::join!(asking.snapshots.verify_snapshots(verify), answer(&mut agent, ""));
    assert_eq!(verified.unwrap().into_inner().repository.unwrap().host, "hosts/a");
    let expected = node::VerifySnapshots { instance: "demo".into(), data: true };
    assert_eq!(command, Command::VerifySnapshots(expected));
    let summaries: Vec<String> =
        asking.audit("instances/demo").await.into_iter().map(|entry| entry.summary).collect();
    assert_eq!(summaries[0], "verification of all snapshots' data asked for");
    let audit = asking.audit("instances/demo/snapshots/s-1").await;
    assert_eq!(audit.len(), 1, "what was refused has changed nothing");
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused() {
    let (fleet, agent, mut operator, _instance) = demo().await;
    let wrong = fleet::CreateSnapshotRequest {
        parent: "instances/Demo".to_owned(),
        ..create("Not-A-Name")
    };
    let status = operator.snapshots.create_snapshot(wrong).await.unwrap_err();
    assert_eq!(fields(&status), ["parent", "snapshot_id"]);
    let absent =
        fleet::CreateSnapshotRequest { parent: "instances/none".to_owned(), ..create("s") };
    let status = operator.snapshots.create_snapshot(absent).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "instances/none does not exist")
    );

    // Checking needs no host.
    drop(agent);
    until(|| async {
        let host = operator.clone().host("a").await.unwrap().status.unwrap();
        (host.state() != fleet::HostState::Online).then_some(())
    })
    .await;
    let check = fleet::CreateSnapshotRequest { validate_only: true, ..create("s") };
    let checked = operator.snapshots.create_snapshot(check).await.unwrap().into_inner();
    assert_eq!(checked.snapshot.unwrap().state(), fleet::SnapshotState::Taking);
    assert!(operator.list_snapshots("demo").await.unwrap().snapshots.is_empty());
    let status = operator.snapshots.create_snapshot(create("s")).await.unwrap_err();
    assert_eq!(reason(&status), "HOST_NOT_CONNECTED");
    let missing = fleet::DeleteSnapshotRequest {
        name: "instances/demo/snapshots/s".to_owned(),
        ..Default::default()
    };
    let status = operator.snapshots.delete_snapshot(missing).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    let mut viewer = Clients::new(fleet.channel(Role::Viewer, "eve").await);
    assert!(viewer.list_snapshots("demo").await.is_ok());
    let status = viewer.snapshots.create_snapshot(create("s")).await.unwrap_err();
    assert_eq!(reason(&status), "ROLE");
    let mut service = Clients::new(fleet.channel(Role::Service, "billing").await);
    let fetch = fleet::FetchRecoveryPasswordRequest {
        name: "instances/demo".to_owned(),
        ..Default::default()
    };
    let status = service.instances.fetch_recovery_password(fetch).await.unwrap_err();
    assert_eq!(reason(&status), "ROLE", "only people get it");
}

#[tokio::test]
async fn lies_about_snapshots_end_the_session() {
    let (_fleet, mut agent, _operator, _instance) = demo().await;
    let lie = node::SnapshotInfo { cause: 99, ..listed("x", 1, 1, IMAGE) };
    agent.send(status("demo", vec![lie])).await;
    let end = agent.end().await;
    assert_eq!(fields(&end), ["backup_status.report.snapshots[0].cause"]);
}

async fn acknowledged(agent: &mut Agent) -> node::EscrowAck {
    loop {
        match agent.next().await.unwrap() {
            Down::EscrowAck(ack) => return ack,
            Down::DesiredState(_) => {}
            other => panic!("instead of an acknowledgement: {other:?}"),
        }
    }
}

async fn recovery_password(clients: &Clients, uid: &str) -> Result<String, tonic::Status> {
    let request = fleet::FetchRecoveryPasswordRequest {
        name: "instances/demo".to_owned(),
        uid: uid.to_owned(),
    };
    let fetched = clients.clone().instances.fetch_recovery_password(request).await?;
    Ok(fetched.into_inner().recovery_password)
}

#[tokio::test]
async fn passwords_are_kept_sealed_and_acknowledged() {
    let (fleet, mut agent, mut operator, _instance) = demo().await;
    let status = recovery_password(&operator, "").await.unwrap_err();
    assert_eq!(reason(&status), "NO_ESCROW");
    // What nobody knows of is not acknowledged: the next acknowledgement is of the next one.
    agent.send(escrow("unknown")).await;
    agent.send(escrow("demo")).await;
    let ack = acknowledged(&mut agent).await;
    let Up::RepositoryEscrow(sent) = escrow("demo") else { panic!() };
    let digest = claw_core::stamp::Digest::of(&claw_proto::encode(&sent));
    assert_eq!(
        (ack.instance.as_str(), ack.digest.as_slice()),
        ("demo", digest.as_bytes().as_slice())
    );
    assert!(operator.list_snapshots("demo").await.unwrap().repository.unwrap().escrowed);
    // Again: acknowledged again, and not written again.
    agent.send(escrow("demo")).await;
    acknowledged(&mut agent).await;
    let stored = |entries: &[fleet::AuditEntry]| {
        entries.iter().filter(|entry| entry.summary.contains("passwords of the repository")).count()
    };
    let audit = operator.audit("instances/demo").await;
    assert_eq!(stored(&audit), 1);

    drop(agent);
    let fleet = fleet.restart(|_data| {}).await;
    let mut operator = fleet.operator().await;
    assert_eq!(recovery_password(&operator, "").await.unwrap(), RECOVERY);
    let audit = operator.audit("instances/demo").await;
    assert!(audit[0].summary.starts_with("recovery password fetched"), "{audit:?}");
    fleet.restart(assert_sealed).await;
}

/// Neither password stands in any file of the coordinator.
fn assert_sealed(data: &std::path::Path) {
    let mut read = 0;
    for entry in std::fs::read_dir(data).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        read += bytes.len();
        for secret in [RECOVERY, SECRET] {
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{} holds a password", path.display());
        }
    }
    assert!(read > 10_000, "there was something to look at");
}

#[tokio::test]
async fn what_was_deleted_can_be_found_for_a_month_and_is_not_its_successors() {
    let (fleet, mut agent, mut operator, first) = demo().await;
    agent.send(escrow("demo")).await;
    acknowledged(&mut agent).await;
    agent.send(status("demo", vec![listed("nightly", 1, 2, IMAGE)])).await;
    in_state(&operator, "nightly", fleet::SnapshotState::Ready).await;
    operator.delete_instance("demo").await.unwrap();
    let stamp = until_removal_is_wanted(&mut agent).await;
    // The last snapshot is reported before the instance is.
    let last = node::SnapshotInfo {
        cause: node::SnapshotCause::Final.into(),
        ..listed("final-1", 2, 2, IMAGE)
    };
    agent.send(status("demo", vec![listed("nightly", 1, 2, IMAGE), last.clone()])).await;
    agent.settle(&stamp, vec![report("demo", stamp.generation, node::Phase::Removed)]).await;
    until(|| async { operator.clone().instance("demo").await.is_err().then_some(()) }).await;

    let kept = operator.list_snapshots("demo").await.unwrap();
    assert_eq!(kept.snapshots.len(), 2);
    let repository = kept.repository.unwrap();
    assert_eq!(repository.instance_uid, first.uid);
    assert!(repository.delete_time.is_some());
    // A host that thins it out later is still believed.
    agent.send(status("demo", vec![last.clone()])).await;
    until(|| async { get(&operator, "nightly").await.is_none().then_some(()) }).await;
    // One that has set the whole repository aside says nothing of what is in it.
    agent.send(status("demo", Vec::new())).await;
    agent.send(escrow("demo")).await;
    acknowledged(&mut agent).await;
    assert!(get(&operator, "final-1").await.is_some());

    let second = operator.create_instance("demo", "a").await.unwrap();
    assert_ne!(second.uid, first.uid);
    let fresh = operator.list_snapshots("demo").await.unwrap();
    assert!(fresh.snapshots.is_empty(), "{fresh:?}");
    // Its host still lists what it holds under that name; only what is the new one's is taken.
    let generation = until_demo_is_wanted(&mut agent).await.generation;
    agent.send(status("demo", vec![last, listed("own", 3, generation, IMAGE)])).await;
    in_state(&operator, "own", fleet::SnapshotState::Ready).await;
    let own = operator.list_snapshots("demo").await.unwrap();
    assert_eq!(own.snapshots.len(), 1);
    assert_eq!(reason(&recovery_password(&operator, "").await.unwrap_err()), "NO_ESCROW");
    let old = || fleet::ListSnapshotsRequest {
        parent: "instances/demo".to_owned(),
        instance_uid: first.uid.clone(),
        ..Default::default()
    };
    let found = operator.snapshots.list_snapshots(old()).await.unwrap().into_inner();
    assert_eq!(found.snapshots[0].name, "instances/demo/snapshots/final-1");
    assert_eq!(recovery_password(&operator, &first.uid).await.unwrap(), RECOVERY);

    fleet.clock.advance(Duration::from_secs(31 * 24 * 3600));
    // The coordinator cleans when it starts, and every hour. Nobody can call it any more: certificates
    // of a month later are not valid yet.
    drop(agent);
    let fleet = fleet.restart(|_data| {}).await;
    let name = claw_core::name::InstanceName::parse("demo").unwrap();
    let known = |uid: &str| {
        let store = &fleet.coordinator.fleet().store;
        store.read(|connection, _keys| {
            let row = snapshots::resolve(connection, &name, uid)?;
            snapshots::count(connection, &row.uid)
        })
    };
    let gone = until(|| async { known(&first.uid).err() }).await;
    assert_eq!(gone.to_string(), "instances/demo does not exist");
    assert_eq!(known("").unwrap(), 1, "the live one's stay");
}

async fn until_removal_is_wanted(agent: &mut Agent) -> node::Stamp {
    loop {
        let (stamp, state) = agent.desired().await;
        if state.confirm_removal == ["demo"] {
            return stamp;
        }
    }
}

async fn until_demo_is_wanted(agent: &mut Agent) -> node::Stamp {
    loop {
        let (stamp, state) = agent.desired().await;
        if state.instances.iter().any(|instance| instance.name == "demo") {
            return stamp;
        }
    }
}

#[tokio::test]
async fn another_hosts_snapshots_are_not_believed() {
    let (fleet, agent, mut operator, _instance) = demo().await;
    let identity = fleet.join("b").await;
    let other = Agent::connect(&fleet, &identity, hello("b", "boot-1")).await;
    other.send(status("demo", vec![listed("forged", 1, 2, IMAGE)])).await;
    other.send(escrow("demo")).await;
    other.settle(&node::Stamp { digest: vec![0; 32], ..Default::default() }, Vec::new()).await;
    until(|| async {
        let host = operator.clone().host("b").await.unwrap().status.unwrap();
        host.persisted
    })
    .await;
    let shown = operator.list_snapshots("demo").await.unwrap();
    assert!(shown.snapshots.is_empty());
    assert!(!shown.repository.unwrap().escrowed);
    drop(agent);
}

#[tokio::test]
async fn a_host_that_is_gone_takes_nothing_with_it() {
    let (_fleet, mut agent, mut operator, instance) = demo().await;
    agent.send(escrow("demo")).await;
    acknowledged(&mut agent).await;
    agent.send(status("demo", vec![listed("nightly", 1, 2, IMAGE)])).await;
    in_state(&operator, "nightly", fleet::SnapshotState::Ready).await;
    operator.delete_instance("demo").await.unwrap();
    let forget = fleet::DeleteHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    operator.hosts.delete_host(forget).await.unwrap();
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);
    let kept = operator.list_snapshots("demo").await.unwrap();
    assert_eq!(kept.snapshots[0].name, "instances/demo/snapshots/nightly");
    let repository = kept.repository.unwrap();
    assert_eq!((repository.host.as_str(), repository.instance_uid), ("hosts/a", instance.uid));
    assert_eq!(recovery_password(&operator, "").await.unwrap(), RECOVERY);
}
