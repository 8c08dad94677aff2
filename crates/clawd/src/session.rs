//! The agent's side of the session with the coordinator.
//!
//! It dials, greets, hands desired states to the reconcile side and sends what the board and the ring
//! of events say. Nothing here ever holds up reconciling: states go into a mailbox, reports are read when
//! there is room to send them.
//!
//! What it does not do: judge a desired state; keep anything over a restart.
//!
//! Where to start: [`Session::run`], then [`link`] for what happens on a live stream.

pub mod address;
mod backups;
pub mod dial;
mod errand;
mod link;
mod outbox;
mod renew;
mod transfer;

use std::rc::Rc;
use std::time::Duration;

use claw_core::backoff::{Backoff, RECONNECT, STABLE_SESSION};
use claw_core::name::HostName;
use claw_core::time::Timestamp;
use claw_identity::{ClientIdentity, IdentityDir, Tls};
use tonic::transport::Channel;

use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::Clock as _;
use crate::reconcile::Inbox;
use address::Address;
use dial::{DialError, dial};

/// A coordinator may ask for no longer pause than this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(600);
/// How often a host that has not joined, or whose certificate has expired, looks whether it has been
/// joined (again).
const JOIN_POLL: Duration = Duration::from_secs(5);

/// Keeps a session with the coordinator, for ever.
pub struct Session<M> {
    agent: Rc<Agent<M>>,
    inbox: Inbox,
    tls: Tls,
    identity: IdentityDir,
    coordinator: Box<dyn Fn() -> Option<Address>>,
}

impl<M> std::fmt::Debug for Session<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Where the session stands, for the service manager's status line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionState {
    /// The host has no identity yet.
    NotJoined,
    /// The certificate has expired: somebody must join the host again.
    Expired,
    /// Connected since just now.
    Connected,
    /// Not connected; the text says why.
    Away(String),
}

impl std::fmt::Display for SessionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotJoined => f.write_str("this host has not joined a fleet; hint: clawd join"),
            Self::Expired => f.write_str(
                "the host's certificate has expired; hint: make a new join token and run clawd join",
            ),
            Self::Connected => f.write_str("connected to the coordinator"),
            Self::Away(why) => write!(f, "not connected to the coordinator: {why}"),
        }
    }
}

/// How a live session ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Why, for the log.
    pub(crate) why: String,
    /// The coordinator asks to stay away this long.
    pub(crate) retry_after: Option<Duration>,
    /// When the coordinator's welcome came; `None` if it never did.
    pub(crate) welcomed_at: Option<Timestamp>,
}

impl<M: Machine> Session<M> {
    /// A session that is not connected yet. `coordinator` says where to dial, whenever asked: a host may
    /// be joined while its agent runs.
    #[must_use]
    pub fn new(
        agent: Rc<Agent<M>>,
        inbox: Inbox,
        tls: Tls,
        identity: IdentityDir,
        coordinator: Box<dyn Fn() -> Option<Address>>,
    ) -> Self {
        Self { agent, inbox, tls, identity, coordinator }
    }

    /// Runs until dropped. `announce` is told of every change of state.
    pub async fn run(self, announce: impl Fn(&SessionState)) {
        let mut backoff = Backoff::new(RECONNECT);
        let mut told = None;
        let mut tell = |state: SessionState| {
            if told.as_ref() != Some(&state) {
                tracing::info!("{state}");
                announce(&state);
                told = Some(state);
            }
        };
        loop {
            let clock = self.agent.machine.clock();
            let (identity, coordinator) = match self.ready() {
                Ok(ready) => ready,
                Err(state) => {
                    tell(state);
                    clock.sleep(JOIN_POLL).await;
                    continue;
                }
            };
            let ended = match self.connect(&coordinator, &identity).await {
                Ok(channel) => {
                    link::run(&self, channel, &identity, || tell(SessionState::Connected)).await
                }
                Err(error) => Ended { why: chain(&error), retry_after: None, welcomed_at: None },
            };
            let stable =
                ended.welcomed_at.is_some_and(|at| clock.now().since(at) >= STABLE_SESSION);
            if stable {
                backoff.reset();
            }
            let delay = self.delay(&mut backoff, ended.retry_after);
            tell(SessionState::Away(ended.why));
            clock.sleep(delay).await;
        }
    }

    /// What a connection needs, or why there can be none now.
    fn ready(&self) -> Result<(ClientIdentity, Address), SessionState> {
        let identity = match self.identity.load() {
            Ok(Some(identity)) => identity,
            Ok(None) => return Err(SessionState::NotJoined),
            Err(error) => return Err(SessionState::Away(chain(&error))),
        };
        if let Ok(host) = HostName::parse(identity.peer().identity.name()) {
            self.agent.roster.called(host);
        }
        if renew::millis(identity.expires()) < self.agent.machine.clock().now() {
            return Err(SessionState::Expired);
        }
        let coordinator = (self.coordinator)().ok_or(SessionState::NotJoined)?;
        Ok((identity, coordinator))
    }

    async fn connect(
        &self,
        coordinator: &Address,
        identity: &ClientIdentity,
    ) -> Result<Channel, DialError> {
        let config = self.tls.client(identity)?;
        dial(coordinator, config).await
    }

    /// Decorrelated jitter; a pause that the coordinator asks for comes first, spread by a fifth.
    fn delay(&self, backoff: &mut Backoff, retry_after: Option<Duration>) -> Duration {
        let clock = self.agent.machine.clock();
        let jittered = backoff.next_delay(clock.random());
        let Some(asked) = retry_after else { return jittered };
        let asked = asked.min(LONGEST_RETRY_AFTER);
        let spread = u64::try_from(asked.as_millis() / 5).unwrap_or(0).max(1);
        asked.saturating_add(Duration::from_millis(clock.random() % spread))
    }

    pub(crate) const fn agent(&self) -> &Rc<Agent<M>> {
        &self.agent
    }

    pub(crate) const fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    pub(crate) const fn identity_dir(&self) -> &IdentityDir {
        &self.identity
    }
}
