//! Counts what is refused, reports it, and says when an instance tries very often.
//!
//! The kernel forgets counters when rules are replaced and when the host boots;
//! [`claw_core::firewall::tally`] does not. Its text is journaled, so that neither a restart of the agent
//! loses a count nor counts one twice.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::event::{EventKind, Severity};
use claw_core::firewall::Effective;
use claw_core::firewall::tally::{Bursts, Taken, Tally};
use claw_core::time::Timestamp;

use crate::agent::Agent;
use crate::journal::Note;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, Host as _, Resolver as _, Traffic as _};
use crate::reconcile::deadline::within;

/// Between two readings: well within the minute in which attempts make a burst, and rare enough to cost
/// an idle host nothing that shows.
const INTERVAL: Duration = Duration::from_secs(20);
/// Between two writings of the totals.
const NOTED: Duration = Duration::from_secs(60);
/// One reading.
const READ: Duration = Duration::from_secs(10);

/// The counters of one host.
#[derive(Debug)]
pub(in crate::reconcile) struct Meter {
    tally: Tally,
    /// The host's boot whose counters the tally has seen.
    boot: String,
    bursts: Bursts,
    next: Timestamp,
    noted: (Timestamp, Tally),
}

impl Meter {
    /// Goes on where an earlier agent's note ends; an unreadable one begins at zero.
    pub(in crate::reconcile) fn new(note: Option<&[u8]>) -> Self {
        let read = note.and_then(|bytes| std::str::from_utf8(bytes).ok()?.split_once('\n'));
        let (boot, tally) = match read.map(|(boot, text)| (boot, text.parse::<Tally>())) {
            Some((boot, Ok(tally))) => (boot.to_owned(), tally),
            Some((_, Err(error))) => {
                tracing::error!(error = chain(&error), "totals of refused traffic begin at zero");
                (String::new(), Tally::default())
            }
            None => (String::new(), Tally::default()),
        };
        let noted = (Timestamp::default(), tally.clone());
        Self { tally, boot, bursts: Bursts::default(), next: Timestamp::default(), noted }
    }

    /// How long until the next reading.
    pub(super) fn pause(&self, now: Timestamp) -> Duration {
        self.next.since(now)
    }

    /// There is nothing to read yet.
    pub(super) fn postpone(&mut self, now: Timestamp) {
        self.next = now.after(INTERVAL);
    }

    /// Reads everything once. Also to be called right before and right after rules are replaced: what came
    /// between the two is all that can be lost.
    pub(super) async fn count<M: Machine>(&mut self, agent: &Agent<M>, effective: &Effective) {
        let clock = agent.machine.clock();
        self.postpone(clock.now());
        let counters = match within(clock, READ, agent.machine.firewall().counters()).await {
            Ok(Ok(counters)) => counters,
            Ok(Err(error)) => return tracing::warn!(error = chain(&error), "cannot count"),
            Err(elapsed) => return tracing::warn!(error = chain(&elapsed), "cannot count"),
        };
        let boot = agent.machine.host().boot_id();
        if self.boot != boot {
            self.tally.rules_replaced();
            self.boot = boot;
        }
        let now = clock.now();
        let taken = self.tally.take(now, &counters, effective);
        self.take_names(agent).await;
        self.tally.retain(&effective.instances.keys().cloned().collect());
        self.report(agent, effective);
        self.tell(agent, now, &taken);
        self.note(agent, now);
    }

    async fn take_names<M: Machine>(&mut self, agent: &Agent<M>) {
        let names = within(agent.machine.clock(), READ, agent.machine.resolver().counters()).await;
        match names {
            Ok(Ok(names)) => {
                for (instance, seen) in names {
                    self.tally.take_names(&instance, seen.queries, seen.refused);
                }
            }
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "cannot count names"),
            Err(elapsed) => tracing::warn!(error = chain(&elapsed), "cannot count names"),
        }
    }

    fn report<M: Machine>(&self, agent: &Agent<M>, effective: &Effective) {
        let blocked: BTreeMap<_, _> = effective
            .instances
            .keys()
            .map(|name| (name.clone(), self.tally.blocked(name)))
            .collect();
        agent.board.blocked(blocked);
        let refused = self.tally.ingress_refused();
        agent.board.firewall(None, |report| report.ingress_refused = refused);
    }

    fn tell<M: Machine>(&mut self, agent: &Agent<M>, now: Timestamp, taken: &Taken) {
        for burst in self.bursts.observe(now, taken) {
            let name = burst.instance.clone();
            let message = burst.to_string();
            agent.event(Some(&name), EventKind::TrafficBurst, Severity::Warning, message);
        }
        if taken.unguarded > 0 {
            tracing::warn!(
                packets = taken.unguarded,
                "only the guarantee stopped these packets: the hooks of the filter table were gone"
            );
        }
    }

    /// Journals the totals, if they have changed and the last time was long enough ago.
    fn note<M: Machine>(&mut self, agent: &Agent<M>, now: Timestamp) {
        if now.since(self.noted.0) < NOTED || self.noted.1 == self.tally {
            return;
        }
        let text = format!("{}\n{}", self.boot, self.tally);
        drop(agent.journal.note(Note::Tally, text.into_bytes()));
        self.noted = (now, self.tally.clone());
    }
}
