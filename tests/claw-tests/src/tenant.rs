//! One instance of the fake gateway that is taken through versions, and what must be true of it then.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::LabHost;
use serde_json::Value;

use crate::docker::Docker;
use crate::fleet::until;
use crate::instance::Instance;
use crate::journal;
use crate::programs::PATIENCE;
use crate::pulse::Pulse;
use crate::rig::Rig;
use crate::unit::outside;
use crate::versions::Version;

/// An instance on one of a rig's hosts.
#[derive(Debug)]
pub struct Tenant<'a> {
    rig: &'a Rig,
    host: &'a LabHost,
    /// What it should be; [`Self::apply`] makes it so.
    pub instance: Instance,
}

impl<'a> Tenant<'a> {
    /// One of a version that offers its control endpoints and must be healthy for a second; nothing is
    /// created yet.
    #[must_use]
    pub fn new(rig: &'a Rig, name: &str, version: Version) -> Self {
        Self::on(rig, rig.host(), name, version)
    }

    /// The same on another host than the first.
    #[must_use]
    pub fn on(rig: &'a Rig, host: &'a LabHost, name: &str, version: Version) -> Self {
        let mut instance = Instance::new(name, host, &version.reference());
        instance.min_healthy_s = 1;
        instance.startup_deadline_s = 5;
        instance.stop_grace_s = 5;
        Self { rig, host, instance: instance.env("CLAW_FAKE_CONTROL", 1) }
    }

    /// It has moved: it is looked for on another host from now on.
    pub fn moved(&mut self, host: &'a LabHost) {
        self.host = host;
        host.name().clone_into(&mut self.instance.host);
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.instance.name
    }

    /// Tells the coordinator what it should be.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn apply(&self) -> Result<()> {
        self.rig.fleet().apply(&self.instance)
    }

    /// Creates it and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn deploy(&self) -> Result<()> {
        self.apply()?;
        self.rig.fleet().until_phase(self.name(), "running", PATIENCE)?;
        self.rig.fleet().until_serving(self.host, self.name())
    }

    /// Asks for another version.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn ask_for(&mut self, version: Version) -> Result<()> {
        self.instance.image = version.reference();
        self.apply()
    }

    /// A customer at 100 Hz; `series` tells its rows from those of others.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn pulse(&self, series: &str) -> Result<Pulse> {
        Pulse::start(self.rig.fleet(), self.host, self.name(), series)
    }

    /// Waits until a version is confirmed and runs.
    ///
    /// # Errors
    /// With the status as it is, when a minute passes.
    pub fn until_confirmed(&self, version: Version) -> Result<Value> {
        let image = version.reference();
        let what = format!("{} to be confirmed", version.tag);
        self.rig.fleet().until_status(self.name(), &what, PATIENCE, |status| {
            status["current"] == true
                && status["phase"] == "running"
                && status["active"]["image"] == image.as_str()
                && status["operation"].is_null()
        })
    }

    /// Waits until a version is refused while another runs; returns why.
    ///
    /// # Errors
    /// With the status as it is, when a minute passes.
    pub fn until_refused(&self, version: Version) -> Result<String> {
        let image = version.reference();
        let what = format!("{} to be refused", version.tag);
        let status = self.rig.fleet().until_status(self.name(), &what, PATIENCE, |status| {
            status["phase"] == "running"
                && status["refused"]["image"] == image.as_str()
                && status["active"]["image"] != image.as_str()
                && status["operation"].is_null()
        })?;
        let problem = status["refused"]["problem"].as_str().filter(|problem| !problem.is_empty());
        problem.map(str::to_owned).with_context(|| format!("no reason in {status}"))
    }

    /// Asks its gateway something under `/__fake/`.
    ///
    /// # Errors
    /// When it refuses.
    pub fn control(&self, what: &str) -> Result<String> {
        self.rig.fleet().control(self.host, self.name(), what)
    }

    /// Has its gateway write a row and acknowledge it.
    ///
    /// # Errors
    /// When it does not.
    pub fn write(&self, key: &str, value: &str) -> Result<()> {
        let said = self.control(&format!("write?key={key}&value={value}"))?;
        ensure!(said.starts_with("ok"), "{said}");
        Ok(())
    }

    /// The keys of every row that it has.
    ///
    /// # Errors
    /// When it does not say.
    pub fn keys(&self) -> Result<BTreeSet<String>> {
        Ok(self.control("keys")?.lines().map(str::to_owned).collect())
    }

    /// It serves with this version, from one container in one network, and nothing is left over.
    ///
    /// # Errors
    /// With what is wrong, when a minute passes.
    pub fn assert_serves(&self, version: Version) -> Result<()> {
        self.rig.fleet().until_serving(self.host, self.name())?;
        let build = self.control("build")?;
        ensure!(build == version.tag, "{build} serves instead of {}", version.tag);
        until(PATIENCE, "nothing to be left over", || {
            self.look_for_leftovers()?;
            Ok(Some(()))
        })
    }

    /// Every one of these rows is there.
    ///
    /// # Errors
    /// With the first ones that are not.
    pub fn assert_has(&self, rows: &BTreeSet<String>) -> Result<()> {
        ensure!(!rows.is_empty(), "nothing was acknowledged");
        let keys = self.keys()?;
        let missing: Vec<_> = rows.difference(&keys).collect();
        let first = missing.iter().take(5).collect::<Vec<_>>();
        ensure!(missing.is_empty(), "{} of {} rows are lost: {first:?}", missing.len(), rows.len());
        Ok(())
    }

    fn look_for_leftovers(&self) -> Result<()> {
        let (docker, host, name) = (Docker::of(self.host)?, self.host, self.name());
        let containers = docker.containers_of(name)?;
        ensure!(containers.len() == 1, "{name} has not one container: {containers:#?}");
        ensure!(containers[0]["State"] == "running", "it is {}", containers[0]["State"]);
        let networks = docker.networks_of(name)?;
        ensure!(networks.len() == 1, "{name} has not one network: {networks:#?}");
        let trials = docker.trials_of(name)?;
        ensure!(trials.is_empty(), "of a trial is left: {trials:#?}");
        let open: Vec<_> =
            journal::steps(host, name)?.into_iter().filter(|step| step.outcome.is_none()).collect();
        ensure!(open.is_empty(), "steps are open: {open:?}");
        let (here, kept) = self.known_generations()?;
        for found in self.rig.fleet().generations(host, name)? {
            // Beside a directory may lie what was noted of its files when it was copied.
            let of = found.strip_suffix(".copied").unwrap_or(&found);
            if of != here && Some(of) != kept.as_deref() {
                bail!("{found} is left, {here} is in use, {kept:?} is kept");
            }
        }
        let work = outside(host, &format!("/var/lib/clawd/instances/{name}"))?.join(&here);
        ensure!(work.exists(), "{here} is gone");
        Ok(())
    }

    /// The data directory in use, and the one that is kept of the version before.
    fn known_generations(&self) -> Result<(String, Option<String>)> {
        let record = journal::record(self.host, self.name())?;
        let name = |value: &Value| value.as_u64().map(|number| format!("gen-{number}"));
        let here = name(&record["active"]["data"]).unwrap_or_else(|| "gen-1".to_owned());
        Ok((here, name(&record["replaced"]["data"])))
    }
}
