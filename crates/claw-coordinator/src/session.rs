//! One agent's session: who it is, what it should hold, what it says.
//!
//! The contract stands in `node.proto`. One task reads and writes; a message goes down only when
//! the agent has room for it, and what is sent is read from the store at that moment: however slow
//! an agent is, it costs no queue and gets the newest state. Nothing that an agent merely repeats is
//! written to the store.

mod greeting;
mod inbox;
mod outbox;

use std::sync::Arc;
use std::time::Duration;

use claw_core::name::HostName;
use claw_core::stamp::Stamp;
use claw_identity::Peer;
use claw_proto::node::v1 as node;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::auth::{Caller, Closing};
use crate::fleet::Fleet;
use crate::limits::{Bucket, Rate, jittered};
use crate::refusal::Refusal;
use crate::registry::{End, Opened};
use crate::status::unavailable;
use outbox::Outbox;

/// Messages per second that an agent may send; its own bound is ten statuses, and a few more.
const MESSAGES: Rate = Rate { per_second: 50.0, burst: 500.0 };
/// An agent that takes nothing for this long has stalled.
const SEND_DEADLINE: Duration = Duration::from_secs(60);
/// Time to hand over the last word.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The terms of every session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Interval of heartbeats; three missed ones end a session.
    pub heartbeat_interval: Duration,
    /// Time for the first message.
    pub hello_deadline: Duration,
    /// Shortest time that an agent stays away after GoAway; up to twice that at random.
    pub retry_after: Duration,
}

/// What a session is made of.
pub(crate) struct Session {
    pub(crate) fleet: Fleet,
    pub(crate) terms: Terms,
    pub(crate) caller: Arc<Caller>,
    pub(crate) peer: Peer,
    pub(crate) inbound: Streaming<node::SessionRequest>,
    pub(crate) outbound: mpsc::Sender<Result<node::SessionResponse, Status>>,
}

/// A session after its greeting.
struct Live {
    fleet: Fleet,
    terms: Terms,
    host: HostName,
    id: String,
    outbox: Outbox,
    bucket: Bucket,
    heard: Instant,
}

/// Why a session ended.
type Ended = Result<(), Status>;

impl Session {
    /// Runs to the end; the agent hears why.
    pub(crate) async fn run(self) {
        let outbound = self.outbound.clone();
        if let Err(status) = self.serve().await {
            tracing::debug!(code = ?status.code(), reason = status.message(), "a session ended");
            // Nobody may be there to hear it.
            let _heard = outbound.send_timeout(Err(status), LAST_WORD).await;
        }
    }

    async fn serve(mut self) -> Ended {
        let hello = greeting::receive(&mut self).await?;
        let opened = greeting::open(&self.fleet, &hello).await?;
        let (host, id) = (hello.host.clone(), opened.id.clone());
        let fleet = self.fleet.clone();
        tracing::info!(%host, session = %id, agent = %hello.agent_version, "a host connected");
        mark_instances(&fleet, &host).await;
        let outcome = self.live(hello, opened).await;
        if fleet.registry.close(&host, &id) {
            tracing::info!(%host, session = %id, "a host disconnected");
            mark_instances(&fleet, &host).await;
        }
        outcome
    }

    async fn live(self, hello: claw_core::report::Hello, opened: Opened) -> Ended {
        let resume = greeting::prepare(&self.fleet, &hello).await?;
        let welcome = greeting::welcome(&opened.id, &self.terms, self.fleet.clock.now(), resume);
        let live = Live {
            host: hello.host,
            id: opened.id.clone(),
            outbox: Outbox::new(welcome, hello.persisted),
            bucket: Bucket::new(MESSAGES),
            heard: Instant::now(),
            fleet: self.fleet,
            terms: self.terms,
        };
        let closing = self.caller.closing.clone();
        live.run(self.inbound, self.outbound, opened, closing).await
    }
}

impl Live {
    async fn run(
        mut self,
        mut inbound: Streaming<node::SessionRequest>,
        outbound: mpsc::Sender<Result<node::SessionResponse, Status>>,
        mut opened: Opened,
        mut closing: watch::Receiver<Closing>,
    ) -> Ended {
        loop {
            let silence = self.heard + self.terms.heartbeat_interval * 3;
            tokio::select! {
                message = inbound.message() => match message.map_err(too_large)? {
                    Some(message) => self.receive(message).await?,
                    None => return Ok(()),
                },
                permit = outbound.reserve(), if self.outbox.has_some() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(message) = self.next_message().await? {
                        permit.send(Ok(message));
                    }
                    if let Some(status) = self.outbox.last_word() {
                        return Err(status);
                    }
                }
                changed = opened.signal.changed() => {
                    if changed.is_err() {
                        return Err(ended(End::Forgotten));
                    }
                    let now = *opened.signal.borrow_and_update();
                    match now.end {
                        Some(end) => return Err(ended(end)),
                        None => self.outbox.desired_may_have_changed(),
                    }
                }
                Some(question) = opened.questions.recv(), if !self.outbox.has_question() => {
                    if self.fleet.registry.awaits(&self.host, &self.id, &question.id) {
                        self.outbox.ask(question);
                    }
                }
                reason = closes(&mut closing), if !self.outbox.says_good_bye() => {
                    self.go_away(reason)?;
                }
                () = tokio::time::sleep_until(silence) => {
                    return Err(unavailable("three heartbeats were missed", Duration::ZERO));
                }
                () = self.outbox.stalled(SEND_DEADLINE) => {
                    return Err(unavailable("the agent takes no messages", Duration::ZERO));
                }
                () = outbound.closed() => return Ok(()),
            }
        }
    }

    async fn next_message(&mut self) -> Result<Option<node::SessionResponse>, Status> {
        if !self.outbox.wants_desired() {
            return Ok(self.outbox.next());
        }
        let host = self.host.clone();
        let known = self.outbox.known();
        let load = move |connection: &_, keys: &_| {
            crate::store::host_state::load_unless(connection, keys, &host, known)
        };
        let desired = self.fleet.store.read_long(load).await?;
        Ok(self.outbox.next_desired(desired))
    }

    fn go_away(&mut self, reason: Closing) -> Ended {
        match reason {
            Closing::Denied => return Err(crate::auth::denied().into()),
            Closing::Aged => {
                self.outbox.go_away("the connection is old; connect again", Duration::ZERO);
            }
            Closing::Draining | Closing::No => {
                let retry = jittered(self.terms.retry_after);
                self.outbox.go_away("the coordinator is shutting down", retry);
            }
        }
        Ok(())
    }
}

/// Resolves when the connection is about to end.
async fn closes(closing: &mut watch::Receiver<Closing>) -> Closing {
    // An error means that the connection is gone already.
    closing
        .wait_for(|closing| *closing != Closing::No)
        .await
        .map_or(Closing::Aged, |reason| *reason)
}

/// Whoever watches instances of this host sees whether it can be reached.
async fn mark_instances(fleet: &Fleet, host: &HostName) {
    if !fleet.hub.is_watched() {
        return;
    }
    let name = host.clone();
    let names = fleet.store.read_long(move |connection, _keys| {
        crate::store::instances::names_of_host(connection, &name)
    });
    match names.await {
        Ok(names) => fleet.hub.changed(&names.into_keys().collect()),
        Err(error) => tracing::warn!(%host, %error, "cannot tell watchers of a host"),
    }
}

fn ended(end: End) -> Status {
    match end {
        End::Superseded => Status::aborted("a newer session of this host has replaced this one"),
        End::Forgotten => Refusal::Denied {
            reason: "HOST_UNKNOWN",
            description: "this host was deleted".to_owned(),
        }
        .into(),
    }
}

/// tonic calls a message above the bound OUT_OF_RANGE; the contract says RESOURCE_EXHAUSTED.
fn too_large(status: Status) -> Status {
    if status.code() == Code::OutOfRange {
        return Status::resource_exhausted(status.message());
    }
    status
}

/// What the agent is known to have, so that it is not sent again.
type Known = Option<Stamp>;
