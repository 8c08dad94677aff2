//! What the agent needs from the machine, in our own types and errors.
//!
//! Each port has one adapter file in [`crate::adapters`] and one fake in `fakes`, held to the
//! same contract suite. Adapters hold no policy: they do what they are told and report what they
//! see. Every method has a deadline of its own and is cancel-safe in the sense that dropping its
//! future may leave the effect done or not done, never half described; the next observation tells.
//!
//! The agent runs on one thread, so futures need not be `Send`.

mod carry;
mod control;
mod data;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use claw_core::address::InstanceNetwork;
use claw_core::data::DataGeneration;
use claw_core::firewall::{Cidr, DnsPolicy, Flow, RuleCounter, Ruleset, SetEntry, Surroundings};
use claw_core::images::HostImage;
use claw_core::name::{ImageRef, InstanceName, StatePath};
use claw_core::observed::{ObservedContainer, ObservedNetwork};
use claw_core::plan::{ContainerPlan, VirtualHost};
use claw_core::report::{HostResources, Usage};
use claw_core::spec::Secret;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;
use claw_core::unit::{CpuMillis, PidsLimit};
use tokio::sync::mpsc;

pub use carry::{
    Carried, MAX_PIECE, Offsite, OffsitePlace, Parcel, Pipe, PipeError, Surplus, Transfers,
};
pub use control::{Acquaintance, Control, ControlError, GatewayAccess, Inside, Ran};
pub use data::{
    Copied, JobProgress, Measure, Quiesce, RepositoryKeys, SnapshotList, SnapshotOrder, Snapshots,
    SnapshotsError, Trial, TrialState, Trials, Verification, VerifyDepth, VolumeError, Volumes,
    Writers,
};

/// Why the container runtime did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The daemon cannot be reached: it is stopped, restarting, or its socket is gone.
    #[error("docker cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon took the request and did not answer in time.
    #[error("docker did not answer within {} s while {doing}", .after.as_secs())]
    Timeout {
        /// What was being done.
        doing: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The image does not exist where the reference points, or the registry refuses it.
    #[error("image {image} cannot be had")]
    Image {
        /// Which.
        image: ImageRef,
        /// What the daemon said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A container or network of that name exists and is not ours; it is not touched.
    #[error("{name} exists and was not made by clawd")]
    Stranger {
        /// The name.
        name: String,
    },
    /// Anything else that the daemon refused.
    #[error("docker refused while {doing}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// What the daemon said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Progress of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullProgress {
    /// Bytes so far.
    pub current_bytes: u64,
    /// Bytes in all, as far as the registry has said.
    pub total_bytes: u64,
}

/// What the runtime knows of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuntimeView {
    /// Whether the image asked about is present.
    pub image_present: bool,
    /// The instance's network, found by label.
    pub network: Option<ObservedNetwork>,
    /// The instance's container, found by label; the newest if there are several.
    pub container: Option<ObservedContainer>,
}

/// What the runtime says by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// Something happened to an instance's container (start, die, oom, destroy, pause …).
    Changed(InstanceName),
    /// The event stream is (again) connected; everything may have changed.
    Connected,
    /// The event stream is lost, with the cause.
    Lost(String),
}

/// Containers, images and networks (Docker).
pub trait Runtime {
    /// The daemon's version.
    fn version(&self) -> impl Future<Output = Result<String, RuntimeError>>;
    /// Every instance that has a container or a network with our label.
    fn inventory(&self) -> impl Future<Output = Result<BTreeSet<InstanceName>, RuntimeError>>;
    /// What is there of one instance; `image` is looked up too, if given.
    fn view(
        &self,
        instance: &InstanceName,
        image: Option<&ImageRef>,
    ) -> impl Future<Output = Result<RuntimeView, RuntimeError>>;
    /// Pulls an image. Ends when it is present. No overall deadline, but one on silence (60 s).
    fn pull(
        &self,
        image: &ImageRef,
        progress: &dyn Fn(PullProgress),
    ) -> impl Future<Output = Result<(), RuntimeError>>;
    /// What references lead to on this host; those that lead nowhere are left out.
    fn images(
        &self,
        references: &BTreeSet<ImageRef>,
    ) -> impl Future<Output = Result<BTreeMap<ImageRef, HostImage>, RuntimeError>>;
    /// Removes a reference, and with the last one to an image the image itself, unless a container was made
    /// from it: that is refused. Gone is success. Returns the bytes of the image if it is gone with this,
    /// those that others share included, and 0 if it is not.
    fn remove_image(&self, image: &ImageRef) -> impl Future<Output = Result<u64, RuntimeError>>;
    /// Carries out one change; doing it twice does no harm.
    fn change(
        &self,
        instance: &InstanceName,
        change: RuntimeChange<'_>,
    ) -> impl Future<Output = Result<(), RuntimeError>>;
    /// Events, until the receiver is dropped; reconnects by itself with back-off. The channel is
    /// bounded; when it is full, events of the same instance are merged, never lost.
    fn events(&self) -> mpsc::Receiver<RuntimeEvent>;
}

/// A change of containers or networks.
#[derive(Debug, Clone, Copy)]
pub enum RuntimeChange<'a> {
    /// Make the bridge network; it existing with the same addresses and our label is success.
    CreateNetwork(&'a InstanceNetwork),
    /// Remove a network; it being gone is success.
    RemoveNetwork(&'a str),
    /// Make the container with the given mounts; one of ours with the same digest is success.
    CreateContainer(&'a ContainerPlan, &'a Mounts),
    /// Start the instance's container (found by name and our label); running is success.
    Start,
    /// Freeze; frozen is success.
    Pause(&'a str),
    /// Thaw; running is success.
    Unpause(&'a str),
    /// SIGTERM, SIGKILL after the grace; stopped or gone is success.
    Stop(&'a str, Duration),
    /// Remove a stopped container; gone is success. Never removes volumes or data.
    Remove(&'a str),
    /// Change CPU and process limits.
    Limits(&'a str, CpuMillis, PidsLimit),
}

/// Where an instance's data and secrets lie on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    /// Directory of the state, mounted read-write.
    pub data: PathBuf,
    /// The `.env` on tmpfs, mounted read-only as `.env` of the state directory.
    pub secrets: PathBuf,
}

/// Why a file could not be put in place.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", .path.display())]
pub struct FilesError {
    /// What was being done, such as "writing".
    pub doing: &'static str,
    /// To what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}

/// Data directories, delivered files and secrets of instances. Blocking work runs on a thread of
/// its own; nothing follows a symbolic link that a container may have planted.
pub trait Files {
    /// Where an instance's data and secrets are (or will be).
    fn mounts(&self, instance: &InstanceName, data: DataGeneration) -> Mounts;
    /// Whether the data directory exists as it should, and digest of the secrets file.
    fn view(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
        delivered: &BTreeSet<StatePath>,
    ) -> impl Future<Output = Result<FilesView, FilesError>>;
    /// Makes the data directory (0700, uid 1000) if needed and writes the files (0600, uid 1000),
    /// each atomically: temporary file, fsync, rename, fsync of the directory.
    fn deliver(
        &self,
        instance: &InstanceName,
        data: DataGeneration,
        files: &BTreeMap<StatePath, String>,
    ) -> impl Future<Output = Result<(), FilesError>>;
    /// Writes the secrets file on tmpfs (0400, uid 1000), atomically.
    fn write_secrets(
        &self,
        instance: &InstanceName,
        text: &Secret,
    ) -> impl Future<Output = Result<(), FilesError>>;
    /// Removes the secrets file; gone is success.
    fn remove_secrets(
        &self,
        instance: &InstanceName,
    ) -> impl Future<Output = Result<(), FilesError>>;
    /// Moves every data directory and the repository of snapshots to `removed/<instance>.<time>`; gone is
    /// success.
    fn set_aside(
        &self,
        instance: &InstanceName,
        at: Timestamp,
    ) -> impl Future<Output = Result<(), FilesError>>;
}

/// What is there of an instance's files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilesView {
    /// The data directory exists with its owner and mode.
    pub data_present: bool,
    /// All of the files asked about exist.
    pub files_present: bool,
    /// Digest of the secrets file.
    pub secrets: Option<Digest>,
}

/// Why the reverse proxy does not serve as it should.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The rendered configuration could not be put in place.
    #[error("writing the virtual host of {instance}")]
    Write {
        /// Whose.
        instance: InstanceName,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `nginx -t` refused the configuration; the old one is back in place.
    #[error("nginx refused its configuration: {output}")]
    Refused {
        /// What it printed, at most 2 000 characters.
        output: String,
    },
    /// nginx could not be run, reloaded or reached.
    #[error("{doing} nginx")]
    Command {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The reverse proxy (nginx).
pub trait Proxy {
    /// Whether exactly this virtual host is in place and was loaded by the running proxy.
    fn is_current(&self, host: &VirtualHost) -> impl Future<Output = Result<bool, ProxyError>>;
    /// Renders, tests, swaps atomically, reloads; several calls at once are put into one reload.
    fn publish(&self, host: &VirtualHost) -> impl Future<Output = Result<(), ProxyError>>;
    /// Removes the instance's virtual host and reloads; gone is success.
    fn unpublish(&self, instance: &InstanceName) -> impl Future<Output = Result<(), ProxyError>>;
    /// Where the proxy listens, for probes through it.
    fn listen(&self) -> std::net::SocketAddr;
}

/// What one look at a gateway showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayAnswer {
    /// `/startupz` succeeded, directly and through the proxy; `/readyz` said `ready`.
    Started {
        /// Whether `/readyz` succeeded.
        ready: bool,
    },
    /// It answers and is not started yet, with what it says is missing.
    Starting(String),
    /// It finishes its work before it stops.
    Draining,
    /// It does not answer well, with the cause for a person.
    Failing(String),
    /// It started, and the path through the reverse proxy does not work, with the cause.
    ProxyFailing(String),
}

/// A gateway in its container (OpenClaw).
pub trait Gateway {
    /// Looks once at `/startupz` directly, then through the proxy, then at `/readyz`; at most 5 s.
    fn look(&self, host: &VirtualHost) -> impl Future<Output = GatewayAnswer>;
    /// As [`Self::look`], at a gateway that no reverse proxy serves and that does not trust the caller.
    fn look_directly(&self, gateway: std::net::SocketAddr) -> impl Future<Output = GatewayAnswer>;
}

/// The host itself (sysinfo, /proc, cgroups).
pub trait Host {
    /// Identity of this boot.
    fn boot_id(&self) -> String;
    /// Kernel release.
    fn kernel_version(&self) -> String;
    /// Resources now; CPU is since the previous call.
    fn resources(&self) -> HostResources;
    /// Usage of the container whose first process is `pid`, from its cgroup (v1 or v2).
    fn usage(&self, pid: u32) -> Option<Usage>;
}

/// Why the firewall is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The rules were tried in a network namespace of their own and the kernel refused them; nothing was
    /// changed.
    #[error("the kernel refuses the rules: {output}")]
    Invalid {
        /// What the program said, at most 2 000 characters.
        output: String,
    },
    /// A program failed, hangs or is missing.
    #[error("{doing}")]
    Command {
        /// What was being done, such as "applying the rules of IPv4".
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Rules could not be saved or read.
    #[error("{doing} {}", .path.display())]
    Store {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// What the firewall says by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirewallEvent {
    /// Somebody else than this agent changed the kernel's rules.
    Changed {
        /// The kernel's generation of rules.
        generation: u32,
        /// The program and its process, as far as the kernel tells.
        by: Option<(String, u32)>,
    },
    /// Events may have been lost: look.
    Overrun,
}

/// The host's packet filter (iptables, ip6tables, ipset).
///
/// [`Self::validate`], [`Self::arm`], [`Self::apply`], [`Self::deviations`], [`Self::commit`] are called in this
/// order; between arming and committing, a watchdog outside this process reverts everything when its time is
/// over, whatever became of the process.
pub trait Firewall {
    /// What the rules must know of the host.
    fn surroundings(&self) -> impl Future<Output = Result<Surroundings, FirewallError>>;
    /// Applies the rules, sets included, in a throwaway network namespace.
    fn validate(&self, rules: &Ruleset) -> impl Future<Output = Result<(), FirewallError>>;
    /// Saves what is in force and starts the watchdog that restores it after `patience`.
    fn arm(&self, patience: Duration) -> impl Future<Output = Result<(), FirewallError>>;
    /// Sets, then the guarantee, then the filter, of both families. What is as it should be is left alone.
    /// Returns where the kernel differed before, in words, as [`Self::deviations`] would have.
    fn apply(&self, rules: &Ruleset) -> impl Future<Output = Result<Vec<String>, FirewallError>>;
    /// Where the kernel differs from the rules, hooks and their positions included; empty: nowhere.
    fn deviations(
        &self,
        rules: &Ruleset,
    ) -> impl Future<Output = Result<Vec<String>, FirewallError>>;
    /// Makes the rules the last good ones, durably, then stops the watchdog.
    fn commit(&self, rules: &Ruleset) -> impl Future<Output = Result<(), FirewallError>>;
    /// Restores what was saved and stops the watchdog; false when nothing was armed.
    fn revert(&self) -> impl Future<Output = Result<bool, FirewallError>>;
    /// Changes by others, until the receiver is dropped. The channel is bounded; when it is full, changes
    /// are merged into [`FirewallEvent::Overrun`], never lost.
    fn events(&self) -> mpsc::Receiver<FirewallEvent>;
}

/// What passes through the packet filter: counters, sets that live, connections.
pub trait Traffic {
    /// Counters of every rule of ours, both families.
    fn counters(&self) -> impl Future<Output = Result<Vec<RuleCounter>, FirewallError>>;
    /// Entries of a set; none when it does not exist.
    fn entries(&self, set: &str) -> impl Future<Output = Result<Vec<SetEntry>, FirewallError>>;
    /// Bans a source from SSH for a while; banning it again changes the time.
    fn ban(
        &self,
        source: Cidr,
        length: Duration,
    ) -> impl Future<Output = Result<(), FirewallError>>;
    /// Connections that `source` began.
    fn flows(&self, source: IpAddr) -> impl Future<Output = Result<Vec<Flow>, FirewallError>>;
    /// Ends connections: their next packet is judged as a new one's. Gone is success.
    fn cut(&self, flows: &[Flow]) -> impl Future<Output = Result<(), FirewallError>>;
}

/// A login that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginFailure {
    /// From where.
    pub source: IpAddr,
}

/// The log of logins (sshd's, in the journal or in /var/log/auth.log).
pub trait LoginLog {
    /// Failures from now on, until the receiver is dropped; reconnects by itself with back-off. The channel
    /// is bounded; what does not fit is dropped and counted in the log.
    fn failures(&self) -> mpsc::Receiver<LoginFailure>;
}

/// What the forwarder has seen of one instance, since it was started.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsCounters {
    /// Questions.
    pub queries: u64,
    /// Answered with NXDOMAIN because the name is not on the list.
    pub refused: u64,
    /// Answers that held a private or metadata address and were refused.
    pub rebinding: u64,
    /// Upstream gave no answer in time, or a wrong one.
    pub failed: u64,
    /// Names outside the list, newest last, with their addresses as far as they were resolved; at most 256.
    pub outside: Vec<(String, BTreeSet<IpAddr>)>,
}

/// Why the forwarder was not told.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", .path.display())]
pub struct ResolverError {
    /// What was being done.
    pub doing: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}

/// The forwarder of names, a process of its own (`clawd dns`).
pub trait Resolver {
    /// Tells it what every instance may resolve, durably: it may be down, and takes it up when it starts.
    fn publish(&self, policy: &DnsPolicy) -> impl Future<Output = Result<(), ResolverError>>;
    /// What it has seen; empty while it is down.
    fn counters(
        &self,
    ) -> impl Future<Output = Result<BTreeMap<InstanceName, DnsCounters>, ResolverError>>;
}

/// Why the coordinator cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// This host has not joined a fleet.
    #[error("this host has not joined a fleet")]
    NotJoined,
    /// Its identity cannot be used.
    #[error("cannot use the host's identity")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection could not be made.
    #[error("a new connection to the coordinator failed")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The way to the coordinator.
pub trait Uplink {
    /// Makes a new connection, TCP and TLS, and closes it: an established one proves nothing of the way out.
    fn prove(&self) -> impl Future<Output = Result<(), UplinkError>>;
}

/// Time and randomness, so that tests can hold them still.
pub trait Clock {
    /// Now, by the wall clock.
    fn now(&self) -> Timestamp;
    /// Ends after a duration, measured by the monotonic clock.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;
    /// A number uniform over all of `u64`.
    fn random(&self) -> u64;
}
