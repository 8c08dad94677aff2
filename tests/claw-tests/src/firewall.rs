//! What operators do with firewalls, through `clawctl`.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::LabHost;
use serde_json::{Value, json};

use crate::fleet::Fleet;
use crate::programs::PATIENCE;

impl Fleet {
    /// Gives a host a policy: the `firewall` of its file.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn set_firewall(&self, host: &LabHost, firewall: &Value) -> Result<()> {
        let file = self.lab().dir().join(format!("{}.host.json", host.name()));
        let document = json!({ "kind": "Host", "name": host.name(), "firewall": firewall });
        std::fs::write(&file, document.to_string())?;
        self.clawctl_ok(&["apply", "-f", &file.to_string_lossy()]).map(drop)
    }

    /// How a host's firewall stands, and the generation that is wanted.
    ///
    /// # Errors
    /// When the coordinator does not know yet.
    pub fn firewall_status(&self, host: &LabHost) -> Result<(Value, u64)> {
        let found = self.json(&["host", "get", host.name()])?;
        let wanted = found["status"]["desired"]["generation"].as_u64();
        let status = found["status"]["firewall"].clone();
        ensure!(status.is_object(), "nothing is known: {found}");
        Ok((status, wanted.with_context(|| format!("no generation: {found}"))?))
    }

    /// Waits until what is wanted is in force; returns how it stands.
    ///
    /// # Errors
    /// With its last state, when a minute passes.
    pub fn until_firewall(&self, host: &LabHost) -> Result<Value> {
        self.until(PATIENCE, "the firewall to be as wanted", |fleet| {
            let (status, wanted) = fleet.firewall_status(host)?;
            let applied = status["appliedGeneration"].as_u64().unwrap_or(0);
            let fine = status["problem"].as_str().is_none_or(str::is_empty);
            if fine && applied >= wanted { Ok(Some(status)) } else { bail!("{wanted}: {status}") }
        })
    }

    /// Waits until a host says why its firewall is not as wanted; returns what it says.
    ///
    /// # Errors
    /// With its last state, when the deadline passes.
    pub fn until_firewall_problem(&self, host: &LabHost, deadline: Duration) -> Result<String> {
        self.until(deadline, "the firewall's problem to be told", |fleet| {
            let (status, _) = fleet.firewall_status(host)?;
            let said = status["problem"].as_str().filter(|text| !text.is_empty());
            if let Some(said) = said { Ok(Some(said.to_owned())) } else { bail!("{status}") }
        })
    }

    /// Everything of a host's firewall, as `clawctl host firewall` has it.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn firewall(&self, host: &LabHost) -> Result<Value> {
        self.json(&["host", "firewall", host.name()])
    }
}
