//! What the loops of one host know of each other's instances.
//!
//! Each instance's loop writes its own entry at every turn; whoever takes snapshots reads them, and writes
//! back what the loops wait for. Nothing here is durable: a new agent learns it again by looking.
//!
//! Where to start: [`Member`], which an instance's loop publishes; [`Held`], which the snapshots' loop does.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use claw_core::backup::{SnapshotCause, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::images::{Claim, Need};
use claw_core::name::{HostName, ImageRef, InstanceName, SnapshotName};
use claw_core::observed::RestSnapshot;
use claw_core::offsite::OffsiteStorage;
use claw_core::plan::DesiredInstance;
use claw_core::reclaim::Reclaimable;
use claw_core::time::Timestamp;
use tokio::sync::{Mutex, watch};

use crate::ports::OffsitePlace;
use crate::reconcile::Bell;

/// An instance as its loop saw it last.
#[derive(Debug, Clone)]
pub struct Member {
    /// What runs or shall run, with the data directory in use.
    pub effective: Rc<DesiredInstance>,
    /// Of one that is being removed: what ran last on the data in use, if that is kept.
    pub last: Option<Rc<DesiredInstance>>,
    /// Docker's id of its container while that is up.
    pub up: Option<String>,
    /// When its container ended, if it has one that is down.
    pub down_since: Option<Timestamp>,
    /// Whether the data directory in use exists.
    pub data_present: bool,
    /// The snapshot that is to be restored, or was restored last.
    pub restore: Option<SnapshotName>,
    /// It is down and waits for a snapshot of what lies there.
    pub awaits: Option<SnapshotCause>,
    /// Data of which nobody writes any more and of which a snapshot is wanted before it may go.
    pub replaced: Option<ReplacedData>,
    /// Its data may leave the disk when there is no room.
    pub reclaimable: Option<Reclaimable>,
    /// Its data has left the disk: this snapshot is the only copy.
    pub reclaimed: Option<SnapshotName>,
    /// Wakes its loop.
    pub bell: Rc<Bell>,
}

/// Data that another version has taken the place of.
#[derive(Debug, Clone)]
pub struct ReplacedData {
    /// Which.
    pub data: DataGeneration,
    /// When the change began: a snapshot of `cause` since then is the one that is wanted.
    pub since: Timestamp,
    /// [`SnapshotCause::Update`] or [`SnapshotCause::Restore`].
    pub cause: SnapshotCause,
    /// What ran on it.
    pub desired: Rc<DesiredInstance>,
}

/// What is held of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Every sound snapshot, oldest first; none while the repository was not looked at yet.
    pub snapshots: Option<Vec<SnapshotInfo>>,
    /// Snapshots at rest failed so often that nobody shall wait for one.
    pub gave_up: bool,
    /// Where copies of its repository are in the host's storage, the newest first; none while nobody knows.
    pub copies: Option<Vec<OffsitePlace>>,
    /// The images of all snapshots, damaged ones too, with one that needs each.
    pub images: BTreeMap<ImageRef, SnapshotName>,
}

impl Held {
    /// Whether there is a snapshot at rest since an instance went down.
    #[must_use]
    pub fn at_rest(&self, down_since: Option<Timestamp>) -> RestSnapshot {
        let rest = |snapshot: &&SnapshotInfo| {
            matches!(snapshot.cause, SnapshotCause::Pause | SnapshotCause::Final)
        };
        let newest = self.snapshots.iter().flatten().filter(rest).map(|s| s.taken_at).max();
        match newest {
            Some(taken) if down_since.is_none_or(|down| taken >= down) => RestSnapshot::Held,
            _ if self.gave_up => RestSnapshot::GivenUp,
            _ => RestSnapshot::Missing,
        }
    }

    /// Whether data that was replaced since then is held by a snapshot.
    #[must_use]
    pub fn holds_replaced(&self, since: Timestamp) -> bool {
        self.snapshots.iter().flatten().any(|snapshot| {
            matches!(snapshot.cause, SnapshotCause::Update | SnapshotCause::Restore)
                && snapshot.taken_at >= since
        })
    }
}

/// Where the host's repositories are copied to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Elsewhere {
    /// The host's name in the fleet; none before it has joined.
    pub host: Option<HostName>,
    /// The storage; none: they are copied nowhere.
    pub storage: Option<OffsiteStorage>,
}

impl Elsewhere {
    /// Where the repository of this id is copied to; none without a storage.
    #[must_use]
    pub fn place(&self, instance: &InstanceName, repository: &str) -> Option<OffsitePlace> {
        let (host, storage) = (self.host.as_ref()?, self.storage.as_ref()?);
        if repository.is_empty() {
            return None;
        }
        let own = format!("{host}/{instance}/{repository}");
        let path = match storage.prefix.as_str() {
            "" => own,
            prefix => format!("{prefix}/{own}"),
        };
        Some(OffsitePlace { storage: storage.clone(), path })
    }
}

/// Every instance of the host.
#[derive(Debug)]
pub struct Roster {
    members: RefCell<BTreeMap<InstanceName, Member>>,
    held: RefCell<BTreeMap<InstanceName, Held>>,
    /// Every instance that the journal knows, with the image that the desired state wants for it.
    expected: RefCell<BTreeMap<InstanceName, Option<ImageRef>>>,
    /// The images that each needs, as its loop says.
    claims: RefCell<BTreeMap<InstanceName, BTreeSet<Claim>>>,
    /// Images that a spec has named, however shortly, and that nobody has asked for yet.
    named: RefCell<BTreeSet<ImageRef>>,
    /// Whose data shall leave the disk, with the verified snapshot that holds it.
    reclaims: RefCell<BTreeMap<InstanceName, SnapshotName>>,
    frozen: RefCell<BTreeSet<InstanceName>>,
    elsewhere: RefCell<Elsewhere>,
    version: watch::Sender<u64>,
    trial: Rc<Mutex<()>>,
}

impl Default for Roster {
    fn default() -> Self {
        Self {
            members: RefCell::default(),
            held: RefCell::default(),
            expected: RefCell::default(),
            claims: RefCell::default(),
            named: RefCell::default(),
            reclaims: RefCell::default(),
            frozen: RefCell::default(),
            elsewhere: RefCell::default(),
            version: watch::Sender::new(0),
            trial: Rc::default(),
        }
    }
}

impl Roster {
    /// Changes with every change of a member, and of where repositories are copied to.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Every instance.
    #[must_use]
    pub fn members(&self) -> BTreeMap<InstanceName, Member> {
        self.members.borrow().clone()
    }

    /// One instance.
    #[must_use]
    pub fn member(&self, name: &InstanceName) -> Option<Member> {
        self.members.borrow().get(name).cloned()
    }

    /// An instance's loop says what it sees.
    pub fn publish(&self, member: Member) {
        let name = member.effective.name.clone();
        let before = self.members.borrow_mut().insert(name, member.clone());
        if before.is_none_or(|before| before.differs(&member)) {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// An instance is gone.
    pub fn remove(&self, name: &InstanceName) {
        self.members.borrow_mut().remove(name);
        self.held.borrow_mut().remove(name);
        self.expected.borrow_mut().remove(name);
        self.claims.borrow_mut().remove(name);
        self.reclaims.borrow_mut().remove(name);
        self.version.send_modify(|version| *version += 1);
    }

    /// What is held of an instance, as far as known.
    #[must_use]
    pub fn held(&self, name: &InstanceName) -> Held {
        self.held.borrow().get(name).cloned().unwrap_or_default()
    }

    /// Says what is held of an instance, and wakes its loop.
    pub fn set_held(&self, name: &InstanceName, held: Held) {
        self.held.borrow_mut().insert(name.clone(), held);
        if let Some(member) = self.members.borrow().get(name) {
            member.bell.ring(crate::reconcile::Cause::Look);
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// Asks an instance's loop to let its data leave the disk; this snapshot holds all of it.
    pub fn ask_reclaim(&self, name: &InstanceName, snapshot: SnapshotName) {
        self.reclaims.borrow_mut().insert(name.clone(), snapshot);
        if let Some(member) = self.members.borrow().get(name) {
            member.bell.ring(crate::reconcile::Cause::Look);
        }
    }

    /// The snapshot for which an instance's data shall leave the disk.
    #[must_use]
    pub fn reclaim_asked(&self, name: &InstanceName) -> Option<SnapshotName> {
        self.reclaims.borrow().get(name).cloned()
    }

    /// It has left, or shall not any more.
    pub fn end_reclaim(&self, name: &InstanceName) {
        if self.reclaims.borrow_mut().remove(name).is_some() {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Whether some data is on its way out.
    #[must_use]
    pub fn is_reclaiming(&self) -> bool {
        !self.reclaims.borrow().is_empty()
    }

    /// There is such an instance, whether or not its loop has said anything yet.
    pub fn expect(&self, name: &InstanceName, wanted: Option<ImageRef>) {
        self.named.borrow_mut().extend(wanted.clone());
        let before = self.expected.borrow_mut().insert(name.clone(), wanted.clone());
        if before != Some(wanted) {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// An instance's loop says which images it needs.
    pub fn claim(&self, name: &InstanceName, claims: BTreeSet<Claim>) {
        let images = claims.iter().map(|claim| claim.image.clone());
        self.named.borrow_mut().extend(images);
        let before = self.claims.borrow_mut().insert(name.clone(), claims.clone());
        if before != Some(claims) {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// The images that specs have named since this was asked last. A version that fails at once is gone
    /// before anybody looks at what is needed.
    #[must_use]
    pub fn take_named(&self) -> BTreeSet<ImageRef> {
        self.named.take()
    }

    /// The images that are needed, as far as known, and the instances of which that is not known: their loops
    /// have not said anything, or nobody has looked at their snapshots.
    #[must_use]
    pub fn image_claims(&self) -> (BTreeSet<Claim>, BTreeSet<InstanceName>) {
        let (expected, held) = (self.expected.borrow(), self.held.borrow());
        let mut claims: BTreeSet<Claim> =
            self.claims.borrow().values().flatten().cloned().collect();
        for (instance, wanted) in expected.iter() {
            let claim = |(image, need)| Claim { image, instance: instance.clone(), need };
            claims.extend(wanted.clone().map(|image| claim((image, Need::Wanted))));
            let snapshots = held.get(instance).map(|held| held.images.clone()).unwrap_or_default();
            let need = |(image, name)| (image, Need::Snapshot(name));
            claims.extend(snapshots.into_iter().map(need).map(claim));
        }
        let known = |name: &InstanceName| {
            let looked = held.get(name).is_some_and(|held| held.snapshots.is_some());
            looked && self.claims.borrow().contains_key(name)
        };
        let unknown = expected.keys().filter(|name| !known(name)).cloned().collect();
        (claims, unknown)
    }

    /// Where repositories are copied to.
    #[must_use]
    pub fn elsewhere(&self) -> Elsewhere {
        self.elsewhere.borrow().clone()
    }

    /// Says in which storage repositories are copied.
    pub fn copy_to(&self, storage: Option<OffsiteStorage>) {
        self.change_elsewhere(|elsewhere| elsewhere.storage = storage);
    }

    /// Says what the host is called in the fleet.
    pub fn called(&self, host: HostName) {
        self.change_elsewhere(|elsewhere| elsewhere.host = Some(host));
    }

    fn change_elsewhere(&self, change: impl FnOnce(&mut Elsewhere)) {
        let before = self.elsewhere();
        change(&mut self.elsewhere.borrow_mut());
        if before != *self.elsewhere.borrow() {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// Whether it is being held still for a snapshot: its loop leaves it alone meanwhile.
    #[must_use]
    pub fn is_frozen(&self, name: &InstanceName) -> bool {
        self.frozen.borrow().contains(name)
    }

    /// Marks it as held still until the returned mark is dropped, which wakes its loop.
    #[must_use]
    pub fn freeze(self: &Rc<Self>, name: &InstanceName) -> Frozen {
        self.frozen.borrow_mut().insert(name.clone());
        Frozen { roster: Rc::clone(self), name: name.clone() }
    }

    /// Rehearsals and drills share one network: one at a time on a host.
    #[must_use]
    pub fn trial(&self) -> Rc<Mutex<()>> {
        Rc::clone(&self.trial)
    }
}

impl Member {
    fn differs(&self, other: &Self) -> bool {
        let replaced = |member: &Self| member.replaced.as_ref().map(|r| (r.data, r.since));
        self.effective != other.effective
            || self.up != other.up
            || self.down_since != other.down_since
            || self.data_present != other.data_present
            || self.restore != other.restore
            || self.awaits != other.awaits
            || self.reclaimable != other.reclaimable
            || self.reclaimed != other.reclaimed
            || replaced(self) != replaced(other)
    }
}

/// An instance is held still as long as this lives.
#[derive(Debug)]
pub struct Frozen {
    roster: Rc<Roster>,
    name: InstanceName,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.roster.frozen.borrow_mut().remove(&self.name);
        if let Some(member) = self.roster.members.borrow().get(&self.name) {
            member.bell.ring(crate::reconcile::Cause::Look);
        }
    }
}
