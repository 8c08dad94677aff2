//! Runs every test, and sets up what they need: apt packages, the .deb packages, images, Python.
//!
//! Costly things (packages of Debian, images, compiled dependencies) are kept in the cache, outside
//! the clone. Tests that boot lab hosts are in `claw-lab` and `claw-tests`; the rest needs no root.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use claw_lab::requirements::Requirement;
use claw_lab::{Cache, images, progress, requirements};
use claw_tests::programs;

use crate::cargo::{self, cargo};
use crate::dist;

/// cargo-nextest's version, where the machine has none.
const CARGO_NEXTEST: &str = "0.9.143";

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only the acceptance run in an emulated virtual machine with cgroup v2 (ten minutes).
    #[arg(long)]
    vm: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Runs the tests.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    requirements::require_root("boot lab hosts for the tests")?;
    let progress = progress::terminal();
    let cache = Cache::open(progress)?;
    requirements::ensure(&requirements::ALL, cache.progress())?;
    let mut nextest = nextest()?;
    nextest.args(["run", "--locked"]);
    if arguments.vm {
        requirements::ensure(&[Requirement::VirtualMachine], cache.progress())?;
        nextest.args(["--profile", "vm", "--package", "claw-tests"]);
        nextest.args(["--features", "vm", "--test", "vm"]);
    } else {
        images::openclaw(&cache).context("the OpenClaw image")?;
        nextest.args(["--profile", "ci", "--workspace"]).env(programs::PYTHON, python()?);
    }
    let packages = dist::run()?;
    nextest.args(&arguments.filter);
    nextest
        .env(programs::CLAWD_DEB, &packages.clawd_deb)
        .env(programs::COORDINATOR_DEB, &packages.coordinator_deb)
        .env(programs::CLAWCTL_DEB, &packages.clawctl_deb)
        .env(programs::FAKE_GATEWAY, fake_gateway()?);
    cargo::run(nextest)
}

/// The fake gateway as a static program; see [`programs::FAKE_GATEWAY`].
pub(crate) fn fake_gateway() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut build = cargo(&["build", "--quiet", "--locked", "--profile", "agent"]);
    build.args(["--package", "claw-fake-gateway", "--target", TARGET]);
    build.env("RUSTFLAGS", "-C target-feature=+crt-static");
    cargo::run(build)?;
    Ok(cargo::target().join(TARGET).join("agent/claw-fake-gateway"))
}

/// nextest from the machine, else from the cache.
fn nextest() -> Result<Command> {
    let on_path = cargo::output(cargo(&["nextest", "--version"])).is_ok();
    if on_path {
        return Ok(cargo(&["nextest"]));
    }
    let program = cargo::tool("cargo-nextest", CARGO_NEXTEST)?;
    let mut nextest = claw_lab::command(program);
    nextest.current_dir(cargo::root()).env("CARGO_TARGET_DIR", cargo::target()).arg("nextest");
    Ok(nextest)
}

/// A Python with the real gRPC client and an S3 for tests, in a virtual environment within the cache.
pub(crate) fn python() -> Result<PathBuf> {
    const PACKAGES: [&str; 5] = [
        "grpcio==1.81.0",
        "grpcio-reflection==1.81.0",
        "grpcio-health-checking==1.81.0",
        "grpcio-status==1.81.0",
        "moto[server]==5.2.5",
    ];
    requirements::ensure(&[Requirement::Python], &*progress::terminal())?;
    let home = cargo::cache().join("python");
    let python = home.join("bin/python3");
    let mut probe = claw_lab::command(&python);
    probe.args(["-c", "import grpc, grpc_reflection, grpc_health, grpc_status, moto.server"]);
    if python.exists() && cargo::output(probe).is_ok() {
        return Ok(python);
    }
    eprintln!("installing Python's gRPC client and moto into {}", home.display());
    let mut venv = claw_lab::command("python3");
    venv.args(["-m", "venv", "--clear"]).arg(&home);
    cargo::run(venv)?;
    let mut install = claw_lab::command(&python);
    install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PACKAGES);
    cargo::run(install)?;
    Ok(python)
}
