//! The host's own resolver configuration, as far as it names servers (resolv.conf(5)).
//!
//! What it deliberately does not do: search lists, sortlists, options. Containers ask for whole names.

use std::fs::Metadata;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use claw_core::address::AddressPool;
use claw_core::firewall::Cidr;
use nix::net::if_::if_nametoindex;

/// Where it is on every system.
pub const STANDARD_PATH: &str = "/etc/resolv.conf";
/// The port of name servers (RFC 1035).
pub const PORT: u16 = 53;
/// More servers are not read; the C library reads three.
const MAX_SERVERS: usize = 8;
/// More of the file is not read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// A file that names servers, and what it was when it was last read.
#[derive(Debug)]
pub struct ResolvConf {
    path: PathBuf,
    own: Option<Cidr>,
    read: Option<Version>,
}

/// What changes with a file: device, inode, length, time of modification.
type Version = (u64, u64, u64, i64, i64);

impl ResolvConf {
    /// A file. Servers in `pool` are bridges of instances, this very program, and not asked.
    #[must_use]
    pub fn new(path: PathBuf, pool: AddressPool) -> Self {
        Self { path, own: Cidr::parse(&pool.to_string()).ok(), read: None }
    }

    /// The servers, if the file changed since the last call. A file that cannot be read has not changed.
    pub fn changed(&mut self) -> Option<Vec<SocketAddr>> {
        let version = version(&std::fs::metadata(&self.path).ok()?);
        if self.read == Some(version) {
            return None;
        }
        let mut text = String::new();
        std::fs::File::open(&self.path).ok()?.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        self.read = Some(version);
        Some(servers(&text, self.own))
    }
}

fn version(metadata: &Metadata) -> Version {
    let seen = (metadata.dev(), metadata.ino(), metadata.len());
    (seen.0, seen.1, seen.2, metadata.mtime(), metadata.mtime_nsec())
}

/// The servers of a text, without those in `own`; with none at all, the one on this machine.
fn servers(text: &str, own: Option<Cidr>) -> Vec<SocketAddr> {
    let words = text.lines().map(|line| line.split_whitespace());
    let named = words.filter_map(|mut words| match words.next() {
        Some("nameserver") => words.next().and_then(parse),
        _ => None,
    });
    let mut servers: Vec<SocketAddr> = named
        .filter(|server| !own.is_some_and(|own| own.contains(server.ip())))
        .take(MAX_SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    servers
}

/// An address, for link-local ones with their interface: `fe80::1%eth0`.
fn parse(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT));
    };
    let scope = interface.parse().ok().or_else(|| if_nametoindex(interface).ok())?;
    Some(SocketAddr::V6(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let own = Cidr::parse("10.201.0.0/16").ok();
        let found: Vec<String> = servers(text, own).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn servers_are_read_in_order_and_never_our_own() {
        check(
            "# comment\nsearch example.com\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\n\
             options edns0\nnameserver nonsense\nnameserver 10.201.1.1\nnameserver fe80::1%1\n",
            &["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%1]:53"],
        );
        check("", &["127.0.0.1:53"]);
        check("nameserver 10.201.9.1\n", &["127.0.0.1:53"]);
        check(&"nameserver 192.0.2.1\n".repeat(100), &["192.0.2.1:53"; MAX_SERVERS]);
    }

    #[test]
    fn a_file_is_read_again_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut file = ResolvConf::new(path.clone(), AddressPool::STANDARD);
        assert_eq!(file.changed(), None);
        std::fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(file.changed().map(|servers| servers.len()), Some(1));
        assert_eq!(file.changed(), None);
        let next = dir.path().join("next");
        std::fs::write(&next, "nameserver 192.0.2.2\nnameserver 192.0.2.3\n").unwrap();
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(file.changed().map(|servers| servers.len()), Some(2));
    }
}
