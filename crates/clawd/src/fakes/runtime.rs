//! Containers, images, networks, trials.

mod images;
mod inside;
mod trials;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use claw_core::cutover::EXIT_NEEDS_MIGRATION;
use claw_core::images::HostImage;
use claw_core::name::{ImageRef, InstanceName};
use claw_core::observed::{ContainerState, Exit, ObservedContainer, ObservedNetwork};
use claw_core::plan::ContainerPlan;
use claw_core::time::Timestamp;
use tokio::sync::mpsc;

use super::FakeClock;
use super::host::GATEWAY_PID;
use super::mishap::{Mishaps, Told};
use crate::ports::{
    Clock as _, Mounts, PullProgress, Runtime, RuntimeChange, RuntimeError, RuntimeEvent,
    RuntimeView,
};
use images::Images;
use trials::Trials;

pub use trials::TrialOutcome;

/// Events that may wait; tests make few.
const QUEUE: usize = 4096;

/// Docker in memory.
#[derive(Debug, Clone)]
pub struct FakeRuntime {
    state: Rc<RefCell<State>>,
    mishaps: Mishaps,
    clock: FakeClock,
}

#[derive(Debug, Default)]
struct State {
    pullable: BTreeSet<String>,
    present: BTreeSet<String>,
    networks: BTreeMap<InstanceName, ObservedNetwork>,
    containers: BTreeMap<InstanceName, ObservedContainer>,
    /// What each container was made from.
    plans: BTreeMap<InstanceName, (ContainerPlan, Mounts)>,
    /// Since when those that are frozen have been running.
    frozen: BTreeMap<InstanceName, Timestamp>,
    images: Images,
    trials: Trials,
    /// Requests that were approved within a container.
    approved: BTreeSet<String>,
    made: u64,
    views: u64,
    down: Option<String>,
    listeners: Vec<mpsc::Sender<RuntimeEvent>>,
}

impl FakeRuntime {
    pub(super) fn new(images: &[&str], mishaps: Mishaps, clock: FakeClock) -> Self {
        let pullable = images.iter().map(|image| (*image).to_owned()).collect();
        let state = State { pullable, ..State::default() };
        Self { state: Rc::new(RefCell::new(state)), mishaps, clock }
    }

    pub(super) const fn mishaps(&self) -> &Mishaps {
        &self.mishaps
    }

    /// Whether an instance's container runs.
    #[must_use]
    pub fn is_running(&self, name: &InstanceName) -> bool {
        let state = self.state.borrow();
        state
            .containers
            .get(name)
            .is_some_and(|c| matches!(c.state, ContainerState::Running { .. }))
    }

    /// An instance's container.
    #[must_use]
    pub fn container(&self, name: &InstanceName) -> Option<ObservedContainer> {
        self.state.borrow().containers.get(name).cloned()
    }

    /// What an instance's container was made from.
    #[must_use]
    pub fn plan(&self, name: &InstanceName) -> Option<(ContainerPlan, Mounts)> {
        self.state.borrow().plans.get(name).cloned()
    }

    /// The image of an instance's container.
    #[must_use]
    pub fn image(&self, name: &InstanceName) -> Option<ImageRef> {
        self.plan(name).map(|(plan, _)| plan.image)
    }

    /// Containers that were ever made.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.state.borrow().made
    }

    /// How often an instance was looked at.
    #[must_use]
    pub fn views(&self) -> u64 {
        self.state.borrow().views
    }

    /// Who has a container or network.
    #[must_use]
    pub fn held(&self) -> BTreeSet<InstanceName> {
        let state = self.state.borrow();
        state.containers.keys().chain(state.networks.keys()).cloned().collect()
    }

    /// A container ends by itself, a millisecond later.
    pub fn end(&self, name: &InstanceName, code: i64, oom: bool) {
        self.clock.advance(Duration::from_millis(1));
        let at = self.clock.now();
        let mut state = self.state.borrow_mut();
        if let Some(container) = state.containers.get_mut(name) {
            container.state = ContainerState::Exited(Exit { code, oom, at });
        }
        drop(state);
        self.tell(RuntimeEvent::Changed(name.clone()));
    }

    /// Every running container ends, and nobody is told.
    pub(super) fn end_all(&self, code: i64) {
        let at = self.clock.now();
        let mut state = self.state.borrow_mut();
        for container in state.containers.values_mut() {
            if matches!(container.state, ContainerState::Running { .. } | ContainerState::Paused) {
                container.state = ContainerState::Exited(Exit { code, oom: false, at });
            }
        }
        state.trials.end_all(Exit { code, oom: false, at });
    }

    /// The daemon stops; containers live on.
    pub fn stop_daemon(&self, why: &str) {
        self.state.borrow_mut().down = Some(why.to_owned());
        self.tell(RuntimeEvent::Lost(why.to_owned()));
    }

    /// The daemon is back.
    pub fn start_daemon(&self) {
        self.state.borrow_mut().down = None;
        self.tell(RuntimeEvent::Connected);
    }

    /// A container that somebody made with our label.
    pub fn plant(&self, name: &InstanceName) {
        let container = ObservedContainer {
            id: format!("planted-{name}"),
            spec_digest: None,
            generation: None,
            state: ContainerState::Running { since: self.clock.now(), pid: GATEWAY_PID },
            nano_cpus: 0,
            pids_limit: 0,
            address: None,
        };
        self.state.borrow_mut().containers.insert(name.clone(), container);
    }

    fn tell(&self, event: RuntimeEvent) {
        let mut state = self.state.borrow_mut();
        state.listeners.retain(|listener| listener.try_send(event.clone()).is_ok());
    }

    fn reach(&self) -> Result<(), RuntimeError> {
        match &self.state.borrow().down {
            Some(why) => Err(RuntimeError::Unreachable(Box::new(io::Error::other(why.clone())))),
            None => Ok(()),
        }
    }

    fn apply(&self, name: &InstanceName, change: RuntimeChange<'_>) -> Result<(), RuntimeError> {
        let now = self.clock.now();
        let mut state = self.state.borrow_mut();
        match change {
            RuntimeChange::CreateNetwork(network) => {
                let observed = ObservedNetwork {
                    id: format!("net-{name}"),
                    subnet: network.subnet(),
                    bridge: network.bridge(),
                };
                state.networks.entry(name.clone()).or_insert(observed);
            }
            RuntimeChange::RemoveNetwork(id) => {
                state.networks.retain(|_, network| network.id != id)
            }
            RuntimeChange::CreateContainer(plan, mounts) => {
                create(&mut state, name, (plan, mounts))?
            }
            RuntimeChange::Start => start(&mut state, name, now)?,
            RuntimeChange::Pause(id) => freeze(&mut state, id)?,
            RuntimeChange::Unpause(id) => thaw(&mut state, id),
            RuntimeChange::Stop(id, _) => set(&mut state, id, |before| match before {
                ContainerState::Running { .. } | ContainerState::Paused => {
                    ContainerState::Exited(Exit { code: 0, oom: false, at: now })
                }
                other => other.clone(),
            }),
            RuntimeChange::Remove(id) => {
                let up = |c: &ObservedContainer| {
                    matches!(c.state, ContainerState::Running { .. } | ContainerState::Paused)
                };
                if state.containers.values().any(|c| c.id == id && up(c)) {
                    return Err(refused("removing what runs"));
                }
                state.containers.retain(|_, container| container.id != id);
            }
            RuntimeChange::Limits(id, cpu, pids) => {
                for container in state.containers.values_mut().filter(|c| c.id == id) {
                    container.nano_cpus = cpu.nano();
                    container.pids_limit = pids.count();
                }
            }
        }
        Ok(())
    }
}

fn refused(doing: &'static str) -> RuntimeError {
    RuntimeError::Refused { doing, source: Box::new(Told) }
}

fn create(
    state: &mut State,
    name: &InstanceName,
    (plan, mounts): (&ContainerPlan, &Mounts),
) -> Result<(), RuntimeError> {
    if let Some(there) = state.containers.get(name) {
        let same = there.spec_digest == Some(plan.digest);
        return if same { Ok(()) } else { Err(RuntimeError::Stranger { name: plan.name.clone() }) };
    }
    if !state.networks.contains_key(name) || !state.present.contains(plan.image.as_str()) {
        return Err(refused("making a container without its network or image"));
    }
    state.made += 1;
    let container = ObservedContainer {
        id: format!("container-{}", state.made),
        spec_digest: Some(plan.digest),
        generation: Some(plan.generation),
        state: ContainerState::Created,
        nano_cpus: plan.resources.cpu.nano(),
        pids_limit: plan.resources.pids.count(),
        address: None,
    };
    state.plans.insert(name.clone(), (plan.clone(), mounts.clone()));
    state.containers.insert(name.clone(), container);
    Ok(())
}

fn start(state: &mut State, name: &InstanceName, now: Timestamp) -> Result<(), RuntimeError> {
    let unfit = state
        .plans
        .get(name)
        .is_some_and(|(plan, mounts)| state.trials.wants_migration(&plan.image, &mounts.data));
    let container = state.containers.get_mut(name).ok_or_else(|| refused("starting nothing"))?;
    match container.state {
        ContainerState::Running { .. } => {}
        ContainerState::Paused => return Err(refused("starting what is frozen")),
        _ if unfit => {
            let exit = Exit { code: EXIT_NEEDS_MIGRATION, oom: false, at: now };
            container.state = ContainerState::Exited(exit);
        }
        _ => container.state = ContainerState::Running { since: now, pid: GATEWAY_PID },
    }
    Ok(())
}

fn freeze(state: &mut State, id: &str) -> Result<(), RuntimeError> {
    let found = state.containers.iter_mut().find(|(_, container)| container.id == id);
    let (name, container) = found.ok_or_else(|| refused("freezing nothing"))?;
    match container.state {
        ContainerState::Paused => Ok(()),
        ContainerState::Running { since, .. } => {
            state.frozen.insert(name.clone(), since);
            container.state = ContainerState::Paused;
            Ok(())
        }
        _ => Err(refused("freezing what does not run")),
    }
}

fn thaw(state: &mut State, id: &str) {
    let found = state.containers.iter_mut().find(|(_, container)| container.id == id);
    let frozen = found.filter(|(_, container)| container.state == ContainerState::Paused);
    if let Some((name, container)) = frozen {
        let since = state.frozen.remove(name).unwrap_or_default();
        container.state = ContainerState::Running { since, pid: GATEWAY_PID };
    }
}

fn set(state: &mut State, id: &str, change: impl Fn(&ContainerState) -> ContainerState) {
    for container in state.containers.values_mut().filter(|container| container.id == id) {
        container.state = change(&container.state);
    }
}

const fn name_of(change: &RuntimeChange<'_>) -> &'static str {
    match change {
        RuntimeChange::CreateNetwork(_) => "create-network",
        RuntimeChange::RemoveNetwork(_) => "remove-network",
        RuntimeChange::CreateContainer(..) => "create-container",
        RuntimeChange::Start => "start",
        RuntimeChange::Pause(_) => "pause",
        RuntimeChange::Unpause(_) => "unpause",
        RuntimeChange::Stop(..) => "stop",
        RuntimeChange::Remove(_) => "remove",
        RuntimeChange::Limits(..) => "limits",
    }
}

impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<String, RuntimeError> {
        self.reach().map(|()| "20.10.24-fake".to_owned())
    }

    async fn inventory(&self) -> Result<BTreeSet<InstanceName>, RuntimeError> {
        self.reach()?;
        Ok(self.held())
    }

    async fn view(
        &self,
        instance: &InstanceName,
        image: Option<&ImageRef>,
    ) -> Result<RuntimeView, RuntimeError> {
        self.state.borrow_mut().views += 1;
        if !self.mishaps.look("view").may_begin().await {
            return Err(refused("looking"));
        }
        self.reach()?;
        let state = self.state.borrow();
        let mut container = state.containers.get(instance).cloned();
        if let Some(container) = &mut container
            && matches!(container.state, ContainerState::Running { .. })
        {
            container.address = state.plans.get(instance).map(|(plan, _)| plan.address);
        }
        Ok(RuntimeView {
            image_present: image.is_some_and(|image| state.present.contains(image.as_str())),
            network: state.networks.get(instance).cloned(),
            container,
        })
    }

    async fn pull(
        &self,
        image: &ImageRef,
        progress: &dyn Fn(PullProgress),
    ) -> Result<(), RuntimeError> {
        let call = self.mishaps.effect("pull");
        progress(PullProgress { current_bytes: 1 << 20, total_bytes: 2 << 20 });
        let failed = || RuntimeError::Image { image: image.clone(), source: Box::new(Told) };
        if !call.may_begin().await {
            return Err(failed());
        }
        self.reach()?;
        if !self.state.borrow().pullable.contains(image.as_str()) {
            return Err(failed());
        }
        self.state.borrow_mut().present.insert(image.to_string());
        if call.may_end().await { Ok(()) } else { Err(failed()) }
    }

    async fn images(
        &self,
        references: &BTreeSet<ImageRef>,
    ) -> Result<BTreeMap<ImageRef, HostImage>, RuntimeError> {
        if !self.mishaps.look("images").may_begin().await {
            return Err(refused("looking for images"));
        }
        self.reach()?;
        let state = self.state.borrow();
        let found = |image: &ImageRef| Some((image.clone(), state.host_image(image.as_str())?));
        Ok(references.iter().filter_map(found).collect())
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<u64, RuntimeError> {
        let call = self.mishaps.effect("remove-image");
        if !call.may_begin().await {
            return Err(refused("removing an image"));
        }
        self.reach()?;
        let bytes = self.state.borrow_mut().remove_image(image)?;
        if call.may_end().await { Ok(bytes) } else { Err(refused("removing an image")) }
    }

    async fn change(
        &self,
        instance: &InstanceName,
        change: RuntimeChange<'_>,
    ) -> Result<(), RuntimeError> {
        let name = name_of(&change);
        let call = self.mishaps.effect(name);
        if !call.may_begin().await {
            return Err(refused(name));
        }
        self.reach()?;
        self.apply(instance, change)?;
        self.tell(RuntimeEvent::Changed(instance.clone()));
        if call.may_end().await { Ok(()) } else { Err(refused(name)) }
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let first = match &self.state.borrow().down {
            Some(why) => RuntimeEvent::Lost(why.clone()),
            None => RuntimeEvent::Connected,
        };
        // The channel is new: there is room.
        let _sent = sender.try_send(first);
        self.state.borrow_mut().listeners.push(sender);
        receiver
    }
}
