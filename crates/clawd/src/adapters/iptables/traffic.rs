//! Counters, sets that live, connections.

use std::net::IpAddr;
use std::time::Duration;

use claw_core::firewall::saved::SavedSets;
use claw_core::firewall::{Cidr, Family, Flow, HostSet, RuleCounter, SetEntry};

use super::kernel::{self, DEADLINE, failed};
use super::{Iptables, flows};
use crate::adapters::command::{self, CommandError};
use crate::ports::{FirewallError, Traffic};

/// What conntrack(8) says when there was nothing to delete; its exit status is then 1.
const NOTHING_DELETED: &str = "0 flow entries have been deleted";
/// What ipset(8) says of a set that does not exist.
const NO_SUCH_SET: &str = "The set with the given name does not exist";

impl Traffic for Iptables {
    async fn counters(&self) -> Result<Vec<RuleCounter>, FirewallError> {
        let (v4, v6) = tokio::join!(kernel::rules(Family::V4), kernel::rules(Family::V6));
        let mut counters = v4?.counters(Family::V4);
        counters.extend(v6?.counters(Family::V6));
        Ok(counters)
    }

    async fn entries(&self, set: &str) -> Result<Vec<SetEntry>, FirewallError> {
        let doing = "reading a set";
        let text = match command::dump(&["ipset", "save", set], DEADLINE).await {
            Ok(text) => text,
            Err(CommandError::Failed { output, .. }) if output.contains(NO_SUCH_SET) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(failed(doing)(error)),
        };
        let sets = SavedSets::parse(&text);
        let sets =
            sets.map_err(|source| FirewallError::Command { doing, source: Box::new(source) })?;
        Ok(sets
            .sets
            .into_iter()
            .find(|(name, _)| name == set)
            .map_or_else(Vec::new, |(_, set)| set.entries))
    }

    async fn ban(&self, source: Cidr, length: Duration) -> Result<(), FirewallError> {
        let set = HostSet::Banned.name(source.family());
        let seconds = length.as_secs().max(1).to_string();
        let source = source.to_string();
        let argv = ["ipset", "add", "-exist", &set, &source, "timeout", &seconds];
        command::run(&argv, DEADLINE).await.map(drop).map_err(failed("banning a source"))
    }

    async fn flows(&self, source: IpAddr) -> Result<Vec<Flow>, FirewallError> {
        let text = source.to_string();
        let argv = flows::list(&text, Family::of(source));
        let text = command::dump(&argv, DEADLINE).await.map_err(failed("reading connections"))?;
        Ok(flows::parse(&text))
    }

    async fn cut(&self, flows: &[Flow]) -> Result<(), FirewallError> {
        for flow in flows {
            let argv = flows::delete(flow);
            let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
            match command::run(&argv, DEADLINE).await {
                Ok(_said) => {}
                Err(CommandError::Failed { output, .. }) if output.contains(NOTHING_DELETED) => {}
                Err(error) => return Err(failed("ending a connection")(error)),
            }
        }
        Ok(())
    }
}
