//! The key with which this host stands before gateways: one for all of them, made when first needed, sealed.
//!
//! A gateway has given its key scopes; the key alone opens nothing, because every gateway wants its own token
//! too. One that is lost is replaced: gateways then have to get to know the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use claw_identity::seal::{SealError, SealKey, SealKeyError};
use openclaw::device::{Device, DeviceError};

/// The file below the agent's data.
const FILE: &str = "gateway-device";

/// What the seal is bound to.
const CONTEXT: &[u8] = b"clawd/gateway-device";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceKeyError {
    /// The file cannot be read or written.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The agent's seal key cannot be used.
    #[error("cannot use the agent's seal key")]
    SealKey(#[from] SealKeyError),
    /// A new key cannot be made.
    #[error("cannot make a key")]
    Make(#[from] DeviceError),
    /// A new key cannot be sealed.
    #[error("cannot seal a new key")]
    Seal(#[from] SealError),
}

/// The key; a new one if there is none that can be used. Blocking.
pub(super) fn load_or_make(data: &Path) -> Result<Device, DeviceKeyError> {
    let path = data.join(FILE);
    let seal_key = SealKey::load_or_create(&data.join("seal.key"), &mut rand::rng())?;
    match fs::read(&path) {
        Ok(sealed) => match open(&seal_key, &sealed) {
            Some(device) => return Ok(device),
            None => tracing::warn!(path = %path.display(), "replacing a key that does not open"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(DeviceKeyError::File { doing: "reading", path, source }),
    }
    let key = zeroize::Zeroizing::new(Device::generate()?);
    let device = Device::from_pkcs8(&key)?;
    let sealed = seal_key.seal(CONTEXT, &key, &mut rand::rng())?;
    match write(data, &path, &sealed) {
        Ok(()) => Ok(device),
        Err(source) => Err(DeviceKeyError::File { doing: "writing", path, source }),
    }
}

fn open(seal_key: &SealKey, sealed: &[u8]) -> Option<Device> {
    let key = seal_key.open(CONTEXT, sealed).ok()?;
    Device::from_pkcs8(&key).ok()
}

fn write(data: &Path, path: &Path, sealed: &[u8]) -> io::Result<()> {
    let partial = path.with_added_extension("partial");
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    let mut file = options.open(&partial)?;
    file.write_all(sealed)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    File::open(data)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_stays_and_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_make(dir.path()).unwrap();
        assert_eq!(load_or_make(dir.path()).unwrap().id(), first.id());
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            Device::from_pkcs8(&fs::read(&path).unwrap()).unwrap_err(),
            DeviceError::Malformed
        );
    }

    #[test]
    fn a_key_that_does_not_open_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_make(dir.path()).unwrap();
        fs::write(dir.path().join(FILE), b"nonsense").unwrap();
        let second = load_or_make(dir.path()).unwrap();
        assert_ne!(second.id(), first.id());
        assert_eq!(load_or_make(dir.path()).unwrap().id(), second.id());
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(FILE)).unwrap();
        let error = load_or_make(dir.path()).unwrap_err();
        assert!(error.to_string().starts_with("reading "), "{error}");
    }
}
