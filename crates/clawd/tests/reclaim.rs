//! Data of paused instances leaves a disk that is short of room, and comes back, on a machine in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::time::Duration;

use claw_core::backup::{SnapshotCause, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::event::EventKind;
use claw_core::name::{ImageRef, SnapshotName, StatePath};
use claw_core::report::Phase;
use claw_core::spec::{InstanceSpec, RestoreOrder, RestoreSource, RunState};
use clawd::fakes::Mishap;
use clawd::ports::Snapshots as _;
use clawd::reconcile::{BackupRequest, BackupWork, Request};
use support::{OTHER_IMAGE, Running, World, name, run, spec, state};
use tokio::sync::oneshot;

const GIB: u64 = 1 << 30;
/// Longer than anything that is waited for before data goes.
const A_WHILE: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn paused() -> InstanceSpec {
    InstanceSpec { run: RunState::Paused, ..spec() }
}

fn generation(number: u32) -> DataGeneration {
    DataGeneration::new(number).unwrap()
}

fn diary() -> StatePath {
    StatePath::parse("diary.txt").unwrap()
}

/// What the customer wrote, in the directory of this number.
fn written(world: &World, instance: &str, data: u32) -> Option<String> {
    let content = world.machine.files.data(&name(instance), generation(data));
    content.and_then(|content| content.get(&diary()).cloned())
}

fn short_of_room(world: &World) {
    world.machine.volumes.set_room(3 * GIB, 100 * GIB);
}

fn room_again(world: &World) {
    world.machine.volumes.set_room(50 * GIB, 100 * GIB);
}

/// Instances `a` and `b`, paused in this order, each with something that its customer wrote.
async fn paused_world() -> (World, Running) {
    let world = World::new();
    let agent = world.start();
    agent.persist(1, &state(&[("a", spec()), ("b", spec())])).await;
    for instance in ["a", "b"] {
        agent.until_phase(instance, Phase::Running).await;
        let text = format!("dear diary of {instance}");
        world.machine.files.write(&name(instance), DataGeneration::FIRST, &diary(), &text);
    }
    agent.persist(2, &state(&[("a", paused()), ("b", spec())])).await;
    agent.until_phase("a", Phase::Paused).await;
    agent.persist(3, &state(&[("a", paused()), ("b", paused())])).await;
    agent.until_phase("b", Phase::Paused).await;
    (world, agent)
}

/// As [`paused_world`], with the data of `a` gone and room again.
async fn reclaimed_world() -> (World, Running) {
    let (world, agent) = paused_world().await;
    short_of_room(&world);
    let gone = || agent.count(EventKind::DataReclaimed) == 1 && written(&world, "a", 1).is_none();
    agent.until("the data of a is gone", gone).await;
    room_again(&world);
    (world, agent)
}

async fn pause_snapshot(world: &World, instance: &str) -> SnapshotName {
    let list = world.machine.snapshots.list(&name(instance)).await.unwrap().snapshots;
    let of_pause = |snapshot: &&SnapshotInfo| snapshot.cause == SnapshotCause::Pause;
    list.iter().rfind(of_pause).map(|snapshot| snapshot.name.clone()).unwrap()
}

async fn ask_to_forget(agent: &Running, snapshot: SnapshotName) -> Result<(), String> {
    let (reply, answer) = oneshot::channel();
    let work = BackupWork::Forget(snapshot);
    let request = BackupRequest { instance: name("a"), work, reply };
    agent.inbox.request(Request::Backup(request)).unwrap();
    agent.settle().await;
    answer.await.unwrap()
}

fn message(agent: &Running) -> String {
    agent.report(&name("a")).map(|report| report.message).unwrap_or_default()
}

fn effects(world: &World, wanted: &str) -> usize {
    world.mishaps().effects().iter().filter(|effect| *effect == wanted).count()
}

#[test]
fn nothing_goes_while_there_is_room() {
    run(async {
        let (world, agent) = paused_world().await;
        agent.pass(A_WHILE).await;
        assert!(written(&world, "a", 1).is_some() && written(&world, "b", 1).is_some());
        assert_eq!(agent.count(EventKind::DataReclaimed), 0);
    });
}

#[test]
fn who_was_paused_first_goes_first_and_comes_back_as_it_was() {
    run(async {
        let (world, agent) = reclaimed_world().await;
        agent.pass(A_WHILE).await;
        assert!(written(&world, "b", 1).is_some(), "there was room again");
        let report = agent.report(&name("a")).unwrap();
        assert_eq!(report.phase, Phase::Paused);
        assert!(report.message.contains("is in snapshot pause-"), "{}", report.message);
        agent.persist(4, &state(&[("a", spec()), ("b", paused())])).await;
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(written(&world, "a", 2).as_deref(), Some("dear diary of a"));
        assert_eq!(agent.count(EventKind::DataRecovered), 1);
        let (plan, _) = world.machine.runtime.plan(&name("a")).unwrap();
        assert_eq!(plan.data, generation(2));
        agent.persist(5, &state(&[("a", paused()), ("b", paused())])).await;
        agent.until_phase("a", Phase::Paused).await;
        short_of_room(&world);
        agent.until("both are gone", || agent.count(EventKind::DataReclaimed) == 3).await;
        let gone = || written(&world, "a", 2).is_none() && written(&world, "b", 1).is_none();
        agent.until("both are gone from the disk", gone).await;
    });
}

#[test]
fn the_only_copy_stays_however_long_the_pause() {
    run(async {
        let (world, agent) = reclaimed_world().await;
        let only = pause_snapshot(&world, "a").await;
        let refused = ask_to_forget(&agent, only.clone()).await.unwrap_err();
        assert!(refused.contains("only copy"), "{refused}");
        agent.kill().await;
        world.machine.clock.advance(DAY * 60);
        short_of_room(&world);
        let agent = world.start();
        agent.until_phase("a", Phase::Paused).await;
        agent.pass(A_WHILE).await;
        assert_eq!(pause_snapshot(&world, "a").await, only);
        room_again(&world);
        agent.persist(4, &state(&[("a", spec()), ("b", paused())])).await;
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(written(&world, "a", 2).as_deref(), Some("dear diary of a"));
    });
}

#[test]
fn an_agent_killed_anywhere_loses_nothing() {
    for mishap in Mishap::ALL {
        for nth in 0..8 {
            run(async move {
                let (world, agent) = paused_world().await;
                // The removal is the first effect from here on, the way back the next ones.
                world.mishaps().nth_effect(nth, mishap);
                short_of_room(&world);
                let begun =
                    || world.mishaps().reached() || agent.count(EventKind::DataReclaimed) == 1;
                agent.until("begun", begun).await;
                agent.kill().await;
                let agent = world.start();
                let gone = || written(&world, "a", 1).is_none();
                agent.until("the data of a is gone", gone).await;
                room_again(&world);
                agent.persist(4, &state(&[("a", spec()), ("b", paused())])).await;
                let over =
                    || world.mishaps().reached() || world.machine.runtime.is_running(&name("a"));
                agent.until("the way back is under way", over).await;
                agent.kill().await;
                let agent = world.start();
                agent.until_phase("a", Phase::Running).await;
                let (plan, _) = world.machine.runtime.plan(&name("a")).unwrap();
                let kept = written(&world, "a", plan.data.number());
                assert_eq!(kept.as_deref(), Some("dear diary of a"), "{mishap:?} {nth}");
                let left = || {
                    let own = (1..9)
                        .filter(|n| world.machine.files.data(&name("a"), generation(*n)).is_some());
                    own.count() == 1
                };
                agent.until("nothing is left over", left).await;
            });
        }
    }
}

#[test]
fn an_update_of_what_is_resumed_finds_its_data() {
    run(async {
        let (world, agent) = reclaimed_world().await;
        let image = ImageRef::parse(OTHER_IMAGE).unwrap();
        let newer = InstanceSpec { image: image.clone(), ..spec() };
        agent.persist(4, &state(&[("a", newer), ("b", paused())])).await;
        agent.until("updated", || agent.count(EventKind::CutoverConfirmed) == 1).await;
        agent.until_phase("a", Phase::Running).await;
        let (plan, _) = world.machine.runtime.plan(&name("a")).unwrap();
        assert_eq!((&plan.image, plan.data), (&image, generation(3)));
        assert_eq!(written(&world, "a", 3).as_deref(), Some("dear diary of a"));
    });
}

#[test]
fn what_cannot_be_read_back_stays_on_the_disk() {
    run(async {
        let (world, agent) = paused_world().await;
        for instance in ["a", "b"] {
            let only = pause_snapshot(&world, instance).await;
            world.machine.snapshots.damage(&name(instance), &only);
        }
        short_of_room(&world);
        agent.pass(A_WHILE).await;
        assert!(written(&world, "a", 1).is_some() && written(&world, "b", 1).is_some());
        let told = |event: &claw_core::event::Event| event.message.contains("stays although");
        assert_eq!(agent.events().iter().filter(|event| told(event)).count(), 2);
    });
}

#[test]
fn without_its_data_it_is_not_started_and_another_snapshot_helps() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        world.machine.files.write(&name("a"), DataGeneration::FIRST, &diary(), "early");
        let good = SnapshotName::parse("good").unwrap();
        let (reply, answer) = oneshot::channel();
        let request =
            BackupRequest { instance: name("a"), work: BackupWork::Take(good.clone()), reply };
        agent.inbox.request(Request::Backup(request)).unwrap();
        agent.settle().await;
        assert_eq!(answer.await.unwrap(), Ok(()));
        agent.until("taken", || agent.count(EventKind::SnapshotTaken) == 1).await;
        world.machine.files.write(&name("a"), DataGeneration::FIRST, &diary(), "late");
        agent.persist(2, &state(&[("a", paused())])).await;
        agent.until_phase("a", Phase::Paused).await;
        short_of_room(&world);
        agent.until("gone", || written(&world, "a", 1).is_none()).await;
        room_again(&world);
        let starts = effects(&world, "start");
        world.machine.snapshots.damage(&name("a"), &pause_snapshot(&world, "a").await);
        agent.persist(3, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Failed).await;
        assert!(message(&agent).contains("cannot be brought back"), "{}", message(&agent));
        agent.pass(A_WHILE).await;
        assert_eq!(effects(&world, "start"), starts, "nothing is started in its place");
        let restore = Some(RestoreOrder { number: 1, snapshot: good, from: RestoreSource::Host });
        agent.persist(4, &state(&[("a", InstanceSpec { restore, ..spec() })])).await;
        agent.until("restored", || agent.count(EventKind::CutoverConfirmed) == 1).await;
        agent.until_phase("a", Phase::Running).await;
        let (plan, _) = world.machine.runtime.plan(&name("a")).unwrap();
        assert_eq!(written(&world, "a", plan.data.number()).as_deref(), Some("early"));
    });
}

#[test]
fn without_room_it_waits_and_says_so() {
    run(async {
        let (world, agent) = reclaimed_world().await;
        world.machine.volumes.set_room(100 << 20, 100 * GIB);
        agent.persist(4, &state(&[("a", spec()), ("b", paused())])).await;
        agent.until_phase("a", Phase::Failed).await;
        assert!(message(&agent).contains("MiB are free"), "{}", message(&agent));
        room_again(&world);
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(written(&world, "a", 2).as_deref(), Some("dear diary of a"));
    });
}

#[test]
fn one_that_is_deleted_leaves_its_last_snapshot() {
    run(async {
        let (world, agent) = reclaimed_world().await;
        let taken = effects(&world, "take-snapshot");
        let mut gone = state(&[("b", paused())]);
        gone.confirm_removal.insert(name("a"));
        agent.persist(4, &gone).await;
        agent.until_phase("a", Phase::Removed).await;
        assert_eq!(effects(&world, "take-snapshot"), taken, "there is nothing to be taken");
        assert_eq!(effects(&world, "set-aside"), 1, "with the repository");
        assert_eq!(pause_snapshot(&world, "b").await.as_str().split('-').next(), Some("pause"));
    });
}
