//! Trials, and what images do on data.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use claw_core::cutover::EXIT_NEEDS_MIGRATION;
use claw_core::name::{ImageRef, InstanceName};
use claw_core::observed::{ContainerState, Exit};

use super::{FakeRuntime, Told, refused};
use crate::ports::{Clock as _, RuntimeError, Trial, TrialState, Trials as Port};

/// What becomes of a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialOutcome {
    /// It runs until it is removed. What a gateway does unless something else was said.
    Runs,
    /// It ends at once with this status, having printed this. What a command does, with 0, unless
    /// something else was said.
    Ends(i64, String),
}

#[derive(Debug, Default)]
pub(super) struct Trials {
    there: BTreeMap<InstanceName, (Trial, TrialState)>,
    past: Vec<Trial>,
    gateways: BTreeMap<ImageRef, TrialOutcome>,
    commands: BTreeMap<ImageRef, TrialOutcome>,
    migrating: BTreeSet<ImageRef>,
    migrated: BTreeSet<(ImageRef, PathBuf)>,
}

impl Trials {
    pub(super) fn wants_migration(&self, image: &ImageRef, data: &Path) -> bool {
        let done = (image.clone(), data.to_owned());
        self.migrating.contains(image) && !self.migrated.contains(&done)
    }

    /// The images of trials that are there.
    pub(super) fn images(&self) -> impl Iterator<Item = &str> {
        self.there.values().map(|(trial, _)| trial.container.image.as_str())
    }

    pub(super) fn end_all(&mut self, exit: Exit) {
        for (_, state) in self.there.values_mut() {
            if *state == TrialState::Running {
                *state = TrialState::Exited(exit, String::new());
            }
        }
    }

    fn outcome(&self, trial: &Trial) -> TrialOutcome {
        let image = &trial.container.image;
        if trial.command.is_some() {
            let usual = TrialOutcome::Ends(0, "done".to_owned());
            return self.commands.get(image).cloned().unwrap_or(usual);
        }
        if self.wants_migration(image, &trial.mounts.data) {
            let said = "gateway.maintenance_required".to_owned();
            return TrialOutcome::Ends(EXIT_NEEDS_MIGRATION, said);
        }
        self.gateways.get(image).cloned().unwrap_or(TrialOutcome::Runs)
    }
}

impl FakeRuntime {
    /// Trials that run an image's gateway end like this from now on.
    pub fn trial_outcome(&self, image: &ImageRef, outcome: TrialOutcome) {
        self.state.borrow_mut().trials.gateways.insert(image.clone(), outcome);
    }

    /// Trials that run a command of an image end like this from now on.
    pub fn command_outcome(&self, image: &ImageRef, outcome: TrialOutcome) {
        self.state.borrow_mut().trials.commands.insert(image.clone(), outcome);
    }

    /// From now on the gateway of an image ends with 78 on data on which no command of that image has
    /// succeeded, in trials and in containers of instances.
    pub fn needs_migration(&self, image: &ImageRef) {
        self.state.borrow_mut().trials.migrating.insert(image.clone());
    }

    /// Every trial that was ever started, in order.
    #[must_use]
    pub fn trials_so_far(&self) -> Vec<Trial> {
        self.state.borrow().trials.past.clone()
    }

    /// A trial that an agent before this one has left behind.
    pub fn leave_trial(&self, trial: &Trial) {
        let there = (trial.clone(), TrialState::Running);
        self.state.borrow_mut().trials.there.insert(trial.container.instance.clone(), there);
    }

    /// The image of what runs at an address.
    pub(in crate::fakes) fn listening(&self, address: IpAddr) -> Option<ImageRef> {
        let state = self.state.borrow();
        let trial = state.trials.there.values().find(|(trial, state)| {
            let network = trial.network.as_ref();
            *state == TrialState::Running && network.is_some_and(|n| n.container() == address)
        });
        let instance = state.containers.iter().find_map(|(name, container)| {
            let plan = state.plans.get(name).filter(|(plan, _)| plan.address == address)?;
            matches!(container.state, ContainerState::Running { .. }).then(|| plan.0.image.clone())
        });
        trial.map(|(trial, _)| trial.container.image.clone()).or(instance)
    }

    fn run(&self, trial: &Trial) -> Result<(), RuntimeError> {
        let at = self.clock.now();
        let mut state = self.state.borrow_mut();
        let image = &trial.container.image;
        if !state.present.contains(image.as_str()) {
            return Err(RuntimeError::Image { image: image.clone(), source: Box::new(Told) });
        }
        let trials = &mut state.trials;
        let outcome = match trials.outcome(trial) {
            TrialOutcome::Runs => TrialState::Running,
            TrialOutcome::Ends(code, said) => {
                if trial.command.is_some() && code == 0 {
                    let done = (trial.container.image.clone(), trial.mounts.data.clone());
                    trials.migrated.insert(done);
                }
                TrialState::Exited(Exit { code, oom: false, at }, said)
            }
        };
        trials.past.push(trial.clone());
        trials.there.insert(trial.container.instance.clone(), (trial.clone(), outcome));
        Ok(())
    }
}

impl Port for FakeRuntime {
    async fn start_trial(&self, trial: &Trial) -> Result<(), RuntimeError> {
        let call = self.mishaps.effect("start-trial");
        if !call.may_begin().await {
            return Err(refused("starting a trial"));
        }
        self.reach()?;
        self.run(trial)?;
        if call.may_end().await { Ok(()) } else { Err(refused("starting a trial")) }
    }

    async fn trial_state(&self, instance: &InstanceName) -> Result<TrialState, RuntimeError> {
        if !self.mishaps.look("trial-state").may_begin().await {
            return Err(refused("looking at a trial"));
        }
        self.reach()?;
        let state = self.state.borrow();
        let there = state.trials.there.get(instance);
        Ok(there.map_or(TrialState::Gone, |(_, state)| state.clone()))
    }

    async fn remove_trial(&self, instance: &InstanceName) -> Result<(), RuntimeError> {
        let call = self.mishaps.effect("remove-trial");
        if !call.may_begin().await {
            return Err(refused("removing a trial"));
        }
        self.reach()?;
        self.state.borrow_mut().trials.there.remove(instance);
        if call.may_end().await { Ok(()) } else { Err(refused("removing a trial")) }
    }

    async fn trials(&self) -> Result<BTreeSet<InstanceName>, RuntimeError> {
        if !self.mishaps.look("trials").may_begin().await {
            return Err(refused("listing trials"));
        }
        self.reach()?;
        Ok(self.state.borrow().trials.there.keys().cloned().collect())
    }
}
