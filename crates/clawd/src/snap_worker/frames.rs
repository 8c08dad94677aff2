//! What two hosts say to each other while one sends its repository and the other takes it.
//!
//! The sender asks, the receiver answers, in order. A question and an answer are one line of JSON each; some
//! are followed by as many bytes as the line says. The two programs may be of different versions, so that the
//! first question names the version of this.
//!
//! | question | bytes | answer | bytes |
//! | --- | --- | --- | --- |
//! | `Hello` | | `Done` | |
//! | `Prepare` | | `Done` | |
//! | `List` | | `Files` | 36 for each: the name, the size (big endian) |
//! | `Config` | | `Content` | the file |
//! | `Write` | the file | `Done`: it is durable | |
//! | `Finish` | | `Done` | |
//!
//! Any answer may be `Refused` instead, and is then the last one. The sender may ask further before it has
//! the answers to some `Write`s.

use std::io::{self, BufRead as _, BufReader, Read, Write};

use claw_snapshot::{FileId, FileKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::pieces::{Incoming, Outgoing, cut};
use crate::ports::MAX_PIECE;

/// Of what is said here.
pub(super) const VERSION: u32 = 1;
/// The longest line: the words of a refusal fit.
const LONGEST_LINE: u64 = 16 << 10;
/// Files of one kind in a listing at most: packs of 2 TB.
pub(super) const MOST_FILES: u32 = 500_000;
/// A file's name and size in a listing.
const LISTED: usize = 36;
/// The largest file: packs have 5 MiB, and an index of the largest repository has less than this.
pub(super) const LARGEST_FILE: u32 = 32 << 20;
/// The largest configuration.
pub(super) const LARGEST_CONFIG: u32 = 64 << 10;

/// What the sender asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// First, once.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// Everything that must exist before the first file is to be made.
    Prepare,
    /// Which files of a kind there are.
    List {
        /// The kind.
        kind: Kind,
    },
    /// What the configuration is.
    Config,
    /// A file is to be kept.
    Write {
        /// Its kind.
        kind: Kind,
        /// Its name, 64 hexadecimal digits.
        id: String,
        /// Bytes that follow.
        size: u32,
    },
    /// Last: everything was sent.
    Finish,
}

/// What the receiver answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is done.
    Done,
    /// So many files are listed.
    Files(u32),
    /// So many bytes are there.
    Content(u32),
    /// Nothing more is done, in words.
    Refused(String),
}

/// Kinds of files, as they are called here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// [`FileKind::Config`].
    Config,
    /// [`FileKind::Key`].
    Key,
    /// [`FileKind::Snapshot`].
    Snapshot,
    /// [`FileKind::Index`].
    Index,
    /// [`FileKind::Pack`].
    Pack,
}

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Wire {
    input: BufReader<Incoming>,
    output: Outgoing,
}

impl Wire {
    pub(super) fn new(incoming: Incoming) -> Self {
        Self { input: BufReader::with_capacity(MAX_PIECE, incoming), output: Outgoing::new() }
    }

    /// Says a line and the bytes that belong to it.
    pub(super) fn say(
        &mut self,
        line: &impl Serialize,
        parts: &[impl AsRef<[u8]>],
    ) -> io::Result<()> {
        let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
        text.push(b'\n');
        self.output.write_all(&text)?;
        for part in parts {
            self.output.write_all(part.as_ref())?;
        }
        self.output.flush()
    }

    /// The next line.
    pub(super) fn hear<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut line = Vec::new();
        (&mut self.input).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(cut("the other end stopped in the middle, or says too much"));
        }
        serde_json::from_slice(&line).map_err(|_error| cut("the other end is not understood"))
    }

    /// The bytes that belong to the last line.
    pub(super) fn bytes(&mut self, size: u32, largest: u32) -> io::Result<Vec<u8>> {
        if size > largest {
            return Err(cut(format!("the other end has {size} bytes where {largest} may be")));
        }
        let size = u64::from(size);
        let mut bytes = Vec::new();
        let count = (&mut self.input).take(size).read_to_end(&mut bytes)?;
        if u64::try_from(count).is_ok_and(|count| count == size) {
            return Ok(bytes);
        }
        Err(cut("the other end stopped in the middle"))
    }

    /// The files that belong to the last line.
    pub(super) fn files(&mut self, count: u32) -> io::Result<Vec<(FileId, u32)>> {
        if count > MOST_FILES {
            return Err(cut(format!("the other end has more than {MOST_FILES} files of a kind")));
        }
        let mut files = Vec::new();
        for _ in 0..count {
            let mut entry = [0; LISTED];
            self.input.read_exact(&mut entry)?;
            let [id @ .., a, b, c, d] = entry;
            files.push((FileId::from_bytes(id), u32::from_be_bytes([a, b, c, d])));
        }
        Ok(files)
    }
}

/// Files as they are listed.
pub(super) fn listing(files: &[(FileId, u32)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(files.len() * LISTED);
    for (id, size) in files {
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&size.to_be_bytes());
    }
    bytes
}

impl From<FileKind> for Kind {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::Config => Self::Config,
            FileKind::Key => Self::Key,
            FileKind::Snapshot => Self::Snapshot,
            FileKind::Index => Self::Index,
            FileKind::Pack => Self::Pack,
        }
    }
}

impl From<Kind> for FileKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Config => Self::Config,
            Kind::Key => Self::Key,
            Kind::Snapshot => Self::Snapshot,
            Kind::Index => Self::Index,
            Kind::Pack => Self::Pack,
        }
    }
}
