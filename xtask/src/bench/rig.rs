//! What the benches stand on: a fleet with one host, the fake gateway, a warm API connection.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use claw_lab::{Cache, HostOptions, Image, Lab, LabHost, images, progress, requirements};
use claw_tests::versions::Version;
use claw_tests::{Docker, Fleet, Programs, ThirdParty, http};

use crate::{dist, test};

/// A fleet to measure.
pub(super) struct Rig {
    pub(super) docker: Docker,
    pub(super) image: Image,
    pub(super) client: ThirdParty,
    pub(super) host: LabHost,
    // Last: everything else lives in it.
    pub(super) fleet: Fleet,
}

impl Rig {
    pub(super) fn start(name: &str) -> Result<Self> {
        Self::with(name, &[])
    }

    /// With more versions of the gateway on the host.
    pub(super) fn with(name: &str, versions: &[Version]) -> Result<Self> {
        requirements::require_root("boot a lab host for the benches")?;
        let cache = Cache::open(Arc::clone(&progress::terminal()))?;
        requirements::ensure(&requirements::ALL, cache.progress())?;
        let packages = dist::run()?;
        let binary = test::fake_gateway()?;
        let image = images::fake_gateway(&cache, &binary, "bench")?;
        let mut options = HostOptions::named("bench").with_image(&image);
        for version in versions {
            options = options.with_image(&version.image_of(&cache, &binary)?);
        }
        let programs = Programs {
            clawd_deb: packages.clawd_deb,
            coordinator_deb: packages.coordinator_deb,
            clawctl_deb: packages.clawctl_deb,
        };
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let fleet = Fleet::start(Lab::start(name, &cache)?, programs, any)?;
        let host = fleet.host(options)?;
        let client = ThirdParty::start(&test::python()?, &fleet, &fleet.identity())?;
        let docker = Docker::of(&host)?;
        Ok(Self { docker, image, client, host, fleet })
    }
}

/// Seconds since the Unix epoch, comparable with what the client and Docker say.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
pub(super) fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}

/// GETs `/healthz` of a gateway whose container has been started until it answers 200; returns when.
pub(super) fn until_healthy(docker: &Docker, address: SocketAddr) -> Result<f64> {
    let start = now();
    loop {
        let answer =
            docker.connect(address).and_then(|stream| http::get(stream, "bench", "/healthz"));
        if answer.is_ok_and(|answer| answer.status == 200) {
            return Ok(now());
        }
        anyhow::ensure!(now() - start < 30.0, "no answer from {address} within 30 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The address of a container on a network, port 18789.
pub(super) fn address(docker: &Docker, container: &str, network: &str) -> Result<SocketAddr> {
    let found = docker.inspect(container)?;
    let text = found["NetworkSettings"]["Networks"][network]["IPAddress"].as_str();
    let ip: Ipv4Addr = text.context("no address")?.parse()?;
    Ok((ip, 18789).into())
}
