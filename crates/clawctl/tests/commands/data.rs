//! Snapshots, pause, rollback, plans and recovery, against the fake of the API.

use claw_core::time::Timestamp;
use claw_proto::convert::timestamp_to_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::Phase;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::fake::Fake;
use crate::{check, message, with_instances};

const SNAPSHOT: &str = "instances/demo/snapshots/good";

fn snapshot(name: &str, state: fleet::SnapshotState) -> fleet::Snapshot {
    let is_listed = matches!(state, fleet::SnapshotState::Ready | fleet::SnapshotState::Damaged);
    fleet::Snapshot {
        name: name.to_owned(),
        instance_uid: "u-1".to_owned(),
        state: state.into(),
        cause: node::SnapshotCause::Requested.into(),
        image: if is_listed { "a:1".to_owned() } else { String::new() },
        files: 20_246,
        bytes: 3 << 29,
        added_bytes: 86 << 20,
        revision: 7,
        restic_id: if is_listed { "ab".repeat(32) } else { String::new() },
        ..fleet::Snapshot::default()
    }
}

fn listing(verified: i64, snapshots: Vec<fleet::Snapshot>) -> fleet::ListSnapshotsResponse {
    let at = |millis| Some(timestamp_to_wire(Timestamp::from_millis(millis)));
    fleet::ListSnapshotsResponse {
        snapshots,
        repository: Some(fleet::SnapshotRepository {
            instance_uid: "u-1".to_owned(),
            host: "hosts/vps-1".to_owned(),
            stored_bytes: 2 << 30,
            verify_time: at(verified),
            report_time: at(1_790_000_000_000),
            escrowed: true,
            ..fleet::SnapshotRepository::default()
        }),
        ..fleet::ListSnapshotsResponse::default()
    }
}

/// A message of a watch with something in the host's report.
fn reported(
    kind: fleet::WatchKind,
    phase: Phase,
    change: impl FnOnce(&mut node::InstanceReport),
) -> fleet::WatchInstancesResponse {
    let mut message = message(kind, "demo", phase);
    let status = message.instance.as_mut().unwrap().status.as_mut().unwrap();
    change(status.report.get_or_insert_default());
    message
}

fn operation(kind: &str, stage: &str, permille: Option<u32>) -> Option<node::OperationReport> {
    let (kind, stage) = (kind.to_owned(), stage.to_owned());
    Some(node::OperationReport { kind, stage, permille, since: None })
}

fn active(image: &str, data_generation: u32) -> Option<node::Deployment> {
    Some(node::Deployment { image: image.to_owned(), data_generation })
}

fn refused(image: &str, restore: u64) -> Option<node::RefusedTarget> {
    Some(node::RefusedTarget {
        image: image.to_owned(),
        restore,
        problem: "the gateway exited with 1".to_owned(),
        ..node::RefusedTarget::default()
    })
}

fn precondition(reason: &str, text: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "claw.fleet", std::collections::HashMap::new());
    Status::with_error_details(Code::FailedPrecondition, text, details)
}

/// Standard error without the times in front.
fn ways(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.split_once("s  ").map_or(line, |(_, rest)| rest)).collect()
}

#[tokio::test]
async fn a_snapshot_is_asked_for_and_named() {
    let fake = Fake::start().await;
    let outcome = fake.run("snapshot create demo good").await;
    check(&outcome, 0, &format!("{SNAPSHOT} is being taken\n"), "");
    check(&fake.run("snapshot create demo good -o name").await, 0, &format!("{SNAPSHOT}\n"), "");
    let json = fake.run("snapshot create instances/demo -o json").await.stdout;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["state"], "taking");
    let name = value["name"].as_str().unwrap();
    assert!(name.starts_with("requested-1"), "{name}");
    let calls = fake.calls();
    assert_eq!(calls[0], format!("create {SNAPSHOT}"));
    assert_eq!(calls[2], format!("create instances/demo/snapshots/{name}"));
    fake.state().failures.push_back(precondition("HOST_NOT_CONNECTED", "hosts/vps-1 is away"));
    check(
        &fake.run("snapshot create demo good").await,
        1,
        "",
        "error: cannot create instances/demo/snapshots/good: not in this state: hosts/vps-1 is away\n\
         hint: only its agent can do that: `clawctl host list` shows when it was seen last\n",
    );
}

#[tokio::test]
async fn a_snapshot_is_waited_for_and_its_way_shown() {
    use fleet::SnapshotState::{Ready, Taking};
    use fleet::WatchKind::{Changed, Current};
    let fake = Fake::start().await;
    {
        let mut state = fake.state();
        state.watches_stay = true;
        state.watches.push_back(vec![
            message(Current, "demo", Phase::Running),
            reported(Changed, Phase::Running, |report| {
                report.operation = operation("snapshot", "reading", Some(420));
            }),
            message(Changed, "demo", Phase::Running),
        ]);
        let answers = [Taking, Taking, Taking, Ready].map(|state| snapshot(SNAPSHOT, state));
        state.snapshots.insert(SNAPSHOT.to_owned(), answers.into());
    }
    let outcome = fake.run("snapshot create demo good --wait").await;
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert_eq!(outcome.stdout, format!("{SNAPSHOT} ready: 1.5GiB in 20246 files, 86MiB added\n"));
    assert_eq!(
        ways(&outcome.stderr),
        [
            "instances/demo/snapshots/good is being taken",
            "demo  running",
            "demo  running (snapshot: reading), 42%",
            "demo  running",
        ]
    );
}

#[tokio::test]
async fn a_snapshot_that_fails_says_why() {
    use fleet::SnapshotState::{Damaged, Failed, Taking};
    let fake = Fake::start().await;
    fake.state().watches_stay = true;
    let answer = |states: &[fleet::SnapshotState]| {
        let all = states.iter().map(|state| fleet::Snapshot {
            problem: if *state == Failed { "no room".to_owned() } else { String::new() },
            ..snapshot(SNAPSHOT, *state)
        });
        fake.state().snapshots.insert(SNAPSHOT.to_owned(), all.collect());
    };
    answer(&[Taking, Failed]);
    check(
        &fake.run("snapshot create demo good --wait -o name").await,
        1,
        "",
        "error: instances/demo/snapshots/good could not be taken: no room\n",
    );
    answer(&[Damaged]);
    check(
        &fake.run("snapshot create demo good --wait -o json").await,
        1,
        "",
        "error: instances/demo/snapshots/good is damaged\n",
    );
    answer(&[Taking]);
    check(
        &fake.run("snapshot create demo good --wait -o name --timeout 1s").await,
        1,
        "",
        "error: not taken within 1s: nothing is under way on instances/demo\n\
         hint: it may still get there: `clawctl get NAME` shows more, --timeout waits longer\n",
    );
}

#[tokio::test]
async fn snapshots_are_listed_with_their_repository() {
    use fleet::SnapshotState::{Ready, Taking};
    let fake = Fake::start().await;
    let all =
        ["s3", "s2", "s1"].map(|name| snapshot(&format!("instances/demo/snapshots/{name}"), Ready));
    fake.state().listings.push_back(listing(1_790_000_000_000, all.into()));
    let table = "\
SNAPSHOT  AGE  STATE  CAUSE      SIZE    ADDED  OFF-SITE  REVISION  IMAGE  NOTE
s3        -    ready  requested  1.5GiB  86MiB  no        7         a:1    -
s2        -    ready  requested  1.5GiB  86MiB  no        7         a:1    -
s1        -    ready  requested  1.5GiB  86MiB  no        7         a:1    -

host           vps-1
stored         2GiB
verified       2026-09-21T14:13:20Z
reported       2026-09-21T14:13:20Z
password kept  yes
";
    check(&fake.run("snapshot list demo").await, 0, table, "");
    assert_eq!(fake.calls(), ["snapshots of instances/demo"; 2]);
    let names = "instances/demo/snapshots/s3\ninstances/demo/snapshots/s2\n\
                 instances/demo/snapshots/s1\n";
    check(&fake.run("snapshot list demo --uid u-1 -o name").await, 0, names, "");
    assert_eq!(fake.calls(), ["snapshots of instances/demo u-1"; 2]);
    let json = fake.run("snapshot list demo -o json").await.stdout;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["snapshots"][2]["name"], "s1");
    assert_eq!(value["repository"]["storedBytes"], 2_u64 << 30);
    fake.state().snapshots.insert(SNAPSHOT.to_owned(), [snapshot(SNAPSHOT, Taking)].into());
    let one = fake.run("snapshot get demo good").await.stdout;
    let expected = "\
snapshot      good
instance      demo
instance uid  u-1
state         taking
cause         requested
revision      7
";
    assert_eq!(one, expected);
    check(
        &fake.run("snapshot get demo bad").await,
        1,
        "",
        "error: cannot get instances/demo/snapshots/bad: not found: instances/demo/snapshots/bad \
         does not exist\nhint: see what there is with `clawctl list` and `clawctl snapshot list \
         INSTANCE`\n",
    );
    let deleted = fake.run("snapshot delete demo good").await;
    check(&deleted, 0, &format!("{SNAPSHOT} deleting\n"), "");
}

#[tokio::test]
async fn a_verification_ends_with_a_verdict() {
    use fleet::SnapshotState::{Damaged, Ready};
    let fake = Fake::start().await;
    let outcome = fake.run("snapshot verify demo --data").await;
    check(&outcome, 0, "instances/demo: snapshots are being verified\n", "");
    assert_eq!(fake.calls(), ["verify instances/demo Data"]);
    fake.state().watches_stay = true;
    fake.state().listings.extend([listing(1, vec![]), listing(1, vec![]), listing(2, vec![])]);
    check(
        &fake.run("snapshot verify demo --wait").await,
        0,
        "instances/demo: snapshots are sound\n",
        "instances/demo: snapshots are being verified\n",
    );
    assert_eq!(fake.calls()[1], "verify instances/demo Structure");
    let sound = snapshot(SNAPSHOT, Ready);
    let damaged = snapshot(SNAPSHOT, Damaged);
    fake.state().listings =
        [listing(2, vec![sound]), listing(2, vec![damaged])].into_iter().collect();
    check(
        &fake.run("snapshot verify demo --wait -o json").await,
        1,
        "",
        "error: instances/demo has damaged snapshots: good\n\
         hint: a damaged one cannot be restored: take a new one with `clawctl snapshot create \
         demo`, and look at the host's disk\n",
    );
}

#[tokio::test]
async fn pause_and_resume() {
    use fleet::WatchKind::{Changed, Current};
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    check(&fake.run("pause demo").await, 0, "instances/demo will pause\n", "");
    check(&fake.run("instance resume demo").await, 0, "instances/demo will resume\n", "");
    fake.state().watches.push_back(vec![
        message(Current, "demo", Phase::Stopped),
        message(Changed, "demo", Phase::Paused),
    ]);
    let outcome = fake.run("pause demo --wait").await;
    assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "instances/demo paused\n"));
    assert_eq!(ways(&outcome.stderr), ["demo  stopped", "demo  paused"]);
    fake.state().failures.push_back(precondition("INSTANCE_NOT_PAUSED", "it is stopped"));
    check(
        &fake.run("resume demo").await,
        1,
        "",
        "error: cannot resume instances/demo: not in this state: it is stopped\n\
         hint: `clawctl start NAME` starts one that is stopped\n",
    );
}

#[tokio::test]
async fn apply_waits_for_a_paused_one_and_for_the_new_version() {
    use fleet::WatchKind::{Changed, Current};
    let fake = Fake::start().await;
    let file = "kind: Instance\nname: demo\nhost: vps-1\nspec: {image: a, runState: paused}\n";
    fake.state().watches.push_back(vec![message(Current, "demo", Phase::Paused)]);
    let outcome = fake.run_with("apply --wait -f -", file).await;
    assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "instances/demo created\n"));
    // Messages of the fake say that a:1 is wanted.
    fake.state().watches.push_back(vec![
        reported(Current, Phase::Running, |report| report.active = active("a:0", 1)),
        reported(Changed, Phase::Running, |report| {
            report.active = active("a:0", 1);
            report.operation = operation("update", "copying the data", Some(500));
        }),
        reported(Changed, Phase::Starting, |report| {
            report.active = active("a:0", 1);
            report.operation = operation("update", "waiting", None);
        }),
        reported(Changed, Phase::Running, |report| report.active = active("a:1", 2)),
    ]);
    let outcome = fake.run("watch demo --until running").await;
    assert_eq!(
        ways(&outcome.stdout),
        [
            "demo  running",
            "demo  running (update: copying the data), 50%",
            "demo  starting (update: waiting)",
            "demo  running",
        ]
    );
}

#[tokio::test]
async fn an_update_that_is_refused_ends_the_wait() {
    use fleet::WatchKind::{Changed, Current};
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    fake.state().watches.push_back(vec![
        reported(Current, Phase::Running, |report| {
            report.active = active("a:0", 1);
            report.operation = operation("update", "rehearsing", None);
        }),
        reported(Changed, Phase::Running, |report| {
            report.active = active("a:0", 1);
            report.refused = refused("a:1", 0);
        }),
    ]);
    let outcome = fake.run("rebuild demo --wait -o name").await;
    check(
        &outcome,
        1,
        "",
        "error: instances/demo was brought back to what it was: update to a:1: the gateway exited \
         with 1\n\
         hint: give it another image, or try again with `clawctl rebuild demo`\n",
    );
}

#[tokio::test]
async fn a_rollback_is_sent_planned_and_waited_for() {
    use fleet::WatchKind::{Changed, Current};
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    check(
        &fake.run("rollback demo --to-snapshot good").await,
        0,
        "instances/demo will be rolled back to snapshot good\n",
        "",
    );
    check(&fake.run("rollback demo --to-revision 3 -o name").await, 0, "instances/demo\n", "");
    assert_eq!(
        fake.calls(),
        [
            "roll back to Snapshot(\"instances/demo/snapshots/good\"): instances/demo",
            "roll back to Revision(3): instances/demo",
        ]
    );
    fake.state().plans.push_back(fleet::InstancePlan {
        changed_fields: vec!["image".to_owned()],
        replaces_container: true,
        interrupts: true,
        updates_image: true,
        restores_data: true,
        consequences: vec!["data comes back".to_owned(), "a snapshot is taken".to_owned()],
        ..fleet::InstancePlan::default()
    });
    check(
        &fake.run("rollback demo --to-snapshot good --plan").await,
        0,
        "instances/demo would be updated: image\n  \
         - interrupts the gateway: its container is replaced\n  \
         - data comes back\n  \
         - a snapshot is taken\n",
        "",
    );
    // The same image: that other data is in use tells that it is over.
    fake.state().watches.push_back(vec![
        reported(Current, Phase::Running, |report| report.active = active("a:1", 1)),
        reported(Changed, Phase::Running, |report| {
            report.active = active("a:1", 1);
            report.operation = operation("restore", "restoring", Some(1000));
        }),
        reported(Changed, Phase::Running, |report| report.active = active("a:1", 2)),
    ]);
    with_active(&fake, active("a:1", 1));
    let outcome = fake.run("rollback demo --to-snapshot good --wait").await;
    assert_eq!(
        (outcome.status, outcome.stdout.as_str()),
        (0, "instances/demo running as of snapshot good\n"),
        "{outcome:?}"
    );
    assert_eq!(ways(&outcome.stderr).last(), Some(&"demo  running"));
}

fn with_active(fake: &Fake, active: Option<node::Deployment>) {
    let mut state = fake.state();
    let status = state.instances.get_mut("instances/demo").unwrap().status.as_mut().unwrap();
    status.report.get_or_insert_default().active = active;
}

#[tokio::test]
async fn a_rollback_that_is_undone_fails() {
    use fleet::WatchKind::{Changed, Current};
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    with_active(&fake, active("a:1", 1));
    fake.state().watches.push_back(vec![
        reported(Current, Phase::Running, |report| {
            report.active = active("a:1", 1);
            report.operation = operation("restore", "restoring", None);
            report.refused = refused("a:1", 1);
        }),
        // What an earlier one left says nothing of this one.
        reported(Changed, Phase::Running, |report| {
            report.active = active("a:1", 1);
            report.refused = refused("a:1", 1);
        }),
        reported(Changed, Phase::Running, |report| {
            report.active = active("a:1", 1);
            report.refused = refused("a:1", 2);
        }),
    ]);
    let outcome = fake.run("rollback demo --to-snapshot good --wait -o json").await;
    check(
        &outcome,
        1,
        "",
        "error: instances/demo was brought back to what it was: restore with a:1: the gateway exited \
         with 1\n\
         hint: roll back to another snapshot, or try again with `clawctl rebuild demo`\n",
    );
    fake.state().failures.push_back(precondition("SNAPSHOT_DAMAGED", "it is damaged"));
    check(
        &fake.run("rollback demo --to-snapshot good").await,
        1,
        "",
        "error: cannot roll instances/demo back to snapshot good: not in this state: it is damaged\n\
         hint: choose another one: `clawctl snapshot list INSTANCE`\n",
    );
}

#[tokio::test]
async fn plans_of_files() {
    let fake = Fake::start().await;
    with_instances(&fake, &["demo", "same"]);
    fake.state().plans.extend([
        fleet::InstancePlan {
            changed_fields: vec!["image".to_owned(), "env".to_owned()],
            consequences: vec!["the image is pulled".to_owned()],
            ..fleet::InstancePlan::default()
        },
        fleet::InstancePlan::default(),
    ]);
    let document =
        |name: &str| format!("kind: Instance\nname: {name}\nhost: vps-1\nspec: {{image: b}}\n");
    let file = format!(
        "{}---\n{}---\n{}---\nkind: Host\nname: vps-1\n",
        document("demo"),
        document("same"),
        document("new")
    );
    check(
        &fake.run_with("plan -f -", &file).await,
        0,
        "hosts/vps-1 would be created\n\
         instances/demo would be updated: image, env\n  \
         - does not interrupt the gateway\n  \
         - the image is pulled\n\
         instances/same unchanged\n\
         instances/new would be created\n",
        "",
    );
    assert_eq!(fake.calls().iter().filter(|call| call.starts_with("plan instances/")).count(), 2);
    assert!(!fake.state().instances.contains_key("instances/new"));
    fake.state().plans.push_back(fleet::InstancePlan::default());
    let json = fake.run_with("plan -o json -f -", &document("demo")).await.stdout;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&value[0]["resource"], &value[0]["outcome"]),
        (&"instances/demo".into(), &"unchanged".into())
    );
    assert_eq!(value[0]["changedFields"], serde_json::json!([]));
    fake.state().plans.push_back(fleet::InstancePlan::default());
    let name = fake.run("rollback demo --to-revision 1 --plan -o name").await;
    check(&name, 0, "instances/demo\n", "");
    let moved = document("demo").replace("vps-1", "vps-2");
    let outcome = fake.run_with("plan -f -", &moved).await;
    assert!(outcome.stderr.contains("cannot move to hosts/vps-2"), "{outcome:?}");
}

#[tokio::test]
async fn a_plan_of_a_host_and_its_first_instance() {
    let fake = Fake::start().await;
    fake.state().hosts_matter = true;
    let instance = "kind: Instance\nname: new\nhost: vps-1\nspec: {image: b}\n";
    check(
        &fake.run_with("plan -f -", &format!("{instance}---\nkind: Host\nname: vps-1\n")).await,
        0,
        "hosts/vps-1 would be created\ninstances/new would be created\n",
        "",
    );
    check(
        &fake.run_with("plan -f -", instance).await,
        1,
        "",
        "error: cannot create instances/new: not found: hosts/vps-1 does not exist\n\
         hint: see what there is with `clawctl list` and `clawctl host list`\n",
    );
}

#[tokio::test]
async fn revisions_and_the_recovery_password() {
    let fake = Fake::start().await;
    let table = "\
REVISION  AGE  RUN STATE  TIER  IMAGE  SNAPSHOTS
3         -    running    -     a:3    s3
2         -    running    -     a:2    s2
1         -    running    -     a:1    s1
";
    check(&fake.run("revisions demo").await, 0, table, "");
    assert_eq!(fake.calls(), ["revisions of instances/demo"; 2]);
    let outcome = fake.run("recovery-password demo --uid u-1").await;
    assert_eq!((outcome.status, outcome.stdout.as_str()), (0, "recovery-secret\n"));
    assert!(outcome.stderr.starts_with("warning: this is a secret"), "{outcome:?}");
    assert!(
        outcome.stderr.contains("restic -r /var/lib/clawd/repo/demo snapshots\n"),
        "{outcome:?}"
    );
    assert!(!outcome.stderr.contains("recovery-secret"), "{outcome:?}");
    assert_eq!(fake.calls(), ["password of instances/demo u-1"]);
    let json = fake.run("recovery-password demo -o json").await;
    let value: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(value["recoveryPassword"], "recovery-secret");
    assert_eq!(json.stderr, "");
}
