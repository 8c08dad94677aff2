//! sshd's log, as far as it tells of failures to log in.
//!
//! Every failed attempt must count once, and sshd says most of them several times. What counts (messages of
//! OpenSSH 9.2 and 10, auth.c and auth-pam.c):
//!
//! - `Invalid user X from A port N`: once per connection, whatever is tried then; such a user never gets in. What
//!   follows under the same name (`Failed … for invalid user X …`) does not count again;
//! - `Failed password for X from A port N ssh2`: once per attempt at a user that exists;
//! - `error: PAM: … for X from A`: the same for keyboard-interactive logins, whose `Failed
//!   keyboard-interactive/pam …` does not count, because it is not always said;
//! - `User X from A not allowed because …`: a user that exists and may not log in.
//!
//! What does not count: the end of a connection (`Connection closed by authenticating user …`, `Disconnected
//! from …`, `maximum authentication attempts exceeded …`), because the attempts before it did; public keys that
//! were refused, because a person's agent offers all its keys and a key cannot be guessed; connections that
//! never tried (`Unable to negotiate with …`, `Received disconnect from …`, scanners).
//!
//! User names are chosen by attackers, and could read like the rest of a message. sshd writes at most 100
//! characters of a name and no line break (strnvis(3)); what stands behind the name is sshd's own. So a message is
//! read from its end, and the address is the last one.

use std::net::{IpAddr, Ipv6Addr};

/// Months as syslog(3) writes them.
const MONTHS: [&str; 12] = [
    "Jan ", "Feb ", "Mar ", "Apr ", "May ", "Jun ", "Jul ", "Aug ", "Sep ", "Oct ", "Nov ", "Dec ",
];

/// The source of a failed login that a line of the log tells of; `None` for every other line.
///
/// Takes a line of auth.log (traditional or ISO time), of `journalctl -o short`, or the message alone
/// (`journalctl -o cat`). What rsyslog has merged (`message repeated 2 times: […]`) counts once.
#[must_use]
pub fn login_failure(line: &str) -> Option<IpAddr> {
    let line = line.trim_end();
    failure(line).or_else(|| failure(message_of_sshd(line)?))
}

fn failure(message: &str) -> Option<IpAddr> {
    let message = message
        .strip_prefix("message repeated ")
        .and_then(|rest| rest.split_once(" times: [ "))
        .and_then(|(_, rest)| rest.strip_suffix(']'))
        .unwrap_or(message);
    let message = message.strip_suffix(" [preauth]").unwrap_or(message);
    if let Some(rest) = message.strip_prefix("Invalid user ") {
        return address_and_port(last(rest, " from ")?);
    }
    if let Some(rest) = message.strip_prefix("Failed password for ") {
        if rest.starts_with("invalid user ") {
            return None;
        }
        return address_and_port(last(rest, " from ")?.strip_suffix(" ssh2")?);
    }
    if let Some(rest) = message.strip_prefix("error: PAM: ") {
        if rest.contains(" for illegal user ") {
            return None;
        }
        return address(last(rest, " from ")?);
    }
    let (before, _reason) = message.strip_prefix("User ")?.rsplit_once(" not allowed because ")?;
    address(last(before, " from ")?)
}

/// The message of a line with time, host and tag, if the tag is sshd's.
fn message_of_sshd(line: &str) -> Option<&str> {
    let (head, message) = line.split_once(": ")?;
    // No message of sshd begins like a time: what follows a tag within a message is a name somebody chose.
    let time = head.starts_with(|c: char| c.is_ascii_digit())
        || MONTHS.iter().any(|month| head.starts_with(month));
    let tag = head.rsplit_once(' ').map_or(head, |(_, tag)| tag);
    let (program, pid) = tag.split_once('[')?;
    let pid = pid.strip_suffix(']')?;
    let digits = !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit());
    // OpenSSH 9.8 split the work: sshd listens, sshd-session serves, since 10.0 sshd-auth knows users.
    let sshd = matches!(program, "sshd" | "sshd-session" | "sshd-auth");
    (time && digits && sshd).then_some(message)
}

fn last<'text>(text: &'text str, separator: &str) -> Option<&'text str> {
    text.rsplit_once(separator).map(|(_, rest)| rest)
}

/// `A port N` and nothing else.
fn address_and_port(text: &str) -> Option<IpAddr> {
    let (text, port) = text.split_once(" port ")?;
    port.parse::<u16>().ok()?;
    address(text)
}

/// An address, with a zone perhaps; a name (`UseDNS yes`) is none, because its owner chose it.
fn address(text: &str) -> Option<IpAddr> {
    let parsed = match text.split_once('%') {
        Some((text, _zone)) => text.parse::<Ipv6Addr>().map(IpAddr::V6).ok()?,
        None => text.parse().ok()?,
    };
    Some(parsed.to_canonical())
}
