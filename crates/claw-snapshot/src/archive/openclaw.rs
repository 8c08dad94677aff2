//! OpenClaw's own archives, of `openclaw backup create` (seen with 2026.9.6): a gzipped tar with
//! one directory, in it `payload/posix/ABSOLUTE PATH/…` and, last, `manifest.json`, which says
//! which of the paths is the state directory. It has no checksums besides that of gzip.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::MANIFEST;
use super::blocks::Entry;
use super::place::{failed, plain, refuse_links_out};
use super::refusal::UnpackError;
use super::unpack::Unpacking;
use crate::source::DATA;

const PAYLOAD: &str = "payload";
/// Where assets that are not the state directory come to lie.
const BESIDE: &str = "beside";
/// Of the manifest.
const SCHEMA: u64 = 1;

/// What such an archive says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenClawBackup {
    /// When it was made, in its own words: ISO 8601.
    pub created: String,
    /// The version of OpenClaw that made it.
    pub version: String,
    /// Where the state directory was.
    pub state: PathBuf,
    /// What else it has: a workspace, credentials or a configuration outside of the state
    /// directory.
    pub beside: Vec<OpenClawAsset>,
}

/// A file or directory that was outside of the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenClawAsset {
    /// What it is, in OpenClaw's words: `workspace`, `config`, `credentials`, `agent`.
    pub kind: String,
    /// Where it was.
    pub source: PathBuf,
    /// Where it is now: below the directory that was made.
    pub path: PathBuf,
}

/// An asset as the manifest names it.
struct Asset {
    kind: String,
    source: PathBuf,
    /// Below the archive's one directory.
    path: PathBuf,
}

pub(super) fn unpack<R: Read>(
    unpacking: &mut Unpacking<R>,
    first: Entry,
) -> Result<OpenClawBackup, UnpackError> {
    let root = plain(&first.path)?;
    let root = root.components().next().map(|name| PathBuf::from(name.as_os_str()));
    let root = root.ok_or(UnpackError::Manifest("there is none"))?;
    let mut text = None;
    let mut next = Some(first);
    while let Some(entry) = next {
        let path = plain(&entry.path)?;
        let below = path.strip_prefix(&root).map(Path::to_owned);
        let below = below.map_err(|_| UnpackError::Unexpected(path.clone()))?;
        if below == Path::new(MANIFEST) {
            if text.replace(unpacking.small_file(&entry)?).is_some() {
                return Err(UnpackError::Duplicate(path));
            }
        } else if below.starts_with(PAYLOAD) {
            unpacking.put(&below, entry, &root)?;
        } else if below.as_os_str().is_empty() {
            unpacking.count(&entry)?;
        } else {
            return Err(UnpackError::Unexpected(path));
        }
        next = unpacking.blocks.next()?;
    }
    let text = text.ok_or(UnpackError::Manifest("there is none"))?;
    let (mut backup, assets) = parse(&text, &root)?;
    unpacking.place.finish()?;
    arrange(unpacking, &mut backup, assets)?;
    Ok(backup)
}

/// Moves what the manifest names out of the payload, of which nothing may be left.
fn arrange<R: Read>(
    unpacking: &mut Unpacking<R>,
    backup: &mut OpenClawBackup,
    assets: Vec<Asset>,
) -> Result<(), UnpackError> {
    let into = unpacking.place.root().to_owned();
    for asset in assets {
        let absent = UnpackError::Manifest("it names what is not there");
        let kind = unpacking.place.kind(&asset.path).ok_or(absent)?;
        let is_state = asset.kind == "state";
        if kind.is_symlink() || (is_state && !kind.is_dir()) {
            return Err(UnpackError::Manifest("it names what is no directory"));
        }
        let to = match is_state {
            true => PathBuf::from(DATA),
            false => Path::new(BESIDE).join(backup.beside.len().to_string()),
        };
        if !is_state && backup.beside.is_empty() {
            fs::create_dir(into.join(BESIDE)).map_err(failed("making", Path::new(BESIDE)))?;
        }
        unpacking.place.rename(&asset.path, &to)?;
        let path = into.join(&to);
        if kind.is_dir() {
            refuse_links_out(&path, &to)?;
        }
        if !is_state {
            backup.beside.push(OpenClawAsset { kind: asset.kind, source: asset.source, path });
        }
    }
    remove_empty(&into.join(PAYLOAD), Path::new(PAYLOAD))
}

/// Directories that led to the assets. Anything else belongs to none of them.
fn remove_empty(directory: &Path, shown: &Path) -> Result<(), UnpackError> {
    for entry in fs::read_dir(directory).map_err(failed("reading", shown))? {
        let entry = entry.map_err(failed("reading", shown))?;
        let name = shown.join(entry.file_name());
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return Err(UnpackError::Unexpected(name));
        }
        remove_empty(&entry.path(), &name)?;
    }
    fs::remove_dir(directory).map_err(failed("removing", shown))
}

fn parse(text: &[u8], root: &Path) -> Result<(OpenClawBackup, Vec<Asset>), UnpackError> {
    let wrong = UnpackError::Manifest;
    let value: Value = serde_json::from_slice(text).map_err(|_| wrong("it is no JSON"))?;
    if value["schemaVersion"] != SCHEMA {
        return Err(wrong("the version is another one"));
    }
    if value["archiveRoot"].as_str().map(Path::new) != Some(root) {
        return Err(wrong("it is of another archive"));
    }
    let mut assets = Vec::new();
    for asset in value["assets"].as_array().ok_or_else(|| wrong("assets"))? {
        let text = |name: &str| asset[name].as_str().ok_or_else(|| wrong("assets"));
        let path = plain(Path::new(text("archivePath")?))?;
        let path = path.strip_prefix(root).map_err(|_| wrong("an asset is elsewhere"))?.to_owned();
        if !path.starts_with(PAYLOAD) || path == Path::new(PAYLOAD) {
            return Err(wrong("an asset is elsewhere"));
        }
        let (kind, source) = (text("kind")?.to_owned(), PathBuf::from(text("sourcePath")?));
        assets.push(Asset { kind, source, path });
    }
    let mut states = assets.iter().filter(|asset| asset.kind == "state");
    let state = match (states.next(), states.next()) {
        (Some(state), None) => state.source.clone(),
        _ => return Err(wrong("it has not one state directory")),
    };
    let text = |name: &str| value[name].as_str().unwrap_or("unknown").to_owned();
    let (created, version) = (text("createdAt"), text("runtimeVersion"));
    Ok((OpenClawBackup { created, version, state, beside: Vec::new() }, assets))
}
