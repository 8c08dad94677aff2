//! Which snapshots of an instance may be forgotten now.
//!
//! The policy decides ([`claw_snapshot::retention`]); beyond it stays what its cause holds for a while, what
//! something still needs ([`Needs`]), and whatever is damaged: what can be saved of that is for people to say.

use std::collections::BTreeSet;

use claw_core::backup::{Retention, SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::name::SnapshotName;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;
use claw_snapshot::retention::{Candidate, Hold, Policy, decide};

/// What needs snapshots beyond the policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Needs {
    /// The instance is down on purpose: its newest snapshot at rest stays.
    pub(super) at_rest: bool,
    /// Data replaced since then is still there, or not held yet: its snapshots stay.
    pub(super) replaced: Option<Timestamp>,
    /// This one is to be restored.
    pub(super) restore: Option<SnapshotName>,
    /// The data in use is in this one only.
    pub(super) reclaimed: Option<SnapshotName>,
}

/// The ids of snapshots that nothing keeps.
pub(super) fn forgettable(
    list: &[SnapshotInfo],
    retention: Retention,
    needs: &Needs,
    now: Timestamp,
) -> BTreeSet<Digest> {
    let Retention { last, hourly, daily, weekly, monthly } = retention;
    let policy = Policy { last, hourly, daily, weekly, monthly };
    let sound = list.iter().filter(|snapshot| snapshot.health == SnapshotHealth::Sound);
    let candidates: Vec<Candidate<Digest>> = sound
        .map(|snapshot| {
            let pinned = is_held(snapshot, now) || need(list, needs, snapshot).is_some();
            let hold = if pinned { Hold::Pinned } else { Hold::Free };
            Candidate { id: snapshot.id, time: snapshot.taken_at, hold }
        })
        .collect();
    decide(&candidates, &policy).forget
}

/// Why a snapshot must stay even if a person wants it gone.
pub(super) fn need(
    list: &[SnapshotInfo],
    needs: &Needs,
    snapshot: &SnapshotInfo,
) -> Option<&'static str> {
    if needs.reclaimed.as_ref() == Some(&snapshot.name) {
        return Some("it is the only copy of the instance's data");
    }
    if needs.restore.as_ref() == Some(&snapshot.name) {
        return Some("it is the one to be restored");
    }
    if needs.at_rest && newest_at_rest(list) == Some(snapshot.id) {
        return Some("the instance is down and this is its newest snapshot");
    }
    let of_change = matches!(snapshot.cause, SnapshotCause::Update | SnapshotCause::Restore);
    let replaced = needs.replaced.is_some_and(|since| snapshot.taken_at >= since);
    (of_change && replaced).then_some("it holds the data that the last change replaced")
}

fn is_held(snapshot: &SnapshotInfo, now: Timestamp) -> bool {
    snapshot.cause.held().is_some_and(|held| snapshot.taken_at.after(held) > now)
}

fn newest_at_rest(list: &[SnapshotInfo]) -> Option<Digest> {
    let rest = |snapshot: &&SnapshotInfo| {
        matches!(snapshot.cause, SnapshotCause::Pause | SnapshotCause::Final)
            && snapshot.health == SnapshotHealth::Sound
    };
    list.iter().filter(rest).max_by_key(|snapshot| snapshot.taken_at).map(|snapshot| snapshot.id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use claw_core::name::ImageRef;
    use claw_core::stamp::Generation;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const NONE: Retention = Retention { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0 };

    fn day(number: u32) -> Timestamp {
        Timestamp::from_millis(1_767_225_600_000).after(DAY * number)
    }

    /// Snapshots named after their day, oldest first.
    fn list(snapshots: &[(u32, SnapshotCause)]) -> Vec<SnapshotInfo> {
        let snapshot = |(number, cause): &(u32, SnapshotCause)| SnapshotInfo {
            name: SnapshotName::parse(&format!("{cause}-{number}")).expect("valid"),
            id: Digest::of(format!("{cause}-{number}").as_bytes()),
            taken_at: day(*number),
            cause: *cause,
            image: ImageRef::parse("registry.example/gateway:1").expect("valid"),
            generation: Generation(1),
            files: 1,
            bytes: 1,
            added_bytes: 1,
            health: SnapshotHealth::Sound,
            offsite: false,
        };
        snapshots.iter().map(snapshot).collect()
    }

    #[track_caller]
    fn check(
        snapshots: &[SnapshotInfo],
        retention: Retention,
        needs: &Needs,
        today: u32,
        forgotten: &str,
    ) {
        let forget = forgettable(snapshots, retention, needs, day(today));
        let names: Vec<&str> = snapshots
            .iter()
            .filter(|snapshot| forget.contains(&snapshot.id))
            .map(|snapshot| snapshot.name.as_str())
            .collect();
        assert_eq!(names.join(" "), forgotten);
    }

    use SnapshotCause::{Final, Pause, Requested, Restore, Scheduled, Update};

    #[test]
    fn the_policy_decides_about_scheduled_ones() {
        let days: Vec<_> = (0..6).map(|number| (number, Scheduled)).collect();
        let needs = Needs::default();
        let retention = Retention { last: 2, daily: 3, ..NONE };
        check(&list(&days), retention, &needs, 6, "scheduled-0 scheduled-1 scheduled-2");
        check(&list(&days), Retention { last: 9, ..NONE }, &needs, 6, "");
    }

    #[test]
    fn a_cause_holds_its_snapshots_for_as_long_as_it_says() {
        let all = list(&[(0, Requested), (0, Pause), (0, Update), (0, Final), (1, Scheduled)]);
        let needs = Needs::default();
        check(&all, NONE, &needs, 2, "");
        check(&all, NONE, &needs, 4, "update-0");
        check(&all, NONE, &needs, 8, "pause-0 update-0");
        check(&all, NONE, &needs, 31, "pause-0 update-0 final-0");
        check(&all, NONE, &needs, 3000, "pause-0 update-0 final-0");
    }

    #[test]
    fn what_is_needed_stays_however_old() {
        let all = list(&[
            (0, Pause),
            (1, Scheduled),
            (2, Pause),
            (3, Update),
            (5, Restore),
            (9, Scheduled),
        ]);
        let needs = Needs::default();
        check(&all, NONE, &needs, 99, "pause-0 scheduled-1 pause-2 update-3 restore-5");
        let needs = Needs { at_rest: true, ..Needs::default() };
        check(&all, NONE, &needs, 99, "pause-0 scheduled-1 update-3 restore-5");
        let needs = Needs { replaced: Some(day(4)), ..Needs::default() };
        check(&all, NONE, &needs, 99, "pause-0 scheduled-1 pause-2 update-3");
        let restore = SnapshotName::parse("scheduled-1").ok();
        let needs = Needs { restore, ..Needs::default() };
        check(&all, NONE, &needs, 99, "pause-0 pause-2 update-3 restore-5");
        let reclaimed = SnapshotName::parse("pause-0").ok();
        let needs = Needs { reclaimed, ..Needs::default() };
        check(&all, NONE, &needs, 99, "scheduled-1 pause-2 update-3 restore-5");
        let only = need(&all, &needs, &all[0]);
        assert_eq!(only, Some("it is the only copy of the instance's data"));
    }

    #[test]
    fn damaged_ones_neither_count_nor_go() {
        let mut all = list(&[(0, Scheduled), (1, Scheduled), (2, Scheduled)]);
        if let Some(newest) = all.last_mut() {
            newest.health = SnapshotHealth::Damaged;
        }
        check(&all, Retention { last: 1, ..NONE }, &Needs::default(), 3, "scheduled-0");
    }
}
