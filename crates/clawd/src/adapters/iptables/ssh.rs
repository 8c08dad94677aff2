//! On which ports operators reach this host by SSH.
//!
//! Two answers, put together: ports on which a server listens now, and ports on which sshd will listen
//! after its next start, by its configuration or its socket unit. A port too many lets nobody in where
//! nothing listens; a port too few locks an operator out. So a port that was edited away stays open until
//! sshd lets go of it, and one that was edited in is open before.
//!
//! That a socket is sshd's shows in `/proc/PID/fd`, for which the kernel asks for CAP_SYS_PTRACE, because
//! the agent has fewer capabilities than sshd (ptrace(2), "access mode checking"). `sshd -T` would not do:
//! it prints what a start would do, needs the host keys, and refuses to run while sshd is down and
//! `/run/sshd` is not there, which is so at boot. What this deliberately does not do: find servers in
//! containers, or ports that a router in front of the host forwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::firewall::Port;

use crate::adapters::command;

/// Programs that serve SSH, as `/proc/PID/comm` has them.
const SERVERS: [&str; 2] = ["sshd", "dropbear"];
/// Units that listen for sshd: Debian's and Ubuntu's, and the upstream name.
const SOCKET_UNITS: [&str; 2] = ["ssh.socket", "sshd.socket"];
/// How deep `Include`s are followed (`SERVCONF_MAX_DEPTH` in OpenSSH).
const MAX_DEPTH: u8 = 16;
/// systemctl answers in 10 ms; this is for a machine under load.
const DEADLINE: Duration = Duration::from_secs(10);
/// State of a listening socket in `/proc/net/tcp` (`TCP_LISTEN` in the kernel's `tcp_states.h`).
const LISTENING: &str = "0A";
/// What sshd listens on unless it is told otherwise (sshd_config(5)).
const STANDARD: u16 = 22;

/// Every port, as the module says; never empty. Blocking file access aside, it runs `systemctl`.
pub(super) async fn ports() -> BTreeSet<Port> {
    let mut ports = listening(Path::new("/proc"));
    let files = Files { root: Path::new("/") };
    ports.extend(files.configured());
    for unit in SOCKET_UNITS {
        let argv = ["systemctl", "show", "--property=Listen,ActiveState,UnitFileState", unit];
        // Without systemd there are no socket units.
        let told = command::run(&argv, DEADLINE).await.unwrap_or_default();
        ports.extend(of_socket_unit(&told));
    }
    ports
}

/// Ports on which a server listens, on other than loopback addresses.
fn listening(proc: &Path) -> BTreeSet<Port> {
    let mut sockets = BTreeMap::new();
    for table in ["net/tcp", "net/tcp6"] {
        let text = std::fs::read_to_string(proc.join(table)).unwrap_or_default();
        sockets.extend(text.lines().filter_map(listener));
    }
    let mut found = BTreeSet::new();
    for process in entries(proc) {
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        if SERVERS.contains(&name.trim_end()) {
            let files = entries(&process.join("fd")).into_iter();
            let inodes = files.filter_map(|file| socket_inode(&std::fs::read_link(file).ok()?));
            found.extend(inodes.filter_map(|inode| sockets.get(&inode).copied()));
        }
    }
    found
}

/// What a directory holds; nothing if it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// `socket:[12345]`, as proc(5) shows a socket.
fn socket_inode(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Inode and port of a socket that listens on other than loopback, from a line of `/proc/net/tcp`.
fn listener(line: &str) -> Option<(u64, Port)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    if *fields.get(3)? != LISTENING || is_loopback(address) {
        return None;
    }
    let port = Port::new(u16::from_str_radix(port, 16).ok()?)?;
    Some((fields.get(9)?.parse().ok()?, port))
}

/// Whether an address in the hexadecimal words of `/proc/net/tcp` or `tcp6` is a loopback address.
fn is_loopback(address: &str) -> bool {
    let words = address.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).unwrap_or_default();
        u32::from_str_radix(word, 16).unwrap_or_default().to_ne_bytes()
    });
    let bytes: Vec<u8> = words.flatten().collect();
    match (<[u8; 4]>::try_from(bytes.as_slice()), <[u8; 16]>::try_from(bytes.as_slice())) {
        (Ok(v4), _) => Ipv4Addr::from(v4).is_loopback(),
        (_, Ok(v6)) => Ipv6Addr::from(v6).is_loopback(),
        _ => false,
    }
}

/// Ports of a socket unit that is active or will be, from `systemctl show`.
fn of_socket_unit(told: &str) -> BTreeSet<Port> {
    let value = |key: &str| {
        told.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    let is = |key: &str, wanted: &str| -> bool {
        let values: Vec<&str> = value(key);
        values.contains(&wanted)
    };
    if !is("ActiveState", "active") && !is("UnitFileState", "enabled") {
        return BTreeSet::new();
    }
    let listens: Vec<&str> = value("Listen");
    listens.into_iter().filter_map(|listen| endpoint(listen.strip_suffix(" (Stream)")?)).collect()
}

/// The port of `[::]:22`, `0.0.0.0:22`, `name:22` or `22`; none of a loopback address.
fn endpoint(text: &str) -> Option<Port> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) || host == "localhost";
    Port::new(port.parse().ok()?).filter(|_| !loopback)
}

/// sshd's configuration below a root directory.
struct Files<'a> {
    root: &'a Path,
}

/// What sshd_config(5) says of listening.
#[derive(Debug, Default)]
struct Listening {
    /// `Port`.
    ports: BTreeSet<Port>,
    /// There is a `ListenAddress` without a port: it takes those of `Port`.
    bare_address: bool,
    /// There is a `ListenAddress` with a port.
    endpoint: bool,
    /// Ports of those that are not loopback.
    endpoints: BTreeSet<Port>,
}

impl Files<'_> {
    /// Ports on which sshd listens after its next start.
    fn configured(&self) -> BTreeSet<Port> {
        let mut listening = Listening::default();
        self.read(Path::new("/etc/ssh/sshd_config"), 0, &mut listening);
        let options = self.text(Path::new("/etc/default/ssh"));
        let mut ports = ports_of_options(&options);
        if ports.is_empty() {
            ports = listening.ports;
        }
        if ports.is_empty() && (listening.bare_address || !listening.endpoint) {
            ports.extend(Port::new(STANDARD));
        }
        ports.extend(listening.endpoints);
        ports
    }

    fn text(&self, path: &Path) -> String {
        let relative = path.strip_prefix("/").unwrap_or(path);
        std::fs::read_to_string(self.root.join(relative)).unwrap_or_default()
    }

    fn read(&self, path: &Path, depth: u8, listening: &mut Listening) {
        for line in self.text(path).lines() {
            let (keyword, value) = split_line(line);
            match keyword.to_ascii_lowercase().as_str() {
                "port" => listening.ports.extend(value.parse().ok().and_then(Port::new)),
                "listenaddress" => listening.listen_address(value),
                "include" if depth < MAX_DEPTH => {
                    for pattern in value.split_ascii_whitespace() {
                        for file in self.matching(pattern) {
                            self.read(&file, depth + 1, listening);
                        }
                    }
                }
                // Up to the next one or the end, neither ports nor addresses may stand.
                "match" => return,
                _ => {}
            }
        }
    }

    /// Files that a pattern of `Include` means; wildcards in its last part only.
    fn matching(&self, pattern: &str) -> Vec<PathBuf> {
        let pattern = Path::new("/etc/ssh").join(pattern.trim_matches('"'));
        let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name()) else {
            return Vec::new();
        };
        let name = name.to_string_lossy();
        let below = self.root.join(directory.strip_prefix("/").unwrap_or(directory));
        let found = entries(&below).into_iter().filter_map(|path| {
            let file = path.file_name()?.to_str()?.to_owned();
            matches(&name, &file).then(|| directory.join(file))
        });
        found.collect()
    }
}

impl Listening {
    fn listen_address(&mut self, value: &str) {
        let address = value.split_ascii_whitespace().next().unwrap_or_default();
        // Colons outside brackets are an IPv6 address without a port.
        let bare = address.parse::<IpAddr>().is_ok() || !address.contains(':');
        if bare || address.ends_with(']') {
            self.bare_address = true;
        } else {
            self.endpoint = true;
            self.endpoints.extend(endpoint(address));
        }
    }
}

/// Keyword and value of a line of sshd_config(5).
fn split_line(line: &str) -> (&str, &str) {
    let line = line.trim();
    let end = line.find(|c: char| c.is_ascii_whitespace() || c == '=').unwrap_or(line.len());
    let (keyword, value) = line.split_at_checked(end).unwrap_or((line, ""));
    let value = value.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '=');
    (keyword, value.split(" #").next().unwrap_or_default().trim().trim_matches('"'))
}

/// Ports of `-p 2222`, `-p2222`, `-o Port=2222` in a line such as `SSHD_OPTS="-p 2222"`.
fn ports_of_options(text: &str) -> BTreeSet<Port> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("SSHD_OPTS="));
    let words: Vec<&str> = lines
        .flat_map(|line| line.split([' ', '\t', '"', '\'']))
        .filter(|word| !word.is_empty())
        .collect();
    let pairs = words.iter().zip(words.iter().skip(1).chain([&""]));
    let found = pairs.filter_map(|(word, next)| match *word {
        "-p" => next.parse().ok(),
        "-o" => next.strip_prefix("Port=")?.parse().ok(),
        joined => {
            joined.strip_prefix("-p").or_else(|| joined.strip_prefix("-oPort="))?.parse().ok()
        }
    });
    found.filter_map(Port::new).collect()
}

/// Whether a name matches a pattern of `*` and `?` (glob(7) without brackets).
fn matches(pattern: &str, name: &str) -> bool {
    let (mut rest, mut pattern) = (name.chars(), pattern.chars());
    match pattern.next() {
        None => name.is_empty(),
        Some('*') => {
            let tail = pattern.as_str();
            // A leading dot is matched by a dot only.
            !name.starts_with('.')
                && (0..=name.len())
                    .any(|skip| name.get(skip..).is_some_and(|name| matches(tail, name)))
        }
        Some(wanted) => match rest.next() {
            Some(c) if c == wanted || wanted == '?' => matches(pattern.as_str(), rest.as_str()),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(ports: &BTreeSet<Port>) -> String {
        ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &str) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        assert_eq!(shown(&Files { root: root.path() }.configured()), expected);
    }

    #[test]
    fn the_configuration_is_read_as_sshd_reads_it() {
        const MAIN: &str = "etc/ssh/sshd_config";
        check(&[], "22");
        check(&[(MAIN, "#Port 2222\nUsePAM yes\n")], "22");
        check(&[(MAIN, "port 2222\nPort=2200\n")], "2200 2222");
        check(&[(MAIN, "ListenAddress 192.0.2.1\n")], "22");
        check(&[(MAIN, "ListenAddress 2001:db8::1\nPort 24\n")], "24");
        check(&[(MAIN, "ListenAddress 192.0.2.1:2222\nListenAddress [::]:2223\n")], "2222 2223");
        check(&[(MAIN, "Port 24\nListenAddress 0.0.0.0:2222\n")], "24 2222");
        check(&[(MAIN, "ListenAddress 127.0.0.1:2222\nListenAddress [::1]:2223\nPort 5\n")], "5");
        check(&[(MAIN, "Match User x\nPort 2222\n")], "22");
        let included = ("etc/ssh/sshd_config.d/10-port.conf", "Port 2022\n");
        let include = (MAIN, "Include /etc/ssh/sshd_config.d/*.conf\n");
        check(&[include, included, ("etc/ssh/sshd_config.d/x.txt", "Port 1\n")], "2022");
        check(&[(MAIN, "Include sshd_config.d/*-port.????\n"), included], "2022");
        check(&[(MAIN, "Include sshd_config\nPort 7\n")], "7");
        check(&[("etc/default/ssh", "SSHD_OPTS=\"-4 -p 2224\"\n")], "2224");
        check(&[("etc/default/ssh", "SSHD_OPTS='-oPort=99 -p98 -o Port=97'\n")], "97 98 99");
    }

    #[test]
    fn sockets_that_listen_are_read() {
        let v4 = "   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2352285 1 0 100 0 0 10 0";
        assert_eq!(listener(v4), Some((2_352_285, Port::new(22).unwrap())));
        assert_eq!(listener(&v4.replace(" 0A ", " 01 ")), None);
        assert_eq!(listener(&v4.replace("00000000:0016", "0100007F:0016")), None);
        let v6 = v4.replace("00000000:0016", "00000000000000000000000001000000:08AE");
        assert_eq!(listener(&v6), None, "::1");
        let any = v4.replace("00000000:0016", "00000000000000000000000000000000:08AE");
        assert_eq!(listener(&any), Some((2_352_285, Port::new(2222).unwrap())));
        assert_eq!(listener("  sl  local_address rem_address   st"), None);
    }

    #[test]
    fn socket_units_count_when_they_listen_or_will() {
        let told =
            "Listen=[::]:22 (Stream)\nListen=0.0.0.0:2222 (Stream)\nListen=127.0.0.1:9 (Stream)\n";
        let ports = |state: &str| shown(&of_socket_unit(&format!("{told}{state}")));
        assert_eq!(ports("ActiveState=active\nUnitFileState=disabled\n"), "22 2222");
        assert_eq!(ports("ActiveState=inactive\nUnitFileState=enabled\n"), "22 2222");
        assert_eq!(ports("ActiveState=inactive\nUnitFileState=disabled\n"), "");
    }

    #[test]
    fn a_server_is_found_by_its_socket() {
        // Of this machine, whatever listens on it: the search ends and needs no permission.
        let found = listening(Path::new("/proc"));
        assert!(found.len() < 100, "{found:?}");
    }
}
