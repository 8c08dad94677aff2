//! Updates: image, data and configuration change together, or nothing does.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Cache, HostOptions, progress};
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::pulse::Heard;
use claw_tests::versions::{self, V1, V1_AGAIN, V2, V2_DOCTOR, V2_HANG, V2_SLOW, Version};
use claw_tests::{Rig, Tenant, UnitProcess, journal, rig};
use nix::sys::signal::Signal;
use serde_json::json;

/// How long a customer may wait in a good update of a gateway that starts at once.
const MOMENT: Duration = Duration::from_secs(10);

/// A fleet whose host has these versions.
fn start(name: &str, versions: &[Version]) -> Result<Rig> {
    let cache = Cache::open(progress::terminal())?;
    let mut host = HostOptions::named("h1");
    for version in versions {
        host = host.with_image(&version.image(&cache)?);
    }
    Rig::with(name, rig::QUICK, &[host])
}

fn rehearsal(policy: &str) -> serde_json::Value {
    json!({ "rehearsal": policy })
}

#[test]
fn good_updates_lose_nothing_and_are_down_for_a_moment() -> Result<()> {
    let rig = start("update", &[V1, V1_AGAIN, V2, V2_DOCTOR])?;
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("update".into(), rehearsal("never"));
    let mut careful = Tenant::new(&rig, "careful", V1);
    careful.instance.more.insert("update".into(), rehearsal("always"));
    rig.step("two instances serve", || {
        demo.apply()?;
        careful.deploy()?;
        demo.deploy()
    })?;
    for version in [V1_AGAIN, V2] {
        rig.step(&format!("{} without a rehearsal", version.tag), || {
            good_update(&rig, &mut demo, version, MOMENT).map(drop)
        })?;
    }
    for version in [V1_AGAIN, V2_DOCTOR] {
        rig.step(&format!("{} after a rehearsal", version.tag), || {
            good_update(&rig, &mut careful, version, MOMENT).map(drop)
        })?;
    }
    rig.step("the state is that of the new versions", || {
        for tenant in [&demo, &careful] {
            let found = tenant.control("state-version")?;
            ensure!(found == "19", "{} has state {found}", tenant.name());
            let before = rig.fleet().snapshots_for(tenant.name(), "update")?;
            ensure!(before.len() == 2, "not one snapshot before each update: {before:#?}");
        }
        Ok(())
    })
}

/// Updates while a customer writes; every acknowledged row must be there.
fn good_update(
    rig: &Rig,
    tenant: &mut Tenant<'_>,
    version: Version,
    most: Duration,
) -> Result<Heard> {
    let pulse = tenant.pulse(version.tag)?;
    tenant.ask_for(version)?;
    tenant.until_confirmed(version)?;
    tenant.assert_serves(version)?;
    let heard = pulse.stop()?;
    rig.note(&format!("  {heard}"));
    let by_new = heard.acked(|tag| tag == version.tag);
    ensure!(!by_new.is_empty(), "the customer never came to the new version");
    tenant.assert_has(&heard.acked(|_| true))?;
    ensure!(heard.outage() <= most, "{heard}: {:?}", heard.gaps());
    Ok(heard)
}

#[test]
fn bad_updates_end_with_the_old_version_and_all_its_data() -> Result<()> {
    let rig = start("bad", &[&[V1][..], &versions::BAD].concat())?;
    let mut tenants = tenants(&rig, "never")?;
    for (tenant, version) in tenants.iter_mut().zip(versions::BAD) {
        rig.step(&format!("{} is tried, and taken back", version.tag), || {
            let heard = bad_update(&rig, tenant, version)?;
            // What a version that failed had acknowledged goes with it.
            tenant.assert_has(&heard.acked(|tag| tag == V1.tag))
        })?;
    }
    rig.step("none is tried again, also not by an agent that is new", || {
        let agent = UnitProcess::of(rig.host(), "clawd.service")?;
        agent.signal(Signal::SIGKILL)?;
        until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
        rig.fleet().until_online(rig.host())?;
        for (tenant, version) in tenants.iter().zip(versions::BAD) {
            tenant.until_refused(version)?;
            tenant.assert_serves(V1)?;
        }
        Ok(())
    })
}

#[test]
fn a_rehearsal_finds_bad_updates_before_any_customer_does() -> Result<()> {
    let rig = start("rehearse", &[&[V1][..], &versions::BAD].concat())?;
    let mut tenants = tenants(&rig, "always")?;
    for (tenant, version) in tenants.iter_mut().zip(versions::BAD) {
        rig.step(&format!("{} is rehearsed and refused", version.tag), || {
            let container = rig.docker()?.inspect(&format!("claw-{}", tenant.name()))?;
            let heard = bad_update(&rig, tenant, version)?;
            let failed: Vec<_> = heard.failures().take(5).collect();
            ensure!(failed.is_empty(), "customers noticed: {failed:?}");
            tenant.assert_has(&heard.acked(|_| true))?;
            let now = rig.docker()?.inspect(&format!("claw-{}", tenant.name()))?;
            ensure!(now["Id"] == container["Id"], "the container was replaced");
            ensure!(
                now["State"]["StartedAt"] == container["State"]["StartedAt"],
                "the container was started again"
            );
            Ok(())
        })?;
    }
    Ok(())
}

/// One instance of the old version for each bad one.
fn tenants<'a>(rig: &'a Rig, policy: &str) -> Result<Vec<Tenant<'a>>> {
    let mut tenants = Vec::new();
    rig.step("an instance for each bad version serves", || {
        for version in versions::BAD {
            let mut tenant = Tenant::new(rig, &format!("of-{}", version.tag), V1);
            tenant.instance.more.insert("update".into(), rehearsal(policy));
            tenant.instance.memory_mib = 64;
            tenant.apply()?;
            tenants.push(tenant);
        }
        tenants.iter().try_for_each(Tenant::deploy)
    })?;
    Ok(tenants)
}

/// Updates to a version that fails, while a customer writes; ends with the old one serving.
fn bad_update(rig: &Rig, tenant: &mut Tenant<'_>, version: Version) -> Result<Heard> {
    tenant.write("before", "x")?;
    let pulse = tenant.pulse(version.tag)?;
    tenant.ask_for(version)?;
    let problem = tenant.until_refused(version)?;
    tenant.assert_serves(V1)?;
    let heard = pulse.stop()?;
    rig.note(&format!("  {heard}; refused: {problem}"));
    tenant.assert_has(&BTreeSet::from(["before".to_owned()]))?;
    Ok(heard)
}

/// Where the agent is killed: the stage as the journal calls it, and the policy of rehearsals.
const KILLS: [(&str, &str); 4] =
    [("preparing", "never"), ("preparing", "always"), ("switching", "never"), ("probing", "never")];

#[test]
fn an_agent_killed_at_every_stage_of_an_update_confirms_or_reverts() -> Result<()> {
    let rig = start("killed", &[V1, V2_SLOW, V2_HANG])?;
    for (stage, policy) in KILLS {
        rig.step(&format!("killed while {stage}, rehearsal {policy}: it is confirmed"), || {
            let name = format!("{stage}-{policy}");
            let (tenant, heard) = killed_at(&rig, &name, policy, V2_SLOW, stage)?;
            tenant.until_confirmed(V2_SLOW)?;
            tenant.assert_serves(V2_SLOW)?;
            tenant.assert_has(&heard.acked(|_| true))?;
            remove(&rig, &name)
        })?;
    }
    for stage in ["probing", "reverting"] {
        rig.step(&format!("killed while {stage} a bad one: it is taken back"), || {
            let name = format!("{stage}-bad");
            let (tenant, heard) = killed_at(&rig, &name, "never", V2_HANG, stage)?;
            tenant.until_refused(V2_HANG)?;
            tenant.assert_serves(V1)?;
            tenant.assert_has(&heard.acked(|_| true))?;
            remove(&rig, &name)
        })?;
    }
    Ok(())
}

/// Updates an instance and kills the agent as soon as the journal names a stage.
fn killed_at<'a>(
    rig: &'a Rig,
    name: &str,
    policy: &str,
    version: Version,
    stage: &str,
) -> Result<(Tenant<'a>, Heard)> {
    let mut tenant = Tenant::new(rig, name, V1);
    tenant.instance.more.insert("update".into(), rehearsal(policy));
    tenant.deploy()?;
    let pulse = tenant.pulse(stage)?;
    let agent = UnitProcess::of(rig.host(), "clawd.service")?;
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            until_stage(rig, name, stage)?;
            agent.signal(Signal::SIGKILL)
        });
        tenant.ask_for(version)?;
        killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))?
    })?;
    until(PATIENCE, "the agent to be dead", || Ok(agent.is_gone().then_some(())))?;
    let left = journal::stage(rig.host(), name)?;
    rig.note(&format!("  killed; the journal says {left:?}"));
    let left = left.context("the change was over before the kill")?;
    ensure!(left == stage, "the kill came too late: {left}");
    rig.fleet().until_status(name, "the change to be over", PATIENCE, |status| {
        let image = tenant.instance.image.as_str();
        status["active"]["image"] == image || status["refused"]["image"] == image
    })?;
    Ok((tenant, pulse.stop()?))
}

/// Looks ten times as often as `until` does: a stage can be short.
fn until_stage(rig: &Rig, name: &str, stage: &str) -> Result<()> {
    for _ in 0..PATIENCE.as_millis() {
        let found = journal::stage(rig.host(), name)?;
        if found.as_deref() == Some(stage) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("waited in vain for the stage {stage}")
}

fn remove(rig: &Rig, name: &str) -> Result<()> {
    rig.fleet().clawctl_ok(&["delete", name, "--wait"]).map(drop)
}
