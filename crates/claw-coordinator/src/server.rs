//! A running coordinator: started from a configuration, stopped with a deadline.
//!
//! Start here to run one in a process of your own: [`Coordinator::start`] binds (port 0 works),
//! [`Coordinator::address`] says where, [`Coordinator::shutdown`] drains.

mod maintenance;

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use claw_identity::{AuthorityError, CertificateAuthority};
use claw_proto::convert::firewall::detail::MAX_DETAIL_BYTES;
use claw_proto::fleet::v1::audit_service_server::AuditServiceServer;
use claw_proto::fleet::v1::host_service_server::HostServiceServer;
use claw_proto::fleet::v1::instance_service_server::InstanceServiceServer;
use claw_proto::fleet::v1::join_token_service_server::JoinTokenServiceServer;
use claw_proto::fleet::v1::snapshot_service_server::SnapshotServiceServer;
use claw_proto::node::v1::enrolment_service_server::EnrolmentServiceServer;
use claw_proto::node::v1::node_service_server::NodeServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::audit::AuditApi;
use crate::api::enrolment::EnrolmentApi;
use crate::api::hosts::HostApi;
use crate::api::instances::InstanceApi;
use crate::api::node::NodeApi;
use crate::api::snapshots::SnapshotApi;
use crate::api::tokens::JoinTokenApi;
use crate::clock::Clock;
use crate::config::Config;
use crate::connection::Shared;
use crate::denylist::Denylist;
use crate::fleet::Fleet;
use crate::fleet::migration::driver::Driver;
use crate::listener::Listener;
use crate::registry::Registry;
use crate::routes::{Routes, RoutesBuilder};
use crate::server_certificate::{ServerCertificateError, ServerCertificates};
use crate::store::epoch::HighWater;
use crate::store::{Store, StoreError, certificates, epoch, host_state, hosts};
use crate::transfers::Transfers;
use crate::watch::Hub;
use maintenance::Maintenance;

/// Whose health can be asked after; the empty name is the whole server (grpc.health.v1).
const HEALTH: [&str; 6] = [
    "",
    "claw.fleet.v1.AuditService",
    "claw.fleet.v1.HostService",
    "claw.fleet.v1.InstanceService",
    "claw.fleet.v1.JoinTokenService",
    "claw.fleet.v1.SnapshotService",
];
/// Directory of the authority below the data directory.
pub const AUTHORITY: &str = "ca";
/// File that keeps two coordinators off one data directory.
const LOCK: &str = "lock";
/// Largest request of the API; a spec holds 256 KiB.
const API_MESSAGE: usize = 1024 * 1024;
/// Largest message of an agent: a firewall's detail. A status of thirty instances has 100 KiB.
const NODE_MESSAGE: usize = MAX_DETAIL_BYTES + 64 * 1024;
/// Largest request of a stranger.
const ENROLMENT_MESSAGE: usize = 16 * 1024;

/// A running coordinator.
#[derive(Debug)]
pub struct Coordinator {
    address: SocketAddr,
    fleet: Fleet,
    config: Config,
    draining: watch::Sender<bool>,
    health: HealthReporter,
    maintenance: Maintenance,
    listener: JoinHandle<()>,
    background: JoinHandle<()>,
    driver: JoinHandle<()>,
    _lock: File,
}

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error("cannot use {}", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another coordinator runs on it.
    #[error("another coordinator uses {}", path.display())]
    Locked {
        /// Which.
        path: PathBuf,
    },
    /// The store.
    #[error("cannot open the store")]
    Store(#[from] StoreError),
    /// The authority.
    #[error("cannot load the authority")]
    Authority(#[from] AuthorityError),
    /// The server's certificate.
    #[error("cannot get a server certificate")]
    Certificate(#[from] ServerCertificateError),
    /// The socket.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Reflection.
    #[error("cannot serve reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Coordinator {
    /// Opens the data directory, binds, and serves.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config, clock: Clock) -> Result<Self, StartError> {
        let lock = lock(&config.data_dir)?;
        let fleet = open_fleet(&config, clock).await?;
        let server_names = server_names(&config, &fleet)?;
        let certificates = ServerCertificates {
            data_dir: &config.data_dir,
            authority: &fleet.authority,
            names: &server_names,
            clock: &fleet.clock,
        };
        let tls = Arc::new(ArcSwap::from_pointee(certificates.config()?));
        let (health, routes) = routes(&fleet, &config).await?;
        let listen = |source| StartError::Listen { address: config.listen, source };
        let socket = TcpListener::bind(config.listen).await.map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let draining = watch::Sender::new(false);
        let listener = Listener {
            socket,
            tls: Arc::clone(&tls),
            trust_domain: fleet.authority.trust_domain().clone(),
            limits: config.listener,
            shared: Shared {
                routes,
                denylist: Arc::clone(&fleet.denylist),
                draining: draining.subscribe(),
                clock: fleet.clock.clone(),
                lifetimes: config.lifetimes,
            },
        };
        let maintenance = Maintenance {
            fleet: fleet.clone(),
            data_dir: config.data_dir.clone(),
            server_names,
            tls,
            silence: config.terms.heartbeat_interval * 3,
        };
        let listener = tokio::spawn(listener.run(draining.subscribe()));
        let background = tokio::spawn(maintenance.clone().run());
        let driver = tokio::spawn(Driver::new(fleet.clone()).run());
        tracing::info!(%address, "serving");
        Ok(Self {
            address,
            fleet,
            config,
            draining,
            health,
            maintenance,
            listener,
            background,
            driver,
            _lock: lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves, for tests and measurements.
    #[must_use]
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Reads certificates and denylist again.
    pub async fn reload(&self) {
        self.maintenance.reload().await;
    }

    /// Tells everybody to go, waits for them up to the configured deadline, and ends.
    pub async fn shutdown(self) {
        tracing::info!("draining");
        for service in HEALTH {
            self.health.set_service_status(service, ServingStatus::NotServing).await;
        }
        self.draining.send_replace(true);
        self.driver.abort();
        self.fleet.transfers.close();
        let abort = self.listener.abort_handle();
        if tokio::time::timeout(self.config.drain, self.listener).await.is_err() {
            tracing::warn!("connections are left after the deadline");
            abort.abort();
        }
        self.background.abort();
        self.maintenance.save().await;
        tracing::info!("ended");
    }
}

fn lock(data_dir: &std::path::Path) -> Result<File, StartError> {
    let path = data_dir.join(LOCK);
    let failed = |source| StartError::DataDir { path: data_dir.to_owned(), source };
    if !data_dir.join(crate::store::DATABASE).exists() {
        let path = data_dir.join(crate::store::DATABASE);
        return Err(StoreError::Absent { path }.into());
    }
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::Locked { path: data_dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

async fn open_fleet(config: &Config, clock: Clock) -> Result<Fleet, StartError> {
    let authority = CertificateAuthority::load(&config.data_dir.join(AUTHORITY))?;
    let store = Store::open(&config.data_dir, config.tiers.clone())?;
    let seen = HighWater::load(&config.data_dir)?;
    let started = store.write(move |connection, _keys| epoch::start(connection, seen)).await;
    let started = started.map_err(StoreError::from)?;
    if started.restored {
        tracing::warn!("the database was restored from an older copy: all epochs rise");
    }
    started.high_water.save(&config.data_dir)?;
    let changed = store.write(host_state::refresh_all).await.map_err(StoreError::from)?;
    if changed > 0 {
        tracing::info!(hosts = changed, "desired states have another form than before");
    }
    let denied = store
        .read(|connection, _keys| certificates::denied(connection))
        .map_err(StoreError::from)?;
    let joined = store.read(|connection, _keys| hosts::joined(connection));
    let joined = joined.map_err(StoreError::from)?;
    let registry = Registry::new(clock.now().after(config.grace)).expecting(joined);
    Ok(Fleet {
        registry: Arc::new(registry),
        hub: Arc::new(Hub::new(config.watches)),
        transfers: Transfers::default(),
        migrations: Arc::default(),
        denylist: Arc::new(Denylist::new(denied)),
        authority: Arc::new(authority),
        agent_lifetime: config.agent_lifetime,
        store,
        clock,
    })
}

fn server_names(config: &Config, fleet: &Fleet) -> Result<Vec<String>, StartError> {
    if !config.server_names.is_empty() {
        return Ok(config.server_names.clone());
    }
    let names = fleet.store.read(|connection, _keys| epoch::server_names(connection));
    Ok(names.map_err(StoreError::from)?)
}

async fn routes(fleet: &Fleet, config: &Config) -> Result<(HealthReporter, Routes), StartError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in HEALTH {
        health.set_service_status(service, ServingStatus::Serving).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(claw_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let node = NodeApi::new(fleet.clone(), config.terms, config.admission);
    let fleet = || fleet.clone();
    let routes = RoutesBuilder::default()
        .with(
            EnrolmentServiceServer::new(EnrolmentApi::new(fleet()))
                .max_decoding_message_size(ENROLMENT_MESSAGE),
        )
        .with(NodeServiceServer::new(node).max_decoding_message_size(NODE_MESSAGE))
        .with(
            HostServiceServer::new(HostApi { fleet: fleet() })
                .max_decoding_message_size(API_MESSAGE),
        )
        .with(
            InstanceServiceServer::new(InstanceApi { fleet: fleet() })
                .max_decoding_message_size(API_MESSAGE),
        )
        .with(
            SnapshotServiceServer::new(SnapshotApi { fleet: fleet() })
                .max_decoding_message_size(API_MESSAGE),
        )
        .with(
            JoinTokenServiceServer::new(JoinTokenApi { fleet: fleet() })
                .max_decoding_message_size(API_MESSAGE),
        )
        .with(
            AuditServiceServer::new(AuditApi { fleet: fleet() })
                .max_decoding_message_size(API_MESSAGE),
        )
        .with(health_service)
        .with(reflection().build_v1()?)
        .with(reflection().build_v1alpha()?)
        .build();
    Ok((health, routes))
}
