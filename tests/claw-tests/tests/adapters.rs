//! The agent's adapters against the real Docker, nginx, kernel and file system of lab hosts, held to the
//! contracts of their ports: the test program of `clawd` is copied there and run.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use claw_lab::{HostOptions, Suite};
use claw_tests::Rig;
use claw_tests::programs::{PATIENCE, Programs};

/// The test program in `crates/clawd/tests`.
const TEST_PROGRAM: &str = "real_adapters";

#[test]
fn adapters_keep_the_contracts_of_their_ports() -> Result<()> {
    run_suite("adapters", Suite::Bookworm, &[])
}

/// Another systemd, another iptables, another OpenSSH.
#[test]
fn the_firewalls_adapter_keeps_them_on_trixie_too() -> Result<()> {
    run_suite("adapters-trixie", Suite::Trixie, &["firewall_adapter::"])
}

fn run_suite(name: &str, suite: Suite, only: &[&str]) -> Result<()> {
    let mut rig = Rig::without_hosts(name, "")?;
    let options = HostOptions::named("h1").with_image(rig.image()).with_suite(suite);
    let host = rig.fleet().lab().boot(options)?;
    rig.add(host);
    let host = rig.host();
    rig.step("a host is up and has the package and the suite", || {
        host.wait_until_active("docker.service", PATIENCE)?;
        host.wait_until_active("nginx.service", PATIENCE)?;
        // For the units: the host joins nothing, so that no agent is in the way.
        host.install_deb(&[Programs::of_tests()?.clawd_deb])?;
        host.copy_in(&newest_suite()?, "/root/suite")
    })?;
    rig.step("the suite passes there, all of it", || {
        let image = format!("CLAW_LAB_IMAGE={}", rig.image().reference);
        let mut argv = vec!["env", "CLAW_LAB_HOST=1", &image, "/root/suite", "--test-threads=1"];
        argv.extend(only);
        let output = host.exec_with(&argv, b"", Duration::from_secs(400))?;
        ensure!(output.success(), "{}{}", output.stdout, output.stderr);
        ensure!(!output.stderr.contains("did not run"), "a part was skipped: {}", output.stderr);
        let summary = output.stdout.lines().find(|line| line.starts_with("test result"));
        rig.note(&format!("  {}", summary.context("no summary")?));
        Ok(())
    })
}

/// The newest build of the suite, beside this very program: `cargo xtask test` builds both.
fn newest_suite() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.parent().context("no directory")?;
    let mut builds = Vec::new();
    for entry in std::fs::read_dir(beside)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let hash = name.strip_prefix(TEST_PROGRAM).and_then(|rest| rest.strip_prefix('-'));
        if hash.is_some_and(|hash| !hash.contains('.')) {
            builds.push((std::fs::metadata(&path)?.modified()?, path));
        }
    }
    let newest = builds.into_iter().max().map(|(_, path)| path);
    newest.with_context(|| {
        format!("no {TEST_PROGRAM} beside {}; hint: cargo xtask test", own.display())
    })
}
