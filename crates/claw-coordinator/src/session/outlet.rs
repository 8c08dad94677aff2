//! The way down to an agent: one message at a time, as a stream that tonic sends.
//!
//! Messages are boxed because a channel of tokio allocates room for 32 of them at once, however few may wait:
//! unboxed that was 10 KB for each session.

use std::pin::Pin;
use std::task::{Context, Poll};

use claw_proto::node::v1 as node;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

/// A message, or why the session ends.
pub(crate) type Down = Box<Result<node::SessionResponse, Status>>;

/// What tonic reads.
#[derive(Debug)]
pub struct Outlet(mpsc::Receiver<Down>);

/// Both ends; one message may be on its way: what comes after it is decided when it has gone.
pub(crate) fn outlet() -> (mpsc::Sender<Down>, Outlet) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Outlet(receiver))
}

impl Stream for Outlet {
    type Item = Result<node::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|message| message.map(|message| *message))
    }
}
