//! Waiting for what a host does with snapshots: the coordinator is asked until it is over, and the
//! instance's operation is shown meanwhile.

use std::collections::BTreeSet;

use crate::command::{Glimpse, Session};
use crate::failure::CommandError;
use crate::view::snapshot::{SnapshotList, SnapshotView};

/// Answers after a verification was seen to end, until its outcome must have arrived: the end of an
/// operation and the report of snapshots are two messages of the host.
const LATE_ANSWERS: u32 = 5;

/// What a host did with snapshots, and not well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("{snapshot} could not be taken: {why}")]
    NotTaken { snapshot: String, why: String },
    #[error("{snapshot} is damaged")]
    TakenDamaged { snapshot: String },
    #[error("{snapshot} is {state} and not being taken any more")]
    Gone { snapshot: String, state: String },
    #[error("instances/{instance} has damaged snapshots: {}", names.join(", "))]
    Damaged { instance: String, names: Vec<String> },
    #[error("the snapshots of instances/{instance} could not be verified: {why}")]
    NotVerified { instance: String, why: String },
}

impl SnapshotError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotTaken { .. } | Self::Gone { .. } | Self::TakenDamaged { .. } => None,
            Self::Damaged { instance, .. } => Some(format!(
                "a damaged one cannot be restored: take a new one with `clawctl snapshot create \
                 {instance}`, and look at the host's disk"
            )),
            Self::NotVerified { instance, .. } => {
                Some(format!("`clawctl snapshot list {instance}` shows how its repository stands"))
            }
        }
    }
}

/// Waits until a snapshot is ready.
pub(super) async fn until_taken(
    instance: &str,
    snapshot: &str,
    session: &mut Session<'_>,
) -> Result<SnapshotView, CommandError> {
    let ask = async |connection: &_, _seen: &Glimpse| {
        let view = super::get(connection, snapshot, None).await?;
        Ok(taken(&view)?.then_some(view))
    };
    session.ask_until(instance, "taken", ask).await
}

/// Whether a snapshot is ready; an error when it never will be.
fn taken(view: &SnapshotView) -> Result<bool, SnapshotError> {
    let snapshot = super::resource(&view.instance, &view.name);
    match view.state.as_str() {
        "ready" => Ok(true),
        "failed" => Err(SnapshotError::NotTaken { snapshot, why: view.problem.clone() }),
        "damaged" => Err(SnapshotError::TakenDamaged { snapshot }),
        "taking" => Ok(false),
        state => Err(SnapshotError::Gone { snapshot, state: state.to_owned() }),
    }
}

/// Waits until a verification that was asked for has ended well.
pub(super) async fn until_verified(
    instance: &str,
    before: &SnapshotList,
    session: &mut Session<'_>,
) -> Result<SnapshotList, CommandError> {
    let mut verification = Verification::new(instance, before);
    let ask = async |connection: &_, seen: &Glimpse| {
        let listed = super::all(connection, instance, None).await?;
        Ok(verification.is_over(&listed, seen)?.then_some(listed))
    };
    session.ask_until(instance, "verified", ask).await
}

/// A verification on its way. A host reports its outcome as a whole and not by request, so that what has
/// changed since decides.
#[derive(Debug)]
struct Verification {
    instance: String,
    verify_time: Option<String>,
    damaged: BTreeSet<String>,
    problem: String,
    answers_after_end: u32,
}

impl Verification {
    fn new(instance: &str, before: &SnapshotList) -> Self {
        Self {
            instance: instance.to_owned(),
            verify_time: before.repository.verify_time.clone(),
            damaged: before.damaged().map(str::to_owned).collect(),
            problem: before.repository.problem.clone(),
            answers_after_end: 0,
        }
    }

    /// Whether it ended without a fault; an error when it ended with one.
    fn is_over(&mut self, listed: &SnapshotList, seen: &Glimpse) -> Result<bool, SnapshotError> {
        if seen.now.as_deref() == Some("verify") {
            self.answers_after_end = 0;
            return Ok(false);
        }
        let repository = &listed.repository;
        if repository.verify_time.is_some() && repository.verify_time != self.verify_time {
            return Ok(true);
        }
        let late = seen.seen.contains("verify") && self.answers_after_end >= LATE_ANSWERS;
        self.answers_after_end = self.answers_after_end.saturating_add(1);
        let names: Vec<String> = listed.damaged().map(str::to_owned).collect();
        let is_new = names.iter().any(|name| !self.damaged.contains(name));
        let instance = self.instance.clone();
        if is_new || (late && !names.is_empty()) {
            return Err(SnapshotError::Damaged { instance, names });
        }
        let problem = &repository.problem;
        if !problem.is_empty() && (late || *problem != self.problem) {
            return Err(SnapshotError::NotVerified { instance, why: problem.clone() });
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use claw_core::time::Timestamp;
    use claw_proto::convert::timestamp_to_wire;
    use claw_proto::fleet::v1 as fleet;

    use super::*;

    fn listed(verified: i64, problem: &str, damaged: &[&str]) -> SnapshotList {
        let snapshot = |(name, state): (&str, fleet::SnapshotState)| {
            SnapshotView::from(fleet::Snapshot {
                name: format!("instances/demo/snapshots/{name}"),
                state: state.into(),
                ..fleet::Snapshot::default()
            })
        };
        let damaged = damaged.iter().map(|name| (*name, fleet::SnapshotState::Damaged));
        let sound = std::iter::once(("good", fleet::SnapshotState::Ready));
        let repository = fleet::SnapshotRepository {
            problem: problem.to_owned(),
            verify_time: Some(timestamp_to_wire(Timestamp::from_millis(verified))),
            ..fleet::SnapshotRepository::default()
        };
        SnapshotList {
            snapshots: sound.chain(damaged).map(snapshot).collect(),
            repository: repository.into(),
        }
    }

    fn glimpse(seen: &[&str], now: Option<&str>) -> Glimpse {
        let seen = seen.iter().map(ToString::to_string).collect();
        Glimpse { seen, now: now.map(str::to_owned) }
    }

    #[track_caller]
    fn check(before: &SnapshotList, steps: &[(SnapshotList, Glimpse)], expected: &str) {
        let mut verification = Verification::new("demo", before);
        let said: Vec<String> = steps
            .iter()
            .map(|(listed, seen)| match verification.is_over(listed, seen) {
                Ok(true) => "sound".to_owned(),
                Ok(false) => "waiting".to_owned(),
                Err(error) => error.to_string(),
            })
            .collect();
        assert_eq!(said.join("\n"), expected);
    }

    #[test]
    fn a_later_time_without_an_operation_is_the_end() {
        let before = listed(1, "", &[]);
        check(
            &before,
            &[
                (listed(1, "", &[]), glimpse(&[], None)),
                (listed(2, "", &[]), glimpse(&["verify"], Some("verify"))),
                (listed(3, "", &[]), glimpse(&["verify"], None)),
            ],
            "waiting\nwaiting\nsound",
        );
    }

    #[test]
    fn new_damage_and_new_problems_are_the_end_and_old_ones_are_not() {
        check(
            &listed(1, "", &["old"]),
            &[
                (listed(1, "", &["old"]), glimpse(&[], None)),
                (listed(1, "", &["old", "new"]), glimpse(&["verify"], None)),
            ],
            "waiting\ninstances/demo has damaged snapshots: old, new",
        );
        check(
            &listed(1, "no room", &[]),
            &[
                (listed(1, "no room", &[]), glimpse(&[], None)),
                (listed(1, "disk error", &[]), glimpse(&[], None)),
            ],
            "waiting\nthe snapshots of instances/demo could not be verified: disk error",
        );
    }

    #[test]
    fn what_was_damaged_and_still_is_ends_it_a_while_after_the_operation() {
        let same = || listed(1, "x", &["old"]);
        let mut steps = vec![(same(), glimpse(&["verify"], Some("verify")))];
        steps.extend((0..=LATE_ANSWERS).map(|_| (same(), glimpse(&["verify"], None))));
        let waiting = "waiting\n".repeat(1 + usize::try_from(LATE_ANSWERS).unwrap());
        check(&same(), &steps, &format!("{waiting}instances/demo has damaged snapshots: old"));
    }
}
