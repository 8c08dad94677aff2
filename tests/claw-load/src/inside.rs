//! A coordinator within this process, for what is measured without the network: its own functions, its own
//! store on disk, no callers but us.

use std::path::Path;

use anyhow::Result;
use claw_coordinator::clock::Clock;
use claw_coordinator::config::{Config, RawConfig};
use claw_coordinator::fleet::Fleet;
use claw_coordinator::fleet::hosts::{Answer as HostAnswer, HostPatch};
use claw_coordinator::fleet::instances::{Answer, SpecPatch};
use claw_coordinator::init::{Init, init};
use claw_coordinator::server::Coordinator;
use claw_coordinator::store::mutation::{Call, Codec, Mode};
use claw_core::name::{HostName, InstanceName};
use claw_identity::TrustDomain;
use claw_proto::fleet::v1::{self as fleet};

use crate::api;

/// A fleet in a directory, and the coordinator that has it open.
#[derive(Debug)]
pub(crate) struct Inside {
    coordinator: Coordinator,
}

impl Inside {
    /// Makes a fleet and opens it.
    pub(crate) async fn make(data_dir: &Path) -> Result<Self> {
        let request = Init {
            data_dir: data_dir.to_owned(),
            names: vec!["localhost".to_owned()],
            trust_domain: TrustDomain::parse("claw.internal")?,
        };
        init(&request, &Clock::system())?;
        Self::open(data_dir).await
    }

    /// Opens a fleet.
    pub(crate) async fn open(data_dir: &Path) -> Result<Self> {
        let mut config = Config::try_from(RawConfig::default())?;
        config.listen = "127.0.0.1:0".parse()?;
        config.data_dir = data_dir.to_owned();
        Ok(Self { coordinator: Coordinator::start(config, Clock::system()).await? })
    }

    /// What can be done with it.
    pub(crate) fn hands(&self) -> Hands {
        Hands { fleet: self.coordinator.fleet().clone() }
    }

    /// Closes the fleet.
    pub(crate) async fn close(self) {
        self.coordinator.shutdown().await;
    }
}

/// Changes of a fleet, as the API's handlers make them.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    fleet: Fleet,
}

impl Hands {
    /// Registers a host.
    pub(crate) async fn create_host(&self, number: usize) -> Result<()> {
        let answer = HostAnswer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |host| fleet::CreateHostResponse { host: Some(host) },
        };
        let patch = HostPatch { labels: None, cordoned: None, firewall: None };
        let call = self.call("claw.fleet.v1.HostService/CreateHost");
        self.fleet
            .create_host(call, HostName::parse(&format!("h{number}"))?, patch, answer)
            .await?;
        Ok(())
    }

    /// Creates an instance.
    pub(crate) async fn create_instance(&self, number: usize, host: usize) -> Result<()> {
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::CreateInstanceResponse { instance: Some(instance) },
        };
        let call = self.call("claw.fleet.v1.InstanceService/CreateInstance");
        let name = InstanceName::parse(&format!("i{number}"))?;
        let host = HostName::parse(&format!("h{host}"))?;
        let spec = api::spec(number, 0);
        self.fleet.create_instance(call, name, host, spec, answer).await?;
        Ok(())
    }

    /// Changes 2 KB of an instance.
    pub(crate) async fn change(&self, number: usize, round: usize) -> Result<()> {
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::UpdateInstanceResponse { instance: Some(instance) },
        };
        let call = self.call("claw.fleet.v1.InstanceService/UpdateInstance");
        let name = InstanceName::parse(&format!("i{number}"))?;
        let paths = vec!["spec.identity".to_owned()];
        let patch = SpecPatch { host: None, spec: api::spec(number, round), paths };
        self.fleet.update_instance(call, name, String::new(), patch, answer).await?;
        Ok(())
    }

    fn call(&self, method: &'static str) -> Call {
        Call {
            principal: "operator/load".to_owned(),
            source: "127.0.0.1".to_owned(),
            method,
            now: self.fleet.clock.now(),
            request: None,
            mode: Mode::Commit,
        }
    }
}
