//! Devices that may give orders, and those that have asked to.
//!
//! A file each below `state/devices/`: `pending/<request>` holds a device's id, `paired/<device>` nothing. Like the
//! real one's, they are part of the state: rolling back takes the pairings back, too.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::startup::random_hex;

/// Most requests that wait at the same time.
const MAX_PENDING: usize = 16;

/// The devices that a gateway knows.
#[derive(Debug)]
pub(crate) struct Devices {
    dir: PathBuf,
}

impl Devices {
    /// Those of a state.
    pub(crate) fn of(state: &Path) -> Self {
        Self { dir: state.join("devices") }
    }

    /// Whether a device was approved.
    pub(crate) fn is_paired(&self, device: &str) -> bool {
        is_name(device) && self.dir.join("paired").join(device).exists()
    }

    /// Notes a request; the same one while it waits.
    pub(crate) fn ask(&self, device: &str) -> io::Result<String> {
        let pending = self.dir.join("pending");
        fs::create_dir_all(&pending)?;
        let mut waiting = 0;
        for entry in fs::read_dir(&pending)? {
            let entry = entry?;
            waiting += 1;
            if fs::read_to_string(entry.path())? == device {
                return Ok(entry.file_name().to_string_lossy().into_owned());
            }
        }
        if waiting >= MAX_PENDING || !is_name(device) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let request = random_hex()?;
        fs::write(pending.join(&request), device)?;
        Ok(request)
    }

    /// Approves one request; the device, if there was such a request.
    pub(crate) fn approve(&self, request: &str) -> io::Result<Option<String>> {
        let pending = self.dir.join("pending").join(request);
        if !is_name(request) || !pending.exists() {
            return Ok(None);
        }
        let device = fs::read_to_string(&pending)?;
        let paired = self.dir.join("paired");
        fs::create_dir_all(&paired)?;
        File::create(paired.join(&device))?.sync_all()?;
        fs::remove_file(pending)?;
        Ok(Some(device))
    }
}

fn is_name(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_paired_once_its_request_is_approved() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices::of(dir.path());
        let request = devices.ask("d1").unwrap();
        assert_eq!(devices.ask("d1").unwrap(), request);
        assert!(!devices.is_paired("d1"));
        assert_eq!(devices.approve("unknown").unwrap(), None);
        assert_eq!(devices.approve(&request).unwrap(), Some("d1".to_owned()));
        assert!(devices.is_paired("d1"));
        assert_eq!(devices.approve(&request).unwrap(), None);
    }

    #[test]
    fn names_stay_within_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let devices = Devices::of(dir.path());
        assert!(!devices.is_paired("../paired"));
        assert!(devices.ask("../d").is_err());
        assert_eq!(devices.approve("../pending").unwrap(), None);
        for device in 0..MAX_PENDING {
            devices.ask(&format!("d{device}")).unwrap();
        }
        assert!(devices.ask("one-more").is_err());
    }
}
