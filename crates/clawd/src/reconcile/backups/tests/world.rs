//! A machine in memory, a journal on disk, the loop of snapshots, and hands that write the roster.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::{AddressPool, Slot};
use claw_core::backup::{BackupPolicy, BackupReport, SnapshotCause};
use claw_core::data::DataGeneration;
use claw_core::event::{Event, EventKind, Severity};
use claw_core::name::{EnvName, HostName, ImageRef, InstanceName, SnapshotName, StatePath};
use claw_core::offsite::{BucketAddressing, OffsiteStorage};
use claw_core::plan::{Delivery, DesiredInstance, Target};
use claw_core::spec::{
    GATEWAY_TOKEN, HealthPolicy, InstanceSpec, Resources, RunState, Secret, UpdatePolicy, WebPolicy,
};
use claw_core::stamp::Generation;
use claw_core::time::Timestamp;
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet};

use crate::agent::{Agent, Settings};
use crate::fakes::FakeMachine;
use crate::journal::Journal;
use crate::ports::{Clock as _, Runtime as _, Trials as _};
use crate::reconcile::Bell;
use crate::reconcile::backups::Backups;
use crate::reconcile::backups::request::{BackupRequest, BackupWork, BackupsHandle};
use crate::report::Board;
use crate::roster::{Member, ReplacedData, Roster};

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);
/// In every spec's secrets; must be found nowhere.
pub(super) const TOKEN: &str = "s3cret-token-value-0123456789";

/// Runs a test on one thread with a `LocalSet`, as the agent itself runs.
pub(super) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runs");
    LocalSet::new().block_on(&runtime, test);
}

pub(super) fn name(text: &str) -> InstanceName {
    InstanceName::parse(text).expect("valid")
}

pub(super) fn snapshot(text: &str) -> SnapshotName {
    SnapshotName::parse(text).expect("valid")
}

pub(super) fn image() -> ImageRef {
    ImageRef::parse("registry.example/gateway:1").expect("valid")
}

/// Daily snapshots, no drills.
pub(super) fn spec() -> InstanceSpec {
    InstanceSpec {
        image: image(),
        resources: Resources {
            memory: Memory::from_bytes(1024 * MIB).expect("valid"),
            cpu: CpuMillis::from_millis(1000).expect("valid"),
            pids: PidsLimit::from_count(512).expect("valid"),
        },
        run: RunState::Running,
        restarts: 0,
        rebuilds: 0,
        env: BTreeMap::new(),
        secrets: BTreeMap::from([(
            EnvName::parse(GATEWAY_TOKEN).expect("valid"),
            Secret::new(TOKEN.to_owned()),
        )]),
        config: String::new(),
        files: BTreeMap::new(),
        web: WebPolicy::default(),
        network: claw_core::firewall::NetworkPolicy::default(),
        health: HealthPolicy::default(),
        stop_grace: Duration::from_secs(30),
        backup: BackupPolicy { drill_every: None, ..BackupPolicy::default() },
        update: UpdatePolicy::default(),
        restore: None,
    }
}

/// A bucket of this name.
pub(super) fn storage(bucket: &str) -> OffsiteStorage {
    OffsiteStorage {
        endpoint: "https://s3.example".to_owned(),
        region: "eu".to_owned(),
        bucket: bucket.to_owned(),
        prefix: "fleet".to_owned(),
        addressing: BucketAddressing::Path,
        access_key: Secret::new("AKID".to_owned()),
        secret_key: Secret::new("hush".to_owned()),
        bandwidth: None,
    }
}

/// A machine and a directory that outlive the agents on them.
pub(super) struct World {
    pub(super) machine: FakeMachine,
    directory: TempDir,
}

/// A running loop.
pub(super) struct Running {
    pub(super) agent: Rc<Agent<FakeMachine>>,
    handle: BackupsHandle,
    task: JoinHandle<()>,
    /// Since when instances are down: the same for as long as they are.
    down: RefCell<BTreeMap<InstanceName, Timestamp>>,
}

impl World {
    pub(super) fn new() -> Self {
        let machine = FakeMachine::new(&[image().as_str()]);
        Self { machine, directory: tempfile::tempdir().expect("made") }
    }

    /// Starts an agent over whatever journal there is.
    pub(super) fn start(&self) -> Running {
        let now = self.machine.clock.now();
        let (journal, recovered) = Journal::open(self.directory.path(), now).expect("opened");
        let agent = Rc::new(Agent {
            machine: self.machine.clone(),
            journal,
            board: Board::default(),
            roster: Rc::<Roster>::default(),
            settings: Settings::default(),
        });
        let (backups, handle) = Backups::new(Rc::clone(&agent), recovered.backup_notes);
        let task = tokio::task::spawn_local(backups.run());
        Running { agent, handle, task, down: RefCell::default() }
    }

    pub(super) fn effects(&self) -> Vec<String> {
        self.machine.mishaps().effects()
    }

    /// How often something was done.
    pub(super) fn times(&self, effect: &str) -> usize {
        self.effects().iter().filter(|known| *known == effect).count()
    }

    /// Makes a bucket.
    pub(super) fn offer(&self, bucket: &str) {
        self.machine.snapshots.storage().offer(&storage(bucket));
    }

    /// The image is on the host.
    pub(super) async fn pull(&self) {
        self.machine.runtime.pull(&image(), &|_| {}).await.expect("pulled");
    }

    pub(super) async fn trials(&self) -> BTreeSet<InstanceName> {
        self.machine.runtime.trials().await.expect("listed")
    }
}

impl Running {
    /// As kill -9 would end it: in the midst of whatever it does.
    pub(super) async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
        for _ in 0..1000 {
            if Rc::strong_count(&self.agent) == 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("something still holds the killed agent");
    }

    pub(super) fn now(&self) -> Timestamp {
        self.agent.machine.clock.now()
    }

    fn member(&self, instance: &str, spec: InstanceSpec) -> Member {
        let data = DataGeneration::FIRST;
        let desired = desired(instance, spec, data);
        self.agent.machine.runtime.plant(&name(instance));
        let path = StatePath::parse("state.json").expect("valid");
        self.agent.machine.files.write(&name(instance), data, &path, "of the first");
        Member {
            effective: Rc::new(desired),
            last: None,
            up: self.agent.machine.runtime.container(&name(instance)).map(|c| c.id),
            down_since: None,
            data_present: true,
            restore: None,
            awaits: None,
            replaced: None,
            reclaimable: None,
            reclaimed: None,
            bell: Rc::<Bell>::default(),
        }
    }

    /// An instance runs.
    pub(super) fn up(&self, instance: &str) {
        self.down.borrow_mut().remove(&name(instance));
        self.agent.roster.publish(self.member(instance, spec()));
    }

    pub(super) fn with_policy(&self, instance: &str, backup: BackupPolicy) {
        let spec = InstanceSpec { backup, ..spec() };
        self.agent.roster.publish(self.member(instance, spec));
    }

    pub(super) fn with_memory(&self, instance: &str, backup: BackupPolicy, memory: u64) {
        let mut spec = InstanceSpec { backup, ..spec() };
        spec.resources.memory = Memory::from_bytes(memory).expect("valid");
        self.agent.roster.publish(self.member(instance, spec));
    }

    /// An instance has never had data.
    pub(super) fn bare(&self, instance: &str) {
        let member = Member { up: None, data_present: false, ..self.member(instance, spec()) };
        self.agent.machine.files.set_data(&name(instance), DataGeneration::FIRST, None);
        self.agent.roster.publish(member);
    }

    /// An instance is down on purpose, since now.
    pub(super) fn down(&self, instance: &str, awaits: Option<SnapshotCause>) {
        let since = *self.down.borrow_mut().entry(name(instance)).or_insert_with(|| self.now());
        let spec = InstanceSpec { run: RunState::Paused, ..spec() };
        let member = self.member(instance, spec);
        let down_since = Some(since);
        self.agent.roster.publish(Member { up: None, down_since, awaits, ..member });
    }

    /// An instance was deleted, and is down since now.
    pub(super) fn removed(&self, instance: &str) {
        let member = self.member(instance, spec());
        let desired = DesiredInstance {
            target: Target::Removed,
            ..DesiredInstance::clone(&member.effective)
        };
        self.agent.roster.publish(Member {
            effective: Rc::new(desired),
            up: None,
            down_since: Some(self.now()),
            awaits: Some(SnapshotCause::Final),
            ..member
        });
    }

    pub(super) fn down_since(&self, instance: &str) -> Option<Timestamp> {
        self.down.borrow().get(&name(instance)).copied()
    }

    /// An instance runs on its first data, and its second was replaced.
    pub(super) fn replaced(&self, instance: &str, since: Timestamp) {
        let data = DataGeneration::FIRST.next();
        let path = StatePath::parse("state.json").expect("valid");
        self.agent.machine.files.write(&name(instance), data, &path, "of the second");
        let desired = Rc::new(desired(instance, spec(), data));
        let cause = SnapshotCause::Update;
        let replaced = Some(ReplacedData { data, since, cause, desired });
        self.agent.roster.publish(Member { replaced, ..self.member(instance, spec()) });
    }

    /// The host's state has this bucket, or none.
    pub(super) fn copy_to(&self, bucket: Option<&str>) {
        self.agent.roster.called(HostName::parse("web-1").expect("valid"));
        self.agent.roster.copy_to(bucket.map(storage));
    }

    /// Whether every snapshot is reported to be off-site, and there is one.
    pub(super) fn is_offsite(&self, instance: &str) -> bool {
        let snapshots = self.report(instance).snapshots;
        !snapshots.is_empty() && snapshots.iter().all(|snapshot| snapshot.offsite)
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&self, instance: &str, work: BackupWork) -> Result<(), String> {
        self.send(instance, work).await.expect("answered")
    }

    pub(super) fn send(
        &self,
        instance: &str,
        work: BackupWork,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (reply, answer) = oneshot::channel();
        self.handle.request(BackupRequest { instance: name(instance), work, reply });
        answer
    }

    /// What is held of an instance, as it is reported, oldest first.
    pub(super) fn taken(&self, instance: &str) -> Vec<SnapshotName> {
        self.report(instance).snapshots.into_iter().map(|snapshot| snapshot.name).collect()
    }

    pub(super) fn report(&self, instance: &str) -> BackupReport {
        let all = self.agent.board.backups_since(0).into_iter();
        let mut report =
            all.filter(|(_, of, _)| *of == name(instance)).map(|(_, _, report)| report);
        report.next_back().unwrap_or_default()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.agent.journal.events().from(1, 10_000).expect("read")
    }

    pub(super) fn count(&self, kind: EventKind) -> usize {
        self.events().iter().filter(|event| event.kind == kind).count()
    }

    /// The newest event of a kind.
    pub(super) fn event(&self, kind: EventKind, severity: Severity) -> Event {
        let mut events = self.events().into_iter().rev();
        events.find(|event| (event.kind, event.severity) == (kind, severity)).expect("told")
    }

    /// Lets everything run that can run without time passing.
    pub(super) async fn settle(&self) {
        for _ in 0..3 {
            for _ in 0..40 {
                tokio::task::yield_now().await;
            }
            // The journal's thread has done what was asked of it.
            let _answered = self.agent.journal.answer().await;
        }
    }

    /// Lets time pass until a condition holds; at most a hundred fake days.
    #[track_caller]
    pub(super) fn until<'a>(
        &'a self,
        what: &'a str,
        condition: impl Fn() -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let begun = self.now();
            loop {
                self.settle().await;
                if condition() {
                    return;
                }
                let passed = self.now().since(begun);
                let effects = self.agent.machine.mishaps().effects();
                let reports = self.agent.board.backups_since(0);
                assert!(passed < 100 * DAY, "{caller}: never {what}: {reports:#?}\n{effects:?}");
                self.step(DAY);
            }
        }
    }

    /// Lets a span of time pass.
    pub(super) async fn pass(&self, span: Duration) {
        let end = self.now().after(span);
        loop {
            self.settle().await;
            let left = end.since(self.now());
            if left.is_zero() {
                return;
            }
            self.step(left);
        }
    }

    fn step(&self, most: Duration) {
        let clock = &self.agent.machine.clock;
        let next = clock.until_next().unwrap_or(most);
        clock.advance(next.clamp(Duration::from_millis(1), most));
    }
}

fn desired(instance: &str, spec: InstanceSpec, data: DataGeneration) -> DesiredInstance {
    let delivery =
        Delivery { files: BTreeMap::new(), secrets: Secret::new(format!("TOKEN={TOKEN}")) };
    DesiredInstance {
        name: name(instance),
        generation: Generation(7),
        network: AddressPool::STANDARD.network(Slot::new(0).expect("valid")),
        data,
        target: Target::Present { spec: Box::new(spec), delivery: Box::new(delivery) },
    }
}
