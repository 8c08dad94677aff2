//! The host's resources and those of its containers, from the kernel's own files.
//!
//! What it is for: numbers cheap enough to be read every few seconds for every instance. No Docker
//! `stats`, no walk over processes; one container costs six small reads.
//!
//! What it deliberately does not do: judge numbers, keep histories. What the kernel does not say is
//! 0 or absent, never guessed. Where to start: [`Machine`]; formats are in `proc` and `cgroup`.

mod cgroup;
mod proc;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use claw_core::report::{HostResources, Usage};
use sysinfo::{MemoryRefreshKind, System};

use crate::ports::Host;
use proc::CpuTimes;

/// The machine that the agent runs on.
#[derive(Debug)]
pub struct Machine {
    proc: PathBuf,
    cgroups: PathBuf,
    data: PathBuf,
    state: Mutex<State>,
}

/// What is kept between two looks.
#[derive(Debug)]
struct State {
    /// Absent where /proc is.
    system: Option<System>,
    cpu: CpuTimes,
}

impl Machine {
    /// The machine, with `data` on the file system whose space is reported.
    #[must_use]
    pub fn new(data: PathBuf) -> Self {
        Self::with_roots(data, PathBuf::from("/proc"), PathBuf::from("/sys/fs/cgroup"))
    }

    /// Like [`new`](Self::new), with other places for `/proc` and `/sys/fs/cgroup`.
    #[must_use]
    pub fn with_roots(data: PathBuf, proc: PathBuf, cgroups: PathBuf) -> Self {
        let state = State { system: System::new().ok(), cpu: CpuTimes::default() };
        let machine = Self { proc, cgroups, data, state: Mutex::new(state) };
        // The first report then says something about CPU, too.
        machine.cpu_permille();
        machine
    }

    fn read(&self, name: &str) -> String {
        read(&self.proc.join(name)).unwrap_or_default()
    }

    fn cpu_permille(&self) -> (u32, u32) {
        let text = self.read("stat");
        let now = proc::cpu_times(&text);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let permille = now.permille_since(state.cpu);
        state.cpu = now;
        (proc::cpu_count(&text), permille)
    }

    fn memory(&self) -> (u64, u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(system) = &mut state.system else { return (0, 0) };
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        (system.total_memory(), system.available_memory())
    }

    /// Bytes in all and bytes that root may still use.
    fn disk(&self) -> (u64, u64) {
        let Ok(disk) = nix::sys::statvfs::statvfs(&self.data) else { return (0, 0) };
        let block = disk.fragment_size();
        (disk.blocks().saturating_mul(block), disk.blocks_available().saturating_mul(block))
    }
}

impl Host for Machine {
    fn boot_id(&self) -> String {
        self.read("sys/kernel/random/boot_id").trim().to_owned()
    }

    fn kernel_version(&self) -> String {
        System::kernel_version().unwrap_or_default()
    }

    fn resources(&self) -> HostResources {
        let (cpu_count, cpu_permille) = self.cpu_permille();
        let (memory_total_bytes, memory_available_bytes) = self.memory();
        let (disk_total_bytes, disk_available_bytes) = self.disk();
        let pressure = |name| proc::pressure(&self.read(name));
        let pressures = pressure("pressure/cpu")
            .zip(pressure("pressure/memory"))
            .zip(pressure("pressure/io"))
            .map(|((cpu, memory), io)| [cpu, memory, io]);
        HostResources {
            memory_total_bytes,
            memory_available_bytes,
            cpu_count,
            cpu_permille,
            load_centi: proc::load(&self.read("loadavg")),
            disk_total_bytes,
            disk_available_bytes,
            pressure: pressures,
            uptime: Duration::from_secs(System::uptime().unwrap_or(0)),
        }
    }

    fn usage(&self, pid: u32) -> Option<Usage> {
        let membership = read(&self.proc.join(pid.to_string()).join("cgroup"))?;
        cgroup::usage(&self.cgroups, &membership)
    }
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_resources() {
        let machine = Machine::new(PathBuf::from("/"));
        let first = machine.resources();
        assert!(first.memory_total_bytes >= first.memory_available_bytes);
        assert!(first.memory_available_bytes > 0);
        assert!(first.cpu_count > 0 && first.cpu_permille <= 1000);
        assert!(first.disk_total_bytes >= first.disk_available_bytes);
        assert!(first.disk_available_bytes > 0);
        assert!(first.uptime > Duration::ZERO);
        assert_eq!(machine.boot_id().len(), 36, "a UUID");
        assert!(!machine.kernel_version().is_empty());
    }

    #[test]
    fn a_machine_that_says_nothing_is_reported_as_nothing() {
        let nowhere = PathBuf::from("/does/not/exist");
        let machine = Machine::with_roots(nowhere.clone(), nowhere.clone(), nowhere);
        let resources = machine.resources();
        assert_eq!((resources.cpu_count, resources.disk_total_bytes), (0, 0));
        assert_eq!(resources.pressure, None);
        assert_eq!(machine.usage(1), None);
        assert_eq!(machine.boot_id(), "");
    }
}
