//! What the kernel says of a process.

use std::fs;

use anyhow::{Context as _, Result};

/// Resources of a process at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Resident memory, KiB (`VmRSS` of proc_pid_status(5)).
    pub(crate) rss_kib: f64,
    /// User and system time of all its threads, those that ended included, in seconds.
    pub(crate) cpu: f64,
}

impl Usage {
    /// Reads it.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("no process")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("no process")?;
        let (_, fields) = stat.rsplit_once(')').context("no stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.filter_map(|field| field.parse::<f64>().ok()).sum();
        // USER_HZ of every Linux architecture we ship for (time(7)).
        Ok(Self { rss_kib: rss_kib.context("no VmRSS")?, cpu: ticks / 100.0 })
    }
}
