//! An agent's end of a transfer, on its stream.

use std::sync::Arc;
use std::time::Duration;

use claw_core::name::HostName;
use claw_identity::Peer;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::transfer_request::Message as Up;
use claw_proto::node::v1::transfer_response::Message as Down;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::auth::{Caller, Closing, denied};
use crate::refusal::Refusal;
use crate::transfers::{Cause, End, MAX_PIECE, Receiving, Sending, Transfers};

/// Time for the first message.
const NAMED_WITHIN: Duration = Duration::from_secs(10);
/// Time to hand over the last word.
const LAST_WORD: Duration = Duration::from_secs(2);
/// Most characters of an agent's words that are passed on.
const MAX_PROBLEM: usize = 500;

type Outbound = mpsc::Sender<Result<node::TransferResponse, Status>>;

/// The stream of an agent that comes for its end.
pub(super) struct Carrying {
    pub(super) transfers: Transfers,
    pub(super) caller: Arc<Caller>,
    pub(super) peer: Peer,
    pub(super) inbound: Streaming<node::TransferRequest>,
}

/// Why it stops before both ends are done.
enum Stop {
    /// The agent said why, or is gone.
    ByAgent,
    With(Status),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::With(refusal.into())
    }
}

impl From<Cause> for Stop {
    fn from(cause: Cause) -> Self {
        Refusal::from(cause).into()
    }
}

impl Carrying {
    /// Runs to the end; the agent hears why.
    pub(super) async fn run(mut self, outbound: Outbound) {
        let mut closing = self.caller.closing.clone();
        let stopped = tokio::select! {
            stopped = self.carry(&outbound) => stopped,
            // An error means that the connection is gone already.
            _denied = closing.wait_for(|closing| *closing == Closing::Denied) => {
                Err(denied().into())
            }
        };
        if let Err(Stop::With(status)) = stopped {
            // Nobody may be there to hear it.
            let _heard = outbound.send_timeout(Err(status), LAST_WORD).await;
        }
    }

    async fn carry(&mut self, outbound: &Outbound) -> Result<(), Stop> {
        let End { sending, receiving } = self.take().await?;
        let up = up(&mut self.inbound, sending);
        tokio::try_join!(up, down(receiving, outbound)).map(|((), ())| ())
    }

    async fn take(&mut self) -> Result<End, Stop> {
        let first = tokio::time::timeout(NAMED_WITHIN, self.inbound.message()).await;
        let first = first.map_err(|_elapsed| Refusal::TooLate {
            description: format!("no transfer was named within {} s", NAMED_WITHIN.as_secs()),
        })?;
        let Some(node::TransferRequest { message: Some(Up::Transfer(id)) }) =
            first.map_err(Stop::With)?
        else {
            return Err(Refusal::field("transfer", "must be the first message").into());
        };
        let absent = || Refusal::NotFound { resource: "this transfer".to_owned() };
        let host = HostName::parse(self.peer.identity.name()).map_err(|_not_a_host| absent())?;
        self.transfers.take(&id, &host).ok_or_else(|| absent().into())
    }
}

/// What the agent sends.
async fn up(
    inbound: &mut Streaming<node::TransferRequest>,
    mut sending: Sending,
) -> Result<(), Stop> {
    loop {
        let message = tokio::select! {
            cause = sending.broken() => return Err(cause.into()),
            message = inbound.message() => message.map_err(|_broken| Stop::ByAgent)?,
        };
        match message.map(|message| message.message) {
            Some(Some(Up::Piece(piece))) if piece.len() > MAX_PIECE => {
                sending.give_up("it sent a piece above the bound".to_owned());
                let description = format!("a piece has at most {MAX_PIECE} bytes");
                return Err(Refusal::Exhausted { description, retry: Duration::ZERO }.into());
            }
            Some(Some(Up::Piece(piece))) => sending.give(piece).await?,
            Some(Some(Up::End(end))) if end.problem.is_empty() => {
                sending.finish();
                return Ok(());
            }
            Some(Some(Up::End(end))) => {
                sending.give_up(end.problem.chars().take(MAX_PROBLEM).collect());
                return Err(Stop::ByAgent);
            }
            Some(Some(Up::Transfer(_))) => {
                sending.give_up("it broke the protocol".to_owned());
                return Err(Refusal::field("transfer", "may be said only once").into());
            }
            // A kind of message that is newer than this program is none of its business.
            Some(None) => {}
            None => return Err(Stop::ByAgent),
        }
    }
}

/// What the agent gets.
async fn down(mut receiving: Receiving, outbound: &Outbound) -> Result<(), Stop> {
    loop {
        let piece = tokio::select! {
            piece = receiving.next() => piece?,
            () = outbound.closed() => return Err(Stop::ByAgent),
        };
        let is_last = piece.is_none();
        let message = piece.map_or_else(|| Down::End(node::TransferEnd::default()), Down::Piece);
        let response = node::TransferResponse { message: Some(message) };
        tokio::select! {
            sent = outbound.send(Ok(response)) => sent.map_err(|_gone| Stop::ByAgent)?,
            cause = receiving.broken() => return Err(cause.into()),
        }
        if is_last {
            return Ok(());
        }
    }
}
