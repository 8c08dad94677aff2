//! The firewall's loop on a machine in memory: nothing starts uncovered, nothing stays cut off, whatever
//! fails and whenever the agent is killed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use claw_core::event::EventKind;
use claw_core::firewall::{
    AllowedNetwork, Allowlist, Cidr, Egress, Flow, HostPolicy, Mode, NetworkPolicy, Port, Protocol,
    Reach, SshPolicy, Surroundings,
};
use claw_core::host::HostState;
use claw_core::report::Phase;
use claw_core::spec::InstanceSpec;
use claw_core::stamp::Generation;
use clawd::fakes::Mishap;
use clawd::ports::Firewall as _;
use support::{Running, World, name, run, spec, state};

fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A state whose host policy is told apart from the default by an extra port.
fn offering(number: u16) -> HostState {
    let extra = claw_core::firewall::ExtraPort {
        protocol: Protocol::Tcp,
        port: port(number),
        access: Default::default(),
    };
    let firewall = HostPolicy { extra: vec![extra], ..HostPolicy::default() };
    HostState { firewall, ..state(&[("a", spec())]) }
}

/// A state that cuts the host off from its coordinator.
fn cutting_off() -> HostState {
    let blocked = BTreeSet::from([Cidr::parse("198.51.100.0/24").unwrap()]);
    let firewall = HostPolicy { blocked, ..HostPolicy::default() };
    HostState { firewall, ..state(&[("a", spec()), ("b", spec())]) }
}

async fn deployed(world: &World) -> Running {
    let agent = world.start();
    agent.persist(1, &state(&[("a", spec())])).await;
    agent.until_phase("a", Phase::Running).await;
    agent
}

fn applied(agent: &Running) -> Option<Generation> {
    agent.agent.board.status().firewall.applied
}

fn problem(agent: &Running) -> Option<String> {
    agent.agent.board.status().firewall.problem
}

#[test]
fn no_container_starts_before_its_firewall() {
    run(async {
        let world = World::new();
        world.mishaps().named("firewall-apply", 1, Mishap::HangsBefore);
        let agent = world.start();
        agent.persist(1, &state(&[("a", spec())])).await;
        agent.settle().await;
        assert!(!world.machine.runtime.is_running(&name("a")));
        assert_eq!(
            agent.agent.board.status().last_result,
            None,
            "the state is not carried out yet"
        );
        agent.until_phase("a", Phase::Running).await;
        assert!(world.machine.firewall.kernel().is_some());
        assert!(!world.machine.firewall.is_armed());
        assert_eq!(applied(&agent), Some(Generation(1)));
    });
}

#[test]
fn a_policy_that_cuts_the_host_off_is_reverted_and_the_rest_goes_on() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let before = world.machine.firewall.kernel();
        agent.persist(2, &cutting_off()).await;
        agent.until_phase("b", Phase::Running).await;
        let text = problem(&agent).unwrap();
        assert!(text.starts_with("with these rules the coordinator cannot be reached"), "{text}");
        assert_eq!(agent.count(EventKind::FirewallReverted), 1);
        assert!(!world.machine.firewall.is_armed());
        let kernel = world.machine.firewall.kernel();
        assert_ne!(kernel, before, "the new instance is covered");
        assert!(kernel.unwrap().sets.iter().all(|set| !set.name.starts_with("claw-blocked")));
        let tried = world.machine.firewall.applied();
        agent.pass(Duration::from_secs(600)).await;
        assert_eq!(world.machine.firewall.applied(), tried, "it is not tried again and again");
        agent.kill().await;
        let agent = world.start();
        agent.pass(Duration::from_secs(600)).await;
        assert_eq!(world.machine.firewall.applied(), tried, "nor by the next agent");
        assert!(problem(&agent).is_some());
        let good = HostState { firewall: offering(9000).firewall, ..cutting_off() };
        agent.persist(3, &good).await;
        agent.until("in force", || applied(&agent) == Some(Generation(3))).await;
        assert_eq!(problem(&agent), None);
    });
}

#[test]
fn a_coordinator_that_was_away_before_reverts_nothing() {
    run(async {
        let world = World::new();
        world.machine.uplink.take_down();
        let agent = deployed(&world).await;
        assert_eq!(problem(&agent), None);
        assert!(world.machine.firewall.last_good().is_some());
        drop(agent);
    });
}

#[test]
fn rules_that_the_kernel_refuses_change_nothing() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let before = world.machine.firewall.kernel();
        world.machine.firewall.refuse(Some("line 7 failed"));
        agent.persist(2, &offering(9000)).await;
        agent.until("refused", || problem(&agent).is_some()).await;
        assert_eq!(world.machine.firewall.kernel(), before);
        assert!(problem(&agent).unwrap().contains("line 7 failed"));
        assert!(world.machine.runtime.is_running(&name("a")));
    });
}

const STEPS: [&str; 6] = [
    "firewall-surroundings",
    "firewall-validate",
    "firewall-arm",
    "firewall-apply",
    "firewall-deviations",
    "firewall-commit",
];

#[test]
fn whatever_fails_it_ends_in_force_and_disarmed() {
    run(async {
        for step in STEPS {
            for mishap in Mishap::ALL {
                let world = World::new();
                let agent = deployed(&world).await;
                world.mishaps().named(step, 1, mishap);
                agent.persist(2, &offering(9000)).await;
                agent
                    .until("in force", || {
                        let done =
                            applied(&agent) == Some(Generation(2)) && problem(&agent).is_none();
                        // The watchdog fires by itself where reverting was not possible.
                        done && !world.machine.firewall.is_armed()
                    })
                    .await;
                assert_eq!(
                    world.machine.firewall.kernel(),
                    world.machine.firewall.last_good(),
                    "{step} {mishap:?}"
                );
                assert!(world.machine.runtime.is_running(&name("a")));
            }
        }
    });
}

#[test]
fn an_agent_killed_at_any_step_leaves_old_rules_or_new_ones() {
    run(async {
        for step in STEPS {
            for mishap in [Mishap::HangsBefore, Mishap::HangsAfter] {
                for watchdog_is_first in [false, true] {
                    let world = World::new();
                    let agent = deployed(&world).await;
                    let old = world.machine.firewall.kernel();
                    world.mishaps().named(step, 1, mishap);
                    agent.persist(2, &offering(9000)).await;
                    agent.settle().await;
                    agent.kill().await;
                    world.mishaps().clear();
                    if watchdog_is_first {
                        world.machine.firewall.fire_watchdog();
                        let (kernel, good) =
                            (world.machine.firewall.kernel(), world.machine.firewall.last_good());
                        assert_eq!(kernel, good, "{step} {mishap:?}");
                        assert!(kernel == old || step == "firewall-commit", "{step} {mishap:?}");
                    }
                    let agent = world.start();
                    agent.until("in force", || applied(&agent) == Some(Generation(2))).await;
                    assert!(!world.machine.firewall.is_armed(), "{step} {mishap:?}");
                    assert_ne!(world.machine.firewall.kernel(), old);
                    assert_eq!(world.machine.firewall.kernel(), world.machine.firewall.last_good());
                    agent.kill().await;
                }
            }
        }
    });
}

#[test]
fn what_others_change_is_repaired_and_said() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let rules = world.machine.firewall.kernel();
        world.machine.firewall.flush("nft");
        agent.settle().await;
        assert_eq!(world.machine.firewall.kernel(), rules, "without any time passing");
        let events = agent.events();
        let repaired = events.iter().find(|e| e.kind == EventKind::FirewallRepaired).unwrap();
        assert!(
            repaired.message.starts_with(
                "nft (process 4711) changed the firewall: the rules are gone; repaired"
            ),
            "{}",
            repaired.message
        );
        assert_eq!(agent.agent.board.status().firewall.repairs, 1);
        for _ in 0..200 {
            world.machine.firewall.flush("nft");
            agent.settle().await;
        }
        assert!(world.machine.firewall.applied() < 100, "a quarrel is slowed down");
        agent.until("repaired", || world.machine.firewall.kernel() == rules).await;
    });
}

#[test]
fn a_new_agent_finds_its_rules_and_leaves_them_alone() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let applied = world.machine.firewall.applied();
        agent.kill().await;
        let agent = world.start();
        agent.until_phase("a", Phase::Running).await;
        assert_eq!(world.machine.firewall.applied(), applied);
        agent.kill().await;
    });
}

#[test]
fn tightening_ends_connections_that_may_not_go_on() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let flow = |destination: &str| Flow {
            protocol: Protocol::Tcp,
            source: address("10.201.1.2"),
            source_port: 40_000,
            destination: address(destination),
            port: 443,
        };
        world.machine.firewall.connect(flow("203.0.113.7"));
        world.machine.firewall.connect(flow("192.0.2.7"));
        let networks = vec![AllowedNetwork {
            network: Cidr::parse("203.0.113.0/24").unwrap(),
            ports: BTreeSet::from([port(443)]),
        }];
        let list = Allowlist { networks, names: Vec::new(), mode: Mode::Enforced };
        let egress = Egress { reach: Reach::Allowlist(list), ..Egress::default() };
        let network = NetworkPolicy { egress, ..NetworkPolicy::default() };
        agent.persist(2, &state(&[("a", InstanceSpec { network, ..spec() })])).await;
        agent.until("in force", || applied(&agent) == Some(Generation(2))).await;
        assert_eq!(world.machine.firewall.open_flows(), BTreeSet::from([flow("203.0.113.7")]));
        assert!(world.machine.resolver.policy().instances[&name("a")].only.is_some());
        agent.kill().await;
    });
}

#[test]
fn guessing_is_banned() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        for _ in 0..5 {
            world.machine.login_log.fail(address("203.0.113.9"));
            agent.settle().await;
        }
        let ban = (Cidr::parse("203.0.113.9").unwrap(), Duration::from_secs(600));
        assert_eq!(world.machine.firewall.bans(), [ban]);
        assert_eq!(agent.count(EventKind::SourceBanned), 1);
        assert_eq!(agent.agent.board.status().firewall.login_failures, 5);
        agent.kill().await;
    });
}

#[test]
fn a_policy_that_locks_ssh_out_is_refused_whole() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let ssh = SshPolicy { ports: BTreeSet::from([port(2222)]), ..SshPolicy::default() };
        let firewall = HostPolicy { ssh, ..HostPolicy::default() };
        let bad = HostState { firewall, ..state(&[("a", spec())]) };
        agent.inbox.offer(support::offer(1, 2, &bad));
        agent.until("refused", || agent.refused().is_some()).await;
        let reason = agent.refused().unwrap();
        assert!(reason.contains("ssh.ports") && reason.contains("22"), "{reason}");
        agent.kill().await;
    });
}

#[test]
fn rules_follow_sshd() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let ssh_ports = BTreeSet::from([port(22), port(2222)]);
        let found = world.machine.firewall.surroundings().await.unwrap();
        world.machine.firewall.surround(Surroundings { ssh_ports: ssh_ports.clone(), ..found });
        agent
            .until("followed", || {
                let in_force = agent.agent.board.in_force();
                let in_force = in_force.borrow();
                in_force.as_ref().is_some_and(|effective| effective.ssh_ports == ssh_ports)
            })
            .await;
        agent.kill().await;
    });
}

#[test]
fn everything_of_the_firewall_can_be_asked_for() {
    run(async {
        let world = World::new();
        let agent = deployed(&world).await;
        let (reply, answer) = tokio::sync::oneshot::channel();
        agent.inbox.request(clawd::reconcile::Request::Firewall(reply)).unwrap();
        agent.settle().await;
        let detail = answer.await.unwrap().unwrap();
        assert_eq!(detail.ssh_ports, BTreeSet::from([port(22)]));
        assert_eq!(detail.instances.keys().cloned().collect::<Vec<_>>(), [name("a")]);
        assert_eq!(detail.instances[&name("a")].bridge, "claw-i0");
        world.machine.resolver.count(BTreeMap::new());
        agent.kill().await;
    });
}
