//! Puts the agent together and runs it: journal, machine, reconcile, session, service manager.

use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use claw_identity::{IdentityDir, IdentityDirError, Tls, provider};
use sd_notify::NotifyState;
use tokio::runtime::{Builder, Runtime};
use tokio::select;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::adapters::clock::SystemClock;
use crate::adapters::dns_forwarder::DnsForwarder;
use crate::adapters::docker::Docker;
use crate::adapters::files::{FilesSettings, GATEWAY_OWNER, InstanceFiles, SecretsMedium};
use crate::adapters::gateway::OpenClaw;
use crate::adapters::host::Machine as HostAdapter;
use crate::adapters::iptables::Iptables;
use crate::adapters::login_log::SystemLoginLog;
use crate::adapters::nginx::{Nginx, NginxSettings, every_address};
use crate::adapters::snapshots::{Launcher, SnapshotSettings, SnapshotWorker, Sockets};
use crate::adapters::uplink::CoordinatorUplink;
use crate::adapters::volumes::DirectoryVolumes;
use crate::agent::{Agent, Settings};
use crate::config::Config;
use crate::firewall::{WEB_PORT, web_ports};
use crate::joined;
use crate::journal::{Journal, OpenFailure};
use crate::machine::{Machine, Ports};
use crate::ports::{Clock as _, Proxy as _};
use crate::reconcile::HostLoop;
use crate::report::Board;
use crate::session::Session;
use claw_core::event::{EventKind, Severity};

/// How often progress is checked when no service manager asks for it.
const BEAT: Duration = Duration::from_secs(60);
/// Threads for what blocks: files and name resolution. Few, because each has a stack and an arena.
const BLOCKING_THREADS: usize = 4;

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be made.
    #[error("cannot make {}", path.display())]
    DataDir {
        /// Which.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] OpenFailure),
    /// The identity directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityDirError),
    /// Signals cannot be listened to.
    #[error("cannot listen to signals")]
    Signals(#[source] std::io::Error),
}

/// The runtime of every program of clawd: one thread, and few for what blocks.
///
/// # Errors
/// What the system says.
pub fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("clawd-blocking")
        .build()
}

/// Runs the agent until SIGTERM or SIGINT. Containers keep running afterwards.
///
/// Must run within a `LocalSet` of a current-thread runtime.
///
/// # Errors
/// [`StartError`].
pub async fn run(config: &Config) -> Result<(), StartError> {
    let mut stop = Stop::listen().map_err(StartError::Signals)?;
    make_data_dir(&config.data_dir)?;
    let identity = IdentityDir::open(joined::identity_dir(&config.data_dir))?;
    let machine = real_machine(config);
    let now = machine.clock().now();
    let (journal, recovered) = Journal::open(&config.data_dir, now)?;
    let agent = Rc::new(Agent {
        machine,
        journal,
        board: Board::default(),
        roster: Rc::default(),
        settings: settings(config),
    });
    let held = recovered.instances.len();
    agent.event(
        None,
        EventKind::AgentStarted,
        Severity::Info,
        format!("clawd {} holds {held} instances", env!("CARGO_PKG_VERSION")),
    );
    let (host, inbox) = HostLoop::new(Rc::clone(&agent), recovered);
    let session = session(&agent, inbox, identity, config);
    notify(&[NotifyState::Ready, NotifyState::Status("working from the journal")]);
    let beat = sd_notify::watchdog_enabled().map_or(BEAT, |timeout| timeout / 3);
    select! {
        biased;
        () = stop.requested() => {}
        () = host.run(beat, || notify(&[NotifyState::Watchdog])) => {}
        () = session.run(|state| notify(&[NotifyState::Status(&state.to_string())])) => {}
    }
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping; containers keep running");
    Ok(())
}

fn session<M: Machine>(
    agent: &Rc<Agent<M>>,
    inbox: crate::reconcile::Inbox,
    identity: IdentityDir,
    config: &Config,
) -> Session<M> {
    let (configured, data) = (config.coordinator.clone(), config.data_dir.clone());
    let coordinator = move || configured.clone().or_else(|| joined::coordinator(&data));
    let tls = Tls::new(provider::ring());
    Session::new(Rc::clone(agent), inbox, tls, identity, Box::new(coordinator))
}

fn settings(config: &Config) -> Settings {
    Settings {
        pool: config.pool,
        probe_healthy: config.probe_healthy,
        probe_failing: config.probe_failing,
        web_ports: web_ports(config),
        ..Settings::default()
    }
}

fn real_machine(config: &Config) -> impl Machine + use<> {
    let proxy = Nginx::start(NginxSettings {
        hosts: config.proxy_hosts.clone(),
        work: config.run_dir.join("nginx"),
        ..NginxSettings::debian(listen(config))
    });
    let gateway = OpenClaw::new(proxy.listen(), config.data_dir.clone());
    let files = InstanceFiles::new(FilesSettings {
        data: config.data_dir.clone(),
        secrets: config.run_dir.join("secrets"),
        medium: SecretsMedium::Memory,
        owner: GATEWAY_OWNER,
    });
    let launcher = Launcher::Systemd(Sockets::below(&config.run_dir));
    Ports {
        volumes: DirectoryVolumes::new(config.data_dir.clone(), GATEWAY_OWNER),
        snapshots: SnapshotWorker::new(SnapshotSettings::new(config.data_dir.clone(), launcher)),
        runtime: Docker::new(config.docker_socket.clone()),
        files,
        proxy,
        gateway,
        host: HostAdapter::new(config.data_dir.clone()),
        clock: SystemClock,
        firewall: Iptables::new(&config.data_dir, &config.run_dir),
        login_log: SystemLoginLog::default(),
        resolver: DnsForwarder::new(&config.data_dir, &config.run_dir),
        uplink: CoordinatorUplink::new(config.coordinator.clone(), config.data_dir.clone()),
    }
}

fn listen(config: &Config) -> Vec<SocketAddr> {
    config.proxy_listen.clone().unwrap_or_else(|| every_address(WEB_PORT))
}

fn make_data_dir(path: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| StartError::DataDir { path: path.to_owned(), source })
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// The signals that end the agent.
struct Stop {
    term: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn requested(&mut self) {
        select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
