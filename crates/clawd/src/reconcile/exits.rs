//! Tells a wanted end from a crash, once per end.

use claw_core::observed::{ContainerState, Exit, ObservedContainer};
use claw_core::plan::StopReason;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;

use crate::journal::Remembered;

/// An end that was not known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    /// How it ended.
    pub(super) exit: Exit,
    /// Why.
    pub(super) cause: ExitCause,
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitCause {
    /// The agent stopped it, and it is no failure.
    Wanted,
    /// The agent stopped it because it had failed.
    GivenUp(StopReason),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// The host was restarted or lost its power.
    WithHost,
    /// By itself.
    ByItself,
}

impl ExitCause {
    const fn is_failure(self) -> bool {
        matches!(self, Self::GivenUp(_) | Self::OutOfMemory | Self::ByItself)
    }
}

/// Notes the end of a container in what is remembered, unless it is noted already.
///
/// `fallback` is the digest that failures count for when the container carries none; `boot` is the
/// host's present boot.
pub(super) fn note(
    remembered: &mut Remembered,
    container: &ObservedContainer,
    fallback: Digest,
    boot: &str,
) -> Option<Noted> {
    let ContainerState::Exited(exit) = container.state else { return None };
    let seen = (container.id.clone(), exit.at);
    if remembered.seen_exit.as_ref() == Some(&seen) {
        return None;
    }
    let cause = cause_of(remembered, &container.id, exit, boot);
    remembered.seen_exit = Some(seen);
    remembered.last_exit = Some(exit);
    remembered.healthy = None;
    if cause.is_failure() {
        let spec = container.spec_digest.unwrap_or(fallback);
        remembered.record.history = remembered.record.history.with_failure(spec, exit.at);
        remembered.died = true;
    }
    Some(Noted { exit, cause })
}

fn cause_of(remembered: &Remembered, id: &str, exit: Exit, boot: &str) -> ExitCause {
    let stop =
        remembered.stop.as_ref().filter(|stop| stop.container == id && exit.at <= stop.until);
    match stop {
        Some(stop) if stop.reason.is_failure() => ExitCause::GivenUp(stop.reason),
        Some(_) => ExitCause::Wanted,
        None if exit.oom => ExitCause::OutOfMemory,
        None if remembered.boot.as_deref().is_some_and(|started| started != boot) => {
            ExitCause::WithHost
        }
        None => ExitCause::ByItself,
    }
}

/// A start that was under way when an earlier agent ended, and that has come true since.
pub(super) fn complete_start(remembered: &mut Remembered, container: &ObservedContainer) -> bool {
    let ContainerState::Running { since, .. } = container.state else { return false };
    let Some(start) = remembered.start.take_if(|start| started_by(since, start.at)) else {
        return false;
    };
    remembered.record.restarts_done = start.restarts;
    remembered.record.started_with_secrets = Some(start.secrets);
    remembered.stop = None;
    if remembered.died {
        remembered.died = false;
        remembered.restart_count = remembered.restart_count.saturating_add(1);
    }
    true
}

fn started_by(since: Timestamp, intent: Timestamp) -> bool {
    since >= intent
}

#[cfg(test)]
mod tests {
    use claw_core::stamp::Generation;

    use super::*;
    use crate::journal::{StartIntent, StopIntent};

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn exited(code: i64, oom: bool, millis: i64) -> ObservedContainer {
        ObservedContainer {
            id: "c1".to_owned(),
            spec_digest: Some(Digest::of(b"spec")),
            generation: Some(Generation(1)),
            state: ContainerState::Exited(Exit { code, oom, at: at(millis) }),
            nano_cpus: 0,
            pids_limit: 0,
            address: None,
        }
    }

    fn stopping(reason: StopReason) -> Remembered {
        let stop = StopIntent { container: "c1".to_owned(), reason, until: at(1000) };
        Remembered { stop: Some(stop), boot: Some("b".to_owned()), ..Remembered::default() }
    }

    #[track_caller]
    fn check(
        mut remembered: Remembered,
        container: &ObservedContainer,
        cause: ExitCause,
        failures: usize,
    ) {
        let fallback = Digest::of(b"other");
        let noted = note(&mut remembered, container, fallback, "b").expect("new");
        assert_eq!(noted.cause, cause);
        assert_eq!(remembered.record.history.failures().len(), failures);
        assert_eq!(remembered.died, failures > 0);
        assert_eq!(note(&mut remembered, container, fallback, "b"), None, "counted once");
    }

    #[test]
    fn a_wanted_stop_is_no_crash_and_a_late_end_is() {
        check(stopping(StopReason::Restart), &exited(143, false, 900), ExitCause::Wanted, 0);
        check(stopping(StopReason::Restart), &exited(1, false, 1001), ExitCause::ByItself, 1);
        let hung = StopReason::Hung;
        check(stopping(hung), &exited(137, false, 900), ExitCause::GivenUp(hung), 1);
        let mut other = stopping(StopReason::Restart);
        other.stop.iter_mut().for_each(|stop| stop.container = "c0".to_owned());
        check(other, &exited(0, false, 900), ExitCause::ByItself, 1);
    }

    #[test]
    fn memory_and_the_host_are_told_apart() {
        let remembered = Remembered { boot: Some("b".to_owned()), ..Remembered::default() };
        check(remembered.clone(), &exited(137, true, 5), ExitCause::OutOfMemory, 1);
        check(remembered, &exited(137, false, 5), ExitCause::ByItself, 1);
        let earlier = Remembered { boot: Some("a".to_owned()), ..Remembered::default() };
        check(earlier, &exited(255, false, 5), ExitCause::WithHost, 0);
    }

    #[test]
    fn an_interrupted_start_is_completed_by_what_is_seen() {
        let start = StartIntent { at: at(10), secrets: Digest::of(b"s"), restarts: 3 };
        let mut remembered = Remembered { start: Some(start), died: true, ..Remembered::default() };
        let running = |since: i64| ObservedContainer {
            state: ContainerState::Running { since: at(since), pid: 1 },
            ..exited(0, false, 0)
        };
        assert!(!complete_start(&mut remembered, &running(9)), "the run before");
        assert!(complete_start(&mut remembered, &running(10)));
        assert_eq!(remembered.record.restarts_done, 3);
        assert_eq!(remembered.restart_count, 1);
        assert!(!complete_start(&mut remembered, &running(10)));
    }
}
