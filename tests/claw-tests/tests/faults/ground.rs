//! What these tests share: a host with a disk of its own, and how a change is seen to be over.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail};
use claw_lab::{Cache, HostOptions, progress};
use claw_tests::fleet::until;
use claw_tests::strike;
use claw_tests::versions::{V1, Version};
use claw_tests::{Rig, Tenant, journal, rig};
use serde_json::Value;

/// Docker or the whole host is back within seconds, and the instance with it.
pub(crate) const RECOVERY: Duration = Duration::from_secs(120);
/// A snapshot of some megabytes, by a process with little weight.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A fleet whose host has these versions, and a disk for the agent's data alone of this many MiB.
pub(crate) fn start(name: &str, disk_mib: u32, versions: &[Version]) -> Result<Rig> {
    let cache = Cache::open(progress::terminal())?;
    let mut host = HostOptions::named("h1").with_clawd_disk(disk_mib);
    for version in versions {
        host = host.with_image(&version.image(&cache)?);
    }
    Rig::with(name, rig::QUICK, &[host])
}

pub(crate) fn rows(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

/// Waits until the journal names a stage of an instance's change.
pub(crate) fn at_stage(rig: &Rig, name: &str, stage: &str) -> Result<()> {
    strike::at(&format!("the stage {stage}"), || {
        Ok(journal::stage(rig.host(), name)?.as_deref() == Some(stage))
    })
}

/// The change that a tenant was asked for is over, and it runs; returns the version that does.
pub(crate) fn until_over(rig: &Rig, tenant: &Tenant<'_>, wanted: Version) -> Result<Version> {
    let image = wanted.reference();
    let status =
        rig.fleet().until_status(tenant.name(), "the change to be over", RECOVERY, |status| {
            let (active, refused) = (&status["active"]["image"], &status["refused"]["image"]);
            let over = *active == image || *refused == image;
            over && status["operation"].is_null() && status["phase"] == "running"
        })?;
    let confirmed = status["active"]["image"] == image;
    rig.note(&format!("  confirmed: {confirmed}; refused: {}", status["refused"]["problem"]));
    Ok(if confirmed { wanted } else { V1 })
}

/// A rollback is over, done or refused; returns whether it was done.
pub(crate) fn until_rolled_back(rig: &Rig, name: &str, before: &Value) -> Result<bool> {
    let record = until(RECOVERY, "the rollback to be over", || {
        let record = journal::record(rig.host(), name)?;
        let over = record["restored"] != *before || !record["refused"].is_null();
        if over && record["cutover"].is_null() { Ok(Some(record)) } else { bail!("{record}") }
    })?;
    let done = record["restored"] != *before;
    rig.note(&format!("  restored: {done}; refused: {}", record["refused"]["problem"]));
    Ok(done)
}
