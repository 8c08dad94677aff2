//! Acceptance on a whole virtual machine: Debian 12 with a kernel and control groups v2 of its own, the
//! agent's package, and boots without a coordinator.
//!
//! Built and run by `cargo xtask test --vm` only (cargo feature `vm`): an emulated processor takes
//! minutes for what a lab host does in seconds.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Network, Vm, VmOptions};
use claw_tests::fleet::{COORDINATOR, Fleet, WEB_PORT};
use claw_tests::programs::{self, CLAWD_DEB};
use claw_tests::{Instance, Rig, http, rig};
use serde_json::Value;

/// How long anything may take there: ten times what was seen on two idle cores.
const PATIENCE: Duration = Duration::from_secs(300);
const NAME: &str = "v1";
const INSTANCE: &str = "demo";
const LIMIT_MIB: u64 = 256;
/// What the gateway takes once it is ready, so that its report cannot be right by chance.
const EATEN_MIB: u64 = 100;
const MIB: u64 = 1 << 20;

#[test]
fn the_package_keeps_an_instance_alive_on_debian_with_cgroup_v2() -> Result<()> {
    let rig = Rig::without_hosts("vm", "")?;
    let fleet = rig.fleet();
    let vm = rig.step("a virtual machine boots", || {
        let vm = Vm::boot(fleet.lab(), VmOptions::named(NAME))?;
        vm.wait_until_active("docker.service", PATIENCE)?;
        Ok(vm)
    })?;
    let mut site = Site { rig: &rig, vm };
    run(&mut site).with_context(|| site.diagnosis())
}

fn run(site: &mut Site<'_>) -> Result<()> {
    let rig = site.rig;
    rig.step("it has control groups v2 and nothing of ours", || {
        let kind = site.vm.exec_ok(&["stat", "--file-system", "-c", "%T", "/sys/fs/cgroup"])?;
        assert_eq!(kind, "cgroup2fs");
        let docker = site.vm.exec_ok(&["docker", "info", "-f", "{{.CgroupVersion}}"])?;
        assert_eq!(docker, "2");
        assert!(!site.vm.exec(&["test", "-e", "/usr/bin/clawd"])?.success());
        site.vm.load_image(rig.image())
    })?;
    rig.step("the package is installed and joins", || site.install_and_join())?;
    rig.step("a gateway is deployed and serves", || site.deploy())?;
    rig.step("its memory is reported from control group v2", || site.assert_memory())?;
    rig.step("the host is reported, pressure included", || site.assert_host())?;
    let restarts = rig.step("one that eats too much is killed, recognised, and back", || {
        site.assert_out_of_memory()
    })?;
    let first = site.vm.boot_id()?.to_owned();
    rig.step("the coordinator is killed, the machine reboots, the gateway serves", || {
        rig.fleet().kill_coordinator()?;
        site.vm.reboot()?;
        assert_ne!(site.vm.boot_id()?, first);
        site.assert_serves_what_it_kept()
    })?;
    let second = site.vm.boot_id()?.to_owned();
    rig.step("its power is cut, it boots, the gateway serves", || {
        site.vm.power_cut()?;
        site.vm.boot_again()?;
        assert_ne!(site.vm.boot_id()?, second);
        site.assert_serves_what_it_kept()
    })?;
    rig.step("a coordinator returns and learns of it", || site.assert_converged(restarts))
}

/// The machine, and the fleet that it joins.
#[derive(Debug)]
struct Site<'a> {
    rig: &'a Rig,
    vm: Vm,
}

impl Site<'_> {
    fn fleet(&self) -> &Fleet {
        self.rig.fleet()
    }

    fn install_and_join(&self) -> Result<()> {
        let package: PathBuf = programs::variable(CLAWD_DEB)?;
        self.vm.install_deb(&[package])?;
        self.fleet().clawctl_ok(&["host", "create", NAME])?;
        let token = self.fleet().token(NAME)?;
        let coordinator = COORDINATOR.to_string();
        let join = ["clawd", "join", "--coordinator", &coordinator, "--host-name", NAME];
        let argv = [&join[..], &["--token-file", "-"]].concat();
        let joined = self.vm.exec_with(&argv, token.as_bytes(), PATIENCE)?;
        ensure!(joined.success(), "clawd join: {}{}", joined.stdout, joined.stderr);
        self.vm.exec_ok(&["systemctl", "start", "clawd.service"])?;
        self.until_online().map(drop)
    }

    fn deploy(&self) -> Result<()> {
        let instance = Instance {
            name: INSTANCE.to_owned(),
            host: NAME.to_owned(),
            image: self.rig.image().reference.clone(),
            memory_mib: LIMIT_MIB,
            cpu_millis: 1000,
            env: Vec::new(),
            config: "{}".to_owned(),
            min_healthy_s: 1,
            startup_deadline_s: 120,
            hang_deadline_s: 60,
            stop_grace_s: 30,
            more: std::collections::BTreeMap::new(),
        };
        let instance =
            instance.env("CLAW_FAKE_CONTROL", 1).env("CLAW_FAKE_EAT_MEMORY_MB", EATEN_MIB);
        self.fleet().apply(&instance)?;
        self.fleet().until_phase(INSTANCE, "running", PATIENCE)?;
        self.until_serving()?;
        self.control("write?key=k&value=kept").map(drop)
    }

    fn assert_memory(&self) -> Result<()> {
        let group = self.group()?;
        assert_eq!(
            self.vm.exec_ok(&["cat", &format!("{group}/memory.max")])?,
            (LIMIT_MIB * MIB).to_string()
        );
        let status = self.until_status("the memory that it took", |status| {
            status["usage"]["memoryBytes"].as_u64().is_some_and(|bytes| bytes >= EATEN_MIB * MIB)
        })?;
        let usage = &status["usage"];
        let number =
            |field: &str| usage[field].as_u64().with_context(|| format!("no {field}: {usage}"));
        assert_eq!(number("memoryLimitBytes")?, LIMIT_MIB * MIB);
        // The kernel's figure may only be larger, by what it could take back at once.
        let current: u64 =
            self.vm.exec_ok(&["cat", &format!("{group}/memory.current")])?.parse()?;
        let reported = number("memoryBytes")?;
        assert!(reported <= current + 8 * MIB, "{reported} bytes are reported, {current} are used");
        assert!(number("cpuUsageUs")? > 0, "{usage}");
        assert!(number("pids")? > 0, "{usage}");
        assert_eq!(number("oomKills")?, 0);
        assert_eq!(status["restartCount"], 0, "{status}");
        Ok(())
    }

    fn assert_host(&self) -> Result<()> {
        let status = self.until_online()?;
        let resources = &status["resources"];
        let total = resources["memoryTotalBytes"].as_u64().context("no memory")?;
        assert!((1800 * MIB..2048 * MIB).contains(&total), "{resources}");
        assert_eq!(resources["cpuCount"], 2, "{resources}");
        for kind in ["cpuPressure", "memoryPressure", "ioPressure"] {
            assert!(resources[kind].is_object(), "no {kind}: {resources}");
        }
        let kernel = self.vm.exec_ok(&["uname", "--kernel-release"])?;
        assert_eq!(status["kernelVersion"], kernel, "{status}");
        assert_eq!(status["bootId"], self.vm.boot_id()?, "{status}");
        Ok(())
    }

    /// Returns how often the gateway has been restarted by then.
    fn assert_out_of_memory(&self) -> Result<u64> {
        self.control("eat?mb=400")?;
        let status = self.until_status("the kill", |status| status["lastExit"]["oom"] == true)?;
        assert_eq!(status["lastExit"]["code"], 137, "{status}");
        let kernel = self.vm.exec_ok(&["journalctl", "--dmesg", "--boot", "--no-pager"])?;
        assert!(kernel.contains("oom-kill:constraint=CONSTRAINT_MEMCG"), "{kernel}");
        self.fleet().until(PATIENCE, "the event", |fleet| {
            let events = fleet.json(&["host", "events", NAME])?;
            let ours =
                |event: &Value| event["kind"] == "out_of_memory" && event["instance"] == INSTANCE;
            let found = rig::list(&events)?.iter().any(ours);
            if found { Ok(Some(())) } else { bail!("{events:#}") }
        })?;
        let back = self.until_status("it to be back", |status| status["phase"] == "running")?;
        self.until_serving()?;
        let restarts = back["restartCount"].as_u64().context("no restart count")?;
        assert_eq!(restarts, 1, "{back}");
        Ok(restarts)
    }

    fn assert_serves_what_it_kept(&self) -> Result<()> {
        self.until_serving()?;
        assert_eq!(self.control("read?key=k")?, "kept");
        let label = format!("label=dev.claw.instance={INSTANCE}");
        let listed = self.vm.exec_ok(&["docker", "ps", "--all", "--quiet", "--filter", &label])?;
        assert_eq!(listed.lines().count(), 1, "{listed}");
        Ok(())
    }

    fn assert_converged(&self, restarts: u64) -> Result<()> {
        self.fleet().start_coordinator()?;
        let host = self.until_online()?;
        assert_eq!(host["bootId"], self.vm.boot_id()?, "{host}");
        let running = self.fleet().until_phase(INSTANCE, "running", PATIENCE)?;
        let status = &running["status"];
        assert_eq!(status["persisted"], true, "{status}");
        assert_eq!(status["hostState"], "online", "{status}");
        // A boot is no crash.
        assert_eq!(status["restartCount"], restarts, "{status}");
        self.until_status("its memory again", |status| {
            status["usage"]["memoryBytes"].as_u64().is_some_and(|bytes| bytes >= EATEN_MIB * MIB)
        })
        .map(drop)
    }

    /// The control group of the gateway's container.
    fn group(&self) -> Result<String> {
        let container = format!("claw-{INSTANCE}");
        let pid = self.vm.exec_ok(&["docker", "inspect", "-f", "{{.State.Pid}}", &container])?;
        let membership = self.vm.read_text(&format!("/proc/{pid}/cgroup"))?;
        let path = membership.trim().strip_prefix("0::").with_context(|| membership.clone())?;
        Ok(format!("/sys/fs/cgroup{path}"))
    }

    /// Waits until the machine is online in its present boot; returns its status.
    fn until_online(&self) -> Result<Value> {
        let boot_id = self.vm.boot_id()?;
        self.fleet().until(PATIENCE, "the machine to be online", |fleet| {
            let host = fleet.json(&["host", "get", NAME])?;
            let status = &host["status"];
            let there = status["state"] == "online" && status["bootId"] == boot_id;
            if there { Ok(Some(status.clone())) } else { bail!("it is {status}") }
        })
    }

    fn until_status(&self, what: &str, there: impl Fn(&Value) -> bool) -> Result<Value> {
        self.fleet().until(PATIENCE, what, |fleet| {
            let status = fleet.instance(INSTANCE)?["status"].clone();
            if there(&status) { Ok(Some(status)) } else { bail!("it is {status}") }
        })
    }

    /// Waits until a customer gets the gateway's own answer through the reverse proxy.
    fn until_serving(&self) -> Result<()> {
        self.fleet().until(PATIENCE, "the gateway to serve", |_| {
            let answer = self.browse("/startupz")?;
            if answer.status == 200 { Ok(Some(())) } else { bail!("{answer:?}") }
        })
    }

    fn control(&self, what: &str) -> Result<String> {
        let answer = self.browse(&format!("/__fake/{what}"))?;
        ensure!(answer.status == 200, "{what}: {answer:?}");
        Ok(answer.body)
    }

    fn browse(&self, path: &str) -> Result<http::Answer> {
        let target = (self.vm.address(), WEB_PORT).into();
        let stream = self.fleet().lab().connect(Network::Client, target)?;
        http::get(stream, &format!("{INSTANCE}.claw.localhost"), path)
    }

    /// What the machine says of itself.
    fn diagnosis(&self) -> String {
        let commands: [&[&str]; 3] = [
            &["journalctl", "--no-pager", "-b", "-u", "clawd.service", "-n", "60"],
            &["journalctl", "--no-pager", "-b", "-u", "docker.service", "-n", "20"],
            &["docker", "ps", "--all", "--no-trunc"],
        ];
        let said = commands.map(|argv| {
            let said = self.vm.exec(argv);
            let said =
                said.map_or_else(|error| format!("{error:#}"), |out| out.stdout + &out.stderr);
            format!("---- {}\n{said}", argv.join(" "))
        });
        said.join("\n")
    }
}
