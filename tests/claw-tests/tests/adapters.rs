//! The agent's adapters against the real Docker, nginx and file system of a lab host, held to the
//! contracts of their ports: the test program of `clawd` is copied there and run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use claw_lab::HostOptions;
use claw_tests::Rig;
use claw_tests::programs::PATIENCE;

/// The test program in `crates/clawd/tests`.
const SUITE: &str = "real_adapters";

#[test]
fn adapters_keep_the_contracts_of_their_ports() -> Result<()> {
    let mut rig = Rig::without_hosts("adapters", "")?;
    let host = rig.fleet().lab().boot(HostOptions::named("h1").with_image(rig.image()))?;
    rig.add(host);
    let host = rig.host();
    rig.step("a host is up and has the suite", || {
        host.wait_until_active("docker.service", PATIENCE)?;
        host.wait_until_active("nginx.service", PATIENCE)?;
        host.copy_in(&suite()?, "/root/suite")
    })?;
    rig.step("the suite passes there, all of it", || {
        let image = format!("CLAW_LAB_IMAGE={}", rig.image().reference);
        let argv = ["env", "CLAW_LAB_HOST=1", &image, "/root/suite", "--test-threads=1"];
        let output = host.exec_with(&argv, b"", Duration::from_secs(240))?;
        ensure!(output.success(), "{}{}", output.stdout, output.stderr);
        ensure!(!output.stderr.contains("did not run"), "a part was skipped: {}", output.stderr);
        let summary = output.stdout.lines().find(|line| line.starts_with("test result"));
        rig.note(&format!("  {}", summary.context("no summary")?));
        Ok(())
    })
}

/// The newest build of the suite, beside this very program: `cargo xtask test` builds both.
fn suite() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.parent().context("no directory")?;
    let mut builds = Vec::new();
    for entry in std::fs::read_dir(beside)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hash = name.strip_prefix(SUITE).and_then(|rest| rest.strip_prefix('-'));
        if hash.is_some_and(|hash| !hash.contains('.')) {
            builds.push((std::fs::metadata(&path)?.modified()?, path));
        }
    }
    let newest = builds.into_iter().max().map(|(_, path)| path);
    newest.with_context(|| format!("no {SUITE} beside {}; hint: cargo xtask test", own.display()))
}
