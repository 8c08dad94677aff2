//! A virtual machine on the lab's internet: a whole Debian 12 with a kernel of its own, for what
//! namespaces cannot show (control groups v2 on any machine, a real boot, a real power cut).
//!
//! Start at [`Vm::boot`]. The processor is emulated (qemu's TCG: works wherever qemu does, and is ten
//! to thirty times slower than the machine's own), so give everything in it minutes. Below here,
//! `base` makes the disk that is cached, `disk` a machine's own copy of it, `qemu` the emulator's
//! command line, `ssh` the way in, `commands` what one does there.
//!
//! It deliberately knows one release of Debian and one architecture, and leaves the machine's own
//! network alone: its cable is a tap device on the lab's bridge.

mod base;
mod commands;
mod disk;
mod qemu;
mod ssh;

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::base::Base;
use self::disk::Identity;
use self::ssh::{Keys, Session};
use crate::cache::remove_tree;
use crate::deadline::Deadline;
use crate::lab::Shared;
use crate::process::read_lossy;
use crate::requirements::{self, Requirement};
use crate::{Lab, Process};

/// How long a boot may take until sshd answers: ten times what it takes on two idle cores.
const BOOT: Duration = Duration::from_secs(300);
/// How long an orderly shutdown may take: systemd's own limit for a stop job, and some.
const SHUTDOWN: Duration = Duration::from_secs(150);
/// Between two attempts to get in.
const PAUSE: Duration = Duration::from_millis(500);

/// What a virtual machine is to be.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// Host name; unique in its lab among hosts too, and a valid Linux host name.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Number of processors.
    pub processors: u8,
}

/// A virtual machine. Dropping it cuts its power and removes its disk.
#[derive(Debug)]
pub struct Vm {
    options: VmOptions,
    index: u8,
    dir: PathBuf,
    base: Base,
    keys: Keys,
    power: Option<Running>,
    lab: Arc<Shared>,
}

/// A machine that is on.
#[derive(Debug)]
struct Running {
    session: Session,
    /// The kernel's id of this boot.
    boot_id: String,
    qemu: Process,
}

impl VmOptions {
    /// Two processors and 2 GiB of memory.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), memory_mib: 2048, processors: 2 }
    }
}

impl Vm {
    /// Makes a machine and boots it; returns when its sshd lets us in (half a minute on idle cores).
    /// The first time ever its base is built, which takes two minutes more.
    ///
    /// # Errors
    /// Without root, on another architecture than `x86_64`, when the name is taken, and when the
    /// machine does not boot within five minutes; the error then shows its console.
    pub fn boot(lab: &Lab, options: VmOptions) -> Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("virtual machines are known for x86_64 only");
        }
        let lab = Arc::clone(lab.shared());
        let progress = lab.cache.progress();
        requirements::ensure(&[Requirement::VirtualMachine, Requirement::Disks], progress)?;
        let base = base::provide(&lab.cache)?;
        let index = lab.enter_host(&options.name)?;
        let dir = lab.run.dir().join("vms").join(&options.name);
        fs::create_dir_all(&dir)?;
        let keys = Keys::create(&dir, address(index))?;
        let mut vm = Self { options, index, dir, base, keys, power: None, lab };
        vm.prepare().with_context(|| format!("cannot prepare machine {}", vm.name()))?;
        vm.boot_again()?;
        Ok(vm)
    }

    /// Its host name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// Its address on the lab's internet.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        address(self.index)
    }

    /// Its IPv6 address on the lab's internet.
    #[must_use]
    pub fn address_v6(&self) -> Ipv6Addr {
        // ::11 for .11: read alike.
        let spelt = format!("2001:db8:100::{}", self.index);
        spelt.parse().unwrap_or(Ipv6Addr::UNSPECIFIED)
    }

    /// What kernel and systemd wrote to the serial console, all boots.
    #[must_use]
    pub fn console(&self) -> String {
        read_lossy(&self.dir.join(qemu::CONSOLE))
    }

    /// The kernel's id of this boot; another one after every boot.
    ///
    /// # Errors
    /// When it is off.
    pub fn boot_id(&self) -> Result<&str> {
        self.running().map(|running| running.boot_id.as_str())
    }

    /// Kills the emulator: what the kernel has not written to the disk is lost.
    ///
    /// # Errors
    /// When the emulator does not die.
    pub fn power_cut(&mut self) -> Result<()> {
        self.power.take().map_or(Ok(()), |running| running.qemu.kill().map(drop))
    }

    /// Boots it again on its own disk, after a power cut.
    ///
    /// # Errors
    /// When it is on, and as [`boot`](Self::boot).
    pub fn boot_again(&mut self) -> Result<()> {
        if self.power.is_some() {
            bail!("machine {} is on", self.name());
        }
        let qemu = qemu::start(self)?;
        let deadline = Deadline::after(BOOT);
        let (session, boot_id) = self.enter(&qemu, "", deadline)?;
        self.power = Some(Running { session, boot_id, qemu });
        Ok(())
    }

    /// `systemctl reboot`: shuts down in order and boots again; returns when sshd lets us in again.
    ///
    /// # Errors
    /// When it is off, or has not booted anew after seven and a half minutes.
    pub fn reboot(&mut self) -> Result<()> {
        // The connection breaks while the command runs; what counts is the next boot.
        let _ = self.exec(&["systemctl", "--no-wall", "reboot"]);
        let before = self.power.take();
        let Running { session, boot_id, qemu } = before.with_context(|| self.about("is off"))?;
        drop(session);
        let (session, boot_id) = self.enter(&qemu, &boot_id, Deadline::after(SHUTDOWN + BOOT))?;
        self.power = Some(Running { session, boot_id, qemu });
        Ok(())
    }

    /// The disk, and the cable.
    fn prepare(&self) -> Result<()> {
        let identity = Identity {
            name: self.name(),
            address: self.address(),
            address_v6: self.address_v6(),
            keys: &self.keys,
        };
        disk::create(&self.base, &self.lab.cache, &self.dir, &identity)?;
        let port = self.port();
        self.lab.internet.ip(&format!(
            "tuntap add dev {port} mode tap\n\
             link set {port} master br0 up\n"
        ))
    }

    /// Tries to get in until the boot is another one than `before`.
    fn enter(&self, qemu: &Process, before: &str, deadline: Deadline) -> Result<(Session, String)> {
        let mut last = anyhow::anyhow!("not tried");
        let mut entered = None;
        deadline.poll(PAUSE, || {
            match Session::open(&self.keys, &self.lab.internet) {
                Ok((_, boot_id)) if boot_id == before => {
                    last = anyhow::anyhow!("it has not shut down");
                }
                Ok(found) => entered = Some(found),
                Err(error) => last = error,
            }
            entered.is_some() || !qemu.is_running()
        });
        entered.ok_or(last).with_context(|| {
            let ended = if qemu.is_running() { "" } else { "; the emulator has ended" };
            format!(
                "cannot get into machine {} after {:.0} s{ended}\n{}\n{}",
                self.name(),
                deadline.elapsed().as_secs_f32(),
                qemu.log(),
                tail(&self.console(), 40)
            )
        })
    }

    fn running(&self) -> Result<&Running> {
        let running = self.power.as_ref().filter(|running| running.qemu.is_running());
        running.with_context(|| self.about("is off"))
    }

    /// Its end of the cable in the lab's internet.
    fn port(&self) -> String {
        format!("vm{}", self.index)
    }

    fn about(&self, what: &str) -> String {
        format!("machine {} {what}", self.name())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // What cannot be removed now goes with the lab.
        let _ = self.power_cut();
        let _ = self.lab.internet.ip(&format!("link del {}\n", self.port()));
        let _ = remove_tree(&self.dir);
        self.lab.leave_host(&self.options.name);
    }
}

fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, index)
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
