//! A port of the machine's loopback that leads into the lab: a forwarder in user space.
use std::net::SocketAddr;

/// A listening forwarder; dropping it closes the port and every connection through it.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
}

impl Forward {
    /// Where it listens on the machine.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }
}
