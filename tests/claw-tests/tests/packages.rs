//! The .deb packages and units, on Debian as users have it.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use claw_lab::{HostOptions, LabHost, command};
use claw_tests::fleet::until;
use claw_tests::programs::{PATIENCE, Programs};
use claw_tests::{Instance, Rig, UnitProcess, traffic};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Highest exposure that `systemd-analyze security` may find, times ten; see the units for what they
/// need and why.
const CLAWD_EXPOSURE: u32 = 30;
const JOBS_EXPOSURE: u32 = 18;
const OFFSITE_EXPOSURE: u32 = 25;
const COORDINATOR_EXPOSURE: u32 = 12;

#[test]
fn the_agents_package_is_upgraded_removed_and_purged_around_a_serving_instance() -> Result<()> {
    let rig = Rig::start("package")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let newer = newer_version(&Programs::of_tests()?.clawd_deb, fleet.lab().dir())?;
    rig.step("the units are sound and hardened", || {
        assert_sound(host, "clawd-snapshots@any.service", JOBS_EXPOSURE)?;
        assert_sound(host, "clawd-offsite@any.service", OFFSITE_EXPOSURE)?;
        assert_sound(host, "clawd.service", CLAWD_EXPOSURE)
    })?;
    rig.step("an instance serves", || {
        fleet.apply(&Instance::new("demo", host, &rig.image().reference))?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        fleet.until_serving(host, "demo")
    })?;
    let before = run(&rig)?;
    rig.step(
        "the package is upgraded: another agent, the same container, no request lost",
        || {
            let agent = UnitProcess::of(host, "clawd.service")?;
            let ((), seen) = traffic::during(fleet, host, "demo", || {
                host.install_deb(std::slice::from_ref(&newer))?;
                host.wait_until_active("clawd.service", PATIENCE)?;
                assert_ne!(UnitProcess::of(host, "clawd.service")?, agent, "the old agent runs on");
                fleet.until_online(host)?;
                fleet.until_phase("demo", "running", PATIENCE)?;
                Ok(())
            })?;
            ensure!(seen.failures.is_empty(), "{seen:#?}");
            assert_eq!(run(&rig)?, before);
            let version =
                host.exec_ok(&["dpkg-query", "--show", "--showformat=${Version}", "clawd"])?;
            assert!(version.ends_with("+newer"), "{version}");
            Ok(())
        },
    )?;
    rig.step("kill -9: systemd starts it again", || {
        let agent = UnitProcess::of(host, "clawd.service")?;
        agent.signal(Signal::SIGKILL)?;
        until_another_agent(&rig, agent)
    })?;
    rig.step("a frozen agent is found by the watchdog", || {
        // The same mechanism with shorter times: the unit's own are half a minute each.
        let times = "[Service]\nWatchdogSec=4s\nTimeoutAbortSec=1s\n";
        host.write_file("/run/systemd/system/clawd.service.d/short.conf", 0o644, times.as_bytes())?;
        host.exec_ok(&["systemctl", "daemon-reload"])?;
        host.exec_ok(&["systemctl", "restart", "clawd.service"])?;
        let agent = UnitProcess::of(host, "clawd.service")?;
        agent.signal(Signal::SIGSTOP)?;
        until_another_agent(&rig, agent)?;
        let result = host.journal("clawd.service")?;
        assert!(result.contains("Watchdog timeout"), "{result}");
        assert_eq!(run(&rig)?, before);
        Ok(())
    })?;
    rig.step("it is removed: the instance serves on, the next installation adopts it", || {
        let ((), seen) = traffic::during(fleet, host, "demo", || {
            host.exec_ok(&["apt-get", "--yes", "remove", "clawd"])?;
            assert!(!host.exec(&["systemctl", "is-active", "clawd.service"])?.success());
            assert_eq!(run(&rig)?, before);
            host.install_deb(std::slice::from_ref(&newer))?;
            fleet.until_online(host)?;
            fleet.until_phase("demo", "running", PATIENCE)?;
            Ok(())
        })?;
        ensure!(seen.failures.is_empty(), "{seen:#?}");
        assert_eq!(run(&rig)?, before);
        Ok(())
    })?;
    rig.step(
        "it is purged: identity and configuration go, customers' data and containers stay",
        || {
            let purged = host.exec_ok(&["apt-get", "--yes", "purge", "clawd"])?;
            assert!(purged.contains("claw-demo"), "nothing is said of the container: {purged}");
            assert_eq!(run(&rig)?, before);
            for gone in ["/etc/clawd", "/var/lib/clawd/identity", "/var/lib/clawd/journal.db"] {
                assert!(!host.exec(&["test", "-e", gone])?.success(), "{gone} is left");
            }
            host.exec_ok(&["test", "-e", "/var/lib/clawd/instances/demo/gen-1/openclaw.json"])?;
            host.exec_ok(&["nginx", "-t", "-q"])?;
            let left = host.exec(&["systemctl", "list-unit-files", "--no-legend", "clawd*"])?;
            assert_eq!(left.stdout, "", "units are left");
            Ok(())
        },
    )
}

#[test]
fn the_coordinators_package_serves_from_its_unit() -> Result<()> {
    let mut rig = Rig::without_hosts("coordinator", "")?;
    let programs = Programs::of_tests()?;
    let host = rig.fleet().lab().boot(HostOptions::named("c1"))?;
    rig.add(host);
    let host = rig.host();
    const UNIT: &str = "claw-coordinator.service";
    rig.step(
        "coordinator and clawctl are installed; nothing runs before there is a fleet",
        || {
            host.wait_until_active("multi-user.target", PATIENCE)?;
            host.install_deb(&[programs.coordinator_deb.clone(), programs.clawctl_deb.clone()])?;
            assert!(!host.exec(&["systemctl", "is-active", UNIT])?.success());
            assert_sound(host, UNIT, COORDINATOR_EXPOSURE)
        },
    )?;
    rig.step("a fleet is made, the unit serves it", || {
        host.exec_ok(&[
            "claw-coordinator",
            "init",
            "--name",
            "127.0.0.1",
            "--operator",
            "admin",
            "--out",
            "/root/operator",
        ])?;
        host.exec_ok(&["systemctl", "start", UNIT])?;
        host.wait_until_active(UNIT, PATIENCE)?;
        clawctl(host, &["host", "create", "h1"]).map(|_| ())
    })?;
    rig.step("clawctl's manual, completions and example are there", || {
        for file in [
            "/usr/share/man/man1/clawctl.1.gz",
            "/usr/share/bash-completion/completions/clawctl",
            "/usr/share/doc/clawctl/examples/fleet.yaml",
        ] {
            host.exec_ok(&["test", "-s", file])?;
        }
        Ok(())
    })?;
    rig.step("kill -9 and a reboot: it is back with what it knew", || {
        UnitProcess::of(host, UNIT)?.signal(Signal::SIGKILL)?;
        until_known(host)?;
        host.reboot()?;
        host.wait_until_active(UNIT, PATIENCE)?;
        until_known(host)
    })?;
    rig.step("another version is installed over it", || {
        let newer = newer_version(&programs.coordinator_deb, rig.fleet().lab().dir())?;
        let before = UnitProcess::of(host, UNIT)?;
        host.install_deb(&[newer])?;
        host.wait_until_active(UNIT, PATIENCE)?;
        assert_ne!(UnitProcess::of(host, UNIT)?, before, "the old one runs on");
        until_known(host)
    })?;
    rig.step("removed and purged, the fleet's authority stays", || {
        host.exec_ok(&["apt-get", "--yes", "remove", "claw-coordinator"])?;
        assert!(!host.exec(&["systemctl", "is-active", UNIT])?.success());
        host.exec_ok(&["apt-get", "--yes", "purge", "claw-coordinator"])?;
        let left = host.exec_ok(&["ls", "-A", "/var/lib/claw-coordinator"])?;
        assert!(!left.is_empty(), "the fleet is lost");
        Ok(())
    })
}

fn clawctl(host: &LabHost, arguments: &[&str]) -> Result<String> {
    let fixed = ["clawctl", "--endpoint", "127.0.0.1:7443", "--identity", "/root/operator"];
    host.exec_ok(&[&fixed[..], arguments].concat())
}

fn until_known(host: &LabHost) -> Result<()> {
    until(PATIENCE, "the coordinator to answer", || {
        let hosts = clawctl(host, &["host", "list", "-o", "json"])?;
        let hosts: Value = serde_json::from_str(&hosts)?;
        assert_eq!(hosts[0]["name"], "h1", "{hosts}");
        Ok(Some(()))
    })
}

fn assert_sound(host: &LabHost, unit: &str, exposure: u32) -> Result<()> {
    let verified = host.exec(&["systemd-analyze", "verify", "--man=no", unit])?;
    assert!(verified.success() && verified.stderr.is_empty(), "{verified:?}");
    let threshold = format!("--threshold={exposure}");
    let rated = host.exec(&["systemd-analyze", "security", "--no-pager", &threshold, unit])?;
    assert!(rated.success(), "{} is more exposed than {exposure}: {}", unit, rated.stdout);
    Ok(())
}

fn until_another_agent(rig: &Rig, before: UnitProcess) -> Result<()> {
    until(PATIENCE, "another agent", || {
        let now = UnitProcess::of(rig.host(), "clawd.service")?;
        Ok((now != before).then_some(()))
    })?;
    rig.host().wait_until_active("clawd.service", PATIENCE)?;
    rig.fleet().until_online(rig.host())?;
    rig.fleet().until_phase("demo", "running", PATIENCE).map(|_| ())
}

/// Container and start of its run.
fn run(rig: &Rig) -> Result<(Value, Value)> {
    let found = rig.docker()?.inspect("claw-demo")?;
    Ok((found["Id"].clone(), found["State"]["StartedAt"].clone()))
}

/// The same package under a higher version.
fn newer_version(package: &Path, dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("newer");
    let run = |argv: &mut std::process::Command| -> Result<()> {
        let output = argv.output()?;
        ensure!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    if tree.exists() {
        std::fs::remove_dir_all(&tree)?;
    }
    run(command("dpkg-deb").arg("--raw-extract").arg(package).arg(&tree))?;
    let control = tree.join("DEBIAN/control");
    let text = std::fs::read_to_string(&control)?;
    let line = text.lines().find(|line| line.starts_with("Version:")).unwrap_or_default();
    std::fs::write(&control, text.replace(line, &format!("{line}+newer")))?;
    let newer = dir.join("newer.deb");
    run(command("dpkg-deb")
        .args(["--root-owner-group", "-Zgzip", "--build"])
        .arg(&tree)
        .arg(&newer))?;
    Ok(newer)
}
