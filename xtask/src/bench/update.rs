//! An update of a running instance: how long nobody answers, and how long all of it takes, against the least
//! that Docker's API needs to put one container in the place of another.

use std::time::Duration;

use anyhow::Result;
use claw_tests::versions::{V1, V1_AGAIN, Version};
use serde_json::{Value, json};

use super::deploy;
use super::load::Load;
use super::outage::Outage;
use super::rig::{Rig, address, now, until_healthy};
use super::table::{Samples, Table};

/// Of the instance that has data: 400 MB.
const LOAD: Load = Load { files: 20_000, kib: 20 };
/// An update with so much data on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// One kind of update.
struct Case {
    name: &'static str,
    instance: &'static str,
    rehearsal: &'static str,
}

const CASES: [Case; 3] = [
    Case { name: "no data", instance: "empty", rehearsal: "REHEARSAL_NEVER" },
    Case { name: "no data, rehearsed", instance: "rehearsed", rehearsal: "REHEARSAL_ALWAYS" },
    Case { name: "20 000 files, 400 MB", instance: "full", rehearsal: "REHEARSAL_NEVER" },
];

pub(super) fn run(rounds: usize) -> Result<()> {
    let mut rig = Rig::with("bench-update", &[V1, V1_AGAIN])?;
    let raw = deploy::raw_start(&rig, "raw")?;
    until_healthy(&rig.docker, raw)?;
    for case in &CASES {
        create(&mut rig, case)?;
    }
    LOAD.fill(&rig.host, "full")?;
    let mut floor = Samples::default();
    let mut seen = CASES.map(|case| (case, Samples::default(), Samples::default()));
    for round in 0..=rounds {
        let least = raw_replace(&rig, raw)?;
        let version = if round % 2 == 0 { V1_AGAIN } else { V1 };
        for (case, outages, lengths) in &mut seen {
            let (outage, length) = update(&mut rig, case, version)?;
            if round > 0 {
                outages.push(outage * 1000.0);
                lengths.push(length * 1000.0);
            }
        }
        if round > 0 {
            floor.push(least * 1000.0);
        }
    }
    let mut table = Table::new("update", &["what", "median", "10 %", "90 %", "goal"]);
    table.samples("raw API: stop + remove + create + start, no answer for, ms", &floor, "baseline");
    for (case, outages, lengths) in &seen {
        table.samples(&format!("{}: no answer for, ms", case.name), outages, "");
        table.samples(&format!("{}: asked → confirmed, ms", case.name), lengths, "");
    }
    table.print();
    Ok(())
}

fn create(rig: &mut Rig, case: &Case) -> Result<()> {
    let mut request = deploy::request(case.instance, rig.host.name(), &V1.reference());
    let spec = &mut request["instance"]["spec"];
    spec["update"] = json!({ "rehearsal": case.rehearsal, "keepReplaced": "0s" });
    spec["backup"] = json!({ "every": "0s", "drillEvery": "0s" });
    rig.client.call("claw.fleet.v1.InstanceService/CreateInstance", &request)?;
    rig.fleet.until_phase(case.instance, "running", PATIENCE).map(drop)
}

/// The floor: what a loop of our own could do with the raw API and nothing else.
fn raw_replace(rig: &Rig, address: std::net::SocketAddr) -> Result<f64> {
    let watch = Outage::watch(&rig.host, address)?;
    rig.docker.request("POST", "/containers/raw/stop?t=5", None)?;
    rig.docker.request("DELETE", "/containers/raw", None)?;
    rig.docker.request("DELETE", "/networks/raw", None)?;
    deploy::raw_start(rig, "raw")?;
    until_healthy(&rig.docker, address)?;
    watch.longest()
}

/// Seconds without an answer, and seconds in all.
fn update(rig: &mut Rig, case: &Case, version: Version) -> Result<(f64, f64)> {
    let (name, image) = (case.instance, version.reference());
    let container = format!("claw-{name}");
    let watch = Outage::watch(&rig.host, address(&rig.docker, &container, &container)?)?;
    let request: Value = json!({
        "instance": { "name": format!("instances/{name}"), "spec": { "image": image } },
        "updateMask": "spec.image",
    });
    let (sent, _) = rig.client.call("claw.fleet.v1.InstanceService/UpdateInstance", &request)?;
    rig.fleet.until_status(name, "the update to be confirmed", PATIENCE, |status| {
        status["active"]["image"] == image.as_str() && status["operation"].is_null()
    })?;
    let length = now() - sent;
    Ok((watch.longest()?, length))
}
