//! The packages under test, as `cargo xtask test` built them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::{Cache, Image, command, images};

/// Path of the agent's .deb.
pub const CLAWD_DEB: &str = "CLAW_TEST_CLAWD_DEB";
/// Path of the coordinator's .deb.
pub const COORDINATOR_DEB: &str = "CLAW_TEST_COORDINATOR_DEB";
/// Path of clawctl's .deb.
pub const CLAWCTL_DEB: &str = "CLAW_TEST_CLAWCTL_DEB";
/// Path of the static fake gateway.
pub const FAKE_GATEWAY: &str = "CLAW_TEST_FAKE_GATEWAY";
/// Path of a Python with grpcio.
pub const PYTHON: &str = "CLAW_TEST_PYTHON";

/// Packages and programs under test.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The agent's package.
    pub clawd_deb: PathBuf,
    /// The coordinator's package.
    pub coordinator_deb: PathBuf,
    /// clawctl's package.
    pub clawctl_deb: PathBuf,
}

impl Programs {
    /// Those that `cargo xtask test` built.
    ///
    /// # Errors
    /// When the tests were started in another way.
    pub fn of_tests() -> Result<Self> {
        Ok(Self {
            clawd_deb: variable(CLAWD_DEB)?,
            coordinator_deb: variable(COORDINATOR_DEB)?,
            clawctl_deb: variable(CLAWCTL_DEB)?,
        })
    }

    /// Unpacks a package and returns the program in it: what runs is what is shipped.
    ///
    /// # Errors
    /// When dpkg-deb refuses the package.
    pub fn unpack(package: &Path, program: &str, into: &Path) -> Result<PathBuf> {
        let mut unpack = command("dpkg-deb");
        unpack.arg("--extract").arg(package).arg(into);
        let output = unpack.output().context("cannot run dpkg-deb")?;
        anyhow::ensure!(
            output.status.success(),
            "cannot unpack {}: {}",
            package.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(into.join("usr/bin").join(program))
    }
}

/// The fake gateway's image.
///
/// # Errors
/// When the tests were not started by `cargo xtask test`.
pub fn fake_image(cache: &Cache, tag: &str) -> Result<Image> {
    images::fake_gateway(cache, &variable(FAKE_GATEWAY)?, tag)
}

/// A path that `cargo xtask test` passes on.
///
/// # Errors
/// When it is not set.
pub fn variable(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .with_context(|| format!("{name} is not set; hint: run the tests with cargo xtask test"))
}

/// How long a unit, a join or an instance may take here: generous, because nothing is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A Python with grpcio and an S3.
///
/// # Errors
/// When the tests were started in another way.
pub fn python() -> Result<PathBuf> {
    variable(PYTHON)
}
