//! What a session tells of snapshots: how they stand, and the keys of repositories.
//!
//! Each report is whole, so only the newest of an instance matters. Keys are told until the coordinator says
//! that it holds exactly them.

use std::collections::BTreeSet;

use claw_core::name::InstanceName;
use claw_proto::convert::backup::backup_status_to_wire;
use claw_proto::convert::backup::escrow::{Escrow, escrow_ack_from_wire, escrow_to_wire};
use claw_proto::node::v1::EscrowAck;
use claw_proto::node::v1::session_request::Message as Up;

use crate::logging::chain;
use crate::ports::RepositoryKeys;
use crate::report::Board;

/// What one session has told already.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Every report up to this change of the board.
    backups: u64,
    /// Keys of these.
    keys: BTreeSet<InstanceName>,
}

impl Told {
    /// The next message; `None` when everything is told.
    pub(super) fn next(&mut self, board: &Board) -> Option<Up> {
        if let Some((count, name, report)) = board.backups_since(self.backups).into_iter().next() {
            self.backups = count;
            return Some(Up::BackupStatus(backup_status_to_wire(&name, &report)));
        }
        let mut keys = board.unescrowed().into_iter();
        let (name, keys) = keys.find(|(name, _)| !self.keys.contains(name))?;
        self.keys.insert(name.clone());
        Some(Up::RepositoryEscrow(escrow_to_wire(&escrow(name, keys))))
    }
}

/// The coordinator holds keys: they need not be told again if they are the right ones.
pub(super) fn acknowledged(board: &Board, ack: &EscrowAck) {
    let (name, digest) = match escrow_ack_from_wire(ack) {
        Ok(ack) => ack,
        Err(error) => return tracing::warn!(error = chain(&error), "an answer is not understood"),
    };
    let told = board.unescrowed().remove(&name).map(|keys| escrow(name.clone(), keys).digest());
    if told == Some(digest) {
        board.escrowed(&name);
    }
}

fn escrow(instance: InstanceName, keys: RepositoryKeys) -> Escrow {
    Escrow { instance, secret: keys.secret, recovery: keys.recovery }
}
