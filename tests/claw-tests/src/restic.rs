//! Debian's restic on a repository of ours, with nothing but its recovery password.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use claw_lab::{LabHost, command};
use serde_json::Value;

use crate::fleet::Fleet;
use crate::unit::outside;

/// What opens one instance's repository.
#[derive(Debug, Clone)]
pub struct Restic {
    repository: PathBuf,
    password: String,
}

impl Restic {
    /// For the repository of an instance on a host that is on, with the password that is kept at the
    /// coordinator.
    ///
    /// # Errors
    /// When there is no password or the host is off.
    pub fn of(fleet: &Fleet, host: &LabHost, name: &str) -> Result<Self> {
        let repository = outside(host, &format!("/var/lib/clawd/repo/{name}"))?;
        Ok(Self { repository, password: fleet.recovery_password(name)? })
    }

    /// For the repository of an instance that was removed from a host that is on.
    ///
    /// # Errors
    /// When there is none, or no password.
    pub fn of_removed(fleet: &Fleet, host: &LabHost, name: &str) -> Result<Self> {
        let dir = format!("/var/lib/clawd/removed/{name}.*/repo");
        let found = host.exec_ok(&["sh", "-c", &format!("ls -d {dir}")])?;
        let repository = outside(host, found.lines().next().context("no repository")?)?;
        Ok(Self { repository, password: fleet.recovery_password(name)? })
    }

    /// Runs restic, which must succeed, and returns what it printed.
    ///
    /// # Errors
    /// With what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut restic = command("restic");
        restic.args(["--no-cache", "--no-lock", "-r"]).arg(&self.repository).args(arguments);
        restic.env("RESTIC_PASSWORD", &self.password);
        let output = restic.output().context("cannot run restic")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "restic {}: {said}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// All snapshots, as restic lists them.
    ///
    /// # Errors
    /// When it cannot.
    pub fn snapshots(&self) -> Result<Vec<Value>> {
        let text = self.run(&["snapshots", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("no list: {text}"))
    }

    /// Restores a snapshot by its id; returns the directory of its data.
    ///
    /// # Errors
    /// When it cannot.
    pub fn restore(&self, id: &str, into: &Path) -> Result<PathBuf> {
        self.run(&["restore", id, "--target", &into.to_string_lossy()])?;
        Ok(into.join("data"))
    }
}
