use proptest::prelude::*;

use super::*;
use crate::backup::BackupReport;
use crate::cutover::{Deployment, RefusedTarget};
use crate::data::DataGeneration;
use crate::name::{ImageRef, InstanceName};
use crate::observed::Exit;
use crate::report::{BackupSummary, BlockedTraffic};
use crate::stamp::Digest;

const NOW: Timestamp = Timestamp::from_millis(1_795_237_200_000);

fn name(text: &str) -> SnapshotName {
    SnapshotName::parse(text).expect("valid")
}

fn image() -> ImageRef {
    ImageRef::parse("a:1").expect("valid")
}

fn report(phase: Phase, generation: u64) -> InstanceReport {
    InstanceReport {
        name: InstanceName::parse("demo").expect("valid"),
        generation: Generation(generation),
        phase,
        message: String::new(),
        step: None,
        container_id: None,
        started_at: None,
        restart_count: 0,
        last_exit: None,
        healthy_since: None,
        ready: None,
        health_history: Vec::new(),
        usage: None,
        blocked: BlockedTraffic::default(),
        operation: None,
        active: None,
        refused: None,
        backup: BackupSummary::default(),
    }
}

fn up(phase: Phase, generation: u64) -> InstanceReport {
    let active = Some(Deployment { image: image(), data: DataGeneration::FIRST });
    InstanceReport { active, ..report(phase, generation) }
}

fn snapshot(text: &str, cause: SnapshotCause, taken: u64) -> SnapshotInfo {
    SnapshotInfo {
        name: name(text),
        id: Digest::of(text.as_bytes()),
        taken_at: NOW.after(Duration::from_secs(taken)),
        cause,
        image: image(),
        generation: Generation(1),
        files: 1,
        bytes: 1,
        added_bytes: 1,
        health: SnapshotHealth::Sound,
        offsite: false,
    }
}

fn here() -> Sight {
    Sight { online: true, silent: Duration::ZERO, report: None }
}

fn facts() -> Facts {
    Facts {
        now: NOW,
        run: RunState::Running,
        stop_grace: Duration::from_secs(330),
        source: here(),
        target: here(),
        work: Work::Idle,
        held: BackupReport::default().snapshots,
        arrived: false,
    }
}

fn at(stage: Stage) -> Migration {
    Migration { origin: Origin::Host, stage, since: NOW, tries: Tries::default() }
}

fn stopping_at() -> Migration {
    at(Stage::Stopping { generation: Generation(7) })
}

fn starting_at() -> Migration {
    let generation = Generation(9);
    at(Stage::Starting(Start { snapshot: name("pause-1"), restore: 3, generation }))
}

fn reverting_at(leftover: Leftover) -> Migration {
    let problem = "x".to_owned();
    at(Stage::Reverting { problem, generation: Generation(8), leftover })
}

#[track_caller]
fn check(migration: &Migration, facts: &Facts, expected: &Step) {
    assert_eq!(&course(migration, facts), expected);
}

fn later(duration: Duration) -> Facts {
    Facts { now: NOW.after(duration).after(Duration::from_secs(1)), ..facts() }
}

fn reverts(migration: &Migration, facts: &Facts) -> String {
    match course(migration, facts) {
        Step::Revert(problem) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_repository_is_sent_while_both_are_there() {
    let preparing = at(Stage::Preparing);
    check(&preparing, &facts(), &Step::Begin);
    let alone = Facts { target: Sight { online: false, ..here() }, ..facts() };
    check(&preparing, &alone, &Step::Wait);
    check(&preparing, &Facts { work: Work::Busy, ..facts() }, &Step::Wait);
    check(&preparing, &Facts { work: Work::Done, ..facts() }, &Step::Stop);
    let failed = Facts { work: Work::Failed("no".to_owned()), ..facts() };
    check(&preparing, &failed, &Step::Retry("no".to_owned()));
    let tried = preparing.tried("no".to_owned(), NOW);
    check(&tried, &facts(), &Step::Wait);
    check(&tried, &later(SHORTEST_PAUSE), &Step::Begin);
    let last = Migration { tries: Tries { failed: MOST_TRIES - 1, ..tried.tries }, ..tried };
    assert_eq!(reverts(&last, &failed), "8 attempts failed, the last one: no");
    assert!(reverts(&preparing, &later(CARRY_WITHIN)).starts_with("the repository did not reach"));
}

#[test]
fn attempts_are_further_and_further_apart() {
    let after = |failed| Tries { failed, problem: String::new(), at: NOW }.not_before().since(NOW);
    let seconds: Vec<u64> = (1..9).map(|failed| after(failed).as_secs()).collect();
    assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 300, 300]);
}

#[test]
fn only_a_snapshot_of_the_data_at_rest_will_do() {
    let rest = snapshot("pause-1", SnapshotCause::Pause, 10);
    let told = |report: InstanceReport, held: &[SnapshotInfo]| Facts {
        source: Sight { report: Some(report), ..here() },
        held: held.to_vec(),
        ..facts()
    };
    let exit = |seconds| {
        let at = NOW.after(Duration::from_secs(seconds));
        Some(Exit { code: 0, oom: false, at })
    };
    let paused = |seconds| InstanceReport { last_exit: exit(seconds), ..report(Phase::Paused, 7) };
    let sync = Step::Sync(name("pause-1"));
    check(&stopping_at(), &told(paused(9), std::slice::from_ref(&rest)), &sync);
    // The list is older than the report.
    check(&stopping_at(), &told(paused(11), std::slice::from_ref(&rest)), &Step::Wait);
    check(
        &stopping_at(),
        &told(report(Phase::Paused, 6), std::slice::from_ref(&rest)),
        &Step::Wait,
    );
    let others = [
        snapshot("nightly", SnapshotCause::Scheduled, 20),
        SnapshotInfo { health: SnapshotHealth::Damaged, ..rest.clone() },
    ];
    check(&stopping_at(), &told(paused(9), &others), &Step::Wait);
    check(&stopping_at(), &told(report(Phase::Running, 7), &[rest]), &Step::Wait);
    let failed = InstanceReport { message: "it failed".to_owned(), ..report(Phase::Stopped, 7) };
    assert_eq!(
        reverts(&stopping_at(), &told(failed, &[])),
        "the old host has no snapshot at rest: it failed"
    );
    assert!(
        reverts(&stopping_at(), &later(Duration::from_secs(330) + REST_WITHIN)).contains("rest")
    );
    let gone = Facts { source: Sight { silent: AWAY * 2, ..here() }, ..facts() };
    assert_eq!(reverts(&stopping_at(), &gone), "the old host went away");
}

#[test]
fn what_is_new_is_sent_and_it_starts() {
    let syncing = at(Stage::Syncing { snapshot: name("pause-1") });
    check(&syncing, &facts(), &Step::Begin);
    let start = Step::Start(name("pause-1"));
    check(&syncing, &Facts { work: Work::Done, ..facts() }, &start);
    let gone = Facts { target: Sight { silent: AWAY * 2, ..here() }, ..facts() };
    assert_eq!(reverts(&syncing, &gone), "the new host went away");
    assert!(reverts(&syncing, &later(SYNC_WITHIN)).starts_with("what is new"));
}

#[test]
fn a_copy_off_site_is_fetched_unless_its_host_comes_back() {
    let fetching = at(Stage::Fetching { snapshot: name("nightly") });
    let gone = Sight { online: false, silent: AWAY * 9, report: None };
    let facts = Facts { source: gone, ..facts() };
    check(&fetching, &facts, &Step::Begin);
    // Sent again until it is there.
    check(&fetching, &Facts { work: Work::Done, ..facts.clone() }, &Step::Begin);
    let arrived = Facts { arrived: true, ..facts };
    check(&fetching, &arrived, &Step::Start(name("nightly")));
    assert!(reverts(&fetching, &Facts { source: here(), ..arrived }).contains("is back"));
}

#[test]
fn it_belongs_to_the_new_host_once_it_is_confirmed_there() {
    let told = |report| Facts { target: Sight { report: Some(report), ..here() }, ..facts() };
    check(&starting_at(), &told(up(Phase::Running, 9)), &Step::Finish);
    check(&starting_at(), &told(up(Phase::Running, 8)), &Step::Wait);
    check(&starting_at(), &told(up(Phase::Starting, 9)), &Step::Wait);
    check(&starting_at(), &told(report(Phase::Running, 9)), &Step::Wait);
    let stopped = Facts { run: RunState::Stopped, ..told(up(Phase::Stopped, 9)) };
    check(&starting_at(), &stopped, &Step::Finish);
    let refused = |restore| {
        let problem = "exit 1".to_owned();
        let refused = RefusedTarget { image: image(), restore, rebuilds: 0, problem, at: NOW };
        InstanceReport { refused: Some(refused), ..report(Phase::Failed, 9) }
    };
    check(&starting_at(), &told(refused(2)), &Step::Wait);
    assert_eq!(
        reverts(&starting_at(), &told(refused(3))),
        "it did not come up on the new host: exit 1"
    );
    let gone = Facts { target: Sight { silent: AWAY * 2, ..here() }, ..facts() };
    assert_eq!(reverts(&starting_at(), &gone), "the new host went away");
    assert!(reverts(&starting_at(), &later(START_WITHIN)).starts_with("it did not come up"));
}

#[test]
fn going_back_ends_when_the_old_host_goes_on() {
    let told = |report| Facts { source: Sight { report: Some(report), ..here() }, ..facts() };
    let nothing = reverting_at(Leftover::Nothing);
    check(&nothing, &told(up(Phase::Running, 7)), &Step::Wait);
    check(&nothing, &told(up(Phase::Running, 8)), &Step::End);
    check(&nothing, &later(REVERT_WITHIN), &Step::End);
    let repository = reverting_at(Leftover::Repository);
    check(&repository, &told(up(Phase::Running, 8)), &Step::Begin);
    check(&repository, &Facts { work: Work::Done, ..facts() }, &Step::Cleaned);
    let away = Sight { online: false, ..here() };
    let target_gone = Facts { target: away, ..told(up(Phase::Running, 8)) };
    check(&repository, &target_gone, &Step::End);
}

fn phases() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![
        Phase::Running,
        Phase::Stopped,
        Phase::Paused,
        Phase::Starting,
        Phase::Failed,
    ])
}

prop_compose! {
    fn sights()(
        online in any::<bool>(),
        silent in 0_u64..900,
        phase in phases(),
        generation in 0_u64..12,
        is_active in any::<bool>(),
        has_report in any::<bool>(),
    ) -> Sight {
        let report = if is_active { up(phase, generation) } else { report(phase, generation) };
        let silent = if online { Duration::ZERO } else { Duration::from_secs(silent) };
        Sight { online, silent, report: has_report.then_some(report) }
    }
}

prop_compose! {
    fn any_facts()(
        source in sights(),
        target in sights(),
        work in 0_u8..4,
        arrived in any::<bool>(),
        holds in any::<bool>(),
        seconds in 0_u64..4000,
    ) -> (Facts, u64) {
        let work = match work {
            0 => Work::Idle,
            1 => Work::Busy,
            2 => Work::Done,
            _ => Work::Failed("no".to_owned()),
        };
        let held =
            holds.then(|| snapshot("pause-1", SnapshotCause::Pause, 0)).into_iter().collect();
        (Facts { source, target, work, arrived, held, ..facts() }, seconds)
    }
}

/// As whoever drives it stores it.
fn carried_out(migration: &Migration, step: Step, now: Timestamp) -> Migration {
    let generation = Generation(5);
    let stage = match step {
        Step::Wait | Step::Begin => return migration.clone(),
        Step::Retry(problem) => return migration.tried(problem, now),
        Step::Stop => Stage::Stopping { generation },
        Step::Sync(snapshot) => Stage::Syncing { snapshot },
        Step::Start(snapshot) => Stage::Starting(Start { snapshot, restore: 1, generation }),
        Step::Finish => match &migration.stage {
            Stage::Starting(start) => Stage::Done { snapshot: start.snapshot.clone() },
            other => panic!("finished from {other:?}"),
        },
        Step::Revert(problem) => {
            let leftover = migration.stage.leftover();
            Stage::Reverting { problem, generation, leftover }
        }
        Step::Cleaned => {
            let problem = migration.stage.problem().to_owned();
            Stage::Reverting { problem, generation, leftover: Leftover::Nothing }
        }
        Step::End => Stage::Reverted { problem: migration.stage.problem().to_owned() },
    };
    migration.enter(stage, now)
}

proptest! {
    /// Whatever hosts do, a migration ends, and one of the two hosts shall serve then; in between the old
    /// one is down only while the new one is about to take over.
    #[test]
    fn a_migration_ends_with_one_of_them_serving(
        offsite in any::<bool>(),
        moments in prop::collection::vec(any_facts(), 1..40),
    ) {
        let mut now = NOW;
        let first = if offsite {
            Stage::Fetching { snapshot: name("nightly") }
        } else {
            Stage::Preparing
        };
        let mut migration = Migration { since: now, ..at(first) };
        let quiet = (0..4000).map(|_| (facts(), 3600));
        for (facts, seconds) in moments.into_iter().chain(quiet) {
            now = now.after(Duration::from_secs(seconds));
            let step = course(&migration, &Facts { now, ..facts });
            let before = migration.stage.clone();
            migration = carried_out(&migration, step, now);
            if before.is_over() {
                prop_assert_eq!(&before, &migration.stage, "what is over stays");
                break;
            }
            if let Stage::Reverted { problem } = &migration.stage {
                prop_assert!(!problem.is_empty(), "it says why");
            }
            let down = migration.stage.pauses_source();
            prop_assert!(!down || !migration.stage.is_over());
        }
        prop_assert!(migration.stage.is_over(), "{:?}", migration.stage);
    }
}
