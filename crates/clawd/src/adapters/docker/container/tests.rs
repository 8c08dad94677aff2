use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::address::{AddressPool, Slot};
use claw_core::name::{ImageRef, InstanceName};
use claw_core::spec::Resources;
use claw_core::unit::{MIB, Memory};

use super::*;

pub(in super::super) fn plan() -> ContainerPlan {
    let network = AddressPool::STANDARD.network(Slot::new(0).unwrap());
    ContainerPlan {
        instance: InstanceName::parse("demo").unwrap(),
        generation: Generation(7),
        digest: Digest::of(b"spec"),
        name: "claw-demo".to_owned(),
        hostname: "demo".to_owned(),
        image: ImageRef::parse("openclaw:2026.9.6").unwrap(),
        env: BTreeMap::from([("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x=y".to_owned())]),
        resources: Resources {
            memory: Memory::from_bytes(1024 * MIB).unwrap(),
            cpu: CpuMillis::from_millis(1500).unwrap(),
            pids: PidsLimit::from_count(512).unwrap(),
        },
        network: "claw-demo".to_owned(),
        address: network.container(),
        dns: network.gateway(),
        data: claw_core::data::DataGeneration::FIRST,
        state_dir: "/home/node/.openclaw",
        stop_grace: Duration::from_secs(330),
    }
}

#[test]
fn a_container_is_described() {
    let mounts = Mounts {
        data: "/var/lib/clawd/instances/demo/gen-1".into(),
        secrets: "/run/clawd/secrets/demo/.env".into(),
    };
    let body = serde_json::to_value(create_body(&plan(), &mounts)).unwrap();
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../golden/create.json")).unwrap();
    assert_eq!(body, golden, "{body:#}");
}

/// What Docker 20.10 answers, shortened.
fn answer(state: &str) -> ContainerInspectResponse {
    let digest = Digest::of(b"spec");
    serde_json::from_str(&format!(
        r#"{{"Id": "abc", "Name": "/claw-demo", "State": {state},
            "Config": {{"Labels": {{"dev.claw.instance": "demo", "dev.claw.generation": "7",
                "dev.claw.spec-digest": "{digest}"}}, "ExposedPorts": {{"18789/tcp": {{}}}}}},
            "HostConfig": {{"NanoCpus": 1500000000, "PidsLimit": 512}},
            "NetworkSettings": {{"Networks": {{"claw-demo": {{"IPAddress": "10.201.1.2"}}}}}}}}"#
    ))
    .unwrap()
}

#[track_caller]
fn state_of(state: &str) -> ContainerState {
    observed(answer(state), &OomLog::default()).unwrap().state
}

const STARTED: &str =
    r#""StartedAt": "2026-01-02T03:04:05.678901234Z", "FinishedAt": "2026-01-02T04:05:06.7+01:00""#;

#[test]
fn a_container_is_read() {
    let running = format!(r#"{{"Status": "running", "Pid": 4711, "ExitCode": 0, {STARTED}}}"#);
    let found = observed(answer(&running), &OomLog::default()).unwrap();
    let since = Timestamp::from_millis(1_767_323_045_678);
    assert_eq!(
        found,
        ObservedContainer {
            id: "abc".to_owned(),
            spec_digest: Some(Digest::of(b"spec")),
            generation: Some(Generation(7)),
            state: ContainerState::Running { since, pid: 4711 },
            nano_cpus: 1_500_000_000,
            pids_limit: 512,
            address: Some("10.201.1.2".parse().unwrap()),
        }
    );
    let bare = ContainerInspectResponse { id: Some("x".to_owned()), ..Default::default() };
    assert_eq!(observed(bare, &OomLog::default()), None);
}

#[test]
fn states() {
    let never = r#""StartedAt": "0001-01-01T00:00:00Z", "FinishedAt": "0001-01-01T00:00:00Z""#;
    let created = format!(r#"{{"Status": "created", {never}}}"#);
    assert_eq!(state_of(&created), ContainerState::Created);
    assert_eq!(state_of(r#"{"Status": "paused"}"#), ContainerState::Paused);
    let at = Timestamp::from_millis(1_767_323_106_700);
    let exited =
        format!(r#"{{"Status": "exited", "ExitCode": 78, "OOMKilled": false, {STARTED}}}"#);
    assert_eq!(state_of(&exited), ContainerState::Exited(Exit { code: 78, oom: false, at }));
}

#[test]
fn an_end_for_want_of_memory_needs_sigkill_and_a_witness() {
    let exited = |code: i64, flag: bool| {
        format!(r#"{{"Status": "exited", "ExitCode": {code}, "OOMKilled": {flag}, {STARTED}}}"#)
    };
    let oom = |text: &str, event: Option<i64>| {
        let state: State = serde_json::from_str(text).unwrap();
        match super::state(&state, event.map(Timestamp::from_millis)) {
            ContainerState::Exited(exit) => exit.oom,
            other => panic!("{other:?}"),
        }
    };
    assert!(oom(&exited(137, true), None), "Docker's flag");
    assert!(!oom(&exited(137, false), None), "killed by somebody");
    assert!(oom(&exited(137, false), Some(1_767_323_100_000)), "an event of this run");
    assert!(!oom(&exited(137, false), Some(1_767_323_000_000)), "an event of an earlier run");
    assert!(!oom(&exited(1, true), None), "a child was killed, the gateway ended by itself");
}
