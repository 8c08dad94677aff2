//! Repositories that came from elsewhere, until they are used here: what nobody uses may be removed.
//!
//! The mark is bound to the keys that came with the repository, so that a mark that was left behind says
//! nothing about a repository that was made later.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use claw_core::name::InstanceName;
use claw_core::stamp::Digest;

use super::keys;
use super::keys_path;
use crate::snap_worker;

/// Why a repository was not removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiscardError {
    /// It is from here, or it was used here.
    #[error("{} is in use here", repository.display())]
    Used {
        /// The repository.
        repository: PathBuf,
    },
    /// Something of it could not be looked at or removed.
    #[error("removing {}", path.display())]
    Remove {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Where the mark is.
pub(super) fn path(data: &Path, instance: &InstanceName) -> PathBuf {
    data.join("repo").join(format!("{instance}.received"))
}

/// Marks a repository whose sealed keys are about to be written. Blocking.
pub(super) fn note(data: &Path, instance: &InstanceName, sealed: &[u8]) -> io::Result<()> {
    let mark = Digest::of(sealed).to_string();
    keys::write(&data.join("repo"), &path(data, instance), mark.as_bytes())
}

/// The repository is used here from now on. Blocking.
pub(super) fn note_use(data: &Path, instance: &InstanceName) -> io::Result<()> {
    match fs::remove_file(path(data, instance)) {
        Ok(()) => keys::sync(&data.join("repo")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a repository that was never used here, and its keys; absent is success. Blocking.
pub(super) fn discard(data: &Path, instance: &InstanceName) -> Result<(), DiscardError> {
    let directory = data.join("repo");
    let repository = directory.join(instance.as_str());
    let (keys, mark) = (keys_path(data, instance), path(data, instance));
    if !is_unused(&keys, &mark)? {
        let there = [&repository, &keys].map(|path| exists(path));
        if there.into_iter().collect::<Result<Vec<_>, _>>()?.contains(&true) {
            return Err(DiscardError::Used { repository });
        }
    }
    let staging = repository.with_added_extension("staging");
    for tree in [&repository, &staging] {
        gone(fs::remove_dir_all(tree)).map_err(removing(tree))?;
    }
    // The mark last: until then all of this can be repeated.
    for file in [&keys, &mark] {
        gone(fs::remove_file(file)).map_err(removing(file))?;
        gone(keys::sync(&directory)).map_err(removing(file))?;
    }
    Ok(())
}

/// Removes what is left when nothing of a repository came. Blocking.
pub(super) fn abandon(data: &Path, instance: &InstanceName) -> Result<(), DiscardError> {
    let repository = data.join("repo").join(instance.as_str());
    let came = snap_worker::is_repository(&repository).map_err(removing(&repository))?;
    let (keys, mark) = (keys_path(data, instance), path(data, instance));
    if came || !is_unused(&keys, &mark)? { Ok(()) } else { discard(data, instance) }
}

/// Whether the mark is that of these keys, or of keys that were not written any more.
fn is_unused(keys: &Path, mark: &Path) -> Result<bool, DiscardError> {
    let Some(marked) = read(mark)? else { return Ok(false) };
    let sealed = read(keys)?;
    Ok(sealed.is_some_and(|sealed| Digest::of(&sealed).to_string().as_bytes() == marked))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, DiscardError> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(removing(path)(error)),
    }
}

fn exists(path: &Path) -> Result<bool, DiscardError> {
    path.try_exists().map_err(removing(path))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn removing(path: &Path) -> impl Fn(io::Error) -> DiscardError {
    move |source| DiscardError::Remove { path: path.to_owned(), source }
}
