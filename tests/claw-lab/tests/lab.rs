//! Lab hosts really boot, run Docker, lose their network and their power, and leave nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::{
    Cache, Cut, HostOptions, Image, Lab, LabHost, Network, StopCause, Suite, artifacts, command,
    images, progress, wait_for,
};

const BOOT: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(20);
/// How a server of secure shells greets.
const SSH: &str = "SSH-2.0-";
/// Set for the copy of this program that is to be killed; names the file that it writes.
const OWNER: &str = "CLAW_LAB_TEST_OWNER";

fn start(name: &str) -> Result<(Cache, Lab)> {
    let cache = Cache::open(progress::terminal())?;
    let lab = Lab::start(name, &cache)?;
    Ok((cache, lab))
}

fn fake(cache: &Cache) -> Result<Image> {
    images::fake_gateway(cache, &artifacts::static_binary("claw-fake-gateway")?, "lab-test")
}

/// Runs the gateway on a host as `docker run --restart always` and returns its address.
fn run_gateway(host: &LabHost, image: &Image) -> Result<String> {
    host.exec_ok(&[
        "docker",
        "run",
        "--detach",
        "--name",
        "gateway",
        "--hostname",
        "gateway",
        "--restart",
        "always",
        "--memory",
        "256m",
        "--env",
        "OPENCLAW_GATEWAY_TOKEN=0123456789abcdef0123456789abcdef",
        &image.id,
        "gateway",
        "--allow-unconfigured",
        "--bind",
        "lan",
        "--port",
        "18789",
    ])?;
    gateway_url(host)
}

fn gateway_url(host: &LabHost) -> Result<String> {
    let format = "{{.NetworkSettings.IPAddress}}";
    let address = wait_for("the container's address", SOON, || {
        let address = host.exec_ok(&["docker", "inspect", "-f", format, "gateway"]).ok()?;
        (!address.is_empty()).then_some(address)
    })?;
    Ok(format!("http://{address}:18789/startupz"))
}

fn wait_for_gateway(host: &LabHost) -> Result<()> {
    let answered = wait_for("the gateway on /startupz", SOON, || {
        let url = gateway_url(host).ok()?;
        host.exec(&["curl", "-fsS", "--max-time", "2", &url]).ok().filter(|out| out.success())
    });
    answered.map(drop).with_context(|| format!("{:?}", host.exec(&["docker", "logs", "gateway"])))
}

fn ssh_of(host: &LabHost) -> SocketAddr {
    (host.address(), 22).into()
}

/// The first bytes that a server sends by itself.
fn banner(mut stream: TcpStream, within: Duration) -> Result<String> {
    stream.set_read_timeout(Some(within))?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[test]
fn two_hosts_boot_at_once_and_run_containers() -> Result<()> {
    let (cache, lab) = start("pair")?;
    let image = fake(&cache)?;
    let boot = |name: &str| lab.boot(HostOptions::named(name).with_image(&image));
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| boot("h2"));
        (boot("h1"), second.join().unwrap())
    });
    let (first, second) = (first?, second?);
    for host in [&first, &second] {
        host.wait_until_active("docker.service", BOOT)?;
        host.wait_until_active("nginx.service", BOOT)?;
        host.wait_until_active("ssh.service", BOOT)?;
        assert_eq!(host.exec_ok(&["hostname"])?, host.name());
        assert_eq!(host.exec_ok(&["docker", "info", "-f", "{{.Driver}}"])?, "overlay2");
        run_gateway(host, &image)?;
        wait_for_gateway(host)?;
    }
    assert_ne!(first.address(), second.address());
    let ids = [&first, &second].map(|host| host.read_file("/etc/machine-id"));
    assert_ne!(ids[0].as_ref().unwrap(), ids[1].as_ref().unwrap());
    assert!(lab.boot(HostOptions::named("h1")).is_err(), "a name can be taken twice");
    first.exec_ok(&["ping", "-c1", "-W5", &second.address().to_string()])?;
    first.exec_ok(&["ping", "-c1", "-W5", &second.address_v6().to_string()])?;
    first.exec_ok(&["ping", "-c1", "-W5", "203.0.113.2"])?;
    Ok(())
}

#[test]
fn commands_and_files_reach_a_host() -> Result<()> {
    let (_, lab) = start("commands")?;
    let host = lab.boot(HostOptions::named("h1"))?;
    host.wait_until_active("multi-user.target", BOOT)?;
    let output = host.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    assert_eq!((output.status, &*output.stdout, &*output.stderr), (7, "out\n", "err\n"));
    assert_eq!(host.exec(&["sh", "-c", "kill -9 $$"])?.status, 137);
    assert!(host.exec_ok(&["false"]).is_err());
    assert!(host.exec(&["/no/such/program"]).is_err());
    assert_eq!(host.exec_with(&["cat"], b"through stdin", SOON)?.stdout, "through stdin");
    let late = host.exec_with(&["sleep", "60"], b"", Duration::from_millis(300));
    assert!(format!("{:?}", late.unwrap_err()).contains("killed"));
    let daemon = host.exec(&["sh", "-c", "sleep 1000 & echo started"])?;
    assert_eq!(daemon.stdout, "started\n", "a daemon left behind held the caller up");

    host.write_file("/etc/new/file", 0o640, b"content")?;
    assert_eq!(host.read_file("/etc/new/file")?, b"content");
    assert_eq!(host.exec_ok(&["stat", "-c", "%a %U", "/etc/new/file"])?, "640 root");
    let machine = lab.dir().join("from-the-machine");
    fs::write(&machine, "copied")?;
    host.copy_in(&machine, "/root/copy")?;
    assert_eq!(host.exec_ok(&["cat", "/root/copy"])?, "copied");
    assert!(!Path::new("/etc/new/file").exists(), "the machine's files were written to");

    let spawned = host.spawn(&["sh", "-c", "echo hello; exec sleep 1000"])?;
    wait_for("its output", SOON, || (spawned.log() == "hello\n").then_some(()))?;
    assert!(spawned.is_running());
    spawned.kill()?;
    let journal = host.journal("nginx.service")?;
    assert!(journal.contains("nginx"), "{journal}");
    let failed = host.wait_until_active("no-such.service", Duration::from_secs(1)).unwrap_err();
    assert!(format!("{failed}").contains("no-such.service"), "{failed}");
    Ok(())
}

#[test]
fn a_package_is_installed_and_its_unit_runs() -> Result<()> {
    let (_, lab) = start("package")?;
    let package = build_package(lab.dir())?;
    let host = lab.boot(HostOptions::named("h1"))?;
    host.wait_until_active("multi-user.target", BOOT)?;
    host.install_deb(&[package])?;
    assert_eq!(host.exec_ok(&["lab-example"])?, "it works");
    host.exec_ok(&["systemctl", "enable", "--now", "lab-example.service"])?;
    host.wait_until_active("lab-example.service", SOON)?;
    host.reboot()?;
    host.wait_until_active("lab-example.service", BOOT)
}

fn build_package(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("package");
    for sub in ["DEBIAN", "usr/bin", "lib/systemd/system"] {
        fs::create_dir_all(tree.join(sub))?;
    }
    let control = "Package: lab-example\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\n\
                   Depends: systemd\nDescription: example\n";
    fs::write(tree.join("DEBIAN/control"), control)?;
    let script = tree.join("usr/bin/lab-example");
    fs::write(&script, "#!/bin/sh\necho it works\n")?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let unit = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n";
    fs::write(tree.join("lib/systemd/system/lab-example.service"), unit)?;
    let package = dir.join("lab-example_1_all.deb");
    let mut build = command("dpkg-deb");
    let built = build.args(["--root-owner-group", "--build"]).arg(&tree).arg(&package).output()?;
    assert!(built.status.success(), "{built:?}");
    Ok(package)
}

#[test]
fn a_host_comes_back_after_a_power_cut_and_a_reboot() -> Result<()> {
    let (cache, lab) = start("power")?;
    let image = fake(&cache)?;
    let host = lab.boot(HostOptions::named("h1").with_image(&image))?;
    host.wait_until_active("docker.service", BOOT)?;
    run_gateway(&host, &image)?;
    wait_for_gateway(&host)?;
    host.write_file("/root/kept", 0o600, b"kept")?;
    let boot_id = || host.read_file("/proc/sys/kernel/random/boot_id");
    let before = boot_id()?;
    assert_eq!(before, boot_id()?);

    host.power_cut()?;
    assert_eq!(host.pid(), None);
    assert!(host.exec(&["true"]).is_err());
    host.boot_again()?;
    assert!(host.boot_again().is_err(), "a running host was booted");
    wait_for_gateway(&host)?;
    assert_eq!(host.read_file("/root/kept")?, b"kept");
    assert_ne!(before, boot_id()?, "the boot id outlived the boot");

    host.reboot()?;
    wait_for_gateway(&host)?;
    host.exec(&["systemctl", "poweroff"])?;
    assert_eq!(host.wait_for_stop(BOOT)?, StopCause::PowerOff);
    host.boot_again()?;
    wait_for_gateway(&host)?;
    host.exec(&["systemctl", "reboot"])?;
    assert_eq!(host.wait_for_stop(BOOT)?, StopCause::Reboot);
    host.boot_again()?;
    wait_for_gateway(&host)?;
    assert_eq!(host.power_off()?, StopCause::PowerOff);
    Ok(())
}

#[test]
fn a_cut_network_heals() -> Result<()> {
    let (_, lab) = start("cut")?;
    let host = lab.boot(HostOptions::named("h1"))?;
    host.wait_until_active("ssh.service", BOOT)?;
    let carrier = || host.exec_ok(&["cat", "/sys/class/net/eth0/carrier"]);
    let reach = |network| -> Result<String> {
        let connect = || TcpStream::connect_timeout(&ssh_of(&host), Duration::from_secs(1));
        banner(lab.within(network, connect)??, SOON)
    };
    for cut in [Cut::Silent, Cut::Link] {
        assert_eq!(reach(Network::Client)?, SSH);
        host.cut(cut)?;
        assert_eq!(carrier()?, if cut == Cut::Silent { "1" } else { "0" });
        reach(Network::Internet).unwrap_err();
        host.heal()?;
        assert_eq!(carrier()?, "1");
    }
    assert_eq!(reach(Network::Internet)?, SSH);

    // A cut outlasts a power cut, and a connection that stood before it is half-open until healed.
    host.cut(Cut::Silent)?;
    host.power_cut()?;
    host.boot_again()?;
    host.wait_until_active("ssh.service", BOOT)?;
    reach(Network::Internet).unwrap_err();
    host.heal()?;
    let mut stream = lab.connect(Network::Internet, ssh_of(&host))?;
    assert_eq!(banner(stream.try_clone()?, SOON)?, SSH);
    host.cut(Cut::Silent)?;
    stream.write_all(b"SSH-2.0-lab\r\n")?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut rest = Vec::new();
    while stream.read(&mut [0; 64]).inspect(|n| rest.push(*n)).is_ok_and(|n| n > 0) {}
    assert!(!rest.contains(&0), "the connection was closed by a cut that was to be silent");
    host.heal()?;
    stream.set_read_timeout(Some(SOON))?;
    assert!(stream.read(&mut [0; 64])? > 0, "the server did not answer after the cut was healed");
    Ok(())
}

#[test]
fn servers_of_the_lab_are_reached_through_loopback_only() -> Result<()> {
    let untouched = machine_state()?;
    let (_, lab) = start("forward")?;
    let host = lab.boot(HostOptions::named("h1"))?;
    host.wait_until_active("ssh.service", BOOT)?;
    assert_eq!(machine_state()?, untouched, "the machine's interfaces or mounts changed");

    let loopback = "127.0.0.1:0".parse()?;
    let forward = lab.forward(loopback, Network::Client, ssh_of(&host))?;
    for _ in 0..3 {
        assert_eq!(banner(TcpStream::connect(forward.local())?, SOON)?, SSH);
    }
    let through = TcpStream::connect(forward.local())?;
    let local = forward.local();
    drop(forward);
    assert!(TcpStream::connect(local).is_err(), "the port outlived the forwarder");
    through.set_read_timeout(Some(SOON))?;
    let ended = (&through).read_to_end(&mut Vec::new());
    let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "a connection outlived the forwarder");
    assert!(lab.forward("0.0.0.0:0".parse()?, Network::Client, ssh_of(&host)).is_err());
    // Whatever the machine's own network makes of the address, it is not the lab's host.
    let direct = TcpStream::connect_timeout(&ssh_of(&host), Duration::from_secs(1));
    let direct =
        direct.map_err(Into::into).and_then(|stream| banner(stream, Duration::from_secs(1)));
    assert_ne!(direct.unwrap_or_default(), SSH);

    let mut server = command("python3");
    server.args(["-m", "http.server", "--bind", "198.51.100.1", "7000"]);
    let server = lab.spawn(Network::Internet, "server", server)?;
    wait_for("the server", SOON, || {
        lab.connect(Network::Client, "198.51.100.1:7000".parse().ok()?).ok()
    })?;
    host.exec_ok(&["curl", "-fsS", "-o", "/dev/null", "http://198.51.100.1:7000/"])?;
    assert!(server.log().contains("198.51.100.11"), "{}", server.log());
    server.signal(15)?;
    assert!(!server.wait(SOON)?.success());
    Ok(())
}

/// What a lab must not change: the machine's interfaces, routes and mounts.
fn machine_state() -> Result<[String; 3]> {
    let interfaces = fs::read_to_string("/proc/self/net/dev")?;
    let names = interfaces.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name);
    Ok([
        names.collect::<Vec<_>>().join(" "),
        fs::read_to_string("/proc/self/net/route")?,
        fs::read_to_string("/proc/self/mountinfo")?,
    ])
}

#[test]
fn a_disk_of_its_own_fills_up_and_is_kept() -> Result<()> {
    let (_, lab) = start("disk")?;
    let host = lab.boot(HostOptions::named("h1").with_clawd_disk(16))?;
    host.wait_until_active("multi-user.target", BOOT)?;
    host.write_file("/var/lib/clawd/kept", 0o600, b"kept")?;
    let full = host.exec(&["dd", "if=/dev/zero", "of=/var/lib/clawd/big", "bs=1M", "count=32"])?;
    assert!(full.stderr.contains("No space left on device"), "{full:?}");
    host.exec_ok(&["rm", "/var/lib/clawd/big"])?;
    host.power_cut()?;
    host.boot_again()?;
    host.wait_until_active("multi-user.target", BOOT)?;
    assert_eq!(host.read_file("/var/lib/clawd/kept")?, b"kept");
    Ok(())
}

#[test]
fn a_trixie_host_runs_docker() -> Result<()> {
    let (_, lab) = start("trixie")?;
    let host = lab.boot(HostOptions::named("h1").with_suite(Suite::Trixie))?;
    host.wait_until_active("docker.service", BOOT)?;
    assert_eq!(host.exec_ok(&["docker", "info", "-f", "{{.Driver}}"])?, "overlay2");
    host.reboot()?;
    host.wait_until_active("docker.service", BOOT)
}

#[test]
fn a_killed_owner_leaves_nothing() -> Result<()> {
    if let Some(ready) = std::env::var_os(OWNER) {
        return own_until_killed(Path::new(&ready));
    }
    let (_, lab) = start("keeper")?;
    let ready = lab.dir().join("ready");
    let mut owner = command(std::env::current_exe()?);
    owner.args(["--exact", "a_killed_owner_leaves_nothing", "--nocapture"]).env(OWNER, &ready);
    let owner = lab.spawn(Network::Internet, "owner", owner)?;
    let dir = wait_for("the owner's lab", BOOT * 2, || {
        assert!(owner.is_running(), "{}", owner.log());
        fs::read_to_string(&ready).ok().filter(|text| text.ends_with('\n'))
    })?;
    let dir = PathBuf::from(dir.trim());
    let group = format!("claw-lab.{}.", dir.file_name().unwrap().to_str().unwrap());
    let pids: Vec<String> = groups(&group)?.iter().flat_map(|group| members(group)).collect();
    assert!(pids.len() > 5, "{pids:?}");

    owner.kill()?;
    wait_for("the end of its processes", SOON, || {
        pids.iter().all(|pid| !Path::new("/proc").join(pid).exists()).then_some(())
    })?;
    assert!(dir.exists(), "nothing is left to sweep");
    drop(start("sweeper")?);
    assert!(!dir.exists(), "{} was not swept", dir.display());
    assert_eq!(groups(&group)?, Vec::<PathBuf>::new());
    assert!(lab.dir().exists(), "a live run was swept");
    Ok(())
}

fn own_until_killed(ready: &Path) -> Result<()> {
    let (_, lab) = start("victim")?;
    let host = lab.boot(HostOptions::named("h1"))?;
    host.wait_until_active("docker.service", BOOT)?;
    fs::write(ready, format!("{}\n", lab.dir().display()))?;
    loop {
        std::thread::park();
    }
}

/// The control groups at the top of the hierarchies whose names start so.
fn groups(prefix: &str) -> Result<Vec<PathBuf>> {
    let mut tops = vec![PathBuf::from("/sys/fs/cgroup")];
    tops.extend(fs::read_dir("/sys/fs/cgroup")?.filter_map(|entry| Some(entry.ok()?.path())));
    let entries = tops.iter().filter_map(|top| fs::read_dir(top).ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    Ok(paths.filter(named).collect())
}

/// The processes in a control group and below.
fn members(group: &Path) -> Vec<String> {
    let own = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let below =
        fs::read_dir(group).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let below = below.filter(|path| path.is_dir()).flat_map(|path| members(&path));
    own.lines().map(str::to_owned).chain(below).collect()
}
