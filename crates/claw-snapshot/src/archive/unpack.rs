//! Unpacks an archive into a new directory, or refuses it.

use std::fs::{self, DirBuilder};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use super::blocks::{Blocks, Entry, EntryKind, read_fault};
use super::checksums::Checksums;
use super::manifest::ArchiveManifest;
use super::openclaw::{self, OpenClawBackup};
use super::place::{Place, failed, plain, refuse_links_out};
use super::refusal::UnpackError;
use super::{CHECKSUMS, LARGEST_SMALL_FILE, MANIFEST};
use crate::restore;
use crate::source::attachment::AttachmentName;
use crate::source::{DATA, META};

/// RFC 8878, section 3.1.1.
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// RFC 1952, section 2.3.1.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// As a power of two: an archive that needs more than 8 MiB to be unpacked is none of ours.
const LARGEST_WINDOW: u32 = 23;
const SET_ID: u32 = 0o6000;
const SET_USER_ID: u32 = 0o4000;
const STICKY: u32 = 0o1000;

/// How large what is unpacked may be, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Whose the files become. Giving them to others needs rights.
    pub owner: Owner,
}

/// Whose unpacked files become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whose the archive says.
    Kept,
    /// This user's and group's.
    Given {
        /// User id.
        user: u32,
        /// Group id.
        group: u32,
    },
}

/// An unpacked archive: complete and durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The data directory: `data` in the directory that was made.
    pub data: PathBuf,
    /// Files and links in it, and in whatever else the archive has.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// What it was.
    pub origin: ArchiveOrigin,
}

/// Who made an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArchiveOrigin {
    /// [`crate::Repository::export`]. Its attachments are in `meta`, beside `data`.
    Claw(ArchiveManifest),
    /// `openclaw backup create`.
    OpenClaw(OpenClawBackup),
}

/// An archive on its way into a directory.
pub(super) struct Unpacking<R> {
    pub(super) blocks: Blocks<R>,
    pub(super) place: Place,
    limits: UnpackLimits,
    pub(super) counts: Counts,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) files: u64,
    pub(super) directories: u64,
    pub(super) bytes: u64,
}

/// Unpacks an archive of ours or of OpenClaw as `into`, which must not exist while its parent
/// must. Memory is bounded: what grows with the archive is its directories and about 45 bytes per
/// file.
///
/// # Errors
///
/// When the archive is damaged, not whole, too large, or has anything that could harm. Then `into`
/// does not exist.
pub fn unpack(
    reader: impl Read,
    into: &Path,
    limits: UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let reader = open(reader)?;
    DirBuilder::new().mode(0o700).create(into).map_err(|fault| match fault.kind() {
        io::ErrorKind::AlreadyExists => UnpackError::Exists(into.to_owned()),
        _ => failed("making", into)(fault),
    })?;
    let unpacked = unpack_into(reader, into, limits).and_then(|unpacked| {
        restore::sync(into).map_err(failed("syncing", into)).map(|()| unpacked)
    });
    if unpacked.is_err() {
        // What cannot be removed now is in the way of the next attempt, which then says so.
        _ = fs::remove_dir_all(into);
    }
    unpacked
}

/// The tar within, by the compression's first bytes.
fn open<'a>(reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>, UnpackError> {
    let mut reader = BufReader::with_capacity(64 << 10, reader);
    let mut magic = [0; ZSTD.len()];
    // At the end of a short input the rest stays zero.
    let mut start = Vec::new();
    (&mut reader).take(4).read_to_end(&mut start).map_err(UnpackError::Read)?;
    for (into, from) in magic.iter_mut().zip(&start) {
        *into = *from;
    }
    let reader = BufReader::new(io::Cursor::new(start).chain(reader));
    if magic == ZSTD {
        let mut decoder = zstd::Decoder::with_buffer(reader).map_err(UnpackError::Read)?;
        decoder.window_log_max(LARGEST_WINDOW).map_err(UnpackError::Read)?;
        return Ok(Box::new(decoder));
    }
    if magic.starts_with(&GZIP) {
        return Ok(Box::new(MultiGzDecoder::new(reader)));
    }
    Err(UnpackError::NoArchive)
}

fn unpack_into(
    reader: impl Read,
    into: &Path,
    limits: UnpackLimits,
) -> Result<Unpacked, UnpackError> {
    let place = Place::new(into, limits.owner)?;
    let blocks = Blocks::new(reader);
    let mut unpacking = Unpacking { blocks, place, limits, counts: Counts::default() };
    let first = unpacking.blocks.next()?.ok_or(UnpackError::Manifest("there is none"))?;
    let origin = if first.path == Path::new(MANIFEST) {
        ArchiveOrigin::Claw(unpacking.ours(&first)?)
    } else {
        ArchiveOrigin::OpenClaw(openclaw::unpack(&mut unpacking, first)?)
    };
    let Unpacking { blocks, counts, .. } = unpacking;
    blocks.finish()?;
    let Counts { files, directories, bytes } = counts;
    Ok(Unpacked { data: into.join(DATA), files, directories, bytes, origin })
}

impl<R: Read> Unpacking<R> {
    /// The rest of an archive of ours, whose manifest was found.
    fn ours(&mut self, first: &Entry) -> Result<ArchiveManifest, UnpackError> {
        let mut checksums = Checksums::new().map_err(UnpackError::Read)?;
        let text = self.small_file(first)?;
        let manifest = ArchiveManifest::parse(&text)?;
        let hash = crate::FileId::of(&text);
        checksums.add(Path::new(MANIFEST), hash.as_bytes()).map_err(UnpackError::Read)?;
        let mut attachments = manifest.attachments.clone();
        loop {
            let entry = self.blocks.next()?.ok_or(UnpackError::CutOff)?;
            let path = plain(&entry.path)?;
            if path == Path::new(CHECKSUMS) && entry.kind == EntryKind::File {
                checksums.compare(&mut self.blocks)?;
                break;
            }
            let unexpected = || UnpackError::Unexpected(path.clone());
            if let Ok(name) = path.strip_prefix(META) {
                if !name.as_os_str().is_empty() {
                    let name = name.to_str().and_then(|name| AttachmentName::parse(name).ok());
                    let known = name.is_some_and(|name| attachments.remove(&name));
                    if !known || entry.kind != EntryKind::File || entry.size > LARGEST_SMALL_FILE {
                        return Err(unexpected());
                    }
                } else if entry.kind != EntryKind::Directory {
                    return Err(unexpected());
                }
            } else if !path.starts_with(DATA)
                || (path == Path::new(DATA) && entry.kind != EntryKind::Directory)
            {
                return Err(unexpected());
            }
            if let Some(hash) = self.put(&path, entry, Path::new(""))? {
                checksums.add(&path, &hash).map_err(UnpackError::Read)?;
            }
        }
        if self.blocks.next()?.is_some() {
            return Err(UnpackError::Malformed("something follows the checksums"));
        }
        self.place.finish()?;
        let data = self.place.root().join(DATA);
        if !attachments.is_empty() || !data.is_dir() {
            return Err(UnpackError::Manifest("it names what is not there"));
        }
        refuse_links_out(&data, Path::new(DATA))?;
        let named = u64::try_from(manifest.attachments.len()).unwrap_or(u64::MAX);
        if self.counts.files != manifest.files + named {
            return Err(UnpackError::Manifest("it has another number of files"));
        }
        Ok(manifest)
    }

    /// Makes an entry at a path below the new directory. Targets of hard links stand in the
    /// archive below `root`, which the new directory lacks. Gives a file's SHA-256.
    pub(super) fn put(
        &mut self,
        path: &Path,
        mut entry: Entry,
        root: &Path,
    ) -> Result<Option<[u8; 32]>, UnpackError> {
        self.count(&entry)?;
        let borrowed = match entry.kind {
            EntryKind::File => entry.mode & SET_ID,
            // On a directory the group's bit only says whose group new files have.
            EntryKind::Directory => entry.mode & SET_USER_ID,
            EntryKind::Special => return Err(UnpackError::Special(path.to_owned())),
            // They have no mode of their own.
            EntryKind::Symlink | EntryKind::HardLink => 0,
        };
        if borrowed != 0 {
            return Err(UnpackError::SetId(path.to_owned()));
        }
        match entry.kind {
            EntryKind::Directory => self.place.directory(path, entry)?,
            EntryKind::Symlink => self.place.symlink(path, &entry)?,
            EntryKind::HardLink => {
                let target = plain(&entry.target)?;
                let refused =
                    || UnpackError::HardLink { path: path.to_owned(), target: target.clone() };
                let within = target.strip_prefix(root).map_err(|_| refused())?;
                self.place.hard_link(path, within)?;
            }
            EntryKind::File | EntryKind::Special => {
                entry.mode &= !STICKY;
                return self.place.file(path, &entry, &mut self.blocks).map(Some);
            }
        }
        Ok(None)
    }

    /// A file that is read into memory.
    pub(super) fn small_file(&mut self, entry: &Entry) -> Result<Vec<u8>, UnpackError> {
        if entry.kind != EntryKind::File || entry.size > LARGEST_SMALL_FILE {
            return Err(UnpackError::Manifest("it is no small file"));
        }
        let mut content = Vec::new();
        self.blocks.read_to_end(&mut content).map_err(read_fault)?;
        Ok(content)
    }

    pub(super) fn count(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        match entry.kind {
            EntryKind::Directory => self.counts.directories += 1,
            _ => self.counts.files += 1,
        }
        self.counts.bytes = self.counts.bytes.saturating_add(entry.size);
        if self.counts.files + self.counts.directories > self.limits.entries {
            return Err(UnpackError::TooManyEntries(self.limits.entries));
        }
        if self.counts.bytes > self.limits.bytes {
            return Err(UnpackError::TooManyBytes(self.limits.bytes));
        }
        Ok(())
    }
}
