//! Commands that carry a snapshot or a repository away or here, as errands of the snapshots' loop.

use std::rc::Rc;

use claw_core::name::SnapshotName;
use claw_proto::convert::backup::escrow::escrow_from_wire;
use claw_proto::convert::backup::offsite_storage_from_wire;
use claw_proto::node::v1::{RepositoryEscrow, command};
use tonic::transport::Channel;

use super::transfer::passage;
use crate::agent::Agent;
use crate::machine::Machine;
use crate::ports::RepositoryKeys;
use crate::reconcile::{Errand, Fetch};

/// Most bytes of a path in a bucket, as in `OffsiteReport`.
const MAX_PATH: usize = 1024;
/// Most bytes of a transfer's id.
const MAX_TRANSFER: usize = 128;

/// Of which instance, and what; none: it is another kind of command.
pub(super) type Asked = Option<(String, Errand)>;

/// Reads a command; its transfer goes through this connection.
///
/// # Errors
/// What is wrong with it.
pub(super) fn errand<M: Machine>(
    agent: &Rc<Agent<M>>,
    channel: &Channel,
    command: &command::Command,
) -> Result<Asked, &'static str> {
    let way = |transfer: &str| {
        let valid = (1..=MAX_TRANSFER).contains(&transfer.len());
        let named = valid.then(|| passage(agent, channel.clone(), transfer.to_owned()));
        named.ok_or("the transfer's id is invalid")
    };
    let (instance, errand) = match command {
        command::Command::ExportSnapshot(export) => {
            let errand = Errand::Export(snapshot(&export.name)?, way(&export.transfer)?);
            (&export.instance, errand)
        }
        command::Command::ImportArchive(import) => {
            let errand = Errand::Import(snapshot(&import.name)?, way(&import.transfer)?);
            (&import.instance, errand)
        }
        command::Command::SendRepository(send) => {
            (&send.instance, Errand::Send(way(&send.transfer)?))
        }
        command::Command::ReceiveRepository(receive) => {
            let keys = keys(&receive.instance, receive.keys.as_ref())?;
            (&receive.instance, Errand::Receive(keys, way(&receive.transfer)?))
        }
        command::Command::FetchRepository(fetch) => {
            let storage = fetch.storage.as_ref().map(offsite_storage_from_wire).transpose();
            let storage = storage.map_err(|_invalid| "the storage is invalid")?;
            let keys = keys(&fetch.instance, fetch.keys.as_ref())?;
            if fetch.path.is_empty() || fetch.path.len() > MAX_PATH {
                return Err("the path in the storage is invalid");
            }
            let path = fetch.path.clone();
            (&fetch.instance, Errand::Fetch(Box::new(Fetch { storage, path, keys })))
        }
        command::Command::DiscardRepository(discard) => (&discard.instance, Errand::Discard),
        _ => return Ok(None),
    };
    Ok(Some((instance.clone(), errand)))
}

/// A snapshot's name.
///
/// # Errors
/// It is none.
pub(super) fn snapshot(text: &str) -> Result<SnapshotName, &'static str> {
    SnapshotName::parse(text).map_err(|_invalid| "the snapshot's name is invalid")
}

/// Those of this very instance.
fn keys(instance: &str, wire: Option<&RepositoryEscrow>) -> Result<RepositoryKeys, &'static str> {
    let wire = wire.ok_or("the repository's keys are missing")?;
    let escrow = escrow_from_wire(wire).map_err(|_invalid| "the repository's keys are invalid")?;
    if escrow.instance.as_str() != instance {
        return Err("the repository's keys are another instance's");
    }
    Ok(RepositoryKeys { secret: escrow.secret, recovery: escrow.recovery })
}
