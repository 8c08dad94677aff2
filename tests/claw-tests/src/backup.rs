//! Snapshots, changes of version and ways back, as an operator asks for them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use claw_lab::LabHost;
use serde_json::Value;

use crate::fleet::Fleet;
use crate::unit::outside;

impl Fleet {
    /// The password with which plain restic reads an instance's repository, once its host has sent it.
    ///
    /// # Errors
    /// When it is not there within a minute.
    pub fn recovery_password(&self, name: &str) -> Result<String> {
        self.until(crate::programs::PATIENCE, "the recovery password", |fleet| {
            let answer = fleet.json(&["recovery-password", name])?;
            Ok(answer["recoveryPassword"].as_str().map(str::to_owned))
        })
    }

    /// Snapshots of an instance, newest first.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn snapshots(&self, name: &str) -> Result<Vec<Value>> {
        let all = self.json(&["snapshot", "list", name])?;
        let all = if all.is_array() { &all } else { &all["snapshots"] };
        all.as_array().cloned().with_context(|| format!("no list: {all}"))
    }

    /// Snapshots of an instance that were taken for a cause such as `pause`, and are ready.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn snapshots_for(&self, name: &str, cause: &str) -> Result<Vec<Value>> {
        let mut found = self.snapshots(name)?;
        found.retain(|snapshot| snapshot["cause"] == cause && snapshot["state"] == "ready");
        Ok(found)
    }

    /// Takes a snapshot and waits until it is ready; returns it.
    ///
    /// # Errors
    /// When it fails, or is not there when the deadline passes.
    pub fn take_snapshot(&self, name: &str, snapshot: &str, deadline: Duration) -> Result<Value> {
        self.clawctl_ok(&["snapshot", "create", name, snapshot])?;
        self.until_snapshot(name, snapshot, "ready", deadline)
    }

    /// Waits until a snapshot is in a state such as `ready`; returns it.
    ///
    /// # Errors
    /// With the snapshot as it is, when the deadline passes.
    pub fn until_snapshot(
        &self,
        name: &str,
        snapshot: &str,
        state: &str,
        deadline: Duration,
    ) -> Result<Value> {
        self.until(deadline, &format!("snapshot {snapshot} to be {state}"), |fleet| {
            let all = fleet.snapshots(name)?;
            let found =
                all.iter().find(|s| short_name(s) == snapshot).context("it is not listed")?;
            if found["state"] == state { Ok(Some(found.clone())) } else { bail!("it is {found}") }
        })
    }

    /// Waits until the report of an instance's snapshots fulfils something; returns it.
    ///
    /// # Errors
    /// With the report as it is, when the deadline passes.
    pub fn until_repository(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        there: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.until(deadline, what, |fleet| {
            let all = fleet.json(&["snapshot", "list", name])?;
            let repository = &all["repository"];
            if there(repository) {
                Ok(Some(repository.clone()))
            } else {
                bail!("it is {repository}")
            }
        })
    }

    /// Waits until the status of an instance fulfils something; returns it.
    ///
    /// # Errors
    /// With the status as it is, when the deadline passes.
    pub fn until_status(
        &self,
        name: &str,
        what: &str,
        deadline: Duration,
        there: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.until(deadline, &format!("{name}: {what}"), |fleet| {
            let status = fleet.instance(name)?["status"].clone();
            if there(&status) { Ok(Some(status)) } else { bail!("it is {status}") }
        })
    }

    /// The names of the data directories that an instance has on its host, half-made ones included.
    ///
    /// # Errors
    /// When the host is off or the instance has none.
    pub fn generations(&self, host: &LabHost, name: &str) -> Result<Vec<String>> {
        let dir = outside(host, &format!("/var/lib/clawd/instances/{name}"))?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            found.extend(file.starts_with("gen-").then_some(file));
        }
        found.sort();
        Ok(found)
    }
}

/// The part of a snapshot's name that is its own.
#[must_use]
pub fn short_name(snapshot: &Value) -> &str {
    let name = snapshot["name"].as_str().unwrap_or_default();
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}
