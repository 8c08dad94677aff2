//! A world for tests: a machine in memory, a journal on disk, an agent that can be killed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use claw_core::backup::BackupPolicy;
use claw_core::event::{Event, EventKind};
use claw_core::host::HostState;
use claw_core::name::{EnvName, HostName, ImageRef, InstanceName};
use claw_core::report::{InstanceReport, Phase};
use claw_core::spec::{
    GATEWAY_TOKEN, HealthPolicy, InstanceSpec, Resources, RunState, Secret, WebPolicy,
};
use claw_core::stamp::{Digest, Epoch, Generation, Stamp};
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use claw_proto::convert::session::encode_host_state;
use clawd::agent::{Agent, Settings};
use clawd::fakes::{FakeMachine, Mishaps};
use clawd::journal::Journal;
use clawd::ports::Clock as _;
use clawd::reconcile::{HostLoop, Inbox, Offer};
use clawd::report::Board;
use tempfile::TempDir;
use tokio::task::{JoinHandle, LocalSet};

pub(crate) const IMAGE: &str = "registry.example/gateway:1";
pub(crate) const OTHER_IMAGE: &str = "registry.example/gateway:2";
/// In every spec's secrets; must be found nowhere.
pub(crate) const TOKEN: &str = "s3cret-token-value-0123456789";

/// Runs a test on one thread with a `LocalSet`, as the agent itself runs.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

pub(crate) fn name(text: &str) -> InstanceName {
    InstanceName::parse(text).unwrap()
}

/// What the host is called in the fleet.
pub(crate) fn host() -> HostName {
    HostName::parse("web-1").unwrap()
}

pub(crate) fn spec() -> InstanceSpec {
    InstanceSpec {
        image: ImageRef::parse(IMAGE).unwrap(),
        resources: Resources {
            memory: Memory::from_bytes(1024 * MIB).unwrap(),
            cpu: CpuMillis::from_millis(1000).unwrap(),
            pids: PidsLimit::from_count(512).unwrap(),
        },
        run: RunState::Running,
        restarts: 0,
        rebuilds: 0,
        env: BTreeMap::new(),
        secrets: BTreeMap::from([(
            EnvName::parse(GATEWAY_TOKEN).unwrap(),
            Secret::new(TOKEN.to_owned()),
        )]),
        config: String::new(),
        files: BTreeMap::new(),
        web: WebPolicy::default(),
        network: claw_core::firewall::NetworkPolicy::default(),
        health: HealthPolicy::default(),
        stop_grace: Duration::from_secs(30),
        // Those that are about snapshots say so.
        backup: BackupPolicy { every: None, drill_every: None, ..BackupPolicy::default() },
        update: claw_core::spec::UpdatePolicy::default(),
        restore: None,
    }
}

/// A state of the given instances.
pub(crate) fn state(instances: &[(&str, InstanceSpec)]) -> HostState {
    HostState {
        instances: instances.iter().map(|(n, spec)| (name(n), spec.clone())).collect(),
        ..HostState::default()
    }
}

pub(crate) fn offer(epoch: u64, generation: u64, state: &HostState) -> Offer {
    let bytes = encode_host_state(state);
    let digest = Digest::of(&bytes);
    let stamp = Stamp { epoch: Epoch(epoch), generation: Generation(generation), digest };
    Offer { stamp, bytes }
}

/// A machine and a directory that outlive the agents on them.
pub(crate) struct World {
    pub(crate) machine: FakeMachine,
    pub(crate) directory: TempDir,
}

/// A running agent.
pub(crate) struct Running {
    pub(crate) agent: Rc<Agent<FakeMachine>>,
    pub(crate) inbox: Inbox,
    pub(crate) alive: Rc<std::cell::Cell<u32>>,
    task: JoinHandle<()>,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { machine: FakeMachine::new(&[IMAGE, OTHER_IMAGE]), directory }
    }

    pub(crate) fn mishaps(&self) -> &Mishaps {
        self.machine.mishaps()
    }

    /// Starts an agent over whatever journal there is.
    pub(crate) fn start(&self) -> Running {
        let now = self.machine.clock.now();
        let (journal, recovered) = Journal::open(self.directory.path(), now).unwrap();
        let agent = Rc::new(Agent {
            machine: self.machine.clone(),
            journal,
            roster: Rc::default(),
            board: Board::default(),
            settings: Settings::default(),
        });
        let (host, inbox) = HostLoop::new(Rc::clone(&agent), recovered);
        let alive = Rc::new(std::cell::Cell::new(0));
        let beats = Rc::clone(&alive);
        let task = tokio::task::spawn_local(async move {
            host.run(Duration::from_secs(10), || beats.set(beats.get() + 1)).await;
        });
        Running { agent, inbox, alive, task }
    }

    /// Everything below the agent's directory, for looking for secrets.
    pub(crate) fn bytes_on_disk(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(self.directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                all.extend(std::fs::read(path).unwrap());
            }
        }
        all
    }
}

impl Running {
    /// Begins to end it, as kill -9 would.
    pub(crate) fn abort(&self) {
        self.task.abort();
    }

    /// As kill -9 would end it: in the midst of whatever it does.
    pub(crate) async fn kill(self) {
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

    /// Lets everything run that can run without time passing.
    pub(crate) async fn settle(&self) {
        for _ in 0..3 {
            for _ in 0..40 {
                tokio::task::yield_now().await;
            }
            // The journal's thread has done what was asked of it.
            let _answered = self.agent.journal.answer().await;
        }
        for _ in 0..40 {
            tokio::task::yield_now().await;
        }
    }

    /// Lets time pass until a condition holds; at most three fake hours.
    #[track_caller]
    pub(crate) fn until<'a>(
        &'a self,
        what: &'a str,
        condition: impl Fn() -> bool + 'a,
    ) -> impl Future<Output = ()> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let clock = &self.agent.machine.clock;
            let begun = clock.now();
            loop {
                self.settle().await;
                if condition() {
                    return;
                }
                let passed = clock.now().since(begun);
                assert!(
                    passed < Duration::from_secs(3 * 3600),
                    "{caller}: never {what}: {:#?}\n{:#?}",
                    self.agent.board.status(),
                    self.agent.machine.mishaps().effects(),
                );
                let next = clock.until_next().unwrap_or(Duration::from_secs(1));
                clock.advance(next.clamp(Duration::from_millis(1), Duration::from_secs(30)));
            }
        }
    }

    /// Lets a span of time pass.
    pub(crate) async fn pass(&self, span: Duration) {
        let clock = &self.agent.machine.clock;
        let end = clock.now().after(span);
        loop {
            self.settle().await;
            let left = end.since(clock.now());
            if left.is_zero() {
                return;
            }
            let next = clock.until_next().unwrap_or(left);
            clock.advance(next.clamp(Duration::from_millis(1), left));
        }
    }

    pub(crate) async fn until_phase(&self, instance: &str, phase: Phase) {
        let instance = name(instance);
        let what = format!("{instance} {phase}");
        self.until(&what, || self.report(&instance).is_some_and(|r| r.phase == phase)).await;
    }

    pub(crate) fn report(&self, instance: &InstanceName) -> Option<InstanceReport> {
        self.agent.board.instance(instance)
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.agent.journal.events().from(1, 10_000).unwrap()
    }

    pub(crate) fn kinds(&self) -> Vec<EventKind> {
        self.events().iter().map(|event| event.kind).collect()
    }

    pub(crate) fn count(&self, kind: EventKind) -> usize {
        self.kinds().iter().filter(|known| **known == kind).count()
    }

    pub(crate) fn refused(&self) -> Option<String> {
        self.agent.board.status().refused.map(|(_, reason)| reason)
    }

    /// Offers a state and waits until it is persisted.
    pub(crate) async fn persist(&self, generation: u64, state: &HostState) {
        let offer = offer(1, generation, state);
        let stamp = offer.stamp;
        self.inbox.offer(offer);
        self.until("persisted", || self.agent.board.status().persisted == Some(stamp)).await;
    }
}
