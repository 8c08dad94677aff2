//! An S3 of the lab: `moto_server`, which keeps objects in memory, in the lab's internet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use claw_lab::{Lab, LabHost, Network, Process, command};

use crate::fleet::{Fleet, until};
use crate::http;
use crate::programs::{self, PATIENCE};

/// Where it answers.
pub const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9000);
/// The key that it takes; it takes any.
pub const ACCESS_KEY: &str = "lab-access-key";
/// The secret that belongs to it.
pub const SECRET_KEY: &str = "lab-secret-key";

/// A running one. Dropping it ends it, and everything in it is gone.
#[derive(Debug)]
pub struct ObjectStore(Process);

impl ObjectStore {
    /// Starts it with the Python of [`crate::programs::PYTHON`] and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(python: &Path, lab: &Lab) -> Result<Self> {
        let program = python.parent().context("no directory")?.join("moto_server");
        let mut server = command(program);
        server.args(["-H", &ADDRESS.ip().to_string(), "-p", &ADDRESS.port().to_string()]);
        let process = lab.spawn(Network::Internet, "moto", server)?;
        let store = Self(process);
        until(PATIENCE, "the object store to answer", || {
            anyhow::ensure!(store.0.is_running(), "it ended: {}", log(lab));
            let answer = http::get(lab.connect(Network::Internet, ADDRESS)?, "s3", "/")?;
            if answer.status == 200 { Ok(Some(())) } else { bail!("{answer:?}") }
        })?;
        Ok(store)
    }

    /// Starts it with the Python that `cargo xtask test` made.
    ///
    /// # Errors
    /// When the tests were started in another way, or it does not answer.
    pub fn of_tests(lab: &Lab) -> Result<Self> {
        Self::start(&programs::python()?, lab)
    }

    /// Has a host copy its repositories to a bucket, as an operator does.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn give(&self, fleet: &Fleet, host: &LabHost, bucket: &str) -> Result<()> {
        let key = fleet.lab().dir().join("secret-key");
        std::fs::write(&key, SECRET_KEY)?;
        let key = key.to_str().context("no text")?.to_owned();
        let url = self.url();
        let storage = ["--url", &url, "--bucket", bucket, "--prefix", "fleet"];
        let keys = ["--access-key", ACCESS_KEY, "--secret-key-file", &key];
        let set = ["host", "offsite", "set", host.name()];
        fleet.clawctl_ok(&[&set[..], &storage, &keys].concat()).map(drop)
    }

    /// Where it answers, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{ADDRESS}")
    }

    /// Makes a bucket, as its owner would.
    ///
    /// # Errors
    /// When it is refused.
    pub fn make_bucket(&self, lab: &Lab, name: &str) -> Result<()> {
        let stream = lab.connect(Network::Internet, ADDRESS)?;
        let answer = http::request(stream, "PUT", "s3", &format!("/{name}"))?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    }
}

fn log(lab: &Lab) -> String {
    std::fs::read_to_string(lab.dir().join("moto.log")).unwrap_or_default()
}
