//! Docker's data directory for a new host, with images in it from the start.
//!
//! Loading OpenClaw takes a dockerd minutes; so a set of images is loaded once, by a dockerd of a
//! host that exists for that only, and its directory is kept. A host then gets it by hard links to
//! the layers, which nothing ever writes to, and copies of the rest.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, sha256};
use crate::process::{self, command};
use crate::{HostOptions, Image, Lab, LabHost, Suite};

const KIND: &str = "docker";
/// Sets of images that are kept.
const KEPT: usize = 12;
/// Images smaller than this are loaded together: each set that is loaded costs a boot.
const SMALL: u64 = 64 << 20;
/// How long a dockerd may take to load an image.
const LOADING: Duration = Duration::from_secs(900);

/// Makes `target` a Docker data directory with these images.
pub(crate) fn provide(cache: &Cache, suite: Suite, images: &[Image], target: &Path) -> Result<()> {
    let mut images = images.to_vec();
    // The largest first: sets then share what precedes the small ones.
    images.sort_by_key(|image| (std::cmp::Reverse(size(image)), image.id.clone()));
    images.dedup();
    if images.is_empty() {
        return Ok(fs::create_dir_all(target)?);
    }
    let key = key(suite, &images)?;
    let template = cache.entry(KIND, &key, |partial| load(cache, suite, &images, partial))?;
    let _lock = cache.lock_shared(&format!("{KIND}-{key}"))?;
    copy(&template, target)?;
    cache.prune(KIND, KEPT)
}

fn key(suite: Suite, images: &[Image]) -> Result<String> {
    let names: Vec<String> = images.iter().map(|i| format!("{} {}", i.id, i.reference)).collect();
    let digest = sha256(format!("1 {suite:?} {}", names.join("\n")).as_bytes())?;
    Ok(format!("{}-{}", suite.code_name(), digest.get(..12).unwrap_or(&digest)))
}

fn size(image: &Image) -> u64 {
    fs::metadata(&image.tar).map_or(0, |metadata| metadata.len())
}

/// Loads the small images on top of the set without them, or the last one of a set without any.
fn load(cache: &Cache, suite: Suite, images: &[Image], target: &Path) -> Result<()> {
    let large = images.iter().filter(|image| size(image) >= SMALL).count();
    let at = if large == images.len() { large.saturating_sub(1) } else { large };
    let Some((before, added)) = images.split_at_checked(at) else { return Ok(()) };
    let lab = Lab::start("loader", cache)?;
    let mut options = HostOptions::named("loader").with_suite(suite);
    options.images = before.to_vec();
    let host = lab.boot(options)?;
    let names: Vec<&str> = added.iter().map(|image| image.reference.as_str()).collect();
    cache.progress().begin(&format!("load {} into Docker", names.join(", ")));
    let loaded = (|| {
        host.wait_until_active("docker.service", Duration::from_secs(60))?;
        for image in added {
            host.load_image(image)?;
        }
        let driver = host.exec_ok(&["docker", "info", "-f", "{{.Driver}}"])?;
        if driver != "overlay2" {
            bail!("Docker uses the storage driver {driver} instead of overlay2");
        }
        host.power_off()?;
        fs::remove_dir(target)?;
        fs::rename(host.docker_dir(), target).context("cannot keep Docker's data directory")
    })();
    cache.progress().end();
    loaded
}

impl LabHost {
    /// Loads an image into its Docker, as somebody would who has no registry.
    ///
    /// # Errors
    /// When Docker refuses it, or has it under another id.
    pub fn load_image(&self, image: &Image) -> Result<()> {
        let tar = fs::File::open(&image.tar)
            .with_context(|| format!("cannot open {}", image.tar.display()))?;
        let output = self.exec_from(&["docker", "load"], tar.into(), LOADING)?;
        if !output.success() {
            bail!("docker load failed: {}", output.stderr);
        }
        let id =
            self.exec_ok(&["docker", "image", "inspect", "-f", "{{.Id}}", &image.reference])?;
        if id != image.id {
            bail!("Docker calls {} {id} instead of {}", image.reference, image.id);
        }
        Ok(())
    }
}

/// Copies a data directory: layers by hard links, the rest truly.
fn copy(template: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target)?;
    fs::set_permissions(target, fs::metadata(template)?.permissions())?;
    let (mut layers, mut rest) = (command("cp"), command("cp"));
    layers.args(["-a", "--link"]).arg(template.join("overlay2")).arg(target);
    rest.arg("-a");
    for entry in fs::read_dir(template)? {
        let entry = entry?;
        if entry.file_name() != "overlay2" {
            rest.arg(entry.path());
        }
    }
    rest.arg(target);
    process::run(layers, Duration::from_secs(120))?;
    process::run(rest, Duration::from_secs(120)).map(drop)
}
