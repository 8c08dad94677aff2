//! Where hosts copy their repositories to. Set per host, so that a host's key opens only what is its own.

use claw_core::name::HostName;
use claw_core::offsite::OffsiteStorage;
use claw_proto::convert::backup::{offsite_storage_from_wire, offsite_storage_to_wire};
use claw_proto::node::v1 as node;
use claw_store::rusqlite::Connection;

use super::hosts::Answer;
use super::{Fleet, check_etag};
use crate::refusal::Refusal;
use crate::store::hosts::{self, StoredOffsite};
use crate::store::mutation::{Call, Effects};
use crate::store::{Keys, host_state};

impl Fleet {
    /// Sets or clears where a host copies its repositories to.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], [`Refusal::NotFound`], [`Refusal::StaleEtag`].
    pub async fn set_host_offsite<R: Send + 'static>(
        &self,
        call: Call,
        name: HostName,
        etag: String,
        storage: Option<node::OffsiteStorage>,
        answer: Answer<R>,
    ) -> Result<R, Refusal> {
        let storage = storage.as_ref().map(checked).transpose()?;
        let now = call.now;
        let job = move |connection: &Connection, keys: &Keys| {
            let mut host = hosts::load(connection, &name)?;
            check_etag(&format!("hosts/{name}"), &etag, &host.etag())?;
            if host.offsite_storage(&keys.seal)? == storage {
                return Ok((host, "nothing changed".to_owned(), Effects::default()));
            }
            let summary = summary(storage.as_ref());
            let wire = storage.as_ref().map(offsite_storage_to_wire);
            let sealed = wire.map(|wire| StoredOffsite::seal(&host.uid, &wire, &keys.seal));
            host.offsite = sealed.transpose()?;
            host.revision = host.revision.saturating_add(1);
            host.updated = now;
            hosts::update(connection, &host)?;
            host_state::advance(connection, keys, &host)?;
            let host = hosts::load(connection, &name)?;
            Ok((host, summary, Effects { hosts: [name].into(), ..Effects::default() }))
        };
        self.change_host(call, answer, job).await
    }
}

fn checked(wire: &node::OffsiteStorage) -> Result<OffsiteStorage, Refusal> {
    offsite_storage_from_wire(wire).map_err(|faults| Refusal::Invalid(faults.below("storage")))
}

/// For the audit; the keys are no part of it.
fn summary(storage: Option<&OffsiteStorage>) -> String {
    match storage {
        Some(storage) => format!("repositories are copied to {storage}"),
        None => "repositories are copied nowhere".to_owned(),
    }
}
