//! The process: takes up the policy whenever its file changes, keeps a socket open for every instance, and
//! writes down what was counted.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::InstanceNetwork;
use claw_core::firewall::{DnsPolicy, DnsRules};
use claw_core::name::InstanceName;
use sd_notify::NotifyState;
use tokio::select;
use tokio::time::{MissedTickBehavior, interval};

use super::Settings;
use super::budget::Budget;
use super::instance::{Instance, Shared};
use super::listen::{Limit, Listener, Place};
use super::sets::Sets;
use super::stored::{Durability, StoredError, decode_policy, encode_counters, replace};
use super::watch::Watch;
use crate::logging::chain;

/// How often counters are written, at most, and what failed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// A larger file is no policy: 254 instances with lists of 1 000 names take about 15 MiB.
const MAX_POLICY_BYTES: u64 = 16 * 1024 * 1024;

/// Why the forwarder cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Signals cannot be listened to.
    #[error("cannot listen to signals")]
    Signals(#[source] io::Error),
    /// The kernel's sets cannot be reached.
    #[error("cannot reach the kernel's sets of addresses")]
    Sets(#[source] io::Error),
    /// The policy's directory cannot be watched.
    #[error("cannot watch {}", path.display())]
    Watch {
        /// The policy's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why a policy was not taken up.
#[derive(Debug, thiserror::Error)]
enum PolicyError {
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    #[error("it is larger than {MAX_POLICY_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    Stored(#[from] StoredError),
}

/// One instance with its sockets.
struct Served<S> {
    instance: Rc<Instance<S>>,
    place: Place,
    listener: Option<Listener>,
    /// The last failure to bind was said; it is not repeated.
    said: bool,
}

/// The process.
pub(super) struct Server<S> {
    policy: PathBuf,
    counters: PathBuf,
    place: fn(InstanceNetwork) -> Place,
    shared: Rc<Shared<S>>,
    limit: Limit,
    watch: Watch,
    served: BTreeMap<InstanceName, Served<S>>,
    /// The counters' file lacks something.
    stale: bool,
}

impl<S: Sets> Server<S> {
    /// Watches the policy's file; answers nobody yet.
    pub(super) fn new(settings: Settings, sets: S) -> Result<Self, ServeError> {
        let Settings { policy, counters, upstreams, place } = settings;
        let watch = make_parent(&policy).and_then(|()| Watch::start(&policy));
        let watch = watch.map_err(|source| ServeError::Watch { path: policy.clone(), source })?;
        Ok(Self {
            policy,
            counters,
            place,
            shared: Rc::new(Shared { upstreams, sets }),
            limit: Limit::default(),
            watch,
            served: BTreeMap::new(),
            stale: true,
        })
    }

    /// Answers until it is dropped.
    pub(super) async fn run(
        mut self,
        notify: impl Fn(NotifyState<'_>),
    ) -> Result<Infallible, ServeError> {
        self.load(&notify).await;
        self.write_counters();
        notify(NotifyState::Ready);
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                () = self.watch.changed() => self.load(&notify).await,
                _ = tick.tick() => {
                    self.listen();
                    self.settle();
                    self.write_counters();
                    notify(NotifyState::Watchdog);
                }
            }
        }
    }

    /// Takes up the policy as its file says it now; a bad file changes nothing.
    async fn load(&mut self, notify: &impl Fn(NotifyState<'_>)) {
        match read_policy(&self.policy) {
            Ok(Some(policy)) => {
                self.take_up(&policy).await;
                let count = self.served.len();
                tracing::info!(instances = count, "policy in force");
                notify(NotifyState::Status(&format!("answering {count} instances")));
            }
            Ok(None) if self.served.is_empty() => notify(NotifyState::Status("no policy yet")),
            Ok(None) => tracing::warn!("the policy's file is gone; the policy stays in force"),
            Err(error) => {
                let (path, error) = (self.policy.display(), chain(&error));
                tracing::error!(%path, error, "bad policy; the previous one stays in force");
                notify(NotifyState::Status("the policy's file is bad, see the log"));
            }
        }
    }

    async fn take_up(&mut self, policy: &DnsPolicy) {
        let stays = |name: &InstanceName, network: InstanceNetwork| {
            policy.instances.get(name).is_some_and(|rules| rules.network == network)
        };
        let leaving = self.served.iter().filter(|(name, s)| !stays(name, s.instance.network()));
        let leaving: Vec<InstanceName> = leaving.map(|(name, _served)| name.clone()).collect();
        for name in leaving {
            if let Some(served) = self.served.remove(&name) {
                // First, so that the address is free for the next.
                served.stop().await;
            }
            self.stale = true;
        }
        let budget = Budget::of(policy.instances.len());
        for (name, rules) in &policy.instances {
            match self.served.get(name) {
                Some(served) => served.instance.set_rules(rules, budget),
                None => {
                    let served = self.serve(rules, budget);
                    self.served.insert(name.clone(), served);
                }
            }
        }
        self.listen();
        for served in self.served.values() {
            served.settle();
        }
    }

    fn serve(&self, rules: &DnsRules, budget: Budget) -> Served<S> {
        Served {
            instance: Rc::new(Instance::new(Rc::clone(&self.shared), rules, budget)),
            place: (self.place)(rules.network),
            listener: None,
            said: false,
        }
    }

    /// Binds what is not bound.
    fn listen(&mut self) {
        for (name, served) in &mut self.served {
            served.listen(name, &self.limit);
        }
    }

    /// Tries again what could not be cleared or taken back.
    fn settle(&self) {
        for served in self.served.values() {
            if served.instance.is_unsettled() {
                served.settle();
            }
        }
    }

    /// Writes the counters if something was counted.
    fn write_counters(&mut self) {
        for served in self.served.values() {
            self.stale |= served.instance.take_changed();
        }
        if !self.stale {
            return;
        }
        let counters = self.served.iter();
        let counters = counters.map(|(name, served)| (name.clone(), served.instance.counters()));
        let written = encode_counters(counters.collect())
            .map_err(io::Error::other)
            .and_then(|text| replace(&self.counters, &text, Durability::Volatile));
        match written {
            Ok(()) => self.stale = false,
            Err(error) => {
                tracing::warn!(path = %self.counters.display(), %error, "cannot write counters");
            }
        }
    }
}

/// Nobody shall take the counters of a forwarder that is down for news.
impl<S> Drop for Server<S> {
    fn drop(&mut self) {
        let _absent = std::fs::remove_file(&self.counters);
    }
}

impl<S: Sets> Served<S> {
    fn listen(&mut self, name: &InstanceName, limit: &Limit) {
        if self.listener.is_some() {
            return;
        }
        match Listener::start(&self.instance, self.place, limit) {
            Ok(listener) => {
                self.listener = Some(listener);
                self.said = false;
            }
            Err(error) if !self.said => {
                let address: SocketAddr = self.place.listen;
                tracing::error!(instance = %name, %address, %error, "cannot listen, trying again");
                self.said = true;
            }
            Err(_said) => {}
        }
    }

    /// Brings the sets in line with the rules.
    fn settle(&self) {
        if let Err(error) = self.instance.settle() {
            let slot = self.instance.network().slot().number();
            tracing::warn!(slot, error = chain(&error), "a set may hold too much, trying again");
        }
    }

    async fn stop(self) {
        if let Some(listener) = self.listener {
            listener.stop().await;
        }
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The policy of a file; `None` if there is none.
fn read_policy(path: &Path) -> Result<Option<DnsPolicy>, PolicyError> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_POLICY_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_POLICY_BYTES {
        return Err(PolicyError::TooLarge);
    }
    Ok(Some(decode_policy(&bytes)?))
}
