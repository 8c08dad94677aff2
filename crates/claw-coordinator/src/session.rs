//! One agent's session: who it is, what it should hold, what it says.
//!
//! The contract stands in `node.proto`. One task reads and writes; a message goes down only when
//! the agent has room for it, and what is sent is read from the store at that moment: however slow
//! an agent is, it costs no queue and gets the newest state. Nothing that an agent merely repeats is
//! written to the store.

mod greeting;
mod inbox;
mod outbox;
mod outlet;

use std::pin::pin;
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
use outlet::Down;
pub use outlet::Outlet;
pub(crate) use outlet::outlet;

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
    pub(crate) outbound: mpsc::Sender<Down>,
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

/// What a session listens to and speaks through.
struct Lines {
    inbound: Streaming<node::SessionRequest>,
    outbound: mpsc::Sender<Down>,
    opened: Opened,
    closing: watch::Receiver<Closing>,
}

/// Why a session ended.
type Ended = Result<(), Status>;

impl Session {
    /// Runs to the end; the agent hears why.
    ///
    /// What is done once or seldom is in boxes of its own: a session lives for a day, and its task keeps room
    /// for the largest thing that it may do.
    pub(crate) async fn run(self) {
        let outbound = self.outbound.clone();
        let ended = match Box::pin(self.greet()).await {
            Ok(greeted) => serve(greeted).await,
            Err(status) => Err(status),
        };
        if let Err(status) = ended {
            tracing::debug!(code = ?status.code(), reason = status.message(), "a session ended");
            // Nobody may be there to hear it.
            let _heard = outbound.send_timeout(Box::new(Err(status)), LAST_WORD).await;
        }
    }

    async fn greet(mut self) -> Result<Box<(Live, Lines)>, Status> {
        let hello = greeting::receive(&mut self).await?;
        let configured = self.terms.heartbeat_interval;
        self.terms.heartbeat_interval = self.fleet.registry.heartbeat_interval(configured);
        let opened = greeting::open(&self.fleet, &hello).await?;
        let (host, id) = (&hello.host, &opened.id);
        tracing::info!(%host, session = %id, agent = %hello.agent_version, "a host connected");
        mark_instances(&self.fleet, host).await;
        match greeting::prepare(&self.fleet, &hello).await {
            Ok(resume) => Ok(self.greeted(hello, opened, resume)),
            Err(refusal) => {
                close(&self.fleet, host, id).await;
                Err(refusal.into())
            }
        }
    }

    fn greeted(
        self,
        hello: claw_core::report::Hello,
        opened: Opened,
        resume: u64,
    ) -> Box<(Live, Lines)> {
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
        let (inbound, outbound) = (self.inbound, self.outbound);
        Box::new((live, Lines { inbound, outbound, opened, closing }))
    }
}

async fn serve(mut greeted: Box<(Live, Lines)>) -> Ended {
    let (live, lines) = &mut *greeted;
    let outcome = live.run(lines).await;
    Box::pin(close(&live.fleet, &live.host, &live.id)).await;
    outcome
}

/// The end of a session, unless another one has taken its place.
async fn close(fleet: &Fleet, host: &HostName, id: &str) {
    if fleet.registry.close(host, id) {
        tracing::info!(%host, session = %id, "a host disconnected");
        mark_instances(fleet, host).await;
    }
}

impl Live {
    async fn run(&mut self, lines: &mut Lines) -> Ended {
        // One timer, set anew only when it has fired: most messages just move the deadline.
        let mut patience = pin!(tokio::time::sleep_until(self.deadline()));
        loop {
            tokio::select! {
                message = lines.inbound.message() => match message.map_err(too_large)? {
                    Some(message) => self.receive(message).await?,
                    None => return Ok(()),
                },
                permit = lines.outbound.reserve(), if self.outbox.has_some() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(message) = self.next_message()? {
                        permit.send(Box::new(Ok(message)));
                    }
                    if let Some(status) = self.outbox.last_word() {
                        return Err(status);
                    }
                }
                changed = lines.opened.signal.changed() => {
                    if changed.is_err() {
                        return Err(ended(End::Forgotten));
                    }
                    let now = *lines.opened.signal.borrow_and_update();
                    match now.end {
                        Some(end) => return Err(ended(end)),
                        None => self.outbox.desired_may_have_changed(),
                    }
                }
                Some(question) = lines.opened.questions.recv(), if !self.outbox.has_question() => {
                    if self.fleet.registry.awaits(&self.host, &self.id, &question.id) {
                        self.outbox.ask(*question);
                    }
                }
                reason = closes(&mut lines.closing), if !self.outbox.says_good_bye() => {
                    self.go_away(reason)?;
                }
                () = patience.as_mut() => {
                    self.check_patience()?;
                    patience.as_mut().reset(self.deadline());
                }
                () = lines.outbound.closed() => return Ok(()),
            }
        }
    }

    /// When the agent has been silent for too long, or has taken nothing for too long.
    fn deadline(&self) -> Instant {
        let silent = self.heard + self.silence();
        let stalled = self.outbox.waiting_since().map(|since| since + SEND_DEADLINE);
        stalled.map_or(silent, |stalled| stalled.min(silent))
    }

    fn silence(&self) -> Duration {
        self.terms.heartbeat_interval * 3
    }

    fn check_patience(&self) -> Ended {
        let now = Instant::now();
        if now >= self.heard + self.silence() {
            return Err(unavailable("three heartbeats were missed", Duration::ZERO));
        }
        if self.outbox.waiting_since().is_some_and(|since| now >= since + SEND_DEADLINE) {
            return Err(unavailable("the agent takes no messages", Duration::ZERO));
        }
        Ok(())
    }

    /// The next message; the desired state is read from the store here and now, in some ten microseconds: handing
    /// that to a thread that may block costs more than the read.
    fn next_message(&mut self) -> Result<Option<node::SessionResponse>, Status> {
        if !self.outbox.wants_desired() {
            return Ok(self.outbox.next());
        }
        let (host, known) = (&self.host, self.outbox.known());
        let desired = self.fleet.store.read(|connection, keys| {
            crate::store::host_state::load_unless(connection, keys, host, known)
        })?;
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
