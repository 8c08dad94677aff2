//! A repository that was made to harm whoever restores it: entries that lead elsewhere, and special
//! files. It is written by the engine itself, with a source that gives such entries.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use claw_snapshot::{BlobError, FileId, FileKind, RestoreError, Storage, Subtree, Watcher};
use rustic_core::repofile::{Metadata, Node, NodeType, SnapshotFile};
use rustic_core::{
    BackupOptions, BytesList, Credentials, FileType, Id, ReadBackend, ReadSource, ReadSourceEntry,
    Repository, RepositoryBackends, RepositoryOptions, RusticResult, WriteBackend,
};
use support::{Fixture, secret};

/// The engine's view of our storage, without any of our checks.
#[derive(Debug)]
struct Unchecked(Arc<dyn Storage>);

fn kind(tpe: FileType) -> FileKind {
    match tpe {
        FileType::Config => FileKind::Config,
        FileType::Index => FileKind::Index,
        FileType::Key => FileKind::Key,
        FileType::Snapshot => FileKind::Snapshot,
        FileType::Pack => FileKind::Pack,
    }
}

fn file_id(id: &Id) -> FileId {
    id.to_hex().as_str().parse().unwrap()
}

impl ReadBackend for Unchecked {
    fn location(&self) -> String {
        self.0.location()
    }
    fn list_with_size(&self, tpe: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let files = self.0.list(kind(tpe)).unwrap();
        Ok(files.into_iter().map(|(id, size)| (Id::new(*id.as_bytes()), size)).collect())
    }
    fn read_full(&self, tpe: FileType, id: &Id) -> RusticResult<Bytes> {
        Ok(self.0.read(kind(tpe), file_id(id)).unwrap())
    }
    fn read_partial(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        let range = u64::from(offset)..u64::from(offset) + u64::from(length);
        Ok(self.0.read_range(kind(tpe), file_id(id), range).unwrap())
    }
    fn warmup_path(&self, _tpe: FileType, _id: &Id) -> String {
        String::new()
    }
}

impl WriteBackend for Unchecked {
    fn write_bytes(
        &self,
        tpe: FileType,
        id: &Id,
        _cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        self.0.write(kind(tpe), file_id(id), content.slice()).unwrap();
        Ok(())
    }
    fn remove(&self, _tpe: FileType, _id: &Id, _cacheable: bool) -> RusticResult<()> {
        unreachable!("a backup removes nothing")
    }
}

/// Entries as they come: the path that the engine goes by, and the node that it stores.
struct Entries(Vec<(PathBuf, Node)>);

impl ReadSource for Entries {
    type Open = Cursor<Vec<u8>>;
    type Iter = Box<dyn Iterator<Item = RusticResult<ReadSourceEntry<Self::Open>>> + Send>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }
    fn entries(&self) -> Self::Iter {
        let entries = self.0.clone().into_iter().map(|(path, node)| {
            let open = Some(Cursor::new(b"harm".to_vec()));
            Ok(ReadSourceEntry { path, node, open })
        });
        Box::new(entries)
    }
}

fn node(name: &str, node_type: NodeType) -> Node {
    Node::new_node(OsStr::new(name), node_type, Metadata::default())
}

/// What a restore of a snapshot with these entries below `data` says.
fn restored(entries: &[(&str, Node)]) -> RestoreError {
    let fixture = Fixture::with_repository();
    fs::create_dir(fixture.path("outside")).unwrap();
    let backend: Arc<dyn WriteBackend> = Arc::new(Unchecked(fixture.storage()));
    let options = RepositoryOptions::default().no_cache(true);
    let password = Credentials::Password(secret().password().to_string());
    let id = {
        let engine = Repository::new(&options, &RepositoryBackends::new(backend, None)).unwrap();
        let engine = engine.open(&password).unwrap().to_indexed_ids().unwrap();
        let top = Path::new("/data");
        let mut all = vec![(top.to_owned(), node("data", NodeType::Dir))];
        all.extend(entries.iter().map(|(path, node)| (top.join(path), node.clone())));
        let paths = [PathBuf::from("/")];
        let source = Entries(all);
        let options = BackupOptions::default().no_scan(true);
        engine.archive(&options, &source, SnapshotFile::default(), &paths).unwrap().id
    };
    let id = file_id(&id.into_inner()).to_string().parse().unwrap();
    let repository = fixture.open();
    let into = fixture.path("into");
    let refused = repository.restore(id, &Subtree::data(), &into, &Watcher::none()).unwrap_err();
    assert!(!into.exists());
    assert_eq!(fs::read_dir(fixture.path("outside")).unwrap().count(), 0);
    assert!(!fixture.path("evil").exists());
    refused
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["..", ".", "", "../evil", "/tmp/evil", "a/b"] {
        let refused = restored(&[("x", node(name, NodeType::File))]);
        assert!(
            matches!(refused, RestoreError::Damaged { source: BlobError::BadName(_), .. }),
            "{name}: {refused:?}"
        );
    }
}

#[test]
fn a_link_is_no_way_out() {
    let link = node("a", NodeType::from_link(Path::new("../outside")));
    let directory = node("a", NodeType::Dir);
    let file = node("evil", NodeType::File);
    let below = [("a", link), ("a", directory), ("a/evil", file)];
    let refused = restored(&below);
    assert!(matches!(refused, RestoreError::Write { doing: "making", .. }), "{refused:?}");
    let link = node("a", NodeType::from_link(Path::new("../outside/evil")));
    let refused = restored(&[("a", link), ("a", node("a", NodeType::File))]);
    assert!(matches!(refused, RestoreError::Write { doing: "making", .. }), "{refused:?}");
}

#[test]
fn special_files_are_refused() {
    let specials = [
        NodeType::Fifo,
        NodeType::Socket,
        NodeType::Chardev { device: 0x103 },
        NodeType::Dev { device: 0x801 },
    ];
    for node_type in specials {
        let refused = restored(&[("x", node("x", node_type))]);
        assert!(matches!(refused, RestoreError::Special { .. }), "{refused:?}");
    }
}
