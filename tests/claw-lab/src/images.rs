//! Container images as docker-archive tars, made without any Docker on the machine.
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::Cache;

/// OpenClaw's version that the tests and the demo run.
pub const OPENCLAW_VERSION: &str = "2026.9.6";

/// An image as a file that `docker load` takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Image {
    /// The docker-archive.
    pub tar: PathBuf,
    /// `sha256:` and 64 hexadecimal digits: Docker's image id, the digest of the configuration.
    pub id: String,
    /// `name:tag` that it has once loaded.
    pub reference: String,
}

/// The image of the fake gateway, `claw/fake-gateway:TAG`: from scratch, one static binary at
/// `/claw-fake-gateway` as its entry point, user 1000:1000. `tag` tells versions apart: images of the
/// same binary with different tags have different ids.
///
/// # Errors
/// When the binary cannot be read or is not static.
pub fn fake_gateway(cache: &Cache, binary: &Path, tag: &str) -> Result<Image> {
    anyhow::bail!("{cache:?} {binary:?} {tag}")
}

/// The real OpenClaw, `ghcr.io/openclaw/openclaw:VERSION`, pulled with skopeo when that is there and
/// the registry answers within five seconds, else built from npm. Minutes the first time, then cached.
///
/// # Errors
/// Without root, and when neither works.
pub fn openclaw(cache: &Cache) -> Result<Image> {
    anyhow::bail!("{cache:?}")
}
