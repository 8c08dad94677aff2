//! A host's cable: its interface `eth0`, and ways to cut it.

use std::fmt::Write as _;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Result;

use super::LabHost;
use crate::deadline::wait_for;
use crate::netns::Netns;

/// How long a port that was switched on may take to have a carrier.
const CARRIER: Duration = Duration::from_secs(5);

/// How a host's network is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The cable is pulled: the host's interface loses its carrier.
    Link,
    /// Packets vanish in both directions and nobody is told: connections stay half-open.
    Silent,
}

impl LabHost {
    /// Cuts its network; a cut outlasts a reboot.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn cut(&self, how: Cut) -> Result<()> {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(how);
        match (self.pid(), how) {
            (None, _) => Ok(()),
            (Some(_), Cut::Link) => {
                self.lab.internet.ip(&format!("link set {} down\n", self.port()))
            }
            // The bridge drops what comes from and goes to a port in the state "disabled".
            (Some(_), Cut::Silent) => self.set_port_state(0),
        }
    }

    /// Undoes every cut.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn heal(&self) -> Result<()> {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if self.pid().is_none() {
            return Ok(());
        }
        self.lab.internet.ip(&format!("link set {} up\n", self.port()))?;
        // The kernel sees the carrier a moment later, and forwards nothing before.
        wait_for("a healed port", CARRIER, || self.set_port_state(3).ok())
    }

    /// A new network namespace whose `eth0` hangs on the lab's bridge.
    pub(super) fn plug(&self) -> Result<Netns> {
        let (netns, port) = (Netns::create()?, self.port());
        let (index, v4, v6) = (self.index, self.address(), self.address_v6());
        let mut lines = String::new();
        // A fixed hardware address: neighbours need not learn a rebooted host anew.
        writeln!(
            lines,
            "link add {port} type veth peer name eth0 address 02:00:00:00:00:{index:02x} netns {}",
            netns.path()
        )?;
        writeln!(lines, "link set {port} master br0 up")?;
        self.lab.internet.ip(&lines)?;
        netns.ip(&format!(
            "addr add {v4}/24 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via 198.51.100.1\n\
             route add default via 2001:db8:100::1\n"
        ))?;
        Ok(netns)
    }

    /// Cuts again what was cut before a reboot.
    pub(super) fn cut_again(&self) -> Result<()> {
        let cut = *self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        cut.map_or(Ok(()), |how| self.cut(how))
    }

    /// Removes both ends of the cable; the kernel would only do so a while after PID 1's end.
    pub(super) fn unplug(&self) {
        // It may be gone already.
        let _ = self.lab.internet.ip(&format!("link del {}\n", self.port()));
    }

    fn set_port_state(&self, state: u8) -> Result<()> {
        self.lab.internet.bridge(&format!("link set dev {} state {state}\n", self.port()))
    }

    fn port(&self) -> String {
        format!("host{}", self.index)
    }
}
