//! Live sessions, and what hosts said last. In memory only: a restart begins with nothing.
//!
//! A host has at most one session: the newest wins, the one before is told to end, and an end is
//! compare-and-delete, so that the timeout of an old session never removes a new one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use claw_core::name::{HostName, InstanceName};
use claw_core::report::{Hello, HostResources, InstanceReport, Phase, StatusReport};
use claw_core::stamp::Stamp;
use claw_core::time::Timestamp;
use claw_proto::fleet::v1::HostState;
use claw_proto::node::v1 as node;
use tokio::sync::{mpsc, watch};

use crate::commands::{Asked, Line};
use crate::refusal::{Precondition, Refusal};
use crate::store::hosts::HostRow;
use crate::store::random_id;

/// Boot ids remembered per host; more than this many alternating clones are clones all the same.
const RETIRED_BOOTS: usize = 16;
/// Heartbeats per second of the whole fleet, each with a status: about a twentieth of a core (measured).
const BEATS_PER_SECOND: u64 = 1000;
/// A clone that has not been heard of for this long is gone: agents retry within 120 s.
const CLONE_ALARM_KEPT: Duration = Duration::from_secs(3600);

/// All live sessions.
#[derive(Debug)]
pub struct Registry {
    hosts: Mutex<BTreeMap<HostName, Live>>,
    /// Hosts that had joined when the coordinator started, and will come back.
    expected: usize,
    /// Hosts with a session.
    sessions: AtomicUsize,
    /// Until then nobody is offline: after a start the hosts need time to come back.
    grace_ends: Timestamp,
}

/// What a session is told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signal {
    /// Rises when the desired state may have changed.
    pub version: u64,
    /// Set when it must end.
    pub end: Option<End>,
}

/// Why a session must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A newer session of the same host.
    Superseded,
    /// The host was deleted.
    Forgotten,
}

/// A session that was let in.
#[derive(Debug)]
pub struct Opened {
    /// Its id, unique for ever.
    pub id: String,
    /// What it must look at.
    pub signal: watch::Receiver<Signal>,
    /// Questions that it must send.
    pub questions: mpsc::Receiver<Box<node::Command>>,
}

/// Two machines use one certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Cloned {
    /// For a person.
    pub message: String,
    /// Whether this is the first sign of it.
    pub is_new: bool,
}

/// What a status changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changed {
    /// Instances whose report is another one now.
    pub instances: BTreeSet<InstanceName>,
    /// The report, if progress was made that may end a removal.
    pub settles: Option<Box<StatusReport>>,
}

/// What is known of a host right now.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// It has a session.
    pub online: bool,
    /// When it was last heard of.
    pub last_seen: Option<Timestamp>,
    /// What it said in greeting.
    pub hello: Option<Hello>,
    /// At the last heartbeat.
    pub resources: Option<HostResources>,
    /// The last status and when it came.
    pub status: Option<(StatusReport, Timestamp)>,
    /// The state that it has persisted.
    pub persisted: Option<Stamp>,
    /// Set while two machines use its certificate.
    pub clone_alarm: Option<String>,
}

#[derive(Debug, Default)]
struct Live {
    session: Option<Current>,
    /// All but the status.
    known: Snapshot,
    reported: Reported,
    last_seen_is_stored: bool,
    retired_boots: VecDeque<String>,
    cloned_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Current {
    id: String,
    signal: watch::Sender<Signal>,
    line: Line,
}

/// The last status of a host. A map has room for eleven instances in its smallest node, which is 5 KB more
/// than the one or two of most hosts need.
#[derive(Debug, Default)]
struct Reported {
    /// Without instances.
    rest: StatusReport,
    /// By name.
    instances: Box<[InstanceReport]>,
    /// When it came; `None` before the first.
    at: Option<Timestamp>,
}

impl Reported {
    fn new(mut status: StatusReport, at: Timestamp) -> Self {
        let instances = std::mem::take(&mut status.instances);
        Self { rest: status, instances: instances.into_values().collect(), at: Some(at) }
    }

    fn instance(&self, name: &InstanceName) -> Option<&InstanceReport> {
        let found = self.instances.binary_search_by(|report| report.name.cmp(name)).ok()?;
        self.instances.get(found)
    }

    fn whole(&self) -> Option<(StatusReport, Timestamp)> {
        let by_name = self.instances.iter().map(|report| (report.name.clone(), report.clone()));
        let status = StatusReport { instances: by_name.collect(), ..self.rest.clone() };
        self.at.map(|at| (status, at))
    }
}

impl Registry {
    /// Empty; nobody counts as offline before `grace_ends`.
    #[must_use]
    pub fn new(grace_ends: Timestamp) -> Self {
        Self { hosts: Mutex::default(), expected: 0, sessions: AtomicUsize::new(0), grace_ends }
    }

    /// The same, and so many hosts are expected to come.
    #[must_use]
    pub fn expecting(self, hosts: usize) -> Self {
        Self { expected: hosts, ..self }
    }

    /// Interval of heartbeats for a session that begins now: the configured one, or a longer one when so many
    /// hosts would send more than [`BEATS_PER_SECOND`].
    #[must_use]
    pub fn heartbeat_interval(&self, configured: Duration) -> Duration {
        let hosts = self.expected.max(self.online());
        let millis = u64::try_from(hosts).unwrap_or(u64::MAX).saturating_mul(1000);
        configured.max(Duration::from_millis(millis / BEATS_PER_SECOND))
    }

    /// Lets a session in and tells the one before to end.
    ///
    /// A boot id that another one has replaced never comes back from the same machine.
    ///
    /// # Errors
    /// [`Cloned`]
    pub fn open(&self, hello: &Hello, now: Timestamp) -> Result<Opened, Cloned> {
        let mut hosts = self.lock();
        let live = hosts.entry(hello.host.clone()).or_default();
        if live.retired_boots.contains(&hello.boot_id) {
            return Err(live.alarm(hello, now));
        }
        if let Some(before) = &live.known.hello
            && before.boot_id != hello.boot_id
        {
            live.retired_boots.push_back(before.boot_id.clone());
            if live.retired_boots.len() > RETIRED_BOOTS {
                live.retired_boots.pop_front();
            }
        }
        match live.session.take() {
            Some(before) => {
                before.signal.send_modify(|signal| signal.end = Some(End::Superseded));
            }
            None => _ = self.sessions.fetch_add(1, Ordering::Relaxed),
        }
        let (sender, signal) = watch::channel(Signal::default());
        let (line, questions) = Line::new();
        let id = random_id();
        live.session = Some(Current { id: id.clone(), signal: sender, line });
        live.known.online = true;
        live.known.persisted = hello.persisted;
        live.known.hello = Some(hello.clone());
        live.seen(now);
        Ok(Opened { id, signal, questions })
    }

    /// Ends a session, unless it has been replaced already; true when it was the present one.
    pub fn close(&self, host: &HostName, id: &str) -> bool {
        let mut hosts = self.lock();
        let Some(live) = hosts.get_mut(host) else { return false };
        if live.session.as_ref().is_none_or(|current| current.id != id) {
            return false;
        }
        live.session = None;
        live.known.online = false;
        self.sessions.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// Whether this is the host's present session.
    #[must_use]
    pub fn is_current(&self, host: &HostName, id: &str) -> bool {
        let hosts = self.lock();
        let session = hosts.get(host).and_then(|live| live.session.as_ref());
        session.is_some_and(|current| current.id == id)
    }

    /// The desired state of a host may have changed.
    pub fn wake(&self, host: &HostName) {
        if let Some(current) = self.lock().get(host).and_then(|live| live.session.as_ref()) {
            current.signal.send_modify(|signal| signal.version = signal.version.wrapping_add(1));
        }
    }

    /// The host was deleted.
    pub fn forget(&self, host: &HostName) {
        if let Some(current) = self.lock().remove(host).and_then(|live| live.session) {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            current.signal.send_modify(|signal| signal.end = Some(End::Forgotten));
        }
    }

    /// A heartbeat of the present session.
    pub fn heartbeat(
        &self,
        host: &HostName,
        id: &str,
        resources: Option<HostResources>,
        now: Timestamp,
    ) {
        self.of_session(host, id, |live| {
            live.seen(now);
            if resources.is_some() {
                live.known.resources = resources;
            }
        });
    }

    /// A status of the present session.
    pub fn status(
        &self,
        host: &HostName,
        id: &str,
        report: StatusReport,
        now: Timestamp,
    ) -> Changed {
        let mut changed = Changed::default();
        self.of_session(host, id, |live| {
            live.seen(now);
            changed = compare(&live.reported, live.known.persisted, &report);
            live.known.persisted = report.persisted.or(live.known.persisted);
            live.reported = Reported::new(report, now);
        });
        changed
    }

    /// Asks the agent of a host something.
    ///
    /// # Errors
    /// [`Refusal::Precondition`] when it has no session, [`Refusal::Exhausted`] when it has too many
    /// questions to answer already.
    pub fn ask(
        &self,
        host: &HostName,
        question: node::command::Command,
        deadline: Timestamp,
    ) -> Result<Asked, Refusal> {
        let hosts = self.lock();
        let Some(current) = hosts.get(host).and_then(|live| live.session.as_ref()) else {
            let description = format!("hosts/{host} is not connected, and only its agent knows");
            let subject = format!("hosts/{host}");
            let reason = Precondition::HostNotConnected;
            return Err(Refusal::precondition(reason, subject, description));
        };
        current.line.ask(host, question, deadline)
    }

    /// Whether somebody still waits for the answer to a question of this session.
    #[must_use]
    pub fn awaits(&self, host: &HostName, session: &str, question: &str) -> bool {
        let hosts = self.lock();
        let current = hosts.get(host).and_then(|live| live.session.as_ref());
        current.is_some_and(|current| current.id == session && current.line.awaits(question))
    }

    /// An answer of the present session.
    pub fn answered(&self, host: &HostName, session: &str, result: node::CommandResult) {
        self.of_session(host, session, |live| {
            if let Some(current) = &live.session {
                current.line.answered(result);
            }
        });
    }

    /// What is known of a host.
    #[must_use]
    pub fn snapshot(&self, host: &HostName, now: Timestamp) -> Snapshot {
        let mut hosts = self.lock();
        let Some(live) = hosts.get_mut(host) else { return Snapshot::default() };
        if live.cloned_at.is_some_and(|at| now.since(at) > CLONE_ALARM_KEPT) {
            live.cloned_at = None;
            live.known.clone_alarm = None;
        }
        Snapshot { status: live.reported.whole(), ..live.known.clone() }
    }

    /// What a host said last of one instance.
    #[must_use]
    pub fn instance(&self, host: &HostName, name: &InstanceName) -> InstanceView {
        let hosts = self.lock();
        let Some(live) = hosts.get(host) else { return InstanceView::default() };
        let report = live.reported.instance(name).cloned().zip(live.reported.at);
        InstanceView { online: live.known.online, persisted: live.known.persisted, report }
    }

    /// Whether a host can be reached.
    #[must_use]
    pub fn host_state(&self, host: &HostRow, now: Timestamp) -> HostState {
        let hosts = self.lock();
        let live = hosts.get(&host.name);
        let online = live.is_some_and(|live| live.known.online);
        let was_here = live.is_some_and(|live| live.known.hello.is_some());
        if host.revoked {
            HostState::Revoked
        } else if online {
            HostState::Online
        } else if host.joined.is_none() {
            HostState::Registered
        } else if !was_here && now < self.grace_ends {
            HostState::Unknown
        } else {
            HostState::Offline
        }
    }

    /// The operator has dealt with a clone: the host enrolled anew.
    pub fn clear_clone_alarm(&self, host: &HostName) {
        if let Some(live) = self.lock().get_mut(host) {
            live.retired_boots.clear();
            live.cloned_at = None;
            live.known.clone_alarm = None;
        }
    }

    /// Hosts that have been away for `silence` and whose last sign of life is not stored yet; they
    /// count as stored from now on.
    #[must_use]
    pub fn take_gone(&self, now: Timestamp, silence: Duration) -> Vec<(HostName, Timestamp)> {
        let mut hosts = self.lock();
        let gone = hosts.iter_mut().filter(|(_, live)| live.session.is_none());
        gone.filter(|(_, live)| !live.last_seen_is_stored)
            .filter_map(|(name, live)| {
                let seen = live.known.last_seen.filter(|seen| now.since(*seen) >= silence)?;
                live.last_seen_is_stored = true;
                Some((name.clone(), seen))
            })
            .collect()
    }

    /// Last signs of life that are not stored yet, for a shutdown.
    #[must_use]
    pub fn unsaved(&self) -> Vec<(HostName, Timestamp)> {
        let hosts = self.lock();
        let unsaved = hosts.iter().filter(|(_, live)| !live.last_seen_is_stored);
        unsaved.filter_map(|(name, live)| Some((name.clone(), live.known.last_seen?))).collect()
    }

    /// Hosts with a session.
    #[must_use]
    pub fn online(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    fn of_session(&self, host: &HostName, id: &str, change: impl FnOnce(&mut Live)) {
        let mut hosts = self.lock();
        if let Some(live) = hosts.get_mut(host)
            && live.session.as_ref().is_some_and(|current| current.id == id)
        {
            change(live);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostName, Live>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of one instance right now.
#[derive(Debug, Clone, Default)]
pub struct InstanceView {
    /// Its host has a session.
    pub online: bool,
    /// The state that its host has persisted.
    pub persisted: Option<Stamp>,
    /// The last report and when it came.
    pub report: Option<(InstanceReport, Timestamp)>,
}

impl Live {
    fn seen(&mut self, now: Timestamp) {
        self.known.last_seen = Some(now);
        self.last_seen_is_stored = false;
    }

    fn alarm(&mut self, hello: &Hello, now: Timestamp) -> Cloned {
        let is_new = self.cloned_at.is_none();
        self.cloned_at = Some(now);
        let other = self.known.hello.as_ref().map_or("another", |hello| &hello.boot_id);
        let message = format!(
            "two machines use the certificate of hosts/{}: boot {} came back after boot {other} \
             had replaced it. Was its disk cloned? Revoke the host and join the right machine again",
            hello.host, hello.boot_id
        );
        self.known.clone_alarm = Some(message.clone());
        Cloned { message, is_new }
    }
}

fn compare(before: &Reported, persisted: Option<Stamp>, now: &StatusReport) -> Changed {
    let names = before.instances.iter().map(|report| &report.name).chain(now.instances.keys());
    let mut instances: BTreeSet<InstanceName> =
        names.filter(|name| before.instance(name) != now.instances.get(*name)).cloned().collect();
    let progressed = now.persisted.is_some() && now.persisted != persisted;
    if progressed {
        instances.extend(now.instances.keys().cloned());
    }
    let removed = now.instances.values().any(|report| report.phase == Phase::Removed);
    let settled = now.last_result != before.rest.last_result
        || now.applying.is_none() != before.rest.applying.is_none();
    let may_settle = progressed || removed || settled;
    Changed { instances, settles: may_settle.then(|| Box::new(now.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(boot: &str) -> Hello {
        Hello {
            host: HostName::parse("a").unwrap(),
            boot_id: boot.to_owned(),
            agent_version: String::new(),
            protocol_version: 1,
            persisted: None,
            inventory: BTreeSet::new(),
            docker_version: None,
            kernel_version: String::new(),
            oldest_event: 1,
            next_event: 1,
        }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default().after(Duration::from_secs(seconds))
    }

    #[test]
    fn the_newest_session_wins_and_an_old_end_does_no_harm() {
        let registry = Registry::new(at(0));
        let host = HostName::parse("a").unwrap();
        let old = registry.open(&hello("1"), at(1)).unwrap();
        let new = registry.open(&hello("1"), at(2)).unwrap();
        assert_eq!(old.signal.borrow().end, Some(End::Superseded));
        assert_eq!(new.signal.borrow().end, None);
        registry.heartbeat(&host, &old.id, None, at(50));
        assert_eq!(registry.snapshot(&host, at(50)).last_seen, Some(at(2)));
        assert!(!registry.close(&host, &old.id));
        assert!(registry.is_current(&host, &new.id));
        assert!(registry.close(&host, &new.id));
        assert!(!registry.snapshot(&host, at(3)).online);
    }

    #[test]
    fn a_reboot_is_no_clone_but_a_boot_that_comes_back_is() {
        let registry = Registry::new(at(0));
        let host = HostName::parse("a").unwrap();
        registry.open(&hello("1"), at(1)).unwrap();
        let second = registry.open(&hello("2"), at(2)).unwrap();
        assert_eq!(registry.snapshot(&host, at(2)).clone_alarm, None);
        let first = registry.open(&hello("1"), at(3)).unwrap_err();
        assert!(first.is_new);
        assert!(!registry.open(&hello("1"), at(4)).unwrap_err().is_new);
        assert!(registry.is_current(&host, &second.id), "the other one is left alone");
        assert!(registry.snapshot(&host, at(5)).clone_alarm.is_some());
        assert_eq!(registry.snapshot(&host, at(5 + 3601)).clone_alarm, None);
        registry.clear_clone_alarm(&host);
        assert!(registry.open(&hello("1"), at(6)).is_ok());
    }

    #[test]
    fn hosts_are_stored_as_gone_once() {
        let registry = Registry::new(at(0));
        let host = HostName::parse("a").unwrap();
        let opened = registry.open(&hello("1"), at(1)).unwrap();
        let silence = Duration::from_secs(30);
        assert!(registry.take_gone(at(100), silence).is_empty());
        registry.close(&host, &opened.id);
        assert!(registry.take_gone(at(30), silence).is_empty());
        assert_eq!(registry.take_gone(at(31), silence), [(host, at(1))]);
        assert!(registry.take_gone(at(99), silence).is_empty());
    }
}
