//! A lab: an isolated network that hosts, servers and clients live on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::process::Launch;
use crate::run::Run;
use crate::{Cache, Forward, HostOptions, LabHost, Process, requirements};

/// How long a connection may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The last byte of the first host's address.
const FIRST_HOST: u8 = 11;

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
pub struct Lab {
    shared: Arc<Shared>,
}

/// What a lab and its hosts share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) cache: Cache,
    pub(crate) internet: Netns,
    client: Netns,
    /// Names of the hosts and the last bytes of their addresses.
    hosts: Mutex<BTreeMap<String, u8>>,
    // Last: the directory goes when nothing uses it any more.
    pub(crate) run: Run,
}

impl Lab {
    /// Sweeps what dead runs left, then creates the network. `name` is for people: it shows in
    /// directory names.
    ///
    /// # Errors
    /// Without root, and when the kernel refuses namespaces.
    pub fn start(name: &str, cache: &Cache) -> Result<Self> {
        requirements::require_root("start lab hosts (namespaces, control groups, mounts)")?;
        requirements::ensure(&[requirements::Requirement::Iproute], cache.progress())?;
        let run = Run::create(name, cache)?;
        let (internet, client) = networks().context("cannot create the lab's network")?;
        let hosts = Mutex::default();
        Ok(Self { shared: Arc::new(Shared { cache: cache.clone(), internet, client, hosts, run }) })
    }

    /// Boots a host and returns as soon as its PID 1 runs; wait for what you need with
    /// [`LabHost::wait_until_active`]. Several may boot at once from several threads.
    ///
    /// # Errors
    /// When the name is taken, the base cannot be built, or PID 1 cannot be started.
    pub fn boot(&self, options: HostOptions) -> Result<LabHost> {
        LabHost::create(Arc::clone(&self.shared), options)
    }

    /// Starts a process in a network, with the machine's files; stdout and stderr go to a log file
    /// called after `name`. It is killed when this process dies.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, network: Network, name: &str, command: Command) -> Result<Process> {
        let inside = self.shared.netns(network).clone();
        let log = self.shared.run.dir().join(format!("{name}.log"));
        Launch::plain(command).prepared(move || inside.enter()).logging_to(log)?.spawn()
    }

    /// Runs `work` on a thread of its own inside a network: sockets made there belong there.
    ///
    /// # Errors
    /// When the thread cannot enter the network.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn within<T: Send>(&self, network: Network, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.shared.netns(network).within(work)
    }

    /// The namespace of a network.
    #[must_use]
    pub fn netns(&self, network: Network) -> &Netns {
        self.shared.netns(network)
    }

    /// A machine beside the hosts, on their link, which it may route as it likes: 198.51.100.`index` and
    /// 2001:db8:100::`index`, no default route. It goes when the last of it is dropped.
    ///
    /// # Errors
    /// When the index is taken or the kernel refuses.
    pub fn neighbour(&self, index: u8) -> Result<Netns> {
        let neighbour = Netns::create()?;
        self.shared.internet.ip(&format!(
            "link add beside{index} type veth peer name eth0 netns {}\n\
             link set beside{index} master br0 up\n",
            neighbour.path()
        ))?;
        neighbour.ip(&format!(
            "addr add 198.51.100.{index}/24 dev eth0\n\
             addr add 2001:db8:100::{index}/64 dev eth0 nodad\n\
             link set eth0 up\n"
        ))?;
        Ok(neighbour)
    }

    /// Gives the internet more addresses: everything that is routed there reaches them.
    ///
    /// # Errors
    /// When it has one of them.
    pub fn add_addresses(&self, addresses: &[IpAddr]) -> Result<()> {
        let line = |address: &IpAddr| match address {
            IpAddr::V4(v4) => format!("addr add {v4}/32 dev lo\n"),
            IpAddr::V6(v6) => format!("addr add {v6}/128 dev lo nodad\n"),
        };
        self.shared.internet.ip(&addresses.iter().map(line).collect::<String>())
    }

    /// Connects from within a network, within five seconds.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn connect(&self, network: Network, target: SocketAddr) -> Result<TcpStream> {
        self.within(network, || TcpStream::connect_timeout(&target, CONNECT_DEADLINE))?
            .with_context(|| format!("cannot connect to {target}"))
    }

    /// Listens within a network.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(&self, network: Network, address: SocketAddr) -> Result<TcpListener> {
        self.within(network, || TcpListener::bind(address))?
            .with_context(|| format!("cannot listen on {address}"))
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
        if !local.ip().is_loopback() {
            bail!("{local} is not a loopback address: the lab is for this machine only");
        }
        let inside = self.shared.netns(network).clone();
        Forward::start(local, move || {
            inside
                .within(|| TcpStream::connect_timeout(&target, CONNECT_DEADLINE))?
                .map_err(Into::into)
        })
    }

    /// The directory of this run, for logs and files of the caller; it goes with the lab.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.shared.run.dir()
    }

    /// What it shares with what hangs on it.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Shared {
    /// Takes a free address for a host; returns its last byte.
    pub(crate) fn enter_host(&self, name: &str) -> Result<u8> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.contains_key(name) {
            bail!("this lab already has a host called {name}");
        }
        let taken: Vec<u8> = hosts.values().copied().collect();
        let index = (FIRST_HOST..u8::MAX).find(|index| !taken.contains(index));
        let index = index.context("this lab has no address left")?;
        hosts.insert(name.to_owned(), index);
        Ok(index)
    }

    pub(crate) fn leave_host(&self, name: &str) {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn netns(&self, network: Network) -> &Netns {
        match network {
            Network::Internet => &self.internet,
            Network::Client => &self.client,
        }
    }
}

fn networks() -> Result<(Netns, Netns)> {
    let (internet, client) = (Netns::create()?, Netns::create()?);
    let mut lines = String::new();
    lines.push_str("link add br0 type bridge forward_delay 0 mcast_snooping 0\n");
    writeln!(lines, "link add client0 type veth peer name eth0 netns {}", client.path())?;
    lines.push_str(
        "addr add 198.51.100.1/24 dev br0\n\
         addr add 2001:db8:100::1/64 dev br0 nodad\n\
         addr add 203.0.113.1/24 dev client0\n\
         addr add 2001:db8:200::1/64 dev client0 nodad\n\
         link set br0 up\n\
         link set client0 up\n",
    );
    internet.ip(&lines)?;
    client.ip("addr add 203.0.113.2/24 dev eth0\n\
         addr add 2001:db8:200::2/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via 203.0.113.1\n\
         route add default via 2001:db8:200::1\n")?;
    internet.within(|| -> std::io::Result<()> {
        // A thread sees the settings of the network namespace that it is in.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
    })??;
    Ok((internet, client))
}
