//! Looks at one instance through the ports, everything at once. Decides nothing.

use std::collections::BTreeSet;

use claw_core::observed::{Health, ObservedInstance, RestSnapshot};
use claw_core::plan::{DesiredInstance, Target, virtual_host};

use super::deadline::{Elapsed, LOOK, within};
use crate::journal::Remembered;
use crate::machine::Machine;
use crate::ports::{
    Files as _, FilesError, FilesView, Proxy as _, Runtime as _, RuntimeError, RuntimeView,
};

/// What the ports have shown of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Containers, network, image.
    pub runtime: RuntimeView,
    /// Data, files, secrets.
    pub files: FilesView,
    /// The reverse proxy serves exactly the wanted virtual host.
    pub proxy_current: bool,
}

/// Why an instance could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// Docker.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// Docker did not answer at all.
    #[error("docker gives no answer")]
    RuntimeSilent(#[source] Elapsed),
    /// The file system.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The file system did not answer at all.
    #[error("the file system gives no answer")]
    FilesSilent(#[source] Elapsed),
}

impl ObserveError {
    /// Whether Docker is to blame.
    #[must_use]
    pub const fn is_runtime(&self) -> bool {
        matches!(self, Self::Runtime(_) | Self::RuntimeSilent(_))
    }
}

/// Looks at an instance.
///
/// A reverse proxy that cannot be asked counts as not current: the plan then publishes, and fails
/// where the cause can be reported.
///
/// # Errors
/// [`ObserveError`].
pub async fn observe(
    machine: &impl Machine,
    desired: &DesiredInstance,
) -> Result<Facts, ObserveError> {
    let clock = machine.clock();
    let name = &desired.name;
    let Target::Present { spec, delivery } = &desired.target else {
        let none = BTreeSet::new();
        let (runtime, files) = futures_util::join!(
            within(clock, LOOK, machine.runtime().view(name, None)),
            within(clock, LOOK, machine.files().view(name, desired.data, &none)),
        );
        return Ok(Facts {
            runtime: runtime.map_err(ObserveError::RuntimeSilent)??,
            files: files.map_err(ObserveError::FilesSilent)??,
            proxy_current: false,
        });
    };
    let paths: BTreeSet<_> = delivery.files.keys().cloned().collect();
    let host = virtual_host(desired, spec);
    let (runtime, files, proxy) = futures_util::join!(
        within(clock, LOOK, machine.runtime().view(name, Some(&spec.image))),
        within(clock, LOOK, machine.files().view(name, desired.data, &paths)),
        within(clock, LOOK, machine.proxy().is_current(&host)),
    );
    Ok(Facts {
        runtime: runtime.map_err(ObserveError::RuntimeSilent)??,
        files: files.map_err(ObserveError::FilesSilent)??,
        proxy_current: matches!(proxy, Ok(Ok(true))),
    })
}

/// What the plan may look at.
#[must_use]
pub fn observed(facts: &Facts, remembered: &Remembered, health: &Health) -> ObservedInstance {
    ObservedInstance {
        image_present: facts.runtime.image_present,
        network: facts.runtime.network.clone(),
        container: facts.runtime.container.clone(),
        data_present: facts.files.data_present,
        secrets: facts.files.secrets,
        files: remembered.files.filter(|_| facts.files.files_present),
        proxy_current: facts.proxy_current,
        firewalled: false,
        at_rest: RestSnapshot::Missing,
        health: health.clone(),
        record: remembered.record.clone(),
    }
}
