//! Writes what was surveyed: one thread makes directories, links and empty files, two fill these.
//!
//! Everything is made anew and nothing is opened that was not: `mkdir`, `symlink`, `link` and
//! `O_EXCL` all fail when the name exists and follow no link, so that no entry of a tree can lead
//! out of the directory through another.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustic_core::BlobId;
use rustic_core::repofile::{BlobType, Metadata, Node, NodeType};

use super::RestoreError;
use super::dress;
use super::survey::hard_link;
use crate::progress::{Progress, Watcher};
use crate::tree::Blobs;

const WRITERS: usize = 2;
/// Files that go to a writer together: each time it is woken costs as much as a small file.
const BATCH: usize = 64;
/// Batches that wait for a writer.
const WAITING: usize = 2;
/// A blob of zeros that is at least this long becomes a hole.
const HOLE: usize = 4096;

/// A file to be written. It was made by the walk: two threads that make files in one directory wait
/// for each other, and busily.
struct Task {
    path: PathBuf,
    node: Node,
    file: File,
}

/// What all threads of a restore share.
struct Shared<'a> {
    blobs: &'a Blobs,
    watcher: &'a Watcher,
    progress: Mutex<Progress>,
    /// The first thing that failed; nothing more is begun then.
    failure: Mutex<Option<RestoreError>>,
}

/// What can be done only when all files are there.
#[derive(Default)]
struct Later {
    /// Second and further names of files, with the first.
    links: Vec<(PathBuf, PathBuf)>,
    /// The first name of each file that has several.
    firsts: BTreeMap<(u64, u64), PathBuf>,
    /// Directories, each before what is in it.
    directories: Vec<(PathBuf, Metadata)>,
}

pub(crate) fn write_all(
    blobs: &Blobs,
    root: &Node,
    into: &Path,
    watcher: &Watcher,
) -> Result<(), RestoreError> {
    let shared = Shared {
        blobs,
        watcher,
        progress: Mutex::new(Progress::default()),
        failure: Mutex::new(None),
    };
    let mut later = Later::default();
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel(WAITING);
        let receiver = Mutex::new(receiver);
        // Dropped at the end of this closure, which ends the writers when the walk is through.
        let shared = &shared;
        let receiver = &std::sync::Arc::new(receiver);
        for _ in 0..WRITERS {
            let receiver = std::sync::Arc::clone(receiver);
            scope.spawn(move || shared.write_files(&receiver));
        }
        if let Err(fault) = shared.walk(root, into, &sender, &mut later) {
            shared.fail(fault);
        }
    });
    if let Some(fault) = shared.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(fault);
    }
    later.finish()
}

impl Shared<'_> {
    /// Makes directories and symbolic links, and hands files to the writers.
    fn walk(
        &self,
        root: &Node,
        into: &Path,
        files: &SyncSender<Vec<Task>>,
        later: &mut Later,
    ) -> Result<(), RestoreError> {
        let mut stack = vec![(into.to_owned(), root.clone())];
        while let Some((path, directory)) = stack.pop() {
            later.directories.push((path.clone(), directory.meta));
            let Some(tree) = directory.subtree else { continue };
            let nodes = self
                .blobs
                .tree(tree)
                .map_err(|source| RestoreError::Damaged { path: path.clone(), source })?;
            let mut batch = Vec::new();
            for node in nodes {
                if self.has_failed() {
                    return Ok(());
                }
                let path = path.join(node.name());
                match &node.node_type {
                    NodeType::Dir => {
                        fs::create_dir(&path).map_err(failed("making", &path))?;
                        self.count(0);
                        stack.push((path, node));
                    }
                    NodeType::Symlink { .. } => {
                        symlink(node.node_type.to_link(), &path)
                            .map_err(failed("making", &path))?;
                        dress::link(&path, &node.meta)?;
                        self.count(0);
                    }
                    NodeType::File => {
                        if let Some((path, node)) = later.first_name(path, node) {
                            let file = make(&path)?;
                            batch.push(Task { path, node, file });
                        }
                        if batch.len() >= BATCH {
                            // The writers are gone only when one of them failed.
                            _ = files.send(std::mem::take(&mut batch));
                        }
                    }
                    _ => return Err(RestoreError::Special { path }),
                }
            }
            _ = files.send(batch);
        }
        Ok(())
    }

    fn write_files(&self, tasks: &Mutex<Receiver<Vec<Task>>>) {
        loop {
            let batch = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = batch else { return };
            for task in batch {
                if self.has_failed() {
                    // Takes the rest away, so that the walk does not wait for a place.
                    break;
                }
                if let Err(fault) = self.write_file(&task) {
                    self.fail(fault);
                }
            }
        }
    }

    fn write_file(&self, task: &Task) -> Result<(), RestoreError> {
        let Task { path, node, file } = task;
        let mut length = 0;
        for blob in node.content.iter().flatten() {
            let content = self
                .blobs
                .read(BlobId::from(*blob), BlobType::Data)
                .map_err(|source| RestoreError::Damaged { path: path.clone(), source })?;
            let hole = content.len() >= HOLE && content.iter().all(|byte| *byte == 0);
            if !hole {
                file.write_all_at(&content, length).map_err(failed("writing", path))?;
            }
            length += u64::try_from(content.len()).unwrap_or(u64::MAX);
        }
        finish_file(file, length).map_err(failed("writing", path))?;
        dress::file(file, path, &node.meta)?;
        self.count(length);
        Ok(())
    }

    fn count(&self, bytes: u64) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.entries += 1;
        progress.bytes += bytes;
        self.watcher.tell(*progress);
    }

    fn fail(&self, fault: RestoreError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(fault);
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Later {
    /// The file again, unless this is another name of one.
    fn first_name(&mut self, path: PathBuf, node: Node) -> Option<(PathBuf, Node)> {
        if let Some(link) = hard_link(&node) {
            if let Some(first) = self.firsts.get(&link) {
                self.links.push((first.clone(), path));
                return None;
            }
            self.firsts.insert(link, path.clone());
        }
        Some((path, node))
    }

    /// Making an entry changes its directory's times: these come last, the innermost first.
    fn finish(self) -> Result<(), RestoreError> {
        for (first, path) in &self.links {
            fs::hard_link(first, path).map_err(failed("linking", path))?;
        }
        for (path, metadata) in self.directories.iter().rev() {
            dress::directory(path, metadata)?;
        }
        Ok(())
    }
}

fn make(path: &Path) -> Result<File, RestoreError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path).map_err(failed("making", path))
}

/// Gives the file its length, which a hole at its end has not.
fn finish_file(file: &File, length: u64) -> io::Result<()> {
    if file.metadata()?.len() == length { Ok(()) } else { file.set_len(length) }
}

pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Write { doing, path, source }
}
