//! Data directories, delivered files and secrets of instances.
//!
//! The data directory belongs to the container (uid 1000), which may put anything there, symbolic
//! links to the host's files included. Everything below it is therefore opened relative to an open
//! directory with `openat2(2)`, which refuses symbolic links and paths that lead out.
//!
//! What it deliberately does not do: delete or copy data (see [`volumes`](super::volumes)), read data,
//! decide what is delivered.
//! Where to start: [`InstanceFiles`]; single operations are in `dir`.
//!
//! | place | what | mode, owner |
//! | --- | --- | --- |
//! | `<data>/instances/<id>/gen-<n>` | state of the gateway | 0700, 1000 |
//! | `<data>/repo/<id>`, `<data>/repo/<id>.keys` | snapshots and what opens them | 0700, 0600, root |
//! | `<secrets>/<id>/.env` | secrets, on tmpfs | 0400, 1000 |
//! | `<data>/removed/<id>.<milliseconds>` | what was set aside: `data`, `repo`, `keys` | 0700, root |

mod aside;
mod dir;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, StatePath};
use claw_core::spec::Secret;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;

use crate::ports::{Files, FilesError, FilesView, Mounts};
use dir::Dir;
pub use dir::Owner;

/// User and group of a gateway in its container (OpenClaw's image: `node`).
pub const GATEWAY_OWNER: Owner = Owner { uid: 1000, gid: 1000 };

/// The secrets file, on the host as in the container.
const SECRETS_FILE: &str = ".env";

/// Most bytes of a secrets file that are looked at: OpenClaw itself reads no more than 1 MiB.
const MAX_SECRETS_BYTES: u64 = 1 << 20;

/// Deadline of one operation. A disk that is stuck must not hang the agent.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where secrets may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretsMedium {
    /// On tmpfs only: they never reach a disk.
    Memory,
    /// Anywhere: for tests, which have no file system of their own.
    Any,
}

/// The places that the adapter works in.
#[derive(Debug, Clone)]
pub struct FilesSettings {
    /// The agent's data, `/var/lib/clawd`.
    pub data: PathBuf,
    /// Directory of secrets, `/run/clawd/secrets`.
    pub secrets: PathBuf,
    /// What kind of file system the latter must be.
    pub medium: SecretsMedium,
    /// Owner of what containers use: [`GATEWAY_OWNER`].
    pub owner: Owner,
}

/// Files of instances on the host's file systems.
#[derive(Debug, Clone)]
pub struct InstanceFiles {
    settings: FilesSettings,
}

impl InstanceFiles {
    /// Works in the given places; they are made when they are first needed.
    #[must_use]
    pub const fn new(settings: FilesSettings) -> Self {
        Self { settings }
    }

    fn instances(&self) -> PathBuf {
        self.settings.data.join("instances")
    }

    fn secrets_of(&self, instance: &InstanceName) -> PathBuf {
        self.settings.secrets.join(instance.as_str())
    }
}

impl Files for InstanceFiles {
    fn mounts(&self, instance: &InstanceName, data: DataGeneration) -> Mounts {
        Mounts {
            data: self.instances().join(instance.as_str()).join(data.to_string()),
            secrets: self.secrets_of(instance).join(SECRETS_FILE),
        }
    }

    async fn view(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
        delivered: &BTreeSet<StatePath>,
    ) -> Result<FilesView, FilesError> {
        let mounts = self.mounts(instance, data);
        let (owner, delivered) = (self.settings.owner, delivered.clone());
        off_thread("looking at", mounts.data.clone(), move || view(&mounts, owner, &delivered))
            .await
    }

    async fn deliver(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
        files: &BTreeMap<StatePath, String>,
    ) -> Result<(), FilesError> {
        let home = self.instances().join(instance.as_str());
        let (owner, files) = (self.settings.owner, files.clone());
        off_thread("writing to", home.clone(), move || deliver(&home, data, owner, &files)).await
    }

    async fn write_secrets(
        &self,
        instance: &InstanceName,
        text: &Secret,
    ) -> Result<(), FilesError> {
        let path = self.secrets_of(instance);
        let (settings, text) = (self.settings.clone(), text.clone());
        off_thread("writing secrets to", path.clone(), move || {
            write_secrets(&settings, &path, &text)
        })
        .await
    }

    async fn remove_secrets(&self, instance: &InstanceName) -> Result<(), FilesError> {
        let path = self.secrets_of(instance);
        off_thread("removing secrets from", path.clone(), move || remove_secrets(&path)).await
    }

    async fn set_aside(&self, instance: &InstanceName, at: Timestamp) -> Result<(), FilesError> {
        let (data, instance) = (self.settings.data.clone(), instance.clone());
        off_thread("setting aside", self.instances().join(instance.as_str()), move || {
            aside::set_aside(&data, &instance, at)
        })
        .await
    }
}

fn view(
    mounts: &Mounts,
    owner: Owner,
    delivered: &BTreeSet<StatePath>,
) -> Result<FilesView, FilesError> {
    let secrets = secrets_digest(&mounts.secrets, owner)
        .map_err(|source| error("reading", &mounts.secrets, source))?;
    let data = match present(Dir::open(&mounts.data)) {
        Ok(Some(data)) => data,
        Ok(None) => return Ok(FilesView { secrets, ..FilesView::default() }),
        Err(source) => return Err(error("opening", &mounts.data, source)),
    };
    let data_present =
        data.is(owner, 0o700).map_err(|source| error("looking at", &mounts.data, source))?;
    let mut files_present = true;
    for path in delivered {
        let is_file = data
            .has_file(path.as_str())
            .map_err(|source| error("looking at", &mounts.data.join(path.as_str()), source))?;
        files_present &= is_file;
    }
    Ok(FilesView { data_present, files_present, secrets })
}

/// Digest of the secrets file; `None` if it is absent or not as it is written here.
fn secrets_digest(path: &Path, owner: Owner) -> io::Result<Option<Digest>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let Some(dir) = present(Dir::open(parent))? else { return Ok(None) };
    let Some(bytes) = dir.read_own(name, owner, 0o400, MAX_SECRETS_BYTES)? else {
        return Ok(None);
    };
    Ok(Some(Digest::of(&bytes)))
}

fn deliver(
    home: &Path,
    data: DataGeneration,
    owner: Owner,
    files: &BTreeMap<StatePath, String>,
) -> Result<(), FilesError> {
    let name = data.to_string();
    let data_path = home.join(&name);
    let opened = Dir::make_private(home).and_then(|home| {
        let data = home.make_dir(&name, owner)?;
        data.set(owner, 0o700)?;
        // Docker would make it as root; a link or directory in its place would misplace secrets.
        data.make_placeholder(SECRETS_FILE, owner)?;
        Ok(data)
    });
    let data = opened.map_err(|source| error("making", &data_path, source))?;
    for (path, content) in files {
        let written = write_below(&data, path, content, owner);
        written.map_err(|source| error("writing", &data_path.join(path.as_str()), source))?;
    }
    Ok(())
}

/// Writes one file, making the directories on its way.
fn write_below(data: &Dir, path: &StatePath, content: &str, owner: Owner) -> io::Result<()> {
    match path.as_str().rsplit_once('/') {
        None => data.write(path.as_str(), content.as_bytes(), owner, 0o600),
        Some((parents, name)) => {
            let mut parents = parents.split('/');
            let first = parents.next().unwrap_or_default();
            let mut dir = data.make_dir(first, owner)?;
            for parent in parents {
                dir = dir.make_dir(parent, owner)?;
            }
            dir.write(name, content.as_bytes(), owner, 0o600)
        }
    }
}

fn write_secrets(settings: &FilesSettings, path: &Path, text: &Secret) -> Result<(), FilesError> {
    let dir = Dir::make_private(path).map_err(|source| error("making", path, source))?;
    let on_tmpfs = dir.is_on_tmpfs().map_err(|source| error("looking at", path, source))?;
    if settings.medium == SecretsMedium::Memory && !on_tmpfs {
        let source = io::Error::other("it is not on tmpfs, and secrets must not reach a disk");
        return Err(error("refusing to write secrets to", path, source));
    }
    dir.write(SECRETS_FILE, text.reveal().as_bytes(), settings.owner, 0o400)
        .map_err(|source| error("writing", &path.join(SECRETS_FILE), source))
}

fn remove_secrets(path: &Path) -> Result<(), FilesError> {
    // Whatever else lies there is an unfinished file of ours: the directory is root's alone.
    std::fs::remove_dir_all(path)
        .or_else(gone_is_fine)
        .map_err(|source| error("removing", path, source))
}

fn gone_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn error(doing: &'static str, path: &Path, source: io::Error) -> FilesError {
    FilesError { doing, path: path.to_owned(), source }
}

/// Runs blocking work on a thread for such work, within [`DEADLINE`].
async fn off_thread<T: Send + 'static>(
    doing: &'static str,
    path: PathBuf,
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, FilesError> {
    match tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(ended)) => Err(error(doing, &path, io::Error::other(ended))),
        Err(_late) => {
            let source = io::Error::new(io::ErrorKind::TimedOut, "the disk did not answer");
            Err(error(doing, &path, source))
        }
    }
}

#[cfg(test)]
mod tests;
