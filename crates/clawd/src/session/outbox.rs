//! What is to be sent on a session, in which order, and not too often.

use std::collections::VecDeque;
use std::time::Duration;

use claw_core::time::Timestamp;
use claw_proto::node::v1::CommandResult;

use super::backups::Told;

/// Status at most ten times a second (contract of `claw.node.v1`).
pub(super) const STATUS_PAUSE: Duration = Duration::from_millis(100);
/// Events that may be under way without an acknowledgement.
const MAX_UNACKNOWLEDGED: u64 = 1024;
/// Answers to commands that may wait; further commands are not taken.
pub(super) const MAX_RESULTS: usize = 16;

/// The agent's side of what is due.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) results: VecDeque<CommandResult>,
    pub(super) status_due: bool,
    pub(super) heartbeat_due: bool,
    pub(super) backups_due: bool,
    pub(super) told: Told,
    last_status: Option<Timestamp>,
    next_event: u64,
    acknowledged: u64,
    available: u64,
}

/// What to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Result,
    Status,
    Events { from: u64 },
    Backups,
    Heartbeat,
    Nothing,
}

impl Outbox {
    /// Everything is due at first; events start at `resume`.
    pub(super) fn new(resume: u64, available: u64) -> Self {
        let next_event = resume.max(1);
        Self {
            status_due: true,
            heartbeat_due: true,
            backups_due: true,
            next_event,
            acknowledged: next_event.saturating_sub(1),
            available,
            ..Self::default()
        }
    }

    pub(super) fn due(&self, now: Timestamp) -> Due {
        if !self.results.is_empty() {
            return Due::Result;
        }
        if self.status_due && self.status_wait(now).is_zero() {
            return Due::Status;
        }
        let window = self.acknowledged.saturating_add(MAX_UNACKNOWLEDGED);
        if self.next_event < self.available && self.next_event <= window {
            return Due::Events { from: self.next_event };
        }
        if self.heartbeat_due {
            return Due::Heartbeat;
        }
        if self.backups_due { Due::Backups } else { Due::Nothing }
    }

    /// How long the next status must still wait.
    pub(super) fn status_wait(&self, now: Timestamp) -> Duration {
        let since = self.last_status.map_or(STATUS_PAUSE, |at| now.since(at));
        STATUS_PAUSE.saturating_sub(since)
    }

    pub(super) fn status_sent(&mut self, now: Timestamp) {
        self.status_due = false;
        self.last_status = Some(now);
    }

    /// Events up to `next` (exclusive) were sent; the ring may have forgotten some before them.
    pub(super) fn events_sent(&mut self, next: u64) {
        self.next_event = self.next_event.max(next);
    }

    pub(super) fn acknowledged(&mut self, sequence: u64) {
        self.acknowledged = self.acknowledged.max(sequence);
    }

    /// There are events below `next`.
    pub(super) fn available(&mut self, next: u64) {
        self.available = self.available.max(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn answers_and_status_come_before_events_and_heartbeats() {
        let mut outbox = Outbox::new(5, 7);
        outbox.results.push_back(CommandResult::default());
        assert_eq!(outbox.due(at(0)), Due::Result);
        outbox.results.clear();
        assert_eq!(outbox.due(at(0)), Due::Status);
        outbox.status_sent(at(0));
        assert_eq!(outbox.due(at(0)), Due::Events { from: 5 });
        outbox.events_sent(7);
        assert_eq!(outbox.due(at(0)), Due::Heartbeat);
        outbox.heartbeat_due = false;
        assert_eq!(outbox.due(at(0)), Due::Backups);
        outbox.backups_due = false;
        assert_eq!(outbox.due(at(0)), Due::Nothing);
        outbox.available(8);
        assert_eq!(outbox.due(at(0)), Due::Events { from: 7 });
    }

    #[test]
    fn status_waits_a_tenth_of_a_second() {
        let mut outbox = Outbox::new(1, 1);
        outbox.heartbeat_due = false;
        outbox.backups_due = false;
        outbox.status_sent(at(0));
        outbox.status_due = true;
        assert_eq!((outbox.due(at(99)), outbox.due(at(100))), (Due::Nothing, Due::Status));
        assert_eq!(outbox.status_wait(at(40)), Duration::from_millis(60));
    }

    #[test]
    fn events_without_acknowledgement_are_bounded() {
        let mut outbox = Outbox::new(1, 1_000_000);
        outbox.status_sent(at(0));
        outbox.heartbeat_due = false;
        outbox.backups_due = false;
        outbox.events_sent(1025);
        assert_eq!(outbox.due(at(0)), Due::Nothing);
        outbox.acknowledged(1024);
        assert_eq!(outbox.due(at(0)), Due::Events { from: 1025 });
    }
}
