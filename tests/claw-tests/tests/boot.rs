//! A host comes back by itself: no coordinator, orderly reboot and power cut.

use anyhow::Result;
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::{Docker, Instance, Rig};

#[test]
fn instances_serve_again_after_a_boot_without_any_coordinator() -> Result<()> {
    let rig = Rig::start("boot")?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let names = ["one", "two"];
    let boot_id = || host.read_file("/proc/sys/kernel/random/boot_id");
    rig.step("two instances run, a third is stopped", || {
        for name in ["one", "two", "off"] {
            let instance = Instance::new(name, host, &rig.image().reference);
            fleet.apply(&instance.env("CLAW_FAKE_CONTROL", 1))?;
        }
        for name in names {
            fleet.until_phase(name, "running", PATIENCE)?;
            fleet.until_serving(host, name)?;
            fleet.control(host, name, "write?key=k&value=kept")?;
        }
        fleet.until_phase("off", "running", PATIENCE)?;
        fleet.clawctl_ok(&["stop", "off", "--wait"]).map(|_| ())
    })?;
    let first = boot_id()?;
    rig.step("the coordinator is killed, the host reboots", || {
        fleet.kill_coordinator()?;
        host.reboot()?;
        assert_ne!(boot_id()?, first);
        assert_up(&rig, &names)
    })?;
    let second = boot_id()?;
    rig.step("the power is cut, the host boots", || {
        host.power_cut()?;
        host.boot_again()?;
        assert_ne!(boot_id()?, second);
        assert_up(&rig, &names)
    })?;
    rig.step("a coordinator returns and learns of it; a boot is no crash", || {
        fleet.start_coordinator()?;
        fleet.until_online(host)?;
        for name in names {
            let running = fleet.until_phase(name, "running", PATIENCE)?;
            assert_eq!(running["status"]["restartCount"], 0, "{running}");
        }
        fleet.until_phase("off", "stopped", PATIENCE)?;
        Ok(())
    })
}

/// Those that should serve do, with their data, from one container each; the stopped one is down.
fn assert_up(rig: &Rig, names: &[&str]) -> Result<()> {
    let (fleet, host) = (rig.fleet(), rig.host());
    for name in names {
        fleet.until_serving(host, name)?;
        assert_eq!(fleet.control(host, name, "read?key=k")?, "kept");
    }
    let docker = until(PATIENCE, "docker", || Ok(Some(Docker::of(host)?)))?;
    for name in names {
        assert_eq!(docker.containers_of(name)?.len(), 1);
    }
    let off = docker.containers_of("off")?;
    assert!(off.iter().all(|container| container["State"] != "running"), "{off:#?}");
    Ok(())
}
