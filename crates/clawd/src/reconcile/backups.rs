//! Takes snapshots of every instance of the host, keeps the right ones, and looks whether they are sound.
//!
//! One loop for the host, level-triggered: whatever wakes it (a change of the roster, a request, the time),
//! it decides anew what is due ([`due`], pure) and does one job at a time ([`job`]), the most urgent first.
//! It needs no coordinator. What it must remember is in the journal ([`record`]); what it holds is said by
//! the repositories themselves.
//!
//! What it does not do: stop or start instances, or remove their data. It says what is held
//! ([`crate::roster::Held`]), and the instances' loops wait for that. Bytes that leave the host go through
//! ports: to a storage ([`offsite`]), or through a pipe that the session opens ([`errand`]).
//!
//! Where to start: [`Backups::run`], then [`due::agenda`].

mod attempt;
mod deliver;
mod drill;
mod due;
mod errand;
mod job;
mod ledger;
mod offsite;
mod progress;
mod record;
mod request;
mod retention;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use claw_core::name::InstanceName;
use claw_core::offsite::OffsitePolicy;
use claw_core::plan::Target;
use claw_core::time::Timestamp;
use tokio::select;
use tokio::sync::{mpsc, oneshot};

use super::deadline::{JOURNAL, within};
use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::Clock as _;
use crate::roster::{Elsewhere, Member};
use due::{Due, Kind, Next, Room, Work, agenda};
use errand::Errands;
use job::{Done, Keys, Order};
use ledger::{Ended, Ledger, Told};
use record::BackupRecord;
use request::{RequestRefused, judge};

pub use errand::{Errand, Fetch, Passage};
pub(super) use job::{JobError, is_low};
pub(super) use request::BackupsHandle;
pub use request::{BackupRequest, BackupWork, Extent};

/// Between two looks at everything, whatever the agenda says: clocks are set.
const IDLE: Duration = Duration::from_secs(3600);
/// Between two looks at the disk while nothing is done.
const DISK: Duration = Duration::from_secs(300);
/// What takes as long as the line does is broken off after this, and goes on where it stopped: the disk is looked
/// at meanwhile.
const SHIFT: Duration = Duration::from_secs(3600);

/// The loop of snapshots.
pub(super) struct Backups<M> {
    agent: Rc<Agent<M>>,
    requests: mpsc::Receiver<BackupRequest>,
    /// Of instances whose loops have not said anything yet.
    notes: BTreeMap<InstanceName, Vec<u8>>,
    ledgers: BTreeMap<InstanceName, Ledger>,
    /// What is in the journal.
    saved: BTreeMap<InstanceName, BackupRecord>,
    /// Whose loops were told what is held.
    told: BTreeSet<InstanceName>,
    disk: Room,
    disk_seen: Option<Timestamp>,
    errands: Errands,
    elsewhere: Elsewhere,
}

impl<M: Machine> Backups<M> {
    /// A loop that goes on where an earlier agent's notes end.
    pub(super) fn new(
        agent: Rc<Agent<M>>,
        notes: BTreeMap<InstanceName, Vec<u8>>,
    ) -> (Self, BackupsHandle) {
        let (handle, requests) = BackupsHandle::new();
        let backups = Self {
            agent,
            requests,
            notes,
            ledgers: BTreeMap::new(),
            saved: BTreeMap::new(),
            told: BTreeSet::new(),
            disk: Room::Enough,
            disk_seen: None,
            errands: Errands::default(),
            elsewhere: Elsewhere::default(),
        };
        (backups, handle)
    }

    /// Runs until dropped. Must be called within a `LocalSet`.
    pub(super) async fn run(mut self) {
        let agent = Rc::clone(&self.agent);
        let clock = agent.machine.clock();
        let mut roster = agent.roster.subscribe();
        loop {
            roster.borrow_and_update();
            self.take_stock();
            self.look_at_disk().await;
            let now = clock.now();
            match due::next(&self.agendas(now), now) {
                Next::Do(name, Work::Errand(_)) => self.run_errand(&name).await,
                Next::Do(name, work) => self.carry_out(&name, work).await,
                Next::Wait(until) => {
                    let pause = until.map_or(IDLE, |at| at.since(now)).min(IDLE);
                    select! {
                        biased;
                        Some(request) = self.requests.recv() => self.accept(request),
                        Ok(()) = roster.changed() => {}
                        () = clock.sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Brings the ledgers in line with the roster, and says how everything stands.
    fn take_stock(&mut self) {
        let now = self.agent.machine.clock().now();
        let members = self.agent.roster.members();
        let elsewhere = self.agent.roster.elsewhere();
        if elsewhere != self.elsewhere {
            // Another storage, or another key: what failed before says nothing of it.
            self.ledgers.values_mut().for_each(|ledger| ledger.attempts.cleared(Kind::Offsite));
            self.elsewhere = elsewhere;
        }
        self.ledgers.retain(|name, _| members.contains_key(name));
        self.saved.retain(|name, _| members.contains_key(name));
        self.told.retain(|name| members.contains_key(name));
        for (name, member) in &members {
            let forgotten = self.agent.roster.held(name).snapshots.is_none();
            if forgotten && self.told.contains(name) {
                // It was removed, and is another one of the same name now.
                self.ledgers.remove(name);
                self.saved.remove(name);
                self.told.remove(name);
            }
            if !self.ledgers.contains_key(name) {
                let record = self.recall(name, now);
                self.ledgers.insert(name.clone(), Ledger::new(record));
            }
            self.say(name, member, now);
            self.save(name);
        }
    }

    /// What is remembered of an instance that has just shown itself.
    fn recall(&mut self, name: &InstanceName, now: Timestamp) -> BackupRecord {
        let fresh = BackupRecord { first_seen: now, ..BackupRecord::default() };
        let Some(note) = self.notes.remove(name) else { return fresh };
        match BackupRecord::decode(&note) {
            Ok(record) => {
                self.saved.insert(name.clone(), record.clone());
                record
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(instance = name.as_str(), error, "its note is unreadable");
                fresh
            }
        }
    }

    fn say(&mut self, name: &InstanceName, member: &Member, now: Timestamp) {
        let Some(ledger) = self.ledgers.get_mut(name) else { return };
        ledger.settle(&self.elsewhere, member, now);
        ledger.follow(member);
        let before = self.agent.roster.held(name);
        let held = ledger.held();
        if before != *held {
            self.agent.roster.set_held(name, held.clone());
        }
        if held.snapshots.is_some() {
            self.told.insert(name.clone());
        }
        let report = ledger.report(&ledger.subject(member, self.disk, now), now);
        let told = ledger.tell_overdue(&report);
        self.agent.board.backups(name, report);
        self.tell(name, told);
    }

    fn tell(&self, name: &InstanceName, told: impl IntoIterator<Item = Told>) {
        for Told(kind, severity, message) in told {
            self.agent.event(Some(name), kind, severity, message);
        }
    }

    fn agendas(&self, now: Timestamp) -> Vec<(InstanceName, Vec<Due>)> {
        let members = self.agent.roster.members();
        let known = members.iter().filter_map(|(name, member)| {
            let ledger = self.ledgers.get(name)?;
            Some((name.clone(), agenda(&ledger.subject(member, self.disk, now), now)))
        });
        known.chain(self.errands.agendas()).collect()
    }

    /// Whether the disk is below its watermark. A directory that is absent tells it with no walk.
    async fn look_at_disk(&mut self) {
        let now = self.agent.machine.clock().now();
        if self.disk_seen.is_some_and(|seen| now.since(seen) < DISK && seen <= now) {
            return;
        }
        let Some(name) = self.ledgers.keys().next() else { return };
        self.disk_seen = Some(now);
        match job::measure(&self.agent, name, drill::DRILL_DATA).await {
            Ok(measure) => self.disk = job::watermark(&measure),
            Err(error) => tracing::warn!(error = chain(&error), "cannot look at the disk"),
        }
    }

    /// Does a job; requests are answered meanwhile.
    async fn carry_out(&mut self, name: &InstanceName, work: Work) {
        let now = self.agent.machine.clock().now();
        let Some(order) = self.order(name, work, now) else { return };
        let agent = Rc::clone(&self.agent);
        let outcome = match self.begin(&order).await {
            Ok(()) => self.work_on(&order.work, Some(&order), job::run(&agent, &order)).await,
            Err(error) => Some(Err(error)),
        };
        self.disk_seen = None;
        if let Some(outcome) = outcome {
            self.conclude(name, &order, outcome);
        }
    }

    /// Does a job while requests are answered. None: it was broken off for something more urgent; it is done
    /// again later.
    async fn work_on<T>(
        &mut self,
        work: &Work,
        order: Option<&Order>,
        job: impl Future<Output = T>,
    ) -> Option<T> {
        let agent = Rc::clone(&self.agent);
        let clock = agent.machine.clock();
        let (mut roster, mut job) = (agent.roster.subscribe(), Box::pin(job));
        let begun = clock.now();
        loop {
            let pause = self.until_urgent(work, begun);
            select! {
                biased;
                outcome = &mut job => return Some(outcome),
                Some(request) = self.requests.recv() => self.accept(request),
                Ok(()) = roster.changed(), if work.may_wait() => self.take_stock(),
                () = clock.sleep(pause), if work.may_wait() => {}
            }
            let urgent = work.may_wait() && self.until_urgent(work, begun).is_zero();
            if urgent || order.is_some_and(|order| self.is_void(order)) {
                tracing::info!(%work, "broken off");
                return None;
            }
        }
    }

    /// For how long a job that may wait may go on.
    fn until_urgent(&self, work: &Work, begun: Timestamp) -> Duration {
        let now = self.agent.machine.clock().now();
        let agendas = self.agendas(now);
        let dues = agendas.iter().flat_map(|(_, dues)| dues);
        let urgent = dues.filter(|due| work.gives_way_to(due.work.kind())).map(|due| due.at);
        let shift = work.is_as_long_as_the_line().then(|| begun.after(SHIFT));
        urgent.chain(shift).min().map_or(IDLE, |at| at.since(now))
    }

    /// Whether a copy goes where it shall not go any more.
    fn is_void(&self, order: &Order) -> bool {
        let Work::Offsite(_) = order.work else { return false };
        let place = self.ledgers.get(order.instance()).map(|ledger| &ledger.destination().place);
        let member = self.agent.roster.member(order.instance());
        let wanted = member.is_some_and(|member| match &member.effective.target {
            Target::Present { spec, .. } => spec.backup.offsite != OffsitePolicy::Never,
            Target::Removed => false,
        });
        place != Some(&order.place) || !wanted
    }

    fn order(&self, name: &InstanceName, work: Work, now: Timestamp) -> Option<Order> {
        let member = self.agent.roster.member(name)?;
        let ledger = self.ledgers.get(name)?;
        tracing::debug!(instance = name.as_str(), %work, "begins");
        Some(Order {
            work,
            described: ledger.described.clone(),
            list: ledger.snapshots().unwrap_or_default().to_vec(),
            forgettable: ledger.forgettable(&member, now),
            needs: ledger.needs(&member),
            keys: ledger.keys,
            place: ledger.destination().place.clone(),
            member,
        })
    }

    /// Journals what must be known of a job before its first effect.
    async fn begin(&mut self, order: &Order) -> Result<(), JobError> {
        if order.work != Work::Drill {
            return Ok(());
        }
        let Some(ledger) = self.ledgers.get_mut(order.instance()) else { return Ok(()) };
        ledger.record.drilling = true;
        let note = self.agent.journal.backup_note(order.instance(), ledger.record.encode());
        match within(self.agent.machine.clock(), JOURNAL, note).await? {
            Ok(()) => Ok(()),
            Err(error) => {
                ledger.record.drilling = false;
                Err(JobError::Journal(Box::new(error)))
            }
        }
    }

    fn conclude(&mut self, name: &InstanceName, order: &Order, outcome: Result<Done, JobError>) {
        let clock = self.agent.machine.clock();
        let ended = Ended { at: clock.now(), random: clock.random() };
        if let Err(error) = &outcome {
            let (work, error) = (&order.work, chain(error));
            tracing::warn!(instance = name.as_str(), %work, error, "failed");
        }
        let Some(ledger) = self.ledgers.get_mut(name) else { return };
        let went_well = outcome.is_ok();
        if let Ok(Done::Listed(_, Some(keys))) = &outcome {
            self.agent.board.escrow(name, keys.clone());
            ledger.keys = Keys::Known;
        }
        let told = ledger.conclude(order, outcome, ended);
        // As it was, or what is still due would be judged by what has changed meanwhile.
        ledger.follow(&order.member);
        let subject = ledger.subject(&order.member, Room::Enough, ended.at);
        let again = |due: &Due| due.work == order.work && due.at <= ended.at;
        if went_well && agenda(&subject, ended.at).iter().any(again) {
            ledger.was_in_vain(&order.work, ended);
        }
        self.tell(name, told);
    }

    /// Answers a request; what is accepted is in the journal before.
    fn accept(&mut self, request: BackupRequest) {
        let BackupRequest { instance, work, reply } = request;
        let work = match work {
            BackupWork::Errand(errand) => {
                let verdict = self.accept_errand(instance, errand);
                // Whoever asked may be gone.
                return drop(reply.send(verdict.map_err(|refused| refused.to_string())));
            }
            work => work,
        };
        let member = self.agent.roster.member(&instance);
        let verdict = match (&member, self.ledgers.get(&instance)) {
            (Some(member), Some(ledger)) => judge(&work, member, ledger),
            _ => Err(RequestRefused::Unknown(instance.clone())),
        };
        match verdict {
            Ok(Some(ask)) => {
                let Some(ledger) = self.ledgers.get_mut(&instance) else { return };
                ledger.record.asks.push(ask);
                // Whoever asks anew does not wait for what failed before.
                ledger.attempts.cleared(Kind::Asked);
                let record = ledger.record.clone();
                self.answer_once_saved(&instance, record, reply);
            }
            // Whoever asked may be gone.
            Ok(None) => drop(reply.send(Ok(()))),
            Err(refused) => drop(reply.send(Err(refused.to_string()))),
        }
    }

    /// The job under way is not held up by the disk.
    fn answer_once_saved(
        &mut self,
        name: &InstanceName,
        record: BackupRecord,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        let note = self.agent.journal.backup_note(name, record.encode());
        self.saved.insert(name.clone(), record);
        tokio::task::spawn_local(async move {
            let saved = note.await.map_err(|error| format!("not journaled: {}", chain(&error)));
            // Whoever asked may be gone.
            drop(reply.send(saved));
        });
    }

    /// Writes down what has changed.
    fn save(&mut self, name: &InstanceName) {
        let Some(ledger) = self.ledgers.get(name) else { return };
        if self.saved.get(name) == Some(&ledger.record) {
            return;
        }
        let note = self.agent.journal.backup_note(name, ledger.record.encode());
        self.saved.insert(name.clone(), ledger.record.clone());
        let name = name.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = note.await {
                let error = chain(&error);
                tracing::warn!(instance = name.as_str(), error, "its note was not journaled");
            }
        });
    }
}

#[cfg(test)]
mod tests;
