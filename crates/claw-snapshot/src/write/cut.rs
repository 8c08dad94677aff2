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
        // The last byte of the window is left out: the engine does it like this, and cuts that are
        // not the same would store everything once more.
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

#[cfg(test)]
mod tests {
    use rustic_core::Id;
    use rustic_core::repofile::ConfigFile;

    use super::*;

    const POLYNOMIAL: u64 = 0x003D_A335_8B4D_C173;
    const SIZE: usize = 1024;
    const LEAST: usize = 256;
    const MOST: usize = 4096;

    fn config() -> ConfigFile {
        let mut config = ConfigFile::new(2, Id::default().into(), POLYNOMIAL);
        config.chunk_size = Some(SIZE);
        config.chunk_min_size = Some(LEAST);
        config.chunk_max_size = Some(MOST);
        config
    }

    /// The same bytes every time, that no rule foresees.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        (0..length).map(|_| next()).collect()
    }

    /// Gives so many bytes at a time.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len());
            self.0.read(&mut buffer[..count])
        }
    }

    fn cut(cutter: &mut Cutter, content: &[u8], at_a_time: usize) -> Vec<Vec<u8>> {
        let mut chunks = Vec::new();
        let taken = cutter.cut(&mut Dribble(content, at_a_time), |chunk| {
            chunks.push(chunk.to_vec());
            Ok::<_, ()>(())
        });
        assert!(taken.is_ok());
        chunks
    }

    /// By the definition, with everything at hand and tables made anew for each chunk.
    fn lengths(mut content: &[u8]) -> Vec<usize> {
        let mut lengths = Vec::new();
        while content.len() > LEAST {
            let mut rabin = Rabin64::new_with_polynom(WINDOW_BITS, &POLYNOMIAL);
            rabin.reset_and_prefill_window(&mut content[LEAST - WINDOW..].iter().copied());
            let most = MOST.min(content.len());
            let ends = |end: &usize| {
                let ends = rabin.hash & 1023 == 0;
                rabin.slide(content[*end]);
                ends
            };
            let end = (LEAST..most).find(ends).unwrap_or(most);
            lengths.push(end);
            content = &content[end..];
        }
        lengths.extend((!content.is_empty()).then_some(content.len()));
        lengths
    }

    #[test]
    fn chunks_end_where_the_content_says_so_however_it_is_read() {
        let mut cutter = Cutter::new(&config()).unwrap();
        for length in [0, 1, 63, LEAST - 1, LEAST, LEAST + 1, MOST, MOST + 1, 60_000] {
            let content = noise(length);
            let chunks = cut(&mut cutter, &content, READ);
            assert_eq!(chunks.concat(), content);
            let found: Vec<_> = chunks.iter().map(Vec::len).collect();
            assert_eq!(found, lengths(&content));
            for at_a_time in [1, 7, 4096] {
                assert_eq!(cut(&mut cutter, &content, at_a_time), chunks);
            }
        }
        assert!(lengths(&noise(60_000)).len() > 20);
    }

    #[test]
    fn what_comes_before_moves_only_the_first_chunks() {
        let mut cutter = Cutter::new(&config()).unwrap();
        let content = noise(60_000);
        let moved = [&b"before"[..], &content].concat();
        let (before, after) = (cut(&mut cutter, &content, READ), cut(&mut cutter, &moved, READ));
        assert_eq!(before[before.len() - 5..], after[after.len() - 5..]);
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        for (size, least, most) in [(1000, 256, 4096), (1024, 63, 4096), (1024, 256, 1000)] {
            let mut config = config();
            config.chunk_size = Some(size);
            config.chunk_min_size = Some(least);
            config.chunk_max_size = Some(most);
            assert!(Cutter::new(&config).is_err(), "{size} {least} {most}");
        }
    }
}
