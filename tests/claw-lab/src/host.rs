//! A lab host: one Debian with systemd, dockerd, sshd and nginx.
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::{Image, Process, Suite};

/// What a host is to be.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Host name; unique in its lab.
    pub name: String,
    /// Debian release.
    pub suite: Suite,
    /// Images that its Docker has from the start.
    pub images: Vec<Image>,
    /// When set, `/var/lib/clawd` is a disk of this many MiB (ext4) of its own.
    pub clawd_disk_mib: Option<u32>,
}

impl HostOptions {
    /// A bookworm host without images or limits.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            suite: Suite::default(),
            images: Vec::new(),
            clawd_disk_mib: None,
        }
    }

    /// With an image in its Docker.
    #[must_use]
    pub fn with_image(mut self, image: &Image) -> Self {
        self.images.push(image.clone());
        self
    }
}

/// How a host's network is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The cable is pulled: the host's interface loses its carrier.
    Link,
    /// Packets vanish in both directions and nobody is told: connections stay half-open.
    Silent,
}

/// Why a host stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StopCause {
    /// It shut down and powered off.
    PowerOff,
    /// It shut down and asked for a reboot.
    Reboot,
    /// Its power was cut.
    PowerCut,
    /// Its PID 1 ended otherwise.
    Crash,
}

/// What a command on a host came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it.
    pub status: i32,
    /// Standard output, lossy UTF-8.
    pub stdout: String,
    /// Standard error, lossy UTF-8.
    pub stderr: String,
}

/// A booted host. Dropping it cuts its power and removes its state.
#[derive(Debug)]
pub struct LabHost {
    name: String,
    index: u8,
    pid: i32,
}

impl LabHost {
    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the lab's internet.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.index)
    }

    /// Its IPv6 address on the lab's internet.
    #[must_use]
    pub fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, u16::from(self.index))
    }

    /// The process id of its PID 1 on the machine, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        Some(self.pid)
    }

    /// Runs a command as root on the host and waits for its end, 60 s at most.
    ///
    /// # Errors
    /// When the host is off, the program is not there, or the deadline passes (it is then killed).
    /// An exit status other than 0 is no error.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        anyhow::bail!("{argv:?}")
    }

    /// Like [`exec`](Self::exec) with a deadline and bytes for stdin.
    ///
    /// # Errors
    /// As for `exec`.
    pub fn exec_with(&self, argv: &[&str], stdin: &[u8], deadline: Duration) -> Result<Output> {
        anyhow::bail!("{argv:?} {stdin:?} {deadline:?}")
    }

    /// Runs a command that must succeed and returns its stdout without trailing white space.
    ///
    /// # Errors
    /// As for `exec`, and when it exits with another status than 0; the error then shows its output.
    pub fn exec_ok(&self, argv: &[&str]) -> Result<String> {
        anyhow::bail!("{argv:?}")
    }

    /// Starts a command as root on the host without waiting for it; output goes to a log file.
    ///
    /// # Errors
    /// When the host is off or the program is not there.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        anyhow::bail!("{argv:?}")
    }

    /// Writes a file (absolute path), creating its directory; mode in octal, owner root.
    ///
    /// # Errors
    /// When the host is off or the file cannot be written.
    pub fn write_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        anyhow::bail!("{path} {mode} {content:?}")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When the host is off or the file cannot be read.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        anyhow::bail!("{path}")
    }

    /// Copies a file of the machine to a path of the host, its mode kept.
    ///
    /// # Errors
    /// When the host is off, or reading or writing fails.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        anyhow::bail!("{from:?} {to}")
    }

    /// Installs Debian packages (files of the machine) as a user would: `apt-get install ./x.deb`,
    /// offline.
    ///
    /// # Errors
    /// When a dependency is not in the base system or a maintainer script fails.
    pub fn install_deb(&self, packages: &[PathBuf]) -> Result<()> {
        anyhow::bail!("{packages:?}")
    }

    /// Waits until a unit is active.
    ///
    /// # Errors
    /// When the deadline passes or the host stops; shows the unit's state and journal.
    pub fn wait_until_active(&self, unit: &str, deadline: Duration) -> Result<()> {
        anyhow::bail!("{unit} {deadline:?}")
    }

    /// The journal of a unit, this boot only.
    ///
    /// # Errors
    /// When the host is off.
    pub fn journal(&self, unit: &str) -> Result<String> {
        anyhow::bail!("{unit}")
    }

    /// What PID 1 wrote to the console, all boots.
    #[must_use]
    pub fn console(&self) -> String {
        String::new()
    }

    /// Shuts down in order, as the power button does; after 90 s the power is cut.
    ///
    /// # Errors
    /// When it does not even die of that.
    pub fn power_off(&self) -> Result<StopCause> {
        anyhow::bail!("power off")
    }

    /// Kills PID 1 and with it everything on the host, at once.
    ///
    /// # Errors
    /// When it does not die.
    pub fn power_cut(&self) -> Result<()> {
        anyhow::bail!("power cut")
    }

    /// Boots the host again on its own state.
    ///
    /// # Errors
    /// When it still runs or PID 1 cannot be started.
    pub fn boot_again(&self) -> Result<()> {
        anyhow::bail!("boot again")
    }

    /// `systemctl reboot`: shuts down in order and boots again; returns when the new PID 1 runs.
    ///
    /// # Errors
    /// When the shutdown takes more than 90 s or the boot fails.
    pub fn reboot(&self) -> Result<()> {
        anyhow::bail!("reboot")
    }

    /// Waits until the host stops by itself, for example after `systemctl poweroff`.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub fn wait_for_stop(&self, deadline: Duration) -> Result<StopCause> {
        anyhow::bail!("{deadline:?}")
    }

    /// Cuts its network.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, how: Cut) -> Result<()> {
        anyhow::bail!("{how:?}")
    }

    /// Undoes every cut.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self) -> Result<()> {
        anyhow::bail!("heal")
    }
}
