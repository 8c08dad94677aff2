//! A fake of every port, for tests: a machine in memory that behaves as the contract suites say, and
//! fails on demand.
//!
//! All parts of one [`FakeMachine`] share their state, and clones share it too: a second agent finds the
//! machine as the first one left it.
//!
//! Where to start: [`FakeMachine::new`], then [`Mishaps`] for failures.

mod carry;
mod clock;
mod files;
mod firewall;
mod gateway;
mod host;
mod mishap;
mod proxy;
mod runtime;
mod snapshots;
mod volumes;

use crate::machine::Ports;

pub use carry::{FakeStorage, Reach};
pub use clock::FakeClock;
pub use files::{FakeData, FakeFiles};
pub use firewall::{FakeFirewall, FakeLoginLog, FakeResolver, FakeUplink};
pub use gateway::{FakeGateway, FakeSuspended};
pub use host::FakeHost;
pub use mishap::{Mishap, Mishaps};
pub use proxy::FakeProxy;
pub use runtime::{FakeRuntime, TrialOutcome};
pub use snapshots::FakeSnapshots;
pub use volumes::FakeVolumes;

/// A machine in memory.
pub type FakeMachine = Ports<
    FakeRuntime,
    FakeFiles,
    FakeProxy,
    FakeGateway,
    FakeHost,
    FakeClock,
    FakeFirewall,
    FakeLoginLog,
    FakeResolver,
    FakeUplink,
    FakeVolumes,
    FakeSnapshots,
>;

impl FakeMachine {
    /// An empty machine on which `images` can be pulled.
    #[must_use]
    pub fn new(images: &[&str]) -> Self {
        let (mishaps, clock) = (Mishaps::default(), FakeClock::default());
        let runtime = FakeRuntime::new(images, mishaps.clone(), clock.clone());
        let firewall = FakeFirewall::new(mishaps.clone());
        let files = FakeFiles::new(mishaps.clone());
        Self {
            volumes: FakeVolumes::new(&files, mishaps.clone()),
            snapshots: FakeSnapshots::new(&files, mishaps.clone()),
            gateway: FakeGateway::new(runtime.clone()),
            files,
            proxy: FakeProxy::new(mishaps),
            host: FakeHost::default(),
            login_log: FakeLoginLog::default(),
            resolver: FakeResolver::default(),
            uplink: FakeUplink::new(firewall.clone()),
            firewall,
            runtime,
            clock,
        }
    }

    /// What fails next.
    #[must_use]
    pub const fn mishaps(&self) -> &Mishaps {
        self.runtime.mishaps()
    }

    /// The host loses its power and boots again: containers are down, secrets are gone.
    pub fn power_cycle(&self, boot_id: &str) {
        self.host.boot(boot_id);
        self.files.lose_tmpfs();
        self.runtime.end_all(255);
    }
}

impl Clone for FakeMachine {
    fn clone(&self) -> Self {
        Self {
            runtime: self.runtime.clone(),
            files: self.files.clone(),
            proxy: self.proxy.clone(),
            gateway: self.gateway.clone(),
            host: self.host.clone(),
            clock: self.clock.clone(),
            firewall: self.firewall.clone(),
            login_log: self.login_log.clone(),
            resolver: self.resolver.clone(),
            uplink: self.uplink.clone(),
            volumes: self.volumes.clone(),
            snapshots: self.snapshots.clone(),
        }
    }
}
