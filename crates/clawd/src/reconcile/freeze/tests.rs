//! Order and failures, on a machine in memory.

use std::collections::BTreeMap;

use claw_core::address::{AddressPool, Slot};
use claw_core::backup::BackupPolicy;
use claw_core::data::DataGeneration;
use claw_core::name::{EnvName, ImageRef};
use claw_core::observed::ContainerState;
use claw_core::plan::{Delivery, DesiredInstance, Target};
use claw_core::spec::{
    GATEWAY_TOKEN, HealthPolicy, InstanceSpec, Resources, RunState, Secret, UpdatePolicy, WebPolicy,
};
use claw_core::stamp::Generation;
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use tempfile::TempDir;

use super::*;
use crate::agent::Settings;
use crate::fakes::{FakeMachine, Mishap};
use crate::journal::Journal;
use crate::ports::Clock as _;
use crate::reconcile::Bell;
use crate::report::Board;
use crate::roster::{Member, Roster};

/// An agent and an instance that runs.
struct World {
    agent: Rc<Agent<FakeMachine>>,
    _directory: TempDir,
}

fn name() -> InstanceName {
    InstanceName::parse("demo").unwrap()
}

fn desired() -> DesiredInstance {
    let token = Secret::new("the-token".to_owned());
    let spec = InstanceSpec {
        image: ImageRef::parse("registry.example/gateway:1").unwrap(),
        resources: Resources {
            memory: Memory::from_bytes(1024 * MIB).unwrap(),
            cpu: CpuMillis::from_millis(1000).unwrap(),
            pids: PidsLimit::from_count(512).unwrap(),
        },
        run: RunState::Running,
        restarts: 0,
        rebuilds: 0,
        env: BTreeMap::new(),
        secrets: BTreeMap::from([(EnvName::parse(GATEWAY_TOKEN).unwrap(), token.clone())]),
        config: String::new(),
        files: BTreeMap::new(),
        web: WebPolicy::default(),
        network: claw_core::firewall::NetworkPolicy::default(),
        health: HealthPolicy::default(),
        stop_grace: std::time::Duration::from_secs(30),
        backup: BackupPolicy::default(),
        update: UpdatePolicy::default(),
        restore: None,
    };
    let delivery = Delivery { files: BTreeMap::new(), secrets: token };
    DesiredInstance {
        name: name(),
        generation: Generation(7),
        network: AddressPool::STANDARD.network(Slot::new(0).unwrap()),
        data: DataGeneration::FIRST,
        target: Target::Present { spec: Box::new(spec), delivery: Box::new(delivery) },
    }
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = FakeMachine::new(&[]);
        let (journal, _recovered) = Journal::open(directory.path(), machine.clock.now()).unwrap();
        machine.runtime.plant(&name());
        let roster = Rc::<Roster>::default();
        roster.publish(Member {
            effective: Rc::new(desired()),
            last: None,
            up: None,
            down_since: None,
            data_present: true,
            restore: None,
            awaits: None,
            replaced: None,
            reclaimable: None,
            reclaimed: None,
            bell: Rc::<Bell>::default(),
        });
        let (board, settings) = (Board::default(), Settings::default());
        let agent = Rc::new(Agent { machine, journal, board, roster, settings });
        Self { agent, _directory: directory }
    }

    fn freezer(&self) -> Freezer<FakeMachine> {
        let container = self.agent.machine.runtime.container(&name()).unwrap().id;
        Freezer::new(Rc::clone(&self.agent), name(), container)
    }

    /// A freezer whose gateway knows this host already.
    async fn acquainted(&self) -> Freezer<FakeMachine> {
        let freezer = self.freezer().and_suspend().await;
        assert!(freezer.gateway.is_some());
        freezer
    }

    fn fails(&self, call: &str, mishap: Mishap) {
        self.agent.machine.mishaps().named(call, 1, mishap);
    }

    /// Effects after those that were there before.
    fn effects(&self, before: usize) -> Vec<String> {
        self.agent.machine.mishaps().effects().split_off(before)
    }

    fn count(&self) -> usize {
        self.agent.machine.mishaps().effects().len()
    }

    /// Whether nothing is held any more.
    fn is_at_ease(&self) -> bool {
        let machine = &self.agent.machine;
        let state = machine.runtime.container(&name()).unwrap().state;
        matches!(state, ContainerState::Running { .. })
            && machine.gateway.suspended().is_empty()
            && !self.agent.roster.is_frozen(&name())
    }
}

#[tokio::test]
async fn a_freezer_alone_asks_nobody() {
    let world = World::new();
    let freezer = world.freezer();
    freezer.hold().await.unwrap();
    assert!(world.agent.roster.is_frozen(&name()));
    freezer.release().await.unwrap();
    assert_eq!(world.effects(0), ["pause", "unpause"]);
    assert!(world.is_at_ease());
}

#[tokio::test]
async fn a_gateway_is_suspended_around_the_freezer_and_let_go_while_frozen() {
    let world = World::new();
    let freezer = world.acquainted().await;
    assert_eq!(world.effects(0), ["run-inside"], "it is introduced, once");
    freezer.hold().await.unwrap();
    assert_eq!(world.agent.machine.gateway.suspended().len(), 1);
    freezer.release().await.unwrap();
    assert_eq!(world.effects(1), ["suspend", "pause", "let-go", "unpause", "resumed"]);
    assert!(world.is_at_ease());
    let before = world.count();
    let _known = world.acquainted().await;
    assert_eq!(world.effects(before), [""; 0], "it is known from then on");
}

#[tokio::test]
async fn what_cannot_be_suspended_is_frozen_all_the_same() {
    for call in ["introduce", "run-inside"] {
        let world = World::new();
        world.fails(call, Mishap::FailsBefore);
        let freezer = world.freezer().and_suspend().await;
        let before = world.count();
        freezer.hold().await.unwrap();
        freezer.release().await.unwrap();
        assert_eq!(world.effects(before), ["pause", "unpause"], "{call}");
        assert!(world.is_at_ease(), "{call}");
    }
    let world = World::new();
    let freezer = world.acquainted().await;
    world.fails("suspend", Mishap::FailsBefore);
    freezer.hold().await.unwrap();
    freezer.release().await.unwrap();
    assert_eq!(world.effects(1), ["suspend", "pause", "unpause"]);
    assert!(world.is_at_ease());
}

#[tokio::test]
async fn a_gateway_resumes_whatever_fails() {
    let world = World::new();
    let freezer = world.acquainted().await;
    world.fails("pause", Mishap::FailsBefore);
    assert!(freezer.hold().await.is_err());
    freezer.release().await.unwrap();
    assert_eq!(world.effects(1), ["suspend", "pause", "unpause", "resume"]);
    assert!(world.is_at_ease());

    let before = world.count();
    world.fails("let-go", Mishap::FailsBefore);
    freezer.hold().await.unwrap();
    freezer.release().await.unwrap();
    assert_eq!(world.effects(before), ["suspend", "pause", "let-go", "unpause", "resume"]);
    assert!(world.is_at_ease());

    let before = world.count();
    world.fails("unpause", Mishap::FailsAfter);
    freezer.hold().await.unwrap();
    assert!(freezer.release().await.is_err());
    assert_eq!(world.effects(before), ["suspend", "pause", "let-go", "unpause", "resumed"]);
    assert!(world.is_at_ease());
}

#[tokio::test]
async fn a_container_without_memory_is_not_made_to_run_more() {
    let world = World::new();
    world.agent.machine.host.use_memory(800 * MIB);
    let freezer = world.freezer().and_suspend().await;
    assert!(freezer.gateway.is_none());
    assert_eq!(world.effects(0), [""; 0]);
}
