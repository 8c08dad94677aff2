//! The firewall of a host: what is wanted, and what its agent says of it when asked.
//!
//! What is asked here is never stored; see [`crate::commands`] for how a question travels.

use std::time::Duration;

use claw_core::firewall::{Access, HostPolicy, WebAccess};
use claw_core::name::HostName;
use claw_proto::convert::firewall::detail::{detail_from_wire, report_to_wire};
use claw_proto::convert::firewall::host_policy_to_wire;
use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_proto::node::v1::command_result::Payload;

use super::Fleet;
use crate::refusal::{Precondition, Refusal};
use crate::store::hosts;

/// How long an agent may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

impl Fleet {
    /// The firewall of a host, asked of its agent.
    ///
    /// Cancel safe: the question is forgotten when this is dropped.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]; [`Refusal::Precondition`] when the host has no session or its agent fails;
    /// [`Refusal::TooLate`]; [`Refusal::Unavailable`] when its session ends meanwhile;
    /// [`Refusal::Exhausted`].
    pub async fn host_firewall(&self, name: &HostName) -> Result<fleet::HostFirewallView, Refusal> {
        let host = self.store.read(|connection, _keys| hosts::load(connection, name))?;
        let desired = host_policy_to_wire(&host.host_policy()?);
        let now = self.clock.now();
        let question = Command::FetchFirewall(node::FetchFirewall {});
        let asked = self.registry.ask(name, question, now.after(ANSWER_WITHIN))?;
        let result = asked.answer(ANSWER_WITHIN).await?;
        let failed = |problem: String| {
            let subject = format!("hosts/{name}");
            Refusal::precondition(Precondition::CommandFailed, subject, problem)
        };
        let Some(Payload::Firewall(detail)) = result.payload else {
            return Err(failed(format!("the agent of hosts/{name} gave no answer")));
        };
        if let Err(violations) = detail_from_wire(&detail) {
            return Err(failed(format!("the answer of hosts/{name} makes no sense: {violations}")));
        }
        let status = self.registry.snapshot(name, self.clock.now()).status;
        Ok(fleet::HostFirewallView {
            desired: Some(desired),
            status: status.map(|(status, _at)| report_to_wire(&status.firewall)),
            detail: Some(detail),
        })
    }
}

/// A policy in a few words, for audit entries.
pub(super) fn summary(policy: &HostPolicy) -> String {
    let HostPolicy { ssh, web, extra, blocked } = policy;
    let web = match web {
        WebAccess::Reachable(access) => from(access),
        WebAccess::Loopback => "from the host itself".to_owned(),
    };
    format!(
        "firewall: ssh {}, web {web}, {} further ports, {} networks blocked",
        from(&ssh.access),
        extra.len(),
        blocked.len()
    )
}

fn from(access: &Access) -> String {
    let sources = match access.sources.len() {
        0 => "from anywhere".to_owned(),
        count => format!("from {count} networks"),
    };
    match access.interfaces.len() {
        0 => sources,
        count => format!("{sources} through {count} interfaces"),
    }
}
