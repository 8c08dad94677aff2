//! Programs of this workspace, built for the lab.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::process::{self, command};

/// How long a build from nothing may take on two busy cores.
const BUILD: Duration = Duration::from_secs(1800);

/// Builds the binary of a package, statically linked, and returns its path. Nothing is built when
/// nothing changed.
///
/// # Errors
/// When cargo fails.
pub fn static_binary(package: &str) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", triple.to_uppercase().replace('-', "_"));
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Its own directory: the other flags would make everything else built there stale.
    let target = target_dir()?.join("static");
    cargo
        .args(["build", "--quiet", "--message-format=json", "--package", package])
        .args(["--target", &triple])
        .current_dir(workspace()?)
        .env("CARGO_TARGET_DIR", target)
        .env(flags, "-C target-feature=+crt-static")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let messages = process::run(cargo, BUILD).with_context(|| format!("cannot build {package}"))?;
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    };
    let found = messages.lines().rev().find_map(executable);
    found.with_context(|| format!("cargo built no program of {package}"))
}

/// The workspace's directory: that of the package that cargo or nextest runs, or else that which built this. A
/// target directory can be that of two clones.
fn workspace() -> Result<PathBuf> {
    let runs = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let own = runs.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    let root = own.ancestors().find(|dir| dir.join("Cargo.lock").exists()).map(Path::to_path_buf);
    root.with_context(|| format!("no workspace around {}", own.display()))
}

/// Where cargo puts what it builds.
fn target_dir() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(chosen) => Ok(PathBuf::from(chosen)),
        None => Ok(workspace()?.join("target")),
    }
}
