//! The host's loop: owns the instances, takes desired states, listens to Docker, feeds the watchdog.
//!
//! It never waits for an instance. What it waits for itself has a deadline: the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use claw_core::address::Slot;
use claw_core::event::{EventKind, Severity};
use claw_core::firewall::{FirewallDetail, Surroundings};
use claw_core::host::HostState;
use claw_core::name::{ImageRef, InstanceName};
use claw_core::plan::{DesiredInstance, Target};
use claw_core::stamp::Stamp;
use tokio::select;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::accept::{Accepted, Held, Refused, Verdict, judge_offer, render};
use super::backups::{BackupRequest, Backups, BackupsHandle};
use super::deadline::{self, within};
use super::firewall::{FirewallLoop, FirewallTarget, Meter, Noted, detail, guard};
use super::images::Images;
use super::instance::{InstanceLoop, Pulse};
use super::reclaim::Reclaimer;
use super::trial;
use super::wake::{Bell, Cause};
use crate::agent::Agent;
use crate::journal::{Note, Recovered, Remembered, Versions, WriteFailure};
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, Runtime as _, RuntimeEvent};

/// A state that could not be persisted is tried again after this.
const PERSIST_RETRY: Duration = Duration::from_secs(10);
/// Looking and journaling taking this long means that a loop is stuck: above every deadline in them.
const STUCK: Duration = Duration::from_secs(120);
/// Requests that may wait.
const REQUESTS: usize = 16;

/// A desired state as the coordinator sent it.
#[derive(Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which one it is.
    pub stamp: Stamp,
    /// An encoded `HostState`.
    pub bytes: Bytes,
}

/// Prints no content: a state holds secrets.
impl std::fmt::Debug for Offer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Offer").field("stamp", &self.stamp).finish_non_exhaustive()
    }
}

/// Something that the coordinator asks for once.
#[derive(Debug)]
pub enum Request {
    /// Observe one instance, or all, again. Answered once it is under way.
    Observe(Option<InstanceName>, oneshot::Sender<Result<(), UnknownInstance>>),
    /// Tell everything of the firewall.
    Firewall(oneshot::Sender<Result<Box<FirewallDetail>, String>>),
    /// Do something with an instance's snapshots.
    Backup(BackupRequest),
}

/// There is no such instance here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("instance {0} is not on this host")]
pub struct UnknownInstance(pub InstanceName);

/// The way into the host's loop. In the mailbox only the newest offer counts.
#[derive(Debug, Clone)]
pub struct Inbox {
    offers: watch::Sender<Option<Offer>>,
    requests: mpsc::Sender<Request>,
}

impl Inbox {
    /// Puts an offer in, in place of one that was not looked at yet. Never waits.
    pub fn offer(&self, offer: Offer) {
        self.offers.send_replace(Some(offer));
    }

    /// Asks for something once; returns the request when too many wait.
    ///
    /// # Errors
    /// The queue is full, or the loop has ended.
    pub fn request(&self, request: Request) -> Result<(), mpsc::error::TrySendError<Request>> {
        self.requests.try_send(request)
    }
}

/// The host's loop.
pub struct HostLoop<M> {
    agent: Rc<Agent<M>>,
    offers: watch::Receiver<Option<Offer>>,
    requests: mpsc::Receiver<Request>,
    ended: (mpsc::Sender<InstanceName>, mpsc::Receiver<InstanceName>),
    /// The persisted state and whether its content could be read.
    stamp: Option<(Stamp, bool)>,
    slots: BTreeMap<InstanceName, Slot>,
    found: BTreeMap<InstanceName, Slot>,
    instances: BTreeMap<InstanceName, Member>,
    firewall: watch::Sender<Option<Rc<FirewallTarget>>>,
    surroundings: watch::Receiver<Surroundings>,
    backups: BackupsHandle,
    /// The loop of the firewall, the guard against guessing, the loops of snapshots, of images and of room.
    _helpers: [Helper; 5],
}

/// A task that ends with its owner.
struct Helper(JoinHandle<()>);

impl Drop for Helper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Member {
    target: watch::Sender<Rc<DesiredInstance>>,
    bell: Rc<Bell>,
    pulse: Rc<Pulse>,
    task: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<M> std::fmt::Debug for HostLoop<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostLoop")
            .field("stamp", &self.stamp)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

impl<M: Machine> HostLoop<M> {
    /// A loop that goes on where `recovered` ends. Must be called within a `LocalSet`.
    #[must_use]
    pub fn new(agent: Rc<Agent<M>>, mut recovered: Recovered) -> (Self, Inbox) {
        let (offers, offers_in) = watch::channel(None);
        let (requests, requests_in) = mpsc::channel(REQUESTS);
        let (firewall, targets) = watch::channel(None);
        let (survey, surroundings) = watch::channel(Surroundings::default());
        let meter = Meter::new(recovered.notes.get(&Note::Tally).map(Vec::as_slice));
        let noted = Noted::read(&recovered.notes);
        let keeper = FirewallLoop::new(Rc::clone(&agent), targets, survey, noted, meter);
        let guard = guard(Rc::clone(&agent));
        let notes = std::mem::take(&mut recovered.backup_notes);
        let (keeps, backups) = Backups::new(Rc::clone(&agent), notes);
        let images = recovered.notes.get(&Note::Images).map(Vec::as_slice);
        let images = Images::new(Rc::clone(&agent), images);
        // Those whose loops cannot be started need something, too.
        recovered.instances.keys().for_each(|name| agent.roster.expect(name, None));
        let helpers = [
            Helper(tokio::task::spawn_local(keeper.run())),
            Helper(tokio::task::spawn_local(guard)),
            Helper(tokio::task::spawn_local({
                let agent = Rc::clone(&agent);
                async move {
                    trial::sweep(&agent).await;
                    keeps.run().await;
                }
            })),
            Helper(tokio::task::spawn_local(images.run())),
            Helper(tokio::task::spawn_local(Reclaimer::new(Rc::clone(&agent)).run())),
        ];
        let mut host = Self {
            agent,
            firewall,
            surroundings,
            backups,
            _helpers: helpers,
            offers: offers_in,
            requests: requests_in,
            ended: mpsc::channel(usize::from(claw_core::address::MAX_SLOTS)),
            stamp: None,
            slots: recovered
                .instances
                .iter()
                .map(|(name, (slot, _))| (name.clone(), *slot))
                .collect(),
            found: BTreeMap::new(),
            instances: BTreeMap::new(),
        };
        host.resume(recovered);
        (host, Inbox { offers, requests })
    }

    /// Runs until dropped. `alive` is called at every `beat` if everything makes progress.
    pub async fn run(mut self, beat: Duration, alive: impl Fn()) {
        let agent = Rc::clone(&self.agent);
        let mut events = agent.machine.runtime().events();
        let mut in_force = agent.board.in_force();
        let mut retry: Option<Offer> = None;
        let mut beats = std::pin::pin!(agent.machine.clock().sleep(beat));
        loop {
            let again = async {
                match &retry {
                    Some(_) => agent.machine.clock().sleep(PERSIST_RETRY).await,
                    None => std::future::pending().await,
                }
            };
            select! {
                biased;
                Some(event) = events.recv() => self.heard(event).await,
                Ok(()) = self.offers.changed() => {
                    let offer = self.offers.borrow_and_update().clone();
                    retry = match offer { Some(offer) => self.take(offer).await, None => None };
                }
                () = again => {
                    retry = match retry.take() { Some(offer) => self.take(offer).await, None => None };
                }
                Some(request) = self.requests.recv() => self.answer(request),
                Ok(()) = in_force.changed() => {
                    in_force.mark_unchanged();
                    self.instances.values().for_each(|member| member.bell.ring(Cause::Look));
                }
                Some(name) = self.ended.1.recv() => self.forgotten(&name).await,
                () = &mut beats => {
                    if self.is_progressing().await {
                        alive();
                    }
                    beats.set(agent.machine.clock().sleep(beat));
                }
            }
        }
    }

    /// Goes on with the persisted state, without the coordinator.
    fn resume(&mut self, recovered: Recovered) {
        if recovered.interrupted > 0 {
            tracing::info!(
                steps = recovered.interrupted,
                "an earlier agent was ended in their midst"
            );
        }
        let Some(persisted) = recovered.state else { return };
        let state = persisted
            .bytes
            .as_ref()
            .and_then(|bytes| claw_proto::convert::session::decode_host_state(bytes).ok());
        self.stamp = Some((persisted.stamp, state.is_some()));
        let Some(state) = state else {
            tracing::error!(
                "the persisted state cannot be read: waiting for the coordinator to send it again"
            );
            return;
        };
        self.resume_state(&persisted.stamp, &state, recovered.instances, &recovered.versions);
    }

    fn resume_state(
        &mut self,
        stamp: &Stamp,
        state: &HostState,
        mut remembered: BTreeMap<InstanceName, (Slot, Remembered)>,
        versions: &BTreeMap<InstanceName, Versions>,
    ) {
        let rendered = render(state, stamp.generation, &self.slots, self.agent.settings.pool);
        let names: BTreeSet<InstanceName> = self.slots.keys().cloned().collect();
        self.agent.board.applying(*stamp, &names, self.agent.machine.clock().now());
        for (name, fault) in &rendered.faults {
            tracing::error!(instance = name.as_str(), fault, "left as it is");
        }
        for (name, desired) in rendered.targets {
            let (_, remembered) = remembered.remove(&name).unzip();
            let versions = versions.get(&name).cloned().unwrap_or_default();
            self.spawn(desired, remembered.unwrap_or_default(), &versions);
        }
        self.want_firewall(state, stamp);
        self.agent.roster.copy_to(state.offsite.clone());
        let gone = state.confirm_removal.iter().filter(|name| !names.contains(*name));
        gone.for_each(|name| self.agent.board.removed(name, stamp.generation));
    }

    /// Judges, persists and applies an offer; returns it when it must be tried again.
    async fn take(&mut self, offer: Offer) -> Option<Offer> {
        let surroundings = self.surroundings.borrow().clone();
        let held = Held {
            surroundings: &surroundings,
            stamp: self.stamp.as_ref().filter(|(_, readable)| *readable).map(|(stamp, _)| stamp),
            slots: &self.slots,
            found: &self.found,
            settings: &self.agent.settings,
        };
        let verdict = match (&self.stamp, judge_offer(&held, &offer.stamp, &offer.bytes)) {
            // Content that was lost may be sent again; nothing older may.
            (Some((stamp, false)), Ok(_)) if older(&offer.stamp, stamp) => {
                Err(Refused(vec![format!("state {} is older than {stamp}", offer.stamp)]))
            }
            (_, verdict) => verdict,
        };
        match verdict {
            Ok(Verdict::Known) => self.agent.board.known(),
            Ok(Verdict::Take(accepted)) => {
                let job = self.agent.journal.persist_state(
                    &offer.stamp,
                    &offer.bytes,
                    accepted.added.clone(),
                );
                let outcome = within(self.agent.machine.clock(), deadline::JOURNAL, job).await;
                if let Some(problem) = persist_problem(outcome) {
                    self.agent.board.refused(offer.stamp, problem);
                    return Some(offer);
                }
                self.apply(&offer.stamp, *accepted);
            }
            Err(refused) => {
                let message = format!("state {}: {refused}", offer.stamp);
                self.agent.event(None, EventKind::StateRefused, Severity::Error, message);
                self.agent.board.refused(offer.stamp, refused.to_string());
            }
        }
        None
    }

    fn apply(&mut self, stamp: &Stamp, accepted: Accepted) {
        self.stamp = Some((*stamp, true));
        self.slots.extend(accepted.added);
        self.want_firewall(&accepted.state, stamp);
        self.agent.roster.copy_to(accepted.state.offsite.clone());
        let names: BTreeSet<InstanceName> = accepted.targets.keys().cloned().collect();
        self.agent.board.applying(*stamp, &names, self.agent.machine.clock().now());
        for name in &accepted.gone {
            self.agent.board.removed(name, stamp.generation);
        }
        for (name, desired) in accepted.targets {
            match self.instances.get(&name) {
                Some(member) => {
                    self.agent.roster.expect(&name, wanted_image(&desired));
                    member.target.send_replace(Rc::new(desired));
                }
                None => self.spawn(desired, Remembered::default(), &Versions::default()),
            }
        }
        let message = format!("state {stamp} with {} instances", names.len());
        self.agent.event(None, EventKind::StatePersisted, Severity::Info, message);
    }

    /// Tells the firewall's loop what the state wants of it.
    fn want_firewall(&self, state: &HostState, stamp: &Stamp) {
        let pool = self.agent.settings.pool;
        let networks = self.slots.iter().map(|(name, slot)| (name.clone(), pool.network(*slot)));
        let target = FirewallTarget::of(state, stamp.generation, networks);
        self.firewall.send_replace(Some(Rc::new(target)));
    }

    fn spawn(&mut self, desired: DesiredInstance, remembered: Remembered, versions: &Versions) {
        let name = desired.name.clone();
        self.agent.roster.expect(&name, wanted_image(&desired));
        let (target, targets) = watch::channel(Rc::new(desired));
        let (bell, pulse) = (Rc::<Bell>::default(), Rc::<Pulse>::default());
        let instance = InstanceLoop::new(
            Rc::clone(&self.agent),
            targets,
            Rc::clone(&bell),
            Rc::clone(&pulse),
            remembered,
            versions,
        );
        let (ended, name_of_task) = (self.ended.0.clone(), name.clone());
        let task = tokio::task::spawn_local(async move {
            instance.run().await;
            // The channel has room for every instance; if it is closed, the host's loop is gone.
            let _ended = ended.send(name_of_task).await;
        });
        self.instances.insert(name, Member { target, bell, pulse, task });
    }

    /// An instance is gone from the host and from the journal.
    async fn forgotten(&mut self, name: &InstanceName) {
        let Some(member) = self.instances.remove(name) else { return };
        let desired = Rc::clone(&member.target.borrow());
        drop(member);
        if desired.target == Target::Removed {
            self.slots.remove(name);
            self.agent.board.removed(name, desired.generation);
            let message = "removed; its data was set aside";
            self.agent.event(Some(name), EventKind::Removed, Severity::Info, message);
            return;
        }
        // It was wanted again in the very moment in which it was forgotten: it keeps its slot.
        let Some(slot) = self.slots.get(name).copied() else { return };
        if let Err(error) = self.agent.journal.add(name, slot).await {
            tracing::error!(instance = name.as_str(), error = chain(&error), "cannot journal");
        }
        let desired = DesiredInstance::clone(&desired);
        self.spawn(desired, Remembered::default(), &Versions::default());
    }

    async fn heard(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Changed(name) => {
                if let Some(member) = self.instances.get(&name) {
                    member.bell.ring(Cause::Look);
                }
            }
            RuntimeEvent::Lost(problem) => self.agent.runtime_answers(Err(problem)),
            RuntimeEvent::Connected => {
                self.instances.values().for_each(|member| member.bell.ring(Cause::Retry));
                self.take_inventory().await;
            }
        }
    }

    /// Finds what carries our label and is not held: reported, never touched.
    async fn take_inventory(&mut self) {
        let clock = self.agent.machine.clock();
        let runtime = self.agent.machine.runtime();
        let inventory = match within(clock, deadline::LOOK, runtime.inventory()).await {
            Ok(Ok(inventory)) => inventory,
            Ok(Err(error)) => return self.agent.runtime_answers(Err(chain(&error))),
            Err(elapsed) => return self.agent.runtime_answers(Err(chain(&elapsed))),
        };
        self.agent.runtime_answers(Ok(()));
        self.found.clear();
        for name in inventory.iter().filter(|name| !self.slots.contains_key(*name)) {
            tracing::warn!(instance = name.as_str(), "carries our label and is not in the journal");
            if let Ok(Ok(view)) = within(clock, deadline::LOOK, runtime.view(name, None)).await {
                let bridge = view.network.map(|network| network.bridge);
                self.found.extend(bridge.and_then(slot_of).map(|slot| (name.clone(), slot)));
            }
        }
        self.agent.board.found(inventory);
    }

    fn answer(&self, request: Request) {
        let (name, reply) = match request {
            Request::Observe(name, reply) => (name, reply),
            Request::Backup(request) => return self.backups.request(request),
            Request::Firewall(reply) => {
                let agent = Rc::clone(&self.agent);
                tokio::task::spawn_local(async move {
                    // Whoever asked may be gone.
                    let _asked = reply.send(detail(&agent).await);
                });
                return;
            }
        };
        let outcome = match name {
            Some(name) => match self.instances.get(&name) {
                Some(member) => {
                    member.bell.ring(Cause::Retry);
                    Ok(())
                }
                None => Err(UnknownInstance(name)),
            },
            None => {
                self.instances.values().for_each(|member| member.bell.ring(Cause::Retry));
                Ok(())
            }
        };
        // Whoever asked may be gone.
        let _asked = reply.send(outcome);
    }

    /// The journal's thread answers, and no instance's loop is stuck in what should be short.
    async fn is_progressing(&self) -> bool {
        let clock = self.agent.machine.clock();
        let now = clock.now();
        let stuck = self.instances.iter().find(|(_, member)| {
            member.pulse.busy_since.get().is_some_and(|since| now.since(since) > STUCK)
        });
        if let Some((name, _)) = stuck {
            tracing::error!(instance = name.as_str(), "its loop is stuck");
            return false;
        }
        let answer = within(clock, deadline::JOURNAL, self.agent.journal.answer()).await;
        // A journal that answers with an error is a full or broken disk: a restart would not help.
        answer.is_ok()
    }
}

fn persist_problem(outcome: Result<Result<(), WriteFailure>, deadline::Elapsed>) -> Option<String> {
    match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("not persisted, tried again: {}", chain(&error))),
        Err(elapsed) => Some(format!("not persisted, tried again: {}", chain(&elapsed))),
    }
}

fn wanted_image(desired: &DesiredInstance) -> Option<ImageRef> {
    match &desired.target {
        Target::Present { spec, .. } => Some(spec.image.clone()),
        Target::Removed => None,
    }
}

fn older(offered: &Stamp, persisted: &Stamp) -> bool {
    (offered.epoch, offered.generation) < (persisted.epoch, persisted.generation)
}

/// The slot whose bridge has this name (see [`claw_core::address::InstanceNetwork::bridge`]).
fn slot_of(bridge: String) -> Option<Slot> {
    bridge.strip_prefix("claw-i")?.parse().ok().and_then(Slot::new)
}
