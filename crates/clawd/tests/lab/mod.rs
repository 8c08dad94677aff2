//! The lab host that the test runs on, and what the tests need of it.

use std::collections::BTreeMap;
use std::time::Duration;

use claw_core::address::{AddressPool, InstanceNetwork, Slot};
use claw_core::data::DataGeneration;
use claw_core::name::{ImageRef, InstanceName, StatePath};
use claw_core::observed::ObservedContainer;
use claw_core::plan::{ContainerPlan, VirtualHost};
use claw_core::spec::{Resources, Secret};
use claw_core::stamp::{Digest, Generation};
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use clawd::adapters::docker::Docker;
use clawd::adapters::files::{FilesSettings, GATEWAY_OWNER, InstanceFiles, SecretsMedium};
use clawd::adapters::gateway::OpenClaw;
use clawd::adapters::nginx::{Nginx, NginxSettings, every_address};
use clawd::ports::{Files, Mounts, Proxy, Runtime, RuntimeChange, RuntimeError, RuntimeEvent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// The gateway's token, which must not show anywhere.
pub(crate) const TOKEN: &str = "contract-token-6fd3a1";

/// How long anything may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lab host, with the adapters on it.
#[derive(Debug)]
pub(crate) struct LabHost {
    pub(crate) docker: Docker,
    pub(crate) files: InstanceFiles,
    pub(crate) nginx: Nginx,
    pub(crate) image: ImageRef,
}

/// An instance to try things on.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) instance: InstanceName,
    pub(crate) network: InstanceNetwork,
    pub(crate) plan: ContainerPlan,
    pub(crate) mounts: Mounts,
}

impl Subject {
    pub(crate) fn virtual_host(&self) -> VirtualHost {
        VirtualHost {
            sources: std::collections::BTreeSet::new(),
            instance: self.instance.clone(),
            hostnames: vec![format!("{}.claw.localhost", self.instance)],
            upstream: (self.network.container(), 18789).into(),
        }
    }
}

impl LabHost {
    /// This host, if it is a lab host; says so if it is not.
    pub(crate) async fn here(test: &str) -> Option<Self> {
        if std::env::var_os("CLAW_LAB_HOST").is_none() {
            eprintln!(
                "{test}: did not run, because this is no lab host (CLAW_LAB_HOST is not set)"
            );
            return None;
        }
        let image = std::env::var("CLAW_LAB_IMAGE").expect("CLAW_LAB_IMAGE names the fake gateway");
        let settings = FilesSettings {
            data: "/var/lib/claw-contract".into(),
            secrets: "/run/claw-contract/secrets".into(),
            medium: SecretsMedium::Memory,
            owner: GATEWAY_OWNER,
        };
        std::fs::create_dir_all("/etc/nginx/claw.d").unwrap();
        let shared = include_str!("../../../../packaging/clawd/nginx-claw.conf");
        std::fs::write("/etc/nginx/conf.d/claw.conf", shared).unwrap();
        Some(Self {
            docker: Docker::new("/run/docker.sock".into()),
            files: InstanceFiles::new(settings),
            nginx: Nginx::start(NginxSettings::debian(every_address(8080))),
            image: ImageRef::parse(&image).unwrap(),
        })
    }

    /// Gateways, as the agent looks at them and asks them.
    pub(crate) fn openclaw(&self) -> OpenClaw {
        OpenClaw::new(self.nginx.listen(), "/var/lib/claw-contract".into())
    }

    /// An instance whose files are in place and whose container and network are not made yet.
    pub(crate) async fn subject(&self, instance: &str, slot: u8) -> Subject {
        let instance = name(instance);
        let network = AddressPool::STANDARD.network(Slot::new(slot).unwrap());
        let plan = ContainerPlan {
            instance: instance.clone(),
            generation: Generation(7),
            digest: Digest::of(b"contract"),
            name: format!("claw-{instance}"),
            hostname: instance.to_string(),
            image: self.image.clone(),
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
        };
        let config = format!(
            r#"{{ gateway: {{ mode: "local", bind: "lan", auth: {{ mode: "token", token: "${{OPENCLAW_GATEWAY_TOKEN}}" }}, trustedProxies: ["{}/32"] }} }}"#,
            network.gateway()
        );
        let config = BTreeMap::from([(StatePath::parse("openclaw.json").unwrap(), config)]);
        self.files.deliver(&instance, DataGeneration::FIRST, &config).await.unwrap();
        let secrets = Secret::new(format!("OPENCLAW_GATEWAY_TOKEN='{TOKEN}'\n"));
        self.files.write_secrets(&instance, &secrets).await.unwrap();
        let mounts = self.files.mounts(&instance, DataGeneration::FIRST);
        Subject { instance, network, plan, mounts }
    }

    pub(crate) async fn change(
        &self,
        subject: &Subject,
        change: RuntimeChange<'_>,
    ) -> Result<(), RuntimeError> {
        self.docker.change(&subject.instance, change).await
    }

    /// Makes the network and the container.
    pub(crate) async fn create(&self, subject: &Subject) {
        self.change(subject, RuntimeChange::CreateNetwork(&subject.network)).await.unwrap();
        let create = RuntimeChange::CreateContainer(&subject.plan, &subject.mounts);
        self.change(subject, create).await.unwrap();
    }

    pub(crate) async fn container(&self, subject: &Subject) -> ObservedContainer {
        let view = self.docker.view(&subject.instance, None).await.unwrap();
        view.container.expect("there is a container")
    }

    /// Removes all of a subject but its data.
    pub(crate) async fn clean(&self, subject: &Subject) {
        let view = self.docker.view(&subject.instance, None).await.unwrap();
        if let Some(container) = view.container {
            let stop = RuntimeChange::Stop(&container.id, Duration::from_secs(5));
            self.change(subject, stop).await.unwrap();
            self.change(subject, RuntimeChange::Remove(&container.id)).await.unwrap();
        }
        if let Some(network) = view.network {
            self.change(subject, RuntimeChange::RemoveNetwork(&network.id)).await.unwrap();
        }
        self.files.remove_secrets(&subject.instance).await.unwrap();
    }
}

pub(crate) fn name(text: &str) -> InstanceName {
    InstanceName::parse(text).unwrap()
}

/// Runs a program that must succeed.
pub(crate) async fn run(argv: &[&str]) -> String {
    let output = tokio::process::Command::new(argv[0]).args(&argv[1..]).output().await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{argv:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The next event.
pub(crate) async fn next(events: &mut mpsc::Receiver<RuntimeEvent>) -> RuntimeEvent {
    let event = tokio::time::timeout(PATIENCE, events.recv()).await;
    event.expect("an event comes").expect("listening goes on")
}

/// Looks until there is something to see.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_late| panic!("{what}: not seen"))
}

/// Asks nginx as somebody on the host would; returns status and body.
pub(crate) async fn request(host: &str, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect("127.0.0.1:8080").await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap();
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status, body.to_owned())
}
