//! A lab: an isolated network that hosts, servers and clients live on.
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use anyhow::Result;

use crate::{Cache, Forward, HostOptions, LabHost, Process};

/// A network of the lab that is not a host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Network {
    /// Where the hosts hang: bridge `br0`, 198.51.100.1/24 and 2001:db8:100::1/64. Hosts have
    /// 198.51.100.11, .12 … and 2001:db8:100::11, ::12 … The coordinator runs here.
    Internet,
    /// A customer's machine: 203.0.113.2/24 and 2001:db8:200::2/64, routed through the internet.
    Client,
}

/// An isolated network of namespaces, and the directory that its hosts' state lies in.
///
/// Everything goes when the last of it and its [`LabHost`]s is dropped, and when this process ends
/// however it ends; what then is left on disk is swept by the next start.
#[derive(Debug)]
pub struct Lab {}

impl Lab {
    /// Sweeps what dead runs left, then creates the network. `name` is for people: it shows in
    /// directory names.
    ///
    /// # Errors
    /// Without root, and when the kernel refuses namespaces.
    pub fn start(name: &str, cache: &Cache) -> Result<Self> {
        anyhow::bail!("{name} {cache:?}")
    }

    /// Boots a host and returns as soon as its PID 1 runs; wait for what you need with
    /// [`LabHost::wait_until_active`]. Several may boot at once from several threads.
    ///
    /// # Errors
    /// When the name is taken, the base cannot be built, or PID 1 cannot be started.
    pub fn boot(&self, options: HostOptions) -> Result<LabHost> {
        anyhow::bail!("{options:?}")
    }

    /// Starts a process in a network, with the machine's files, stdout and stderr in a log file
    /// called after `name`. It is killed when this process dies.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, network: Network, name: &str, command: Command) -> Result<Process> {
        anyhow::bail!("{network:?} {name} {command:?}")
    }

    /// Runs `work` on a thread of its own inside a network: sockets made there belong there.
    ///
    /// # Errors
    /// When the thread cannot enter the network.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn within<T: Send>(&self, network: Network, work: impl FnOnce() -> T + Send) -> Result<T> {
        drop(work);
        anyhow::bail!("{network:?}")
    }

    /// Connects from within a network, within five seconds.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn connect(&self, network: Network, target: SocketAddr) -> Result<TcpStream> {
        anyhow::bail!("{network:?} {target}")
    }

    /// Listens within a network.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(&self, network: Network, address: SocketAddr) -> Result<TcpListener> {
        anyhow::bail!("{network:?} {address}")
    }

    /// Forwards a loopback address of the machine (port 0: any) to an address of the lab, dialled
    /// from `network`.
    ///
    /// # Errors
    /// When `local` is not a loopback address or cannot be bound.
    pub fn forward(
        &self,
        local: SocketAddr,
        network: Network,
        target: SocketAddr,
    ) -> Result<Forward> {
        anyhow::bail!("{local} {network:?} {target}")
    }
}
