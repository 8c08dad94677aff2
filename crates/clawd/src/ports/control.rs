//! What the agent asks of a gateway itself, and of programs within its container.

use std::net::SocketAddr;
use std::time::Duration;

use claw_core::spec::Secret;

use super::RuntimeError;

/// Where a gateway is, and what opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayAccess {
    /// Its own address, not the reverse proxy's.
    pub address: SocketAddr,
    /// Its token.
    pub token: Secret,
}

/// Whether a gateway knows this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquaintance {
    /// It does: it may be suspended.
    Known,
    /// It does not, and has noted this request, which is to be approved within its container.
    Asked(String),
}

/// Why a gateway did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// This host's identity cannot be used.
    #[error("the host's identity to gateways cannot be used")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Something is under way in it; with what it is.
    #[error("the gateway is at work: {0}")]
    Busy(String),
    /// It refused, does not answer, or does not know how.
    #[error("the gateway does not do it")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Asking a gateway to do something (OpenClaw's RPC). Nothing is connected between calls, but for a
/// suspension.
pub trait Control {
    /// A suspension, with the connection over which it was begun.
    type Suspended;
    /// Introduces this host; at most 20 s. It may be done again at any time.
    fn introduce(
        &self,
        gateway: &GatewayAccess,
    ) -> impl Future<Output = Result<Acquaintance, ControlError>>;
    /// Suspends a gateway in which nothing is under way: it begins nothing from here on and refuses what is
    /// asked of it. At most 2 s, and 2 s more to take it back when that fails. A gateway that nobody resumes,
    /// because the agent died, resumes by itself (OpenClaw: after 120 s).
    fn suspend(
        &self,
        gateway: &GatewayAccess,
    ) -> impl Future<Output = Result<Self::Suspended, ControlError>>;
    /// Sends the wish to resume without waiting for an answer, to a gateway that is frozen: it finds the wish
    /// as soon as it is thawed, even if the agent has died.
    fn let_go(
        &self,
        suspended: &mut Self::Suspended,
    ) -> impl Future<Output = Result<(), ControlError>>;
    /// Waits until a gateway that is not frozen has resumed, having asked it if that was not done; at most 4 s.
    fn resumed(&self, suspended: Self::Suspended)
    -> impl Future<Output = Result<(), ControlError>>;
}

/// How a program within a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status.
    pub status: i64,
    /// The end of what it printed, at most 2 000 characters.
    pub output: String,
}

/// Programs within containers (Docker's exec).
pub trait Inside {
    /// Runs a program as the container's own user, with its environment, and waits for its end. One that takes
    /// longer than `deadline` is an error and is left to itself: Docker cannot end it.
    fn run_inside(
        &self,
        container: &str,
        argv: &[&str],
        deadline: Duration,
    ) -> impl Future<Output = Result<Ran, RuntimeError>>;
}
