//! Writes a snapshot as an archive.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, Bytes};
use rustic_core::repofile::{BlobType, Metadata, Node, NodeType};
use rustic_core::{BlobId, DataId};
use tar::{Builder, EntryType, Header};

use super::checksums::Checksums;
use super::manifest::ArchiveManifest;
use super::{CHECKSUMS, MANIFEST};
use crate::catalog::Snapshot;
use crate::id::{FileId, Hasher, SnapshotId};
use crate::progress::{Progress, Watcher};
use crate::repository::Repository;
use crate::restore::{RestoreError, Subtree, hard_link};
use crate::snapshot::AttachmentsError;
use crate::source::node::permissions;
use crate::source::{DATA, META};
use crate::tree::{BlobError, Blobs};

const ZSTD_LEVEL: i32 = 3;

/// An archive that was written to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// What it says about itself.
    pub manifest: ArchiveManifest,
    /// Its bytes, compressed.
    pub written: u64,
}

/// The archive is not whole: its last entry is missing, so that nobody takes it for whole.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The snapshot is absent, rough or damaged.
    #[error("the snapshot cannot be exported")]
    Snapshot(#[from] RestoreError),
    /// Its attachments cannot be read.
    #[error("the snapshot's attachments cannot be exported")]
    Attachments(#[from] AttachmentsError),
    /// A file has not as many bytes as its tree says.
    #[error("{0:?} has another size than the snapshot says")]
    Size(PathBuf),
    /// The receiver failed.
    #[error("writing the archive failed")]
    Write(#[source] io::Error),
}

impl Repository {
    /// Writes a snapshot of ours as an archive. Everything that can be known to fail is found
    /// before the first byte; every blob is held against its hash. The memory is that of a restore.
    ///
    /// # Errors
    ///
    /// When anything of the snapshot cannot be read, or `writer` fails.
    pub fn export(
        &self,
        id: SnapshotId,
        writer: impl Write,
        watcher: &Watcher,
    ) -> Result<Exported, ExportError> {
        let opened = self.open_snapshot(id, &Subtree::data())?;
        let attachments = self.attachments(id)?;
        let names = attachments.keys().cloned().collect();
        let manifest =
            ArchiveManifest::new(&Snapshot::of(&opened.file), opened.survey.restored(), names);
        let counted = Counted { writer, written: 0 };
        let mut encoder = zstd::Encoder::new(counted, ZSTD_LEVEL).map_err(ExportError::Write)?;
        encoder.include_checksum(true).map_err(ExportError::Write)?;
        let mut export = Export {
            blobs: &opened.blobs,
            tar: Builder::new(encoder),
            checksums: Checksums::new().map_err(ExportError::Write)?,
            linked: BTreeMap::new(),
            watcher,
            progress: Progress::default(),
        };
        let top = Metadata::default();
        export.content(Path::new(MANIFEST), manifest.to_json().as_bytes())?;
        export.entry(Path::new(META), EntryType::Directory, &top)?;
        for (name, content) in &attachments {
            export.content(&Path::new(META).join(name.as_str()), content)?;
        }
        export.directory(PathBuf::from(DATA), &opened.root)?;
        let counted = export.finish()?;
        Ok(Exported { manifest, written: counted.written })
    }
}

/// A directory on the way down, and what is left of it.
type Level = (PathBuf, std::vec::IntoIter<Node>);

/// An archive that is being written.
struct Export<'a, W: Write> {
    blobs: &'a Blobs,
    tar: Builder<zstd::Encoder<'static, W>>,
    checksums: Checksums,
    /// The first name of each file that has several.
    linked: BTreeMap<(u64, u64), PathBuf>,
    watcher: &'a Watcher,
    progress: Progress,
}

impl<W: Write> Export<'_, W> {
    /// The directory and everything below it, what is in a directory right behind it: other
    /// programs take a directory for finished when something else comes.
    fn directory(&mut self, path: PathBuf, root: &Node) -> Result<(), ExportError> {
        self.entry(&path, EntryType::Directory, &root.meta)?;
        let mut stack = vec![self.enter(path, root)?];
        while let Some((path, nodes)) = stack.last_mut() {
            let Some(node) = nodes.next() else {
                stack.pop();
                continue;
            };
            let path = path.join(node.name());
            match &node.node_type {
                NodeType::Dir => {
                    self.entry(&path, EntryType::Directory, &node.meta)?;
                    stack.push(self.enter(path, &node)?);
                }
                NodeType::Symlink { .. } => {
                    let target = node.node_type.to_link().to_owned();
                    self.link(&path, EntryType::Symlink, &target, &node.meta)?;
                }
                NodeType::File => self.file(&path, &node)?,
                _ => return Err(RestoreError::Special { path }.into()),
            }
        }
        Ok(())
    }

    fn enter(&self, path: PathBuf, directory: &Node) -> Result<Level, RestoreError> {
        let nodes = directory.subtree.map_or(Ok(Vec::new()), |tree| self.blobs.tree(tree));
        match nodes {
            Ok(nodes) => Ok((path, nodes.into_iter())),
            Err(source) => Err(RestoreError::Damaged { path, source }),
        }
    }

    fn file(&mut self, path: &Path, node: &Node) -> Result<(), ExportError> {
        if let Some(link) = hard_link(node) {
            if let Some(first) = self.linked.get(&link).cloned() {
                return self.link(path, EntryType::Link, &first, &node.meta);
            }
            self.linked.insert(link, path.to_owned());
        }
        let header = self.header(EntryType::Regular, path, None, &node.meta, node.meta.size)?;
        let blobs = node.content.as_deref().unwrap_or_default();
        let mut content = Content::new(self.blobs, blobs);
        let appended = self.tar.append(&header, &mut content);
        if let Some(source) = content.fault {
            let path = path.to_owned();
            return Err(RestoreError::Damaged { path, source }.into());
        }
        appended.map_err(ExportError::Write)?;
        if content.read != node.meta.size {
            return Err(ExportError::Size(path.to_owned()));
        }
        let hash = content.hasher.finish();
        self.checksums.add(path, &hash).map_err(ExportError::Write)?;
        self.count(node.meta.size);
        Ok(())
    }

    /// A small file of our own.
    fn content(&mut self, path: &Path, content: &[u8]) -> Result<(), ExportError> {
        let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let header = self.header(EntryType::Regular, path, None, &ours(), size)?;
        self.tar.append(&header, content).map_err(ExportError::Write)?;
        let hash = FileId::of(content);
        self.checksums.add(path, hash.as_bytes()).map_err(ExportError::Write)
    }

    fn entry(&mut self, path: &Path, kind: EntryType, meta: &Metadata) -> Result<(), ExportError> {
        let header = self.header(kind, path, None, meta, 0)?;
        self.tar.append(&header, io::empty()).map_err(ExportError::Write)?;
        self.count(0);
        Ok(())
    }

    fn link(
        &mut self,
        path: &Path,
        kind: EntryType,
        target: &Path,
        meta: &Metadata,
    ) -> Result<(), ExportError> {
        let header = self.header(kind, path, Some(target), meta, 0)?;
        self.tar.append(&header, io::empty()).map_err(ExportError::Write)?;
        self.count(0);
        Ok(())
    }

    /// An entry's header. What does not fit into it is written before it, as POSIX has it.
    fn header(
        &mut self,
        kind: EntryType,
        path: &Path,
        target: Option<&Path>,
        meta: &Metadata,
        size: u64,
    ) -> Result<Header, ExportError> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(permissions(meta.mode.unwrap_or(0o700)));
        header.set_uid(u64::from(meta.uid.unwrap_or(0)));
        header.set_gid(u64::from(meta.gid.unwrap_or(0)));
        let mut records = Vec::new();
        let (seconds, rest) = time(meta);
        header.set_mtime(seconds);
        records.extend(rest.map(|time| ("mtime", time.into_bytes())));
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == EntryType::Directory {
            name.push(b'/');
        }
        let old = header.as_old_mut();
        if !fill(&mut old.name, &name) {
            records.push(("path", name));
        }
        let target = target.map_or(&b""[..], |target| target.as_os_str().as_bytes());
        if !fill(&mut old.linkname, target) {
            records.push(("linkpath", target.to_vec()));
        }
        header.set_cksum();
        let records = records.iter().map(|(name, value)| (*name, value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(ExportError::Write)?;
        Ok(header)
    }

    fn count(&mut self, bytes: u64) {
        self.progress.entries += 1;
        self.progress.bytes += bytes;
        self.watcher.tell(self.progress);
    }

    fn finish(mut self) -> Result<W, ExportError> {
        let checksums =
            std::mem::replace(&mut self.checksums, Checksums::new().map_err(ExportError::Write)?);
        let (length, lines) = checksums.finish().map_err(ExportError::Write)?;
        let header =
            self.header(EntryType::Regular, Path::new(CHECKSUMS), None, &ours(), length)?;
        let written = || {
            self.tar.append(&header, lines)?;
            let mut writer = self.tar.into_inner()?.finish()?;
            writer.flush()?;
            Ok(writer)
        };
        written().map_err(ExportError::Write)
    }
}

/// Of files that are no one's.
fn ours() -> Metadata {
    Metadata { mode: Some(0o400), ..Metadata::default() }
}

/// The time for a header, and, when that is not exact, the whole time.
fn time(meta: &Metadata) -> (u64, Option<String>) {
    let Some(time) = meta.mtime else { return (0, None) };
    let (seconds, nanoseconds) = (time.as_second(), time.subsec_nanosecond());
    match u64::try_from(seconds) {
        Ok(seconds) if nanoseconds == 0 => (seconds, None),
        Ok(seconds) => (seconds, Some(format!("{seconds}.{nanoseconds:09}"))),
        Err(_) => {
            // Both parts are negative then.
            let (seconds, nanoseconds) = (seconds.unsigned_abs(), nanoseconds.unsigned_abs());
            (0, Some(format!("-{seconds}.{nanoseconds:09}")))
        }
    }
}

/// Puts as much into a field as fits; says whether it was everything.
fn fill(field: &mut [u8], content: &[u8]) -> bool {
    for (into, from) in field.iter_mut().zip(content) {
        *into = *from;
    }
    content.len() <= field.len()
}

/// A file's content, blob after blob, hashed on the way.
struct Content<'a> {
    blobs: &'a Blobs,
    left: std::slice::Iter<'a, DataId>,
    current: Bytes,
    read: u64,
    hasher: Hasher,
    /// Why reading failed; the reader's own error says nothing.
    fault: Option<BlobError>,
}

impl<'a> Content<'a> {
    fn new(blobs: &'a Blobs, content: &'a [DataId]) -> Self {
        let (left, hasher) = (content.iter(), Hasher::new());
        Self { blobs, left, current: Bytes::new(), read: 0, hasher, fault: None }
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            let Some(blob) = self.left.next() else { return Ok(0) };
            match self.blobs.read(BlobId::from(*blob), BlobType::Data) {
                Ok(content) => self.current = content,
                Err(fault) => {
                    self.fault = Some(fault);
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            self.hasher.update(&self.current);
        }
        let count = self.current.len().min(buffer.len());
        for (into, from) in buffer.iter_mut().zip(self.current.iter()) {
            *into = *from;
        }
        self.current.advance(count);
        self.read += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}

/// Counts what goes through.
struct Counted<W> {
    writer: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.writer.write(buffer)?;
        self.written += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
