//! The tally as text, a line per number, for the agent's journal.
//!
//! ```text
//! tally 1
//! ingress 17
//! port demo tcp 25 340
//! outside demo 3
//! closed demo 9
//! names demo 52 4 12 1
//! rule 4 filter 340 CLAW-E3 -p tcp -m tcp --dport 25 -j CLAW-NO
//! ```
//!
//! `names` has questions and refusals in all, then those that the forwarder had counted when it was asked last.

use std::fmt;
use std::str::FromStr;

use super::{RuleKey, Tally, Totals};
use crate::firewall::{Family, Port, Protocol, Table};
use crate::name::InstanceName;
use crate::report::BlockedTraffic;

const HEAD: &str = "tally 1";

const KINDS: [&str; 6] = ["ingress", "port", "outside", "closed", "names", "rule"];

/// Why a text is no tally.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the tally {problem}")]
pub struct TallyError {
    /// Which, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: LineProblem,
}

/// What is wrong with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineProblem {
    /// The text begins with something else: a newer agent wrote it, or nobody did.
    #[error("is not {HEAD:?}")]
    Head,
    /// It begins with a word that means nothing here.
    #[error("is of no known kind")]
    Kind,
    /// Words are missing, too many, or not what they should be.
    #[error("does not follow its form")]
    Form,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { taken_at: _, seen, totals, ingress } = self;
        writeln!(f, "{HEAD}")?;
        writeln!(f, "ingress {ingress}")?;
        for (name, Totals { traffic, names_seen }) in totals {
            let BlockedTraffic { ports, outside, closed, dns_queries, dns_refused } = traffic;
            for ((protocol, port), count) in ports {
                writeln!(f, "port {name} {protocol} {port} {count}")?;
            }
            writeln!(f, "outside {name} {outside}")?;
            writeln!(f, "closed {name} {closed}")?;
            let [queries_seen, refused_seen] = names_seen;
            writeln!(f, "names {name} {dns_queries} {dns_refused} {queries_seen} {refused_seen}")?;
        }
        for (RuleKey { family, table, chain, rule }, count) in seen {
            let table = table.name();
            writeln!(f, "rule {} {table} {count} {chain} {rule}", family.digit())?;
        }
        Ok(())
    }
}

impl FromStr for Tally {
    type Err = TallyError;

    fn from_str(text: &str) -> Result<Self, TallyError> {
        let mut tally = Self::default();
        let mut lines = text.lines().enumerate();
        if lines.next().is_none_or(|(_, head)| head != HEAD) {
            return Err(TallyError { line: 1, problem: LineProblem::Head });
        }
        for (index, line) in lines {
            let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
            if tally.read(kind, rest).is_none() {
                let known = KINDS.contains(&kind);
                let problem = if known { LineProblem::Form } else { LineProblem::Kind };
                return Err(TallyError { line: index + 1, problem });
            }
        }
        Ok(tally)
    }
}

impl Tally {
    /// Takes up a line; `None` when it is none of ours.
    fn read(&mut self, kind: &str, rest: &str) -> Option<()> {
        match kind {
            "ingress" => self.ingress = rest.parse().ok()?,
            "port" => {
                let [name, protocol, port, count] = words(rest)?;
                let protocol = Protocol::BOTH.into_iter().find(|p| p.to_string() == protocol)?;
                let port = Port::new(port.parse().ok()?)?;
                self.traffic(name)?.ports.insert((protocol, port), count.parse().ok()?);
            }
            "outside" => {
                let [name, count] = words(rest)?;
                self.traffic(name)?.outside = count.parse().ok()?;
            }
            "closed" => {
                let [name, count] = words(rest)?;
                self.traffic(name)?.closed = count.parse().ok()?;
            }
            "names" => {
                let [name, queries, refused, queries_seen, refused_seen] = words(rest)?;
                let totals = self.totals.entry(InstanceName::parse(name).ok()?).or_default();
                totals.traffic.dns_queries = queries.parse().ok()?;
                totals.traffic.dns_refused = refused.parse().ok()?;
                totals.names_seen = [queries_seen.parse().ok()?, refused_seen.parse().ok()?];
            }
            "rule" => {
                let mut words = rest.splitn(5, ' ');
                let [family, table, count, chain, rule] = [(); 5].map(|()| words.next());
                let key = RuleKey {
                    family: Family::BOTH
                        .into_iter()
                        .find(|f| family.is_some_and(|text| text.chars().eq([f.digit()])))?,
                    table: Table::ALL.into_iter().find(|t| table == Some(t.name()))?,
                    chain: chain?.to_owned(),
                    rule: rule?.to_owned(),
                };
                self.seen.insert(key, count?.parse().ok()?);
            }
            _ => return None,
        }
        Some(())
    }

    fn traffic(&mut self, name: &str) -> Option<&mut BlockedTraffic> {
        let name = InstanceName::parse(name).ok()?;
        Some(&mut self.totals.entry(name).or_default().traffic)
    }
}

/// Exactly so many words.
fn words<const N: usize>(text: &str) -> Option<[&str; N]> {
    let words: Vec<&str> = text.split(' ').collect();
    words.try_into().ok()
}
