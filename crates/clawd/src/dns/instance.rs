//! One instance: its rules, what its sets hold, what was counted; and how a question of its container is
//! answered.
//!
//! The order of an answer: is the name allowed → what does it lead to → is that closed → put it into the
//! sets → reply. A policy that changes while the upstream is asked counts: rules are looked at again when
//! its answer is there, and from then on nothing is waited for.
//!
//! Where to start: [`Instance::reply`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::InstanceNetwork;
use claw_core::firewall::{Cidr, DnsRules, Family, InstanceSet, Mode};
use tokio::time::Instant;

use super::answer::Answer;
use super::budget::Budget;
use super::cache::Cache;
use super::closed::is_closed;
use super::grants::{Grants, Target};
use super::names::{Access, Names, plain};
use super::question::{Question, Received, Refusal, Transport, read};
use super::sets::{Entry, SetChange, Sets, SetsError};
use super::tally::Tally;
use super::upstream::Upstreams;
use crate::logging::chain;
use crate::ports::DnsCounters;

/// An answer that leads to more addresses is no answer.
const MAX_ADDRESSES: usize = 256;

/// What all instances share.
#[derive(Debug)]
pub struct Shared<S> {
    /// The name servers.
    pub upstreams: Upstreams,
    /// The kernel's sets.
    pub sets: S,
}

/// What an instance may resolve, ready to be asked.
#[derive(Debug)]
struct Rules {
    only: Option<(Names, Mode)>,
    networks: BTreeSet<Cidr>,
}

/// What the rules say of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// There is no list.
    Open,
    /// It is on the list, which holds or is only tried.
    Listed(Access, Mode),
    /// It is not on the list that is only tried.
    Recorded,
    /// It is not on the list that holds.
    Refused,
}

impl Rules {
    fn new(rules: &DnsRules) -> Self {
        Self {
            only: rules.only.as_ref().map(|only| (Names::new(&only.names), only.mode)),
            networks: rules.networks.clone(),
        }
    }

    fn verdict(&self, name: Option<&str>) -> Verdict {
        let Some((names, mode)) = &self.only else { return Verdict::Open };
        match (name.and_then(|name| names.access(name)), mode) {
            (Some(access), &mode) => Verdict::Listed(access, mode),
            (None, Mode::Observed) => Verdict::Recorded,
            (None, Mode::Enforced) => Verdict::Refused,
        }
    }

    fn access(&self, name: &str) -> Option<Access> {
        self.only.as_ref().and_then(|(names, _mode)| names.access(name))
    }
}

/// One instance. Its state ends with it.
#[derive(Debug)]
pub struct Instance<S> {
    shared: Rc<Shared<S>>,
    network: InstanceNetwork,
    rules: RefCell<Rc<Rules>>,
    grants: RefCell<Grants>,
    cache: RefCell<Cache>,
    tally: RefCell<Tally>,
    /// The sets may hold what is not recorded: they are cleared before anything is added.
    unknown: Cell<bool>,
}

impl<S: Sets> Instance<S> {
    /// An instance whose sets are still unknown.
    #[must_use]
    pub fn new(shared: Rc<Shared<S>>, rules: &DnsRules, budget: Budget) -> Self {
        Self {
            shared,
            network: rules.network,
            rules: RefCell::new(Rc::new(Rules::new(rules))),
            grants: RefCell::new(Grants::new(budget.targets)),
            cache: RefCell::new(Cache::new(budget.cache_bytes)),
            tally: RefCell::new(Tally::new(budget.names)),
            unknown: Cell::new(true),
        }
    }

    /// Where it lives.
    #[must_use]
    pub const fn network(&self) -> InstanceNetwork {
        self.network
    }

    /// Takes up changed rules; [`Self::settle`] must follow.
    pub fn set_rules(&self, rules: &DnsRules, budget: Budget) {
        let rules = Rules::new(rules);
        if rules.only.is_none() {
            // Whatever its sets hold now will be unknown when it has a list again.
            self.unknown.set(true);
        }
        *self.rules.borrow_mut() = Rc::new(rules);
        self.cache.borrow_mut().bound(budget.cache_bytes);
        self.grants.borrow_mut().bound(budget.targets);
        self.tally.borrow_mut().bound(budget.names);
    }

    /// What was counted, if anything was since this was asked last.
    pub fn take_changed(&self) -> bool {
        self.tally.borrow_mut().take_changed()
    }

    /// Everything counted.
    #[must_use]
    pub fn counters(&self) -> DnsCounters {
        self.tally.borrow().counters()
    }

    /// Makes the sets hold no more than what is recorded and allowed. On failure, it is to be called again.
    ///
    /// # Errors
    /// [`SetsError`].
    pub fn settle(&self) -> Result<(), SetsError> {
        let rules = Rc::clone(&self.rules.borrow());
        if rules.only.is_none() {
            self.grants.borrow_mut().clear();
            return Ok(());
        }
        self.clear_unknown()?;
        let unentitled = self.grants.borrow().unentitled(|name| rules.access(name));
        self.take_back(&unentitled)
    }

    /// Whether [`Self::settle`] has work left.
    #[must_use]
    pub fn is_unsettled(&self) -> bool {
        self.unknown.get() && self.rules.borrow().only.is_some()
    }

    /// Answers a message of the container; `None` if it deserves no answer.
    pub async fn reply(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = match read(bytes) {
            Received::Question(question) => question,
            Received::Reply(reply) => {
                self.count(|seen| seen.queries += 1);
                return Some(reply);
            }
            Received::Nothing => return None,
        };
        self.count(|seen| seen.queries += 1);
        match self.answer(&question).await {
            Ok(answer) => Some(question.answer(&answer, transport)),
            Err(Denied::Refused(refusal)) => Some(question.refuse(refusal)),
            Err(Denied::Failed) => {
                self.count(|seen| seen.failed += 1);
                Some(question.fail())
            }
        }
    }

    async fn answer(&self, question: &Question) -> Result<Answer, Denied> {
        let name = plain(question.query().name());
        let recorded = || match &name {
            Some(name) => name.clone(),
            None => question.query().name().to_ascii().to_ascii_lowercase(),
        };
        if self.verdict(name.as_deref()) == Verdict::Refused {
            self.tally.borrow_mut().outside(recorded(), &BTreeSet::new());
            return Err(self.refuse(Refusal::NotListed));
        }
        let answer = self.resolve(question).await.ok_or(Denied::Failed)?;
        let addresses = answer.addresses();
        if addresses.len() > MAX_ADDRESSES {
            return Err(Denied::Failed);
        }
        let rules = Rc::clone(&self.rules.borrow());
        if addresses.iter().any(|&address| is_closed(address, &rules.networks)) {
            return Err(self.refuse(Refusal::ClosedAddress));
        }
        match rules.verdict(name.as_deref()) {
            Verdict::Open => {}
            Verdict::Recorded => self.tally.borrow_mut().outside(recorded(), &addresses),
            Verdict::Refused => return Err(self.refuse(Refusal::NotListed)),
            Verdict::Listed(access, mode) => {
                let name = Rc::from(name.unwrap_or_default());
                let granted = self.grant(&name, &Target::all(&addresses, &access), answer.ttl());
                if let Err(error) = granted {
                    let slot = self.network.slot().number();
                    tracing::warn!(slot, error = chain(&error), "addresses cannot be allowed");
                    if mode == Mode::Enforced {
                        return Err(Denied::Failed);
                    }
                }
            }
        }
        Ok(answer)
    }

    fn verdict(&self, name: Option<&str>) -> Verdict {
        self.rules.borrow().verdict(name)
    }

    fn refuse(&self, refusal: Refusal) -> Denied {
        self.count(|seen| match refusal {
            Refusal::NotListed => seen.refused += 1,
            Refusal::ClosedAddress => seen.rebinding += 1,
        });
        Denied::Refused(refusal)
    }

    async fn resolve(&self, question: &Question) -> Option<Answer> {
        let query = question.query();
        if let Some(answer) = self.cache.borrow().find(query, Instant::now()) {
            return Some(answer);
        }
        match self.shared.upstreams.ask(query).await {
            Ok(answer) => {
                self.cache.borrow_mut().keep(query, &answer, Instant::now());
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "no answer from upstream");
                None
            }
        }
    }

    /// Lets the instance reach the addresses of a listed name, whatever the sets hold already: somebody may
    /// have flushed them.
    fn grant(
        &self,
        name: &Rc<str>,
        wanted: &BTreeSet<Target>,
        ttl: Duration,
    ) -> Result<(), SetsError> {
        self.clear_unknown()?;
        let recorded = self.grants.borrow_mut().record(name, wanted, ttl, Instant::now());
        self.take_back(&recorded.evicted)?;
        recorded.adds.into_iter().try_for_each(|(target, timeout)| {
            self.change(target, |entry| SetChange::Add(entry, timeout))
        })
    }

    fn take_back(&self, targets: &[Target]) -> Result<(), SetsError> {
        let removed = targets.iter().try_for_each(|&target| self.change(target, SetChange::Remove));
        if removed.is_err() {
            self.unknown.set(true);
        }
        self.grants.borrow_mut().forget(targets);
        removed
    }

    fn change(&self, target: Target, change: impl Fn(Entry) -> SetChange) -> Result<(), SetsError> {
        let slot = self.network.slot();
        target
            .entries()
            .into_iter()
            .try_for_each(|entry| self.shared.sets.change(&entry.set(slot), change(entry)))
    }

    /// Clears the sets if they may hold what is not recorded.
    fn clear_unknown(&self) -> Result<(), SetsError> {
        if self.unknown.get() {
            for set in [InstanceSet::Names, InstanceSet::NamePorts] {
                for family in Family::BOTH {
                    let set = set.name(self.network.slot(), family);
                    self.shared.sets.change(&set, SetChange::Clear)?;
                }
            }
            self.grants.borrow_mut().clear();
            self.unknown.set(false);
        }
        Ok(())
    }

    fn count(&self, count: impl FnOnce(&mut DnsCounters)) {
        self.tally.borrow_mut().count(count);
    }
}

/// Why a question gets no answer.
enum Denied {
    /// The policy says so.
    Refused(Refusal),
    /// The upstream, or the sets, failed.
    Failed,
}
