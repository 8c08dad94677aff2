//! Crashes, memory, hangs, a dead Docker, a full disk, a power cut: on a machine in memory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::time::Duration;

use claw_core::event::EventKind;
use claw_core::report::Phase;
use clawd::fakes::Mishap;
use clawd::ports::{Clock as _, GatewayAnswer};
use support::{Running, TOKEN, World, name, offer, run, spec, state};

async fn deployed(world: &World) -> Running {
    let agent = world.start();
    agent.persist(1, &state(&[("a", spec())])).await;
    agent.until_phase("a", Phase::Running).await;
    agent
}

#[test]
fn a_crashed_gateway_is_back_at_once_and_counted_once() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let views = world.machine.runtime.views();
        world.machine.runtime.end(&name("a"), 1, false);
        let now = world.machine.clock.now();
        agent.settle().await;
        assert!(world.machine.runtime.is_running(&name("a")), "without any time passing");
        assert_eq!(world.machine.clock.now(), now);
        // One to see it, one or two after the start.
        assert!(world.machine.runtime.views() - views <= 3);
        let report = agent.report(&name("a")).unwrap();
        assert_eq!(report.restart_count, 1);
        assert_eq!(report.last_exit.map(|exit| (exit.code, exit.oom)), Some((1, false)));
        assert_eq!(agent.count(EventKind::Exited), 1);
        agent.until_phase("a", Phase::Running).await;
    });
}

#[test]
fn out_of_memory_is_said_as_such() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        world.machine.runtime.end(&name("a"), 137, true);
        agent.until("back", || world.machine.runtime.is_running(&name("a"))).await;
        assert_eq!(agent.count(EventKind::OutOfMemory), 1);
        assert_eq!(agent.count(EventKind::Exited), 0);
        assert!(agent.report(&name("a")).unwrap().last_exit.unwrap().oom);
    });
}

#[test]
fn a_crash_loop_opens_the_breaker_and_never_blocks_a_new_target() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        for _ in 0..6 {
            agent.until("up", || world.machine.runtime.is_running(&name("a"))).await;
            world.machine.runtime.end(&name("a"), 1, false);
        }
        agent.until_phase("a", Phase::CrashLoop).await;
        assert_eq!(agent.count(EventKind::CrashLoop), 1);
        assert_eq!(agent.report(&name("a")).unwrap().restart_count, 5);
        let starts =
            || world.mishaps().effects().iter().filter(|effect| *effect == "start").count();
        let before = starts();
        agent.pass(Duration::from_secs(240)).await;
        assert_eq!(starts(), before, "attempts are rare now");

        // The journal knows: a new agent does not begin anew.
        agent.kill().await;
        let agent = world.start();
        agent.until_phase("a", Phase::CrashLoop).await;
        assert_eq!(starts(), before);

        let mut fixed = spec();
        fixed.rebuilds = 1;
        let now = world.machine.clock.now();
        agent.persist(2, &state(&[("a", fixed)])).await;
        agent.until_phase("a", Phase::Running).await;
        assert!(world.machine.clock.now().since(now) < Duration::from_secs(20));
    });
}

#[test]
fn a_hung_gateway_is_restarted_after_its_deadline() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        agent.pass(Duration::from_secs(30)).await;
        let now = world.machine.clock.now();
        world.machine.gateway.hang(&name("a"));
        agent.until_phase("a", Phase::Unhealthy).await;
        assert_eq!(agent.count(EventKind::Unhealthy), 1);
        agent
            .until("restarted", || {
                agent.report(&name("a")).is_some_and(|report| report.restart_count == 1)
            })
            .await;
        let waited = world.machine.clock.now().since(now).as_secs();
        assert!((120..140).contains(&waited), "{waited} s");
        world.machine.gateway.recover(&name("a"));
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(agent.count(EventKind::Healthy), 2);
    });
}

#[test]
fn a_draining_gateway_and_a_broken_proxy_are_let_be() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        for answer in
            [GatewayAnswer::Draining, GatewayAnswer::ProxyFailing("bad gateway".to_owned())]
        {
            world.machine.gateway.answer(&name("a"), answer);
            agent.until_phase("a", Phase::Unhealthy).await;
            agent.pass(Duration::from_secs(400)).await;
            assert_eq!(agent.report(&name("a")).unwrap().restart_count, 0);
            world.machine.gateway.recover(&name("a"));
            agent.until_phase("a", Phase::Running).await;
        }
    });
}

#[test]
fn a_gateway_that_never_gets_healthy_fails_its_start() {
    run(async {
        let world = World::new();
        let agent = world.start();
        world.machine.gateway.answer(&name("a"), GatewayAnswer::Starting("sidecars".to_owned()));
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.until_phase("a", Phase::Starting).await;
        agent.until("given up", || agent.count(EventKind::Exited) == 1).await;
        let exit =
            agent.events().into_iter().find(|event| event.kind == EventKind::Exited).unwrap();
        assert!(exit.message.contains("startup deadline"), "{}", exit.message);
        assert_eq!(agent.agent.board.status().last_result, None, "not settled");
    });
}

#[test]
fn docker_down_is_said_survived_and_over_when_it_is_over() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        world.machine.runtime.stop_daemon("connection refused");
        agent.until("said", || agent.agent.board.status().runtime_problem.is_some()).await;
        world.machine.runtime.end(&name("a"), 137, false);
        agent.pass(Duration::from_secs(120)).await;
        assert!(!world.machine.runtime.is_running(&name("a")));
        assert_eq!(agent.count(EventKind::RuntimeLost), 1);
        assert!(agent.alive.get() >= 10, "the watchdog is fed");
        agent.persist(2, &state(&[("a", spec()), ("b", spec())])).await;

        world.machine.runtime.start_daemon();
        agent.settle().await;
        assert!(world.machine.runtime.is_running(&name("a")), "without any time passing");
        agent.until_phase("b", Phase::Running).await;
        assert_eq!(agent.agent.board.status().runtime_problem, None);
        assert_eq!(agent.count(EventKind::RuntimeBack), 1);
    });
}

#[test]
fn a_hanging_docker_hangs_nothing_else() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        world.mishaps().named("view", 5, Mishap::HangsBefore);
        world.machine.runtime.end(&name("a"), 1, false);
        agent.until("said", || agent.agent.board.status().runtime_problem.is_some()).await;
        agent.persist(2, &state(&[("a", spec())])).await;
        agent.until("back", || world.machine.runtime.is_running(&name("a"))).await;
        assert_eq!(agent.agent.board.status().runtime_problem, None);
    });
}

#[test]
fn a_broken_proxy_does_not_keep_a_dead_gateway_down() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        world.mishaps().named("publish", 1000, Mishap::FailsBefore);
        world.machine.proxy.lose(&name("a"));
        world.machine.runtime.end(&name("a"), 1, false);
        agent.settle().await;
        assert!(world.machine.runtime.is_running(&name("a")));
        let report = agent.report(&name("a")).unwrap();
        assert!(report.message.contains("publish-proxy"), "{}", report.message);
        world.mishaps().clear();
        agent.until("published", || world.machine.proxy.published() == [name("a")]).await;
    });
}

#[test]
fn a_full_disk_keeps_gateways_alive_and_makes_nothing_new() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        agent.agent.journal.limit_pages(1).await.unwrap();
        fill(&agent).await;
        world.machine.runtime.end(&name("a"), 1, false);
        agent.until("back", || world.machine.runtime.is_running(&name("a"))).await;
        let persisted = agent.agent.board.status().persisted;
        agent.inbox.offer(offer(1, 2, &state(&[("a", spec()), ("b", large())])));
        agent.until("refused", || agent.refused().is_some_and(|why| why.contains("disk"))).await;
        assert_eq!(agent.agent.board.status().persisted, persisted);
        let alive = agent.alive.get();
        agent.pass(Duration::from_secs(60)).await;
        assert!(agent.alive.get() > alive, "the watchdog is fed");
        assert_eq!(world.machine.runtime.made(), 1);

        agent.agent.journal.limit_pages(1_000_000).await.unwrap();
        agent.until_phase("b", Phase::Running).await;
        assert_eq!(agent.refused(), None, "tried again by itself");
        let exits = agent.events().iter().filter(|e| e.kind == EventKind::Exited).count();
        assert_eq!(exits, 1, "what could not be stored is stored later");
    });
}

/// Events until there is no room for another.
async fn fill(agent: &Running) {
    for _ in 0..2000 {
        let before = agent.events().len();
        agent.agent.event(
            None,
            EventKind::StepDone,
            claw_core::event::Severity::Info,
            "x".repeat(900),
        );
        agent.settle().await;
        if agent.events().len() == before {
            return;
        }
    }
    panic!("the journal never fills up");
}

/// A spec whose state needs room.
fn large() -> claw_core::spec::InstanceSpec {
    let mut large = spec();
    let path = claw_core::name::StatePath::parse("workspace/large.md").unwrap();
    large.files.insert(path, "x".repeat(100_000));
    large
}

#[test]
fn after_a_power_cut_the_desired_state_comes_back_without_the_coordinator() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        agent.kill().await;
        world.machine.power_cycle("boot-2");
        let agent = world.start();
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(world.machine.runtime.made(), 1);
        assert_eq!(agent.report(&name("a")).unwrap().restart_count, 0, "no crash of the gateway");
        assert!(world.machine.files.secrets(&name("a")).is_some());
    });
}

#[test]
fn what_is_found_at_start_is_adopted_and_strangers_are_left_alone() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let since = agent.report(&name("a")).unwrap().started_at;
        agent.kill().await;
        world.machine.runtime.plant(&name("stranger"));
        world.machine.clock.advance(Duration::from_secs(3600));
        let effects = world.mishaps().effects();
        // The proxy is being upgraded at the same time: the hour of absence must not count.
        world.machine.gateway.hang(&name("a"));
        let agent = world.start();
        agent.pass(Duration::from_secs(60)).await;
        world.machine.gateway.recover(&name("a"));
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(world.mishaps().effects(), effects, "the instance did not notice");
        assert_eq!(agent.report(&name("a")).unwrap().started_at, since);
        assert_eq!(agent.count(EventKind::Adopted), 1);
        assert!(agent.agent.board.inventory().contains(&name("stranger")));
        assert!(world.machine.runtime.is_running(&name("stranger")));
    });
}

#[test]
fn a_lost_journal_adopts_the_networks_that_are_there() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec()), ("b", spec())])).await;
        agent.until_phase("b", Phase::Running).await;
        agent.until_phase("a", Phase::Running).await;
        agent.kill().await;
        for entry in std::fs::read_dir(world.directory.path()).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let made = world.machine.runtime.made();
        let agent = world.start();
        agent.until("inventory", || agent.agent.board.inventory().len() == 2).await;
        agent.persist(1, &state(&[("b", spec())])).await;
        agent.until_phase("b", Phase::Running).await;
        assert_eq!(world.machine.runtime.made(), made, "b kept its container and its addresses");
        assert!(world.machine.runtime.is_running(&name("a")), "and a, which nobody named, too");
    });
}

#[test]
fn no_secret_is_on_disk_in_events_or_in_debug_output() {
    run(async {
        let world = World::new();
        world.mishaps().nth_effect(3, Mishap::FailsAfter);
        let agent = deployed(&world).await;
        let mut next = spec();
        next.restarts = 1;
        agent.inbox.offer(offer(1, 2, &state(&[("a", next)])));
        agent
            .until("restarted", || agent.agent.board.status().last_result.is_some_and(|g| g.0 == 2))
            .await;
        assert!(
            world.machine.files.secrets(&name("a")).unwrap().reveal().contains(TOKEN),
            "it is delivered"
        );
        let texts = format!(
            "{:?} {:?} {:?} {:?}",
            agent.events(),
            agent.agent,
            agent.agent.board.status(),
            agent.agent.journal.steps(&name("a")).unwrap(),
        );
        assert!(!texts.contains(TOKEN), "{texts}");
        let bytes = world.bytes_on_disk();
        let found = bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes());
        assert!(bytes.len() > 10_000 && !found);
        assert!(
            world.machine.files.delivered(&name("a")).values().all(|text| !text.contains(TOKEN))
        );
    });
}
