//! The ground on which a firewall is tried: an internet full of servers, a neighbour on the hosts' link,
//! and ways into the containers of instances.
//!
//! Everything that a firewall is to keep apart would find each other here without it: addresses of cloud
//! metadata answer, routes to containers exist, containers have IPv6. What is closed is closed by rules.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use claw_lab::{Lab, LabHost, Netns, Network};

use crate::docker::Docker;
use crate::names::{Names, Record};
use crate::servers::Servers;

/// A server somewhere.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Another one, to be put on lists.
pub const LISTED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
/// One that is on no list and offers DNS over HTTPS.
pub const DOH: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 30);
/// A name server that is not the host's.
pub const FOREIGN_DNS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);
/// The hosts' own upstream name server.
pub const UPSTREAM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A server somewhere, on IPv6.
pub const ELSEWHERE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x300, 0, 0, 0, 0, 0x10);
/// A name server that is not the host's, on IPv6.
pub const FOREIGN_DNS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x300, 0, 0, 0, 0, 0x53);
/// The addresses that two names lead to.
pub const NAMED: [Ipv4Addr; 4] = [
    Ipv4Addr::new(192, 0, 2, 101),
    Ipv4Addr::new(192, 0, 2, 102),
    Ipv4Addr::new(192, 0, 2, 103),
    Ipv4Addr::new(192, 0, 2, 104),
];
/// Where clouds answer their machines about themselves.
pub const METADATA: [&str; 8] = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd00:42::42",
];

/// Ports with a TCP listener on every address of the internet.
const TCP_PORTS: [u16; 16] =
    [22, 25, 80, 194, 443, 465, 587, 853, 993, 2525, 6667, 6697, 8080, 8443, 9000, 9001];
/// Ports of [`ELSEWHERE`], [`LISTED`], [`DOH`] and [`ELSEWHERE_V6`] that answer datagrams.
const UDP_PORTS: [u16; 5] = [25, 123, 443, 853, 6667];
/// Ports with listeners on hosts, which no policy opens.
pub const HOST_PORTS: [u16; 4] = [2375, 5432, 9000, 18789];
/// A port with a UDP socket on hosts, which no policy opens.
pub const HOST_UDP_PORT: u16 = 1900;
/// A port with listeners in containers, TCP and UDP, both families.
pub const CONTAINER_PORT: u16 = 9001;
/// The neighbour's last byte.
const NEIGHBOUR: u8 = 222;

/// Servers, names and places of one lab.
#[derive(Debug)]
pub struct Ground {
    servers: Servers,
    names: Arc<Names>,
    neighbour: Netns,
}

/// A container of an instance, seen from inside.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The instance's name.
    pub name: String,
    /// Its network namespace; another one after each start.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// The host's address on its bridge.
    pub gateway: Ipv4Addr,
    /// Its bridge, such as `claw-i0`.
    pub bridge: String,
    /// The address that [`Ground::give_v6`] gives it.
    pub address_v6: Ipv6Addr,
    /// The host's address on its bridge, by the same.
    pub gateway_v6: Ipv6Addr,
}

impl Ground {
    /// Fills a lab's internet.
    ///
    /// # Errors
    /// When an address or a port is taken.
    pub fn start(lab: &Lab) -> Result<Self> {
        let internet = lab.netns(Network::Internet);
        let mut addresses: Vec<IpAddr> =
            [ELSEWHERE, LISTED, DOH, FOREIGN_DNS].map(IpAddr::from).to_vec();
        addresses.extend(NAMED.map(IpAddr::from));
        addresses.extend([ELSEWHERE_V6, FOREIGN_DNS_V6].map(IpAddr::from));
        for address in METADATA {
            addresses.push(address.parse()?);
        }
        lab.add_addresses(&addresses)?;
        let (servers, names) = (Servers::new(), Arc::new(zone()));
        for port in TCP_PORTS {
            servers.tcp(internet, port)?;
        }
        for port in UDP_PORTS {
            for address in [ELSEWHERE, LISTED, DOH] {
                servers.udp(internet, (address, port).into())?;
            }
            servers.udp(internet, (ELSEWHERE_V6, port).into())?;
        }
        for address in [UPSTREAM.into(), FOREIGN_DNS.into(), IpAddr::from(FOREIGN_DNS_V6)] {
            servers.names(internet, (address, 53).into(), &names)?;
        }
        Ok(Self { servers, names, neighbour: lab.neighbour(NEIGHBOUR)? })
    }

    /// Its servers, and what has arrived there.
    #[must_use]
    pub const fn servers(&self) -> &Servers {
        &self.servers
    }

    /// What its name servers know.
    #[must_use]
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// A machine on the hosts' link.
    #[must_use]
    pub const fn neighbour(&self) -> &Netns {
        &self.neighbour
    }

    /// Puts listeners on a host, and routes to its containers into the world: everybody could reach
    /// everything there, and the neighbour the host's loopback too. Only one host at a time has the routes.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn plant(&self, lab: &Lab, host: &LabHost) -> Result<()> {
        let netns = host.netns()?;
        for port in HOST_PORTS {
            self.servers.tcp(&netns, port)?;
        }
        self.servers.udp(&netns, (host.address(), HOST_UDP_PORT).into())?;
        self.servers.udp(&netns, (host.address_v6(), HOST_UDP_PORT).into())?;
        netns.within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))??;
        self.route(lab, host)
    }

    /// Routes to a host's containers, from everywhere.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn route(&self, lab: &Lab, host: &LabHost) -> Result<()> {
        let (v4, v6) = (host.address(), host.address_v6());
        let routes =
            format!("route replace 10.201.0.0/16 via {v4}\nroute replace fd99::/16 via {v6}\n");
        lab.netns(Network::Internet).ip(&routes)?;
        self.neighbour.ip(&routes)?;
        // Somebody on the link calls the host's loopback, where Docker translates addresses (moby#45610).
        self.neighbour.within(|| -> std::io::Result<()> {
            for interface in ["all", "eth0"] {
                let switch = format!("/proc/sys/net/ipv4/conf/{interface}/route_localnet");
                std::fs::write(switch, "1")?;
            }
            Ok(())
        })??;
        // Its own loopback is in the way, the first time.
        let _ = self.neighbour.ip("addr del 127.0.0.1/8 dev lo\n");
        self.neighbour
            .ip(&format!("route replace 127.0.0.0/8 via {v4} src 198.51.100.{NEIGHBOUR}\n"))
    }

    /// Gives a container an IPv6 address and a way out, as nothing of the product does; the host's own
    /// tables of neighbours are filled, so that no rule stops it before it has begun.
    ///
    /// # Errors
    /// When the container does not run or the kernel refuses.
    pub fn give_v6(&self, host: &LabHost, inside: &Inside) -> Result<()> {
        let (outer, bridge) = (host.netns()?, &inside.bridge);
        let (own, gateway) = (inside.address_v6, inside.gateway_v6);
        enable_v6(&inside.netns, &["all", "default", "lo", "eth0"])?;
        enable_v6(&outer, &["all", bridge])?;
        let bridge_mac = hardware_address(&outer, bridge)?;
        let own_mac = hardware_address(&inside.netns, "eth0")?;
        outer.ip(&format!(
            "addr replace {gateway}/64 dev {bridge} nodad\n\
             neigh replace {own} lladdr {own_mac} dev {bridge} nud permanent\n"
        ))?;
        inside.netns.ip(&format!(
            "addr replace {own}/64 dev eth0 nodad\n\
             neigh replace {gateway} lladdr {bridge_mac} dev eth0 nud permanent\n\
             route replace default via {gateway} dev eth0\n"
        ))
    }

    /// A machine of our own on an instance's bridge: for the firewall it is the instance, and it lives on
    /// when Docker restarts. Its addresses end in 200 and in c8.
    ///
    /// # Errors
    /// When there is one already or the kernel refuses.
    pub fn plug(&self, host: &LabHost, inside: &Inside) -> Result<Netns> {
        let (plug, bridge) = (Netns::create()?, &inside.bridge);
        let [first, second, third, _] = inside.address.octets();
        let (gateway, gateway_v6) = (inside.gateway, inside.gateway_v6);
        let mut own_v6 = inside.address_v6.segments();
        own_v6[7] = 0xc8;
        let (own, own_v6) =
            (Ipv4Addr::new(first, second, third, 200), Ipv6Addr::from_segments(own_v6));
        host.netns()?.ip(&format!(
            "link add plug{third} type veth peer name eth0 netns {}\n\
             link set plug{third} master {bridge} up\n",
            plug.path()
        ))?;
        let outer = host.netns()?;
        enable_v6(&outer, &["all", bridge])?;
        let (outer_mac, own_mac) =
            (hardware_address(&outer, bridge)?, hardware_address(&plug, "eth0")?);
        outer.ip(&format!(
            "addr replace {gateway_v6}/64 dev {bridge} nodad\n\
             neigh replace {own_v6} lladdr {own_mac} dev {bridge} nud permanent\n"
        ))?;
        plug.ip(&format!(
            "addr add {own}/24 dev eth0\n\
             addr add {own_v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             neigh replace {gateway_v6} lladdr {outer_mac} dev eth0 nud permanent\n\
             route add default via {gateway}\n\
             route add default via {gateway_v6}\n"
        ))?;
        Ok(plug)
    }

    /// Puts listeners into a container, both families; IPv6 must have been given.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn plant_inside(&self, inside: &Inside) -> Result<()> {
        self.servers.tcp(&inside.netns, CONTAINER_PORT)?;
        self.servers.udp(&inside.netns, (inside.address, CONTAINER_PORT).into())?;
        self.servers.udp(&inside.netns, (inside.address_v6, CONTAINER_PORT).into())
    }
}

impl Inside {
    /// The container of an instance that runs on a host.
    ///
    /// # Errors
    /// When it does not run.
    pub fn of(host: &LabHost, instance: &str) -> Result<Self> {
        let container = format!("claw-{instance}");
        let docker = Docker::of(host)?;
        let address = docker.address(&container, &container)?;
        let [first, second, third, _] = address.octets();
        let host_index = u16::from(*host.address().octets().last().unwrap_or(&0));
        let v6 = |last| Ipv6Addr::new(0xfd99, host_index, u16::from(third), 0, 0, 0, 0, last);
        Ok(Self {
            name: instance.to_owned(),
            netns: docker.netns(&container)?,
            address,
            gateway: Ipv4Addr::new(first, second, third, 1),
            bridge: docker.bridge(&container)?,
            address_v6: v6(2),
            gateway_v6: v6(1),
        })
    }

    /// Its bridge's name server.
    #[must_use]
    pub fn dns(&self) -> SocketAddr {
        (self.gateway, 53).into()
    }
}

/// All sources that a customer may use in turn: 203.0.113.3 to .250, added to the client's machine.
///
/// # Errors
/// When they were added before.
pub fn crowd(lab: &Lab) -> Result<Vec<IpAddr>> {
    let mut lines = String::new();
    let all: Vec<Ipv4Addr> = (3..=250).map(|last| Ipv4Addr::new(203, 0, 113, last)).collect();
    for address in &all {
        writeln!(lines, "addr add {address}/32 dev eth0")?;
    }
    lab.netns(Network::Client).ip(&lines)?;
    Ok(all.into_iter().map(IpAddr::from).collect())
}

/// The names that every ground knows.
fn zone() -> Names {
    let ips = |all: &[&str]| all.iter().filter_map(|ip| ip.parse().ok()).collect();
    let names = Names::new();
    let named = |index: usize| NAMED.get(index).map(|ip| IpAddr::V4(*ip)).into_iter().collect();
    names.set("api.listed.example", 1, Record::Addresses(named(0)));
    names.set("deep.below.wild.example", 1, Record::Addresses(named(1)));
    names.set("rotating.listed.example", 1, Record::Rotating([named(2), named(3)].concat()));
    names.set("alias.listed.example", 1, Record::Alias("api.listed.example".to_owned()));
    names.set("other.example", 1, Record::Addresses(ips(&["192.0.2.30"])));
    for (name, address) in [
        ("rebind-metadata.listed.example", "169.254.169.254"),
        ("rebind-loopback.listed.example", "127.0.0.1"),
        ("rebind-private.listed.example", "10.201.0.1"),
    ] {
        names.set(name, 1, Record::Addresses(ips(&[address])));
    }
    names
}

fn enable_v6(netns: &Netns, interfaces: &[&str]) -> Result<()> {
    netns.within(|| -> Result<()> {
        for interface in interfaces {
            let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            std::fs::write(&switch, "0").with_context(|| switch.clone())?;
        }
        Ok(())
    })?
}

/// The hardware address of an interface, as text. sysfs would show the namespace of whoever mounted it.
fn hardware_address(netns: &Netns, interface: &str) -> Result<String> {
    let found = netns.within(|| {
        let mut all = nix::ifaddrs::getifaddrs()?;
        let link = all.find_map(|entry| {
            let link = *entry.address?.as_link_addr()?;
            (entry.interface_name == interface).then(|| link.addr()).flatten()
        });
        nix::Result::Ok(link)
    })??;
    let bytes = found.with_context(|| format!("{interface} has no hardware address"))?;
    Ok(bytes.map(|byte| format!("{byte:02x}")).join(":"))
}

/// Network namespaces by the names that tables show.
pub type Places = BTreeMap<&'static str, Netns>;

/// The namespace of a container's sandbox, by the path that Docker tells.
///
/// # Errors
/// When it is gone.
pub(crate) fn sandbox(init: i32, key: &str) -> Result<Netns> {
    // Docker says /var/run, which is a link that would lead out of the host.
    let inside = key.strip_prefix("/var").unwrap_or(key);
    Netns::open(Path::new(&format!("/proc/{init}/root{inside}")))
}
