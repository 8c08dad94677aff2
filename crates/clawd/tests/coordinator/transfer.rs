//! The coordinator's side of a transfer, as a test plays it.

use std::time::Duration;

use claw_proto::node::v1::{
    TransferEnd, TransferRequest, TransferResponse, transfer_request, transfer_response,
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

/// A transfer of this id is not known.
pub(crate) const UNKNOWN: &str = "nobody-knows-it";

/// One that a host has named.
pub(crate) struct Transfer {
    /// Its id.
    pub(crate) id: String,
    up: Streaming<TransferRequest>,
    down: mpsc::Sender<Result<TransferResponse, Status>>,
}

/// What a host says through it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// So many bytes.
    Piece(Vec<u8>),
    /// Its last word.
    End(String),
    /// It went away without one.
    Gone,
}

impl Transfer {
    pub(crate) async fn named(
        mut up: Streaming<TransferRequest>,
        down: mpsc::Sender<Result<TransferResponse, Status>>,
    ) -> Result<Self, Status> {
        let first = up.message().await?.and_then(|request| request.message);
        match first {
            Some(transfer_request::Message::Transfer(id)) if id == UNKNOWN => {
                Err(Status::not_found(format!("there is no transfer {id}")))
            }
            Some(transfer_request::Message::Transfer(id)) => Ok(Self { id, up, down }),
            other => Err(Status::invalid_argument(format!("not named: {other:?}"))),
        }
    }

    /// What the host says next.
    pub(crate) async fn hear(&mut self) -> Heard {
        let next = tokio::time::timeout(Duration::from_secs(30), self.up.message()).await;
        let next = next.expect("it says something");
        match next.ok().flatten().and_then(|request| request.message) {
            Some(transfer_request::Message::Piece(bytes)) => Heard::Piece(bytes),
            Some(transfer_request::Message::End(end)) => Heard::End(end.problem),
            _ => Heard::Gone,
        }
    }

    /// Everything up to the host's last word, and that.
    pub(crate) async fn hear_all(&mut self) -> (Vec<u8>, Heard) {
        let mut all = Vec::new();
        loop {
            match self.hear().await {
                Heard::Piece(bytes) => all.extend(bytes),
                last => return (all, last),
            }
        }
    }

    pub(crate) async fn send(&self, bytes: &[u8]) {
        self.say(transfer_response::Message::Piece(bytes.to_vec())).await;
    }

    pub(crate) async fn end(&self, problem: &str) {
        let problem = problem.to_owned();
        self.say(transfer_response::Message::End(TransferEnd { problem })).await;
    }

    /// Breaks it with an error.
    pub(crate) async fn fail(self, status: Status) {
        self.down.send(Err(status)).await.unwrap();
    }

    async fn say(&self, message: transfer_response::Message) {
        self.down.send(Ok(TransferResponse { message: Some(message) })).await.unwrap();
    }
}
