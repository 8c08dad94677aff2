//! Snapshots together with the loops of the host and of its instances, on a machine in memory.

mod support;

use std::time::Duration;

use claw_core::backup::{BackupPolicy, SnapshotCause, SnapshotInfo};
use claw_core::event::{EventKind, Severity};
use claw_core::host::HostState;
use claw_core::name::SnapshotName;
use claw_core::offsite::{BucketAddressing, OffsiteStorage};
use claw_core::report::Phase;
use claw_core::spec::{InstanceSpec, RestoreOrder, RestoreSource, RunState, Secret};
use clawd::fakes::{Mishap, Reach};
use clawd::ports::{Pipe, Snapshots as _};
use clawd::reconcile::{BackupRequest, BackupWork, Errand, Passage, Request};
use support::{Running, World, host, name, run, spec, state};
use tokio::sync::oneshot;

/// A snapshot each quarter of an hour.
fn often() -> InstanceSpec {
    let every = Some(BackupPolicy::LEAST_EVERY);
    InstanceSpec {
        backup: BackupPolicy { every, drill_every: None, ..BackupPolicy::default() },
        ..spec()
    }
}

async fn held(world: &World) -> Vec<SnapshotInfo> {
    let list = world.machine.snapshots.list(&name("a")).await;
    list.map(|list| list.snapshots).unwrap_or_default()
}

fn count(agent: &Running) -> u32 {
    agent.report(&name("a")).map_or(0, |report| report.backup.count)
}

#[test]
fn a_running_instance_is_held_still_and_nobody_thaws_it_meanwhile() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", often())])).await;
        agent.until_phase("a", Phase::Running).await;
        agent.until("three", || count(&agent) == 3).await;
        let effects = world.mishaps().effects();
        let times = |wanted: &str| effects.iter().filter(|effect| *effect == wanted).count();
        assert_eq!((times("take-snapshot"), times("pause"), times("unpause")), (3, 3, 3));
        assert_eq!((times("start"), agent.count(EventKind::Unhealthy)), (1, 0));
        let report = agent.report(&name("a")).unwrap();
        assert_eq!((report.phase, report.restart_count), (Phase::Running, 0));
        assert_eq!(report.backup.last_at, held(&world).await.last().map(|last| last.taken_at));
    });
}

#[test]
fn an_agent_killed_while_the_container_is_frozen_leaves_it_to_the_next_one() {
    for call in ["pause", "unpause"] {
        run(async move {
            let world = World::new();
            let agent = world.start();
            agent.persist(1, &state(&[("a", often())])).await;
            agent.until_phase("a", Phase::Running).await;
            let mishap = if call == "pause" { Mishap::HangsAfter } else { Mishap::HangsBefore };
            world.mishaps().named(call, 1, mishap);
            let before = world.mishaps().effects().iter().filter(|e| *e == call).count();
            let stuck = || world.mishaps().effects().iter().filter(|e| *e == call).count() > before;
            agent.until("stuck", stuck).await;
            agent.kill().await;
            world.mishaps().clear();
            let agent = world.start();
            agent.until_phase("a", Phase::Running).await;
            assert!(world.machine.runtime.is_running(&name("a")), "{call}");
            let had = count(&agent);
            agent.until("another", || count(&agent) > had).await;
        });
    }
}

#[test]
fn a_pause_ends_with_a_snapshot_and_a_resume_needs_none() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        let paused = InstanceSpec { run: RunState::Paused, ..spec() };
        agent.persist(2, &state(&[("a", paused)])).await;
        agent.until_phase("a", Phase::Paused).await;
        let held = held(&world).await;
        assert_eq!(held.iter().map(|s| s.cause).collect::<Vec<_>>(), [SnapshotCause::Pause]);
        assert!(!world.mishaps().effects().contains(&"pause".to_owned()), "it is down");
        agent.persist(3, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(count(&agent), 1);
    });
}

#[test]
fn a_pause_goes_on_when_no_snapshot_can_be_taken() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        world.mishaps().named("take-snapshot", 100, Mishap::FailsBefore);
        let paused = InstanceSpec { run: RunState::Paused, ..spec() };
        agent.persist(2, &state(&[("a", paused)])).await;
        let given_up = || {
            agent.report(&name("a")).is_some_and(|report| {
                report.phase == Phase::Stopped && report.backup.problem.contains("told to fail")
            })
        };
        agent.until("down without one", given_up).await;
        assert_eq!(agent.count(EventKind::SnapshotFailed), 2, "the first failure and the last");
        world.mishaps().clear();
        agent.until_phase("a", Phase::Paused).await;
        assert_eq!(count(&agent), 1);
    });
}

#[test]
fn a_removal_takes_the_last_snapshot_first() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        let mut gone = state(&[]);
        gone.confirm_removal.insert(name("a"));
        agent.persist(2, &gone).await;
        agent.until_phase("a", Phase::Removed).await;
        let effects = world.mishaps().effects();
        let place = |wanted: &str| effects.iter().position(|effect| effect == wanted).unwrap();
        assert!(place("take-snapshot") < place("set-aside"), "{effects:?}");
        assert_eq!(world.machine.files.set_aside_so_far(), [name("a")]);
    });
}

#[test]
fn a_last_snapshot_by_another_agent_still_has_the_spec() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        world.mishaps().named("take-snapshot", 1, Mishap::HangsBefore);
        let mut gone = state(&[]);
        gone.confirm_removal.insert(name("a"));
        agent.persist(2, &gone).await;
        let taking = || world.mishaps().effects().iter().any(|effect| effect == "take-snapshot");
        agent.until("a snapshot is under way", taking).await;
        agent.kill().await;
        world.mishaps().clear();
        let agent = world.start();
        agent.until_phase("a", Phase::Removed).await;
        let held = held(&world).await;
        let [last] = &held[..] else { panic!("{held:#?}") };
        assert_eq!((last.cause, &last.image), (SnapshotCause::Final, &spec().image));
        let bytes = world.machine.snapshots.assignment(&name("a"), &last.name).unwrap();
        let (of, kept) = claw_proto::convert::spec::decode_assignment(&bytes).unwrap();
        assert_eq!((of, kept.image), (name("a"), spec().image));
    });
}

#[test]
fn a_person_takes_a_snapshot_through_the_hosts_loop() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        agent.pass(Duration::from_secs(60)).await;
        let (reply, answer) = oneshot::channel();
        let work = BackupWork::Take(SnapshotName::parse("before-lunch").unwrap());
        let request = BackupRequest { instance: name("a"), work, reply };
        agent.inbox.request(Request::Backup(request)).unwrap();
        assert_eq!(answer.await.unwrap(), Ok(()));
        agent.until("taken", || count(&agent) == 1).await;
        let held = held(&world).await;
        assert_eq!(held.first().map(|s| s.name.as_str()), Some("before-lunch"));
    });
}

fn storage() -> OffsiteStorage {
    OffsiteStorage {
        endpoint: "https://s3.example".to_owned(),
        region: "eu".to_owned(),
        bucket: "claws".to_owned(),
        prefix: "fleet".to_owned(),
        addressing: BucketAddressing::Path,
        access_key: Secret::new("AKID".to_owned()),
        secret_key: Secret::new("hush".to_owned()),
        bandwidth: None,
    }
}

/// The state of a host with a storage.
fn with_storage(spec: InstanceSpec) -> HostState {
    HostState { offsite: Some(storage()), ..state(&[("a", spec)]) }
}

fn restored(number: u64, snapshot: &SnapshotName, from: RestoreSource) -> InstanceSpec {
    let restore = RestoreOrder { number, snapshot: snapshot.clone(), from };
    InstanceSpec { restore: Some(restore), ..often() }
}

/// Whether every snapshot is said to be in the storage.
fn is_offsite(agent: &Running) -> bool {
    let reports = agent.agent.board.backups_since(0);
    let report = reports.iter().find(|(_, of, _)| *of == name("a")).map(|(_, _, report)| report);
    report.is_some_and(|report| {
        !report.snapshots.is_empty() && report.snapshots.iter().all(|snapshot| snapshot.offsite)
    })
}

fn start(world: &World) -> Running {
    let agent = world.start();
    agent.agent.roster.called(host());
    agent
}

fn refusal(agent: &Running) -> Option<String> {
    let events = agent.events();
    let refused = events.iter().rev().find(|event| event.kind == EventKind::CutoverRefused);
    refused.filter(|event| event.severity == Severity::Error).map(|event| event.message.clone())
}

#[test]
fn data_comes_back_straight_from_off_site_when_the_host_has_lost_it() {
    run(async {
        let world = World::new();
        world.machine.snapshots.storage().offer(&storage());
        let agent = start(&world);
        agent.persist(1, &with_storage(often())).await;
        agent.until_phase("a", Phase::Running).await;
        agent.until("copied", || is_offsite(&agent)).await;
        let first = held(&world).await.remove(0).name;
        world.machine.snapshots.damage(&name("a"), &first);
        agent.persist(2, &with_storage(restored(1, &first, RestoreSource::Host))).await;
        agent.until("refused", || agent.count(EventKind::CutoverRefused) == 1).await;
        // The storage cannot be reached for a while.
        world.machine.snapshots.storage().set_reach(Reach::None);
        agent.persist(3, &with_storage(restored(2, &first, RestoreSource::Offsite))).await;
        agent
            .until("tried", || world.mishaps().effects().iter().any(|e| e == "restore-from"))
            .await;
        world.machine.snapshots.storage().set_reach(Reach::All);
        agent.until("confirmed", || agent.count(EventKind::CutoverConfirmed) == 1).await;
        assert_eq!(agent.count(EventKind::CutoverRefused), 1);
        agent.until_phase("a", Phase::Running).await;
        let active = agent.report(&name("a")).unwrap().active.unwrap();
        assert_eq!(active.data.number(), 2);
    });
}

#[test]
fn a_restore_from_off_site_says_what_is_missing() {
    run(async {
        let world = World::new();
        let agent = start(&world);
        agent.persist(1, &state(&[("a", often())])).await;
        agent.until_phase("a", Phase::Running).await;
        agent.until("one", || count(&agent) == 1).await;
        let first = held(&world).await.remove(0).name;
        let restore = restored(1, &first, RestoreSource::Offsite);
        agent.persist(2, &state(&[("a", restore)])).await;
        agent.until("refused", || refusal(&agent).is_some()).await;
        let why = refusal(&agent).unwrap();
        assert!(why.contains("this host has no off-site storage"), "{why}");
        // A storage in which there is nothing of that name.
        world.machine.snapshots.storage().offer(&storage());
        let absent = SnapshotName::parse("absent").unwrap();
        let restore = restored(2, &absent, RestoreSource::Offsite);
        agent.persist(3, &with_storage(often())).await;
        agent.until("copied", || is_offsite(&agent)).await;
        agent.persist(4, &with_storage(restore)).await;
        agent.until("refused", || agent.count(EventKind::CutoverRefused) == 2).await;
        let why = refusal(&agent).unwrap();
        assert!(why.contains("there is no snapshot absent"), "{why}");
        assert_eq!(agent.report(&name("a")).map(|report| report.phase), Some(Phase::Running));
    });
}

#[test]
fn a_restore_from_a_copy_of_an_earlier_repository_finds_it() {
    run(async {
        let world = World::new();
        world.machine.snapshots.storage().offer(&storage());
        let agent = start(&world);
        agent.persist(1, &with_storage(often())).await;
        agent.until_phase("a", Phase::Running).await;
        agent.until("copied", || is_offsite(&agent)).await;
        let first = held(&world).await.remove(0).name;
        agent.kill().await;
        world.machine.snapshots.set_aside(&name("a"));
        let agent = start(&world);
        agent.until_phase("a", Phase::Running).await;
        let anew = || world.machine.snapshots.storage().paths(&storage()).len() == 2;
        agent.until("another repository is copied", anew).await;
        agent.until("copied", || is_offsite(&agent)).await;
        assert!(held(&world).await.iter().all(|snapshot| snapshot.name != first));
        let restore = restored(1, &first, RestoreSource::Offsite);
        agent.persist(2, &with_storage(restore)).await;
        agent.until("confirmed", || agent.count(EventKind::CutoverConfirmed) == 1).await;
    });
}

#[test]
fn what_leaves_the_host_is_shown_while_it_does() {
    run(async {
        let world = World::new();
        world.machine.snapshots.storage().offer(&storage());
        let agent = start(&world);
        agent.persist(1, &with_storage(often())).await;
        agent.until_phase("a", Phase::Running).await;
        let operation = || {
            let operation = agent.report(&name("a")).and_then(|report| report.operation);
            operation.map(|operation| (operation.kind, operation.stage))
        };
        world.mishaps().named("copy-out", 1, Mishap::HangsBefore);
        let shown = Some(("offsite", "copying off-site".to_owned()));
        agent.until("copying", || operation() == shown).await;
        world.mishaps().named("export-snapshot", 1, Mishap::HangsBefore);
        let (here, there) = Pipe::pair();
        let snapshot = held(&world).await.remove(0).name;
        let errand = Errand::Export(snapshot, Passage::new(async { Ok(here) }));
        let (reply, answer) = oneshot::channel();
        let work = BackupWork::Errand(errand);
        let request = BackupRequest { instance: name("a"), work, reply };
        agent.inbox.request(Request::Backup(request)).unwrap();
        assert_eq!(answer.await.unwrap(), Ok(()));
        let shown = Some(("export", "sending the snapshot".to_owned()));
        agent.until("exporting", || operation() == shown).await;
        drop(there);
    });
}
