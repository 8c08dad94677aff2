//! Plans as text, and the proof that they converge.
//!
//! The golden tests read as transcripts: what is there, what will be done. The property tests apply
//! plans to a model of a host that fails and crashes at random.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::address::{AddressPool, Slot};
use crate::name::{EnvName, ImageRef};
use crate::observed::{Exit, Health, ObservedNetwork};
use crate::restart::RestartHistory;
use crate::spec::{HealthPolicy, Resources, WebPolicy};
use crate::unit::{CpuMillis, MIB, Memory, PidsLimit};

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn spec() -> InstanceSpec {
    let name = EnvName::parse(crate::spec::GATEWAY_TOKEN).expect("valid");
    InstanceSpec {
        image: ImageRef::parse("openclaw:1").expect("valid"),
        resources: Resources {
            memory: Memory::from_bytes(2048 * MIB).expect("in range"),
            cpu: CpuMillis::from_millis(2000).expect("in range"),
            pids: PidsLimit::from_count(512).expect("in range"),
        },
        run: RunState::Running,
        restarts: 0,
        rebuilds: 0,
        env: BTreeMap::new(),
        secrets: [(name, Secret::new("t".to_owned()))].into(),
        config: String::new(),
        files: BTreeMap::new(),
        web: WebPolicy::default(),
        network: crate::firewall::NetworkPolicy::default(),
        health: HealthPolicy::default(),
        stop_grace: Duration::from_secs(330),
        backup: crate::backup::BackupPolicy::default(),
        update: crate::spec::UpdatePolicy::default(),
        restore: None,
    }
}

fn delivery() -> Delivery {
    let path = StatePath::parse("openclaw.json").expect("valid");
    Delivery { files: [(path, "{}".to_owned())].into(), secrets: Secret::new("T=t".to_owned()) }
}

fn present(spec: InstanceSpec) -> DesiredInstance {
    DesiredInstance {
        name: InstanceName::parse("demo").expect("valid"),
        generation: Generation(7),
        network: AddressPool::STANDARD.network(Slot::new(0).expect("below the limit")),
        data: DataGeneration::FIRST,
        target: Target::Present { spec: Box::new(spec), delivery: Box::new(delivery()) },
    }
}

fn removed() -> DesiredInstance {
    DesiredInstance { target: Target::Removed, ..present(spec()) }
}

fn container(spec: &InstanceSpec, state: ContainerState) -> ObservedContainer {
    ObservedContainer {
        id: "0123456789abcdef".to_owned(),
        spec_digest: Some(container_digest(&present(spec.clone()), spec)),
        generation: Some(Generation(7)),
        state,
        nano_cpus: spec.resources.cpu.nano(),
        pids_limit: spec.resources.pids.count(),
        address: None,
    }
}

fn up(seconds_ago: u64) -> ContainerState {
    let millis = i64::try_from(seconds_ago * 1000).expect("small");
    ContainerState::Running { since: Timestamp::from_millis(NOW.millis() - millis), pid: 42 }
}

/// Everything in place, the container in the given state.
fn settled(spec: &InstanceSpec, state: ContainerState) -> ObservedInstance {
    let desired = present(spec.clone());
    ObservedInstance {
        image_present: true,
        network: Some(ObservedNetwork {
            id: "net0".to_owned(),
            subnet: desired.network.subnet(),
            bridge: desired.network.bridge(),
        }),
        container: Some(container(spec, state)),
        data_present: true,
        secrets: Some(delivery().secrets_digest()),
        files: Some(delivery().files_digest()),
        proxy_current: true,
        firewalled: true,
        at_rest: RestSnapshot::Missing,
        health: Health {
            healthy_since: Some(Timestamp::from_millis(NOW.millis() - 60_000)),
            last_answer: Some(NOW),
            draining: false,
            ready: Some(true),
            problem: None,
        },
        record: crate::observed::Record {
            restarts_done: spec.restarts,
            started_with_secrets: Some(delivery().secrets_digest()),
            ..Default::default()
        },
    }
}

#[track_caller]
fn check(desired: &DesiredInstance, observed: &ObservedInstance, expected: &str) {
    assert_eq!(plan(desired, observed, NOW).to_string(), expected);
}

#[test]
fn an_empty_host_pulls_first() {
    check(&present(spec()), &ObservedInstance::default(), "pull-image openclaw:1\n= pulling");
}

#[test]
fn without_its_firewall_nothing_is_started_and_nothing_stopped() {
    let observed = ObservedInstance { image_present: true, ..Default::default() };
    check(
        &present(spec()),
        &observed,
        "create-network claw-i0 10.201.1.0/24 | deliver-files openclaw.json | write-secrets | publish-proxy demo.claw.localhost -> 10.201.1.2:18789
create-container claw-demo image=openclaw:1 memory=2048MiB cpu=2000m address=10.201.1.2
= applying",
    );
    let waiting = "= applying, until the firewall is ready: waiting for the firewall";
    let uncovered = |state| ObservedInstance { firewalled: false, ..settled(&spec(), state) };
    check(&present(spec()), &uncovered(ContainerState::Created), waiting);
    let restart = present(InstanceSpec { restarts: 1, ..spec() });
    check(&restart, &uncovered(up(600)), waiting);
    let rebuild = present(InstanceSpec { rebuilds: 1, ..spec() });
    check(&rebuild, &uncovered(up(600)), waiting);
    check(&present(spec()), &uncovered(up(600)), "= running");
}

#[test]
fn with_the_image_everything_is_made() {
    let observed = ObservedInstance { image_present: true, firewalled: true, ..Default::default() };
    check(
        &present(spec()),
        &observed,
        "create-network claw-i0 10.201.1.0/24 | deliver-files openclaw.json | write-secrets | publish-proxy demo.claw.localhost -> 10.201.1.2:18789
create-container claw-demo image=openclaw:1 memory=2048MiB cpu=2000m address=10.201.1.2
start-container
= applying",
    );
}

#[test]
fn a_settled_instance_needs_nothing() {
    let observed = settled(&spec(), up(90));
    check(&present(spec()), &observed, "= running");
    assert!(plan(&present(spec()), &observed, NOW).is_converged());
}

#[test]
fn a_failed_pull_waits() {
    let mut observed = ObservedInstance::default();
    observed.record.pull_not_before = Some(NOW.after(Duration::from_secs(5)));
    check(
        &present(spec()),
        &observed,
        "= pulling, until 1005000ms: the image openclaw:1 could not be pulled",
    );
}

#[test]
fn a_new_image_is_pulled_while_the_old_container_serves() {
    let new = InstanceSpec { image: ImageRef::parse("openclaw:2").expect("valid"), ..spec() };
    let mut observed = settled(&spec(), up(90));
    observed.image_present = false;
    check(&present(new.clone()), &observed, "pull-image openclaw:2\n= pulling");
    observed.image_present = true;
    check(
        &present(new),
        &observed,
        "stop-container 0123456789ab grace=330s reason=replacement
remove-container 0123456789ab
create-container claw-demo image=openclaw:2 memory=2048MiB cpu=2000m address=10.201.1.2
start-container
= applying",
    );
}

#[test]
fn cpu_changes_in_place_and_memory_does_not() {
    let mut fast = spec();
    fast.resources.cpu = CpuMillis::from_millis(4000).expect("in range");
    let observed = settled(&spec(), up(90));
    check(&present(fast), &observed, "update-limits 0123456789ab cpu=4000m pids=512\n= applying");
    let mut big = spec();
    big.resources.memory = Memory::from_bytes(4096 * MIB).expect("in range");
    let text = plan(&present(big), &observed, NOW).to_string();
    assert!(text.contains("memory=4096MiB"), "{text}");
}

#[test]
fn configuration_is_delivered_without_a_restart_and_secrets_with_one() {
    let mut observed = settled(&spec(), up(90));
    observed.files = None;
    check(&present(spec()), &observed, "deliver-files openclaw.json\n= applying");
    let mut observed = settled(&spec(), up(90));
    observed.secrets = Some(Digest::of(b"old"));
    observed.record.started_with_secrets = Some(Digest::of(b"old"));
    check(
        &present(spec()),
        &observed,
        "write-secrets
stop-container 0123456789ab grace=330s reason=restart
start-container
= applying",
    );
}

#[test]
fn restarts_and_rebuilds_are_counters() {
    let observed = settled(&spec(), up(90));
    check(
        &present(InstanceSpec { restarts: 1, ..spec() }),
        &observed,
        "stop-container 0123456789ab grace=330s reason=restart\nstart-container\n= applying",
    );
    let text = plan(&present(InstanceSpec { rebuilds: 1, ..spec() }), &observed, NOW).to_string();
    assert!(
        text.starts_with("stop-container 0123456789ab grace=330s reason=replacement"),
        "{text}"
    );
}

#[test]
fn a_dead_container_is_back_at_once_then_slower() {
    let exit = Exit { code: 137, oom: true, at: NOW };
    let mut observed = settled(&spec(), ContainerState::Exited(exit));
    check(&present(spec()), &observed, "start-container\n= applying");
    let digest = container_digest(&present(spec()), &spec());
    let mut history = RestartHistory::default();
    for _ in 0..2 {
        history = history.with_failure(digest, NOW);
    }
    observed.record.history = history.clone();
    check(
        &present(spec()),
        &observed,
        "= backing_off, until 1001000ms: killed for want of memory; 2 failures in 10 minutes",
    );
    for _ in 0..4 {
        history = history.with_failure(digest, NOW);
    }
    observed.record.history = history;
    check(
        &present(spec()),
        &observed,
        "= crash_loop, until 1300000ms: killed for want of memory; 6 failures in 10 minutes, one attempt every 5 minutes from now on",
    );
    let other = InstanceSpec { rebuilds: 1, ..spec() };
    assert!(
        !plan(&present(other), &observed, NOW).stages.is_empty(),
        "a new target is not blocked"
    );
}

#[test]
fn the_gate() {
    let mut observed = settled(&spec(), up(10));
    observed.health =
        Health { problem: Some("connection refused".to_owned()), ..Health::default() };
    check(&present(spec()), &observed, "= starting, gate until 1170000ms: connection refused");
    observed.health.problem = None;
    observed.health.healthy_since = Some(NOW);
    check(&present(spec()), &observed, "= starting, healthy until 1005000ms");
}

#[test]
fn a_start_that_takes_too_long_and_a_hung_gateway_are_ended() {
    let mut observed = settled(&spec(), up(180));
    observed.health =
        Health { problem: Some("connection refused".to_owned()), ..Health::default() };
    check(
        &present(spec()),
        &observed,
        "stop-container 0123456789ab grace=10s reason=startup deadline\n= unhealthy: connection refused",
    );
    let mut observed = settled(&spec(), up(600));
    observed.health.problem = Some("no answer".to_owned());
    observed.health.last_answer = Some(Timestamp::from_millis(NOW.millis() - 30_000));
    check(&present(spec()), &observed, "= unhealthy, answer until 1090000ms: no answer");
    observed.health.last_answer = Some(Timestamp::from_millis(NOW.millis() - 120_000));
    check(
        &present(spec()),
        &observed,
        "stop-container 0123456789ab grace=10s reason=hung\n= unhealthy: no answer",
    );
}

#[test]
fn a_draining_gateway_is_let_be() {
    let mut observed = settled(&spec(), up(600));
    observed.health.draining = true;
    observed.health.problem = Some("draining".to_owned());
    check(&present(spec()), &observed, "= unhealthy: the gateway is draining");
}

#[test]
fn stopped_means_stopped() {
    let stopped = InstanceSpec { run: RunState::Stopped, ..spec() };
    let observed = settled(&spec(), up(90));
    check(
        &present(stopped.clone()),
        &observed,
        "stop-container 0123456789ab grace=330s reason=wanted\n= applying",
    );
    let exit = Exit { code: 0, oom: false, at: NOW };
    check(&present(stopped), &settled(&spec(), ContainerState::Exited(exit)), "= stopped");
}

#[test]
fn a_paused_instance_is_down_and_held_by_a_snapshot() {
    let paused = present(InstanceSpec { run: RunState::Paused, ..spec() });
    check(
        &paused,
        &settled(&spec(), up(90)),
        "stop-container 0123456789ab grace=330s reason=wanted\n= applying",
    );
    let exit = Exit { code: 0, oom: false, at: NOW };
    let mut down = settled(&spec(), ContainerState::Exited(exit));
    check(
        &paused,
        &down,
        "= applying, until the snapshot is taken: taking the snapshot of the pause",
    );
    down.at_rest = RestSnapshot::Held;
    check(&paused, &down, "= paused");
    down.at_rest = RestSnapshot::GivenUp;
    check(&paused, &down, "= stopped: paused without a snapshot: it failed");
}

#[test]
fn removal_keeps_the_data() {
    check(
        &removed(),
        &settled(&spec(), up(90)),
        "stop-container 0123456789ab grace=30s reason=removal\n= removing",
    );
    let exit = Exit { code: 0, oom: false, at: NOW };
    let mut down = settled(&spec(), ContainerState::Exited(exit));
    check(&removed(), &down, "= removing, until the snapshot is taken: taking the final snapshot");
    down.at_rest = RestSnapshot::Held;
    check(
        &removed(),
        &down,
        "remove-container 0123456789ab
unpublish-proxy | remove-secrets
remove-network net0
set-data-aside
forget
= removing",
    );
    check(
        &removed(),
        &ObservedInstance::default(),
        "unpublish-proxy | remove-secrets\nset-data-aside\nforget\n= removing",
    );
}

#[test]
fn a_failed_step_is_not_repeated_at_once() {
    let mut observed = settled(&spec(), up(90));
    observed.files = None;
    observed.record.retry_not_before = Some(NOW.after(Duration::from_secs(1)));
    check(&present(spec()), &observed, "= failed, until 1001000ms: the last step failed");
}

#[test]
fn a_plan_never_shows_a_secret() {
    let mut desired = present(spec());
    if let Target::Present { delivery, .. } = &mut desired.target {
        delivery.secrets = Secret::new("T=hunter2".to_owned());
    }
    let made = plan(
        &desired,
        &ObservedInstance { image_present: true, firewalled: true, ..Default::default() },
        NOW,
    );
    assert!(!format!("{made} {made:?}").contains("hunter2"));
}

/// What a host does with a step, in the model.
fn apply(observed: &mut ObservedInstance, desired: &DesiredInstance, step: &Step, now: Timestamp) {
    match step {
        Step::PullImage { .. } => observed.image_present = true,
        Step::CreateNetwork { network } => {
            observed.network = Some(ObservedNetwork {
                id: "net1".to_owned(),
                subnet: network.subnet(),
                bridge: network.bridge(),
            });
        }
        Step::RemoveNetwork { .. } => observed.network = None,
        Step::DeliverFiles { digest, .. } => {
            observed.data_present = true;
            observed.files = Some(*digest);
        }
        Step::WriteSecrets { digest, .. } => observed.secrets = Some(*digest),
        Step::RemoveSecrets => observed.secrets = None,
        Step::CreateContainer { container } => {
            assert!(observed.container.is_none(), "never two containers on one data directory");
            assert!(observed.secrets.is_some() && observed.network.is_some());
            observed.container = Some(ObservedContainer {
                id: format!("c-{}", container.digest),
                spec_digest: Some(container.digest),
                generation: Some(container.generation),
                state: ContainerState::Created,
                nano_cpus: container.resources.cpu.nano(),
                pids_limit: container.resources.pids.count(),
                address: None,
            });
        }
        Step::StartContainer { secrets, restarts } => {
            let container = observed.container.as_mut().expect("started only if it exists");
            container.state = ContainerState::Running { since: now, pid: 1 };
            observed.health =
                Health { healthy_since: Some(now), last_answer: Some(now), ..Health::default() };
            observed.record.started_with_secrets = Some(*secrets);
            observed.record.restarts_done = *restarts;
        }
        Step::UnpauseContainer { .. } => {
            if let Some(container) = &mut observed.container {
                container.state = ContainerState::Running { since: now, pid: 1 };
            }
        }
        Step::StopContainer { .. } => {
            if let Some(container) = &mut observed.container {
                container.state = ContainerState::Exited(Exit { code: 0, oom: false, at: now });
            }
        }
        Step::RemoveContainer { .. } => {
            let up = observed.container.as_ref().is_some_and(is_up);
            assert!(!up, "a running container is never removed");
            observed.container = None;
        }
        Step::UpdateLimits { cpu, pids, .. } => {
            if let Some(container) = &mut observed.container {
                container.nano_cpus = cpu.nano();
                container.pids_limit = pids.count();
            }
        }
        Step::PublishProxy { .. } => observed.proxy_current = true,
        Step::UnpublishProxy => observed.proxy_current = false,
        Step::SetDataAside => {
            assert!(observed.container.is_none(), "data is in use while a container exists");
            observed.data_present = false;
            observed.files = None;
        }
        Step::CopyData { .. } | Step::MigrateData { .. } | Step::DropData { .. } => {
            panic!("only a change of version copies, migrates or drops data: {step}")
        }
        Step::Forget => {
            assert!(matches!(desired.target, Target::Removed));
            observed.record = crate::observed::Record::default();
        }
    }
}

fn any_state() -> impl Strategy<Value = ContainerState> {
    prop_oneof![
        Just(ContainerState::Created),
        Just(ContainerState::Paused),
        Just(up(5)),
        Just(up(500)),
        (0_i64..140, any::<bool>()).prop_map(|(code, oom)| ContainerState::Exited(Exit {
            code,
            oom,
            at: NOW
        })),
    ]
}

prop_compose! {
    fn any_observed()(
        flags in any::<[bool; 9]>(),
        state in any_state(),
        failures in 0_usize..8,
        healthy: bool,
    ) -> ObservedInstance {
        let [image, network, right_network, has_container, current, data, secrets, proxy, firewalled] = flags;
        let base = settled(&spec(), state);
        let mut observed = ObservedInstance {
            image_present: image,
            data_present: data,
            proxy_current: proxy,
            firewalled,
            ..base
        };
        if !network {
            observed.network = None;
        } else if !right_network && let Some(network) = &mut observed.network {
            network.subnet = "10.9.9.0/24".to_owned();
        }
        if !has_container {
            observed.container = None;
        } else if !current && let Some(container) = &mut observed.container {
            container.spec_digest = None;
        }
        if !secrets {
            observed.secrets = None;
            observed.record.started_with_secrets = None;
        }
        if !healthy {
            observed.health = Health::default();
        }
        let digest = container_digest(&present(spec()), &spec());
        for _ in 0..failures {
            observed.record.history = observed.record.history.with_failure(digest, NOW);
        }
        observed
    }
}

fn any_target() -> impl Strategy<Value = DesiredInstance> {
    prop_oneof![
        Just(removed()),
        Just(present(spec())),
        Just(present(InstanceSpec { run: RunState::Stopped, ..spec() })),
        Just(present(InstanceSpec { run: RunState::Paused, ..spec() })),
        Just(present(InstanceSpec { restarts: 3, ..spec() })),
        Just(present(InstanceSpec { rebuilds: 2, ..spec() })),
        Just(present(InstanceSpec { image: ImageRef::parse("x:2").expect("valid"), ..spec() })),
    ]
}

/// Runs plans against the model until nothing is left to do; every step may fail or be the last
/// before a crash, as `luck` says.
fn converge(desired: &DesiredInstance, observed: &mut ObservedInstance, luck: &[bool]) -> Plan {
    let mut now = NOW;
    let mut luck = luck.iter().copied();
    for _ in 0..200 {
        let made = plan(desired, observed, now);
        if made.is_converged() {
            return made;
        }
        if made.wait == Wait::Firewall {
            observed.firewalled = true;
            continue;
        }
        if made.wait == Wait::Snapshot {
            let down = !observed.container.as_ref().is_some_and(is_up);
            assert!(down, "a snapshot at rest is taken of what is down");
            observed.at_rest = RestSnapshot::Held;
            continue;
        }
        if made.stages.is_empty() {
            now = made.wake_at().expect("a plan that waits says until when");
            if !matches!(made.wait, Wait::Until { .. }) {
                observed.health.healthy_since = observed.health.healthy_since.or(Some(now));
                observed.health.last_answer = Some(now);
                now = now.after(Duration::from_secs(10));
            }
            continue;
        }
        'stages: for stage in &made.stages {
            for step in stage {
                if !luck.next().unwrap_or(true) {
                    break 'stages;
                }
                apply(observed, desired, step, now);
            }
        }
        if matches!(desired.target, Target::Removed)
            && observed.container.is_none()
            && !observed.data_present
        {
            return made;
        }
    }
    panic!("did not converge: {}", plan(desired, observed, now));
}

proptest! {
    #[test]
    fn every_plan_converges_whatever_fails(
        desired in any_target(),
        observed in any_observed(),
        luck in prop::collection::vec(prop::bool::weighted(0.7), 0..40),
    ) {
        let mut observed = observed;
        let last = converge(&desired, &mut observed, &luck);
        match &desired.target {
            Target::Removed => prop_assert!(observed.container.is_none() && !observed.data_present),
            Target::Present { spec, .. } => {
                let wanted = match spec.run {
                    RunState::Running => Phase::Running,
                    RunState::Paused if observed.data_present => Phase::Paused,
                    RunState::Stopped | RunState::Paused => Phase::Stopped,
                };
                prop_assert_eq!(last.phase, wanted);
                let running = observed.container.as_ref().is_some_and(is_up);
                prop_assert_eq!(running, spec.run == RunState::Running);
            }
        }
    }

    #[test]
    fn nothing_starts_before_its_firewall(desired in any_target(), observed in any_observed()) {
        let made = plan(&desired, &observed, NOW);
        let starts = made.stages.iter().flatten().any(|s| matches!(s, Step::StartContainer { .. }));
        prop_assert!(!starts || observed.firewalled, "{}", made);
    }

    #[test]
    fn planning_is_deterministic(desired in any_target(), observed in any_observed()) {
        prop_assert_eq!(plan(&desired, &observed, NOW), plan(&desired, &observed, NOW));
    }

    #[test]
    fn data_is_touched_only_by_a_removal(desired in any_target(), observed in any_observed()) {
        let made = plan(&desired, &observed, NOW);
        let touches = made.stages.iter().flatten().any(|s| matches!(s, Step::SetDataAside | Step::Forget));
        prop_assert!(!touches || desired.target == Target::Removed);
    }
}
