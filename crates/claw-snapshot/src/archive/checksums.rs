//! The last entry of an archive: a line per file, as `sha256sum` writes it (coreutils).
//!
//! The lines come in the order of the files, so that whoever unpacks need not remember them: its
//! own lines, hashed, must be those that it finds. They are kept compressed, about 45 bytes each,
//! to say which file is wrong, and to write them at the end of an export.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use zstd::stream::write::Encoder;

use super::refusal::UnpackError;
use crate::id::hex;

/// The lines of the files so far.
pub(super) struct Checksums {
    lines: Encoder<'static, Vec<u8>>,
    length: u64,
}

impl Checksums {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { lines: Encoder::new(Vec::new(), 1)?, length: 0 })
    }

    pub(super) fn add(&mut self, path: &Path, hash: &[u8]) -> io::Result<()> {
        let line = line(path, hash);
        self.lines.write_all(&line)?;
        self.length += u64::try_from(line.len()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// All lines, and their length in bytes.
    pub(super) fn finish(self) -> io::Result<(u64, impl Read)> {
        let compressed = self.lines.finish()?;
        Ok((self.length, zstd::Decoder::new(io::Cursor::new(compressed))?))
    }

    /// Holds the lines of an archive against those of what was unpacked.
    pub(super) fn compare(self, theirs: impl Read) -> Result<(), UnpackError> {
        let (_, ours) = self.finish().map_err(UnpackError::Read)?;
        let mut ours = BufReader::new(ours).split(b'\n');
        // Lines are as long as paths are; an endless one is cut.
        let mut theirs = BufReader::new(theirs);
        loop {
            let our_line = ours.next().transpose().map_err(UnpackError::Read)?;
            let mut line = Vec::new();
            let most = our_line.as_ref().map_or(1, |line| line.len() + 1);
            let most = u64::try_from(most).unwrap_or(u64::MAX);
            (&mut theirs).take(most).read_until(b'\n', &mut line).map_err(UnpackError::Read)?;
            let Some(mut our_line) = our_line else {
                let surplus = UnpackError::Manifest("checksums of files that are not there");
                return if line.is_empty() { Ok(()) } else { Err(surplus) };
            };
            our_line.push(b'\n');
            if our_line != line {
                let name = our_line.get(66..our_line.len() - 1).unwrap_or_default();
                return Err(UnpackError::Checksum(PathBuf::from(std::ffi::OsStr::from_bytes(
                    name,
                ))));
            }
        }
    }
}

/// A name with a line break or backslash is written with escapes, and the line says so.
fn line(path: &Path, hash: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'\\' => name.extend_from_slice(b"\\\\"),
            b'\n' => name.extend_from_slice(b"\\n"),
            b'\r' => name.extend_from_slice(b"\\r"),
            other => name.push(*other),
        }
    }
    let escaped = name.len() > path.as_os_str().len();
    let mark = if escaped { "\\" } else { "" };
    [format!("{mark}{}  ", hex(hash)).as_bytes(), &name, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksums() -> Checksums {
        let mut checksums = Checksums::new().unwrap();
        checksums.add(Path::new("manifest.json"), &[0x11; 32]).unwrap();
        checksums.add(Path::new("data/a\nb\\c"), &[0xab; 32]).unwrap();
        checksums
    }

    #[test]
    fn lines_are_those_of_sha256sum() {
        let (length, mut lines) = checksums().finish().unwrap();
        let mut text = String::new();
        lines.read_to_string(&mut text).unwrap();
        let expected =
            format!("{}  manifest.json\n\\{}  data/a\\nb\\\\c\n", "11".repeat(32), "ab".repeat(32));
        assert_eq!(text, expected);
        assert_eq!(length, u64::try_from(text.len()).unwrap());
    }

    #[test]
    fn the_wrong_file_is_named() {
        let (_, mut lines) = checksums().finish().unwrap();
        let mut text = String::new();
        lines.read_to_string(&mut text).unwrap();
        checksums().compare(text.as_bytes()).unwrap();
        let wrong = text.replacen("11", "12", 1);
        let refused = checksums().compare(wrong.as_bytes()).unwrap_err();
        assert_eq!(refused.to_string(), "the checksum of \"manifest.json\" is wrong");
        let first = text.lines().next().unwrap();
        for (list, what) in [
            (format!("{first}\n"), "too few"),
            (format!("{text}x"), "too many"),
            (text.trim_end().to_owned(), "cut off"),
            (String::new(), "none"),
        ] {
            checksums().compare(list.as_bytes()).expect_err(what);
        }
    }
}
