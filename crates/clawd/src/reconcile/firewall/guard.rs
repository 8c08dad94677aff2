//! Bans sources that fail to log in again and again.

use std::rc::Rc;
use std::time::Duration;

use claw_core::event::{EventKind, Severity};
use claw_core::firewall::brute_force::Tracker;
use claw_core::firewall::{Access, BruteForce, SshPolicy};

use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, LoginLog as _, Traffic as _};
use crate::reconcile::deadline::within;

/// Adding one entry to a set.
const BAN: Duration = Duration::from_secs(5);

/// Listens to failed logins, without end.
pub(in crate::reconcile) async fn guard<M: Machine>(agent: Rc<Agent<M>>) {
    let mut failures = agent.machine.login_log().failures();
    let in_force = agent.board.in_force();
    let mut tracker = Tracker::default();
    while let Some(failure) = failures.recv().await {
        let ssh = in_force.borrow().as_ref().map(|effective| effective.host.ssh.clone());
        let SshPolicy { access: Access { sources, .. }, brute_force, .. } = ssh.unwrap_or_default();
        agent.board.firewall(None, |report| {
            report.login_failures = report.login_failures.saturating_add(1);
        });
        let now = agent.machine.clock().now();
        let Some(ban) = tracker.observe(failure.source, now, &brute_force, &sources) else {
            continue;
        };
        let outcome = within(
            agent.machine.clock(),
            BAN,
            agent.machine.firewall().ban(ban.source, ban.length),
        )
        .await;
        match outcome {
            Ok(Ok(())) => announce(&agent, &ban.source.to_string(), ban.length, brute_force),
            Ok(Err(error)) => {
                tracing::error!(source = %ban.source, error = chain(&error), "cannot ban")
            }
            Err(elapsed) => {
                tracing::error!(source = %ban.source, error = chain(&elapsed), "cannot ban")
            }
        }
    }
}

fn announce<M: Machine>(agent: &Agent<M>, source: &str, length: Duration, policy: BruteForce) {
    let message = format!(
        "{source} failed to log in {} times within {} s: banned from SSH for {} s",
        policy.failures,
        policy.window.as_secs(),
        length.as_secs()
    );
    agent.event(None, EventKind::SourceBanned, Severity::Warning, message);
}
