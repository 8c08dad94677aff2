//! The sets themselves, over netlink (netlink(7), the kernel's
//! `include/uapi/linux/netfilter/{nfnetlink,ipset/ip_set}.h`).
//!
//! Not through the program ipset(8): that is a fork of some milliseconds for each answer, and to save it
//! one would have to believe that entries are still there, which whoever flushes a set proves wrong. The
//! kernel carries a message out while it is sent and has its answer ready.
//!
//! What it deliberately does not do: anything but adding, removing and clearing.

use std::cell::Cell;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use claw_core::firewall::Protocol;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::sets::{Entry, SetChange, Sets, SetsError, seconds};

/// `NFNL_SUBSYS_IPSET << 8`, to which the command is added.
const IPSET: u16 = 6 << 8;
/// `IPSET_CMD_FLUSH`, `IPSET_CMD_ADD`, `IPSET_CMD_DEL`.
const FLUSH: u16 = 4;
const ADD: u16 = 9;
const DEL: u16 = 10;
/// `NLM_F_REQUEST | NLM_F_ACK`; without `NLM_F_EXCL`, what is there already, or gone, is no error.
const FLAGS: u16 = 1 | 4;
/// `NLMSG_ERROR`, which is also the type of an acknowledgement.
const ERROR: u16 = 2;
/// `NFPROTO_IPV4`, `NFPROTO_IPV6`.
const V4: u8 = 2;
const V6: u8 = 10;
/// `IPSET_PROTOCOL_MIN`: what every kernel since 2.6.39 speaks.
const PROTOCOL_VERSION: u8 = 6;
/// `NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`.
const NESTED: u16 = 0x8000;
const NETWORK_ORDER: u16 = 0x4000;
/// Attributes of a message: `IPSET_ATTR_PROTOCOL`, `_SETNAME`, `_DATA`.
const PROTOCOL: u16 = 1;
const SET_NAME: u16 = 2;
const DATA: u16 = 7;
/// Attributes of an entry: `IPSET_ATTR_IP`, `_PORT`, `_TIMEOUT`, `_PROTO`.
const IP: u16 = 1;
const PORT: u16 = 4;
const TIMEOUT: u16 = 6;
const PROTO: u16 = 7;
/// Attributes of an address: `IPSET_ATTR_IPADDR_IPV4`, `_IPV6`.
const IP_V4: u16 = 1;
const IP_V6: u16 = 2;
/// A message's header (`struct nlmsghdr`).
const HEADER: usize = 16;
/// `IPSET_ERR_HASH_FULL`: the only error of ipset's own that we can meet.
const FULL: i32 = 4352;
/// Room for an acknowledgement, which holds the message when it is an error.
const ANSWER: usize = 4096;

/// A connection to the kernel.
#[derive(Debug)]
pub struct KernelSets {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

impl KernelSets {
    /// Opens a connection. Changes need `CAP_NET_ADMIN`.
    ///
    /// # Errors
    /// What the system said.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkNetFilter;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    fn request(&self, command: u16, family: u8, attributes: &[u8]) -> io::Result<()> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let length = u32::try_from(HEADER + 4 + attributes.len()).map_err(io::Error::other)?;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend((IPSET | command).to_ne_bytes());
        message.extend(FLAGS.to_ne_bytes());
        message.extend(sequence.to_ne_bytes());
        // Port: the kernel's. Then netfilter's header: family, version, resource.
        message.extend([0, 0, 0, 0, family, 0, 0, 0]);
        message.extend(attributes);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        let mut answer = [0; ANSWER];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            match acknowledged(answer.get(..length).unwrap_or_default(), sequence) {
                Some(0) => return Ok(()),
                Some(error) => return Err(meaning(error)),
                // Of an earlier message, whose answer was not waited for.
                None => {}
            }
        }
    }
}

impl Sets for KernelSets {
    fn change(&self, set: &str, change: SetChange) -> Result<(), SetsError> {
        let mut attributes = attribute(PROTOCOL, &[PROTOCOL_VERSION]);
        attributes.extend(attribute(SET_NAME, &[set.as_bytes(), &[0]].concat()));
        let done = match change {
            SetChange::Add(entry, timeout) => {
                let timeout = attribute(TIMEOUT | NETWORK_ORDER, &seconds(timeout).to_be_bytes());
                let data = [data(entry), timeout].concat();
                attributes.extend(attribute(DATA | NESTED, &data));
                self.request(ADD, family(entry.address), &attributes)
            }
            SetChange::Remove(entry) => {
                attributes.extend(attribute(DATA | NESTED, &data(entry)));
                self.request(DEL, family(entry.address), &attributes)
            }
            SetChange::Clear => match self.request(FLUSH, V4, &attributes) {
                Err(error) if is(&error, Errno::ENOENT) => Ok(()),
                done => done,
            },
        };
        done.map_err(|source| SetsError { set: set.to_owned(), change, source })
    }
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => V4,
        IpAddr::V6(_) => V6,
    }
}

/// An entry without its timeout.
fn data(entry: Entry) -> Vec<u8> {
    let address = match entry.address {
        IpAddr::V4(address) => attribute(IP_V4 | NETWORK_ORDER, &address.octets()),
        IpAddr::V6(address) => attribute(IP_V6 | NETWORK_ORDER, &address.octets()),
    };
    let mut data = attribute(IP | NESTED, &address);
    if let Some((protocol, port)) = entry.port {
        data.extend(attribute(PORT | NETWORK_ORDER, &port.number().to_be_bytes()));
        // IPPROTO_TCP, IPPROTO_UDP.
        let protocol = match protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        data.extend(attribute(PROTO, &[protocol]));
    }
    data
}

/// `struct nlattr`: length, type, value; filled up to 4 bytes. Ours are short.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The error number with which a message was acknowledged, 0 for success; `None` if this is the answer to
/// another one.
fn acknowledged(answer: &[u8], sequence: u32) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let number = u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?);
    if kind != ERROR || number != sequence {
        return None;
    }
    let error = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    Some(error.saturating_neg())
}

fn meaning(error: i32) -> io::Error {
    match error {
        FULL => io::Error::other("the set is full"),
        4096.. => io::Error::other(format!("ipset's error {error}")),
        _ => io::Error::from_raw_os_error(error),
    }
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().is_some_and(|raw| Errno::from_raw(raw) == errno)
}
