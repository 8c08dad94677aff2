//! What the machine must have before a lab can start, and its installation through apt.
//!
//! Docker is deliberately not among it: dockerd runs inside lab hosts only.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::{self, command};
use crate::progress::Progress;

/// Something the machine must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// Builds the root file systems (`debootstrap`).
    Debootstrap,
    /// Configures the lab's network (`ip`, `bridge` from `iproute2`).
    Iproute,
    /// Makes and mounts the limited disks (`mkfs.ext4`, `mount`).
    Disks,
    /// Fetches OpenClaw (`npm`, and the `libatomic1` that its Node needs).
    Npm,
    /// Finds what packages depend on (`dpkg-shlibdeps` from `dpkg-dev`).
    Packaging,
    /// Runs the third-party client (`python3` with `venv`).
    Python,
    /// Logs in to hosts (`ssh`).
    SshClient,
    /// Reads our snapshots, and writes some for us to read (`restic`).
    Restic,
    /// Runs virtual machines (`qemu-system-x86_64`, `ssh`); see [`crate::vm`].
    VirtualMachine,
}

/// What demo and tests need: a lab, the OpenClaw image, our packages.
pub const ALL: [Requirement; 7] = [
    Requirement::Debootstrap,
    Requirement::Iproute,
    Requirement::Disks,
    Requirement::Npm,
    Requirement::Packaging,
    Requirement::SshClient,
    Requirement::Restic,
];

/// How long apt may take, another apt's lock included.
const APT_DEADLINE: Duration = Duration::from_secs(600);

impl Requirement {
    /// The Debian packages that satisfy it.
    #[must_use]
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Debootstrap => &["debootstrap", "debian-archive-keyring"],
            Self::Iproute => &["iproute2"],
            Self::Disks => &["e2fsprogs", "mount"],
            Self::Npm => &["npm", "libatomic1"],
            Self::Packaging => &["dpkg-dev"],
            Self::Python => &["python3-venv"],
            Self::SshClient => &["openssh-client"],
            Self::Restic => &["restic"],
            Self::VirtualMachine => &["qemu-system-x86", "openssh-client"],
        }
    }

    fn is_met(self) -> bool {
        match self {
            Self::Debootstrap => on_path("debootstrap") && Path::new(DEBIAN_KEYRING).exists(),
            Self::Iproute => on_path("ip") && on_path("bridge"),
            Self::Disks => on_path("mkfs.ext4") && on_path("mount"),
            Self::Packaging => on_path("dpkg-shlibdeps"),
            Self::Python => has_venv(),
            Self::SshClient => on_path("ssh"),
            Self::Restic => on_path("restic"),
            Self::VirtualMachine => on_path("qemu-system-x86_64") && on_path("ssh"),
            Self::Npm => on_path("npm") && LIBRARY_DIRS.iter().any(|dir| has_libatomic(dir)),
        }
    }
}

/// Debian's Python has `venv` only with its package; `ensurepip` is what lacks otherwise.
fn has_venv() -> bool {
    let mut probe = command("python3");
    probe.args(["-c", "import ensurepip"]);
    probe.output().is_ok_and(|output| output.status.success())
}

const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LIBRARY_DIRS: [&str; 4] =
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// Fails unless this process is root; `purpose` completes "root is needed to …".
///
/// # Errors
/// When the effective user is not root.
pub fn require_root(purpose: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "root is needed to {purpose}\nhint: run the same command as root, for example with sudo"
        );
    }
    Ok(())
}

/// Which of these the machine lacks.
#[must_use]
pub fn missing(needs: &[Requirement]) -> Vec<Requirement> {
    needs.iter().copied().filter(|need| !need.is_met()).collect()
}

/// Installs through apt-get what of these is missing, telling `progress` what it installs.
///
/// # Errors
/// Without root, without apt-get, when apt-get fails or takes longer than ten minutes.
pub fn ensure(needs: &[Requirement], progress: &dyn Progress) -> Result<()> {
    let lacking = missing(needs);
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = lacking.iter().flat_map(|need| need.packages()).copied().collect();
    let list = packages.join(" ");
    require_root(&format!("install {list}"))?;
    if !on_path("apt-get") {
        bail!("this machine lacks {list}\nhint: only apt-get is known here; install them by hand");
    }
    progress.begin(&format!("apt-get install {list}"));
    let installed = apt(&["update"]).and_then(|()| {
        apt(&[&["install", "--yes", "--no-install-recommends"], &*packages].concat())
    });
    progress.end();
    installed.with_context(|| format!("cannot install {list}"))?;
    match missing(needs).as_slice() {
        [] => Ok(()),
        still => bail!("apt-get installed {list}, yet {still:?} is not met"),
    }
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut apt = command("apt-get");
    apt.args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    process::run(apt, APT_DEADLINE).map(drop)
}

/// Whether there is such a program.
pub(crate) fn on_path(program: &str) -> bool {
    process::search_path().into_iter().any(|dir| dir.join(program).is_file())
}

fn has_libatomic(dir: &str) -> bool {
    Path::new(dir).join("libatomic.so.1").exists()
}
