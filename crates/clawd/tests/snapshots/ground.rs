//! A host with one instance, in a directory of its own.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::backup::{SnapshotCause, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::{ImageRef, InstanceName, SnapshotName, StatePath};
use claw_core::stamp::Generation;
use claw_core::time::Timestamp;
use clawd::adapters::clock::SystemClock;
use clawd::adapters::snapshots::{
    DirectLauncher, Launcher, MEMORY_BYTES, SnapshotSettings, SnapshotWorker,
};
use clawd::contract::SnapshotsSubject;
use clawd::ports::{
    Clock as _, JobProgress, Quiesce, RuntimeError, SnapshotOrder, Snapshots, SnapshotsError,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Nothing here takes longer, on however busy a machine.
const LONG: Duration = Duration::from_secs(180);

/// A host with one instance.
#[derive(Debug)]
pub(crate) struct Ground {
    _dir: Option<TempDir>,
    pub(crate) data: PathBuf,
    pub(crate) instance: InstanceName,
    pub(crate) worker: SnapshotWorker,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// With other settings than the usual.
    pub(crate) fn with(change: impl FnOnce(&mut SnapshotSettings)) -> Self {
        // In memory: thousands of small files that are as young as here are each made durable first.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let ground = Self::at(dir.path(), change);
        Self { _dir: Some(dir), ..ground }
    }

    /// On a directory that is there.
    pub(crate) fn at(data: &Path, change: impl FnOnce(&mut SnapshotSettings)) -> Self {
        let launcher = Launcher::Direct(DirectLauncher {
            program: env!("CARGO_BIN_EXE_clawd").into(),
            memory_bytes: MEMORY_BYTES,
        });
        let mut settings = SnapshotSettings::new(data.to_owned(), launcher);
        // Whatever the disk of whoever runs the tests is like.
        (settings.reserve_permille, settings.reserve_bytes) = (0, 0);
        change(&mut settings);
        let worker = SnapshotWorker::new(settings);
        let instance = InstanceName::parse("demo").unwrap();
        Self { _dir: None, data: data.to_owned(), instance, worker }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.data.join("instances/demo")
    }

    pub(crate) fn live(&self) -> PathBuf {
        self.generation(1)
    }

    pub(crate) fn generation(&self, number: u32) -> PathBuf {
        self.home().join(generation(number).to_string())
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.data.join("repo/demo")
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.data.join("repo/demo.staging")
    }

    /// Writes a file of the instance.
    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.live().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(crate) fn order(&self, name: &str) -> SnapshotOrder {
        SnapshotOrder {
            instance: self.instance.clone(),
            data: DataGeneration::FIRST,
            name: snapshot(name),
            cause: SnapshotCause::Scheduled,
            at: SystemClock.now(),
            image: ImageRef::parse(&format!("registry.example/openclaw@sha256:{}", "b".repeat(64)))
                .unwrap(),
            generation: Generation(3),
            assignment: b"the spec".to_vec(),
        }
    }

    /// Takes a snapshot of the instance, which is stopped.
    pub(crate) async fn take(&self, name: &str) -> Result<SnapshotInfo, SnapshotsError> {
        self.worker.take(&self.order(name), None::<&Holding<'_>>, &silent).await
    }

    /// Takes a snapshot of the instance, which is up.
    pub(crate) async fn take_up(
        &self,
        name: &str,
        quiesce: &impl Quiesce,
    ) -> Result<SnapshotInfo, SnapshotsError> {
        self.worker.take(&self.order(name), Some(quiesce), &silent).await
    }

    pub(crate) async fn restore(&self, name: &str, into: u32) -> Result<(), SnapshotsError> {
        self.worker.restore(&self.instance, &snapshot(name), generation(into), &silent).await
    }

    /// Names of what there is.
    pub(crate) async fn names(&self) -> Vec<String> {
        let list = self.worker.list(&self.instance).await.unwrap();
        list.snapshots.iter().map(|info| info.name.to_string()).collect()
    }

    /// Nothing is damaged, in the data neither.
    pub(crate) async fn assert_sound(&self) {
        let depth = clawd::ports::VerifyDepth::Data { part: 0, parts: 1 };
        let found = self.worker.verify(&self.instance, depth, &silent).await.unwrap();
        assert_eq!(found.damage, Vec::<String>::new());
    }
}

impl SnapshotsSubject for Ground {
    type Snapshots = SnapshotWorker;

    fn snapshots(&self) -> &SnapshotWorker {
        &self.worker
    }

    fn instance(&self) -> &InstanceName {
        &self.instance
    }

    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn set_data(&self, data: DataGeneration, content: &BTreeMap<StatePath, String>) {
        let root = self.generation(data.number());
        for (path, text) in content {
            let path = root.join(path.as_str());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn data(&self, data: DataGeneration) -> Option<BTreeMap<StatePath, String>> {
        let root = self.generation(data.number());
        root.exists().then(|| {
            let files = files_below(&root).into_iter().map(|path| {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                (StatePath::parse(name).unwrap(), fs::read_to_string(&path).unwrap())
            });
            files.collect()
        })
    }

    fn damage(&self, _snapshot: &SnapshotName) {
        for pack in files_below(&self.repository().join("data")) {
            flip(&pack);
        }
    }
}

/// An instance that is held by doing something, and whose holding is counted.
#[derive(Default)]
pub(crate) struct Holding<'a> {
    pub(crate) holding: Option<Box<dyn Fn() + 'a>>,
    pub(crate) releasing: Option<Box<dyn Fn() + 'a>>,
    pub(crate) held: Cell<u32>,
    pub(crate) released: Cell<u32>,
}

impl<'a> Holding<'a> {
    pub(crate) fn doing(holding: impl Fn() + 'a) -> Self {
        Self { holding: Some(Box::new(holding)), ..Self::default() }
    }
}

impl Quiesce for Holding<'_> {
    async fn hold(&self) -> Result<(), RuntimeError> {
        self.held.set(self.held.get() + 1);
        self.holding.iter().for_each(|holding| holding());
        Ok(())
    }

    async fn release(&self) -> Result<(), RuntimeError> {
        self.released.set(self.released.get() + 1);
        self.releasing.iter().for_each(|releasing| releasing());
        Ok(())
    }
}

/// Counts what is said of a job.
#[derive(Debug, Default)]
pub(crate) struct Heard(RefCell<Vec<JobProgress>>);

impl Heard {
    pub(crate) fn hear(&self, progress: JobProgress) {
        self.0.borrow_mut().push(progress);
    }

    pub(crate) fn all(&self) -> Vec<JobProgress> {
        self.0.borrow().clone()
    }
}

pub(crate) fn silent(_progress: JobProgress) {}

pub(crate) fn generation(number: u32) -> DataGeneration {
    DataGeneration::new(number).unwrap()
}

pub(crate) fn snapshot(name: &str) -> SnapshotName {
    SnapshotName::parse(name).unwrap()
}

/// Runs a test as the agent runs: on one thread.
pub(crate) fn run(test: impl Future<Output = ()>) {
    let runtime = clawd::run::runtime().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.unwrap() });
}

/// Files below a directory, in order.
pub(crate) fn files_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Changes a byte in the middle of a file.
pub(crate) fn flip(path: &Path) {
    let mut content = fs::read(path).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(path, content).unwrap();
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Processes that a process has started and that are there, those that have ended excepted.
pub(crate) fn children(parent: u32) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some((state, its_parent)) = status(pid) else { continue };
        if its_parent == parent && state != "Z" {
            found.push(Pid::from_raw(pid));
        }
    }
    found
}

/// State and parent of a process (proc(5)).
fn status(pid: i32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

/// Whether a process is there and has not ended.
pub(crate) fn is_alive(pid: Pid) -> bool {
    status(pid.as_raw()).is_some_and(|(state, _)| state != "Z")
}

/// The process of the job that this agent has now.
pub(crate) fn job() -> Option<Pid> {
    children(std::process::id()).first().copied()
}

pub(crate) fn signal(pid: Pid, signal: Signal) {
    kill(pid, signal).unwrap();
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(LONG, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}
