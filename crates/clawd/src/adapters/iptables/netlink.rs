//! What the kernel says of generations of nf_tables' rules, over netlink (netlink(7), the kernel's
//! `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`).
//!
//! Every committed change of rules, whoever makes it, raises the generation by one and is told to who
//! listens, with the process that made it. Legacy tables tell nothing. What this deliberately does not do:
//! look at what changed. Where to start: [`Listener`], [`generation`].

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NFNLGRP_NFTABLES`, the group that is told of every change of rules.
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN`.
const NEW_GENERATION: u16 = 10 << 8 | 15;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const TELL_GENERATION: u16 = 10 << 8 | 16;
/// `NLM_F_REQUEST`.
const REQUEST: u16 = 1;
/// `NFTA_GEN_ID`, `NFTA_GEN_PROC_PID`, `NFTA_GEN_PROC_NAME`.
const ID: u16 = 1;
const PID: u16 = 2;
const NAME: u16 = 3;
/// A message's header (`struct nlmsghdr`), and that of netfilter's messages after it (`struct nfgenmsg`).
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
/// Room for one datagram: the kernel puts messages together up to a page or 8 KiB, whichever is less.
const DATAGRAM: usize = 64 * 1024;
/// A whole replacement of 254 instances' rules tells of each rule, together some MiB. Beyond it the kernel
/// says that events were lost.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;

/// A change that the kernel tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// The generation that it made.
    pub(super) generation: u32,
    /// The process, as the machine's first pid namespace numbers it.
    pub(super) pid: Option<u32>,
    /// Its name, at most 15 bytes (`TASK_COMM_LEN`).
    pub(super) program: Option<String>,
}

/// What listening gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// Changes, oldest first; none when there were only details of them.
    Changes(Vec<Change>),
    /// The queue was full: some are lost.
    Lost,
}

/// Listens to changes.
#[derive(Debug)]
pub(super) struct Listener {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl Listener {
    /// Listens from now on. Must be called within a Tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let socket = open()?;
        // Without CAP_NET_ADMIN in the first user namespace the queue stays as it is.
        let _larger = setsockopt(&socket, sockopt::RcvBufForce, &QUEUE_BYTES);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1 << (GROUP - 1)))?;
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe, for types that change their descriptor; an OwnedFd never does"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM] })
    }

    /// Waits for the next datagram. Cancel-safe: one that is not returned is not taken.
    pub(super) async fn hear(&mut self) -> io::Result<Heard> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            let read = ready.try_io(|socket| {
                recv(socket.as_raw_fd(), buffer, MsgFlags::empty()).map_err(io::Error::from)
            });
            match read {
                Ok(Ok(length)) => {
                    let datagram = self.buffer.get(..length).unwrap_or_default();
                    return Ok(Heard::Changes(changes(datagram)));
                }
                Ok(Err(error)) if is(&error, Errno::ENOBUFS) => {
                    return Ok(Heard::Lost);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }
}

/// The present generation of rules, in 7 µs (measured): the kernel answers within the request.
pub(super) fn generation() -> io::Result<u32> {
    let socket = open()?;
    let length = u32::try_from(HEADER + FAMILY_HEADER).map_err(io::Error::other)?;
    let mut request = Vec::with_capacity(HEADER + FAMILY_HEADER);
    request.extend_from_slice(&length.to_ne_bytes());
    request.extend_from_slice(&TELL_GENERATION.to_ne_bytes());
    request.extend_from_slice(&REQUEST.to_ne_bytes());
    // Sequence number, port; family, version, resource: any.
    request.extend_from_slice(&[0; 8 + FAMILY_HEADER]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let told = changes(answer.get(..length).unwrap_or_default());
    let missing = || io::Error::other("the kernel told no generation of rules");
    told.first().map(|change| change.generation).ok_or_else(missing)
}

fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::NetlinkNetFilter;
    Ok(socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error().is_some_and(|raw| Errno::from_raw(raw) == errno)
}

/// Every change of generation in a datagram.
fn changes(datagram: &[u8]) -> Vec<Change> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some((length, kind)) = read_u32(rest, 0).zip(read_u16(rest, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(message) = rest.get(..length).filter(|_| length >= HEADER) else { break };
        if kind == NEW_GENERATION {
            found.extend(message.get(HEADER + FAMILY_HEADER..).and_then(change));
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// A change from its attributes (`struct nlattr`: length, type, value; aligned to 4 bytes).
fn change(attributes: &[u8]) -> Option<Change> {
    let (mut generation, mut pid, mut program) = (None, None, None);
    let mut rest = attributes;
    while let Some((length, kind)) = read_u16(rest, 0).zip(read_u16(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else { break };
        let number = || value.try_into().ok().map(u32::from_be_bytes);
        match kind {
            ID => generation = number(),
            PID => pid = number(),
            NAME => {
                let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
                program = Some(String::from_utf8_lossy(name).into_owned());
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    generation.map(|generation| Change { generation, pid, program })
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + FAMILY_HEADER + attributes.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[0; 10 + FAMILY_HEADER]);
        bytes.extend_from_slice(attributes);
        bytes
    }

    #[test]
    fn changes_are_found_among_other_messages() {
        let told = [
            attribute(ID, &7_u32.to_be_bytes()),
            attribute(PID, &4242_u32.to_be_bytes()),
            attribute(NAME, b"iptables-restor\0"),
        ];
        let datagram = [
            message(10 << 8 | 6, &attribute(1, b"a rule of odd length")),
            message(NEW_GENERATION, &told.concat()),
            message(NEW_GENERATION, &attribute(ID, &8_u32.to_be_bytes())),
        ];
        let program = Some("iptables-restor".to_owned());
        let first = Change { generation: 7, pid: Some(4242), program };
        let second = Change { generation: 8, pid: None, program: None };
        assert_eq!(changes(&datagram.concat()), [first, second]);
    }

    #[test]
    fn damaged_datagrams_end_the_search() {
        let mut whole = message(NEW_GENERATION, &attribute(ID, &7_u32.to_be_bytes()));
        for length in 0..whole.len() {
            assert_eq!(changes(&whole[..length]), [], "{length}");
        }
        whole[0] = 3;
        assert_eq!(changes(&whole), []);
        let broken = message(NEW_GENERATION, &[0; 8]);
        assert_eq!(changes(&broken), []);
    }
}
