//! Pulling an image by digest with skopeo, where there is one and a registry answers.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::archive::{describe, tar_in};
use crate::cache::{Cache, sha256};
use crate::process::{self, command};
use crate::requirements::on_path;

/// How long the registry may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the image may take.
const TRANSFER: Duration = Duration::from_secs(900);

/// Pulls `reference` into `dir`; whether there was anything to pull it with and from.
pub(super) fn pull(reference: &str, dir: &Path, cache: &Cache) -> Result<bool> {
    if !on_path("skopeo") {
        return Ok(false);
    }
    let mut inspect = command("skopeo");
    inspect.args(["inspect", "--format", "{{.Digest}}", &format!("docker://{reference}")]);
    let Ok(digest) = process::run(inspect, ANSWER) else {
        cache.progress().detail(&format!("no registry answers for {reference}"));
        return Ok(false);
    };
    let repository = reference.rsplit_once(':').map_or(reference, |(repository, _)| repository);
    let pinned = format!("docker://{repository}@{}", digest.trim());
    let target = format!("docker-archive:{}:{reference}", tar_in(dir).display());
    cache.progress().begin(&format!("pull {repository}@{}", digest.trim()));
    let mut copy = command("skopeo");
    copy.args(["copy", &pinned, &target]);
    let copied = process::run(copy, TRANSFER);
    cache.progress().end();
    copied.context("cannot pull the image")?;
    let mut config = command("skopeo");
    config.args(["inspect", "--raw", "--config"]);
    config.arg(format!("docker-archive:{}", tar_in(dir).display()));
    let config = process::run(config, Duration::from_secs(60))?;
    describe(dir, &sha256(config.as_bytes())?, reference)?;
    Ok(true)
}
