use std::fmt::Write as _;

use claw_proto::convert::timestamp_to_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;

use super::host::HostView;
use super::instance::InstanceView;
use super::snapshot::{RepositoryView, SnapshotView};
use super::*;
use crate::cli::Format;
use crate::output::Output;

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn at(seconds_ago: i64) -> Timestamp {
    Timestamp::from_millis(NOW.millis() - seconds_ago * 1000)
}

fn instance(name: &str) -> fleet::Instance {
    let digest = "0123456789abcdef".repeat(4);
    fleet::Instance {
        name: format!("instances/{name}"),
        uid: "u-1".to_owned(),
        host: "hosts/vps-1".to_owned(),
        spec: Some(fleet::InstanceSpec {
            image: format!("ghcr.io/openclaw/openclaw@sha256:{digest}"),
            tier: "balanced".to_owned(),
            run_state: 1,
            secrets: [("TOKEN".to_owned(), "must not show".to_owned())].into(),
            ..fleet::InstanceSpec::default()
        }),
        status: Some(fleet::InstanceStatus {
            phase: i32::from(node::Phase::Running),
            persisted: true,
            current: true,
            host_state: i32::from(fleet::HostState::Online),
            report: Some(node::InstanceReport {
                started_at: Some(timestamp_to_wire(at(7500))),
                restart_count: 2,
                ready: Some(true),
                last_exit: Some(node::Exit {
                    code: 137,
                    oom: true,
                    at: Some(timestamp_to_wire(at(7600))),
                }),
                usage: Some(node::Usage {
                    memory_bytes: 700 << 20,
                    memory_limit_bytes: 2 << 30,
                    pids: 29,
                    ..node::Usage::default()
                }),
                health_history: vec![node::HealthChange {
                    at: Some(timestamp_to_wire(at(7480))),
                    phase: i32::from(node::Phase::Running),
                    message: String::new(),
                }],
                ..node::InstanceReport::default()
            }),
            ..fleet::InstanceStatus::default()
        }),
        etag: "e1".to_owned(),
        create_time: Some(timestamp_to_wire(at(90_000))),
        ..fleet::Instance::default()
    }
}

fn host() -> fleet::Host {
    fleet::Host {
        name: "hosts/vps-1".to_owned(),
        labels: [("region".to_owned(), "eu".to_owned())].into(),
        cordoned: true,
        status: Some(fleet::HostStatus {
            state: i32::from(fleet::HostState::Offline),
            last_seen_time: Some(timestamp_to_wire(at(45))),
            agent_version: "0.1.0".to_owned(),
            resources: Some(node::HostResources {
                memory_total_bytes: 8 << 30,
                memory_available_bytes: 5 << 30,
                cpu_count: 4,
                cpu_permille: 123,
                load1_centi: 50,
                load5_centi: 7,
                load15_centi: 200,
                disk_total_bytes: 80 << 30,
                disk_available_bytes: 30 << 30,
                ..node::HostResources::default()
            }),
            runtime_problem: "docker cannot be reached".to_owned(),
            strays: vec!["old".to_owned()],
            ..fleet::HostStatus::default()
        }),
        etag: "h1".to_owned(),
        ..fleet::Host::default()
    }
}

fn printed<R: Resource>(format: Format, resources: &[R]) -> String {
    let mut out = Vec::new();
    Output { format, out: &mut out, now: NOW }.list(resources).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_list_of_instances() {
    let mut unreachable = instance("other");
    unreachable.status.as_mut().unwrap().host_state = i32::from(fleet::HostState::Offline);
    let mut stale = instance("stale");
    let status = stale.status.as_mut().unwrap();
    (status.current, status.report) = (false, None);
    let mut going = instance("going");
    going.delete_time = Some(timestamp_to_wire(NOW));
    let views = [instance("demo"), unreachable, stale, going].map(InstanceView::from);
    let expected = "\
NAME   HOST   PHASE                   READY  RESTARTS  MEMORY       UP    BACKUP  IMAGE                                          NOTE
demo   vps-1  running                 yes    2         700MiB/2GiB  2h5m  -       ghcr.io/openclaw/openclaw@sha256:0123456789ab  -
other  vps-1  running (host offline)  yes    2         700MiB/2GiB  2h5m  -       ghcr.io/openclaw/openclaw@sha256:0123456789ab  -
stale  vps-1  running (old spec)      -      0         -            -     -       ghcr.io/openclaw/openclaw@sha256:0123456789ab  -
going  vps-1  deleting                yes    2         700MiB/2GiB  2h5m  -       ghcr.io/openclaw/openclaw@sha256:0123456789ab  -
";
    assert_eq!(printed(Format::Table, &views), expected);
    assert_eq!(
        printed(Format::Name, &views),
        "instances/demo\ninstances/other\ninstances/stale\ninstances/going\n"
    );
}

#[test]
fn an_instance_alone() {
    let mut out = Vec::new();
    let view = InstanceView::from(instance("demo"));
    Output { format: Format::Table, out: &mut out, now: NOW }.one(&view).unwrap();
    let mut expected = String::new();
    for (name, value) in [
        ("name", "demo"),
        ("uid", "u-1"),
        ("host", "vps-1"),
        ("phase", "running"),
        ("ready", "yes"),
        ("persisted", "yes"),
        ("up", "2h5m"),
        ("restarts", "2"),
        ("last exit", "out of memory, status 137, at 2026-09-21T12:06:40Z"),
        ("memory", "700MiB/2GiB"),
        ("processes", "29"),
        ("oom kills", "0"),
        (
            "image",
            "ghcr.io/openclaw/openclaw@sha256:\
             0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ),
        ("tier", "balanced"),
        ("created", "2026-09-20T13:13:20Z"),
        ("etag", "e1"),
        ("health", "2026-09-21T12:08:40Z  running"),
    ] {
        writeln!(expected, "{name:<11}{value}").unwrap();
    }
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

/// What programs rely on: a change here breaks them.
#[test]
fn json_of_an_instance() {
    let digest = "0123456789abcdef".repeat(4);
    let view = InstanceView::from(instance("demo"));
    let expected = serde_json::json!({
        "kind": "Instance",
        "name": "demo",
        "uid": "u-1",
        "host": "vps-1",
        "spec": {
            "image": format!("ghcr.io/openclaw/openclaw@sha256:{digest}"),
            "tier": "balanced",
            "runState": "running",
            "secrets": {"TOKEN": ""},
        },
        "status": {
            "phase": "running",
            "persisted": true,
            "current": true,
            "hostState": "online",
            "startedAt": "2026-09-21T12:08:20Z",
            "restartCount": 2,
            "lastExit": {"code": 137, "oom": true, "at": "2026-09-21T12:06:40Z"},
            "ready": true,
            "usage": {
                "memoryBytes": 734_003_200_u64,
                "memoryLimitBytes": 2_147_483_648_u64,
                "cpuUsageUs": 0,
                "pids": 29,
                "oomKills": 0,
            },
            "healthHistory": [{"at": "2026-09-21T12:08:40Z", "phase": "running"}],
        },
        "etag": "e1",
        "createTime": "2026-09-20T13:13:20Z",
    });
    assert_eq!(serde_json::to_value(&view).unwrap(), expected);
}

/// Being updated, after an update was refused, with snapshots that are late.
fn changing(name: &str) -> fleet::Instance {
    let mut instance = instance(name);
    instance.revision = 12;
    let status = instance.status.as_mut().unwrap();
    let report = status.report.as_mut().unwrap();
    report.operation = Some(node::OperationReport {
        kind: "update".to_owned(),
        stage: "copying the data".to_owned(),
        permille: Some(456),
        since: Some(timestamp_to_wire(at(20))),
    });
    report.active = Some(node::Deployment { image: "example/a:1".to_owned(), data_generation: 4 });
    report.refused = Some(node::RefusedTarget {
        image: "example/a:2".to_owned(),
        restore: 0,
        rebuilds: 1,
        problem: "the gateway exited with 1".to_owned(),
        at: Some(timestamp_to_wire(at(600))),
    });
    report.backup = Some(node::BackupSummary {
        last_at: Some(timestamp_to_wire(at(93_600))),
        count: 9,
        overdue: true,
        problem: "no room".to_owned(),
    });
    instance
}

#[test]
fn operations_versions_and_snapshots_of_an_instance() {
    let view = InstanceView::from(changing("demo"));
    let expected = "\
NAME  HOST   PHASE    READY  RESTARTS  MEMORY       UP    BACKUP         IMAGE                                          NOTE
demo  vps-1  running  yes    2         700MiB/2GiB  2h5m  1d2h, overdue  ghcr.io/openclaw/openclaw@sha256:0123456789ab  update 45%; update refused
";
    assert_eq!(printed(Format::Table, std::slice::from_ref(&view)), expected);
    let mut out = Vec::new();
    Output { format: Format::Table, out: &mut out, now: NOW }.one(&view).unwrap();
    let text = String::from_utf8(out).unwrap();
    for line in [
        "operation  update: copying the data, 45%",
        "active     example/a:1 on gen-4",
        "refused    update to example/a:2 at 2026-09-21T14:03:20Z: the gateway exited with 1",
        "hint       give it another image, or try again with `clawctl rebuild demo`",
        "backup     9 snapshots, the newest 1d2h ago, overdue, problem: no room",
        "revision   12",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
    let status = serde_json::to_value(&view).unwrap()["status"].clone();
    let expected = serde_json::json!({
        "kind": "update",
        "stage": "copying the data",
        "permille": 456,
        "since": "2026-09-21T14:13:00Z",
    });
    assert_eq!(status["operation"], expected);
    let expected = serde_json::json!({"image": "example/a:1", "dataGeneration": 4});
    assert_eq!(status["active"], expected);
    let expected = serde_json::json!({
        "image": "example/a:2",
        "restore": 0,
        "rebuilds": 1,
        "problem": "the gateway exited with 1",
        "at": "2026-09-21T14:03:20Z",
    });
    assert_eq!(status["refused"], expected);
    let expected = serde_json::json!({
        "lastTime": "2026-09-20T12:13:20Z",
        "count": 9,
        "overdue": true,
        "problem": "no room",
    });
    assert_eq!(status["backup"], expected);
}

/// What programs rely on: a change here breaks them.
#[test]
fn json_of_a_snapshot_and_its_repository() {
    let snapshot = fleet::Snapshot {
        name: "instances/demo/snapshots/scheduled-1790000000".to_owned(),
        instance_uid: "u-1".to_owned(),
        state: fleet::SnapshotState::Ready.into(),
        cause: node::SnapshotCause::Scheduled.into(),
        create_time: Some(timestamp_to_wire(NOW)),
        image: "example/a:1".to_owned(),
        generation: 5,
        revision: 3,
        files: 7,
        bytes: 8,
        added_bytes: 9,
        restic_id: "ab".repeat(32),
        problem: String::new(),
        offsite: true,
    };
    let expected = serde_json::json!({
        "name": "scheduled-1790000000",
        "instance": "demo",
        "instanceUid": "u-1",
        "state": "ready",
        "cause": "scheduled",
        "createTime": "2026-09-21T14:13:20Z",
        "image": "example/a:1",
        "generation": 5,
        "revision": 3,
        "files": 7,
        "bytes": 8,
        "addedBytes": 9,
        "resticId": "ab".repeat(32),
        "offsite": true,
    });
    assert_eq!(serde_json::to_value(SnapshotView::from(snapshot)).unwrap(), expected);
    let time = || Some(timestamp_to_wire(NOW));
    let repository = fleet::SnapshotRepository {
        instance_uid: "u-1".to_owned(),
        host: "hosts/vps-1".to_owned(),
        stored_bytes: 1,
        next_due_time: time(),
        overdue: true,
        problem: "no room".to_owned(),
        verify_time: time(),
        drill_time: time(),
        report_time: time(),
        escrowed: true,
        delete_time: None,
        offsite: Some(fleet::RepositoryOffsite {
            path: "fleet/vps-1/demo/0".to_owned(),
            copy_time: time(),
            ..Default::default()
        }),
    };
    let at = "2026-09-21T14:13:20Z";
    let expected = serde_json::json!({
        "host": "vps-1",
        "storedBytes": 1,
        "nextDueTime": at,
        "overdue": true,
        "problem": "no room",
        "verifyTime": at,
        "drillTime": at,
        "offsite": {"path": "fleet/vps-1/demo/0", "copyTime": at, "overdue": false},
        "reportTime": at,
        "escrowed": true,
    });
    assert_eq!(serde_json::to_value(RepositoryView::from(repository)).unwrap(), expected);
}

#[test]
fn hosts() {
    let view = HostView::from(host());
    let expected = "\
NAME   STATE              SEEN  AGENT  MEMORY     CPU       DISK         UP  NOTE
vps-1  offline, cordoned  45s   0.1.0  3GiB/8GiB  12% of 4  50GiB/80GiB  0s  docker cannot be reached; strays: old
";
    assert_eq!(printed(Format::Table, std::slice::from_ref(&view)), expected);
    let value = serde_json::to_value(&view).unwrap();
    assert_eq!(value["status"]["state"], "offline");
    assert_eq!(value["status"]["resources"]["load5Centi"], 7);
    assert_eq!(value["kind"], "Host");
}

#[test]
fn yaml_can_be_applied_again() {
    let views = [InstanceView::from(changing("demo")), InstanceView::from(instance("b"))];
    let mut text = printed(Format::Yaml, &views);
    text.push_str("---\n");
    text.push_str(&printed(Format::Yaml, &[HostView::from(host())]));
    assert!(!text.contains("must not show"), "{text}");
    let documents = crate::file::parse(std::path::Path::new("x.yaml"), &text).unwrap();
    assert_eq!(documents.len(), 3);
}

#[test]
fn enums_that_are_not_known_are_shown_as_numbers() {
    assert_eq!(instance::phase_text(i32::from(node::Phase::CrashLoop)), "crash-loop");
    assert_eq!(instance::phase_text(0), "");
    assert_eq!(instance::phase_text(99), "unknown-99");
}

#[test]
fn sizes_for_people() {
    for (bytes, expected) in [
        (0, "0B"),
        (1023, "1023B"),
        (1536, "1.5KiB"),
        (700 << 20, "700MiB"),
        ((3 << 30) / 2, "1.5GiB"),
        (123 << 30, "123GiB"),
    ] {
        assert_eq!(size(bytes), expected);
    }
}
