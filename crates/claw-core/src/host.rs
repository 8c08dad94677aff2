//! The whole desired state of one host, and the guard against losing customers by omission.

use std::collections::{BTreeMap, BTreeSet};

use crate::firewall::HostPolicy;
use crate::name::InstanceName;
use crate::offsite::OffsiteStorage;
use crate::spec::InstanceSpec;

/// Most bytes of a host's encoded desired state: 8 MiB, twice tonic's default message bound and
/// room for thirty instances at their own bound.
pub const MAX_STATE_BYTES: usize = 8 * 1024 * 1024;

/// Everything a host should hold. Always whole, never a difference.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostState {
    /// Instances that should exist.
    pub instances: BTreeMap<InstanceName, InstanceSpec>,
    /// Instances that were deleted on purpose and may be removed from the host.
    pub confirm_removal: BTreeSet<InstanceName>,
    /// What may come in to the host.
    pub firewall: HostPolicy,
    /// Where repositories are copied to; none: nowhere.
    pub offsite: Option<OffsiteStorage>,
}

/// Instances that a state would drop without naming them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the state lacks {} that this host holds and does not confirm their removal", list(.missing))]
pub struct UnconfirmedRemoval {
    /// Held here, absent there, not confirmed.
    pub missing: BTreeSet<InstanceName>,
}

fn list(names: &BTreeSet<InstanceName>) -> String {
    names.iter().map(InstanceName::as_str).collect::<Vec<_>>().join(", ")
}

/// Checks that `next` drops no instance of `held` that it does not name.
///
/// Stricter than "more than one": a single instance is somebody's data too.
///
/// # Errors
/// [`UnconfirmedRemoval`] lists every instance that would be lost.
pub fn check_removal(
    held: &BTreeSet<InstanceName>,
    next: &HostState,
) -> Result<(), UnconfirmedRemoval> {
    let missing: BTreeSet<InstanceName> = held
        .iter()
        .filter(|name| !next.instances.contains_key(*name) && !next.confirm_removal.contains(*name))
        .cloned()
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(UnconfirmedRemoval { missing }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_state_deletes_nobody() {
        let name = |text: &str| InstanceName::parse(text).expect("valid");
        let held = BTreeSet::from([name("a"), name("b")]);
        let error = check_removal(&held, &HostState::default()).expect_err("nothing confirmed");
        assert_eq!(
            error.to_string(),
            "the state lacks a, b that this host holds and does not confirm their removal"
        );
        let confirmed = HostState { confirm_removal: held.clone(), ..HostState::default() };
        assert_eq!(check_removal(&held, &confirmed), Ok(()));
    }
}
