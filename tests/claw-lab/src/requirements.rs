//! What the machine must have before a lab can start, and its installation through apt.
use anyhow::Result;

use crate::progress::Progress;

/// Something the machine must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Requirement {
    /// Builds the root file systems (`debootstrap`).
    Debootstrap,
    /// Configures the lab's network (`ip`, `bridge` from `iproute2`).
    Iproute,
    /// Formats the limited disks (`mkfs.ext4` from `e2fsprogs`, `mount` and `losetup`).
    Disks,
    /// Fetches OpenClaw (`npm`, and the `libatomic1` that its Node needs).
    Npm,
}

/// What a lab needs, the OpenClaw image included.
pub const ALL: [Requirement; 4] =
    [Requirement::Debootstrap, Requirement::Iproute, Requirement::Disks, Requirement::Npm];

/// Fails unless this process is root; `purpose` completes "root is needed to …".
///
/// # Errors
/// When the effective user is not root.
pub fn require_root(purpose: &str) -> Result<()> {
    anyhow::bail!("root is needed to {purpose}")
}

/// Which of these the machine lacks.
#[must_use]
pub fn missing(needs: &[Requirement]) -> Vec<Requirement> {
    needs.to_vec()
}

/// Installs through apt-get what of these is missing, telling `progress` what it installs.
///
/// # Errors
/// Without root, without apt-get, when apt-get fails or takes longer than ten minutes.
pub fn ensure(needs: &[Requirement], progress: &dyn Progress) -> Result<()> {
    progress.detail(&format!("{needs:?}"));
    anyhow::bail!("cannot install")
}
