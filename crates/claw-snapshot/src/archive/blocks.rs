//! A tar as a stream of entries, in bounded memory whatever it says
//! (<https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html>, and GNU's long names).

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use tar::{EntryType, Header, PaxExtensions};

use super::refusal::UnpackError;

const BLOCK: usize = 512;
/// Extended headers have a path, a link's target and attributes: far below this.
const LARGEST_EXTENSION: u64 = 1 << 20;
/// Extended headers that belong to one entry: a path, a link's target, a list, and a global list.
const MOST_EXTENSIONS: u32 = 4;
/// What may follow the end: programs fill up to whole records, of 1 MiB at most.
const MOST_PADDING: u64 = 2 << 20;

/// An archive that is being read.
pub(super) struct Blocks<R> {
    reader: R,
    /// Of the current entry's content.
    left: u64,
    /// After it, up to a whole block.
    padding: u64,
}

/// An entry, before its content is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: EntryKind,
    /// As it stands in the archive.
    pub(super) path: PathBuf,
    /// The target of a link.
    pub(super) target: PathBuf,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    File,
    Directory,
    Symlink,
    HardLink,
    Special,
}

/// What extended headers say, which wins over the header.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    user: Option<u64>,
    group: Option<u64>,
    modified: Option<(i64, u32)>,
}

impl<R: Read> Blocks<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0 }
    }

    /// The next entry; what was not read of the last one's content is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extension = Extension::default();
        for _ in 0..=MOST_EXTENSIONS {
            let Some(header) = self.header()? else { return Ok(None) };
            match header.entry_type() {
                EntryType::XHeader => extension.read(&self.extension()?)?,
                EntryType::XGlobalHeader => drop(self.extension()?),
                EntryType::GNULongName => extension.path = Some(text(self.extension()?)),
                EntryType::GNULongLink => extension.target = Some(text(self.extension()?)),
                _ => return self.entry(&header, extension).map(Some),
            }
        }
        Err(UnpackError::Malformed("extended headers of nothing"))
    }

    /// Reads what follows the last entry, so that the compression's checksum is reached.
    pub(super) fn finish(mut self) -> Result<(), UnpackError> {
        let mut rest = (&mut self.reader).take(MOST_PADDING);
        let mut part = vec![0; 64 << 10];
        loop {
            match rest.read(&mut part).map_err(read_fault)? {
                0 if rest.limit() == 0 => return Err(UnpackError::Malformed("it does not end")),
                0 => return Ok(()),
                count if part.iter().take(count).all(|byte| *byte == 0) => {}
                _ => return Err(UnpackError::Malformed("something follows the end")),
            }
        }
    }

    fn header(&mut self) -> Result<Option<Header>, UnpackError> {
        let over = self.left + self.padding;
        let passed = io::copy(&mut (&mut self.reader).take(over), &mut io::sink());
        if passed.map_err(read_fault)? != over {
            return Err(UnpackError::CutOff);
        }
        (self.left, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        self.reader.read_exact(&mut block).map_err(read_fault)?;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block
            .iter()
            .enumerate()
            // The field of the sum itself counts as spaces.
            .map(|(place, byte)| if (148..156).contains(&place) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(UnpackError::Malformed("a header with a wrong sum"));
        }
        self.content(header.entry_size().map_err(|_| malformed())?);
        Ok(Some(header))
    }

    fn content(&mut self, size: u64) {
        let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
        self.left = size;
        self.padding = (block - size % block) % block;
    }

    fn extension(&mut self) -> Result<Vec<u8>, UnpackError> {
        if self.left > LARGEST_EXTENSION {
            return Err(UnpackError::Malformed("an extended header without end"));
        }
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(read_fault)?;
        Ok(content)
    }

    fn entry(&mut self, header: &Header, extension: Extension) -> Result<Entry, UnpackError> {
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Link => EntryKind::HardLink,
            EntryType::Char | EntryType::Block | EntryType::Fifo => EntryKind::Special,
            _ => return Err(UnpackError::Malformed("an entry of an unknown kind")),
        };
        if let Some(size) = extension.size {
            self.content(size);
        }
        let size = if kind == EntryKind::File { self.left } else { 0 };
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let target = extension.target.or_else(|| header.link_name_bytes().map(Into::into));
        // Archives that are to be the same everywhere leave these empty, as OpenClaw's are.
        let number = |given: Option<u64>, stored: io::Result<u64>| {
            u32::try_from(given.unwrap_or_else(|| stored.unwrap_or(0))).map_err(|_| malformed())
        };
        let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0);
        Ok(Entry {
            kind,
            path: PathBuf::from(OsString::from_vec(path)),
            target: PathBuf::from(OsString::from_vec(target.unwrap_or_default())),
            size,
            mode: header.mode().map_err(|_| malformed())? & 0o7777,
            user: number(extension.user, header.uid())?,
            group: number(extension.group, header.gid())?,
            modified: extension.modified.unwrap_or((seconds, 0)),
        })
    }
}

impl<R: Read> Read for Blocks<R> {
    /// The current entry's content.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&mut self.reader).take(self.left).read(buffer)?;
        if count == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}

impl Extension {
    fn read(&mut self, content: &[u8]) -> Result<(), UnpackError> {
        for record in PaxExtensions::new(content) {
            let record = record.map_err(|_| malformed())?;
            let value = record.value_bytes();
            let number = || -> Result<Option<u64>, UnpackError> {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                number.map(Some).ok_or_else(malformed)
            };
            match record.key_bytes() {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => self.size = number()?,
                b"uid" => self.user = number()?,
                b"gid" => self.group = number()?,
                b"mtime" => self.modified = time(value),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A time as pax writes it: seconds, negative before 1970, and a fraction of any length.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

/// GNU's long names end with a zero.
fn text(mut content: Vec<u8>) -> Vec<u8> {
    if content.last() == Some(&0) {
        content.pop();
    }
    content
}

fn malformed() -> UnpackError {
    UnpackError::Malformed("a header that is none")
}

/// An end that comes too early is known from other failures.
pub(super) fn read_fault(fault: io::Error) -> UnpackError {
    match fault.kind() {
        io::ErrorKind::UnexpectedEof => UnpackError::CutOff,
        _ => UnpackError::Read(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, expected) in [
            ("7", Some((7, 0))),
            ("7.5", Some((7, 500_000_000))),
            ("7.1234567891", Some((7, 123_456_789))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("x", None),
            ("1.x", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
