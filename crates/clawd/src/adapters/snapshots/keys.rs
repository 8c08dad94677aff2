//! What opens a repository: made once, sealed, and durable before the repository is.
//!
//! Keys that are lost are never replaced: a new repository over an old one would look as if there had been
//! no snapshots.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use claw_core::name::InstanceName;
use claw_core::stamp::Digest;
use claw_identity::seal::{OpenError, SealError, SealKey, SealKeyError};
use claw_snapshot::{RecoveryPassword, RepositorySecret};
use zeroize::Zeroizing;

use super::{arrivals, keys_path};
use crate::ports::RepositoryKeys;
use crate::snap_worker;

/// What is done without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// Nothing: there is no repository.
    None,
    /// New ones are made.
    Make,
}

/// The keys of one repository.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) secret: RepositorySecret,
    pub(super) recovery: RecoveryPassword,
}

/// Why keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// A file cannot be read or written.
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
    /// There is a repository, and no keys.
    #[error(
        "{} is missing and {} needs it; hint: put it back, or move the repository away, which then opens with \
         its recovery password only",
        keys.display(), repository.display()
    )]
    Lost {
        /// Where the keys should be.
        keys: PathBuf,
        /// The repository.
        repository: PathBuf,
    },
    /// The agent's seal key cannot be used.
    #[error("cannot use the agent's seal key")]
    SealKey(#[from] SealKeyError),
    /// They do not open.
    #[error("{} does not open; hint: put back the seal.key that it was sealed with", path.display())]
    Sealed {
        /// The keys.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// They opened and are none.
    #[error("{} holds no keys", path.display())]
    Malformed {
        /// The keys.
        path: PathBuf,
    },
    /// They cannot be sealed.
    #[error("cannot seal new keys")]
    Seal(#[from] SealError),
    /// Those that were given are none.
    #[error("the given keys are none")]
    Given,
    /// Those that were given are not those of the repository that is here.
    #[error("{} is opened by other keys", repository.display())]
    Other {
        /// The repository.
        repository: PathBuf,
    },
}

/// The keys of an instance's repository; `None` when it has none and none are to be made. Blocking.
pub(super) fn read(
    data: &Path,
    instance: &InstanceName,
    missing: Missing,
) -> Result<Option<Keys>, KeysError> {
    let path = keys_path(data, instance);
    let repository = data.join("repo").join(instance.as_str());
    match fs::read(&path) {
        Ok(sealed) => open(data, instance, &path, &sealed).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let exists = snap_worker::is_repository(&repository)
                .map_err(|source| file("looking at", &repository, source))?;
            match (exists, missing) {
                (true, _) => Err(KeysError::Lost { keys: path, repository }),
                (false, Missing::None) => Ok(None),
                (false, Missing::Make) => make(data, instance, &path).map(Some),
            }
        }
        Err(source) => Err(file("reading", &path, source)),
    }
}

fn open(
    data: &Path,
    instance: &InstanceName,
    path: &Path,
    sealed: &[u8],
) -> Result<Keys, KeysError> {
    let opened = seal_key(data)?
        .open(&context(instance), sealed)
        .map_err(|source| KeysError::Sealed { path: path.to_owned(), source })?;
    parse(&opened).ok_or_else(|| KeysError::Malformed { path: path.to_owned() })
}

/// Two lines: the secret's digits, the recovery password.
fn parse(text: &[u8]) -> Option<Keys> {
    let (secret, recovery) = std::str::from_utf8(text).ok()?.split_once('\n')?;
    let secret = Digest::from_hex(secret)?;
    Some(Keys {
        secret: RepositorySecret::from_bytes(*secret.as_bytes()),
        recovery: RecoveryPassword::parse(recovery).ok()?,
    })
}

/// The keys of a repository that comes from elsewhere. Blocking.
///
/// Where a repository is already, they must be its keys. Otherwise they are kept, and before that it is noted
/// that this repository has not been used here.
pub(super) fn accept(
    data: &Path,
    instance: &InstanceName,
    given: &RepositoryKeys,
) -> Result<Keys, KeysError> {
    let text = Zeroizing::new(format!("{}\n{}", given.secret.reveal(), given.recovery.reveal()));
    let keys = parse(text.as_bytes()).ok_or(KeysError::Given)?;
    if let Some(there) = read(data, instance, Missing::None)? {
        if there.secret.password() == keys.secret.password() {
            return Ok(there);
        }
        let repository = data.join("repo").join(instance.as_str());
        return Err(KeysError::Other { repository });
    }
    let sealed = seal(data, instance, &keys)?;
    arrivals::note(data, instance, &sealed)
        .map_err(|source| file("writing", &arrivals::path(data, instance), source))?;
    keep(data, &keys_path(data, instance), &sealed)?;
    Ok(keys)
}

fn make(data: &Path, instance: &InstanceName, path: &Path) -> Result<Keys, KeysError> {
    let random = &mut rand::rng();
    let keys = Keys {
        secret: RepositorySecret::generate(random),
        recovery: RecoveryPassword::generate(random),
    };
    keep(data, path, &seal(data, instance, &keys)?)?;
    Ok(keys)
}

fn seal(data: &Path, instance: &InstanceName, keys: &Keys) -> Result<Vec<u8>, KeysError> {
    let text =
        Zeroizing::new(format!("{}\n{}", keys.secret.password().as_str(), keys.recovery.expose()));
    make_directory(data)?;
    let key = seal_key(data)?;
    Ok(key.seal(&context(instance), text.as_bytes(), &mut rand::rng())?)
}

fn make_directory(data: &Path) -> Result<(), KeysError> {
    let directory = data.join("repo");
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .and_then(|()| sync(data))
        .map_err(|source| file("making", &directory, source))
}

fn keep(data: &Path, path: &Path, sealed: &[u8]) -> Result<(), KeysError> {
    write(&data.join("repo"), path, sealed).map_err(|source| file("writing", path, source))
}

/// Writes a file of a directory, whole or not at all.
pub(super) fn write(directory: &Path, path: &Path, sealed: &[u8]) -> io::Result<()> {
    let partial = path.with_added_extension("partial");
    let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
    let mut file = options.open(&partial)?;
    file.write_all(sealed)?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    sync(directory)
}

pub(super) fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

fn seal_key(data: &Path) -> Result<SealKey, SealKeyError> {
    SealKey::load_or_create(&data.join("seal.key"), &mut rand::rng())
}

fn context(instance: &InstanceName) -> Vec<u8> {
    format!("clawd/repository-keys/{instance}").into_bytes()
}

fn file(doing: &'static str, path: &Path, source: io::Error) -> KeysError {
    KeysError::File { doing, path: path.to_owned(), source }
}
