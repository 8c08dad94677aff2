//! Reads one file and makes sure that it is the one that was listed, unchanged to its end.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc::{ELOOP, EPERM, O_NOATIME, O_NOFOLLOW, O_NONBLOCK};

use super::ledger::{Ledger, SourceFaultReason};
use super::node::Fingerprint;

/// The content of one entry.
#[derive(Debug)]
pub(crate) enum Content {
    /// Bytes in memory.
    Bytes(Cursor<Vec<u8>>),
    /// A file of the data directory.
    File(Box<ListedFile>),
    /// A copy of one, in a directory of our own.
    Copy(Box<CopiedFile>),
}

/// A copy of a file, or the lack of one.
#[derive(Debug)]
pub(crate) struct CopiedFile {
    /// Relative to the data directory.
    pub(crate) path: PathBuf,
    /// Where the copy is, when one was made.
    pub(crate) copy: Option<PathBuf>,
    pub(crate) ledger: Arc<Ledger>,
    file: Option<File>,
}

/// A file as it was listed, and how far it has been read.
#[derive(Debug)]
pub(crate) struct ListedFile {
    /// The open directory that it is in.
    pub(crate) directory: Arc<OwnedFd>,
    /// Relative to the data directory.
    pub(crate) path: PathBuf,
    pub(crate) listed: Fingerprint,
    pub(crate) ledger: Arc<Ledger>,
    state: ReadState,
}

#[derive(Debug)]
enum ReadState {
    Unopened,
    Open { file: File, read: u64 },
    Done,
}

/// An entry cannot be read. The ledger knows why.
#[derive(Debug)]
pub(crate) struct GivenUp;

impl Content {
    pub(crate) fn bytes(content: Vec<u8>) -> Self {
        Self::Bytes(Cursor::new(content))
    }

    pub(crate) fn file(
        directory: Arc<OwnedFd>,
        path: PathBuf,
        listed: Fingerprint,
        ledger: Arc<Ledger>,
    ) -> Self {
        let state = ReadState::Unopened;
        Self::File(Box::new(ListedFile { directory, path, listed, ledger, state }))
    }

    pub(crate) fn copy(path: PathBuf, copy: Option<PathBuf>, ledger: Arc<Ledger>) -> Self {
        Self::Copy(Box::new(CopiedFile { path, copy, ledger, file: None }))
    }

    pub(crate) fn begin(&mut self) -> Result<(), GivenUp> {
        match self {
            Self::Bytes(_) => Ok(()),
            Self::Copy(copied) => copied.begin(),
            Self::File(file) => file.begin(),
        }
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Bytes(bytes) => bytes.read(buffer),
            Self::File(file) => file.read(buffer),
            Self::Copy(copied) => copied.read(buffer),
        }
    }
}

impl CopiedFile {
    fn begin(&mut self) -> Result<(), GivenUp> {
        let reason = match self.copy.as_ref().map(File::open) {
            Some(Ok(file)) => {
                self.file = Some(file);
                return Ok(());
            }
            Some(Err(source)) => {
                SourceFaultReason::Unreadable { doing: "opening its copy", source }
            }
            None => SourceFaultReason::NotStaged,
        };
        self.ledger.fault(&self.path, reason);
        Err(GivenUp)
    }
}

impl Read for CopiedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Ok(0) };
        file.read(buffer).inspect_err(|fault| {
            let source = fault.kind().into();
            let reason = SourceFaultReason::Unreadable { doing: "reading its copy", source };
            self.ledger.fault(&self.path, reason);
        })
    }
}

impl ListedFile {
    fn begin(&mut self) -> Result<(), GivenUp> {
        let opened = self.open_listed();
        let reason = match opened {
            Ok(Some(file)) => {
                self.state = ReadState::Open { file, read: 0 };
                return Ok(());
            }
            Ok(None) => SourceFaultReason::Changed,
            Err(fault) if fault.kind() == io::ErrorKind::NotFound => SourceFaultReason::Vanished,
            // What was a file is a link now.
            Err(fault) if fault.raw_os_error() == Some(ELOOP) => SourceFaultReason::Changed,
            Err(source) => {
                self.state = ReadState::Done;
                let reason = SourceFaultReason::Unreadable { doing: "opening", source };
                self.ledger.fault(&self.path, reason);
                return Err(GivenUp);
            }
        };
        self.state = ReadState::Done;
        self.ledger.dropped(&self.path, reason);
        Err(GivenUp)
    }

    /// The file, or nothing when another one has its name by now.
    fn open_listed(&self) -> io::Result<Option<File>> {
        let name = self.path.file_name().unwrap_or_default();
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.directory.as_raw_fd()));
        let mut options = OpenOptions::new();
        options.read(true);
        // Reading must not look like use; only owners and root may ask for that (open(2)).
        let quiet = O_NOFOLLOW | O_NONBLOCK | O_NOATIME;
        let path = path.join(name);
        let file = match options.custom_flags(quiet).open(&path) {
            Err(fault) if fault.raw_os_error() == Some(EPERM) => {
                options.custom_flags(O_NOFOLLOW | O_NONBLOCK).open(&path)?
            }
            opened => opened?,
        };
        let found = Fingerprint::of(&file.metadata()?);
        if !found.is_same_file(&self.listed) {
            return Ok(None);
        }
        Ok(Some(file))
    }

    /// Compares the file, read to its end, with what was listed.
    fn finish(&mut self) {
        let ReadState::Open { file, read } = &self.state else { return };
        match file.metadata() {
            Ok(metadata) => {
                let same = Fingerprint::of(&metadata) == self.listed;
                if !same || *read != self.listed.size() {
                    self.ledger.changed(&self.path);
                }
            }
            Err(source) => {
                let reason = SourceFaultReason::Unreadable { doing: "looking at it", source };
                self.ledger.fault(&self.path, reason);
            }
        }
        self.state = ReadState::Done;
    }
}

impl Read for ListedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ReadState::Open { file, read } = &mut self.state else { return Ok(0) };
        match file.read(buffer) {
            Ok(0) if !buffer.is_empty() => {
                self.finish();
                Ok(0)
            }
            Ok(count) => {
                *read += u64::try_from(count).unwrap_or(u64::MAX);
                Ok(count)
            }
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => Err(fault),
            Err(fault) => {
                self.state = ReadState::Done;
                let kind = fault.kind();
                let reason = SourceFaultReason::Unreadable { doing: "reading", source: fault };
                self.ledger.fault(&self.path, reason);
                Err(kind.into())
            }
        }
    }
}

impl Drop for ListedFile {
    fn drop(&mut self) {
        if matches!(self.state, ReadState::Open { .. }) {
            self.ledger.fault(&self.path, SourceFaultReason::Unfinished);
        }
    }
}
