//! The agent's end of a transfer: one `NodeService.Transfer` stream as a [`Pipe`].
//!
//! The stream lives on the connection of the session that named the transfer. When that session ends, a
//! transfer goes on for as long as its connection lives, and breaks with it.
//!
//! What it does not do: know what the pieces mean, or try again: a transfer is used once.
//!
//! Where to start: [`passage`].

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use claw_core::time::Timestamp;
use claw_proto::node::v1::node_service_client::NodeServiceClient;
use claw_proto::node::v1::{
    TransferEnd, TransferRequest, TransferResponse, transfer_request, transfer_response,
};
use tokio::select;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock, MAX_PIECE, Parcel, Pipe, PipeError};
use crate::reconcile::Passage;
use crate::reconcile::deadline::within;

/// The coordinator's answer may take this long (contract of `claw.node.v1`).
const OPEN: Duration = Duration::from_secs(60);
/// So long nothing may move (contract of `claw.node.v1`).
const SILENCE: Duration = Duration::from_secs(600);
/// After its last word an end waits this long for the coordinator to have read it.
const LINGER: Duration = Duration::from_secs(60);
/// Messages between a pipe and its stream.
const QUEUE: usize = 4;
/// Room for a piece and what is around it.
const MAX_MESSAGE: usize = MAX_PIECE + 1024;

/// The way through a transfer that a command has named.
pub(super) fn passage<M: Machine>(
    agent: &Rc<Agent<M>>,
    channel: Channel,
    transfer: String,
) -> Passage {
    let agent = Rc::clone(agent);
    Passage::new(async move { open(agent, channel, transfer).await })
}

async fn open<M: Machine>(
    agent: Rc<Agent<M>>,
    channel: Channel,
    transfer: String,
) -> Result<Pipe, PipeError> {
    let (up, requests) = mpsc::channel(QUEUE);
    let first = transfer_request::Message::Transfer(transfer);
    let queued = up.try_send(TransferRequest { message: Some(first) });
    queued.map_err(|_full| PipeError("the transfer cannot be named".to_owned()))?;
    let mut client = NodeServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let call = client.transfer(ReceiverStream::new(requests));
    let answer = within(agent.machine.clock(), OPEN, call).await;
    let answer = answer.map_err(|_elapsed| {
        PipeError(format!("the coordinator did not answer within {} s", OPEN.as_secs()))
    })?;
    let down = answer.map_err(|status| PipeError(why(Some(&status))))?.into_inner();
    let (here, there) = Pipe::pair();
    tokio::task::spawn_local(carry(agent, there, up, down));
    Ok(here)
}

/// What both directions of a transfer know of each other.
struct Line {
    /// When something moved last.
    moved: Cell<Timestamp>,
    /// The other end has said its last word: what is waited for now is done here.
    heard: Cell<bool>,
    /// Something is to be sent and cannot.
    blocked: Cell<bool>,
}

/// How the coordinator's half of the stream ended.
enum Closed {
    /// After the last word of the other end.
    InOrder,
    /// Before it, or with an error.
    Broken,
}

/// Carries parcels both ways until both have ended, or nothing moves any more.
async fn carry<M: Machine>(
    agent: Rc<Agent<M>>,
    pipe: Pipe,
    up: mpsc::Sender<TransferRequest>,
    down: Streaming<TransferResponse>,
) {
    let clock = agent.machine.clock();
    let moved = Cell::new(clock.now());
    let line = Line { moved, heard: Cell::new(false), blocked: Cell::new(false) };
    let (out, now) = (pipe.out, || clock.now());
    let work = async {
        let mut hears = std::pin::pin!(hear(&line, down, &out, now));
        let mut sends = std::pin::pin!(send(&line, pipe.inward, up, now));
        let first = select! {
            closed = &mut hears => Some(closed),
            () = &mut sends => None,
        };
        match first {
            Some(Closed::Broken) => {}
            Some(Closed::InOrder) => sends.await,
            // The last word must still be read there; whoever got it closes the stream.
            None => select! {
                _closed = &mut hears => {}
                () = async { out.closed().await; clock.sleep(LINGER).await } => {}
            },
        }
    };
    let silent = select! {
        () = work => false,
        () = silence(&line, clock) => true,
    };
    if silent {
        let problem = format!("nothing moved for {} s", SILENCE.as_secs());
        // Where a full queue waits to be read, its end says that the pipe broke.
        let _told = out.try_send(Parcel::GaveUp(problem));
    }
}

/// From the pipe to the coordinator, up to the last word.
async fn send(
    line: &Line,
    mut parcels: mpsc::Receiver<Parcel>,
    up: mpsc::Sender<TransferRequest>,
    now: impl Fn() -> Timestamp,
) {
    loop {
        let (last, messages) = match parcels.recv().await {
            Some(Parcel::Piece(bytes)) => (false, pieces(bytes)),
            Some(Parcel::End) => (true, vec![end(String::new())]),
            Some(Parcel::GaveUp(problem)) => (true, vec![end(problem)]),
            None => (true, vec![end("the agent gave it up".to_owned())]),
        };
        for message in messages {
            line.blocked.set(true);
            let sent = up.send(TransferRequest { message: Some(message) }).await;
            line.blocked.set(false);
            line.moved.set(now());
            if sent.is_err() {
                // Why, the other direction says.
                return;
            }
        }
        if last {
            return;
        }
    }
}

/// From the coordinator to the pipe, up to the end of the stream.
async fn hear(
    line: &Line,
    mut down: Streaming<TransferResponse>,
    out: &mpsc::Sender<Parcel>,
    now: impl Fn() -> Timestamp,
) -> Closed {
    loop {
        let response = down.message().await;
        line.moved.set(now());
        let parcel = match response {
            Ok(Some(TransferResponse { message })) => match message {
                Some(transfer_response::Message::Piece(bytes)) => Parcel::Piece(bytes),
                Some(transfer_response::Message::End(end)) => last_word(end),
                // Of a newer protocol.
                None => continue,
            },
            _ if line.heard.get() => return Closed::InOrder,
            broken => {
                // Whoever waited here may have given up.
                let _told = out.send(Parcel::GaveUp(why(broken.err().as_ref()))).await;
                return Closed::Broken;
            }
        };
        if line.heard.get() {
            // After the last word nothing counts any more.
            continue;
        }
        line.heard.set(!matches!(parcel, Parcel::Piece(_)));
        // As above; what still comes is of no use then.
        let _taken = out.send(parcel).await;
    }
}

/// Ends when nothing has moved for too long while the other end was waited for.
async fn silence(line: &Line, clock: &impl Clock) {
    loop {
        let silent = clock.now().since(line.moved.get());
        let waits_for_other = line.blocked.get() || !line.heard.get();
        if silent >= SILENCE && waits_for_other {
            return;
        }
        clock.sleep(if silent >= SILENCE { SILENCE } else { SILENCE - silent }).await;
    }
}

/// Pieces as large as the protocol allows.
fn pieces(bytes: Vec<u8>) -> Vec<transfer_request::Message> {
    if bytes.len() <= MAX_PIECE {
        return vec![transfer_request::Message::Piece(bytes)];
    }
    let pieces = bytes.chunks(MAX_PIECE).map(|piece| piece.to_vec());
    pieces.map(transfer_request::Message::Piece).collect()
}

const fn end(problem: String) -> transfer_request::Message {
    transfer_request::Message::End(TransferEnd { problem })
}

fn last_word(end: TransferEnd) -> Parcel {
    if end.problem.is_empty() { Parcel::End } else { Parcel::GaveUp(end.problem) }
}

/// What the coordinator said, or what became of the way to it; none: it ended the stream before its end.
fn why(status: Option<&Status>) -> String {
    let Some(status) = status else {
        return "the coordinator closed the transfer before its end".to_owned();
    };
    let what = match (status.message(), status.code()) {
        ("", Code::NotFound) => "the coordinator does not know the transfer any more".to_owned(),
        ("", code) => code.to_string(),
        (message, _) => message.to_owned(),
    };
    match std::error::Error::source(status) {
        Some(cause) => format!("{what}: {}", chain(cause)),
        None => what,
    }
}
