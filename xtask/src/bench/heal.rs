//! kill -9 of the gateway → HTTP 200, against die event + start through the raw API.

use std::net::SocketAddr;

use anyhow::Result;

use super::deploy;
use super::rig::{Rig, address, now, until_healthy};
use super::table::{Samples, Table};

pub(super) fn run(rounds: usize) -> Result<()> {
    let mut rig = Rig::start("bench-heal")?;
    let raw_address = deploy::raw_start(&rig, "raw")?;
    until_healthy(&rig.docker, raw_address)?;
    let (mut raw, mut ours, mut ratio) = Default::default();
    for round in 0..=rounds {
        let floor = raw_heal(&rig, raw_address)?;
        let product = heal(&mut rig, round)?;
        if round > 0 {
            Samples::push(&mut raw, floor * 1000.0);
            Samples::push(&mut ours, product * 1000.0);
            Samples::push(&mut ratio, product / floor);
        }
    }
    let mut table = Table::new("heal", &["what", "median", "10 %", "90 %", "goal"]);
    table.samples("raw API: kill → die event → start → HTTP 200, ms", &raw, "baseline");
    table.samples("kill → HTTP 200, ms", &ours, "");
    table.samples("ratio in the same round", &ratio, "≤ 1.05");
    table.print();
    Ok(())
}

/// The floor: what a loop of our own could do with the raw API and nothing else.
fn raw_heal(rig: &Rig, address: SocketAddr) -> Result<f64> {
    let mut events = rig.docker.events()?;
    let start = now();
    rig.docker.kill("raw")?;
    events.until("raw", "die")?;
    rig.docker.request("POST", "/containers/raw/start", None)?;
    let healthy = until_healthy(&rig.docker, address)?;
    Ok(healthy - start)
}

/// One kill of a fresh instance: the first failure is healed without delay.
fn heal(rig: &mut Rig, round: usize) -> Result<f64> {
    let name = format!("heal{round}");
    let request = deploy::request(&name, rig.host.name(), &rig.image.reference);
    rig.client.call("claw.fleet.v1.InstanceService/CreateInstance", &request)?;
    rig.fleet.until_phase(&name, "running", std::time::Duration::from_secs(30))?;
    let container = format!("claw-{name}");
    let mut events = rig.docker.events()?;
    let start = now();
    rig.docker.kill(&container)?;
    events.until(&container, "start")?;
    let healthy = until_healthy(&rig.docker, address(&rig.docker, &container, &container)?)?;
    rig.fleet.clawctl_ok(&["delete", &name, "--wait"])?;
    Ok(healthy - start)
}
