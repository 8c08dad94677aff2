//! One boot of a host: namespaces, mounts, and systemd as PID 1.
//!
//! The launching thread makes the mounts (it can say what went wrong); what needs the new process
//! namespace or control group namespace happens in the child before exec. It deliberately uses no
//! shell and no helper programs.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::cgroup::Subtree;
use crate::guest::join;
use crate::netns::Netns;
use crate::process::{Launch, Process, command, private_mounts};

/// Everything a boot needs.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) hostname: String,
    /// The cached root file system, never written to.
    pub(crate) base: PathBuf,
    /// The host's own directory: `upper`, `work`, `root`, `docker`.
    pub(crate) dir: PathBuf,
    /// An ext4 image to mount at `/var/lib/clawd`.
    pub(crate) clawd_disk: Option<PathBuf>,
    pub(crate) netns: Netns,
}

/// A mount that the child makes.
type ChildMount = (CString, CString, CString, MsFlags, CString);

/// Would reboot the machine; kernels without the feature lack it.
const SYSRQ: &str = "/proc/sysrq-trigger";

const NONE: Option<&str> = None;

impl Boot {
    /// Starts PID 1 as a member of `subtree`; its output goes to `console`.
    pub(crate) fn start(self, subtree: &Subtree, console: PathBuf) -> Result<Process> {
        let mut systemd = command("/lib/systemd/systemd");
        systemd.env_clear().env("container", "lab").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        if subtree.hierarchies.iter().any(|hierarchy| hierarchy.fstype == "cgroup") {
            // systemd 256 and later refuse v1 without both.
            systemd.env("SYSTEMD_PROC_CMDLINE", "systemd.unified_cgroup_hierarchy=0");
            systemd.env("SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE", "1");
        }
        let members = subtree.top()?;
        let group_dirs = guest_groups(subtree);
        let mounts = child_mounts(subtree, &group_dirs)?;
        systemd.stdin(std::process::Stdio::null());
        let mut launch = Launch::plain(systemd).logging_to(console)?;
        launch.in_child = Box::new(move || in_child(&members, &mounts));
        launch.prepared(move || self.prepare(&group_dirs)).spawn()
    }

    /// On the launching thread: every namespace but that of control groups, every mount that can
    /// be made before PID 1 exists.
    fn prepare(&self, group_dirs: &[PathBuf]) -> Result<()> {
        self.netns.enter()?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
            .context("cannot create namespaces")?;
        private_mounts()?;
        nix::unistd::sethostname(&self.hostname).context("cannot set the host name")?;
        let root = self.dir.join("root");
        self.mount_disks(&root)?;
        mount_kernel(&root, group_dirs)?;
        fs::write(root.join("run/lab-boot-id"), fs::read("/proc/sys/kernel/random/uuid")?)?;
        std::env::set_current_dir(&root)?;
        nix::unistd::pivot_root(".", ".").context("cannot change the root")?;
        umount2(".", MntFlags::MNT_DETACH).context("cannot leave the old root")?;
        std::env::set_current_dir("/")?;
        // As systemd does outside of containers: what dockerd unmounts goes from the units' own views too.
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SHARED, NONE)
            .context("cannot share mounts")?;
        // Last: from here on the first child of this thread is PID 1.
        unshare(CloneFlags::CLONE_NEWPID).context("cannot create a process namespace")
    }

    fn mount_disks(&self, root: &Path) -> Result<()> {
        let (upper, work) = (self.dir.join("upper"), self.dir.join("work"));
        let (base, upper, work) = (self.base.display(), upper.display(), work.display());
        let layers = format!("lowerdir={base},upperdir={upper},workdir={work}");
        mount(Some("overlay"), root, Some("overlay"), MsFlags::empty(), Some(&*layers))
            .with_context(|| format!("cannot mount an overlay ({layers})"))?;
        let docker = root.join("var/lib/docker");
        fs::create_dir_all(&docker)?;
        mount(Some(&self.dir.join("docker")), &docker, NONE, MsFlags::MS_BIND, NONE)
            .context("cannot mount Docker's data directory")?;
        let Some(disk) = &self.clawd_disk else { return Ok(()) };
        let target = root.join("var/lib/clawd");
        fs::create_dir_all(&target)?;
        // mount(8) finds a free loop device, which goes with the mount.
        let mounted = command("mount").args(["-o", "loop"]).arg(disk).arg(target).output()?;
        if !mounted.status.success() {
            bail!("cannot mount the disk: {}", String::from_utf8_lossy(&mounted.stderr));
        }
        Ok(())
    }
}

/// `/dev`, `/run`, `/tmp`, `/sys` and the places for control groups.
fn mount_kernel(root: &Path, group_dirs: &[PathBuf]) -> Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    tmpfs(&root.join("run"), quiet, "mode=755")?;
    tmpfs(&root.join("tmp"), quiet, "mode=1777")?;
    // Read-only, so that nothing on the host reaches the machine's devices.
    let sealed = quiet | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount(Some("sysfs"), &root.join("sys"), Some("sysfs"), sealed, NONE)
        .context("cannot mount sysfs")?;
    tmpfs(&root.join("sys/fs/cgroup"), quiet | MsFlags::MS_NOEXEC, "mode=755")?;
    for dir in group_dirs {
        fs::create_dir_all(root.join(dir))?;
    }
    devices(&root.join("dev")).context("cannot fill /dev")
}

fn tmpfs(target: &Path, flags: MsFlags, options: &str) -> Result<()> {
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .with_context(|| format!("cannot mount a tmpfs on {}", target.display()))
}

/// A `/dev` of its own with the nodes that a container gets, fuse and tun included.
fn devices(dev: &Path) -> Result<()> {
    tmpfs(dev, MsFlags::MS_NOSUID, "mode=755")?;
    for dir in ["pts", "shm", "net", "mqueue"] {
        fs::create_dir(dev.join(dir))?;
    }
    let nodes = [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
        ("net/tun", 10, 200),
        ("fuse", 10, 229),
    ];
    for (name, major, minor) in nodes {
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    let links = [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ];
    for (target, name) in links {
        symlink(target, dev.join(name))?;
    }
    let terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let options = Some("newinstance,ptmxmode=0666,mode=620,gid=5");
    mount(Some("devpts"), &dev.join("pts"), Some("devpts"), terminals, options)?;
    tmpfs(&dev.join("shm"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")
}

/// Where the hierarchies go on the host, relative to its root and in the machine's order.
fn guest_groups(subtree: &Subtree) -> Vec<PathBuf> {
    let relative = |mount: &Path| mount.strip_prefix("/").unwrap_or(mount).to_owned();
    subtree.hierarchies.iter().map(|hierarchy| relative(&hierarchy.mount)).collect()
}

fn child_mounts(subtree: &Subtree, group_dirs: &[PathBuf]) -> Result<Vec<ChildMount>> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let (bind, seal) =
        (MsFlags::MS_BIND, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
    let mut mounts = Vec::new();
    for (hierarchy, dir) in subtree.hierarchies.iter().zip(group_dirs) {
        let target = format!("/{}", dir.display());
        mounts.push(("cgroup", target, &*hierarchy.fstype, flags, &*hierarchy.options));
    }
    let own = |path: &str| path.to_owned();
    mounts.push(("proc", own("/proc"), "proc", flags, ""));
    // A host of its own has a boot id of its own; /proc/sys otherwise is the machine's, hence
    // read-only but for the network's part, which is per namespace.
    mounts.push(("/run/lab-boot-id", own("/proc/sys/kernel/random/boot_id"), "", bind, ""));
    mounts.push(("/proc/sys", own("/proc/sys"), "", bind | MsFlags::MS_REC, ""));
    mounts.push(("/proc/sys/net", own("/proc/sys/net"), "", bind, ""));
    mounts.push(("", own("/proc/sys"), "", seal | flags, ""));
    if Path::new(SYSRQ).exists() {
        mounts.push((SYSRQ, own(SYSRQ), "", bind, ""));
        mounts.push(("", own(SYSRQ), "", seal | flags, ""));
    }
    let c = |text: &str| CString::new(text);
    mounts
        .into_iter()
        .map(|(source, target, kind, flags, data)| {
            Ok((c(source)?, c(&target)?, c(kind)?, flags, c(data)?))
        })
        .collect()
}

/// In the child, as PID 1 of its namespace: system calls only.
fn in_child(members: &[File], mounts: &[ChildMount]) -> io::Result<()> {
    join(members).inspect_err(|_| complain(c"join control groups"))?;
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    for (source, target, kind, flags, data) in mounts {
        mount(Some(&**source), &**target, Some(&**kind), *flags, Some(&**data))
            .inspect_err(|_| complain(target))?;
    }
    Ok(())
}

/// Says on the console what could not be mounted or done: the caller learns the error number only.
fn complain(what: &std::ffi::CStr) {
    let stderr = io::stderr();
    let _ = nix::unistd::write(stderr.as_fd(), b"lab: failed: ");
    let _ = nix::unistd::write(stderr.as_fd(), what.to_bytes());
    let _ = nix::unistd::write(stderr.as_fd(), b"\n");
}
