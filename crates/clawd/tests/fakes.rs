//! The fakes, held to the same contracts as the real adapters (`real_adapters.rs`).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::time::Duration;

use claw_core::address::{AddressPool, Slot};
use claw_core::name::ImageRef;
use claw_core::observed::ObservedInstance;
use claw_core::plan::{
    ContainerPlan, Delivery, DesiredInstance, Step, Target, VirtualHost, plan, virtual_host,
};
use claw_core::spec::Secret;
use claw_core::stamp::Generation;
use claw_core::time::Timestamp;
use clawd::contract::{self, RuntimeSubject};
use clawd::fakes::FakeMachine;
use clawd::ports::{Files as _, Proxy as _, Runtime as _, RuntimeChange};
use support::{IMAGE, name, run, spec};

fn desired(instance: &str, slot: u8) -> DesiredInstance {
    let delivery = Delivery { files: [].into(), secrets: Secret::new(String::new()) };
    DesiredInstance {
        name: name(instance),
        generation: Generation(1),
        network: AddressPool::STANDARD.network(Slot::new(slot).unwrap()),
        target: Target::Present { spec: Box::new(spec()), delivery: Box::new(delivery) },
    }
}

fn host(instance: &str, slot: u8) -> VirtualHost {
    virtual_host(&desired(instance, slot), &spec())
}

fn container_plan() -> ContainerPlan {
    let observed = ObservedInstance { image_present: true, ..ObservedInstance::default() };
    let plan = plan(&desired("a", 0), &observed, Timestamp::default());
    let made = plan.stages.into_iter().flatten().find_map(|step| match step {
        Step::CreateContainer { container } => Some(*container),
        _ => None,
    });
    made.unwrap()
}

async fn machine() -> FakeMachine {
    let machine = FakeMachine::new(&[IMAGE]);
    machine.runtime.pull(&ImageRef::parse(IMAGE).unwrap(), &|_| {}).await.unwrap();
    machine
}

#[test]
fn runtime() {
    run(async {
        let machine = machine().await;
        let subject = RuntimeSubject {
            network: AddressPool::STANDARD.network(Slot::new(0).unwrap()),
            plan: container_plan(),
            mounts: machine.files.mounts(&name("a")),
            absent_image: ImageRef::parse("registry.example/absent:1").unwrap(),
        };
        contract::runtime(&machine.runtime, &subject).await.unwrap();
    });
}

#[test]
fn files() {
    run(async { contract::files(&machine().await.files, &name("a")).await.unwrap() });
}

#[test]
fn proxy() {
    run(async {
        contract::proxy(&machine().await.proxy, &host("a", 0), &host("b", 1)).await.unwrap();
    });
}

#[test]
fn gateway() {
    run(async {
        let machine = machine().await;
        let network = AddressPool::STANDARD.network(Slot::new(0).unwrap());
        let (plan, mounts) = (container_plan(), machine.files.mounts(&name("a")));
        for change in [
            RuntimeChange::CreateNetwork(&network),
            RuntimeChange::CreateContainer(&plan, &mounts),
            RuntimeChange::Start,
        ] {
            machine.runtime.change(&name("a"), change).await.unwrap();
        }
        machine.proxy.publish(&host("a", 0)).await.unwrap();
        contract::gateway(&machine.gateway, &host("a", 0), &host("b", 1)).await.unwrap();
    });
}

#[test]
fn host_itself() {
    run(async { contract::host(&machine().await.host).unwrap() });
}

#[test]
fn clock() {
    run(async {
        let machine = machine().await;
        let clock = machine.clock.clone();
        let ticking = tokio::task::spawn_local(async move {
            loop {
                tokio::task::yield_now().await;
                clock.advance(Duration::from_millis(1));
            }
        });
        contract::clock(&machine.clock).await.unwrap();
        ticking.abort();
    });
}
