//! Processes that the service manager starts, with the units that are shipped.
//!
//! On a lab host only: this very program is copied there and run with `CLAW_LAB_HOST=1`. Anywhere else these
//! tests say that they did not run.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use clawd::adapters::snapshots::{Launcher, Sockets};
use clawd::contract::snapshots;
use clawd::ports::{Snapshots as _, SnapshotsError};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::ground::{Ground, Holding, noise, run, signal};

/// What a test changes about the unit.
const DROP_IN: &str = "/run/systemd/system/clawd-snapshots@.service.d/test.conf";

fn by_units() -> Launcher {
    Launcher::Systemd(Sockets::below(Path::new("/run/clawd")))
}

/// A host with the units and nothing of the instance on it.
fn here() -> Option<Ground> {
    if std::env::var_os("CLAW_LAB_HOST").is_none() {
        _ = writeln!(std::io::stderr(), "snapshots by units did not run: no lab host");
        return None;
    }
    for left in ["instances", "repo"] {
        _ = fs::remove_dir_all(Path::new("/var/lib/clawd").join(left));
    }
    systemctl(&["start", "clawd-snapshots.socket", "clawd-offsite.socket"]);
    Some(Ground::at(Path::new("/var/lib/clawd"), |settings| {
        settings.launcher = by_units();
    }))
}

#[track_caller]
#[expect(clippy::disallowed_methods, reason = "a fixture has no deadline to keep")]
fn systemctl(arguments: &[&str]) -> String {
    let mut command = std::process::Command::new("systemctl");
    let output = command.args(arguments).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "systemctl {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The process that works for this agent now.
fn job() -> Pid {
    let units = systemctl(&["list-units", "--plain", "--no-legend", "clawd-snapshots@*"]);
    let unit = units.split_whitespace().next().unwrap();
    let shown = systemctl(&["show", "--property=MainPID", "--value", unit]);
    Pid::from_raw(shown.trim().parse().unwrap())
}

fn assert_nothing_failed() {
    let units = systemctl(&["list-units", "--all", "--plain", "--no-legend", "clawd-snapshots@*"]);
    assert!(!units.contains("failed"), "{units}");
}

#[test]
fn units_keep_the_contract() {
    let Some(ground) = here() else { return };
    run(async {
        snapshots(&ground).await.unwrap();
        assert_nothing_failed();
        let peak = ground.worker.last_cost().peak_bytes >> 20;
        println!("peak {peak} MiB");
    });
}

#[test]
fn owners_modes_and_times_come_back() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let Some(ground) = here() else { return };
    run(async {
        ground.write("agents/main/a.jsonl", "a");
        for (path, owner, mode) in [
            ("agents/main/a.jsonl", 1000, 0o600),
            ("agents/main", 1000, 0o2750),
            ("agents", 1001, 0o700),
            ("", 1000, 0o700),
        ] {
            let path = ground.live().join(path);
            std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        ground.take_up("one", &Holding::default()).await.unwrap();
        ground.restore("one", 2).await.unwrap();
        for path in ["agents/main/a.jsonl", "agents/main", "agents", ""] {
            let seen = |root: &Path| {
                let found = fs::metadata(root.join(path)).unwrap();
                (found.uid(), found.gid(), found.mode(), found.mtime(), found.mtime_nsec())
            };
            assert_eq!(seen(&ground.generation(2)), seen(&ground.live()), "{path}");
        }
    });
}

#[test]
fn a_unit_that_is_killed_is_reported_and_forgiven() {
    let Some(ground) = here() else { return };
    run(async {
        ground.write("file", noise(1, 100_000));
        let killing = Holding::doing(|| signal(job(), Signal::SIGKILL));
        let refused = ground.take_up("one", &killing).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Worker { .. }), "{refused:?}");
        assert!(refused.to_string().contains("killed by signal 9"), "{refused}");
        assert_eq!(killing.released.get(), 1);
        assert_nothing_failed();
        ground.take_up("one", &Holding::default()).await.unwrap();
    });
}

#[test]
fn a_unit_that_hangs_is_killed() {
    let Some(ground) = here() else { return };
    let quick = Ground::at(&ground.data, |settings| {
        settings.launcher = by_units();
        settings.longest_hold = Duration::from_millis(500);
    });
    run(async {
        ground.write("file", noise(1, 100_000));
        let stopping = Holding::doing(|| signal(job(), Signal::SIGSTOP));
        let refused = quick.take_up("one", &stopping).await.unwrap_err();
        assert!(refused.to_string().contains("held for 0.5 s"), "{refused}");
        ground.take_up("one", &Holding::default()).await.unwrap();
        assert_nothing_failed();
    });
}

#[test]
fn the_kernels_verdict_is_named() {
    let Some(ground) = here() else { return };
    let drop_in = Path::new(DROP_IN);
    fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
    fs::write(drop_in, "[Service]\nMemoryHigh=infinity\nMemoryMax=6M\nMemorySwapMax=0\n").unwrap();
    systemctl(&["daemon-reload"]);
    run(async {
        for number in 0..8 {
            ground.write(&format!("large-{number}"), noise(number, 4_000_000));
        }
        let refused = ground.take("one").await;
        fs::remove_file(drop_in).unwrap();
        systemctl(&["daemon-reload"]);
        let refused = refused.unwrap_err();
        // Control groups of version 1 do not say who killed.
        assert!(refused.to_string().contains("memory"), "{refused}");
        assert_nothing_failed();
        ground.take("one").await.unwrap();
        ground.assert_sound().await;
        ground.worker.forget(&ground.instance, &[].into(), &|_| ()).await.unwrap();
    });
}
