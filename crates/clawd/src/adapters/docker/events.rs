//! Docker's events: noticing at once that a container died, and that Docker is gone or back.
//!
//! One task listens. It reads the daemon's clock, subscribes to events since then, and only then says
//! [`RuntimeEvent::Connected`]: whoever looks at everything after that misses nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::models::EventMessage;
use claw_core::backoff::{Backoff, Bounds};
use claw_core::name::InstanceName;
use claw_core::time::Timestamp;
use tokio::sync::mpsc;

use super::stream::EventStream;
use super::{Docker, INSTANCE_LABEL, LOOK, failure, within};
use crate::ports::{RuntimeError, RuntimeEvent};

/// Events that may wait for the receiver; further ones are merged before they get here.
const QUEUE: usize = 64;

/// A daemon that hangs does not end its streams: it is asked this often whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(15);

/// Reconnecting: a restart of the daemon takes a second or two, and asking costs little.
const RECONNECT: Bounds =
    Bounds { floor: Duration::from_millis(50), ceiling: Duration::from_secs(1) };

/// What can change the view of a container. Others, such as `exec_start`, can not.
const ACTIONS: [&str; 9] =
    ["create", "start", "die", "oom", "pause", "unpause", "update", "rename", "destroy"];

/// Most containers whose out-of-memory events are remembered: twice what a host holds.
const OOM_ENTRIES: usize = 512;

/// When a container had its last out-of-memory event. Docker's own flag can come too late for the
/// first look at a container that died.
#[derive(Debug, Default)]
pub(super) struct OomLog(Mutex<BTreeMap<String, Timestamp>>);

impl OomLog {
    /// The last event of a container.
    pub(super) fn last(&self, id: &str) -> Option<Timestamp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    fn add(&self, id: String, at: Timestamp) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert(id, at);
        while entries.len() > OOM_ENTRIES {
            let oldest = entries.iter().min_by_key(|(_, at)| **at).map(|(id, _)| id.clone());
            oldest.map(|id| entries.remove(&id));
        }
    }

    fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Starts listening; ends when the receiver is dropped.
pub(super) fn start(docker: Docker) -> mpsc::Receiver<RuntimeEvent> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let closed = sender.clone();
        tokio::select! {
            () = listen(&docker, Outbox::new(sender)) => {}
            () = closed.closed() => {}
        }
    });
    receiver
}

/// Connects again and again. Ends only when the receiver is gone.
async fn listen(docker: &Docker, mut outbox: Outbox) {
    let mut backoff = Backoff::new(RECONNECT);
    let mut lost: Option<String> = None;
    loop {
        let cause = match connect(docker).await {
            Ok(stream) => {
                lost = None;
                follow(docker, stream, &mut outbox, &mut backoff).await
            }
            Err(cause) => cause,
        };
        // The same cause again and again is one loss.
        if lost.as_ref() != Some(&cause) {
            outbox.put(RuntimeEvent::Lost(cause.clone()));
            lost = Some(cause);
        }
        let pause = backoff.next_delay(rand::random());
        let _elapsed = tokio::time::timeout(pause, outbox.send_all()).await;
    }
}

/// Follows one stream to its end; returns why it ended.
async fn follow(
    docker: &Docker,
    mut stream: EventStream,
    outbox: &mut Outbox,
    backoff: &mut Backoff,
) -> String {
    outbox.put(RuntimeEvent::Connected);
    let mut ping = tokio::time::interval(PING_INTERVAL);
    ping.tick().await;
    loop {
        tokio::select! {
            message = stream.next() => match message {
                Ok(message) => {
                    backoff.reset();
                    take(docker, message, outbox);
                }
                Err(error) => return causes(&error),
            },
            _tick = ping.tick() => {
                if let Err(error) = alive(docker).await {
                    return causes(&error);
                }
                backoff.reset();
            }
            () = outbox.send_all(), if !outbox.waiting.is_empty() => {}
        }
    }
}

/// Subscribes to events from now on, by the daemon's own clock; says why it could not.
async fn connect(docker: &Docker) -> Result<EventStream, String> {
    let since = daemon_time(docker).await.map_err(|error| causes(&error))?;
    let filters = serde_json::json!({
        "type": ["container"],
        "label": [INSTANCE_LABEL],
        "event": ACTIONS,
    });
    let stream = EventStream::open(&docker.socket, &since, &filters).await;
    stream.map_err(|error| causes(&error))
}

async fn daemon_time(docker: &Docker) -> Result<String, RuntimeError> {
    let client = docker.client()?;
    let doing = "asking for its time";
    let info = within(doing, LOOK, client.info()).await?.map_err(|error| failure(doing, error))?;
    let now = info.system_time.as_deref().and_then(super::container::instant).unwrap_or_default();
    Ok(format!("{}.{:03}000000", now.millis() / 1000, now.millis() % 1000))
}

async fn alive(docker: &Docker) -> Result<(), RuntimeError> {
    let client = docker.client()?;
    let doing = "asking whether it lives";
    within(doing, LOOK, client.ping()).await?.map(drop).map_err(|error| failure(doing, error))
}

/// Takes one message in. Messages that are not about an instance of ours are ignored.
fn take(docker: &Docker, message: EventMessage, outbox: &mut Outbox) {
    let Some(actor) = message.actor else { return };
    let attributes = actor.attributes.unwrap_or_default();
    if let Some(id) = actor.id {
        match message.action.as_deref() {
            Some("oom") => {
                let at = message.time_nano.unwrap_or(0) / 1_000_000;
                docker.oom_log.add(id, Timestamp::from_millis(at));
            }
            Some("destroy") => docker.oom_log.forget(&id),
            _ => {}
        }
    }
    let label = attributes.get(INSTANCE_LABEL);
    if let Some(instance) = label.and_then(|name| InstanceName::parse(name).ok()) {
        outbox.put(RuntimeEvent::Changed(instance));
    }
}

/// Events that wait for room in the channel: at most one for each instance, and the connection's
/// last two.
struct Outbox {
    waiting: VecDeque<RuntimeEvent>,
    sender: mpsc::Sender<RuntimeEvent>,
}

impl Outbox {
    const fn new(sender: mpsc::Sender<RuntimeEvent>) -> Self {
        Self { waiting: VecDeque::new(), sender }
    }

    /// Adds an event; one that says the same and still waits is replaced by it.
    fn put(&mut self, event: RuntimeEvent) {
        self.waiting.retain(|waiting| match (waiting, &event) {
            (RuntimeEvent::Lost(_), RuntimeEvent::Lost(_)) => false,
            (waiting, event) => waiting != event,
        });
        self.waiting.push_back(event);
        while let Ok(permit) = self.sender.try_reserve() {
            match self.waiting.pop_front() {
                Some(event) => permit.send(event),
                None => break,
            }
        }
    }

    /// Sends what waits, as there is room. Once all is sent, or the receiver is gone, it waits for
    /// ever: the caller has something else to wait for.
    async fn send_all(&mut self) {
        while !self.waiting.is_empty() {
            let Ok(permit) = self.sender.reserve().await else { break };
            if let Some(event) = self.waiting.pop_front() {
                permit.send(event);
            }
        }
        std::future::pending().await
    }
}

/// An error with its causes, for a person.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(name: &str) -> RuntimeEvent {
        RuntimeEvent::Changed(InstanceName::parse(name).unwrap())
    }

    #[tokio::test]
    async fn events_are_merged_and_none_is_lost() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut outbox = Outbox::new(sender);
        for event in [changed("a"), changed("b"), changed("c"), changed("b"), changed("b")] {
            outbox.put(event);
        }
        outbox.put(RuntimeEvent::Lost("1".to_owned()));
        outbox.put(RuntimeEvent::Connected);
        outbox.put(RuntimeEvent::Lost("2".to_owned()));
        let mut seen = Vec::new();
        let receiving = async {
            while seen.len() < 5 {
                seen.extend(receiver.recv().await);
            }
        };
        tokio::select! {
            () = receiving => {}
            () = outbox.send_all() => {}
        }
        let lost = RuntimeEvent::Lost("2".to_owned());
        let expected = [changed("a"), changed("c"), changed("b"), RuntimeEvent::Connected, lost];
        assert_eq!(seen, expected);
        assert!(outbox.waiting.is_empty());
    }

    #[test]
    fn the_log_of_kills_is_bounded() {
        let log = OomLog::default();
        for n in 0..1000 {
            log.add(format!("{n}"), Timestamp::from_millis(n));
        }
        assert_eq!(log.0.lock().unwrap().len(), OOM_ENTRIES);
        assert_eq!((log.last("0"), log.last("999")), (None, Some(Timestamp::from_millis(999))));
        log.forget("999");
        assert_eq!(log.last("999"), None);
    }

    #[tokio::test]
    async fn without_docker_its_loss_is_told_once_and_listening_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let docker = Docker::new(dir.path().join("docker.sock"));
        let mut events = start(docker);
        let first = events.recv().await;
        assert!(matches!(first, Some(RuntimeEvent::Lost(_))), "{first:?}");
        let again = tokio::time::timeout(Duration::from_millis(500), events.recv()).await;
        assert!(again.is_err(), "{again:?}");
    }
}
