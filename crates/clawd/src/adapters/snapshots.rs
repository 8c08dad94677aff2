//! Snapshots of instances: each job in a child process of its own, `clawd snap-worker`.
//!
//! What it is for: it starts the process, gives it the job with the repository's keys, holds the instance
//! when the process asks for it, and says what became of it. Jobs of one instance wait for each other; the
//! lock of the repository keeps out those of an agent that was killed.
//!
//! What it deliberately does not do: read or write a repository. That is in [`crate::snap_worker`].
//!
//! An agent that is ended takes its jobs with it: their socket closes. What it had frozen, the next agent
//! finds frozen, and thaws. A job that is dropped ends as well, and its instance is not thawed here:
//! whoever drops it looks at the instance next.
//!
//! | place | what | mode |
//! | --- | --- | --- |
//! | `<data>/repo/<instance>/` | the repository, restic's format | 0700 |
//! | `<data>/repo/<instance>.keys` | what opens it, sealed | 0600 |
//! | `<data>/repo/<instance>.received` | that the repository came from elsewhere and was never used here | 0600 |
//! | `<data>/repo/<instance>.staging/` | copies of changed files, while a snapshot is taken | 0700 |
//! | `<data>/instances/<instance>/gen-N.partial/` | a directory that is being restored | 0700 |
//! | `<data>/instances/<instance>/import.partial/` | an archive that is being imported | 0700 |
//!
//! Where to start: [`SnapshotWorker::new`]; how the process is started is in [`launch`], what is said in
//! [`talk`], the keys are in [`keys`]. What leaves the host and comes to it is in [`carry`].

mod arrivals;
mod carry;
mod keys;
mod launch;
mod talk;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claw_core::backup::{SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::{ImageRef, InstanceName, SnapshotName};
use claw_core::spec::Secret;
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;
use serde_json::json;
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use crate::adapters::files::{GATEWAY_OWNER, Owner};
use crate::ports::{
    JobProgress, Pipe, Quiesce, RepositoryKeys, RuntimeError, SnapshotList, SnapshotOrder,
    Snapshots, SnapshotsError, Verification, VerifyDepth,
};
use crate::snap_worker::protocol::{
    self, CAUSE_TAG, GENERATION_TAG, IMAGE_TAG, Job, NAME_TAG, Outcome, Private, Reserve, Stored,
    Take, Task,
};
use keys::{Keys, Missing};
use talk::Conversation;

pub use keys::KeysError;

/// What a process may have at most. With 20 000 files it takes 40 MiB, a restore 60
/// (measured, see the tests).
pub const MEMORY_BYTES: u64 = 96 << 20;
/// Thousandths of a file system that jobs leave free.
pub const RESERVE_PERMILLE: u64 = 50;
/// Bytes that jobs leave free at least: a journal, logs and an image's layers must still fit.
pub const RESERVE_BYTES: u64 = 512 << 20;
/// A job that has done nothing for so long is ended.
pub const SILENCE: Duration = Duration::from_secs(600);
/// Long jobs that are done at once; others wait. They share one disk.
const AT_ONCE: usize = 2;
/// Copies off-site that are made at once: a storage's bandwidth is one job's.
const COPIES_AT_ONCE: usize = 1;
/// Jobs that wait for other hosts or people, at once: they are slow, and snapshots must not wait for them.
const TRANSFERS_AT_ONCE: usize = 3;
/// How much of a repository's id says which it is.
const REPOSITORY_DIGITS: usize = 16;
/// For how long an instance is held at most. It takes 0.1 to 0.4 s (measured: 100 to 800 MB).
pub const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// How the process of a job is started.
#[derive(Debug, Clone)]
pub enum Launcher {
    /// By the service manager, for a connection to one of these sockets: with limits of its own, in a control
    /// group of its own, without rights that the agent has.
    Systemd(Sockets),
    /// As a child of this process, where there is no service manager.
    Direct(DirectLauncher),
}

/// Where the service manager waits for jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    /// For those that need no network (clawd-snapshots.socket).
    pub host: PathBuf,
    /// For those that reach storages elsewhere (clawd-offsite.socket).
    pub network: PathBuf,
}

impl Sockets {
    /// The usual ones, in the agent's runtime directory `/run/clawd`.
    #[must_use]
    pub fn below(run_dir: &Path) -> Self {
        Self { host: run_dir.join("snapshots.sock"), network: run_dir.join("offsite.sock") }
    }
}

/// A child of this process.
#[derive(Debug, Clone)]
pub struct DirectLauncher {
    /// The program, clawd itself.
    pub program: PathBuf,
    /// The most bytes of data that it may have (RLIMIT_DATA of setrlimit(2)), stacks of its threads
    /// included.
    pub memory_bytes: u64,
}

/// How jobs are done.
#[derive(Debug, Clone)]
pub struct SnapshotSettings {
    /// The agent's data, `/var/lib/clawd`.
    pub data: PathBuf,
    /// How processes are started.
    pub launcher: Launcher,
    /// Whose the files of an imported archive become: [`GATEWAY_OWNER`].
    pub owner: Owner,
    /// Thousandths of the file system that are left free: [`RESERVE_PERMILLE`].
    pub reserve_permille: u64,
    /// Bytes that are left free at least: [`RESERVE_BYTES`].
    pub reserve_bytes: u64,
    /// When a job that does nothing is ended: [`SILENCE`].
    pub silence: Duration,
    /// For how long an instance is held at most: [`LONGEST_HOLD`].
    pub longest_hold: Duration,
}

impl SnapshotSettings {
    /// The usual ones.
    #[must_use]
    pub const fn new(data: PathBuf, launcher: Launcher) -> Self {
        Self {
            data,
            launcher,
            owner: GATEWAY_OWNER,
            reserve_permille: RESERVE_PERMILLE,
            reserve_bytes: RESERVE_BYTES,
            silence: SILENCE,
            longest_hold: LONGEST_HOLD,
        }
    }
}

/// What the last job took of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobCost {
    /// The most memory that its process had, in bytes.
    pub peak_bytes: u64,
    /// For how long the instance was held.
    pub held: Duration,
    /// Files that were copied aside meanwhile.
    pub copied_files: u64,
}

/// Snapshots by processes of this program.
#[derive(Debug)]
pub struct SnapshotWorker {
    settings: SnapshotSettings,
    /// Held by the job that an instance has.
    busy: RefCell<BTreeMap<InstanceName, Rc<Mutex<()>>>>,
    places: Semaphore,
    copies: Semaphore,
    transfers: Semaphore,
    cost: Cell<JobCost>,
}

impl SnapshotWorker {
    /// Works below the agent's data; nothing is made before the first snapshot.
    #[must_use]
    pub const fn new(settings: SnapshotSettings) -> Self {
        Self {
            settings,
            busy: RefCell::new(BTreeMap::new()),
            places: Semaphore::const_new(AT_ONCE),
            copies: Semaphore::const_new(COPIES_AT_ONCE),
            transfers: Semaphore::const_new(TRANSFERS_AT_ONCE),
            cost: Cell::new(JobCost { peak_bytes: 0, held: Duration::ZERO, copied_files: 0 }),
        }
    }

    /// What the last job that ended well took.
    #[must_use]
    pub const fn last_cost(&self) -> JobCost {
        self.cost.get()
    }

    fn repositories(&self) -> PathBuf {
        self.settings.data.join("repo")
    }

    fn repository(&self, instance: &InstanceName) -> PathBuf {
        self.repositories().join(instance.as_str())
    }

    fn turn(&self, instance: &InstanceName) -> Rc<Mutex<()>> {
        let mut busy = self.busy.borrow_mut();
        // Those that nobody holds or waits for are of no use.
        busy.retain(|other, turn| other == instance || Rc::strong_count(turn) > 1);
        Rc::clone(busy.entry(instance.clone()).or_default())
    }

    async fn keys(
        &self,
        instance: &InstanceName,
        missing: Missing,
    ) -> Result<Option<Keys>, SnapshotsError> {
        let (data, instance) = (self.settings.data.clone(), instance.clone());
        let read = tokio::task::spawn_blocking(move || keys::read(&data, &instance, missing));
        match read.await {
            Ok(Ok(keys)) => Ok(keys),
            Ok(Err(error)) => Err(SnapshotsError::Keys(Box::new(error))),
            Err(ended) => Err(SnapshotsError::Keys(Box::new(ended))),
        }
    }

    /// Does one job; nothing when there is no repository and none shall be made.
    async fn work<Q: Quiesce>(
        &self,
        instance: &InstanceName,
        (doing, task): (&'static str, Task),
        quiesce: Option<&Q>,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Option<Outcome>, SnapshotsError> {
        let turn = self.turn(instance);
        let _turn = turn.lock().await;
        let missing = match task {
            Task::Take(_) => Missing::Make,
            _ => Missing::None,
        };
        let _place = self.place(&task).await;
        let Some(keys) = self.keys(instance, missing).await? else { return Ok(None) };
        let job = self.job(instance, &keys, task);
        self.converse(&job, doing, (quiesce, None), progress).await.map(Some)
    }

    /// Lists, without noting that the repository is used.
    async fn look(&self, instance: &InstanceName) -> Result<SnapshotList, SnapshotsError> {
        let doing = "listing snapshots";
        match self.work(instance, (doing, Task::List), NOBODY, &|_progress| ()).await? {
            None => Ok(SnapshotList::default()),
            // Those that people took with restic are not ours to list.
            Some(Outcome::Listed { snapshots, stored_bytes, repository }) => {
                let snapshots = snapshots.iter().filter_map(info).collect();
                let repository = repository.chars().take(REPOSITORY_DIGITS).collect();
                Ok(SnapshotList { snapshots, stored_bytes, repository })
            }
            Some(_) => Err(unexpected(doing)),
        }
    }

    async fn converse<Q: Quiesce>(
        &self,
        job: &Job,
        doing: &'static str,
        sides: (Option<&Q>, Option<&mut Pipe>),
        progress: &dyn Fn(JobProgress),
    ) -> Result<Outcome, SnapshotsError> {
        let conversation = Conversation { doing, settings: &self.settings, progress };
        let (outcome, cost) = conversation.hold(job, sides).await?;
        self.cost.set(cost);
        Ok(outcome)
    }

    /// Waits until a job of this kind may begin. None is needed for a short one.
    async fn place(&self, task: &Task) -> Option<SemaphorePermit<'_>> {
        let places = match task {
            Task::List => return None,
            Task::CopyOut { .. } => &self.copies,
            Task::CopyIn { .. }
            | Task::Export { .. }
            | Task::Import(_)
            | Task::Send
            | Task::Receive => &self.transfers,
            Task::Take(_)
            | Task::Restore { .. }
            | Task::RestoreFrom { .. }
            | Task::Forget { .. }
            | Task::Verify { .. } => &self.places,
        };
        // It is never closed.
        places.acquire().await.ok()
    }

    fn job(&self, instance: &InstanceName, keys: &Keys, task: Task) -> Job {
        let repository = self.repository(instance);
        Job {
            instance: instance.to_string(),
            home: self.settings.data.join("instances").join(instance.as_str()),
            staging: repository.with_added_extension("staging"),
            repository,
            secret: Private::new(&keys.secret.password()),
            recovery: Some(Private::new(keys.recovery.expose())),
            owner: protocol::Owner {
                user: self.settings.owner.uid,
                group: self.settings.owner.gid,
            },
            reserve: Reserve {
                permille: self.settings.reserve_permille,
                least_bytes: self.settings.reserve_bytes,
            },
            memory_bytes: match &self.settings.launcher {
                Launcher::Systemd(_) => None,
                Launcher::Direct(direct) => Some(direct.memory_bytes),
            },
            hold_millis: u64::try_from(self.settings.longest_hold.as_millis()).unwrap_or(u64::MAX),
            task,
        }
    }
}

impl Snapshots for SnapshotWorker {
    async fn take<Q: Quiesce>(
        &self,
        order: &SnapshotOrder,
        quiesce: Option<&Q>,
        progress: &dyn Fn(JobProgress),
    ) -> Result<SnapshotInfo, SnapshotsError> {
        let doing = "taking a snapshot";
        let task = Task::Take(take(order, quiesce.is_some()));
        let taken = self.work(&order.instance, (doing, task), quiesce, progress).await?;
        self.note_use(&order.instance).await;
        match taken {
            Some(Outcome::Taken(stored)) => info(&stored).ok_or_else(|| unexpected(doing)),
            _ => Err(unexpected(doing)),
        }
    }

    async fn list(&self, instance: &InstanceName) -> Result<SnapshotList, SnapshotsError> {
        let list = self.look(instance).await?;
        if !list.repository.is_empty() {
            self.note_use(instance).await;
        }
        Ok(list)
    }

    async fn restore(
        &self,
        instance: &InstanceName,
        snapshot: &SnapshotName,
        into: DataGeneration,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let doing = "restoring a snapshot";
        let task = Task::Restore { snapshot: snapshot.to_string(), into: into.to_string() };
        match self.work(instance, (doing, task), NOBODY, progress).await? {
            None => Err(SnapshotsError::NotFound(snapshot.clone())),
            Some(Outcome::Nothing) => Ok(()),
            Some(_) => Err(unexpected(doing)),
        }
    }

    async fn forget(
        &self,
        instance: &InstanceName,
        snapshots: &BTreeSet<Digest>,
        progress: &dyn Fn(JobProgress),
    ) -> Result<(), SnapshotsError> {
        let doing = "removing snapshots";
        let task = Task::Forget { snapshots: snapshots.iter().map(ToString::to_string).collect() };
        match self.work(instance, (doing, task), NOBODY, progress).await? {
            None | Some(Outcome::Nothing) => Ok(()),
            Some(_) => Err(unexpected(doing)),
        }
    }

    async fn verify(
        &self,
        instance: &InstanceName,
        depth: VerifyDepth,
        progress: &dyn Fn(JobProgress),
    ) -> Result<Verification, SnapshotsError> {
        let doing = "verifying snapshots";
        let task = match depth {
            VerifyDepth::Structure => Task::Verify { part: 0, parts: 0 },
            VerifyDepth::Data { part, parts } => Task::Verify { part, parts },
        };
        match self.work(instance, (doing, task), NOBODY, progress).await? {
            None => Ok(Verification::default()),
            Some(Outcome::Verified { damage, affected }) => {
                let affected = affected.iter().filter_map(|name| SnapshotName::parse(name).ok());
                Ok(Verification { damage, affected: affected.collect() })
            }
            Some(_) => Err(unexpected(doing)),
        }
    }

    async fn keys(
        &self,
        instance: &InstanceName,
    ) -> Result<Option<RepositoryKeys>, SnapshotsError> {
        let turn = self.turn(instance);
        let _turn = turn.lock().await;
        let keys = self.keys(instance, Missing::None).await?;
        Ok(keys.map(|keys| RepositoryKeys {
            secret: Secret::new(keys.secret.password().to_string()),
            recovery: Secret::new(keys.recovery.expose().to_owned()),
        }))
    }
}

/// For jobs that hold nothing.
enum Nobody {}

const NOBODY: Option<&Nobody> = None;

impl Quiesce for Nobody {
    async fn hold(&self) -> Result<(), RuntimeError> {
        match *self {}
    }

    async fn release(&self) -> Result<(), RuntimeError> {
        match *self {}
    }
}

fn take(order: &SnapshotOrder, up: bool) -> Take {
    let manifest = json!({
        "instance": order.instance.as_str(),
        "name": order.name.as_str(),
        "cause": order.cause.to_string(),
        "image": order.image.to_string(),
        "generation": order.generation.0,
        "taken_at_ms": order.at.millis(),
        "agent": env!("CARGO_PKG_VERSION"),
    });
    let attachments = [
        ("assignment.binpb", STANDARD.encode(&order.assignment)),
        ("manifest.json", STANDARD.encode(manifest.to_string())),
    ];
    Take {
        data: order.data.to_string(),
        name: order.name.to_string(),
        tags: vec![
            format!("{CAUSE_TAG}{}", order.cause),
            format!("{IMAGE_TAG}{}", order.image),
            format!("{GENERATION_TAG}{}", order.generation),
        ],
        at: order.at.millis(),
        attachments: attachments.map(|(name, text)| (name.to_owned(), text)).into(),
        up,
    }
}

/// A snapshot of ours; `None` for any other.
fn info(stored: &Stored) -> Option<SnapshotInfo> {
    Some(SnapshotInfo {
        name: SnapshotName::parse(stored.tag(NAME_TAG)?).ok()?,
        id: Digest::from_hex(&stored.id)?,
        taken_at: Timestamp::from_millis(stored.at),
        cause: SnapshotCause::parse(stored.tag(CAUSE_TAG)?)?,
        image: ImageRef::parse(stored.tag(IMAGE_TAG)?).ok()?,
        generation: Generation(stored.tag(GENERATION_TAG)?.parse().ok()?),
        files: stored.files,
        bytes: stored.bytes,
        added_bytes: stored.added_bytes,
        health: SnapshotHealth::Sound,
        offsite: false,
    })
}

fn unexpected(doing: &'static str) -> SnapshotsError {
    SnapshotsError::Failed { doing, problem: "the result is that of another job".to_owned() }
}

/// Where the keys of an instance's repository lie.
fn keys_path(data: &Path, instance: &InstanceName) -> PathBuf {
    data.join("repo").join(format!("{instance}.keys"))
}
