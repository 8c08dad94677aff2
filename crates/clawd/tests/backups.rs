//! Snapshots together with the loops of the host and of its instances, on a machine in memory.

mod support;

use std::time::Duration;

use claw_core::backup::{BackupPolicy, SnapshotCause, SnapshotInfo};
use claw_core::event::EventKind;
use claw_core::name::SnapshotName;
use claw_core::report::Phase;
use claw_core::spec::{InstanceSpec, RunState};
use clawd::fakes::Mishap;
use clawd::ports::Snapshots as _;
use clawd::reconcile::{BackupRequest, BackupWork, Request};
use support::{Running, World, name, run, spec, state};
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
