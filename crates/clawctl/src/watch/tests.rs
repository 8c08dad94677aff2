use claw_proto::node::v1 as node;
use claw_proto::node::v1::Phase;

use super::*;

fn message(kind: fleet::WatchKind, name: &str, phase: Phase) -> fleet::WatchInstancesResponse {
    fleet::WatchInstancesResponse {
        kind: i32::from(kind),
        instance: Some(fleet::Instance {
            name: format!("instances/{name}"),
            status: Some(fleet::InstanceStatus {
                phase: i32::from(phase),
                current: true,
                host_state: i32::from(fleet::HostState::Online),
                ..fleet::InstanceStatus::default()
            }),
            ..fleet::Instance::default()
        }),
    }
}

fn synced() -> fleet::WatchInstancesResponse {
    fleet::WatchInstancesResponse { kind: i32::from(fleet::WatchKind::Synced), instance: None }
}

fn old_spec(mut message: fleet::WatchInstancesResponse) -> fleet::WatchInstancesResponse {
    let status = message.instance.as_mut().and_then(|instance| instance.status.as_mut());
    status.unwrap().current = false;
    message
}

fn progress(until: Until, names: &[&str]) -> Progress {
    Progress::new(Some(until.into()), &names.iter().map(ToString::to_string).collect())
}

/// Lines as `kind name phase`, and the verdict at the end.
#[track_caller]
fn check(
    mut progress: Progress,
    messages: Vec<fleet::WatchInstancesResponse>,
    expected: &str,
    verdict: &Verdict,
) {
    let changes = messages.into_iter().flat_map(|message| progress.observe(message));
    let lines: Vec<String> = changes
        .map(|change| {
            format!("{} {} {}", change.kind, change.instance.name, change.instance.state())
        })
        .collect();
    assert_eq!(lines.join("\n"), expected);
    assert_eq!(&progress.verdict(), verdict);
}

#[test]
fn running_is_reached_when_all_run_with_their_present_spec() {
    use fleet::WatchKind::{Changed, Current};
    check(
        progress(Until::Running, &["a", "b"]),
        vec![
            old_spec(message(Current, "a", Phase::Running)),
            message(Current, "b", Phase::Running),
            synced(),
            message(Changed, "b", Phase::Running),
        ],
        "current a running (old spec)\ncurrent b running",
        &Verdict::Waiting,
    );
    check(
        progress(Until::Running, &["a"]),
        vec![
            old_spec(message(Current, "a", Phase::CrashLoop)),
            synced(),
            message(Changed, "a", Phase::Starting),
            message(Changed, "a", Phase::Running),
        ],
        "current a crash-loop (old spec)\nchanged a starting\nchanged a running",
        &Verdict::Reached,
    );
}

#[test]
fn a_crash_loop_of_the_present_spec_is_hopeless() {
    check(
        progress(Until::Running, &["a"]),
        vec![message(fleet::WatchKind::Current, "a", Phase::CrashLoop)],
        "current a crash-loop",
        &Verdict::Hopeless { name: "a".to_owned(), why: "crash-loop".to_owned() },
    );
    check(
        progress(Until::Stopped, &["a"]),
        vec![message(fleet::WatchKind::Current, "a", Phase::CrashLoop)],
        "current a crash-loop",
        &Verdict::Waiting,
    );
}

#[test]
fn deleted_is_noticed_also_while_nobody_watched() {
    use fleet::WatchKind::{Current, Deleted};
    check(
        progress(Until::Deleted, &["a"]),
        vec![
            message(Current, "a", Phase::Removing),
            synced(),
            message(Deleted, "a", Phase::Removed),
        ],
        "current a removing\ndeleted a removed",
        &Verdict::Reached,
    );
    // The stream broke and came back without it.
    check(
        progress(Until::Deleted, &["a"]),
        vec![message(Current, "a", Phase::Removing), synced(), synced()],
        "current a removing\ndeleted a removing",
        &Verdict::Reached,
    );
    let mut never_seen = progress(Until::Deleted, &["a"]);
    assert_eq!(never_seen.absent("a"), None);
    assert_eq!(never_seen.verdict(), Verdict::Reached);
}

#[test]
fn what_is_pending_is_named() {
    let mut progress = progress(Until::Running, &["a", "b", "c"]);
    progress.observe(message(fleet::WatchKind::Current, "a", Phase::Pulling));
    progress.observe(message(fleet::WatchKind::Current, "b", Phase::Running));
    assert_eq!(progress.pending(), "a is pulling, nothing is known of c");
}

#[test]
fn nothing_is_waited_for_without_a_condition() {
    let progress = Progress::new(None, &BTreeSet::new());
    check(
        progress,
        vec![message(fleet::WatchKind::Current, "a", Phase::Running)],
        "current a running",
        &Verdict::Waiting,
    );
}

/// What a host says beside the phase: image and data generation in force, operation, refused image.
fn version(
    mut message: fleet::WatchInstancesResponse,
    (image, data_generation): (&str, u32),
    operation: Option<&str>,
    refused: Option<&str>,
) -> fleet::WatchInstancesResponse {
    let instance = message.instance.as_mut().unwrap();
    instance.spec.get_or_insert_default().image = "a:2".to_owned();
    let report = instance.status.as_mut().unwrap().report.get_or_insert_default();
    report.active = Some(node::Deployment { image: image.to_owned(), data_generation });
    report.operation =
        operation.map(|kind| node::OperationReport { kind: kind.to_owned(), ..Default::default() });
    report.refused = refused.map(|image| node::RefusedTarget {
        image: image.to_owned(),
        problem: "it crashed".to_owned(),
        ..node::RefusedTarget::default()
    });
    message
}

#[track_caller]
fn check_verdict(goal: Goal, messages: Vec<fleet::WatchInstancesResponse>, expected: &str) {
    let mut progress = Progress::new(Some(goal), &BTreeSet::from(["a".to_owned()]));
    let verdicts: Vec<&str> = messages
        .into_iter()
        .map(|message| {
            progress.observe(message);
            match progress.verdict() {
                Verdict::Waiting => "waiting",
                Verdict::Reached => "reached",
                Verdict::Hopeless { .. } => "hopeless",
                Verdict::Refused { .. } => "refused",
            }
        })
        .collect();
    assert_eq!(verdicts.join(" "), expected);
}

#[test]
fn a_version_counts_when_it_is_in_force() {
    use fleet::WatchKind::{Changed, Current};
    let at = |kind, phase| message(kind, "a", phase);
    check_verdict(
        Until::Running.into(),
        vec![
            version(old_spec(at(Current, Phase::Running)), ("a:1", 1), None, None),
            version(at(Changed, Phase::Running), ("a:1", 1), Some("update"), None),
            version(at(Changed, Phase::CrashLoop), ("a:1", 1), Some("update"), None),
            version(at(Changed, Phase::Running), ("a:1", 1), None, None),
            version(at(Changed, Phase::Running), ("a:2", 2), Some("update"), None),
            version(at(Changed, Phase::Running), ("a:2", 2), Some("snapshot"), None),
        ],
        "waiting waiting waiting waiting waiting reached",
    );
}

#[test]
fn what_was_refused_before_counts_unless_it_is_tried_again() {
    use fleet::WatchKind::{Changed, Current};
    let at = |kind, phase| message(kind, "a", phase);
    let held = || version(at(Current, Phase::Running), ("a:1", 1), None, Some("a:2"));
    check_verdict(Until::Running.into(), vec![held()], "refused");
    check_verdict(
        Until::Running.into(),
        vec![
            old_spec(held()),
            version(at(Changed, Phase::Running), ("a:1", 1), Some("update"), Some("a:2")),
            held(),
            version(at(Changed, Phase::Running), ("a:2", 2), None, None),
        ],
        "waiting waiting waiting reached",
    );
    let stopped = version(at(Current, Phase::Stopped), ("a:1", 1), None, Some("a:2"));
    check_verdict(Until::Stopped.into(), vec![held(), stopped], "waiting reached");
}

#[test]
fn restored_data_counts_when_it_is_in_force() {
    use fleet::WatchKind::{Changed, Current};
    let at = |kind, phase| message(kind, "a", phase);
    let paused = |operation, generation| {
        version(at(Changed, Phase::Paused), ("a:2", generation), operation, None)
    };
    let before = version(at(Current, Phase::Paused), ("a:2", 3), None, None).instance.unwrap();
    let goal = Goal::restored(Until::Paused, &before.into());
    let all = vec![paused(None, 3), paused(Some("restore"), 3), paused(None, 4)];
    check_verdict(goal, all, "waiting waiting reached");
}
