//! One instance: its rules, what its sets hold, what was counted; and how a question of its container is
//! answered.
//!
//! The order of an answer: is the name allowed → what does it lead to → is that closed → is it in the
//! sets → reply. A policy that changes while the upstream is asked counts: rules are looked at again
//! before a set is changed, and a tightened list takes back afterwards what it no longer allows.
//!
//! Where to start: [`Instance::reply`].

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::{InstanceNetwork, Slot};
use claw_core::firewall::{Cidr, DnsRules, Family, InstanceSet, Mode};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::budget::Budget;
use super::cache::Cache;
use super::closed::is_closed;
use super::grants::{Grants, entries};
use super::names::{Access, Names, plain};
use super::question::{Question, Received, Refusal, Transport, read};
use super::sets::{Entry, SetChange, Sets, SetsError};
use super::tally::Tally;
use super::upstream::Upstreams;
use crate::logging::chain;
use crate::ports::DnsCounters;

/// Longest time for one question, sets included. Stub resolvers ask again after 5 s (resolv.conf(5)).
const DEADLINE: Duration = Duration::from_millis(4800);
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
    /// Held while sets are changed, so that the record and the sets agree.
    changing: Mutex<()>,
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
            grants: RefCell::new(Grants::new(budget.entries)),
            cache: RefCell::new(Cache::new(budget.cache_bytes)),
            tally: RefCell::new(Tally::new(budget.names)),
            changing: Mutex::new(()),
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
        self.grants.borrow_mut().bound(budget.entries);
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

    /// Makes the sets hold no more than what is recorded and allowed. Without effect if they do; on
    /// failure, it is to be called again.
    ///
    /// # Errors
    /// [`SetsError`].
    pub async fn settle(&self) -> Result<(), SetsError> {
        let _changing = self.changing.lock().await;
        let rules = Rc::clone(&self.rules.borrow());
        if rules.only.is_none() {
            self.grants.borrow_mut().clear();
            return Ok(());
        }
        self.clear_unknown().await?;
        let unentitled = self.grants.borrow().unentitled(|name| rules.access(name));
        if unentitled.is_empty() {
            return Ok(());
        }
        let removed = self.shared.sets.change(&self.removals(&unentitled)).await;
        if removed.is_err() {
            self.unknown.set(true);
        }
        self.grants.borrow_mut().forget(&unentitled);
        removed
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
        match timeout(DEADLINE, self.answer(&question)).await {
            Ok(Ok(answer)) => Some(question.answer(&answer, transport)),
            Ok(Err(Denied::Refused(refusal))) => Some(question.refuse(refusal)),
            Ok(Err(Denied::Failed)) | Err(_) => {
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
            Verdict::Listed(_access, mode) => {
                let granted = match &name {
                    Some(name) => self.grant(name, &addresses, answer.ttl()).await,
                    None => false,
                };
                if !granted && mode == Mode::Enforced {
                    return Err(Denied::Failed);
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

    /// Lets the instance reach the addresses of a listed name; false if the sets could not be changed, or
    /// the name is no longer listed.
    async fn grant(&self, name: &str, addresses: &BTreeSet<IpAddr>, ttl: Duration) -> bool {
        let wanted = |rules: &Rules| rules.access(name).map(|access| entries(addresses, &access));
        let Some(first) = wanted(&self.rules.borrow()) else { return false };
        if !self.unknown.get() && self.missing(&first, ttl).is_empty() {
            return true;
        }
        let _changing = self.changing.lock().await;
        // Another question may have brought the same, or the rules may have changed, while we waited.
        let cleared = self.clear_unknown().await;
        let Some(wanted) = wanted(&self.rules.borrow()) else { return false };
        let missing = self.missing(&wanted, ttl);
        let changed = match cleared {
            Ok(()) if missing.is_empty() => return true,
            Ok(()) => self.add(&Rc::from(name), &missing, ttl).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &changed {
            let slot = self.network.slot().number();
            tracing::warn!(
                slot,
                error = chain(error),
                "an answer is held back: its addresses cannot be allowed"
            );
        }
        changed.is_ok()
    }

    fn missing(&self, wanted: &BTreeSet<Entry>, ttl: Duration) -> Vec<Entry> {
        self.grants.borrow().missing(wanted, ttl, Instant::now())
    }

    async fn add(&self, name: &Rc<str>, missing: &[Entry], ttl: Duration) -> Result<(), SetsError> {
        let recorded = self.grants.borrow_mut().record(name, missing, ttl, Instant::now());
        let slot = self.network.slot();
        let mut changes = self.removals(&recorded.evicted);
        changes.extend(recorded.adds.iter().map(|&(entry, timeout)| SetChange::Add {
            set: entry.set(slot),
            entry,
            timeout,
        }));
        self.shared.sets.change(&changes).await?;
        let mut grants = self.grants.borrow_mut();
        grants.forget(&recorded.evicted);
        grants.confirm(missing, Instant::now());
        Ok(())
    }

    fn removals(&self, entries: &[Entry]) -> Vec<SetChange> {
        let slot = self.network.slot();
        let remove = |&entry: &Entry| SetChange::Remove { set: entry.set(slot), entry };
        entries.iter().map(remove).collect()
    }

    /// Clears the sets if they may hold what is not recorded.
    async fn clear_unknown(&self) -> Result<(), SetsError> {
        if self.unknown.get() {
            for set in live_sets(self.network.slot()) {
                self.shared.sets.clear(&set).await?;
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

/// The sets that this program fills.
fn live_sets(slot: Slot) -> Vec<String> {
    let of = |set: InstanceSet| Family::BOTH.map(|family| set.name(slot, family));
    [InstanceSet::Names, InstanceSet::NamePorts].into_iter().flat_map(of).collect()
}
