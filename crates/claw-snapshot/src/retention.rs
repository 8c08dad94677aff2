//! Which snapshots are kept, as a pure function.
//!
//! The meaning is that of restic's `forget`: of each hour, day, week and month that has snapshots,
//! the newest one counts, and the newest so many of these are kept
//! (<https://restic.readthedocs.io/en/stable/060_forget.html>). Hours, days, weeks (from Monday)
//! and months are those of UTC.

use std::collections::{BTreeMap, BTreeSet};

use claw_core::time::Timestamp;

/// How many snapshots are kept for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// The newest.
    pub last: u32,
    /// The newest of an hour each.
    pub hourly: u32,
    /// The newest of a day each.
    pub daily: u32,
    /// The newest of a week each.
    pub weekly: u32,
    /// The newest of a month each.
    pub monthly: u32,
}

/// A snapshot that retention decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<Id> {
    /// Its name.
    pub id: Id,
    /// When it was taken.
    pub time: Timestamp,
    /// Whether it is kept whatever the policy says.
    pub hold: Hold,
}

/// Whether something outside of the policy needs a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hold {
    /// Nothing does.
    #[default]
    Free,
    /// Something does: an update that is not confirmed, a paused instance, a person.
    Pinned,
}

/// Why a snapshot is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is held.
    Pinned,
    /// It is the newest of all: that one is kept whatever the policy says.
    Newest,
    /// It is among the newest.
    Last,
    /// It stands for its hour.
    Hourly,
    /// It stands for its day.
    Daily,
    /// It stands for its week.
    Weekly,
    /// It stands for its month.
    Monthly,
}

/// What becomes of each snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<Id> {
    /// What is kept, and why.
    pub keep: BTreeMap<Id, BTreeSet<Reason>>,
    /// The rest.
    pub forget: BTreeSet<Id>,
}

/// The number of the period that a time is in; the place is that among all, newest first.
type Period = fn(Timestamp, usize) -> i64;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

/// Decides. The same snapshots give the same answer in whatever order they stand; with any
/// snapshot there is at least one that is kept.
#[must_use]
pub fn decide<Id: Copy + Ord>(candidates: &[Candidate<Id>], policy: &Policy) -> Decision<Id> {
    let mut newest_first: Vec<_> = candidates.iter().collect();
    newest_first.sort_by_key(|candidate| std::cmp::Reverse((candidate.time, candidate.id)));
    let mut keep: BTreeMap<Id, BTreeSet<Reason>> = BTreeMap::new();
    let mut add = |id, reason| {
        keep.entry(id).or_default().insert(reason);
    };
    if let Some(newest) = newest_first.first() {
        add(newest.id, Reason::Newest);
    }
    for candidate in &newest_first {
        if candidate.hold == Hold::Pinned {
            add(candidate.id, Reason::Pinned);
        }
    }
    let rules: [(Reason, u32, Period); 5] = [
        (Reason::Last, policy.last, |_, place| i64::try_from(place).unwrap_or(i64::MAX)),
        (Reason::Hourly, policy.hourly, |time, _| seconds(time).div_euclid(HOUR)),
        (Reason::Daily, policy.daily, |time, _| day(time)),
        // Day 0, 1970-01-01, was a Thursday: three days after a Monday.
        (Reason::Weekly, policy.weekly, |time, _| (day(time) + 3).div_euclid(7)),
        (Reason::Monthly, policy.monthly, |time, _| month(day(time))),
    ];
    for (reason, count, period) in rules {
        let mut left = count;
        let mut previous = None;
        for (place, candidate) in newest_first.iter().enumerate() {
            let period = period(candidate.time, place);
            if left > 0 && previous != Some(period) {
                add(candidate.id, reason);
                left -= 1;
                previous = Some(period);
            }
        }
    }
    let all = candidates.iter().map(|candidate| candidate.id);
    let forget = all.filter(|id| !keep.contains_key(id)).collect();
    Decision { keep, forget }
}

fn seconds(time: Timestamp) -> i64 {
    time.millis().div_euclid(1000)
}

/// Days since 1970-01-01.
fn day(time: Timestamp) -> i64 {
    seconds(time).div_euclid(DAY)
}

/// Months since March of the year 0, of a day since 1970-01-01
/// (<https://howardhinnant.github.io/date_algorithms.html#civil_from_days>).
fn month(day: i64) -> i64 {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let day_of_era = day.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    (era * 400 + year_of_era) * 12 + (5 * day_of_year + 2) / 153
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Seconds since the epoch of 2026-03-01T00:00:00Z, a Sunday.
    const MARCH: i64 = 1_772_323_200;

    fn at(seconds: i64) -> Candidate<i64> {
        let time = Timestamp::from_millis(seconds * 1000);
        Candidate { id: seconds, time, hold: Hold::Free }
    }

    #[track_caller]
    fn check(times: &[i64], policy: Policy, kept: &[i64]) {
        let candidates: Vec<_> = times.iter().map(|time| at(*time)).collect();
        let decision = decide(&candidates, &policy);
        assert_eq!(decision.keep.into_keys().collect::<Vec<_>>(), kept);
    }

    #[test]
    fn the_newest_of_each_period_is_kept() {
        let hours: Vec<_> = (0..100).map(|hour| MARCH + hour * HOUR / 2).collect();
        let none = Policy::default();
        check(&hours, Policy { last: 2, ..none }, &[MARCH + 98 * 1800, MARCH + 99 * 1800]);
        let halves = [95, 97, 99].map(|half| MARCH + half * 1800);
        check(&hours, Policy { hourly: 3, ..none }, &halves);
        let days = [47, 95, 99].map(|half| MARCH + half * 1800);
        check(&hours, Policy { daily: 9, ..none }, &days);
    }

    #[test]
    fn weeks_begin_on_monday_and_months_on_their_first() {
        let none = Policy::default();
        let sunday = MARCH + DAY - 1;
        check(&[sunday, sunday + 1], Policy { weekly: 2, ..none }, &[sunday, sunday + 1]);
        check(&[sunday, MARCH], Policy { weekly: 2, ..none }, &[sunday]);
        check(&[MARCH - 1, MARCH], Policy { monthly: 2, ..none }, &[MARCH - 1, MARCH]);
        check(
            &[MARCH, MARCH + 31 * DAY - 1],
            Policy { monthly: 2, ..none },
            &[MARCH + 31 * DAY - 1],
        );
        // A leap day, 2024-02-29, and the day after.
        let leap = 1_709_164_800;
        check(&[leap, leap + DAY], Policy { monthly: 2, ..none }, &[leap, leap + DAY]);
        check(&[leap - DAY, leap], Policy { monthly: 2, ..none }, &[leap]);
    }

    #[test]
    fn what_is_held_stays_and_the_newest_stays() {
        let mut candidates: Vec<_> = (0..5).map(|number| at(MARCH + number)).collect();
        if let Some(held) = candidates.get_mut(1) {
            held.hold = Hold::Pinned;
        }
        let decision = decide(&candidates, &Policy::default());
        let reason = |reason| BTreeSet::from([reason]);
        assert_eq!(
            decision.keep,
            BTreeMap::from([
                (MARCH + 1, reason(Reason::Pinned)),
                (MARCH + 4, reason(Reason::Newest)),
            ])
        );
        assert_eq!(decision.forget, BTreeSet::from([MARCH, MARCH + 2, MARCH + 3]));
        assert!(decide::<u8>(&[], &Policy::default()).keep.is_empty());
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_repeating_changes_nothing(
            times in proptest::collection::btree_set(-10_000_000_000_i64..10_000_000_000, 1..60),
            counts in proptest::array::uniform5(0_u32..8),
        ) {
            let [last, hourly, daily, weekly, monthly] = counts;
            let policy = Policy { last, hourly, daily, weekly, monthly };
            let candidates: Vec<_> = times.iter().map(|time| at(*time)).collect();
            let decision = decide(&candidates, &policy);
            let reversed: Vec<_> = candidates.iter().rev().copied().collect();
            prop_assert_eq!(&decision, &decide(&reversed, &policy));
            prop_assert!(!decision.keep.is_empty());
            prop_assert_eq!(decision.keep.len() + decision.forget.len(), times.len());
            // What was kept is kept again when the rest is gone.
            let remaining: Vec<_> =
                candidates.into_iter().filter(|c| decision.keep.contains_key(&c.id)).collect();
            prop_assert!(decide(&remaining, &policy).forget.is_empty());
            let most: u32 = counts.iter().sum::<u32>() + 1;
            prop_assert!(decision.keep.len() <= usize::try_from(most).unwrap());
        }
    }
}
