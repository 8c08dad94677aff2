//! A host that knows more than the database: the database was restored, and the epoch must rise.
//!
//! An agent never takes an older state, nor another one under the same generation. When its
//! greeting shows a stamp that the database does not lie behind, that host's epoch rises above it, so
//! that the state is new again. Removals stay guarded by `confirm_removal`.

use claw_core::event::Severity;
use claw_core::name::HostName;
use claw_core::stamp::{Epoch, Generation, Judgement, Stamp, judge};

use super::Fleet;
use crate::refusal::{Precondition, Refusal};
use crate::store::audit::{self, Entry};
use crate::store::events::{self, OwnEvent};
use crate::store::{hosts, instances};

/// Counters beyond this cannot come from us; they would leave no room above them.
const PLAUSIBLE: u64 = 1 << 62;

impl Fleet {
    /// Raises the host's epoch if what it has persisted would make it refuse our state.
    ///
    /// # Errors
    /// [`Refusal::Precondition`] when the stamp is implausible, [`Refusal::NotFound`].
    pub async fn outrank(&self, host: &HostName, persisted: &Stamp) -> Result<(), Refusal> {
        if persisted.epoch.0 >= PLAUSIBLE || persisted.generation.0 >= PLAUSIBLE {
            return Err(Refusal::precondition(
                Precondition::ImplausibleStamp,
                format!("hosts/{host}"),
                format!("hosts/{host} reports the state {persisted}, which cannot be"),
            ));
        }
        let wanted = self.store.read(|connection, _keys| hosts::load(connection, host))?.stamp;
        if !refused(persisted, &wanted) {
            return Ok(());
        }
        tracing::warn!(%host, %persisted, %wanted, "the host knows more than the database");
        let (host, persisted, now) = (host.clone(), *persisted, self.clock.now());
        self.store
            .write(move |connection, _keys| {
                let wanted = hosts::load(connection, &host)?.stamp;
                if !refused(&persisted, &wanted) {
                    return Ok(());
                }
                let raised = Stamp {
                    epoch: Epoch(persisted.epoch.0.max(wanted.epoch.0).saturating_add(1)),
                    generation: Generation(
                        persisted.generation.0.max(wanted.generation.0).saturating_add(1),
                    ),
                    digest: wanted.digest,
                };
                hosts::set_stamp(connection, &host, &raised)?;
                instances::set_generation_of_host(connection, &host, raised.generation)?;
                let message = format!(
                    "it has state {persisted} where the database has {wanted}: was the database \
                     restored? the state is sent again as {raised}"
                );
                let event = OwnEvent {
                    kind: "epoch_raised",
                    severity: Severity::Warning,
                    message: message.clone(),
                };
                events::append_own(connection, &host, now, &event)?;
                let entry = Entry {
                    principal: "system".to_owned(),
                    source: String::new(),
                    method: "claw.node.v1.NodeService/Session".to_owned(),
                    resource: format!("hosts/{host}"),
                    summary: message,
                };
                audit::append(connection, now, &entry)
            })
            .await
    }
}

fn refused(persisted: &Stamp, wanted: &Stamp) -> bool {
    matches!(judge(Some(persisted), wanted), Judgement::Refuse(_))
}
