//! Images that nobody needs leave the host, and no other ones do, on a machine in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::time::Duration;

use claw_core::event::EventKind;
use claw_core::name::ImageRef;
use claw_core::report::Phase;
use claw_core::spec::{InstanceSpec, RestoreOrder, RestoreSource};
use clawd::fakes::Mishap;
use clawd::ports::{GatewayAnswer, Runtime as _, Snapshots as _};
use clawd::reconcile::{BackupRequest, BackupWork, Request};
use support::{IMAGE, OTHER_IMAGE, Running, World, name, run, spec, state};
use tokio::sync::oneshot;

const HOUR: Duration = Duration::from_secs(3600);
/// Longer than anything that the loop of images waits for by itself.
const A_WHILE: Duration = Duration::from_secs(1200);
/// An image that no spec ever named.
const THEIRS: &str = "somebody.example/database:9";

fn updated() -> InstanceSpec {
    InstanceSpec { image: ImageRef::parse(OTHER_IMAGE).unwrap(), ..spec() }
}

fn is_present(world: &World, image: &str) -> bool {
    world.machine.runtime.present().contains(image)
}

/// An instance that was updated a while ago: no data of the version before is kept any more, but a snapshot.
async fn updated_world() -> (World, Running) {
    let world = World::new();
    world.machine.runtime.load(THEIRS);
    let agent = world.start();
    agent.persist(1, &state(&[("a", spec())])).await;
    agent.until_phase("a", Phase::Running).await;
    agent.persist(2, &state(&[("a", updated())])).await;
    agent.until("updated", || agent.count(EventKind::CutoverConfirmed) == 1).await;
    let dropped = || world.mishaps().effects().iter().any(|effect| effect == "remove-data");
    agent.until("the data before is gone", dropped).await;
    (world, agent)
}

/// The agent is away for so long.
async fn away(world: &World, agent: Running, length: Duration) -> Running {
    agent.kill().await;
    world.machine.clock.advance(length);
    let agent = world.start();
    agent.until_phase("a", Phase::Running).await;
    agent
}

/// Has every snapshot of a version forgotten.
async fn forget(world: &World, agent: &Running, image: &str) {
    let list = world.machine.snapshots.list(&name("a")).await.unwrap().snapshots;
    for snapshot in list.into_iter().filter(|snapshot| snapshot.image.as_str() == image) {
        let (reply, answer) = oneshot::channel();
        let work = BackupWork::Forget(snapshot.name);
        let request = BackupRequest { instance: name("a"), work, reply };
        agent.inbox.request(Request::Backup(request)).unwrap();
        agent.settle().await;
        assert_eq!(answer.await.unwrap(), Ok(()));
    }
    let report = || agent.report(&name("a")).map(|report| report.backup.count);
    agent.until("forgotten", || report() == Some(0)).await;
}

#[test]
fn an_old_version_goes_a_day_after_its_last_snapshot() {
    run(async {
        let (world, agent) = updated_world().await;
        let agent = away(&world, agent, HOUR * 30).await;
        agent.pass(A_WHILE).await;
        assert!(is_present(&world, IMAGE), "a snapshot needs it");
        forget(&world, &agent, IMAGE).await;
        agent.pass(A_WHILE).await;
        assert!(is_present(&world, IMAGE), "it is kept for a day");
        let agent = away(&world, agent, HOUR * 22).await;
        agent.pass(A_WHILE).await;
        assert!(is_present(&world, IMAGE), "an agent that was away does not forget since when");
        let agent = away(&world, agent, HOUR * 2).await;
        agent.until("gone", || !is_present(&world, IMAGE)).await;
        agent.pass(A_WHILE).await;
        let events = agent.events();
        let told: Vec<_> =
            events.iter().filter(|event| event.kind == EventKind::ImageRemoved).collect();
        let [told] = &told[..] else { panic!("{told:#?}") };
        let message = format!(
            "image {IMAGE} was removed, up to 900 MiB are given back: nobody has needed it for 24 h"
        );
        assert_eq!((told.message.as_str(), &told.instance), (message.as_str(), &None));
        assert!(is_present(&world, OTHER_IMAGE) && is_present(&world, THEIRS));
        assert!(world.machine.runtime.is_running(&name("a")));
    });
}

#[test]
fn a_full_disk_does_not_wait_and_takes_nothing_that_is_needed() {
    run(async {
        let (world, agent) = updated_world().await;
        world.machine.runtime.use_elsewhere(THEIRS);
        world.machine.volumes.set_room(3 << 30, 100 << 30);
        agent.pass(A_WHILE).await;
        assert!(is_present(&world, IMAGE), "a snapshot needs it");
        forget(&world, &agent, IMAGE).await;
        agent.until("gone", || !is_present(&world, IMAGE)).await;
        assert!(is_present(&world, OTHER_IMAGE) && is_present(&world, THEIRS));
        let told = |event: &claw_core::event::Event| {
            event.kind == EventKind::ImageRemoved && event.message.contains("short of room")
        };
        assert!(agent.events().iter().any(told));
    });
}

#[test]
fn what_a_change_leads_back_to_stays() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        world.machine.volumes.set_room(3 << 30, 100 << 30);
        let hangs = GatewayAnswer::Failing("it hangs".to_owned());
        world.machine.gateway.answer_image(&updated().image, Some(hangs));
        agent.persist(2, &state(&[("a", updated())])).await;
        let over = || {
            agent.count(EventKind::CutoverReverted) + agent.count(EventKind::CutoverRefused) == 1
        };
        agent.until("given up", over).await;
        agent.pass(A_WHILE).await;
        assert!(is_present(&world, IMAGE) && is_present(&world, OTHER_IMAGE), "it is still wanted");
        assert!(!world.mishaps().effects().iter().any(|effect| effect == "remove-image"));
        assert_eq!(world.machine.runtime.image(&name("a")), Some(spec().image));
    });
}

#[test]
fn nothing_goes_while_a_repository_was_not_looked_at() {
    run(async {
        let (world, agent) = updated_world().await;
        forget(&world, &agent, IMAGE).await;
        agent.kill().await;
        world.machine.clock.advance(HOUR * 48);
        world.machine.volumes.set_room(3 << 30, 100 << 30);
        world.mishaps().named("list-snapshots", 1_000, Mishap::FailsBefore);
        let agent = world.start();
        agent.until_phase("a", Phase::Running).await;
        agent.pass(A_WHILE * 2).await;
        assert!(is_present(&world, IMAGE), "nobody knows whether a snapshot needs it");
        world.mishaps().clear();
        agent.until("gone", || !is_present(&world, IMAGE)).await;
    });
}

#[test]
fn a_removal_that_goes_wrong_is_done_again() {
    for mishap in Mishap::ALL {
        run(async move {
            let (world, agent) = updated_world().await;
            world.mishaps().named("remove-image", 1, mishap);
            world.machine.volumes.set_room(3 << 30, 100 << 30);
            forget(&world, &agent, IMAGE).await;
            let tried = || world.mishaps().effects().iter().any(|effect| effect == "remove-image");
            agent.until("tried", tried).await;
            agent.kill().await;
            let agent = world.start();
            agent.until_phase("a", Phase::Running).await;
            agent.until("gone", || !is_present(&world, IMAGE)).await;
            assert!(is_present(&world, OTHER_IMAGE));
        });
    }
}

#[test]
fn a_rollback_pulls_what_was_removed() {
    run(async {
        let (world, agent) = updated_world().await;
        let list = world.machine.snapshots.list(&name("a")).await.unwrap().snapshots;
        let snapshot = list.first().map(|snapshot| snapshot.name.clone()).unwrap();
        world.machine.runtime.remove_image(&spec().image).await.unwrap();
        assert!(!is_present(&world, IMAGE));
        let restore = Some(RestoreOrder { number: 1, snapshot, from: RestoreSource::Host });
        agent.persist(3, &state(&[("a", InstanceSpec { restore, ..spec() })])).await;
        agent.until("restored", || agent.count(EventKind::CutoverConfirmed) == 2).await;
        assert!(is_present(&world, IMAGE));
    });
}
