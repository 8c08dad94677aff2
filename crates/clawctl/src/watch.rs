//! Following instances: when what is waited for is reached, and what is printed on the way.
//!
//! [`Progress`] decides and does nothing else; [`follow`] feeds it from the API's stream, again and
//! again where the stream breaks. When what is waited for is so is said by [`goal`].

pub(crate) mod goal;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use claw_core::backoff::{Backoff, Bounds};
use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::instance_service_client::InstanceServiceClient;
use tonic::Code;

use crate::call::CallError;
use crate::cli::Until;
use crate::clock::{self, Stopwatch};
use crate::connection::{Connection, MAX_ANSWER, Repeat};
use crate::view::id;
use crate::view::instance::InstanceView;
use crate::view::operation::{OperationView, RefusedView};
use goal::Goal;

/// Between attempts to get the stream back.
const RECONNECT: Bounds =
    Bounds { floor: Duration::from_millis(250), ceiling: Duration::from_secs(10) };

/// Why a watch ended without what it waited for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    #[error(transparent)]
    Call(#[from] Box<CallError>),
    #[error("not {wanted} within {}: {pending}", crate::view::time::rough(*after))]
    Timeout { wanted: &'static str, after: Duration, pending: String },
    #[error("instances/{name} cannot get {wanted}: {why}")]
    Hopeless { name: String, wanted: &'static str, why: String },
    #[error("instances/{name} was brought back to what it was: {what}")]
    Refused { name: String, what: String, hint: String },
    #[error(transparent)]
    Output(#[from] crate::output::OutputError),
}

impl WatchError {
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Call(error) => error.hint(),
            Self::Timeout { .. } => Some(
                "it may still get there: `clawctl get NAME` shows more, --timeout waits longer"
                    .into(),
            ),
            Self::Hopeless { name, .. } => {
                Some(format!("`clawctl get {name}` shows what happened"))
            }
            Self::Refused { hint, .. } => Some(hint.clone()),
            Self::Output(_) => None,
        }
    }
}

/// What to follow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scope {
    /// Ids of instances; empty for all.
    pub(crate) names: BTreeSet<String>,
    /// Id of a host; empty for all.
    pub(crate) host: String,
}

/// One change worth a line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    pub(crate) kind: &'static str,
    pub(crate) instance: InstanceView,
}

impl Change {
    /// The long operation under way, unless the instance is gone.
    pub(crate) fn operation(&self) -> Option<&OperationView> {
        self.instance.status.operation.as_ref().filter(|_| self.kind != "deleted")
    }
}

/// How far a watch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Waiting,
    Reached,
    Hopeless { name: String, why: String },
    Refused { name: String, refused: RefusedView },
}

/// Remembers what every instance was like.
#[derive(Debug)]
pub(crate) struct Progress {
    goal: Option<Goal>,
    waiting: BTreeSet<String>,
    seen: BTreeMap<String, InstanceView>,
    /// What was refused already while a change was under way: after it, the same is old.
    refused_before: BTreeMap<String, RefusedView>,
    /// Instances of the stream's beginning; what is missing was removed while nobody watched.
    current: BTreeSet<String>,
}

impl Progress {
    pub(crate) fn new(goal: Option<Goal>, names: &BTreeSet<String>) -> Self {
        Self {
            goal,
            waiting: names.clone(),
            seen: BTreeMap::new(),
            refused_before: BTreeMap::new(),
            current: BTreeSet::new(),
        }
    }

    /// Takes one message of the stream; a change is something that a person would see.
    pub(crate) fn observe(&mut self, message: fleet::WatchInstancesResponse) -> Vec<Change> {
        let instance = message.instance.map(InstanceView::from);
        match (fleet::WatchKind::try_from(message.kind), instance) {
            (Ok(fleet::WatchKind::Current), Some(instance)) => {
                self.current.insert(instance.name.clone());
                self.update("current", instance).into_iter().collect()
            }
            (Ok(fleet::WatchKind::Changed), Some(instance)) => {
                self.update("changed", instance).into_iter().collect()
            }
            (Ok(fleet::WatchKind::Deleted), Some(instance)) => {
                self.seen.insert(instance.name.clone(), instance.clone());
                self.remove(&instance.name).into_iter().collect()
            }
            (Ok(fleet::WatchKind::Synced), _) => self.synced(),
            _ => Vec::new(),
        }
    }

    /// An instance does not exist, whether or not it was ever seen.
    pub(crate) fn absent(&mut self, name: &str) -> Option<Change> {
        let change = self.remove(name);
        if self.awaits_deletion() {
            self.waiting.remove(name);
        }
        change
    }

    /// Whether all that was waited for is so.
    pub(crate) fn verdict(&self) -> Verdict {
        let Some(goal) = self.goal else { return Verdict::Waiting };
        for name in &self.waiting {
            match self.seen.get(name) {
                Some(instance) if goal.is_met(instance) => {}
                Some(instance) => return self.judged(goal, instance),
                None => return Verdict::Waiting,
            }
        }
        Verdict::Reached
    }

    /// Of an instance that is not as it should be.
    fn judged(&self, goal: Goal, instance: &InstanceView) -> Verdict {
        let name = instance.name.clone();
        if let Some(why) = goal.hopeless(instance) {
            return Verdict::Hopeless { name, why };
        }
        match goal.refused(instance, self.refused_before.get(&name)) {
            Some(refused) => Verdict::Refused { name, refused: refused.clone() },
            None => Verdict::Waiting,
        }
    }

    fn awaits_deletion(&self) -> bool {
        self.goal.is_some_and(|goal| goal.until == Until::Deleted)
    }

    /// Whether the verdict is good; an error when it is bad.
    fn has_ended(&self) -> Result<bool, WatchError> {
        match self.verdict() {
            Verdict::Waiting => Ok(false),
            Verdict::Reached => Ok(true),
            Verdict::Hopeless { name, why } => {
                let wanted = self.goal.map_or("", Goal::words);
                Err(WatchError::Hopeless { name, wanted, why })
            }
            Verdict::Refused { name, refused } => {
                let (what, hint) = (refused.to_string(), refused.hint(&name));
                Err(WatchError::Refused { name, what, hint })
            }
        }
    }

    /// What is not so yet, for the message of a timeout.
    pub(crate) fn pending(&self) -> String {
        let Some(goal) = self.goal else { return String::new() };
        let describe = |name: &String| match self.seen.get(name) {
            Some(instance) if goal.is_met(instance) => None,
            Some(instance) => Some(format!("{name} is {}", described(instance))),
            None => Some(format!("nothing is known of {name}")),
        };
        self.waiting.iter().filter_map(describe).collect::<Vec<_>>().join(", ")
    }

    fn update(&mut self, kind: &'static str, instance: InstanceView) -> Option<Change> {
        if goal::is_changing(&instance)
            && let Some(refused) = &instance.status.refused
        {
            self.refused_before.insert(instance.name.clone(), refused.clone());
        }
        let known = self.seen.insert(instance.name.clone(), instance.clone());
        let permille = |of: &InstanceView| of.status.operation.as_ref().and_then(|o| o.permille);
        let same = known.is_some_and(|known| {
            described(&known) == described(&instance) && permille(&known) == permille(&instance)
        });
        (!same).then_some(Change { kind, instance })
    }

    fn remove(&mut self, name: &str) -> Option<Change> {
        let instance = self.seen.remove(name)?;
        if self.awaits_deletion() {
            self.waiting.remove(name);
        }
        Some(Change { kind: "deleted", instance })
    }

    fn synced(&mut self) -> Vec<Change> {
        let current = std::mem::take(&mut self.current);
        let gone: Vec<String> =
            self.seen.keys().filter(|name| !current.contains(*name)).cloned().collect();
        gone.iter().filter_map(|name| self.remove(name)).collect()
    }
}

/// A line's end: phase, operation, step and why.
pub(crate) fn described(instance: &InstanceView) -> String {
    let status = &instance.status;
    let mut text = instance.state();
    if let Some(operation) = &status.operation {
        text.push_str(&format!(" ({})", operation.what()));
    }
    if !status.step.is_empty() {
        text.push_str(&format!(" [{}]", status.step));
    }
    if !status.message.is_empty() {
        text.push_str(&format!(": {}", status.message));
    }
    text
}

/// Follows until the verdict, or for ever without one. `show` gets every change with the time since
/// the beginning.
pub(crate) async fn follow(
    connection: &Connection,
    scope: &Scope,
    goal: Option<Goal>,
    patience: Option<Duration>,
    show: &mut dyn FnMut(&Change, Duration) -> Result<(), WatchError>,
) -> Result<(), WatchError> {
    let mut progress = Progress::new(goal, &scope.names);
    let followed = stream_again_and_again(connection, scope, &mut progress, show);
    let Some(patience) = patience else { return followed.await };
    match tokio::time::timeout(patience, followed).await {
        Ok(outcome) => outcome,
        // Watching for a while is what was asked for.
        Err(_) => goal.map_or(Ok(()), |goal| {
            let (wanted, pending) = (goal.words(), progress.pending());
            Err(WatchError::Timeout { wanted, after: patience, pending })
        }),
    }
}

async fn stream_again_and_again(
    connection: &Connection,
    scope: &Scope,
    progress: &mut Progress,
    show: &mut dyn FnMut(&Change, Duration) -> Result<(), WatchError>,
) -> Result<(), WatchError> {
    let begun = Stopwatch::start();
    let mut backoff = Backoff::new(RECONNECT);
    loop {
        match stream_once(connection, scope, progress, begun, show).await {
            Ok(Ended::Verdict) => return Ok(()),
            Ok(Ended::Stream { messages: 0 }) => {}
            Ok(Ended::Stream { .. }) => backoff.reset(),
            Err(WatchError::Call(error))
                if error.code == Code::NotFound && progress.awaits_deletion() =>
            {
                for change in find_absent(connection, progress).await? {
                    show(&change, begun.elapsed())?;
                }
                if progress.verdict() == Verdict::Reached {
                    return Ok(());
                }
            }
            Err(WatchError::Call(error)) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(backoff.next_delay(clock::random())).await;
    }
}

/// Looks up which of the instances that are waited for do not exist any more.
async fn find_absent(
    connection: &Connection,
    progress: &mut Progress,
) -> Result<Vec<Change>, WatchError> {
    let mut changes = Vec::new();
    for name in progress.waiting.clone() {
        let request = fleet::GetInstanceRequest { name: format!("instances/{name}") };
        let doing = format!("get instances/{name}");
        let answer = connection
            .call(&doing, Repeat::Harmless, request, async |channel, request| {
                InstanceServiceClient::new(channel).get_instance(request).await
            })
            .await;
        match answer {
            Err(error) if error.code == Code::NotFound => changes.extend(progress.absent(&name)),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
    }
    Ok(changes)
}

/// How one stream ended.
enum Ended {
    Verdict,
    Stream { messages: usize },
}

async fn stream_once(
    connection: &Connection,
    scope: &Scope,
    progress: &mut Progress,
    begun: Stopwatch,
    show: &mut dyn FnMut(&Change, Duration) -> Result<(), WatchError>,
) -> Result<Ended, WatchError> {
    const DOING: &str = "watch instances";
    // A name that is gone would be refused together with all others.
    let names = if progress.awaits_deletion() { &progress.waiting } else { &scope.names };
    let request = fleet::WatchInstancesRequest {
        names: names.iter().map(|name| format!("instances/{name}")).collect(),
        host: if scope.host.is_empty() { String::new() } else { format!("hosts/{}", scope.host) },
    };
    let mut stream = connection
        .open_stream(DOING, request, async |channel, request| {
            let mut client =
                InstanceServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER);
            client.watch_instances(request).await
        })
        .await?;
    let mut messages = 0;
    loop {
        match stream.message().await {
            Ok(Some(message)) => {
                messages += 1;
                for change in progress.observe(message) {
                    show(&change, begun.elapsed())?;
                }
                if progress.has_ended()? {
                    return Ok(Ended::Verdict);
                }
            }
            Ok(None) => return Ok(Ended::Stream { messages }),
            Err(status) => {
                let error = CallError::new(DOING, connection.endpoint(), &status);
                return if is_passing(&error) {
                    Ok(Ended::Stream { messages })
                } else {
                    Err(error.into())
                };
            }
        }
    }
}

/// Whether another attempt may succeed: the server is away, or the connection was.
fn is_passing(error: &CallError) -> bool {
    error.code == Code::Unavailable
        || error.code == Code::DeadlineExceeded
        || matches!(error.transport, Some(crate::call::TransportFault::Lost(_)))
}

/// The name that a message is about.
pub(crate) fn scope_of(names: &[String], host: Option<&str>) -> Scope {
    Scope {
        names: names.iter().map(|name| id(name).to_owned()).collect(),
        host: host.map(|host| id(host).to_owned()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
