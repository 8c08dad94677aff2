//! Room on a disk that fills: the data of paused instances leaves it, and comes back when it is wanted.
//!
//! One loop for the host, level-triggered: while the disk is below its watermark, and has been for long
//! enough that images and snapshots which nobody needs could go first, the data of the instance that was
//! paused first goes ([`claw_core::reclaim`], pure). Before that everything in its repository is read back once
//! more: from then on that is all there is. The removal itself is the instance's loop's, which is the only
//! one to change what is remembered of it.
//!
//! What it does not do: anything while there is room. Data that lies on the disk costs nothing, and resuming
//! from it takes a second instead of minutes.
//!
//! Where to start: [`Reclaimer::run`]; [`bring_back`] is the way back.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use claw_core::data::DataGeneration;
use claw_core::event::{EventKind, Severity};
use claw_core::name::{InstanceName, SnapshotName};
use claw_core::reclaim::{Reclaimable, next};
use claw_core::report::OperationReport;
use claw_core::time::Timestamp;
use claw_core::unit::MIB;

use super::backups::is_low;
use super::deadline::{self, Elapsed, within};
use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{
    Clock as _, JobProgress, Snapshots as _, SnapshotsError, VerifyDepth, VolumeError, Volumes as _,
};

/// Between two looks at the disk while some data may go.
const LOOK: Duration = Duration::from_secs(30);
/// For so long the disk must be short of room: what nobody needs goes first, and takes that long.
const PATIENCE: Duration = Duration::from_secs(60);
/// An instance's loop that does not let its data go within this is passed over.
const ASKED: Duration = Duration::from_secs(15 * 60);
/// What cannot be read back is not tried again before this.
const RETRY: Duration = Duration::from_secs(24 * 3600);
/// A verification of all data: its silence is bounded by the port, much closer.
const VERIFY: Duration = Duration::from_secs(12 * 3600);
/// Room that is left on the disk when data comes back.
const RESERVE_BYTES: u64 = 512 * MIB;

/// The loop that makes room.
pub(super) struct Reclaimer<M> {
    agent: Rc<Agent<M>>,
    /// Since when the disk is short of room.
    low_since: Option<Timestamp>,
    asked_at: Timestamp,
    /// Instances whose data does not go before then.
    not_before: BTreeMap<InstanceName, Timestamp>,
}

impl<M: Machine> Reclaimer<M> {
    pub(super) const fn new(agent: Rc<Agent<M>>) -> Self {
        Self {
            agent,
            low_since: None,
            asked_at: Timestamp::from_millis(0),
            not_before: BTreeMap::new(),
        }
    }

    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let agent = Rc::clone(&self.agent);
        let mut roster = agent.roster.subscribe();
        loop {
            roster.borrow_and_update();
            let candidates = candidates(&agent);
            if candidates.is_empty() && !agent.roster.is_reclaiming() {
                self.low_since = None;
                if roster.changed().await.is_err() {
                    return;
                }
                continue;
            }
            self.look_after(&candidates).await;
            agent.machine.clock().sleep(LOOK).await;
        }
    }

    async fn look_after(&mut self, candidates: &BTreeMap<InstanceName, Reclaimable>) {
        let now = self.agent.machine.clock().now();
        if self.agent.roster.is_reclaiming() {
            if now.since(self.asked_at) >= ASKED {
                self.pass_over(now);
            }
            return;
        }
        let Some(any) = candidates.keys().next() else { return };
        match is_low(&self.agent, any).await {
            Ok(true) => {}
            Ok(false) => return self.low_since = None,
            Err(error) => {
                return tracing::warn!(error = chain(&error), "cannot look at the disk");
            }
        }
        let since = *self.low_since.get_or_insert(now);
        if now.since(since) < PATIENCE {
            return;
        }
        self.not_before.retain(|_, at| *at > now);
        let possible = candidates.iter().filter(|(name, _)| !self.not_before.contains_key(*name));
        if let Some((name, reclaimable)) = next(possible) {
            self.let_go(name, reclaimable).await;
        }
    }

    /// Reads everything back, then asks the instance's loop.
    async fn let_go(&mut self, name: &InstanceName, reclaimable: &Reclaimable) {
        let verified = self.verify(name).await;
        let now = self.agent.machine.clock().now();
        match verified {
            Ok(()) => {
                self.asked_at = now;
                self.agent.roster.ask_reclaim(name, reclaimable.snapshot.clone());
            }
            Err(problem) => {
                self.not_before.insert(name.clone(), now.after(RETRY));
                let problem = chain(&problem);
                let message =
                    format!("its data stays although the disk is short of room: {problem}");
                let kind = EventKind::StepFailed;
                self.agent.event(Some(name), kind, Severity::Warning, message);
            }
        }
    }

    async fn verify(&self, name: &InstanceName) -> Result<(), Unverified> {
        let machine = &self.agent.machine;
        let depth = VerifyDepth::Data { part: 0, parts: 1 };
        let job = machine.snapshots().verify(name, depth, &|_progress| {});
        let found = within(machine.clock(), VERIFY, job).await??;
        match found.damage.into_iter().next() {
            None => Ok(()),
            Some(damage) => Err(Unverified::Damaged(damage)),
        }
    }

    /// An instance's loop is stuck: others may have what it does not give.
    fn pass_over(&mut self, now: Timestamp) {
        for name in self.agent.roster.members().into_keys() {
            if self.agent.roster.reclaim_asked(&name).is_some() {
                tracing::warn!(instance = name.as_str(), "its data does not go");
                self.not_before.insert(name.clone(), now.after(RETRY));
                self.agent.roster.end_reclaim(&name);
            }
        }
    }
}

/// Why data stays on the disk.
#[derive(Debug, thiserror::Error)]
enum Unverified {
    #[error("its repository is damaged: {0}")]
    Damaged(String),
    #[error("its repository could not be verified")]
    Failed(#[from] SnapshotsError),
    #[error(transparent)]
    Silent(#[from] Elapsed),
}

fn candidates<M: Machine>(agent: &Agent<M>) -> BTreeMap<InstanceName, Reclaimable> {
    let members = agent.roster.members().into_iter();
    members.filter_map(|(name, member)| Some((name, member.reclaimable?))).collect()
}

/// What is to be brought back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recover {
    pub(super) instance: InstanceName,
    pub(super) snapshot: SnapshotName,
    pub(super) into: DataGeneration,
}

/// Why data could not be brought back.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoverError {
    /// There is not enough room on the disk.
    #[error("it needs {} MiB of disk, {} MiB are free, {} MiB of which are kept free", needed.div_ceil(MIB), free / MIB, RESERVE_BYTES / MIB)]
    NoRoom {
        /// Bytes of the data.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The disk, or what an earlier attempt left there.
    #[error("its place on the disk cannot be prepared")]
    Place(#[from] VolumeError),
    /// The snapshot could not be restored.
    #[error("the snapshot could not be restored")]
    Restore(#[from] SnapshotsError),
    /// Something took far too long.
    #[error(transparent)]
    Silent(#[from] Elapsed),
}

/// Brings data back into a directory that nobody uses. It may be dropped or killed at any moment; whoever
/// comes next begins again.
///
/// # Errors
/// [`RecoverError`]; nothing but what the next attempt removes is left.
pub(super) async fn bring_back<M: Machine>(
    agent: &Agent<M>,
    what: &Recover,
) -> Result<(), RecoverError> {
    let Recover { instance, snapshot, into } = what;
    let (machine, since) = (&agent.machine, agent.machine.clock().now());
    let show = |permille| {
        let stage = format!("bringing its data back from snapshot {snapshot}");
        let report = OperationReport { kind: "restore", stage, permille, since };
        agent.board.change(instance, Some(report));
    };
    show(None);
    let remove = machine.volumes().remove(instance, *into);
    within(machine.clock(), deadline::DATA, remove).await??;
    let measure = machine.volumes().measure(instance, *into);
    let free = within(machine.clock(), deadline::DATA, measure).await??.free_bytes;
    let held = agent.roster.held(instance).snapshots.unwrap_or_default();
    let needed = held.iter().find(|known| known.name == *snapshot).map_or(0, |known| known.bytes);
    if free < needed.saturating_add(RESERVE_BYTES) {
        return Err(RecoverError::NoRoom { needed, free });
    }
    let progress = |at: JobProgress| show(at.permille());
    let restore = machine.snapshots().restore(instance, snapshot, *into, &progress);
    within(machine.clock(), deadline::DATA, restore).await??;
    Ok(())
}
