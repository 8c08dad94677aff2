//! Archives on the streams of callers.

use std::time::Duration;

use claw_core::name::{InstanceName, SnapshotName};
use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::export_snapshot_response::Message as Out;
use claw_proto::fleet::v1::import_snapshot_request::Message as In;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::fleet::Fleet;
use crate::fleet::archives::{Export, Import, Importing};
use crate::fleet::snapshots::Answer;
use crate::refusal::Refusal;
use crate::store::mutation::{Call, Codec};
use crate::transfers::{Cause, End, MAX_PIECE, Receiving};

/// Time for the header.
const HEADER_WITHIN: Duration = Duration::from_secs(10);
/// Time to hand over the last word.
const LAST_WORD: Duration = Duration::from_secs(2);

type Exported = Result<fleet::ExportSnapshotResponse, Status>;

/// Why an export stops before its end.
enum Stop {
    CallerGone,
    Broken(Cause),
}

/// Passes an archive on to whoever asked for it.
pub(super) fn send(export: Export) -> ReceiverStream<Exported> {
    let Export { header, end: End { mut sending, mut receiving } } = export;
    let (outbound, stream) = mpsc::channel(1);
    sending.finish();
    tokio::spawn(async move {
        let Err(stop) = pass(header, &mut receiving, &outbound).await else { return };
        match stop {
            Stop::CallerGone => sending.give_up("the caller went away".to_owned()),
            Stop::Broken(cause) => {
                let status = Refusal::from(cause).into();
                // The caller may be gone.
                let _heard = outbound.send_timeout(Err(status), LAST_WORD).await;
            }
        }
    });
    ReceiverStream::new(stream)
}

async fn pass(
    header: fleet::ExportHeader,
    receiving: &mut Receiving,
    outbound: &mpsc::Sender<Exported>,
) -> Result<(), Stop> {
    let mut message = Out::Header(header);
    loop {
        let response = fleet::ExportSnapshotResponse { message: Some(message) };
        tokio::select! {
            sent = outbound.send(Ok(response)) => sent.map_err(|_closed| Stop::CallerGone)?,
            cause = receiving.broken() => return Err(Stop::Broken(cause)),
        }
        let piece = tokio::select! {
            piece = receiving.next() => piece.map_err(Stop::Broken)?,
            () = outbound.closed() => return Err(Stop::CallerGone),
        };
        let Some(piece) = piece else { return Ok(()) };
        message = Out::Piece(piece);
    }
}

/// The first message of an import.
pub(super) async fn header(
    inbound: &mut Streaming<fleet::ImportSnapshotRequest>,
) -> Result<fleet::ImportHeader, Status> {
    let first = tokio::time::timeout(HEADER_WITHIN, inbound.message()).await;
    let first = first.map_err(|_elapsed| Refusal::TooLate {
        description: format!("no header came within {} s", HEADER_WITHIN.as_secs()),
    })??;
    match first.and_then(|first| first.message) {
        Some(In::Header(header)) => Ok(header),
        _ => Err(Refusal::field("header", "must be the first message").into()),
    }
}

/// What the caller of an import has sent. Closed without a last word, the caller has gone.
#[derive(Debug)]
pub(super) enum Word {
    Piece(Vec<u8>),
    /// Everything was sent.
    Whole,
    /// The caller broke the contract.
    Wrong(Refusal),
}

/// Hears the caller out, in the handler's own future.
///
/// hyper ends a request that was cancelled like one that is complete, and drops the handler right after
/// (1.x, `proto/h2/server.rs`): only who is still polled then has heard a true end.
pub(super) async fn hear(
    mut inbound: Streaming<fleet::ImportSnapshotRequest>,
    words: mpsc::Sender<Word>,
) {
    loop {
        let said = tokio::select! {
            said = inbound.message() => said,
            // Whoever listened has an answer.
            () = words.closed() => return,
        };
        let word = match said.map(|said| said.map(|said| said.message)) {
            Ok(Some(Some(In::Piece(piece)))) if piece.len() <= MAX_PIECE => Word::Piece(piece),
            Ok(Some(Some(In::Piece(piece)))) => {
                let text = format!("must have at most {MAX_PIECE} bytes, has {}", piece.len());
                Word::Wrong(Refusal::field("piece", text))
            }
            Ok(Some(Some(In::Header(_)))) => {
                Word::Wrong(Refusal::field("header", "may be said only once"))
            }
            Ok(Some(None)) => continue,
            Ok(None) => {
                tokio::task::yield_now().await;
                Word::Whole
            }
            Err(_broken) => return,
        };
        let is_last = !matches!(word, Word::Piece(_));
        if words.send(word).await.is_err() || is_last {
            return;
        }
    }
}

/// Carries an import out.
pub(super) async fn take(
    fleet: Fleet,
    call: Call,
    instance: InstanceName,
    snapshot: SnapshotName,
    mut words: mpsc::Receiver<Word>,
) -> Result<fleet::ImportSnapshotResponse, Refusal> {
    let answer = Answer {
        codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
        make: |snapshot| fleet::ImportSnapshotResponse { snapshot: Some(snapshot) },
    };
    match fleet.begin_import(call, instance, snapshot, &answer).await? {
        Importing::Answered(response) => Ok(response),
        Importing::Accepted(import) => {
            let sent = pass_on(&import, &mut words).await;
            fleet.end_import(*import, sent, &answer).await
        }
    }
}

async fn pass_on(import: &Import, words: &mut mpsc::Receiver<Word>) -> Result<(), Refusal> {
    let sending = &import.end.sending;
    loop {
        let word = tokio::select! {
            cause = sending.broken() => return Err(cause.into()),
            word = words.recv() => word,
        };
        match word {
            Some(Word::Piece(piece)) => sending.give(piece).await?,
            Some(Word::Whole) => return Ok(()),
            Some(Word::Wrong(refusal)) => return Err(refusal),
            None => {
                let description = "the caller went away before the archive's end".to_owned();
                return Err(Refusal::BrokenOff { description });
            }
        }
    }
}
