//! Runs cargo and other tools of the workspace, and says what it runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use claw_lab::command;

/// The workspace's root. `cargo run` says where it is: a program that another clone has built into the same
/// target directory knows of that one only.
pub(crate) fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    let here = here.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.parent().map_or_else(|| here.clone(), Path::to_path_buf)
}

/// The directory of what is costly to make, outside the clone: `$CLAW_CACHE`, else `/var/cache/claw`.
pub(crate) fn cache() -> PathBuf {
    std::env::var_os("CLAW_CACHE").map_or_else(|| PathBuf::from("/var/cache/claw"), PathBuf::from)
}

/// Where cargo builds: `$CARGO_TARGET_DIR`, else within the cache if that can be written (root),
/// else `target` of the clone.
pub(crate) fn target() -> PathBuf {
    if let Some(chosen) = std::env::var_os("CARGO_TARGET_DIR") {
        return root().join(chosen);
    }
    let shared = cache().join("target");
    let owned = std::fs::create_dir_all(&shared).and_then(|()| take_over(&shared));
    if owned.is_ok() { shared } else { root().join("target") }
}

/// Makes a shared target directory safe for this clone. Cargo tells sources of two clones apart by
/// modification time only, so those of a clone that was not the last to build are made new.
fn take_over(target: &Path) -> std::io::Result<()> {
    let owner = target.join("claw-clone");
    let own = root().display().to_string();
    if std::fs::read_to_string(&owner).is_ok_and(|last| last == own) {
        return Ok(());
    }
    for dir in ["crates", "proto", "tests", "xtask"] {
        touch(&root().join(dir))?;
    }
    std::fs::write(owner, own)
}

#[expect(
    clippy::disallowed_methods,
    reason = "modification times are compared with the wall clock"
)]
fn touch(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return std::fs::read_dir(path)?.try_for_each(|entry| touch(&entry?.path()));
    }
    std::fs::File::options().append(true).open(path)?.set_modified(std::time::SystemTime::now())
}

/// A cargo command in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_outer_cargo(&mut cargo);
    cargo.current_dir(root()).args(arguments).env("CARGO_TARGET_DIR", target());
    cargo
}

/// Takes out what `cargo run` says of xtask itself. Build scripts (ring's, for one) ask to run again
/// when such a variable changes, and most of the tree is compiled again after them.
fn forget_outer_cargo(cargo: &mut Command) {
    const SAID_OF_A_CRATE: [&str; 4] =
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
    for (name, _) in std::env::vars_os() {
        if SAID_OF_A_CRATE.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            cargo.env_remove(name);
        }
    }
}

/// Prints and runs a command to its end.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let shown = show(&command);
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a command and returns what it printed on stdout.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let shown = show(&command);
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{stderr}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown} printed no UTF-8"))
}

/// A published tool, installed into the cache unless it is there in this version.
pub(crate) fn tool(name: &str, version: &str) -> Result<PathBuf> {
    let tools = cache().join("tools");
    let program = tools.join("bin").join(name);
    let installed = program.exists().then(|| {
        let mut query = command(&program);
        query.arg("--version");
        output(query)
    });
    let current = matches!(&installed, Some(Ok(text)) if text.trim().ends_with(version));
    if !current {
        eprintln!("installing {name} {version} into {}", tools.display());
        let spec = format!("{name}@{version}");
        let mut install = cargo(&["install", "--quiet", "--locked", "--force", "--root"]);
        install.arg(&tools).arg(spec).env_remove("CARGO_TARGET_DIR");
        run(install)?;
    }
    Ok(program)
}

fn show(command: &Command) -> String {
    let mut parts = vec![command.get_program().to_string_lossy().into_owned()];
    parts.extend(command.get_args().map(|part| part.to_string_lossy().into_owned()));
    parts.join(" ")
}
