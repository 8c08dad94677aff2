//! What is in a file, copied by the cheapest way that the file system knows.

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;

use super::job::Watch;
use super::tree::size;

/// Most bytes that the kernel copies at once: a job that is given up ends after so many.
const PIECE: u64 = 8 << 20;

/// Bytes of the buffer of the last resort, and the size up to which it is the first: such a file is read
/// and written in less time than the kernel needs for its own way (measured, ext4).
const BUFFER: usize = 64 << 10;

/// A way to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Both share their blocks until one is written to (`FICLONE`: XFS, btrfs).
    Shared,
    /// `copy_file_range(2)`.
    Kernel,
    /// `read(2)` and `write(2)`.
    Buffer,
}

/// Copies contents; remembers which ways the file system does not know.
#[derive(Debug)]
pub(super) struct Contents {
    way: Way,
    shared: u64,
    buffer: Vec<u8>,
}

/// How a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// As many bytes were there as the status had said.
    Whole,
    /// There were fewer, or nobody wants it any more.
    Short,
}

impl Contents {
    pub(super) fn new() -> Self {
        Self { way: Way::Shared, shared: 0, buffer: vec![0; BUFFER] }
    }

    /// How many files share their blocks with the original.
    pub(super) const fn shared(&self) -> u64 {
        self.shared
    }

    /// Fills an empty file with what is in another, as far as the latter's status says.
    pub(super) fn copy(
        &mut self,
        from: &OwnedFd,
        into: &OwnedFd,
        stat: &Stat,
        watch: &Watch,
    ) -> rustix::io::Result<Ending> {
        let length = size(stat);
        if length == 0 {
            return Ok(Ending::Whole);
        }
        if self.way == Way::Shared {
            match rustix::fs::ioctl_ficlone(into, from) {
                Ok(()) => {
                    self.shared += 1;
                    watch.add(length);
                    return Ok(Ending::Whole);
                }
                Err(error) if unknown(error) => self.way = Way::Kernel,
                Err(error) => return Err(error),
            }
        }
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512) < length;
        if !sparse {
            return self.range(from, into, 0..length, watch);
        }
        self.islands(from, into, length, watch)
    }

    /// Copies where there is data; what lies between stays a hole.
    fn islands(
        &mut self,
        from: &OwnedFd,
        into: &OwnedFd,
        length: u64,
        watch: &Watch,
    ) -> rustix::io::Result<Ending> {
        rustix::fs::ftruncate(into, length)?;
        let mut at = 0;
        while at < length {
            let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // No data from here to the end.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error),
            };
            let hole = rustix::fs::seek(from, SeekFrom::Hole(data))?;
            if data >= length || hole <= data {
                break;
            }
            let end = hole.min(length);
            if self.range(from, into, data..end, watch)? == Ending::Short {
                return Ok(Ending::Short);
            }
            at = end;
        }
        Ok(Ending::Whole)
    }

    fn range(
        &mut self,
        from: &OwnedFd,
        into: &OwnedFd,
        range: Range<u64>,
        watch: &Watch,
    ) -> rustix::io::Result<Ending> {
        let mut at = range.start;
        while at < range.end {
            if watch.is_given_up() {
                return Ok(Ending::Short);
            }
            let copied = self.piece(from, into, at, range.end - at)?;
            if copied == 0 {
                return Ok(Ending::Short);
            }
            watch.add(copied);
            at += copied;
        }
        Ok(Ending::Whole)
    }

    /// Copies some of what begins at `at`; returns how much.
    fn piece(
        &mut self,
        from: &OwnedFd,
        into: &OwnedFd,
        at: u64,
        length: u64,
    ) -> rustix::io::Result<u64> {
        let small = usize::try_from(length).is_ok_and(|length| length <= BUFFER);
        if self.way == Way::Buffer || small {
            return self.through_buffer(from, into, at, length);
        }
        let most = usize::try_from(length.min(PIECE)).unwrap_or(usize::MAX);
        let (mut read, mut written) = (at, at);
        let copied =
            rustix::fs::copy_file_range(from, Some(&mut read), into, Some(&mut written), most);
        match copied {
            Ok(copied) => Ok(u64::try_from(copied).unwrap_or(0)),
            Err(Errno::INTR) => self.piece(from, into, at, length),
            Err(error) if unknown(error) => {
                self.way = Way::Buffer;
                self.through_buffer(from, into, at, length)
            }
            Err(error) => Err(error),
        }
    }

    fn through_buffer(
        &mut self,
        from: &OwnedFd,
        into: &OwnedFd,
        at: u64,
        length: u64,
    ) -> rustix::io::Result<u64> {
        let most = usize::try_from(length).unwrap_or(usize::MAX).min(BUFFER);
        let buffer = self.buffer.get_mut(..most).unwrap_or_default();
        let got = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut *buffer, at))?;
        let mut done = 0;
        while done < got {
            let rest = buffer.get(done..got).unwrap_or_default();
            let place = at + u64::try_from(done).unwrap_or(0);
            match rustix::io::retry_on_intr(|| rustix::io::pwrite(into, rest, place))? {
                0 => return Err(Errno::NOSPC),
                written => done += written,
            }
        }
        Ok(u64::try_from(got).unwrap_or(0))
    }
}

/// Whether an error says that the file system, or the kernel, does not know this way.
fn unknown(error: Errno) -> bool {
    let errors = [
        Errno::OPNOTSUPP,
        Errno::XDEV,
        Errno::INVAL,
        Errno::NOTTY,
        Errno::NOSYS,
        Errno::PERM,
        Errno::TXTBSY,
    ];
    errors.contains(&error)
}
