//! Tells when a file was replaced: inotify(7) on its directory, which survives the renaming of files.
//!
//! What it deliberately does not do: read the file, or say what changed. Events may be merged; whoever is
//! told looks at the file as it is now.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::time::sleep;

/// After the directory itself went, it is looked for so often.
const RETRY: Duration = Duration::from_secs(1);
/// Enough for a hundred events; one takes at most 272 bytes (inotify(7)).
const BUFFER: usize = 4096;

/// A file that is watched.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    /// Not a pipe, but read like one.
    events: Receiver,
}

impl Watch {
    /// Watches a file, which may be absent; its directory must be there.
    ///
    /// # Errors
    /// What the system said.
    pub fn start(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        watch(&inotify, path)?;
        let events = Receiver::from_owned_fd_unchecked(inotify.into())?;
        Ok(Self { path: path.to_owned(), events })
    }

    /// Ends when the file may have changed. Dropping it loses nothing.
    pub async fn changed(&mut self) {
        loop {
            match self.look().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "cannot watch, trying again");
                    sleep(RETRY).await;
                    match Self::start(&self.path) {
                        Ok(again) => {
                            *self = again;
                            return;
                        }
                        Err(_still) => continue,
                    }
                }
            }
        }
    }

    /// Waits for events; whether one of them concerns the file.
    async fn look(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; BUFFER];
        let length = self.events.read(&mut buffer).await?;
        let gone =
            AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_UNMOUNT;
        let mut ours = false;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((mask, name, following)) = event(rest) {
            if mask.intersects(gone) {
                return Err(io::ErrorKind::NotFound.into());
            }
            let lost = mask.intersects(AddWatchFlags::IN_Q_OVERFLOW);
            ours |= lost || Some(name) == self.path.file_name();
            rest = following;
        }
        Ok(ours)
    }
}

/// The first of some events: its mask, its name, and the events that follow. `struct inotify_event` is four
/// numbers of 32 bits (watch, mask, cookie, length of the name), then the name, filled up with NUL.
fn event(bytes: &[u8]) -> Option<(AddWatchFlags, &OsStr, &[u8])> {
    let (_watch, bytes) = number(bytes)?;
    let (mask, bytes) = number(bytes)?;
    let (_cookie, bytes) = number(bytes)?;
    let (length, bytes) = number(bytes)?;
    let (name, following) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Some((AddWatchFlags::from_bits_retain(mask), OsStr::from_bytes(name), following))
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_ne_bytes(*number), rest))
}

fn watch(inotify: &Inotify, path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    inotify.add_watch(dir, flags)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn replaced_files_and_directories_are_seen() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("dir");
        std::fs::create_dir(&dir).unwrap();
        let path = dir.join("file");
        let mut watch = Watch::start(&path).unwrap();
        let replace = || {
            std::fs::write(dir.join("next"), "x").unwrap();
            std::fs::rename(dir.join("next"), &path).unwrap();
        };
        replace();
        watch.changed().await;
        std::fs::write(dir.join("other"), "x").unwrap();
        assert!(!watch.look().await.unwrap(), "another file is none of ours");
        // The directory is moved away and another takes its place.
        std::fs::rename(&dir, root.path().join("old")).unwrap();
        std::fs::create_dir(&dir).unwrap();
        watch.changed().await;
        replace();
        watch.changed().await;
    }
}
