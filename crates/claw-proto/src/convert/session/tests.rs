//! What goes over the wire comes back the same; what a peer may not say is named.

use std::collections::BTreeSet;

use claw_core::cutover::{Deployment, RefusedTarget};
use claw_core::data::DataGeneration;
use claw_core::host::HostState;
use claw_core::name::{DomainName, EnvName, ImageRef, Origin, StatePath};
use claw_core::report::{BackupSummary, FirewallReport, OperationReport};
use claw_core::spec::{HealthPolicy, InstanceSpec, Resources, RunState, Secret, WebPolicy};
use claw_core::time::Timestamp;
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use proptest::prelude::*;

use super::super::backup::tests::{backup_policy, offsite_storage, restore_order, update_policy};
use super::super::firewall::tests::{host_policy, network_policy};
use super::super::spec::{decode_assignment, encode_assignment_without_secrets};
use super::*;

fn stamp() -> Stamp {
    Stamp { epoch: Epoch(2), generation: Generation(7), digest: Digest::of(b"state") }
}

fn instance_name() -> impl Strategy<Value = InstanceName> {
    "[a-z][a-z0-9]{0,20}".prop_filter_map("valid", |text| InstanceName::parse(&text).ok())
}

prop_compose! {
    fn spec()(
        memory in 16_u64..4096,
        cpu in 50_u64..8000,
        pids in 32_u64..4096,
        run in prop::sample::select(vec![RunState::Running, RunState::Stopped, RunState::Paused]),
        counters in any::<(u64, u64)>(),
        value in "[^\0]{0,40}",
        config in ".{0,100}",
        seconds in 5_u64..600,
        network in network_policy(),
        backup in backup_policy(),
        update in update_policy(),
        restore in prop::option::of(restore_order()),
    ) -> InstanceSpec {
        InstanceSpec {
            image: ImageRef::parse("ghcr.io/openclaw/openclaw:2026.9.6").expect("valid"),
            resources: Resources {
                memory: Memory::from_bytes(memory * MIB).expect("in range"),
                cpu: CpuMillis::from_millis(cpu).expect("in range"),
                pids: PidsLimit::from_count(pids).expect("in range"),
            },
            run,
            restarts: counters.0,
            rebuilds: counters.1,
            env: [(EnvName::parse("A").expect("valid"), value.clone())].into(),
            secrets: [(EnvName::parse("B").expect("valid"), Secret::new(value.clone()))].into(),
            config,
            files: [(StatePath::parse("workspace/X.md").expect("valid"), value)].into(),
            web: WebPolicy {
                hostnames: [DomainName::parse("a.example").expect("valid")].into(),
                allowed_origins: [Origin::parse("https://a.example").expect("valid")].into(),
            },
            network,
            health: HealthPolicy {
                startup_deadline: Duration::from_secs(seconds),
                min_healthy: Duration::from_secs(seconds),
                hang_deadline: Duration::from_secs(seconds),
            },
            stop_grace: Duration::from_secs(seconds),
            backup,
            update,
            restore,
        }
    }
}

proptest! {
    #[test]
    fn host_states_round_trip(
        instances in prop::collection::btree_map(instance_name(), spec(), 0..4),
        confirm_removal in prop::collection::btree_set(instance_name(), 0..4),
        firewall in host_policy(),
        offsite in prop::option::of(offsite_storage()),
    ) {
        let state = HostState { firewall, instances, confirm_removal, offsite };
        let bytes = encode_host_state(&state);
        prop_assert_eq!(&encode_host_state(&state), &bytes, "the encoding is deterministic");
        prop_assert_eq!(decode_host_state(&bytes), Ok(state));
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_host_state(&bytes);
        if let Ok(status) = crate::decode::<node::Status>(&bytes) {
            let _ = status_from_wire(&status);
        }
        if let Ok(hello) = crate::decode::<node::Hello>(&bytes) {
            let _ = hello_from_wire(&hello);
        }
    }

    #[test]
    fn assignments_in_snapshots_hold_no_secret(name in instance_name(), spec in spec()) {
        let bytes = encode_assignment_without_secrets(&name, &spec);
        let mut bare = spec;
        bare.secrets.values_mut().for_each(|value| *value = Secret::new(String::new()));
        prop_assert_eq!(decode_assignment(&bytes), Ok((name, bare)));
    }

    #[test]
    fn timestamps_round_trip(millis in -1_000_000_000_000_i64..10_000_000_000_000) {
        let at = Timestamp::from_millis(millis);
        prop_assert_eq!(timestamp_from_wire(&timestamp_to_wire(at)), at);
    }
}

#[test]
fn statuses_round_trip() {
    let name = InstanceName::parse("demo").expect("valid");
    let at = Timestamp::from_millis(1_234);
    let report = InstanceReport {
        name: name.clone(),
        generation: Generation(7),
        phase: Phase::CrashLoop,
        message: "why".to_owned(),
        step: Some(("start-container".to_owned(), at)),
        container_id: Some("abc".to_owned()),
        started_at: Some(at),
        restart_count: 3,
        last_exit: Some(Exit { code: 137, oom: true, at }),
        healthy_since: Some(at),
        ready: Some(false),
        health_history: vec![HealthChange { at, phase: Phase::Running, message: String::new() }],
        usage: Some(Usage {
            memory_bytes: 1,
            memory_limit_bytes: 2,
            cpu_usage_us: 3,
            pids: 4,
            oom_kills: 5,
        }),
        blocked: BlockedTraffic { outside: 9, ..BlockedTraffic::default() },
        operation: Some(OperationReport {
            kind: "update",
            stage: "copying the data".to_owned(),
            permille: Some(1000),
            since: at,
        }),
        active: Some(Deployment {
            image: ImageRef::parse("a:1").expect("valid"),
            data: DataGeneration::FIRST.next(),
        }),
        refused: Some(RefusedTarget {
            image: ImageRef::parse("a:2").expect("valid"),
            restore: 3,
            rebuilds: 4,
            problem: "it crashed".to_owned(),
            at,
        }),
        backup: BackupSummary { last_at: Some(at), count: 3, ..BackupSummary::default() },
    };
    let status = StatusReport {
        persisted: Some(stamp()),
        applying: Some((Generation(8), at)),
        last_result: Some(Generation(6)),
        refused: Some((stamp(), "because".to_owned())),
        instances: [(name, report)].into(),
        runtime_problem: Some("gone".to_owned()),
        firewall: FirewallReport { repairs: 3, ..FirewallReport::default() },
    };
    assert_eq!(status_from_wire(&status_to_wire(&status)), Ok(status));
}

#[test]
fn what_an_instance_may_not_report_is_named() {
    let lies = node::InstanceReport {
        name: "demo".to_owned(),
        phase: node::Phase::Running.into(),
        operation: Some(node::OperationReport { permille: Some(1001), ..Default::default() }),
        active: Some(node::Deployment::default()),
        refused: Some(node::RefusedTarget::default()),
        ..Default::default()
    };
    let fields: Vec<String> = instance_report_from_wire(&lies)
        .expect_err("lies")
        .0
        .into_iter()
        .map(|v| v.field)
        .collect();
    let expected =
        ["operation.permille", "active.image", "active.data_generation", "refused.image"];
    assert_eq!(fields, expected);

    let newer = node::OperationReport { kind: "teleport".to_owned(), ..Default::default() };
    let report =
        node::InstanceReport { operation: Some(newer), active: None, refused: None, ..lies };
    let report = instance_report_from_wire(&report).expect("newer agents are understood");
    assert_eq!(report.operation.map(|operation| operation.kind), Some("other"));
}

#[test]
fn up_and_paused_at_once_is_refused() {
    let instance = node::InstanceAssignment {
        name: "demo".to_owned(),
        image: "a:1".to_owned(),
        memory_bytes: 1 << 30,
        cpu_millis: 1000,
        pids_limit: 100,
        running: true,
        paused: true,
        ..Default::default()
    };
    let state = node::HostState { instances: vec![instance], ..Default::default() };
    let faults = decode_host_state(&crate::encode(&state)).expect_err("it cannot be both");
    assert_eq!(faults.to_string(), "instances[0].paused: must not be set together with running");
}

#[test]
fn peers_that_know_no_firewall_are_understood() {
    let old = node::Status::default();
    let status = status_from_wire(&old).expect("valid");
    assert_eq!(status.firewall, FirewallReport::default());
    // The bytes of a state without policies are those of old coordinators: digests stay.
    assert_eq!(encode_host_state(&HostState::default()).len(), 0);
}

#[test]
fn hellos_round_trip_and_lies_are_named() {
    let hello = Hello {
        host: HostName::parse("h1").expect("valid"),
        boot_id: "b".to_owned(),
        agent_version: "0.1.0".to_owned(),
        protocol_version: 1,
        persisted: Some(stamp()),
        inventory: BTreeSet::from([InstanceName::parse("demo").expect("valid")]),
        docker_version: None,
        kernel_version: "6.1".to_owned(),
        oldest_event: 1,
        next_event: 9,
    };
    let wire = hello_to_wire(&hello);
    assert_eq!(hello_from_wire(&wire), Ok(hello));
    let lies = node::Hello {
        host: "-".to_owned(),
        boot_id: String::new(),
        persisted: Some(node::Stamp::default()),
        inventory: vec!["X".to_owned()],
        oldest_event: 10,
        ..wire
    };
    let fields: Vec<String> =
        hello_from_wire(&lies).expect_err("lies").0.into_iter().map(|v| v.field).collect();
    let expected = [
        "hello.host",
        "hello.boot_id",
        "hello.persisted.digest",
        "hello.inventory[0]",
        "hello.next_event",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn events_and_resources_round_trip() {
    for (kind, _) in EventKind::ALL {
        let event = Event {
            sequence: 4,
            at: Timestamp::from_millis(5),
            instance: None,
            kind,
            severity: Severity::Warning,
            message: "m".to_owned(),
        };
        assert_eq!(event_from_wire(&event_to_wire(&event)), Ok(event));
    }
    let pressure = Pressure { some_avg10_centi: 1, full_avg10_centi: 2 };
    let resources = HostResources {
        memory_total_bytes: 1,
        load_centi: [1, 2, 3],
        pressure: Some([pressure; 3]),
        uptime: Duration::from_secs(5),
        ..HostResources::default()
    };
    assert_eq!(resources_from_wire(&resources_to_wire(&resources)), resources);
}

#[test]
fn every_phase_has_its_wire_value() {
    for (phase, _) in Phase::ALL {
        assert_ne!(phase_to_wire(phase), node::Phase::Unspecified, "{phase}");
    }
}
