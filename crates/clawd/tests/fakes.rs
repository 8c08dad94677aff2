//! The fakes, held to the contracts of their ports, as the adapters are in `real_adapters.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::address::{AddressPool, Slot};
use claw_core::data::DataGeneration;
use claw_core::firewall::{Effective, HostPolicy, Port, render};
use claw_core::name::{ImageRef, InstanceName};
use claw_core::plan::{ContainerPlan, VirtualHost};
use claw_core::spec::{Resources, Secret};
use claw_core::stamp::{Digest, Generation};
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use clawd::contract::{self, ControlSubject, RuntimeSubject, TrialsSubject};
use clawd::fakes::FakeMachine;
use clawd::ports::{Files, GatewayAccess, Runtime, RuntimeChange, Trial};

const IMAGE: &str = "claw/fake-gateway:1";

fn machine() -> FakeMachine {
    FakeMachine::new(&[IMAGE])
}

fn subject(machine: &FakeMachine, instance: &str) -> RuntimeSubject {
    let instance = InstanceName::parse(instance).unwrap();
    let network = AddressPool::STANDARD.network(Slot::new(0).unwrap());
    let plan = ContainerPlan {
        generation: Generation(7),
        digest: Digest::of(b"contract"),
        name: format!("claw-{instance}"),
        hostname: instance.to_string(),
        image: ImageRef::parse(IMAGE).unwrap(),
        env: BTreeMap::new(),
        resources: Resources {
            memory: Memory::from_bytes(128 * MIB).unwrap(),
            cpu: CpuMillis::from_millis(500).unwrap(),
            pids: PidsLimit::from_count(64).unwrap(),
        },
        network: format!("claw-{instance}"),
        address: network.container(),
        dns: network.gateway(),
        data: DataGeneration::FIRST,
        state_dir: "/home/node/.openclaw",
        stop_grace: Duration::from_secs(10),
        instance: instance.clone(),
    };
    let absent_image = ImageRef::parse("localhost:1/nowhere:none").unwrap();
    let mounts = machine.files.mounts(&instance, DataGeneration::FIRST);
    machine.runtime.load("spare:1");
    machine.runtime.tag("spare:1", "spare:2");
    let spare = ["spare:1", "spare:2"].map(|name| ImageRef::parse(name).unwrap());
    RuntimeSubject { network, plan, mounts, absent_image, spare }
}

fn host(instance: &str, last: u8) -> VirtualHost {
    VirtualHost {
        sources: std::collections::BTreeSet::new(),
        instance: InstanceName::parse(instance).unwrap(),
        hostnames: vec![format!("{instance}.claw.localhost")],
        upstream: ([10, 201, 1, last], 18789).into(),
    }
}

#[tokio::test]
async fn runtime() {
    let machine = machine();
    contract::runtime(&machine.runtime, &subject(&machine, "demo")).await.unwrap();
}

#[tokio::test]
async fn files() {
    let instance = InstanceName::parse("demo").unwrap();
    contract::files(&machine().files, &instance).await.unwrap();
}

#[tokio::test]
async fn volumes() {
    let machine = machine();
    let instance = InstanceName::parse("demo").unwrap();
    contract::volumes(&machine.volumes, &machine.files, &instance).await.unwrap();
}

#[tokio::test]
async fn trials() {
    let machine = machine();
    let RuntimeSubject { plan, mounts, absent_image, .. } = subject(&machine, "demo");
    machine.runtime.pull(&plan.image, &|_| {}).await.unwrap();
    let network = Some(AddressPool::STANDARD.trial());
    let gateway = Trial { container: plan, mounts, network, command: None };
    let command = Some(vec!["openclaw".to_owned(), "doctor".to_owned()]);
    let command = Trial { network: None, command, ..gateway.clone() };
    let subject = TrialsSubject { gateway, port: 18789, command, absent_image };
    contract::trials(&machine.runtime, &machine.gateway, &subject).await.unwrap();
}

#[tokio::test]
async fn proxy() {
    contract::proxy(&machine().proxy, &host("one", 2), &host("two", 3)).await.unwrap();
}

#[tokio::test]
async fn gateway() {
    let machine = machine();
    let RuntimeSubject { plan, mounts, network, .. } = subject(&machine, "demo");
    let create = RuntimeChange::CreateContainer(&plan, &mounts);
    machine.runtime.pull(&plan.image, &|_| {}).await.unwrap();
    for change in [RuntimeChange::CreateNetwork(&network), create, RuntimeChange::Start] {
        machine.runtime.change(&plan.instance, change).await.unwrap();
    }
    contract::gateway(&machine.gateway, &host("demo", 2), &host("absent", 3)).await.unwrap();
}

#[tokio::test]
async fn control() {
    let machine = machine();
    let RuntimeSubject { plan, mounts, network, .. } = subject(&machine, "demo");
    let create = RuntimeChange::CreateContainer(&plan, &mounts);
    machine.runtime.pull(&plan.image, &|_| {}).await.unwrap();
    for change in [RuntimeChange::CreateNetwork(&network), create, RuntimeChange::Start] {
        machine.runtime.change(&plan.instance, change).await.unwrap();
    }
    let token = Secret::new("token".to_owned());
    let gateway = GatewayAccess { address: host("demo", 2).upstream, token };
    let container = machine.runtime.container(&plan.instance).unwrap().id;
    let subject = ControlSubject { gateway, container, absent: ([10, 201, 1, 3], 18789).into() };
    contract::control(&machine.gateway, &machine.runtime, &subject).await.unwrap();
    assert_eq!(machine.gateway.suspended(), []);
}

#[tokio::test]
async fn firewall() {
    let machine = machine();
    let rules = |web_port| {
        render::render(&Effective {
            host: HostPolicy::default(),
            ssh_ports: Port::new(22).into_iter().collect(),
            web_ports: Port::new(web_port).into_iter().collect(),
            pool: AddressPool::STANDARD,
            instances: BTreeMap::new(),
        })
    };
    contract::firewall(&machine.firewall, &rules(8080), &rules(8081)).await.unwrap();
    contract::traffic(&machine.firewall).await.unwrap();
}

#[test]
fn host_resources() {
    contract::host(&machine().host).unwrap();
}

#[tokio::test]
async fn clock() {
    let clock = machine().clock;
    let moving = async {
        while clock.until_next().is_none() {
            tokio::task::yield_now().await;
        }
        clock.advance(Duration::from_secs(1));
    };
    let (kept, ()) = tokio::join!(contract::clock(&clock), moving);
    kept.unwrap();
}
