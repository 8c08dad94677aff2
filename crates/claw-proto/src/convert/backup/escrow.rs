//! What it takes to read an instance's repository when its host is gone.

use claw_core::name::InstanceName;
use claw_core::spec::Secret;
use claw_core::stamp::Digest;

use crate::convert::violation::Violations;
use crate::node::v1 as node;

/// Most bytes of either password.
const MAX_PASSWORD: usize = 256;

/// The passwords of an instance's repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escrow {
    /// Whose.
    pub instance: InstanceName,
    /// The agent's own, 64 hexadecimal digits: a password for restic.
    pub secret: Secret,
    /// For people, with plain restic.
    pub recovery: Secret,
}

impl Escrow {
    /// Says that exactly this is stored, or is to be.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&crate::encode(&escrow_to_wire(self)))
    }
}

/// The passwords of an instance's repository.
#[must_use]
pub fn escrow_to_wire(escrow: &Escrow) -> node::RepositoryEscrow {
    node::RepositoryEscrow {
        instance: escrow.instance.to_string(),
        secret: escrow.secret.reveal().to_owned(),
        recovery: escrow.recovery.reveal().to_owned(),
    }
}

/// The passwords of an instance's repository.
///
/// # Errors
/// Every wrong field at once; no value is shown.
pub fn escrow_from_wire(wire: &node::RepositoryEscrow) -> Result<Escrow, Violations> {
    let mut v = Violations::default();
    let instance = v.take("instance", InstanceName::parse(&wire.instance));
    for (field, value) in [("secret", &wire.secret), ("recovery", &wire.recovery)] {
        if value.is_empty() || value.len() > MAX_PASSWORD || value.chars().any(char::is_control) {
            let text = format!("must have 1 to {MAX_PASSWORD} bytes and no control characters");
            v.push(field, text);
        }
    }
    let Some(instance) = instance else { return Err(v) };
    let secret = Secret::new(wire.secret.clone());
    let recovery = Secret::new(wire.recovery.clone());
    v.into_result().map(|()| Escrow { instance, secret, recovery })
}

/// That an escrow is stored.
#[must_use]
pub fn escrow_ack(escrow: &Escrow) -> node::EscrowAck {
    node::EscrowAck {
        instance: escrow.instance.to_string(),
        digest: escrow.digest().as_bytes().to_vec(),
    }
}

/// Whose escrow is stored, and the digest of what is.
///
/// # Errors
/// Every wrong field at once.
pub fn escrow_ack_from_wire(wire: &node::EscrowAck) -> Result<(InstanceName, Digest), Violations> {
    let mut v = Violations::default();
    let instance = v.take("instance", InstanceName::parse(&wire.instance));
    let digest = Digest::from_slice(&wire.digest);
    if digest.is_none() {
        v.push("digest", format!("must be 32 bytes, has {}", wire.digest.len()));
    }
    match (instance, digest) {
        (Some(instance), Some(digest)) => Ok((instance, digest)),
        _ => Err(v),
    }
}
