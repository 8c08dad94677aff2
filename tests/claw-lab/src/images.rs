//! Container images as docker-archive tars, made without any Docker on the machine.
//!
//! [`fake_gateway`] wraps one static binary, [`openclaw`] is the real thing. It deliberately does
//! not load them: a host that is booted with an image has it from the start.

mod archive;
mod npm;
mod registry;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::Cache;
use crate::cache::{sha256, sha256_of};
use archive::Recipe;

/// OpenClaw's version that the tests and the demo run.
pub const OPENCLAW_VERSION: &str = "2026.9.6";

const KIND: &str = "images";
/// Images that are kept; those of the fake gateway change with every build of it.
const KEPT: usize = 48;

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
/// `/claw-fake-gateway` as its entry point, called `openclaw` too, user 1000:1000. `tag` tells versions apart: images of the
/// same binary with different tags have different ids.
///
/// # Errors
/// When the binary cannot be read or is not static.
pub fn fake_gateway(cache: &Cache, binary: &Path, tag: &str) -> Result<Image> {
    fake_gateway_with(cache, binary, tag, &[])
}

/// Like [`fake_gateway`], with switches (see its `switches.rs`) built in as variables `CLAW_FAKE_*`: an
/// image that crashes, for example. Those of a container win over them.
///
/// # Errors
/// As [`fake_gateway`].
pub fn fake_gateway_with(
    cache: &Cache,
    binary: &Path,
    tag: &str,
    switches: &[(&str, &str)],
) -> Result<Image> {
    let reference = format!("claw/fake-gateway:{tag}");
    let mut env = vec!["PATH=/usr/local/bin:/".to_owned(), "HOME=/home/node".to_owned()];
    env.extend(switches.iter().map(|(name, value)| format!("CLAW_FAKE_{name}={value}")));
    let recipe = format!("4 {reference} {} {}", sha256_of(binary)?, env.join(" "));
    let digest = sha256(recipe.as_bytes())?;
    let key = format!("fake-gateway-{}", digest.get(..16).unwrap_or(&digest));
    let entry = cache.entry(KIND, &key, |partial| {
        refuse_dynamic(binary)?;
        let layer = fake_gateway_layer(binary, partial)?;
        let config = json!({
            "User": "1000:1000",
            "Env": env,
            "Entrypoint": ["/claw-fake-gateway"],
            // As the real image: an agent gives no command of its own.
            "Cmd": ["gateway", "--allow-unconfigured", "--bind", "lan", "--port", "18789"],
            "WorkingDir": "/home/node",
            "ExposedPorts": { "18789/tcp": {} },
            "Labels": { "org.opencontainers.image.version": tag },
        });
        Recipe { reference: reference.clone(), config, layers: vec![layer] }.write(partial)
    })?;
    cache.prune(KIND, KEPT)?;
    archive::read(&entry)
}

/// The real OpenClaw, `ghcr.io/openclaw/openclaw:VERSION`, pulled with skopeo when that is there and
/// the registry answers within five seconds, else built from npm. Minutes the first time, then cached.
///
/// # Errors
/// Without root, and when neither works.
pub fn openclaw(cache: &Cache) -> Result<Image> {
    let reference = format!("ghcr.io/openclaw/openclaw:{OPENCLAW_VERSION}");
    let key = format!("openclaw-{OPENCLAW_VERSION}-{}", npm::RECIPE);
    let entry = cache.entry(KIND, &key, |partial| {
        if registry::pull(&reference, partial, cache)? {
            return Ok(());
        }
        npm::openclaw(OPENCLAW_VERSION, &reference, partial, cache)
    })?;
    archive::read(&entry)
}

/// The one layer: the binary, and the directories that a gateway's mounts go to.
fn fake_gateway_layer(binary: &Path, dir: &Path) -> Result<PathBuf> {
    let stage = dir.join("stage");
    for path in ["etc", "tmp", "usr/local/bin", "home/node/.openclaw"] {
        fs::create_dir_all(stage.join(path))?;
    }
    fs::copy(binary, stage.join("claw-fake-gateway")).context("cannot copy the binary")?;
    symlink("/claw-fake-gateway", stage.join("usr/local/bin/openclaw"))?;
    fs::write(stage.join("etc/passwd"), "node:x:1000:1000::/home/node:/\n")?;
    fs::write(stage.join("etc/group"), "node:x:1000:\n")?;
    let layer = dir.join("layer.tar");
    let members = ["--mode=u=rwX,go=rX", "claw-fake-gateway", "etc", "usr"];
    archive::pack(&layer, &stage, 0, &members)?;
    archive::append(&layer, &stage, 0, &["--mode=1777", "tmp"])?;
    archive::append(&layer, &stage, 1000, &["--mode=700", "home/node"])?;
    fs::remove_dir_all(stage)?;
    Ok(layer)
}

/// Fails for a program that needs a dynamic loader: an image from scratch has none.
fn refuse_dynamic(binary: &Path) -> Result<()> {
    let bytes = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    match asks_for_loader(&bytes) {
        Some(false) => Ok(()),
        Some(true) => bail!(
            "{} is not static\nhint: build it with -C target-feature=+crt-static and --target",
            binary.display()
        ),
        None => bail!("{} is no 64-bit ELF program", binary.display()),
    }
}

/// Whether an ELF program has a segment of type `PT_INTERP` (`man 5 elf`, 64-bit little-endian).
fn asks_for_loader(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    let half = |at: usize| {
        let bytes = elf.get(at..at + 2)?.try_into().ok()?;
        Some(usize::from(u16::from_le_bytes(bytes)))
    };
    if elf.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let table = u64::from_le_bytes(elf.get(32..40)?.try_into().ok()?);
    let table = usize::try_from(table).ok()?;
    let (size, count) = (half(54)?, half(56)?);
    let kinds = (0..count).map(|n| table + n * size).map(|at| elf.get(at..at + 4));
    Some(kinds.into_iter().any(|kind| kind == Some(&PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_recognised() {
        let own = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(asks_for_loader(&own), Some(!cfg!(target_feature = "crt-static")));
        assert_eq!(asks_for_loader(b"#!/bin/sh\n"), None);
        assert_eq!(asks_for_loader(b""), None);
    }
}
