//! Names of our chains: at most 28 characters (XT_EXTENSION_MAXNAMELEN less its end, xtables(8)).

use crate::address::Slot;

/// What every chain of ours begins with, and no other.
pub const CHAIN_PREFIX: &str = "CLAW-";
/// What every set of ours begins with, and no other.
pub const SET_PREFIX: &str = "claw-";
/// The bridges of all instances, as iptables matches interfaces by prefix.
pub const BRIDGES: &str = "claw-+";

/// raw: what is met before anything else.
pub const PREROUTING: &str = "CLAW-PRE";
/// raw: spoofed sources of instances.
pub const SOURCES: &str = "CLAW-SRC";
/// To the host.
pub const INPUT: &str = "CLAW-IN";
/// To the host's SSH.
pub const SSH: &str = "CLAW-SSH";
/// To the reverse proxy.
pub const WEB: &str = "CLAW-WEB";
/// From an instance to the host.
pub const CONTAINER_TO_HOST: &str = "CLAW-C2H";
/// Through the host.
pub const FORWARD: &str = "CLAW-FWD";
/// From an instance through the host: hands over to the instance's own chain.
pub const EGRESS: &str = "CLAW-EGR";
/// How an instance's packet is refused: dropped in the guarantee, answered in the copy.
pub const REFUSE: &str = "CLAW-NO";

/// The chain of what goes out of the instance in a slot.
#[must_use]
pub fn egress_chain(slot: Slot) -> String {
    format!("CLAW-E{}", slot.number())
}
