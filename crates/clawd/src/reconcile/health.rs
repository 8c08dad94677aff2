//! What the looks at one run of a gateway add up to, and when to look next.
//!
//! Times are the wall clock's, which can jump; the first failure after a success therefore counts
//! as an answer, so that a jump alone never makes a gateway look hung.

use std::time::Duration;

use claw_core::observed::{ContainerState, Health, ObservedContainer};
use claw_core::time::Timestamp;

use crate::agent::Settings;
use crate::journal::HealthyRun;
use crate::ports::GatewayAnswer;

/// Just after a start, looks follow each other this fast: a small gateway is up in milliseconds, and
/// one look costs 0.6 ms (measured).
const FIRST_LOOKS: Duration = Duration::from_millis(50);
/// While it starts, looks slow down to this: OpenClaw takes 7 to 50 s.
const LATER_LOOKS: Duration = Duration::from_millis(500);
/// The time since the start is divided by this for the pause between two looks.
const SLOWING: u32 = 10;

/// The health of the present run of one gateway.
#[derive(Debug, Default)]
pub(super) struct HealthWatch {
    run: Option<Run>,
    health: Health,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    container: String,
    since: Timestamp,
    /// When this agent saw it first: an agent that returns does not count the time it was away.
    seen: Timestamp,
    /// It had passed its gate under an earlier agent.
    restored: bool,
}

/// What an answer has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The gate was passed just now.
    Passed,
    /// The way through the reverse proxy does not work: look at the virtual host again.
    Proxy,
    /// Nothing of note.
    Nothing,
}

impl HealthWatch {
    pub(super) const fn health(&self) -> &Health {
        &self.health
    }

    /// The run under watch had passed its gate under an earlier agent.
    pub(super) fn is_restored(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.restored)
    }

    /// Follows the container: another run starts with nothing known, but for what an earlier agent
    /// journaled of the same run.
    pub(super) fn follow(
        &mut self,
        container: Option<&ObservedContainer>,
        journaled: Option<&HealthyRun>,
        now: Timestamp,
    ) {
        let running = container.and_then(|container| match container.state {
            ContainerState::Running { since, .. } => Some((container.id.as_str(), since)),
            _ => None,
        });
        let Some((id, since)) = running else {
            let paused = container.is_some_and(|c| c.state == ContainerState::Paused);
            if !paused {
                *self = Self::default();
            }
            return;
        };
        if self.run.as_ref().is_some_and(|run| run.container == id && run.since == since) {
            return;
        }
        let journaled = journaled.filter(|run| run.container == id && run.since == since);
        self.run =
            Some(Run { container: id.to_owned(), since, seen: now, restored: journaled.is_some() });
        self.health = Health {
            healthy_since: journaled.map(|run| run.healthy_since),
            last_answer: journaled.map(|_| now),
            ..Health::default()
        };
    }

    /// From when the gate's deadline counts.
    pub(super) fn gate_since(&self, since: Timestamp) -> Timestamp {
        self.run.as_ref().map_or(since, |run| run.seen.max(since))
    }

    /// What to journal about this run once it has passed.
    pub(super) fn healthy_run(&self) -> Option<HealthyRun> {
        let run = self.run.as_ref()?;
        Some(HealthyRun {
            container: run.container.clone(),
            since: run.since,
            healthy_since: self.health.healthy_since?,
        })
    }

    /// Takes an answer.
    pub(super) fn take(&mut self, answer: GatewayAnswer, now: Timestamp) -> Turn {
        let health = &mut self.health;
        let was_healthy = health.healthy_since.is_some();
        let was_well = was_healthy && health.problem.is_none();
        health.draining = matches!(answer, GatewayAnswer::Draining);
        health.ready = None;
        let (problem, answered, turn) = match answer {
            GatewayAnswer::Started { ready } => {
                health.ready = Some(ready);
                health.healthy_since.get_or_insert(now);
                (None, true, if was_healthy { Turn::Nothing } else { Turn::Passed })
            }
            // A gateway that was healthy and starts again for longer than the hang deadline hangs.
            GatewayAnswer::Starting(text) => (Some(text), !was_healthy, Turn::Nothing),
            GatewayAnswer::Draining => (Some("draining".to_owned()), true, Turn::Nothing),
            GatewayAnswer::Failing(text) => (Some(text), false, Turn::Nothing),
            GatewayAnswer::ProxyFailing(text) => (Some(text), true, Turn::Proxy),
        };
        if answered || was_well {
            health.last_answer = Some(now);
        }
        health.problem = problem;
        turn
    }

    /// How long to wait before the next look.
    pub(super) fn pause(&self, settings: &Settings, now: Timestamp) -> Duration {
        if self.health.healthy_since.is_none() {
            let seen = self.run.as_ref().map_or(now, |run| run.seen);
            return (now.since(seen) / SLOWING).clamp(FIRST_LOOKS, LATER_LOOKS);
        }
        if self.health.problem.is_some() { settings.probe_failing } else { settings.probe_healthy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn running(since: i64) -> ObservedContainer {
        ObservedContainer {
            id: "c".to_owned(),
            spec_digest: None,
            generation: None,
            state: ContainerState::Running { since: at(since), pid: 1 },
            nano_cpus: 0,
            pids_limit: 0,
            address: None,
        }
    }

    #[test]
    fn looks_are_fast_after_the_start_and_slow_down() {
        let mut watch = HealthWatch::default();
        let settings = Settings::default();
        watch.follow(Some(&running(0)), None, at(10));
        let pause = |watch: &HealthWatch, now: i64| watch.pause(&settings, at(now)).as_millis();
        assert_eq!((pause(&watch, 10), pause(&watch, 2010), pause(&watch, 60_010)), (50, 200, 500));
        assert_eq!(watch.take(GatewayAnswer::Started { ready: false }, at(20)), Turn::Passed);
        assert_eq!(pause(&watch, 20), 10_000);
        watch.take(GatewayAnswer::Failing("x".to_owned()), at(30));
        assert_eq!(pause(&watch, 30), 1000);
    }

    #[test]
    fn a_jump_of_the_clock_does_not_make_a_gateway_look_hung() {
        let mut watch = HealthWatch::default();
        watch.follow(Some(&running(0)), None, at(0));
        watch.take(GatewayAnswer::Started { ready: true }, at(5));
        let jumped = at(86_400_000);
        watch.take(GatewayAnswer::Failing("x".to_owned()), jumped);
        assert_eq!(watch.health().last_answer, Some(jumped));
        watch.take(GatewayAnswer::Failing("x".to_owned()), at(86_401_000));
        assert_eq!(watch.health().last_answer, Some(jumped), "but lasting silence does");
    }

    #[test]
    fn an_agent_that_returns_remembers_the_same_run_and_no_other() {
        let run = HealthyRun { container: "c".to_owned(), since: at(1), healthy_since: at(2) };
        let mut watch = HealthWatch::default();
        watch.follow(Some(&running(1)), Some(&run), at(50));
        assert_eq!(watch.health().healthy_since, Some(at(2)));
        watch.follow(Some(&running(60)), Some(&run), at(61));
        assert_eq!(watch.health(), &Health::default());
        assert_eq!(watch.gate_since(at(60)), at(61));
    }

    #[test]
    fn a_broken_proxy_is_no_hung_gateway() {
        let mut watch = HealthWatch::default();
        watch.follow(Some(&running(0)), None, at(0));
        watch.take(GatewayAnswer::Started { ready: true }, at(5));
        for now in 6..9 {
            assert_eq!(
                watch.take(GatewayAnswer::ProxyFailing("p".to_owned()), at(now)),
                Turn::Proxy
            );
            assert_eq!(watch.health().last_answer, Some(at(now)));
        }
    }
}
