//! The disk that every machine starts as a copy of, with the kernel that boots it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache::{Cache, remove_tree, sha256};
use crate::process::{self, command};
use crate::rootfs::{self, Suite};

const KIND: &str = "vm";
/// Bases that are kept.
const KEPT: usize = 2;
/// Raised when `finish` changes, so that cached bases are made anew.
const VERSION: u32 = 1;
const SUITE: Suite = Suite::Bookworm;
const DISK: &str = "root.ext4";
/// Sparse: what nothing is written to takes no room.
const DISK_SIZE: &str = "6G";
const LABEL: &str = "root";
/// How long a gigabyte of small files may take to be packed on a busy machine.
const PACKING: Duration = Duration::from_secs(300);

/// What a machine has that a lab host takes from the machine it runs on. Docker needs AppArmor's
/// parser where the kernel has AppArmor, as Debian's has.
const MACHINE_PACKAGES: [&str; 5] =
    ["apparmor", "e2fsprogs", "initramfs-tools", "linux-image-cloud-amd64", "udev"];

/// Units that only cost time here.
const MASKED: [&str; 5] = [
    "e2scrub_reap.service",
    "getty-static.service",
    "getty.target",
    "systemd-firstboot.service",
    "systemd-pstore.service",
];

/// A cached base.
#[derive(Clone, Debug)]
pub(super) struct Base {
    /// Key of its entry in the cache.
    key: String,
    /// Root file system, ext4, labelled `root`; never written to.
    pub(super) disk: PathBuf,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl Base {
    /// Name of the lock whose sharing keeps the base from being pruned.
    pub(super) fn lock(&self) -> String {
        format!("{KIND}-{}", self.key)
    }
}

/// The base, from the cache or built.
pub(super) fn provide(cache: &Cache) -> Result<Base> {
    let packages = [SUITE.host_packages(), MACHINE_PACKAGES.to_vec()].concat();
    let recipe = format!("{VERSION} {DISK_SIZE} {MASKED:?} {packages:?}");
    let digest = sha256(recipe.as_bytes())?;
    let key = format!("{}-{}", SUITE.code_name(), digest.get(..12).unwrap_or(&digest));
    let entry = cache.entry(KIND, &key, |partial| build(cache, &packages, partial))?;
    cache.prune(KIND, KEPT)?;
    Ok(Base {
        key,
        disk: entry.join(DISK),
        kernel: entry.join("vmlinuz"),
        initrd: entry.join("initrd.img"),
    })
}

fn build(cache: &Cache, packages: &[&str], target: &Path) -> Result<()> {
    let root = target.join("root");
    rootfs::debootstrap(cache, "vm", SUITE.code_name(), packages, &root)?;
    rootfs::finish(&root, &MASKED)?;
    finish(&root)?;
    for name in ["vmlinuz", "initrd.img"] {
        let versioned = newest(&root.join("boot"), name)?;
        fs::copy(&versioned, target.join(name))
            .with_context(|| format!("cannot copy {}", versioned.display()))?;
    }
    cache.progress().begin("pack the virtual machine's disk");
    let packed = pack(&root, &target.join(DISK));
    cache.progress().end();
    packed?;
    remove_tree(&root)
}

/// What a VPS provider's installer does: mounts, network, remote access with keys only.
fn finish(root: &Path) -> Result<()> {
    let etc = root.join("etc");
    fs::write(etc.join("fstab"), format!("LABEL={LABEL} / ext4 defaults,noatime 0 1\n"))?;
    let wanted = etc.join("systemd/system/multi-user.target.wants/systemd-networkd.service");
    symlink("/lib/systemd/system/systemd-networkd.service", wanted)?;
    for entry in fs::read_dir(etc.join("ssh"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(entry.path())?;
        }
    }
    let sshd = "HostKey /etc/ssh/ssh_host_ed25519_key\nPasswordAuthentication no\nUseDNS no\n";
    fs::write(etc.join("ssh/sshd_config.d/lab.conf"), sshd).context("cannot configure sshd")
}

/// The file `NAME-VERSION` of a directory; there is one kernel.
fn newest(dir: &Path, name: &str) -> Result<PathBuf> {
    let prefix = format!("{name}-");
    let fits = |path: &PathBuf| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix))
    };
    let found = fs::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.path()).filter(fits);
    found.max().with_context(|| format!("there is no {name} in {}", dir.display()))
}

/// Makes a file system image of a directory (`man 8 mke2fs`).
fn pack(root: &Path, disk: &Path) -> Result<()> {
    let mut mke2fs = command("mke2fs");
    // Nothing is left for the machine's own kernel to initialise later.
    mke2fs.args(["-q", "-t", "ext4", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
    mke2fs.args(["-L", LABEL, "-d"]).arg(root).arg(disk).arg(DISK_SIZE);
    process::run(mke2fs, PACKING).map(drop)
}
