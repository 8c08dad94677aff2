//! A lab host: one Debian with systemd, dockerd, sshd and nginx.
//!
//! Its life (create, boot, stop, drop) is here; `commands` runs and copies things on it, `power`
//! stops and starts it, `link` cuts its network.

mod commands;
mod link;
mod power;

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use crate::boot::Boot;
use crate::cache::remove_tree;
use crate::cgroup::Subtree;
use crate::guest::Guest;
use crate::lab::Shared;
use crate::netns::Netns;
use crate::process::{self, command, read_lossy};
use crate::{Image, Process, Suite, docker_data, requirements};

pub(crate) use commands::APT_INSTALL;
pub use link::Cut;
pub use power::StopCause;

/// What a host is to be.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Host name; unique in its lab, and a valid Linux host name.
    pub name: String,
    /// Debian release.
    pub suite: Suite,
    /// Images that its Docker has from the start.
    pub images: Vec<Image>,
    /// When set, `/var/lib/clawd` is a disk of this many MiB (ext4) of its own.
    pub clawd_disk_mib: Option<u32>,
}

/// A booted host. Dropping it cuts its power and removes its state.
#[derive(Debug)]
pub struct LabHost {
    options: HostOptions,
    index: u8,
    dir: PathBuf,
    base: PathBuf,
    power: Mutex<Option<Arc<Running>>>,
    cut: Mutex<Option<Cut>>,
    lab: Arc<Shared>,
}

/// A host that is on.
#[derive(Debug)]
struct Running {
    init: Process,
    subtree: Subtree,
    // Held so that the network exists before and after PID 1 does.
    netns: Netns,
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

    /// With another Debian release.
    #[must_use]
    pub fn with_suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// With a disk of its own for `/var/lib/clawd`, of this many MiB.
    #[must_use]
    pub fn with_clawd_disk(mut self, mib: u32) -> Self {
        self.clawd_disk_mib = Some(mib);
        self
    }
}

impl LabHost {
    /// Prepares the host's state and boots it.
    pub(crate) fn create(lab: Arc<Shared>, options: HostOptions) -> Result<Self> {
        let valid = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if options.name.is_empty() || options.name.len() > 63 || !options.name.chars().all(valid) {
            bail!("{:?} is no host name", options.name);
        }
        let base = lab.cache.base(options.suite)?;
        let index = lab.enter_host(&options.name)?;
        let dir = lab.run.dir().join("hosts").join(&options.name);
        let (power, cut) = (Mutex::default(), Mutex::default());
        let host = Self { options, index, dir, base, power, cut, lab };
        host.prepare().with_context(|| format!("cannot prepare host {}", host.options.name))?;
        host.boot_again()?;
        Ok(host)
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its address on the lab's internet.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.index)
    }

    /// Its IPv6 address on the lab's internet.
    #[must_use]
    pub fn address_v6(&self) -> Ipv6Addr {
        // ::11 for .11: read alike.
        let spelt = format!("2001:db8:100::{}", self.index);
        spelt.parse().unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    /// The process id of its PID 1 on the machine, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.power().as_ref().and_then(|running| running.init.with_pid(|pid| pid))
    }

    /// The network namespace of this boot, while it runs.
    ///
    /// # Errors
    /// When it is off.
    pub fn netns(&self) -> Result<Netns> {
        Ok(self.running()?.netns.clone())
    }

    /// What PID 1 wrote to the console, all boots.
    #[must_use]
    pub fn console(&self) -> String {
        read_lossy(&self.dir.join("console.log"))
    }

    /// Directories, files that differ from host to host, Docker's data.
    fn prepare(&self) -> Result<()> {
        for dir in ["upper/etc", "work", "root"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        let name = &self.options.name;
        let etc = self.dir.join("upper/etc");
        fs::write(etc.join("hostname"), format!("{name}\n"))?;
        fs::write(
            etc.join("hosts"),
            format!("127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost\n"),
        )?;
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
        fs::write(etc.join("machine-id"), random.replace('-', ""))?;
        if let Some(mib) = self.options.clawd_disk_mib {
            requirements::ensure(&[requirements::Requirement::Disks], self.lab.cache.progress())?;
            let image = self.disk();
            fs::File::create(&image)?.set_len(u64::from(mib) << 20)?;
            let mut mkfs = command("mkfs.ext4");
            mkfs.args(["-q", "-m", "0"]).arg(image);
            process::run(mkfs, std::time::Duration::from_secs(60))?;
        }
        let images = &self.options.images;
        docker_data::provide(&self.lab.cache, self.options.suite, images, &self.docker_dir())
    }

    /// Docker's data directory, as a directory of the machine.
    pub(crate) fn docker_dir(&self) -> PathBuf {
        self.dir.join("docker")
    }

    fn disk(&self) -> PathBuf {
        self.dir.join("clawd.ext4")
    }

    /// Starts PID 1; the caller holds the power switch.
    fn start(&self) -> Result<Running> {
        let subtree = Subtree::create(&self.lab.run.group(&self.options.name))?;
        let netns = self.plug()?;
        let boot = Boot {
            hostname: self.options.name.clone(),
            base: self.base.clone(),
            dir: self.dir.clone(),
            clawd_disk: self.options.clawd_disk_mib.map(|_| self.disk()),
            netns: netns.clone(),
        };
        let init = boot.start(&subtree, self.dir.join("console.log")).with_context(|| {
            format!("cannot boot host {}\n{}", self.options.name, self.console())
        })?;
        Ok(Running { init, subtree, netns })
    }

    fn power(&self) -> MutexGuard<'_, Option<Arc<Running>>> {
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running host.
    fn running(&self) -> Result<Arc<Running>> {
        let running = self.power().clone();
        running
            .filter(|running| running.init.is_running())
            .with_context(|| format!("host {} is off", self.options.name))
    }

    fn guest(&self, running: &Running) -> Result<Guest> {
        running
            .init
            .with_pid(Guest::of)
            .with_context(|| format!("host {} just stopped", self.options.name))?
    }
}

impl Drop for LabHost {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next start.
        let _ = self.power_cut();
        let _ = remove_tree(&self.dir);
        self.lab.leave_host(&self.options.name);
    }
}
