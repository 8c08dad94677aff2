//! The executor and the loops on a machine in memory: converging whatever fails, wherever it is ended.

mod support;

use std::time::Duration;

use claw_core::data::DataGeneration;
use claw_core::event::EventKind;
use claw_core::name::ImageRef;
use claw_core::report::Phase;
use claw_core::spec::RunState;
use clawd::fakes::Mishap;
use support::{IMAGE, OTHER_IMAGE, Running, World, name, offer, run, spec, state};

/// The effects of a deploy on an empty host.
const DEPLOY: [&str; 7] =
    ["pull", "create-network", "deliver", "write-secrets", "publish", "create-container", "start"];

#[test]
fn a_deploy_goes_through_every_step_once() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(world.mishaps().effects(), DEPLOY);
        let status = agent.agent.board.status();
        assert_eq!(status.applying, None);
        assert_eq!(status.last_result.map(|generation| generation.0), Some(1));
        assert_eq!(world.machine.proxy.published(), [name("a")]);
        let steps = agent.agent.journal.steps(&name("a")).unwrap();
        assert_eq!(steps.len(), DEPLOY.len());
        assert!(steps.iter().all(|step| step.ends_with(": done")), "{steps:#?}");
    });
}

#[test]
fn instances_progress_independently() {
    run(async {
        let world = World::new();
        let agent = world.start();
        let mut stuck = spec();
        stuck.image = ImageRef::parse(OTHER_IMAGE).unwrap();
        world.mishaps().named("pull", 1, Mishap::HangsBefore);
        agent.persist(1, &state(&[("a", stuck), ("b", spec())])).await;
        agent.until_phase("b", Phase::Running).await;
        assert_eq!(agent.report(&name("a")).unwrap().phase, Phase::Pulling);
        assert_eq!(agent.agent.board.status().last_result, None);
    });
}

#[test]
fn whatever_step_fails_the_host_converges_with_one_container() {
    for mishap in [Mishap::FailsBefore, Mishap::FailsAfter, Mishap::HangsBefore, Mishap::HangsAfter]
    {
        for k in 0..DEPLOY.len() {
            run(async move {
                let world = World::new();
                world.mishaps().nth_effect(k, mishap);
                let agent = world.start();
                agent.persist(1, &state(&[("a", spec())])).await;
                agent.until_phase("a", Phase::Running).await;
                assert!(world.mishaps().reached(), "step {k}");
                assert_eq!(world.machine.runtime.made(), 1, "step {k} {mishap:?}");
                assert!(agent.count(EventKind::StepFailed) >= 1, "step {k} {mishap:?}");
            });
        }
    }
}

#[test]
fn wherever_the_agent_is_killed_the_next_one_converges_with_one_container() {
    for mishap in [Mishap::HangsBefore, Mishap::HangsAfter] {
        for k in 0..DEPLOY.len() {
            run(async move {
                let world = World::new();
                world.mishaps().nth_effect(k, mishap);
                let first = world.start();
                first.persist(1, &state(&[("a", spec())])).await;
                first.until("stuck", || world.mishaps().reached()).await;
                first.kill().await;
                world.mishaps().clear();
                let second = world.start();
                second.until_phase("a", Phase::Running).await;
                assert_eq!(world.machine.runtime.made(), 1, "step {k} {mishap:?}");
                let exits = second.count(EventKind::Exited);
                assert_eq!(exits, 0, "step {k} {mishap:?}");
            });
        }
    }
}

/// The data before a change is deleted for the next change's sake only when a snapshot holds it.
#[test]
fn a_change_waits_until_a_snapshot_holds_the_data_before_the_last_one() {
    run(async {
        let world = World::new();
        let agent = world.start();
        let runs_on = |image: &str| {
            let active = agent.report(&name("a")).and_then(|report| report.active);
            active.is_some_and(|active| active.image.as_str() == image)
        };
        let first = DataGeneration::FIRST;
        let held = || world.machine.files.data(&name("a"), first).is_some();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        world.mishaps().named("take-snapshot", 1_000, Mishap::FailsBefore);
        let mut changed = spec();
        changed.image = ImageRef::parse(OTHER_IMAGE).unwrap();
        agent.persist(2, &state(&[("a", changed)])).await;
        agent.until("updated", || runs_on(OTHER_IMAGE)).await;
        agent.persist(3, &state(&[("a", spec())])).await;
        let waits = || {
            let operation = agent.report(&name("a")).and_then(|report| report.operation);
            operation
                .is_some_and(|operation| operation.stage.starts_with("waiting for the snapshot"))
        };
        agent.until("it waits", waits).await;
        assert!(held() && runs_on(OTHER_IMAGE));
        world.mishaps().clear();
        agent.until("it goes on", || runs_on(IMAGE)).await;
        agent.until("and the oldest data goes", || !held()).await;
    });
}

/// Effects of an update with its rehearsal, and of a removal.
#[test]
fn an_update_and_a_removal_survive_a_kill_at_every_step() {
    for k in 0..16 {
        run(async move {
            let world = World::new();
            let first = world.start();
            first.persist(1, &state(&[("a", spec())])).await;
            first.until_phase("a", Phase::Running).await;
            let mut changed = spec();
            changed.image = ImageRef::parse(OTHER_IMAGE).unwrap();
            let updated = |agent: &Running| {
                let active = agent.report(&name("a")).and_then(|report| report.active);
                active.is_some_and(|active| active.image.as_str() == OTHER_IMAGE)
            };
            let before = world.mishaps().effects().len();
            world.mishaps().nth_effect(k, Mishap::HangsAfter);
            first.persist(2, &state(&[("a", changed)])).await;
            first.until("stuck or done", || world.mishaps().reached() || updated(&first)).await;
            first.kill().await;
            world.mishaps().clear();
            let second = world.start();
            second.until("updated", || updated(&second)).await;
            second.until_phase("a", Phase::Running).await;
            assert_eq!(world.machine.runtime.made(), 2, "step {k}");
            assert!(second.report(&name("a")).unwrap().refused.is_none(), "step {k}");
            assert_eq!(second.report(&name("a")).unwrap().restart_count, 0, "no crash at step {k}");
            assert!(world.mishaps().effects().len() > before);

            let mut gone = state(&[]);
            gone.confirm_removal.insert(name("a"));
            world.mishaps().nth_effect(k, Mishap::HangsAfter);
            second.persist(3, &gone).await;
            second
                .until("stuck or removed", || {
                    world.mishaps().reached() || world.machine.runtime.held().is_empty()
                })
                .await;
            second.kill().await;
            world.mishaps().clear();
            let third = world.start();
            third.until_phase("a", Phase::Removed).await;
            assert!(world.machine.runtime.held().is_empty());
            assert_eq!(world.machine.files.set_aside_so_far(), [name("a")], "step {k}");
            assert!(world.machine.proxy.published().is_empty());
        });
    }
}

#[test]
fn stale_conflicting_and_unconfirmed_states_are_refused_and_change_nothing() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(5, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        let persisted = agent.agent.board.status().persisted;
        let effects = world.mishaps().effects();

        let refused = |expected: &'static str| {
            let agent = &agent;
            async move {
                agent
                    .until(expected, || agent.refused().is_some_and(|why| why.contains(expected)))
                    .await;
            }
        };
        agent.inbox.offer(offer(1, 4, &state(&[("a", spec())])));
        refused("older than").await;
        agent.inbox.offer(offer(0, 9, &state(&[("a", spec())])));
        refused("state 0.9 is older").await;
        agent.inbox.offer(offer(1, 5, &state(&[("a", spec()), ("b", spec())])));
        refused("another content").await;
        agent.inbox.offer(offer(1, 6, &state(&[])));
        refused("lacks a").await;
        agent.inbox.offer(offer(2, 1, &state(&[])));
        refused("lacks a").await;
        let mut wrong = offer(1, 7, &state(&[("a", spec())]));
        wrong.bytes = offer(1, 7, &state(&[])).bytes;
        agent.inbox.offer(wrong);
        refused("digest").await;
        let mut garbage = offer(1, 8, &state(&[]));
        garbage.bytes = bytes::Bytes::from_static(b"\xff\xff\xff");
        garbage.stamp.digest = claw_core::stamp::Digest::of(&garbage.bytes);
        agent.inbox.offer(garbage);
        agent.until("garbage", || agent.refused().is_some_and(|why| !why.contains("digest"))).await;

        let status = agent.agent.board.status();
        assert_eq!(status.persisted, persisted);
        assert_eq!(world.mishaps().effects(), effects);
        assert_eq!(agent.count(EventKind::StateRefused), 7);

        agent.inbox.offer(offer(1, 5, &state(&[("a", spec())])));
        agent.until("known again", || agent.refused().is_none()).await;
    });
}

#[test]
fn a_configuration_that_openclaw_would_refuse_is_refused_whole() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        let effects = world.mishaps().effects();
        let mut bad = spec();
        bad.config = "{ gatewayx: 1, gateway: { nope: true } }".to_owned();
        let mut tokenless = spec();
        tokenless.secrets.clear();
        let mut unresolved = spec();
        unresolved.config = "{ models: { mode: '${NOBODY_SET_THIS}' } }".to_owned();
        agent.inbox.offer(offer(1, 2, &state(&[("a", bad), ("b", tokenless), ("c", unresolved)])));
        agent.until("refused", || agent.refused().is_some()).await;
        let why = agent.refused().unwrap();
        for part in [
            "a: ",
            "gatewayx: unknown key",
            "gateway.nope",
            "OPENCLAW_GATEWAY_TOKEN",
            "NOBODY_SET_THIS",
        ] {
            assert!(why.contains(part), "{part} in {why}");
        }
        agent.pass(Duration::from_secs(60)).await;
        assert_eq!(world.mishaps().effects(), effects);
        assert_eq!(agent.agent.board.status().persisted.unwrap().generation.0, 1);
    });
}

#[test]
fn a_newer_target_preempts_a_stuck_pull() {
    run(async {
        let world = World::new();
        let agent = world.start();
        let mut stuck = spec();
        stuck.image = ImageRef::parse(OTHER_IMAGE).unwrap();
        world.mishaps().named("pull", 1, Mishap::HangsBefore);
        agent.persist(1, &state(&[("a", stuck)])).await;
        agent.until_phase("a", Phase::Pulling).await;
        agent.settle().await;
        let (step, _) = agent.report(&name("a")).unwrap().step.unwrap();
        assert!(step.starts_with("pull-image"), "{step}");
        let before = agent.agent.machine.clock.until_next();
        agent.persist(2, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        assert!(before.is_some());
        assert_eq!(agent.report(&name("a")).unwrap().generation.0, 2);
        let steps = agent.agent.journal.steps(&name("a")).unwrap();
        assert_eq!(steps.first().unwrap(), &format!("pull-image {OTHER_IMAGE}: preempted"));
    });
}

#[test]
fn a_state_that_changes_another_instance_does_not_preempt() {
    run(async {
        let world = World::new();
        let agent = world.start();
        let mut slow = spec();
        slow.image = ImageRef::parse(OTHER_IMAGE).unwrap();
        world.mishaps().named("pull", 1, Mishap::HangsBefore);
        agent.persist(1, &state(&[("a", slow.clone())])).await;
        agent.until_phase("a", Phase::Pulling).await;
        agent.persist(2, &state(&[("a", slow), ("b", spec())])).await;
        agent.until_phase("b", Phase::Running).await;
        let pulls = world.mishaps().effects().iter().filter(|effect| *effect == "pull").count();
        assert_eq!(pulls, 2, "one of each image");
        let (step, _) = agent.report(&name("a")).unwrap().step.unwrap();
        assert!(step.starts_with("pull-image"), "{step}");
    });
}

#[test]
fn an_image_that_does_not_exist_is_said_and_does_not_block_a_new_target() {
    run(async {
        let world = World::new();
        let agent = world.start();
        let mut missing = spec();
        missing.image = ImageRef::parse("registry.example/nothing:0").unwrap();
        agent.persist(1, &state(&[("a", missing)])).await;
        agent.until_phase("a", Phase::Failed).await;
        let report = agent.report(&name("a")).unwrap();
        assert!(report.message.contains("registry.example/nothing:0"), "{}", report.message);
        assert_eq!(
            agent.agent.board.status().last_result.map(|g| g.0),
            Some(1),
            "settled, not well"
        );
        agent.persist(2, &state(&[("a", spec())])).await;
        let begun = world.machine.clock.until_next();
        agent.until_phase("a", Phase::Running).await;
        assert!(begun.is_some());
    });
}

#[test]
fn stop_start_restart_resize_rebuild() {
    run(async {
        let world = World::new();
        let agent = world.start();
        let running = |generation: u64| {
            let agent = &agent;
            async move {
                let what = format!("generation {generation} running");
                agent
                    .until(&what, || {
                        agent.report(&name("a")).is_some_and(|r| {
                            r.generation.0 == generation
                                && r.phase == Phase::Running
                                && r.step.is_none()
                        })
                    })
                    .await;
            }
        };
        agent.persist(1, &state(&[("a", spec())])).await;
        running(1).await;
        let started = agent.report(&name("a")).unwrap().started_at;

        let mut next = spec();
        next.restarts = 1;
        agent.persist(2, &state(&[("a", next.clone())])).await;
        running(2).await;
        assert!(agent.report(&name("a")).unwrap().started_at > started, "restarted");
        assert_eq!(world.machine.runtime.made(), 1);

        next.resources.cpu = claw_core::unit::CpuMillis::from_millis(2000).unwrap();
        agent.persist(3, &state(&[("a", next.clone())])).await;
        running(3).await;
        assert_eq!(world.machine.runtime.container(&name("a")).unwrap().nano_cpus, 2_000_000_000);
        assert_eq!(world.machine.runtime.made(), 1, "in place");

        next.rebuilds = 1;
        agent.persist(4, &state(&[("a", next.clone())])).await;
        running(4).await;
        assert_eq!(world.machine.runtime.made(), 2);

        next.run = RunState::Stopped;
        agent.persist(5, &state(&[("a", next.clone())])).await;
        agent.until_phase("a", Phase::Stopped).await;
        assert!(!world.machine.runtime.is_running(&name("a")));
        next.run = RunState::Running;
        agent.persist(6, &state(&[("a", next)])).await;
        running(6).await;
        let report = agent.report(&name("a")).unwrap();
        assert_eq!(report.restart_count, 0, "none of this was a crash");
        assert_eq!(agent.count(EventKind::CrashLoop), 0);
    });
}

#[test]
fn a_restart_interrupted_by_a_kill_happens_once() {
    run(async {
        let world = World::new();
        let first = world.start();
        first.persist(1, &state(&[("a", spec())])).await;
        first.until_phase("a", Phase::Running).await;
        let mut next = spec();
        next.restarts = 1;
        // Stop is the first effect, start the second; it is killed when the start has happened.
        world.mishaps().nth_effect(1, Mishap::HangsAfter);
        first.persist(2, &state(&[("a", next)])).await;
        first.until("started", || world.mishaps().reached()).await;
        first.kill().await;
        let effects = world.mishaps().effects().len();
        world.mishaps().clear();
        let second = world.start();
        second.until_phase("a", Phase::Running).await;
        second.pass(Duration::from_secs(30)).await;
        assert_eq!(world.mishaps().effects().len(), effects, "it was carried out already");
        assert_eq!(second.report(&name("a")).unwrap().restart_count, 0);
    });
}

#[test]
fn drift_outside_docker_is_repaired() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        world.machine.proxy.lose(&name("a"));
        agent.until("published again", || world.machine.proxy.published() == [name("a")]).await;
        assert_eq!(world.machine.runtime.container(&name("a")).unwrap().id, "container-1");
        assert!(world.mishaps().effects().iter().filter(|e| *e == "start").count() == 1, "{IMAGE}");
    });
}

#[test]
fn idle_means_idle() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Running).await;
        agent.pass(Duration::from_secs(60)).await;
        let (views, looks) = (world.machine.runtime.views(), world.machine.gateway.looks());
        agent.pass(Duration::from_secs(240)).await;
        assert!(world.machine.runtime.views() - views <= 1, "docker is not polled");
        let looks = world.machine.gateway.looks() - looks;
        assert!((23..=25).contains(&looks), "{looks} looks in 240 s");
    });
}
