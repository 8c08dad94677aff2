//! CreateInstance at the coordinator → HTTP 200, against the raw Docker API in the same round.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use serde_json::{Value, json};

use super::rig::{Rig, now, until_healthy};
use super::table::{Samples, Table};

pub(super) fn run(rounds: usize) -> Result<()> {
    let mut rig = Rig::start("bench-deploy")?;
    let (mut raw, mut ours, mut ratio) = Default::default();
    for round in 0..=rounds {
        let floor = raw_deploy(&rig, round)?;
        let product = deploy(&mut rig, round)?;
        // The first round warms caches of images, certificates and pages.
        if round > 0 {
            Samples::push(&mut raw, floor * 1000.0);
            Samples::push(&mut ours, product * 1000.0);
            Samples::push(&mut ratio, product / floor);
        }
    }
    let mut table = Table::new("deploy", &["what", "median", "10 %", "90 %", "goal"]);
    table.samples("raw API: network + create + start → HTTP 200, ms", &raw, "baseline");
    table.samples("CreateInstance → HTTP 200, ms", &ours, "");
    table.samples("ratio in the same round", &ratio, "≤ 1.10");
    table.print();
    Ok(())
}

/// The floor: network create, container create, start, each as hardened as ours.
fn raw_deploy(rig: &Rig, round: usize) -> Result<f64> {
    let name = format!("raw{round}");
    let start = now();
    let address = raw_start(rig, &name)?;
    let healthy = until_healthy(&rig.docker, address)?;
    rig.docker.request("DELETE", &format!("/containers/{name}?force=true"), None)?;
    rig.docker.request("DELETE", &format!("/networks/{name}"), None)?;
    Ok(healthy - start)
}

/// Makes and starts a gateway on a network of its own through the raw API, limited and hardened as
/// ours; returns its address.
pub(super) fn raw_start(rig: &Rig, name: &str) -> Result<SocketAddr> {
    let docker = &rig.docker;
    let network = json!({
        "Name": name,
        "Driver": "bridge",
        "IPAM": { "Config": [{ "Subnet": "10.250.1.0/24", "Gateway": "10.250.1.1" }] },
    });
    let container = json!({
        "Image": rig.image.reference,
        "Hostname": name,
        "User": "1000:1000",
        "Env": ["OPENCLAW_GATEWAY_TOKEN=bench"],
        "Cmd": ["gateway", "--allow-unconfigured"],
        "HostConfig": {
            "Memory": 268_435_456_u64, "MemorySwap": 268_435_456_u64, "PidsLimit": 256,
            "NanoCpus": 1_000_000_000_u64,
            "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"], "ReadonlyRootfs": true,
            "Tmpfs": { "/tmp": "rw,noexec,nosuid,nodev", "/home/node/.openclaw": "rw,uid=1000" },
            "NetworkMode": name,
        },
        "NetworkingConfig": { "EndpointsConfig": { name: { "IPAMConfig": { "IPv4Address": "10.250.1.2" } } } },
    });
    docker.request("POST", "/networks/create", Some(&network))?;
    docker.request("POST", &format!("/containers/create?name={name}"), Some(&container))?;
    docker.request("POST", &format!("/containers/{name}/start"), None)?;
    Ok((Ipv4Addr::new(10, 250, 1, 2), 18789).into())
}

fn deploy(rig: &mut Rig, round: usize) -> Result<f64> {
    let name = format!("bench{round}");
    let mut events = rig.docker.events()?;
    let request = request(&name, rig.host.name(), &rig.image.reference);
    let (sent, _) = rig.client.call("claw.fleet.v1.InstanceService/CreateInstance", &request)?;
    let container = format!("claw-{name}");
    events.until(&container, "start")?;
    let address = super::rig::address(&rig.docker, &container, &container)?;
    let healthy = until_healthy(&rig.docker, address)?;
    rig.fleet.clawctl_ok(&["delete", &name, "--wait"])?;
    Ok(healthy - sent)
}

/// What the API is asked to create.
pub(super) fn request(name: &str, host: &str, image: &str) -> Value {
    json!({
        "instanceId": name,
        "instance": {
            "host": format!("hosts/{host}"),
            "spec": {
                "image": image,
                "resources": { "memoryBytes": "268435456", "cpuMillis": "1000", "pidsLimit": "256" },
                "config": "{}",
                "health": { "minHealthy": "0s" },
                "stopGrace": "5s",
            },
        },
    })
}
