//! What the coordinator does by itself: forgetting old rows, renewing its certificate, noting who
//! has gone, and keeping the high-water mark.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use claw_core::name::HostName;
use claw_core::time::Timestamp;
use rustls::ServerConfig;

use crate::clock::before;
use crate::fleet::Fleet;
use crate::refusal::Refusal;
use crate::server_certificate::ServerCertificates;
use crate::status::Chain;
use crate::store::{certificates, hosts, requests, snapshots, tokens};

/// How often certificates and denylist on disk are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How many looks lie between two writes of the high-water mark.
const SAVE_EVERY: u32 = 6;
/// How many looks lie between two clean-ups.
const CLEAN_EVERY: u32 = 720;
/// How long ended tokens and certificates stay.
const ENDED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// The background work of one coordinator.
#[derive(Debug, Clone)]
pub(super) struct Maintenance {
    pub(super) fleet: Fleet,
    pub(super) data_dir: PathBuf,
    pub(super) server_names: Vec<String>,
    pub(super) tls: Arc<ArcSwap<ServerConfig>>,
    /// A host is gone after this much silence.
    pub(super) silence: Duration,
}

impl Maintenance {
    /// Runs until it is aborted.
    pub(super) async fn run(self) {
        let mut timer = tokio::time::interval(LOOK);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut generation = self.generation();
        for round in 0_u32.. {
            timer.tick().await;
            let newest = self.generation();
            if newest != generation {
                self.reload_tls().await;
                generation = newest;
            }
            self.reload_denylist();
            let gone = self.fleet.registry.take_gone(self.fleet.clock.now(), self.silence);
            self.note_gone(gone).await;
            if round % SAVE_EVERY == 0 {
                self.save_high_water().await;
            }
            if round % CLEAN_EVERY == 0 {
                self.renew().await;
                self.clean().await;
            }
        }
    }

    /// Certificates and denylist, at once.
    pub(super) async fn reload(&self) {
        self.reload_tls().await;
        self.reload_denylist();
    }

    /// The last write of a coordinator that ends.
    pub(super) async fn save(&self) {
        self.note_gone(self.fleet.registry.unsaved()).await;
        self.save_high_water().await;
    }

    fn generation(&self) -> Option<String> {
        let newest = self.certificates().newest_generation();
        newest.inspect_err(|error| warn("cannot look at server certificates", error)).ok()?
    }

    async fn renew(&self) {
        match self.certificates().renewal_is_due() {
            Ok(true) => self.reload_tls().await,
            Ok(false) => {}
            Err(error) => warn("cannot look at the server certificate", &error),
        }
    }

    /// Loads the newest certificate; makes one when it is due.
    async fn reload_tls(&self) {
        let this = self.clone();
        let loaded = tokio::task::spawn_blocking(move || this.certificates().config()).await;
        match loaded {
            Ok(Ok(config)) => {
                self.tls.store(Arc::new(config));
                tracing::info!("server certificate loaded");
            }
            Ok(Err(error)) => warn("cannot load the server certificate; the old one stays", &error),
            Err(error) => warn("cannot load the server certificate; the old one stays", &error),
        }
    }

    /// `claw-coordinator deny` writes to the database from another process.
    fn reload_denylist(&self) {
        let denied = self.fleet.store.read(|connection, _keys| certificates::denied(connection));
        match denied {
            Ok(denied) => {
                let denied: Vec<_> = denied.into_iter().collect();
                self.fleet.denylist.add(&denied);
            }
            Err(error) => warn("cannot read the denylist", &error),
        }
    }

    async fn note_gone(&self, gone: Vec<(HostName, Timestamp)>) {
        if gone.is_empty() {
            return;
        }
        let noted = self.fleet.store.write(move |connection, _keys| {
            gone.iter().try_for_each(|(host, seen)| hosts::set_last_seen(connection, host, *seen))
        });
        if let Err(error) = noted.await {
            warn("cannot note when hosts were last seen", &error);
        }
    }

    async fn save_high_water(&self) {
        let this = self.clone();
        let saved = tokio::task::spawn_blocking(move || {
            let mark = this.fleet.store.high_water();
            mark.map(|mark| mark.save(&this.data_dir))
        });
        match saved.await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => warn("cannot save the high-water mark", &error),
            Ok(Err(error)) => warn("cannot read the high-water mark", &error),
            Err(error) => warn("cannot save the high-water mark", &error),
        }
    }

    async fn clean(&self) {
        let now = self.fleet.clock.now();
        let cleaned = self.fleet.store.write(move |connection, _keys| {
            requests::delete_old(connection, before(now, requests::KEPT))?;
            tokens::delete_old(connection, before(now, ENDED_KEPT))?;
            certificates::delete_old(connection, before(now, ENDED_KEPT))?;
            snapshots::delete_old(connection, now)?;
            Ok::<(), Refusal>(())
        });
        if let Err(error) = cleaned.await {
            warn("cannot clean the database", &error);
        }
    }

    fn certificates(&self) -> ServerCertificates<'_> {
        ServerCertificates {
            data_dir: &self.data_dir,
            authority: &self.fleet.authority,
            names: &self.server_names,
            clock: &self.fleet.clock,
        }
    }
}

fn warn(what: &str, error: &dyn std::error::Error) {
    tracing::warn!(error = %Chain(error), "{what}");
}
