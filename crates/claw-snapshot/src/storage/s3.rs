//! A repository in a bucket of an S3-compatible storage, in restic's layout: plain restic reads it
//! as `s3:ENDPOINT/BUCKET/PREFIX`.
//!
//! Every request has time limits, is repeated a few times when the storage or the way to it is
//! troubled, and signs the hash of what it sends, so that a storage that keeps the rules takes
//! nothing that was altered on the way. What the storage says it stored is compared besides.
//!
//! What it deliberately does not do: it makes no bucket, and it takes no lock, which S3 does not
//! have. Whoever writes must see to it that nobody else does; [`Access::Shared`] refuses to write.
//! An empty place is not told from a lost one: a caller that expects files must ask for the
//! configuration first, as [`crate::Repository::open`] does.
//!
//! Where to start: [`S3Storage::open`]; requests and their repetition are in [`client`], signatures
//! in [`sign`].

mod answer;
mod client;
mod fault;
mod pace;
mod settings;
mod sign;

use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;

use super::{Access, FileKind, Storage, StorageAction, StorageError};
use crate::id::FileId;
use answer::Page;
use client::{Client, Request};

pub use fault::S3Fault;
pub use settings::{
    DEBIAN_CA_FILE, S3Addressing, S3Patience, S3Secret, S3Settings, S3SettingsError,
};

/// Names in a page of a listing; what every storage allows
/// (<https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html>).
const PAGE: &str = "1000";

/// A repository's files in a bucket.
pub struct S3Storage {
    client: Client,
    bucket: String,
    /// Of every key: empty, or ending with a slash.
    prefix: String,
    access: Access,
}

impl S3Storage {
    /// Checks the settings. Nothing is asked of the storage yet; [`Storage::prepare`] does.
    ///
    /// # Errors
    ///
    /// When a setting is missing or cannot be right.
    pub fn open(settings: &S3Settings, access: Access) -> Result<Self, S3SettingsError> {
        let prefix = settings.key_prefix()?;
        let client = Client::new(settings)?;
        Ok(Self { client, bucket: settings.bucket.clone(), prefix, access })
    }

    /// Every kind's files are below one such place; of the configuration it is the file.
    fn place(&self, kind: FileKind) -> String {
        match kind {
            FileKind::Config => format!("{}config", self.prefix),
            _ => format!("{}{}/", self.prefix, kind.directory()),
        }
    }

    fn key(&self, kind: FileKind, id: FileId) -> String {
        let place = self.place(kind);
        match kind {
            FileKind::Config => place,
            FileKind::Pack => format!("{place}{}/{id}", super::pack_directory(id)),
            _ => format!("{place}{id}"),
        }
    }

    fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, S3Fault> {
        let request = Request { range, ..Request::get(key) };
        Ok(self.client.call(&request)?.body)
    }

    fn list_all(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, S3Fault> {
        let place = self.place(kind);
        let mut files = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = self.page(&place, PAGE, token.as_deref())?;
            for (key, size) in page.objects {
                let name = key.strip_prefix(&place);
                // What is not named by an id is not ours.
                let Some(id) = name.and_then(|name| id_of(kind, name)) else { continue };
                let size = u32::try_from(size).map_err(|_| S3Fault::TooLarge)?;
                files.push((id, size));
            }
            match page.next {
                None => return Ok(files),
                // The same page again, for ever.
                next if next == token => return Err(S3Fault::Answer("a listing that goes on")),
                next => token = next,
            }
        }
    }

    fn page(&self, place: &str, size: &str, token: Option<&str>) -> Result<Page, S3Fault> {
        let mut query = vec![("list-type", "2".to_owned()), ("max-keys", size.to_owned())];
        query.push(("prefix", place.to_owned()));
        if let Some(token) = token {
            query.push(("continuation-token", token.to_owned()));
        }
        let request = Request { query, ..Request::get("") };
        answer::page(&self.client.call(&request)?.body)
    }

    fn put(&self, key: &str, parts: &[Bytes]) -> Result<(), S3Fault> {
        if self.access == Access::Shared {
            return Err(S3Fault::ReadOnly);
        }
        let request = Request::put(key, parts);
        self.client.call(&request).map(|_| ())
    }

    fn delete(&self, key: &str) -> Result<(), S3Fault> {
        if self.access == Access::Shared {
            return Err(S3Fault::ReadOnly);
        }
        match self.client.call(&Request::delete(key)) {
            Ok(_) | Err(S3Fault::Absent) => Ok(()),
            Err(fault) => Err(fault),
        }
    }
}

impl Storage for S3Storage {
    fn location(&self) -> String {
        format!(
            "s3:{}/{}/{}",
            self.client.endpoint(),
            self.bucket,
            self.prefix.trim_end_matches('/')
        )
    }

    /// Asks whether the bucket is there and the credentials are good for reading.
    fn prepare(&self) -> Result<(), StorageError> {
        self.page(&self.prefix, "1", None).map(|_| ()).map_err(|fault| {
            failed(StorageAction::Prepare, FileKind::Config, self.location(), fault)
        })
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(FileId, u32)>, StorageError> {
        self.list_all(kind)
            .map_err(|fault| failed(StorageAction::List, kind, self.place(kind), fault))
    }

    fn read(&self, kind: FileKind, id: FileId) -> Result<Bytes, StorageError> {
        self.get(&self.key(kind, id), None)
            .map_err(|fault| failed(StorageAction::Read, kind, id.to_string(), fault))
    }

    fn read_range(
        &self,
        kind: FileKind,
        id: FileId,
        range: Range<u64>,
    ) -> Result<Bytes, StorageError> {
        // HTTP has no range of nothing.
        if range.is_empty() {
            return self.read(kind, id).map(|_| Bytes::new());
        }
        self.get(&self.key(kind, id), Some(range))
            .map_err(|fault| failed(StorageAction::Read, kind, id.to_string(), fault))
    }

    fn write(&self, kind: FileKind, id: FileId, parts: &[Bytes]) -> Result<(), StorageError> {
        self.put(&self.key(kind, id), parts)
            .map_err(|fault| failed(StorageAction::Write, kind, id.to_string(), fault))
    }

    fn remove(&self, kind: FileKind, id: FileId) -> Result<(), StorageError> {
        self.delete(&self.key(kind, id))
            .map_err(|fault| failed(StorageAction::Remove, kind, id.to_string(), fault))
    }
}

impl fmt::Debug for S3Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Storage").field("location", &self.location()).finish_non_exhaustive()
    }
}

/// The file that has this name below its kind's place.
fn id_of(kind: FileKind, name: &str) -> Option<FileId> {
    match kind {
        FileKind::Config => name.is_empty().then(|| FileId::from_bytes([0; 32])),
        FileKind::Pack => {
            let (directory, name) = name.split_once('/')?;
            let id: FileId = name.parse().ok()?;
            (directory == super::pack_directory(id)).then_some(id)
        }
        FileKind::Key | FileKind::Snapshot | FileKind::Index => name.parse().ok(),
    }
}

fn failed(action: StorageAction, kind: FileKind, name: String, fault: S3Fault) -> StorageError {
    StorageError { action, kind, name, source: io::Error::new(fault.kind(), fault) }
}
