//! A machine's own disk: a copy of the base, with the few files that differ from machine to machine.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};

use super::base::Base;
use super::ssh::Keys;
use crate::cache::Cache;
use crate::netns::on_own_thread;
use crate::process::{self, command, private_mounts};

/// The disk within the machine's directory.
pub(super) const DISK: &str = "disk.img";

/// How long a gigabyte may take to be copied on a busy machine.
const COPYING: Duration = Duration::from_secs(300);

/// What tells one machine from another.
#[derive(Debug)]
pub(super) struct Identity<'a> {
    pub(super) name: &'a str,
    pub(super) address: Ipv4Addr,
    pub(super) address_v6: Ipv6Addr,
    pub(super) keys: &'a Keys,
}

/// A file to write: path below the root, mode, content.
type Content = (&'static str, u32, String);

/// Copies the base into `dir` and gives it its identity.
pub(super) fn create(base: &Base, cache: &Cache, dir: &Path, own: &Identity<'_>) -> Result<()> {
    let disk = dir.join(DISK);
    let _lock = cache.lock_shared(&base.lock())?;
    let mut copy = command("cp");
    copy.args(["--sparse=always", "--reflink=auto"]).arg(&base.disk).arg(&disk);
    process::run(copy, COPYING)?;
    let files = own.files()?;
    let inside = dir.join("mnt");
    fs::create_dir_all(&inside)?;
    // In a mount namespace that ends with the thread: nothing stays mounted, whatever fails.
    on_own_thread(|| write(&disk, &inside, &files))?
}

impl Identity<'_> {
    fn files(&self) -> Result<Vec<Content>> {
        let (name, keys) = (self.name, self.keys);
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        Ok(vec![
            ("etc/hostname", 0o644, format!("{name}\n")),
            ("etc/hosts", 0o644, format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n")),
            ("etc/machine-id", 0o444, random.replace('-', "")),
            ("etc/systemd/network/10-lab.network", 0o644, self.network()),
            ("etc/ssh/ssh_host_ed25519_key", 0o600, keys.host_private()?),
            ("root/.ssh/authorized_keys", 0o600, keys.user_public()?),
        ])
    }

    /// `man 5 systemd.network`.
    fn network(&self) -> String {
        format!(
            "[Match]\nName=eth0\n\n\
             [Network]\nAddress={}/24\nAddress={}/64\n\
             Gateway=198.51.100.1\nGateway=2001:db8:100::1\n\
             LinkLocalAddressing=ipv6\nIPv6AcceptRA=no\n",
            self.address, self.address_v6
        )
    }
}

fn write(disk: &Path, inside: &Path, files: &[Content]) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot create a mount namespace")?;
    private_mounts()?;
    // mount(8) finds a free loop device, which goes with the mount.
    let mounted = command("mount").args(["-o", "loop"]).arg(disk).arg(inside).output()?;
    if !mounted.status.success() {
        bail!("cannot mount the disk: {}", String::from_utf8_lossy(&mounted.stderr));
    }
    for (path, mode, content) in files {
        put(&inside.join(path), *mode, content).with_context(|| format!("cannot write {path}"))?;
    }
    umount2(inside, MntFlags::empty()).context("cannot unmount the disk")
}

fn put(path: &Path, mode: u32, content: &str) -> Result<()> {
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Into::into)
}
