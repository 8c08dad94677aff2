//! What fakes say to each other through a pipe: one JSON text per line.

use std::collections::BTreeMap;

use claw_core::backup::{SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::name::{ImageRef, SnapshotName, StatePath};
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;
use serde_json::{Value, json};

use crate::fakes::files::FakeData;
use crate::fakes::snapshots::Kept;
use crate::ports::{MAX_PIECE, Parcel, Pipe, PipeError};

/// A pipe of lines.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) pipe: Pipe,
    heard: Vec<u8>,
}

impl Lines {
    pub(super) const fn new(pipe: Pipe) -> Self {
        Self { pipe, heard: Vec::new() }
    }

    pub(super) async fn say(&mut self, value: &Value) -> Result<(), PipeError> {
        let line = format!("{value}\n");
        for piece in line.as_bytes().chunks(MAX_PIECE) {
            self.pipe.give(Parcel::Piece(piece.to_vec())).await?;
        }
        Ok(())
    }

    /// The next line; none after the last.
    pub(super) async fn hear(&mut self) -> Result<Option<Value>, PipeError> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                return serde_json::from_slice(&line).map(Some).map_err(|_| nonsense());
            }
            match self.pipe.next().await? {
                Some(piece) => self.heard.extend(piece),
                None if self.heard.is_empty() => return Ok(None),
                None => return Err(nonsense()),
            }
        }
    }
}

pub(super) fn nonsense() -> PipeError {
    PipeError("the other end does not speak as it should".to_owned())
}

/// A snapshot with everything in it.
pub(super) fn encode(kept: &Kept) -> Value {
    let info = &kept.info;
    let data: BTreeMap<&str, &str> =
        kept.data.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    json!({
        "name": info.name.as_str(),
        "id": info.id.to_string(),
        "at": info.taken_at.millis(),
        "cause": info.cause.to_string(),
        "image": info.image.to_string(),
        "generation": info.generation.0,
        "files": info.files,
        "bytes": info.bytes,
        "added": info.added_bytes,
        "damaged": kept.damaged,
        "assignment": kept.assignment,
        "data": data,
    })
}

pub(super) fn decode(value: &Value) -> Result<Kept, PipeError> {
    parse(value).ok_or_else(nonsense)
}

fn parse(value: &Value) -> Option<Kept> {
    let text = |name: &str| value.get(name)?.as_str();
    let number = |name: &str| value.get(name)?.as_u64();
    let assignment = value.get("assignment")?.as_array()?.iter();
    let assignment = assignment.map(|byte| u8::try_from(byte.as_u64()?).ok());
    let info = SnapshotInfo {
        name: SnapshotName::parse(text("name")?).ok()?,
        id: Digest::from_hex(text("id")?)?,
        taken_at: Timestamp::from_millis(value.get("at")?.as_i64()?),
        cause: SnapshotCause::parse(text("cause")?)?,
        image: ImageRef::parse(text("image")?).ok()?,
        generation: Generation(number("generation")?),
        files: number("files")?,
        bytes: number("bytes")?,
        added_bytes: number("added")?,
        health: SnapshotHealth::Sound,
        offsite: false,
    };
    Some(Kept {
        info,
        data: parse_data(value.get("data")?)?,
        assignment: assignment.collect::<Option<_>>()?,
        damaged: value.get("damaged")?.as_bool()?,
    })
}

fn parse_data(value: &Value) -> Option<FakeData> {
    let files = value.as_object()?.iter();
    files
        .map(|(path, text)| Some((StatePath::parse(path).ok()?, text.as_str()?.to_owned())))
        .collect()
}
