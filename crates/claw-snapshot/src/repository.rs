//! A repository: made, opened, and its keys.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use rand::RngCore;
use rustic_core::repofile::MasterKey;
use rustic_core::{
    ConfigOptions, Credentials, KeyOptions, OpenStatus, RepositoryBackends, RepositoryOptions,
};

use crate::backend::Backend;
use crate::codec::Codec;
use crate::engine::RepositoryError;
use crate::id::FileId;
use crate::key_file::{self, KeyFileError};
use crate::secret::{Credential, KeyRole, RecoveryPassword, RepositorySecret};
use crate::storage::{FileKind, Storage, StorageError};

/// Packs of this size keep the engine's memory small (facts: 44 MB of RSS).
const DATA_PACK: u64 = 4 << 20;
const TREE_PACK: u64 = 2 << 20;
/// Small chunks, because most of the data is SQLite, which changes pages all over a file: with
/// restic's 1 MiB every changed page costs a megabyte. The average must be a power of two.
const CHUNK: u64 = 256 << 10;
const SMALLEST_CHUNK: u64 = 128 << 10;
const LARGEST_CHUNK: u64 = 1 << 20;
const ZSTD_LEVEL: i32 = 3;

/// An open repository. Every operation reads what it needs anew; nothing is kept in memory
/// between two.
pub struct Repository {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) master: MasterKey,
}

/// A repository could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is one already.
    #[error("{location} is a repository already")]
    Exists {
        /// Where.
        location: String,
    },
    /// A key file could not be made.
    #[error("making a key file failed")]
    KeyFile(#[from] KeyFileError),
    /// The storage or the engine failed.
    #[error("making the repository failed")]
    Repository(#[from] RepositoryError),
}

/// A repository could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("{location} is no repository")]
    Absent {
        /// Where.
        location: String,
    },
    /// No key file opens with the credential.
    #[error("no key of {location} belongs to the given secret or password")]
    WrongCredential {
        /// Where.
        location: String,
    },
    /// The storage or the engine failed.
    #[error("opening the repository failed")]
    Repository(#[from] RepositoryError),
}

/// A key could not be replaced; the old one is still good.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceKeyError {
    /// The key file could not be made.
    #[error("making a key file failed")]
    KeyFile(#[from] KeyFileError),
    /// The storage failed.
    #[error("replacing a key file failed")]
    Storage(#[from] StorageError),
    /// What was written does not open the repository.
    #[error("the new key file does not open the repository")]
    NotReadable,
}

/// The engine's repository, and the backend that knows what its storage did.
pub(crate) struct Engine {
    pub(crate) repository: rustic_core::Repository<OpenStatus>,
    pub(crate) backend: Arc<Backend>,
}

impl Repository {
    /// Makes a repository with a new random master key and two key files for it: one that opens
    /// with `secret`, one that opens with `recovery`. Both have a cheap derivation (1 MiB):
    /// they are random and long enough not to need an expensive one.
    ///
    /// What an earlier attempt left behind is taken over; the configuration is written last.
    ///
    /// # Errors
    ///
    /// When there is one already, or it could not be written.
    pub fn create(
        storage: Arc<dyn Storage>,
        secret: &RepositorySecret,
        recovery: &RecoveryPassword,
        random: &mut impl RngCore,
    ) -> Result<Self, CreateError> {
        storage.prepare().map_err(RepositoryError::from)?;
        if has_config(storage.as_ref())? {
            return Err(CreateError::Exists { location: storage.location() });
        }
        // Without a configuration nothing was ever encrypted with these.
        for (id, _) in storage.list(FileKind::Key).map_err(RepositoryError::from)? {
            storage.remove(FileKind::Key, id).map_err(RepositoryError::from)?;
        }
        let master = MasterKey::new();
        let keys = [
            (KeyRole::Agent, Credential::Secret(secret.clone())),
            (KeyRole::Recovery, Credential::Recovery(recovery.clone())),
        ];
        for (role, credential) in keys {
            let content = key_file::seal(&master, role, &credential.password(), random)?;
            write_key(storage.as_ref(), content).map_err(RepositoryError::from)?;
        }
        let backend = Arc::new(Backend::new(Arc::clone(&storage)));
        engine_on(&backend)
            .and_then(|engine| {
                let credentials = Credentials::Masterkey(master.clone());
                engine.init(&credentials, &KeyOptions::default(), &settings())
            })
            .map_err(|fault| RepositoryError::new("making the repository", &backend, fault))?;
        Ok(Self { storage, master })
    }

    /// Opens a repository.
    ///
    /// # Errors
    ///
    /// When there is none, the credential is not its, or it cannot be read.
    pub fn open(storage: Arc<dyn Storage>, credential: &Credential) -> Result<Self, OpenError> {
        let location = storage.location();
        if !has_config(storage.as_ref())? {
            return Err(OpenError::Absent { location });
        }
        let Some(master) = find_master(storage.as_ref(), credential)? else {
            return Err(OpenError::WrongCredential { location });
        };
        let repository = Self { storage, master };
        // The configuration is encrypted with the master key: this proves that both are good.
        repository.engine()?;
        Ok(repository)
    }

    /// Gives a role a new credential: adds its key file, checks it, removes the role's others.
    /// The data is not encrypted anew, so whoever had the master key still has it.
    ///
    /// # Errors
    ///
    /// When the new key file could not be written or does not open; then the old one remains.
    pub fn replace_key(
        &self,
        role: KeyRole,
        credential: &Credential,
        random: &mut impl RngCore,
    ) -> Result<(), ReplaceKeyError> {
        let password = credential.password();
        let content = key_file::seal(&self.master, role, &password, random)?;
        let new = write_key(self.storage.as_ref(), content)?;
        let written = self.storage.read(FileKind::Key, new)?;
        let opened = key_file::unseal(&written, &password);
        if opened.is_none_or(|master| master.encrypt != self.master.encrypt) {
            return Err(ReplaceKeyError::NotReadable);
        }
        for (id, _) in self.storage.list(FileKind::Key)? {
            let is_old = id != new && key_file::is_of(&self.storage.read(FileKind::Key, id)?, role);
            if is_old {
                self.storage.remove(FileKind::Key, id)?;
            }
        }
        Ok(())
    }

    /// Where the repository is.
    #[must_use]
    pub fn location(&self) -> String {
        self.storage.location()
    }

    /// The repository's own name: 64 hexadecimal digits, made once at random and the same in every copy.
    ///
    /// # Errors
    ///
    /// When the configuration could not be read.
    pub fn id(&self) -> Result<String, RepositoryError> {
        Ok(self.engine()?.repository.config().id.to_hex().as_str().to_owned())
    }

    /// Bytes that the repository takes in its storage.
    ///
    /// # Errors
    ///
    /// When it could not be listed.
    pub fn stored_bytes(&self) -> Result<u64, StorageError> {
        let mut sum = 0;
        for kind in FileKind::MANY {
            sum += self.storage.list(kind)?.iter().map(|(_, size)| u64::from(*size)).sum::<u64>();
        }
        Ok(sum)
    }

    /// Seals and opens as this repository does.
    pub(crate) fn codec(&self, engine: &Engine) -> Result<Codec, RepositoryError> {
        let unusable = "reading the configuration";
        let level = engine.repository.config().zstd();
        let level = level.map_err(|fault| RepositoryError::engine(unusable, fault))?;
        Codec::new(&self.master, level).map_err(|fault| RepositoryError::unusable(unusable, fault))
    }

    pub(crate) fn engine(&self) -> Result<Engine, RepositoryError> {
        self.engine_with(Backend::new(Arc::clone(&self.storage)))
    }

    pub(crate) fn engine_with(&self, backend: Backend) -> Result<Engine, RepositoryError> {
        let backend = Arc::new(backend);
        let credentials = Credentials::Masterkey(self.master.clone());
        let repository = engine_on(&backend)
            .and_then(|engine| engine.open(&credentials))
            .map_err(|fault| RepositoryError::new("opening the repository", &backend, fault))?;
        Ok(Engine { repository, backend })
    }
}

impl Engine {
    pub(crate) fn fault(
        &self,
        doing: &'static str,
    ) -> impl Fn(Box<rustic_core::RusticError>) -> RepositoryError {
        let backend = Arc::clone(&self.backend);
        move |fault| RepositoryError::new(doing, &backend, fault)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository").field("storage", &self.storage).finish_non_exhaustive()
    }
}

fn engine_on(
    backend: &Arc<Backend>,
) -> Result<rustic_core::Repository<()>, Box<rustic_core::RusticError>> {
    let options = RepositoryOptions::default().no_cache(true);
    let backend: Arc<dyn rustic_core::WriteBackend> = Arc::<Backend>::clone(backend);
    rustic_core::Repository::new(&options, &RepositoryBackends::new(backend, None))
}

/// Restic reads whatever these say; it ignores those that it does not know.
fn settings() -> ConfigOptions {
    use bytesize::ByteSize;
    ConfigOptions::default()
        .set_datapack_size(ByteSize(DATA_PACK))
        .set_datapack_growfactor(0)
        .set_treepack_size(ByteSize(TREE_PACK))
        .set_treepack_growfactor(0)
        .set_chunk_size(ByteSize(CHUNK))
        .set_chunk_min_size(ByteSize(SMALLEST_CHUNK))
        .set_chunk_max_size(ByteSize(LARGEST_CHUNK))
        .set_compression(ZSTD_LEVEL)
        .set_extra_verify(true)
}

fn has_config(storage: &dyn Storage) -> Result<bool, RepositoryError> {
    Ok(!storage.list(FileKind::Config)?.is_empty())
}

fn write_key(storage: &dyn Storage, content: Vec<u8>) -> Result<FileId, StorageError> {
    let id = FileId::of(&content);
    storage.write(FileKind::Key, id, &[Bytes::from(content)])?;
    Ok(id)
}

/// Tries every key file, those that claim to be of the credential's role first.
fn find_master(
    storage: &dyn Storage,
    credential: &Credential,
) -> Result<Option<MasterKey>, RepositoryError> {
    let mut files = Vec::new();
    for (id, _) in storage.list(FileKind::Key)? {
        files.push(storage.read(FileKind::Key, id)?);
    }
    let role = match credential {
        Credential::Secret(_) => Some(KeyRole::Agent),
        Credential::Recovery(_) => Some(KeyRole::Recovery),
        Credential::Foreign(_) => None,
    };
    files.sort_by_key(|file| role.is_none_or(|role| !key_file::is_of(file, role)));
    let password = credential.password();
    Ok(files.iter().find_map(|file| key_file::unseal(file, &password)))
}
