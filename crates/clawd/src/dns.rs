//! `clawd dns`: answers the names of every instance on its bridge's address, and lets the packet filter
//! know what they lead to before the answer is out.
//!
//! What it is for: containers have no other way to names (ports 53 and 853 are closed to them), so a
//! list of names holds; addresses change with every answer, so whoever answers must open the way. It is
//! a process of its own: clawd may be upgraded or die without a container losing its names.
//!
//! What it deliberately does not do: resolve by itself (the host's name servers do), log who asks for
//! what, or open anything that the policy's file does not say. A bad file leaves the old policy in force.
//!
//! # What it is made of
//!
//! [`hickory_proto`] alone, for what is on the wire. Its sibling `hickory-resolver` is a stub: it gives
//! records, not replies, so that a forwarder would have to make up what it leaves out (the kind of a
//! negative answer, aliases without an address), and it brings a cache of its own that is bounded in
//! entries, not bytes, shared by all callers. What it would save, asking a server by UDP with TCP behind
//! it, takes one file here ([`upstream`]).
//!
//! # Where to start
//!
//! [`serve`] is the process, [`instance::Instance::reply`] a question's way. [`stored`] is what clawd writes and
//! reads, through [`crate::adapters::dns_forwarder`].

pub mod answer;
pub mod budget;
pub mod cache;
pub mod closed;
pub mod grants;
pub mod instance;
pub mod kernel_sets;
pub mod listen;
pub mod names;
pub mod question;
pub mod resolv_conf;
mod server;
pub mod sets;
pub mod stored;
pub mod tally;
pub mod upstream;
pub mod watch;

use std::path::{Path, PathBuf};

use claw_core::address::InstanceNetwork;
use sd_notify::NotifyState;
use tokio::select;
use tokio::signal::unix::{SignalKind, signal};

use self::kernel_sets::KernelSets;
use self::listen::Place;
use self::resolv_conf::ResolvConf;
use self::sets::Sets;
use self::upstream::{Source, Upstreams};
use crate::config::Config;

pub use server::ServeError;

/// Where the policy is, below clawd's data.
#[must_use]
pub fn policy_path(data_dir: &Path) -> PathBuf {
    data_dir.join("firewall").join("dns.json")
}

/// Where the counters are, on tmpfs.
#[must_use]
pub fn counters_path(run_dir: &Path) -> PathBuf {
    run_dir.join("dns-counters.json")
}

/// What the process works with.
#[derive(Debug)]
pub struct Settings {
    /// File of the policy.
    pub policy: PathBuf,
    /// File of the counters.
    pub counters: PathBuf,
    /// The host's name servers.
    pub upstreams: Upstreams,
    /// Where an instance asks.
    pub place: fn(InstanceNetwork) -> Place,
}

/// Runs the forwarder until SIGTERM or SIGINT. Must run within a `LocalSet` of a current-thread runtime.
///
/// # Errors
/// [`ServeError`].
pub async fn run(config: &Config) -> Result<(), ServeError> {
    let mut term = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let sets = KernelSets::open().map_err(ServeError::Sets)?;
    let source = match &config.dns_upstreams {
        Some(addresses) => Source::Fixed(addresses.clone()),
        None => Source::File(ResolvConf::new(resolv_conf::STANDARD_PATH.into(), config.pool)),
    };
    let settings = Settings {
        policy: policy_path(&config.data_dir),
        counters: counters_path(&config.run_dir),
        upstreams: Upstreams::new(source),
        place: Place::bridge,
    };
    select! {
        biased;
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
        failed = serve(settings, sets, notify) => return failed.map(|never| match never {}),
    }
    notify(NotifyState::Stopping);
    Ok(())
}

/// Answers until it is dropped. `notify` hears what the service manager should.
///
/// # Errors
/// [`ServeError`].
pub async fn serve<S: Sets>(
    settings: Settings,
    sets: S,
    notify: impl Fn(NotifyState<'_>),
) -> Result<std::convert::Infallible, ServeError> {
    server::Server::new(settings, sets)?.run(notify).await
}

fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
