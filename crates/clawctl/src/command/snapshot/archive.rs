//! `snapshot export` and `snapshot import`: snapshots as files.
//!
//! An export is complete or not there: it is written beside its place and renamed when the coordinator has
//! said that it sent everything. Neither is repeated by itself.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::export_snapshot_response::Message as Sent;
use claw_proto::fleet::v1::import_snapshot_request::Message as Given;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{client, resource, shown};
use crate::call::CallError;
use crate::clock;
use crate::command::{DEFAULT_PATIENCE, Session};
use crate::failure::CommandError;
use crate::meter::Amount;
use crate::view::size;

/// Most bytes of a piece (contract of `claw.fleet.v1`).
const PIECE: usize = 64 * 1024;
/// Pieces that are read ahead.
const AHEAD: usize = 8;
/// Standard output.
const STDOUT: &str = "-";

/// What became of an archive here, and not well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveError {
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("nothing came for {} s", after.as_secs())]
    Silent { after: Duration },
}

impl ArchiveError {
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Exists(_) => "choose another file with --to",
            Self::Write { .. } | Self::Read { .. } => {
                "look at the file, its directory and the disk"
            }
            Self::Silent { .. } => {
                "the host may be busy: `clawctl get INSTANCE` shows what it does"
            }
        }
    }
}

/// Where an export goes.
enum Sink<'a, 'o> {
    Stdout(&'a mut (dyn Write + 'o)),
    /// Written beside its place first.
    File {
        partial: PathBuf,
        place: PathBuf,
        file: File,
    },
}

impl Sink<'_, '_> {
    fn write(&mut self, piece: &[u8]) -> Result<(), ArchiveError> {
        match self {
            Self::Stdout(out) => out.write_all(piece).map_err(|source| failed(STDOUT, source)),
            Self::File { partial, file, .. } => {
                file.write_all(piece).map_err(|source| failed(&*partial, source))
            }
        }
    }

    /// It is complete.
    fn keep(&mut self) -> Result<(), ArchiveError> {
        match self {
            Self::Stdout(out) => out.flush().map_err(|source| failed(STDOUT, source)),
            Self::File { partial, place, file } => file
                .sync_all()
                .and_then(|()| std::fs::rename(&*partial, &*place))
                .map_err(|source| failed(&*place, source)),
        }
    }

    /// It is of no use.
    fn discard(self) {
        if let Self::File { partial, .. } = self {
            // What failed before is told; a leftover shows by its name.
            let _removed = std::fs::remove_file(partial);
        }
    }
}

fn failed(path: impl AsRef<Path>, source: io::Error) -> ArchiveError {
    ArchiveError::Write { path: path.as_ref().to_owned(), source }
}

/// For its owner only: what is in it is not encrypted.
fn open<'a, 'o>(place: &Path) -> Result<Sink<'a, 'o>, ArchiveError> {
    if place.exists() {
        return Err(ArchiveError::Exists(place.to_owned()));
    }
    let mut name: OsString = place.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let file = file.map_err(|source| failed(&partial, source))?;
    Ok(Sink::File { partial, place: place.to_owned(), file })
}

/// Writes a snapshot to a file.
pub(super) async fn export(
    instance: &str,
    name: &str,
    to: Option<PathBuf>,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let name = resource(instance, name);
    let place = to.unwrap_or_else(|| PathBuf::from(format!("{}.tar.zst", name.replace('/', "-"))));
    let to_stdout = place.as_os_str() == STDOUT;
    let doing = format!("export {name}");
    let request = fleet::ExportSnapshotRequest { name: name.clone() };
    let patience = session.patience.unwrap_or(DEFAULT_PATIENCE);
    let mut stream = session
        .connection
        .open_stream(&doing, request, async |channel, request| {
            client(channel).export_snapshot(request).await
        })
        .await?;
    let mut sink = if to_stdout { Sink::Stdout(&mut *session.output.out) } else { open(&place)? };
    let mut amount = Amount::new(session.style, "exporting");
    let outcome: Result<(), CommandError> = async {
        loop {
            let message = tokio::time::timeout(patience, stream.message());
            let message = message
                .await
                .map_err(|_| ArchiveError::Silent { after: patience })?
                .map_err(|status| CallError::new(&doing, session.connection.endpoint(), &status))?;
            match message.and_then(|answer| answer.message) {
                Some(Sent::Header(header)) => amount.expects(header.size_estimate),
                Some(Sent::Piece(piece)) => {
                    sink.write(&piece)?;
                    amount.add(piece.len(), session.err)?;
                }
                None => return Ok(sink.keep()?),
            }
        }
    }
    .await;
    amount.end(session.err)?;
    if let Err(error) = outcome {
        sink.discard();
        return Err(error);
    }
    drop(sink);
    if to_stdout {
        return Ok(());
    }
    let text = format!("{name} exported to {}: {}", place.display(), size(amount.done()));
    let value = serde_json::json!({
        "snapshot": name, "file": place.display().to_string(), "bytes": amount.done(),
    });
    session.output.value(&value, &text)?;
    session.remark("it is not encrypted: whoever has the file has the customer's data")
}

/// Makes a snapshot of an archive.
pub(super) async fn import(
    instance: &str,
    name: &str,
    from: PathBuf,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let resource = resource(instance, name);
    let file = File::open(&from).and_then(|file| Ok((file.metadata()?.len(), file)));
    let (length, file) =
        file.map_err(|source| ArchiveError::Read { path: from.clone(), source })?;
    let header = fleet::ImportHeader {
        parent: format!("instances/{instance}"),
        snapshot_id: name.to_owned(),
        validate_only: false,
        request_id: clock::request_id(),
    };
    let doing = format!("import {} as {resource}", from.display());
    let (requests, stream) = mpsc::channel(AHEAD);
    let (told, mut sent) = mpsc::channel(AHEAD);
    let reading = tokio::task::spawn_blocking(move || send(file, header, &requests, &told));
    let mut amount = Amount::new(session.style, "importing");
    amount.expects(length);
    let channel = session.connection.channel();
    let mut service = client(channel);
    let call = service.import_snapshot(ReceiverStream::new(stream));
    tokio::pin!(call);
    let patience = session.patience.unwrap_or(DEFAULT_PATIENCE);
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer,
            Some(bytes) = sent.recv() => amount.add(bytes, session.err)?,
            // Since the last piece: the host takes its time to take the snapshot.
            () = tokio::time::sleep(patience) => {
                return Err(ArchiveError::Silent { after: patience }.into());
            }
        }
    };
    amount.end(session.err)?;
    let read = reading.await.unwrap_or_else(|ended| Err(io::Error::other(ended)));
    read.map_err(|source| ArchiveError::Read { path: from.clone(), source })?;
    let answer =
        answer.map_err(|status| CallError::new(&doing, session.connection.endpoint(), &status))?;
    let snapshot = answer.into_inner().snapshot;
    let snapshot = snapshot.ok_or(CommandError::Answer { missing: "snapshot" })?;
    let text = format!(
        "{resource} imported; `clawctl rollback {instance} --to-snapshot {name}` brings it into use"
    );
    shown(&snapshot.into(), &text, session)
}

/// Sends a file in pieces. That nobody takes them any more is no fault of the file.
fn send(
    mut file: File,
    header: fleet::ImportHeader,
    requests: &mpsc::Sender<fleet::ImportSnapshotRequest>,
    told: &mpsc::Sender<usize>,
) -> io::Result<()> {
    let request = |message| fleet::ImportSnapshotRequest { message: Some(message) };
    if requests.blocking_send(request(Given::Header(header))).is_err() {
        return Ok(());
    }
    let mut buffer = vec![0; PIECE];
    loop {
        let length = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..length).filter(|piece| !piece.is_empty()) else {
            return Ok(());
        };
        if requests.blocking_send(request(Given::Piece(piece.to_vec()))).is_err()
            || told.blocking_send(length).is_err()
        {
            return Ok(());
        }
    }
}
