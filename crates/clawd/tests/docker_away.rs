//! Docker is restarted in the midst of a change of version: that says nothing about the version.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::time::Duration;

use claw_core::event::EventKind;
use claw_core::name::ImageRef;
use claw_core::report::Phase;
use claw_core::spec::{InstanceSpec, Rehearsal, UpdatePolicy};
use clawd::ports::{GatewayAnswer, Trials as _};
use support::{OTHER_IMAGE, Running, World, name, run, spec, state};

fn updated(rehearsal: Rehearsal) -> InstanceSpec {
    let update = UpdatePolicy { rehearsal, ..UpdatePolicy::default() };
    InstanceSpec { image: ImageRef::parse(OTHER_IMAGE).unwrap(), update, ..spec() }
}

async fn deployed(world: &World) -> Running {
    let agent = world.start();
    agent.persist(1, &state(&[("a", spec())])).await;
    agent.until_phase("a", Phase::Running).await;
    agent
}

async fn assert_confirmed(agent: &Running) {
    agent.until("confirmed", || agent.count(EventKind::CutoverConfirmed) == 1).await;
    agent.until_phase("a", Phase::Running).await;
    let report = agent.report(&name("a")).unwrap();
    assert_eq!(report.active.unwrap().image.as_str(), OTHER_IMAGE);
    assert!(report.refused.is_none());
    assert_eq!(agent.count(EventKind::CutoverReverted) + agent.count(EventKind::CutoverRefused), 0);
}

#[test]
fn a_rehearsal_that_ended_with_docker_is_held_again() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let mut wanted = updated(Rehearsal::Always);
        wanted.health.min_healthy = Duration::from_secs(10);
        agent.persist(2, &state(&[("a", wanted)])).await;
        let trials = || world.machine.runtime.trials_so_far().len();
        agent.until("it is rehearsed", || trials() == 1).await;
        world.machine.runtime.stop_daemon("connection refused");
        agent.settle().await;
        assert!(agent.agent.board.status().runtime_problem.is_some());
        world.machine.runtime.start_daemon();
        agent.settle().await;
        world.machine.runtime.remove_trial(&name("a")).await.unwrap();
        agent.until("it is rehearsed again", || trials() == 2).await;
        assert_confirmed(&agent).await;
    });
}

#[test]
fn a_version_that_ended_with_docker_while_it_was_probed_is_started_again() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        world.machine.gateway.answer(&name("a"), GatewayAnswer::Starting("sidecars".to_owned()));
        agent.persist(2, &state(&[("a", updated(Rehearsal::Never))])).await;
        let starts = || world.mishaps().effects().iter().filter(|e| *e == "start").count();
        agent.until("the new one is probed", || starts() == 2).await;
        agent.settle().await;
        world.machine.runtime.stop_daemon("connection refused");
        agent.until("said", || agent.agent.board.status().runtime_problem.is_some()).await;
        world.machine.runtime.end(&name("a"), 0, false);
        world.machine.runtime.start_daemon();
        agent.until("started again", || starts() == 3).await;
        world.machine.gateway.recover(&name("a"));
        assert_confirmed(&agent).await;
    });
}
