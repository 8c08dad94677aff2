//! The versions of an instance: how each is made from what is kept, and what is kept.

use std::rc::Rc;

use claw_core::cutover::{Deployment, Version, held_back};
use claw_core::data::DataGeneration;
use claw_core::host::HostState;
use claw_core::images::claims;
use claw_core::plan::{DesiredInstance, Target, container_digest};
use claw_core::spec::InstanceSpec;
use claw_core::stamp::Digest;

use super::InstanceLoop;
use crate::journal::Role;
use crate::logging::chain;
use crate::machine::Machine;
use crate::reconcile::accept;

impl<M: Machine> InstanceLoop<M> {
    pub(super) fn digest_of_confirmed(
        &self,
        wanted: &DesiredInstance,
        active: &Deployment,
    ) -> Option<Digest> {
        let confirmed = self.steering.confirmed.as_deref()?;
        let Target::Present { spec, .. } = &wanted.target else { return None };
        let desired = DesiredInstance { data: active.data, ..wanted.clone() };
        Some(container_digest(&desired, &held_back(confirmed, spec)))
    }

    /// Says which images must stay on the host for this instance.
    pub(in super::super) fn claim_images(&self, wanted: &DesiredInstance) {
        let spec = match &wanted.target {
            Target::Present { spec, .. } => Some(&**spec),
            Target::Removed => None,
        };
        let replaced = self.steering.replaced.as_deref();
        let claims = claims(&wanted.name, spec, &self.remembered.record, replaced);
        self.agent.roster.claim(&wanted.name, claims);
    }

    /// An instance as one of its versions wants it.
    pub(in super::super) fn version(
        &mut self,
        wanted: &Rc<DesiredInstance>,
        version: Version,
    ) -> Rc<DesiredInstance> {
        if let Some((of, which, desired)) = &self.steering.cached
            && Rc::ptr_eq(of, wanted)
            && *which == version
        {
            return Rc::clone(desired);
        }
        let desired = Rc::new(self.make_version(wanted, version));
        self.steering.cached = Some((Rc::clone(wanted), version, Rc::clone(&desired)));
        desired
    }

    /// What ran last on the data in use, where what is wanted does not say it: of a removed instance.
    pub(in super::super) fn last_version(
        &self,
        wanted: &DesiredInstance,
    ) -> Option<Rc<DesiredInstance>> {
        if matches!(wanted.target, Target::Present { .. }) {
            return None;
        }
        let active = self.remembered.record.active.as_ref();
        let data = active.map_or(DataGeneration::FIRST, |active| active.data);
        with_spec(wanted, self.steering.confirmed.as_deref()?, data).map(Rc::new)
    }

    fn make_version(&self, wanted: &DesiredInstance, version: Version) -> DesiredInstance {
        let (Version::Wanted(data) | Version::Confirmed(data)) = version;
        let as_wanted = DesiredInstance { data, ..wanted.clone() };
        let (Version::Confirmed(_), Target::Present { spec, .. }) = (version, &wanted.target)
        else {
            return as_wanted;
        };
        let confirmed = self.steering.confirmed.as_deref();
        let held = confirmed.map(|confirmed| held_back(confirmed, spec));
        match held.and_then(|held| with_spec(wanted, &held, data)) {
            Some(desired) => desired,
            // Its spec is lost, with the key that sealed it: the old image with today's configuration is the
            // nearest to what ran.
            None => {
                let image = self.remembered.record.active.as_ref().map(|a| a.image.clone());
                let image = image.unwrap_or_else(|| spec.image.clone());
                with_spec(wanted, &InstanceSpec { image, ..(**spec).clone() }, data)
                    .unwrap_or(as_wanted)
            }
        }
    }

    /// Keeps the spec that is confirmed now, and the one that it replaced.
    pub(super) async fn keep(
        &mut self,
        wanted: &DesiredInstance,
        spec: &InstanceSpec,
        replaced: Option<&InstanceSpec>,
    ) -> Result<(), String> {
        let new = encode(wanted, spec);
        let old = replaced.map(|spec| encode(wanted, spec));
        let mut versions: Vec<(Role, &[u8])> = vec![(Role::Confirmed, &new)];
        versions.extend(old.as_ref().map(|old| (Role::Replaced, old.as_slice())));
        let job = self.agent.journal.keep_versions(&wanted.name, &self.remembered, &versions);
        job.await.map_err(|error| chain(&error))?;
        if let Some(replaced) = replaced {
            self.steering.replaced = Some(Rc::new(replaced.clone()));
        }
        self.steering.confirmed = Some(Rc::new(spec.clone()));
        self.steering.cached = None;
        Ok(())
    }
}

pub(super) fn with_spec(
    wanted: &DesiredInstance,
    spec: &InstanceSpec,
    data: DataGeneration,
) -> Option<DesiredInstance> {
    let delivery = match accept::deliver(spec, wanted.network.gateway()) {
        Ok(delivery) => delivery,
        Err(faults) => {
            // It was accepted once; an agent with stricter rules may refuse it now.
            tracing::error!(instance = wanted.name.as_str(), %faults, "a version cannot be used");
            return None;
        }
    };
    let target = Target::Present { spec: Box::new(spec.clone()), delivery: Box::new(delivery) };
    Some(DesiredInstance { data, target, ..wanted.clone() })
}

/// A spec as it is kept: as a host's state with this one instance.
fn encode(wanted: &DesiredInstance, spec: &InstanceSpec) -> zeroize::Zeroizing<Vec<u8>> {
    let instances = [(wanted.name.clone(), spec.clone())].into();
    let state = HostState { instances, ..HostState::default() };
    zeroize::Zeroizing::new(claw_proto::convert::session::encode_host_state(&state).to_vec())
}

pub(super) fn decode(bytes: &[u8]) -> Option<InstanceSpec> {
    match claw_proto::convert::session::decode_host_state(bytes) {
        Ok(state) => state.instances.into_values().next(),
        Err(error) => {
            tracing::error!(%error, "a version cannot be read");
            None
        }
    }
}
