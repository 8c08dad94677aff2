//! Stops a host's agent in front of the k-th command that it runs, to kill it there.
//!
//! Wrappers before the real programs on the agent's path count what is run. They do nothing until they
//! are armed.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::LabHost;

use crate::unit::outside;

/// Where the wrappers count, on the host.
const DIR: &str = "/run/steps";
/// The programs that change the firewall, or have it changed.
const PROGRAMS: [&str; 7] = [
    "/usr/sbin/iptables-restore",
    "/usr/sbin/ip6tables-restore",
    "/usr/sbin/iptables",
    "/usr/sbin/ip6tables",
    "/usr/sbin/ipset",
    "/usr/sbin/conntrack",
    "/usr/bin/systemctl",
];

/// The wrappers of one host.
#[derive(Debug)]
pub struct Steps<'a> {
    host: &'a LabHost,
    dir: PathBuf,
}

impl<'a> Steps<'a> {
    /// Puts the wrappers in place.
    ///
    /// # Errors
    /// When the host is off.
    pub fn install(host: &'a LabHost) -> Result<Self> {
        for real in PROGRAMS {
            let name = real.rsplit('/').next().unwrap_or(real);
            // Of the trial, which has no network but a loopback and changes nothing of the host's, only
            // the programs that are given a text.
            let script = format!(
                "#!/bin/sh\n\
                 [ -e {DIR}/stop ] && [ -w {DIR} ] || exec {real} \"$@\"\n\
                 grep -q eth0 /proc/net/dev || case {name} in\n\
                 iptables|ip6tables|ipset) exec {real} \"$@\" ;;\n\
                 esac\n\
                 n=1\n\
                 while [ $n -lt 500 ] && ! mkdir {DIR}/$n 2>/dev/null; do n=$((n + 1)); done\n\
                 echo \"{name} $*\" > {DIR}/$n/command\n\
                 if [ \"$n\" = \"$(cat {DIR}/stop)\" ]; then\n\
                 \x20   : > {DIR}/blocked\n\
                 \x20   while [ -e {DIR}/stop ]; do sleep 0.02; done\n\
                 fi\n\
                 exec {real} \"$@\"\n"
            );
            host.write_file(&format!("/usr/local/sbin/{name}"), 0o755, script.as_bytes())?;
        }
        Ok(Self { host, dir: outside(host, DIR)? })
    }

    /// From now on the `number`th command waits, counted from 1.
    ///
    /// # Errors
    /// When the host is off.
    pub fn arm(&self, number: usize) -> Result<()> {
        self.host.exec_ok(&["sh", "-c", &format!("rm -rf {DIR} && mkdir {DIR}")])?;
        self.host.write_file(&format!("{DIR}/stop"), 0o644, number.to_string().as_bytes())
    }

    /// Whether a command waits.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.dir.join("blocked").exists()
    }

    /// Which command it is.
    ///
    /// # Errors
    /// When there was none of this number.
    pub fn command(&self, number: usize) -> Result<String> {
        let file = self.dir.join(number.to_string()).join("command");
        // The wrapper may still be writing it.
        let words = claw_lab::wait_for("the step's command", Duration::from_secs(5), || {
            std::fs::read_to_string(&file).ok().filter(|text| text.ends_with('\n'))
        });
        Ok(words.with_context(|| format!("no step {number}"))?.trim_end().to_owned())
    }

    /// Lets the waiting command go on; no further one waits.
    ///
    /// # Errors
    /// When the host is off.
    pub fn release(&self) -> Result<()> {
        self.host.exec_ok(&["rm", "-f", &format!("{DIR}/stop")]).map(drop)
    }
}
