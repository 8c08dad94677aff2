//! What a pass has written, so that the next one knows what it need not write again.
//!
//! A copy is left alone when its original is still the file that was copied, and when nobody has touched
//! the copy since: both show in inode numbers and times of change (`ctime`), which no program can set.
//!
//! Records lie in the order of the walk, directories before what is below them, so that a pass reads the
//! last one's record while it writes its own, and memory does not grow with the tree. Only those of files
//! with several names are held in memory. A record of another boot counts as none: after a power cut a file
//! can hold something else than its times say.
//!
//! The format is nobody else's: a header, then per record a tag, a name with its length, fixed fields,
//! all little-endian.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::Stat;

use super::tree;

const MAGIC: [u8; 8] = *b"clawcpy1";

/// Bytes of a boot's identity as the kernel writes it.
const BOOT: usize = 36;

/// Where the header says at which byte the records of files with several names begin; 0: the record was
/// not finished. Behind magic and boot.
const LINKED_AT: u64 = 44;

const END: u8 = 0;
const DIRECTORY: u8 = 1;
const FILE: u8 = 2;
const LINKED: u8 = 3;

/// A point in time of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Instant {
    seconds: i64,
    nanos: u32,
}

impl Instant {
    /// When the content of an entry was changed last.
    pub(super) fn modified(stat: &Stat) -> Self {
        Self { seconds: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
    }

    /// When anything of an entry was changed last.
    pub(super) fn changed(stat: &Stat) -> Self {
        Self { seconds: stat.st_ctime, nanos: u32::try_from(stat.st_ctime_nsec).unwrap_or(0) }
    }

    /// A second earlier.
    pub(super) const fn less_a_second(self) -> Self {
        Self { seconds: self.seconds.saturating_sub(1), nanos: self.nanos }
    }
}

/// A file, as far as it matters whether it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    inode: u64,
    size: u64,
    modified: Instant,
    changed: Instant,
}

impl Seen {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: tree::size(stat),
            modified: Instant::modified(stat),
            changed: Instant::changed(stat),
        }
    }

    /// Whether it was changed at or after an instant: then it may be changed again without its times
    /// telling.
    pub(super) fn is_since(&self, instant: Instant) -> bool {
        self.modified >= instant || self.changed >= instant
    }
}

/// A file that was copied, and its copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// What was copied.
    pub(super) original: Seen,
    /// What was written, and not touched since.
    pub(super) copy: Seen,
}

/// The record of the last pass, read as the walk goes on.
#[derive(Debug, Default)]
pub(super) struct Before {
    records: Option<BufReader<File>>,
    dir: PathBuf,
    next: Option<(OsString, Known)>,
    linked: BTreeMap<u64, Known>,
    since: Option<Instant>,
}

impl Before {
    /// Opens a record. Whatever is not a whole one of this boot is as good as none.
    pub(super) fn open(path: &Path, boot: &str) -> Self {
        Self::read(path, boot).unwrap_or_default()
    }

    fn read(path: &Path, boot: &str) -> io::Result<Self> {
        let mut records = BufReader::new(File::open(path)?);
        let (mut magic, mut its_boot) = ([0; 8], [0; BOOT]);
        records.read_exact(&mut magic)?;
        records.read_exact(&mut its_boot)?;
        let linked_at = u64::from_le_bytes(bytes(&mut records)?);
        if magic != MAGIC || its_boot != boot_bytes(boot) || linked_at == 0 {
            return Ok(Self::default());
        }
        let since = Some(read_instant(&mut records)?);
        let begin = records.stream_position()?;
        records.seek(SeekFrom::Start(linked_at))?;
        let mut linked = BTreeMap::new();
        while u8::from_le_bytes(bytes(&mut records)?) == LINKED {
            let known = read_known(&mut records)?;
            linked.insert(known.original.inode, known);
        }
        records.seek(SeekFrom::Start(begin))?;
        let mut before = Self { records: Some(records), linked, since, ..Self::default() };
        before.advance();
        Ok(before)
    }

    /// What its pass called settled was not changed at or after this instant.
    pub(super) const fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.next.is_none() && self.linked.is_empty()
    }

    /// What is known of a file. Files must be asked for in the order of the walk.
    pub(super) fn find(&mut self, dir: &Path, name: &OsStr) -> Option<Known> {
        loop {
            let (next, known) = self.next.as_ref()?;
            match (self.dir.as_path(), next.as_os_str()).cmp(&(dir, name)) {
                std::cmp::Ordering::Less => self.advance(),
                std::cmp::Ordering::Equal => return Some(*known),
                std::cmp::Ordering::Greater => return None,
            }
        }
    }

    /// What is known of a file with several names, by its inode number.
    pub(super) fn linked(&self, inode: u64) -> Option<Known> {
        self.linked.get(&inode).copied()
    }

    fn advance(&mut self) {
        self.next = self.read_next().ok().flatten();
    }

    fn read_next(&mut self) -> io::Result<Option<(OsString, Known)>> {
        let Some(records) = &mut self.records else { return Ok(None) };
        loop {
            match u8::from_le_bytes(bytes(records)?) {
                DIRECTORY => self.dir = PathBuf::from(read_name(records)?),
                FILE => {
                    let name = read_name(records)?;
                    return Ok(Some((name, read_known(records)?)));
                }
                _end => return Ok(None),
            }
        }
    }
}

/// The record of this pass.
#[derive(Debug)]
pub(super) struct After {
    records: BufWriter<File>,
    dir: Option<PathBuf>,
}

impl After {
    /// Begins a record in an empty file.
    pub(super) fn begin(file: File, boot: &str, since: Instant) -> io::Result<Self> {
        let mut records = BufWriter::new(file);
        records.write_all(&MAGIC)?;
        records.write_all(&boot_bytes(boot))?;
        records.write_all(&0_u64.to_le_bytes())?;
        write_instant(&mut records, since)?;
        Ok(Self { records, dir: None })
    }

    /// Notes a file. Files must come in the order of the walk.
    pub(super) fn note(&mut self, dir: &Path, name: &OsStr, known: &Known) -> io::Result<()> {
        if self.dir.as_deref() != Some(dir) {
            self.records.write_all(&[DIRECTORY])?;
            write_name(&mut self.records, dir.as_os_str())?;
            self.dir = Some(dir.to_owned());
        }
        self.records.write_all(&[FILE])?;
        write_name(&mut self.records, name)?;
        write_known(&mut self.records, known)
    }

    /// Ends the record with the files that have several names.
    pub(super) fn finish(mut self, linked: &[Known]) -> io::Result<()> {
        self.records.write_all(&[END])?;
        let linked_at = self.records.stream_position()?;
        for known in linked {
            self.records.write_all(&[LINKED])?;
            write_known(&mut self.records, known)?;
        }
        self.records.write_all(&[END])?;
        self.records.seek(SeekFrom::Start(LINKED_AT))?;
        self.records.write_all(&linked_at.to_le_bytes())?;
        self.records.flush()
    }
}

fn boot_bytes(boot: &str) -> [u8; BOOT] {
    let mut bytes = [0; BOOT];
    for (byte, of_boot) in bytes.iter_mut().zip(boot.bytes()) {
        *byte = of_boot;
    }
    bytes
}

fn bytes<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_name(from: &mut impl Read) -> io::Result<OsString> {
    let length = u16::from_le_bytes(bytes(from)?);
    let mut name = vec![0; usize::from(length)];
    from.read_exact(&mut name)?;
    Ok(OsString::from_vec(name))
}

/// Names have at most 255 bytes and paths that can be opened 4095.
fn write_name(into: &mut impl Write, name: &OsStr) -> io::Result<()> {
    let length = u16::try_from(name.len()).map_err(io::Error::other)?;
    into.write_all(&length.to_le_bytes())?;
    into.write_all(name.as_bytes())
}

fn read_known(from: &mut impl Read) -> io::Result<Known> {
    Ok(Known { original: read_seen(from)?, copy: read_seen(from)? })
}

fn write_known(into: &mut impl Write, known: &Known) -> io::Result<()> {
    write_seen(into, &known.original)?;
    write_seen(into, &known.copy)
}

fn read_seen(from: &mut impl Read) -> io::Result<Seen> {
    Ok(Seen {
        inode: u64::from_le_bytes(bytes(from)?),
        size: u64::from_le_bytes(bytes(from)?),
        modified: read_instant(from)?,
        changed: read_instant(from)?,
    })
}

fn write_seen(into: &mut impl Write, seen: &Seen) -> io::Result<()> {
    into.write_all(&seen.inode.to_le_bytes())?;
    into.write_all(&seen.size.to_le_bytes())?;
    write_instant(into, seen.modified)?;
    write_instant(into, seen.changed)
}

fn read_instant(from: &mut impl Read) -> io::Result<Instant> {
    let (seconds, nanos) = (i64::from_le_bytes(bytes(from)?), u32::from_le_bytes(bytes(from)?));
    Ok(Instant { seconds, nanos })
}

fn write_instant(into: &mut impl Write, instant: Instant) -> io::Result<()> {
    into.write_all(&instant.seconds.to_le_bytes())?;
    into.write_all(&instant.nanos.to_le_bytes())
}
