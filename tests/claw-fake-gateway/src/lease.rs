//! The owner lease: one gateway per state directory.
//!
//! As in OpenClaw, the file holds who owns the state (`pid`, `host`, `startedAt`) and until when. A lease
//! left behind by a process of the **same** hostname that is provably gone is taken over at once; one of
//! another hostname only when it has expired, which is the trap for a container that is recreated under
//! a new name after it was killed. A clean end removes it, a crash does not.
//!
//! Source: `gateway-owner-lease.ts` and `state-lease-process-owner.ts` in openclaw 2026.9.6, which keep the
//! same fields in SQLite.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use crate::clock;
use crate::state::write_durably;

/// How long a lease lasts unless renewed. Source: `STARTUP_MIGRATION_LEASE_TTL_MS`.
const LASTS_MS: u64 = 300_000;

/// Why the lease cannot be had.
#[derive(Debug, Error)]
pub(crate) enum LeaseError {
    #[error("Another Gateway owner lease is still active for this state directory")]
    Held,
    #[error("writing the owner lease: {0}")]
    Write(#[source] io::Error),
}

/// A lease that this process holds.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    owner: Owner,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    pid: u64,
    host: String,
    started_at: Option<u64>,
}

impl Lease {
    /// Takes the lease in `dir`.
    pub(crate) fn acquire(dir: &Path) -> Result<Self, LeaseError> {
        let path = dir.join("lease");
        let owner = Owner::this_process();
        if let Some((holder, expires)) = read(&path)
            && expires > clock::unix_millis()
            && !owner.knows_dead(&holder)
        {
            return Err(LeaseError::Held);
        }
        let lease = Self { path, owner };
        lease.renew().map_err(LeaseError::Write)?;
        Ok(lease)
    }

    /// Moves the expiry forward.
    pub(crate) fn renew(&self) -> io::Result<()> {
        let lease = json!({
            "pid": self.owner.pid,
            "host": self.owner.host,
            "startedAt": self.owner.started_at,
            "expires": clock::unix_millis() + LASTS_MS,
        });
        write_durably(&self.path, &lease.to_string())
    }

    /// Gives it up, if it still is ours.
    pub(crate) fn release(self) {
        if read(&self.path).is_some_and(|(holder, _)| holder == self.owner) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Owner {
    fn this_process() -> Self {
        let pid = u64::from(std::process::id());
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { pid, host: host.trim().to_owned(), started_at: start_time(pid) }
    }

    /// Whether `holder` ran under our hostname and provably runs no more.
    fn knows_dead(&self, holder: &Self) -> bool {
        if holder.host != self.host {
            return false;
        }
        match (start_time(holder.pid), holder.started_at) {
            (None, _) => true,
            (Some(now), Some(then)) => now != then,
            (Some(_), None) => false,
        }
    }
}

fn read(path: &Path) -> Option<(Owner, u64)> {
    let lease: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    let owner = Owner {
        pid: lease.get("pid")?.as_u64()?,
        host: lease.get("host")?.as_str()?.to_owned(),
        started_at: lease.get("startedAt")?.as_u64(),
    };
    Some((owner, lease.get("expires")?.as_u64()?))
}

/// When a process started, in clock ticks since boot: field 22 of `/proc/<pid>/stat` (proc(5)).
fn start_time(pid: u64) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and can hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leave(dir: &Path, host: &str, started_at: u64, expires: u64) {
        let pid = std::process::id();
        let lease =
            json!({ "pid": pid, "host": host, "startedAt": started_at, "expires": expires });
        fs::write(dir.join("lease"), lease.to_string()).unwrap();
    }

    #[test]
    fn another_hostname_blocks_until_it_expires() {
        let dir = tempfile::tempdir().unwrap();
        leave(dir.path(), "another-host", 1, clock::unix_millis() + 60_000);
        assert!(matches!(Lease::acquire(dir.path()), Err(LeaseError::Held)));
        leave(dir.path(), "another-host", 1, clock::unix_millis() - 1);
        Lease::acquire(dir.path()).unwrap();
    }

    #[test]
    fn the_same_hostname_takes_over_from_the_dead_only() {
        let dir = tempfile::tempdir().unwrap();
        let me = Owner::this_process();
        let future = clock::unix_millis() + 60_000;
        leave(dir.path(), &me.host, me.started_at.unwrap() + 1, future);
        Lease::acquire(dir.path()).unwrap();
        leave(dir.path(), &me.host, me.started_at.unwrap(), future);
        assert!(matches!(Lease::acquire(dir.path()), Err(LeaseError::Held)));
    }

    #[test]
    fn it_lasts_five_minutes_and_goes_when_released() {
        let dir = tempfile::tempdir().unwrap();
        let before = clock::unix_millis();
        let lease = Lease::acquire(dir.path()).unwrap();
        let (_, expires) = read(&lease.path).unwrap();
        assert!(expires >= before + LASTS_MS);
        lease.release();
        assert!(!dir.path().join("lease").exists());
    }

    #[test]
    fn a_lease_that_another_took_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let lease = Lease::acquire(dir.path()).unwrap();
        leave(dir.path(), "another-host", 1, clock::unix_millis() + 60_000);
        lease.release();
        assert!(dir.path().join("lease").exists());
    }
}
