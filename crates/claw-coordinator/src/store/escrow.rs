//! The passwords of instances' repositories, sealed, so that a host that is gone takes no data with it.

use claw_core::name::InstanceName;
use claw_core::stamp::Digest;
use claw_identity::seal::SealKey;
use claw_proto::convert::backup::escrow::{Escrow, escrow_from_wire, escrow_to_wire};
use claw_proto::node::v1 as node;
use claw_store::rusqlite::{Connection, OptionalExtension as _};

use crate::refusal::{Fault, Refusal};

/// Stores the escrow of a repository that has a row; the one before is replaced.
pub(crate) fn store(
    connection: &Connection,
    seal: &SealKey,
    uid: &str,
    escrow: &Escrow,
) -> Result<Digest, Refusal> {
    let plain = claw_proto::encode(&escrow_to_wire(escrow));
    let sealed = seal.seal(&context(uid), &plain, &mut rand::rng()).map_err(Fault::Seal)?;
    let digest = escrow.digest();
    connection
        .prepare_cached("UPDATE repository SET escrow = ?2, escrow_digest = ?3 WHERE uid = ?1")?
        .execute((uid, sealed, digest.as_bytes().as_slice()))?;
    Ok(digest)
}

/// The escrow of a repository, if there is one.
///
/// # Errors
/// [`Refusal::Internal`] when it does not open.
pub fn load(
    connection: &Connection,
    seal: &SealKey,
    uid: &str,
    name: &InstanceName,
) -> Result<Option<Escrow>, Refusal> {
    let sealed: Option<Option<Vec<u8>>> = connection
        .prepare_cached("SELECT escrow FROM repository WHERE uid = ?1")?
        .query_row([uid], |row| row.get(0))
        .optional()?;
    let Some(sealed) = sealed.flatten() else { return Ok(None) };
    let what = || format!("the repository of instances/{name}");
    let opened = seal
        .open(&context(uid), &sealed)
        .map_err(|source| Fault::Sealed { what: what(), source })?;
    let wire: node::RepositoryEscrow =
        claw_proto::decode(&opened).map_err(|source| Fault::Stored { what: what(), source })?;
    let escrow = escrow_from_wire(&wire).map_err(|faults| Refusal::damaged(what(), faults))?;
    Ok(Some(escrow))
}

/// What it is sealed for: one instance's row, and no other's.
fn context(uid: &str) -> Vec<u8> {
    format!("instances/{uid}/escrow").into_bytes()
}
