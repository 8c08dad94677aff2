//! One live stream, from greeting to end.

use std::time::{Duration, SystemTime};

use claw_core::name::{HostName, InstanceName};
use claw_core::report::{Hello, Phase};
use claw_core::time::Timestamp;
use claw_identity::ClientIdentity;
use claw_proto::convert::session as wire;
use claw_proto::node::v1::node_service_client::NodeServiceClient;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::{
    Command, CommandResult, DesiredState, EventBatch, GoAway, Heartbeat, SessionRequest,
    SessionResponse, Welcome, command, command_result,
};
use tokio::select;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

use super::errand::{errand, snapshot};
use super::outbox::{Due, MAX_RESULTS, Outbox};
use super::{Ended, Session, backups, renew};
use crate::journal::EventRange;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, Host as _, Runtime as _};
use crate::reconcile::deadline::within;
use crate::reconcile::{BackupRequest, BackupWork, Extent, Offer, Request};

/// The coordinator's welcome may take this long.
const WELCOME: Duration = Duration::from_secs(15);
/// A message that is due and cannot be sent for this long means that the other end no longer reads.
const STALLED: Duration = Duration::from_secs(60);
/// Docker's version is left out of the greeting when it takes longer.
const VERSION: Duration = Duration::from_secs(2);
/// Events in one message (contract of `claw.node.v1`).
const BATCH: u32 = 256;
/// Messages between this loop and the stream.
const QUEUE: usize = 4;
/// Room for the largest desired state and what is around it.
const MAX_MESSAGE: usize = claw_core::host::MAX_STATE_BYTES + 64 * 1024;
/// Interval of heartbeats if the coordinator sets none.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Bounds of the heartbeat interval that a coordinator may set.
const HEARTBEATS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(600));
/// A difference of clocks that is worth a warning.
const SKEW: Duration = Duration::from_secs(30);

/// Runs one session to its end.
pub(super) async fn run<M: Machine>(
    session: &Session<M>,
    channel: Channel,
    identity: &ClientIdentity,
    connected: impl FnOnce(),
) -> Ended {
    let mut welcomed_at = None;
    let end = match open(session, channel.clone(), identity).await {
        Ok((link, welcome)) => {
            welcomed_at = Some(session.agent().machine.clock().now());
            connected();
            tracing::info!(session = welcome.session, "welcomed");
            let agent = session.agent();
            select! {
                end = link.serve() => end,
                () = renew::keep(agent, session.identity_dir(), identity, channel) => End::Closed,
            }
        }
        Err(end) => end,
    };
    let (why, retry_after) = end.explain();
    Ended { why, retry_after, welcomed_at }
}

/// What a command ends in, or why it failed.
type Answer =
    std::pin::Pin<Box<dyn Future<Output = Result<Option<command_result::Payload>, String>>>>;

const STOPPING: &str = "the agent is stopping";
const UNKNOWN: &str = "this agent does not know the command";

/// Why a stream ended.
enum End {
    Closed,
    Silent(&'static str),
    Status(Box<Status>),
    GoAway(String, Option<Duration>),
    Unusable(String),
}

impl End {
    fn explain(self) -> (String, Option<Duration>) {
        match self {
            Self::Closed => ("the coordinator closed the stream".to_owned(), None),
            Self::Silent(what) => (what.to_owned(), None),
            Self::Status(status) => {
                let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
                let why = if status.message().is_empty() {
                    status.code().to_string()
                } else {
                    status.message().to_owned()
                };
                (with_cause(why, &status), retry)
            }
            Self::GoAway(reason, retry_after) => (reason, retry_after),
            Self::Unusable(why) => (why, None),
        }
    }
}

fn with_cause(why: String, status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => format!("{why}: {}", chain(cause)),
        None => why,
    }
}

/// A stream that was welcomed.
struct Link<'a, M> {
    session: &'a Session<M>,
    /// Where transfers go.
    channel: Channel,
    up: mpsc::Sender<SessionRequest>,
    down: Streaming<SessionResponse>,
    outbox: Outbox,
    heartbeat: Duration,
    /// How far the coordinator's clock is ahead of this host's, in milliseconds.
    skew: i64,
    results: (mpsc::Sender<CommandResult>, mpsc::Receiver<CommandResult>),
    board: watch::Receiver<u64>,
    events: watch::Receiver<EventRange>,
}

async fn open<'a, M: Machine>(
    session: &'a Session<M>,
    channel: Channel,
    identity: &ClientIdentity,
) -> Result<(Link<'a, M>, Welcome), End> {
    let agent = session.agent();
    let events = agent.journal.events().subscribe();
    let range = *events.borrow();
    let board = agent.board.subscribe();
    let hello = hello(session, identity, range).await?;
    let (up, requests) = mpsc::channel(QUEUE);
    let greeting = SessionRequest { message: Some(Up::Hello(wire::hello_to_wire(&hello))) };
    up.try_send(greeting).map_err(|_full| End::Closed)?;
    let mut client = NodeServiceClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let clock = agent.machine.clock();
    let begun = within(clock, WELCOME, async {
        let mut down = client.session(ReceiverStream::new(requests)).await?.into_inner();
        let first = down.message().await?;
        Ok((down, first))
    });
    let (down, first) = begun
        .await
        .map_err(|_elapsed| End::Silent("the coordinator did not welcome this host in time"))?
        .map_err(|status: Status| End::Status(Box::new(status)))?;
    let welcome = match first.and_then(|response| response.message) {
        Some(Down::Welcome(welcome)) => welcome,
        Some(Down::GoAway(away)) => return Err(away_of(away)),
        _ => return Err(End::Unusable("the coordinator's first message is no welcome".to_owned())),
    };
    let skew = skew(&welcome, clock.now());
    let heartbeat = welcome.heartbeat_interval.and_then(|interval| interval.try_into().ok());
    let heartbeat = heartbeat.unwrap_or(HEARTBEAT).clamp(HEARTBEATS.0, HEARTBEATS.1);
    let outbox = Outbox::new(welcome.resume_event.max(range.oldest), range.next);
    let results = mpsc::channel(MAX_RESULTS);
    let link = Link { session, channel, up, down, outbox, heartbeat, skew, results, board, events };
    Ok((link, welcome))
}

async fn hello<M: Machine>(
    session: &Session<M>,
    identity: &ClientIdentity,
    range: EventRange,
) -> Result<Hello, End> {
    let agent = session.agent();
    let host = HostName::parse(identity.peer().identity.name())
        .map_err(|error| End::Unusable(format!("the certificate's host name {error}")))?;
    let version = within(agent.machine.clock(), VERSION, agent.machine.runtime().version()).await;
    let status = agent.board.status();
    let mut inventory = agent.board.inventory();
    let held = status.instances.into_values().filter(|report| report.phase != Phase::Removed);
    inventory.extend(held.map(|report| report.name));
    Ok(Hello {
        host,
        boot_id: agent.machine.host().boot_id(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol_version: claw_proto::PROTOCOL_VERSION,
        persisted: status.persisted,
        inventory,
        docker_version: version.ok().and_then(Result::ok),
        kernel_version: agent.machine.host().kernel_version(),
        oldest_event: range.oldest,
        next_event: range.next,
    })
}

impl<M: Machine> Link<'_, M> {
    async fn serve(mut self) -> End {
        let clock = self.session.agent().machine.clock();
        let mut beat = std::pin::pin!(clock.sleep(self.heartbeat));
        let mut stalled_since: Option<Timestamp> = None;
        let up = self.up.clone();
        loop {
            let now = clock.now();
            let due = self.outbox.due(now);
            let is_due = due != Due::Nothing;
            stalled_since = stalled_since.filter(|_| is_due).or_else(|| is_due.then_some(now));
            let patience =
                stalled_since.map_or(STALLED, |at| STALLED.saturating_sub(now.since(at)));
            let status_wait = self.outbox.status_wait(now);
            select! {
                biased;
                message = self.down.message() => match message {
                    Ok(Some(response)) => {
                        if let Some(end) = self.received(response) {
                            return end;
                        }
                    }
                    Ok(None) => return End::Closed,
                    Err(status) => return End::Status(Box::new(status)),
                },
                permit = up.reserve(), if is_due => {
                    let Ok(permit) = permit else { return End::Closed };
                    stalled_since = None;
                    if let Some(message) = message(self.session, &mut self.outbox, due, now) {
                        permit.send(SessionRequest { message: Some(message) });
                    }
                }
                () = clock.sleep(patience), if is_due => {
                    return End::Silent("the coordinator does not read what this host sends");
                }
                Ok(()) = self.board.changed() => {
                    self.outbox.status_due = true;
                    self.outbox.backups_due = true;
                }
                Ok(()) = self.events.changed() => {
                    self.outbox.available(self.events.borrow_and_update().next);
                }
                Some(result) = self.results.1.recv() => self.outbox.results.push_back(result),
                () = clock.sleep(status_wait), if self.outbox.status_due && !is_due => {}
                () = &mut beat => {
                    let machine = &self.session.agent().machine;
                    self.session.agent().board.measure(|pid| machine.host().usage(pid));
                    self.outbox.heartbeat_due = true;
                    self.outbox.status_due = true;
                    beat.set(clock.sleep(self.heartbeat));
                }
            }
        }
    }

    fn received(&mut self, response: SessionResponse) -> Option<End> {
        match response.message {
            Some(Down::DesiredState(state)) => self.offered(state),
            Some(Down::EventAck(ack)) => self.outbox.acknowledged(ack.sequence),
            Some(Down::EscrowAck(ack)) => {
                backups::acknowledged(&self.session.agent().board, &ack);
            }
            Some(Down::Command(command)) => self.commanded(command),
            Some(Down::GoAway(away)) => return Some(away_of(away)),
            // A second welcome, or a message of a newer protocol: nothing to do.
            Some(Down::Welcome(_)) | None => {}
        }
        None
    }

    fn offered(&self, state: DesiredState) {
        let stamp = state.stamp.as_ref().map(|stamp| wire::stamp_from_wire("stamp", stamp));
        match stamp {
            Some(Ok(stamp)) => {
                self.session.inbox().offer(Offer { stamp, bytes: state.host_state });
            }
            Some(Err(error)) => tracing::error!(error = chain(&error), "desired state refused"),
            None => tracing::error!("desired state without a stamp refused"),
        }
    }

    /// Every command is answered, once, and none holds up the stream.
    fn commanded(&mut self, command: Command) {
        let now = self.session.agent().machine.clock().now();
        // The deadline is by the coordinator's clock.
        let now = Timestamp::from_millis(now.millis().saturating_add(self.skew));
        let deadline = command.deadline.and_then(|at| SystemTime::try_from(at).ok());
        let late = deadline.is_some_and(|at| renew::millis(at) < now);
        let (sender, id) = (self.results.0.clone(), command.id);
        let refused =
            |error: &str| CommandResult { id: id.clone(), error: error.to_owned(), payload: None };
        if self.outbox.results.len() >= MAX_RESULTS {
            tracing::warn!(command = id, "too many commands at once");
            return;
        }
        let asked = match command.command {
            _ if late => Err("its deadline has passed"),
            Some(command::Command::Observe(observe)) => self.observe(&observe.instance),
            Some(command::Command::FetchFirewall(_)) => self.fetch_firewall(),
            Some(command::Command::TakeSnapshot(take)) => snapshot(&take.name)
                .and_then(|name| self.backup(&take.instance, BackupWork::Take(name))),
            Some(command::Command::ForgetSnapshot(forget)) => snapshot(&forget.name)
                .and_then(|name| self.backup(&forget.instance, BackupWork::Forget(name))),
            Some(command::Command::VerifySnapshots(verify)) => {
                let depth = if verify.data { Extent::Data } else { Extent::Structure };
                self.backup(&verify.instance, BackupWork::Verify(depth))
            }
            Some(command) => self.errand(&command),
            None => Err(UNKNOWN),
        };
        let answer = match asked {
            Ok(answer) => answer,
            Err(error) => return self.outbox.results.push_back(refused(error)),
        };
        tokio::task::spawn_local(async move {
            let (error, payload) = match answer.await {
                Ok(payload) => (String::new(), payload),
                Err(error) => (error, None),
            };
            // The session may have ended meanwhile.
            let _sent = sender.try_send(CommandResult { id, error, payload });
        });
    }

    fn observe(&self, instance: &str) -> Result<Answer, &'static str> {
        let instance = parse_instance(instance)?;
        let (reply, answer) = oneshot::channel();
        self.request(Request::Observe(instance, reply))?;
        Ok(Box::pin(async move {
            let observed = answer.await.map_err(|_gone| STOPPING.to_owned())?;
            observed.map(|()| None).map_err(|unknown| unknown.to_string())
        }))
    }

    /// A job on an instance's snapshots; answered when it is accepted.
    fn backup(&self, instance: &str, work: BackupWork) -> Result<Answer, &'static str> {
        let instance = parse_instance(instance)?.ok_or("no instance is named")?;
        let (reply, answer) = oneshot::channel();
        self.request(Request::Backup(BackupRequest { instance, work, reply }))?;
        Ok(Box::pin(
            async move { answer.await.map_err(|_gone| STOPPING.to_owned())?.map(|()| None) },
        ))
    }

    /// Something that is carried away or here; answered when it is accepted.
    fn errand(&self, command: &command::Command) -> Result<Answer, &'static str> {
        let read = errand(self.session.agent(), &self.channel, command)?;
        let (instance, errand) = read.ok_or(UNKNOWN)?;
        self.backup(&instance, BackupWork::Errand(errand))
    }

    fn fetch_firewall(&self) -> Result<Answer, &'static str> {
        let (reply, answer) = oneshot::channel();
        self.request(Request::Firewall(reply))?;
        Ok(Box::pin(async move {
            let detail = answer.await.map_err(|_gone| STOPPING.to_owned())??;
            let wire = claw_proto::convert::firewall::detail::detail_to_wire(&detail);
            Ok(Some(command_result::Payload::Firewall(wire)))
        }))
    }

    fn request(&self, request: Request) -> Result<(), &'static str> {
        let queued = self.session.inbox().request(request);
        queued.map_err(|_full| "too many requests wait")
    }
}

/// Takes what is due out of the outbox.
fn message<M: Machine>(
    session: &Session<M>,
    outbox: &mut Outbox,
    due: Due,
    now: Timestamp,
) -> Option<Up> {
    let agent = session.agent();
    match due {
        Due::Result => outbox.results.pop_front().map(Up::CommandResult),
        Due::Status => {
            outbox.status_sent(now);
            Some(Up::Status(wire::status_to_wire(&agent.board.status())))
        }
        Due::Events { from } => match agent.journal.events().from(from, BATCH) {
            Ok(events) => {
                let next = events.last().map_or(from, |event| event.sequence.saturating_add(1));
                outbox.events_sent(next.max(from.saturating_add(u64::from(events.is_empty()))));
                let events: Vec<_> = events.iter().map(wire::event_to_wire).collect();
                (!events.is_empty()).then_some(Up::Events(EventBatch { events }))
            }
            Err(error) => {
                tracing::error!(error = chain(&error), "events cannot be read");
                outbox.events_sent(from.saturating_add(1));
                None
            }
        },
        Due::Heartbeat => {
            outbox.heartbeat_due = false;
            let resources = wire::resources_to_wire(&agent.machine.host().resources());
            Some(Up::Heartbeat(Heartbeat { resources: Some(resources) }))
        }
        Due::Backups => {
            let next = outbox.told.next(&agent.board);
            outbox.backups_due = next.is_some();
            next
        }
        Due::Nothing => None,
    }
}

fn parse_instance(text: &str) -> Result<Option<InstanceName>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    InstanceName::parse(text).map(Some).map_err(|_invalid| "the instance's name is invalid")
}

fn away_of(away: GoAway) -> End {
    End::GoAway(away.reason, away.retry_after.and_then(|pause| pause.try_into().ok()))
}

/// How far the coordinator's clock is ahead, in milliseconds; warns when that is much.
fn skew(welcome: &Welcome, now: Timestamp) -> i64 {
    let Some(server) = welcome.server_time.and_then(|at| SystemTime::try_from(at).ok()) else {
        return 0;
    };
    let skew = renew::millis(server).millis().saturating_sub(now.millis());
    if Duration::from_millis(skew.unsigned_abs()) > SKEW {
        let seconds = skew / 1000;
        tracing::warn!(seconds, "the coordinator's clock is ahead of this host's, or behind it");
    }
    skew
}
