//! Cuts content into chunks where the content itself says so, as the engine and restic do: the
//! same bytes are cut in the same places, wherever in a file they stand.
//!
//! The tables of the rolling hash take longer to make than a small file to be hashed, so they are
//! made once.

use std::io::{self, Read};

use rustic_cdc::{Rabin64, RollingHash64};
use rustic_core::repofile::{Chunker, ConfigFile};

/// The window of the rolling hash is 2^6 bytes.
const WINDOW_BITS: u32 = 6;
const WINDOW: usize = 1 << WINDOW_BITS;
/// Read at a time.
const READ: usize = 64 << 10;

/// Cuts one file after the other.
pub(super) struct Cutter {
    rabin: Rabin64,
    mask: u64,
    least: usize,
    most: usize,
    /// As long as the longest chunk and what is read at a time; of it, `filled` bytes are content.
    buffer: Vec<u8>,
    filled: usize,
}

/// The repository cuts in a way that is unknown here.
#[derive(Debug, thiserror::Error)]
#[error("the repository cuts files in a way that is unknown here")]
pub(super) struct UnknownCut;

/// A file was not cut to its end.
pub(super) enum CutError<E> {
    /// It could not be read.
    Read,
    /// Whoever takes the chunks gave up.
    Taker(E),
}

impl Cutter {
    pub(super) fn new(config: &ConfigFile) -> Result<Self, UnknownCut> {
        let (size, least, most) =
            (config.chunk_size(), config.chunk_min_size(), config.chunk_max_size());
        let sound = size.is_power_of_two() && least >= WINDOW && (least..=most).contains(&size);
        if config.chunker() != Chunker::Rabin || !sound {
            return Err(UnknownCut);
        }
        let polynomial = config.poly().map_err(|_| UnknownCut)?;
        Ok(Self {
            rabin: Rabin64::new_with_polynom(WINDOW_BITS, &polynomial),
            mask: u64::try_from(size - 1).map_err(|_| UnknownCut)?,
            least,
            most,
            buffer: vec![0; most + READ],
            filled: 0,
        })
    }

    /// Hands every chunk to `taker`, in order.
    pub(super) fn cut<E>(
        &mut self,
        reader: &mut impl Read,
        mut taker: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), CutError<E>> {
        self.filled = 0;
        let mut ended = false;
        loop {
            while !ended && self.filled < self.least {
                ended = self.fill(reader)?;
            }
            if self.filled == 0 {
                return Ok(());
            }
            let end = self.end(reader, &mut ended)?;
            taker(self.buffer.get(..end).unwrap_or_default()).map_err(CutError::Taker)?;
            self.buffer.copy_within(end..self.filled, 0);
            self.filled -= end;
        }
    }

    /// Where the first chunk ends.
    fn end<E>(&mut self, reader: &mut impl Read, ended: &mut bool) -> Result<usize, CutError<E>> {
        if self.filled < self.least {
            return Ok(self.filled);
        }
        let window = self.buffer.get(self.least - WINDOW..self.least).unwrap_or_default();
        self.rabin.reset_and_prefill_window(&mut window.iter().copied());
        let mut end = self.least;
        loop {
            if end >= self.most || self.rabin.hash & self.mask == 0 {
                return Ok(end);
            }
            if end == self.filled {
                if *ended {
                    return Ok(end);
                }
                *ended = self.fill(reader)?;
                continue;
            }
            let limit = self.filled.min(self.most);
            for byte in self.buffer.get(end..limit).unwrap_or_default() {
                self.rabin.slide(*byte);
                end += 1;
                if self.rabin.hash & self.mask == 0 {
                    break;
                }
            }
        }
    }

    /// Reads once; whether that was the end. There is room: at most the longest chunk is filled
    /// when this is called.
    fn fill<E>(&mut self, reader: &mut impl Read) -> Result<bool, CutError<E>> {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        loop {
            match reader.read(room) {
                Ok(count) => {
                    self.filled += count;
                    return Ok(count == 0);
                }
                Err(fault) if fault.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(CutError::Read),
            }
        }
    }
}
