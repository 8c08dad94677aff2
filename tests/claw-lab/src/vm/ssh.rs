//! The way into a machine: ssh with keys made for this machine alone.
//!
//! One connection is opened at boot and shared by all commands, because a handshake takes an
//! emulated processor a second. Everything is dialled from the lab's internet.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Process;
use crate::deadline::wait_for;
use crate::netns::Netns;
use crate::process::{self, Launch, Output, command};

/// The socket of the shared connection, within the machine's directory: a path from the root could
/// be longer than a socket's may be.
const SHARED: &str = "shared";
/// What ssh itself exits with when the connection fails (`man 1 ssh`).
pub(super) const BROKEN: i32 = 255;
/// How long sshd may take to greet and to let in.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Key pairs of the user and of the machine, in the machine's directory.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    dir: PathBuf,
    address: Ipv4Addr,
}

/// The shared connection. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Session {
    keys: Keys,
    network: Netns,
    _shared: Process,
}

impl Keys {
    /// Makes new ones in `dir`.
    pub(super) fn create(dir: &Path, address: Ipv4Addr) -> Result<Self> {
        for name in ["user", "host"] {
            let mut keygen = command("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(dir.join(name));
            process::run(keygen, Duration::from_secs(20))?;
        }
        let public = fs::read_to_string(dir.join("host.pub"))?;
        fs::write(dir.join("known_hosts"), format!("{address} {public}"))?;
        Ok(Self { dir: dir.to_owned(), address })
    }

    /// What goes to `authorized_keys`.
    pub(super) fn user_public(&self) -> Result<String> {
        fs::read_to_string(self.dir.join("user.pub")).context("cannot read the user's key")
    }

    /// What goes to `ssh_host_ed25519_key`.
    pub(super) fn host_private(&self) -> Result<String> {
        fs::read_to_string(self.dir.join("host")).context("cannot read the machine's key")
    }

    /// An ssh command to which options may be added, then the destination.
    fn ssh(&self, options: &[&str]) -> Command {
        let mut ssh = command("ssh");
        ssh.current_dir(&self.dir).args(["-F", "none", "-i", "user"]);
        let fixed = [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=yes",
            "UserKnownHostsFile=known_hosts",
            "GlobalKnownHostsFile=none",
            "LogLevel=ERROR",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=12",
        ];
        for option in fixed {
            ssh.args(["-o", option]);
        }
        let (timeout, path) = (HANDSHAKE.as_secs(), SHARED);
        ssh.arg("-o").arg(format!("ConnectTimeout={timeout}"));
        ssh.arg("-o").arg(format!("ControlPath={path}"));
        ssh.args(options).arg(format!("root@{}", self.address));
        ssh
    }
}

impl Session {
    /// Opens the connection and returns it with the id of the boot that it leads to.
    pub(super) fn open(keys: &Keys, network: &Netns) -> Result<(Self, String)> {
        let inside = network.clone();
        let _ = fs::remove_file(keys.dir.join(SHARED));
        let mut ssh = keys.ssh(&["-N", "-o", "ControlMaster=yes"]);
        ssh.stdin(Stdio::null());
        let launch = Launch::plain(ssh).prepared(move || inside.enter());
        let log = keys.dir.join("ssh.log");
        let _ = fs::remove_file(&log);
        let shared = launch.logging_to(log)?.spawn()?;
        wait_for("sshd to let us in", HANDSHAKE * 2, || {
            (!shared.is_running() || keys.dir.join(SHARED).exists()).then_some(())
        })?;
        if !shared.is_running() {
            bail!("ssh ended: {}", shared.log().trim_end());
        }
        let session = Self { keys: keys.clone(), network: network.clone(), _shared: shared };
        let asked = session.run("cat /proc/sys/kernel/random/boot_id", Stdio::null(), HANDSHAKE)?;
        if !asked.success() {
            bail!("the boot's id cannot be read: {}", asked.stderr);
        }
        Ok((session, asked.stdout.trim().to_owned()))
    }

    /// Runs a line of shell. It goes through the shared connection, and over one of its own should
    /// that be gone.
    pub(super) fn run(&self, line: &str, stdin: Stdio, deadline: Duration) -> Result<Output> {
        let mut ssh = self.keys.ssh(&["-T", "-o", "ControlMaster=no"]);
        ssh.arg(line);
        let inside = self.network.clone();
        Launch::plain(ssh).prepared(move || inside.enter()).run(stdin, deadline)
    }
}

/// A line of shell that is exactly these words.
pub(super) fn line(argv: &[&str]) -> String {
    let quoted = argv.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(argv: &[&str]) {
        let mut shell = command("sh");
        shell.args(["-c", &format!("printf '<%s>' {}", line(argv))]);
        let printed = process::run(shell, Duration::from_secs(5)).unwrap();
        let expected: String = argv.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(printed, expected);
    }

    #[test]
    fn a_shell_reads_the_words_as_they_are() {
        check(&["plain", "two words", "", "it's", "'", "$HOME `id` \\ \"x\"", "a\nb", "*"]);
    }
}
