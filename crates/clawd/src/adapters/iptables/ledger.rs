//! Which changes of the kernel's rules are our own.
//!
//! Decided by generation, never by time: every program that changes rules for us runs between two looks at
//! the generation, and what the kernel tells of in between, made by a program of that name, was us. Process
//! numbers cannot decide it alone, because the kernel tells those of its first pid namespace; but what one
//! program of ours did, one process did.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::netlink::{self, Change};

/// Commands that are remembered: more than a whole application of rules needs. What is forgotten shows as
/// a stranger's change, which costs one look.
const REMEMBERED: usize = 256;
/// Bytes of a process's name in the kernel (`TASK_COMM_LEN` less its end).
const NAME_BYTES: usize = 15;

/// What our programs did. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<Entries>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    running: usize,
    own: VecDeque<Own>,
}

/// A program of ours, from the generation `after` it began to the one `until` it ended.
#[derive(Debug)]
struct Own {
    program: String,
    after: u32,
    until: u32,
    pid: Option<u32>,
}

/// A program of ours that runs; dropping it says that it ended.
#[derive(Debug)]
pub(super) struct Running {
    shared: Arc<Shared>,
    program: String,
    after: Option<u32>,
}

impl Ledger {
    /// A program is about to be run that changes rules.
    pub(super) fn begin(&self, program: &str) -> Running {
        self.0.entries().running += 1;
        let after = netlink::generation().ok();
        let program = program.chars().take(NAME_BYTES).collect();
        Running { shared: Arc::clone(&self.0), program, after }
    }

    /// Ends as soon as no program of ours runs: then what was told can be judged. Cancel-safe.
    pub(super) async fn settled(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.0.entries().running == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Whether a change was made by a program of ours.
    pub(super) fn is_own(&self, change: &Change) -> bool {
        self.0.entries().is_own(change)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let until = netlink::generation().ok();
        let mut entries = self.shared.entries();
        entries.running = entries.running.saturating_sub(1);
        if let (Some(after), Some(until)) = (self.after, until) {
            entries.note(std::mem::take(&mut self.program), after, until);
        }
        drop(entries);
        self.shared.ended.notify_waiters();
    }
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn note(&mut self, program: String, after: u32, until: u32) {
        if after == until {
            return;
        }
        if self.own.len() == REMEMBERED {
            self.own.pop_front();
        }
        self.own.push_back(Own { program, after, until, pid: None });
    }

    fn is_own(&mut self, change: &Change) -> bool {
        let Some(program) = &change.program else { return false };
        let within = |own: &&mut Own| {
            // Generations wrap around.
            let passed = change.generation.wrapping_sub(own.after);
            (1..=own.until.wrapping_sub(own.after)).contains(&passed)
                && own.program == *program
                && own.pid.is_none_or(|pid| change.pid == Some(pid))
        };
        let Some(own) = self.own.iter_mut().find(within) else { return false };
        own.pid = change.pid;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(generation: u32, program: &str, pid: u32) -> Change {
        Change { generation, pid: Some(pid), program: Some(program.to_owned()) }
    }

    #[test]
    fn a_stranger_shows_by_generation_name_or_process() {
        let mut entries = Entries::default();
        entries.note("iptables-restor".to_owned(), 10, 13);
        assert!(!entries.is_own(&change(10, "iptables-restor", 1)));
        assert!(entries.is_own(&change(11, "iptables-restor", 1)));
        assert!(!entries.is_own(&change(12, "dockerd", 7)));
        assert!(!entries.is_own(&change(12, "iptables-restor", 2)), "another process");
        assert!(entries.is_own(&change(13, "iptables-restor", 1)));
        assert!(!entries.is_own(&change(14, "iptables-restor", 1)));
        let nameless = Change { generation: 11, pid: None, program: None };
        assert!(!entries.is_own(&nameless));
    }

    #[test]
    fn generations_wrap_around_and_the_ledger_is_bounded() {
        let mut entries = Entries::default();
        entries.note("iptables".to_owned(), u32::MAX, 1);
        assert!(entries.is_own(&change(0, "iptables", 1)));
        assert!(entries.is_own(&change(1, "iptables", 1)));
        for n in 0..1000 {
            entries.note("iptables".to_owned(), 10 + n, 11 + n);
        }
        assert_eq!(entries.own.len(), REMEMBERED);
        assert!(!entries.is_own(&change(0, "iptables", 1)), "forgotten");
    }

    #[tokio::test]
    async fn nothing_is_judged_while_a_program_runs() {
        let ledger = Ledger::default();
        ledger.settled().await;
        let running = ledger.begin("true");
        let judged = tokio::spawn({
            let ledger = ledger.clone();
            async move { ledger.settled().await }
        });
        tokio::task::yield_now().await;
        assert!(!judged.is_finished());
        drop(running);
        judged.await.unwrap();
    }
}
