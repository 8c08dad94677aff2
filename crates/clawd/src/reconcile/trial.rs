//! Tries an image on data, cut off from every network: rehearsals, drills, and the one-shot migration.
//!
//! A trial is a container beside the instance's own, on the network that leads nowhere. It is removed
//! whatever becomes of it; what a dead agent left behind, the next one removes before its first trial.
//!
//! What it does not do: make the data, or decide what a failure means.
//! Where to start: [`boots`], [`migrate`].

use std::time::Duration;

use claw_core::cutover::{EXIT_NEEDS_MIGRATION, Migration};
use claw_core::name::InstanceName;
use claw_core::observed::Exit;
use claw_core::plan::ContainerPlan;
use claw_core::spec::{GATEWAY_PORT, HealthPolicy};
use claw_core::time::Timestamp;
use tokio::select;

use super::deadline::{self, Elapsed, within};
use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{
    Clock as _, Files as _, Gateway as _, GatewayAnswer, RuntimeError, Trial, TrialState,
    Trials as _,
};

/// Between two looks at a trial.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How long the migration of an instance's state may take (OpenClaw's own doctor: seconds; a database of
/// gigabytes: minutes).
const MIGRATION: Duration = Duration::from_secs(900);
/// How OpenClaw migrates its state, without asking anything.
const DOCTOR: [&str; 5] = ["openclaw", "doctor", "--fix", "--yes", "--non-interactive"];

/// What is tried.
#[derive(Debug)]
pub(super) struct TrialOrder {
    /// The gateway as it would be; the data that it names is changed by the trial.
    pub(super) container: ContainerPlan,
    /// Its gate.
    pub(super) health: HealthPolicy,
}

/// Why a trial failed.
#[derive(Debug, thiserror::Error)]
pub enum TrialFailure {
    /// The container could not be made, watched or removed.
    #[error("the trial could not be run")]
    Runtime(#[from] RuntimeError),
    /// Docker did not answer at all.
    #[error("the trial could not be run")]
    Silent(#[from] Elapsed),
    /// It ended by itself.
    #[error("{what} ended with status {}{}: {output}", .exit.code, if .exit.oom { ", killed for want of memory" } else { "" })]
    Exited {
        /// What was tried: "the gateway" or "the migration".
        what: &'static str,
        /// How.
        exit: Exit,
        /// The end of what it printed.
        output: String,
    },
    /// It did not become healthy.
    #[error("the gateway was not healthy within {} s: {problem}", .after.as_secs())]
    Unhealthy {
        /// The deadline.
        after: Duration,
        /// What it said last.
        problem: String,
    },
    /// The migration did not end.
    #[error("the migration did not end within {} s", MIGRATION.as_secs())]
    MigrationTimeout,
}

/// Whether an image boots on data, migrating it first if it asks for that; returns whether it did.
///
/// # Errors
/// [`TrialFailure`]; nothing of the trial is left then either.
pub(super) async fn boots<M: Machine>(
    agent: &Agent<M>,
    order: &TrialOrder,
    show: &dyn Fn(&str),
) -> Result<Migration, TrialFailure> {
    let trials = agent.roster.trial();
    let _alone = trials.lock().await;
    let begun = agent.machine.clock().now();
    let outcome = boots_or_migrates(agent, order, show).await;
    let outcome = outcome.map_err(|failure| unless_docker_left(agent, begun, failure));
    let removed = remove(agent, &order.container.instance).await;
    let migration = outcome?;
    removed.map(|()| migration)
}

async fn boots_or_migrates<M: Machine>(
    agent: &Agent<M>,
    order: &TrialOrder,
    show: &dyn Fn(&str),
) -> Result<Migration, TrialFailure> {
    show("booting it");
    match passes(agent, order).await {
        Err(TrialFailure::Exited { exit, .. }) if exit.code == EXIT_NEEDS_MIGRATION => {
            show("migrating its state");
            run_migration(agent, &order.container).await?;
            show("booting it on the migrated state");
            passes(agent, order).await.map(|()| Migration::Needed)
        }
        outcome => outcome.map(|()| Migration::Unknown),
    }
}

/// Lets an image migrate the state of an instance that is down, once.
///
/// # Errors
/// [`TrialFailure`].
pub(super) async fn migrate<M: Machine>(
    agent: &Agent<M>,
    container: &ContainerPlan,
) -> Result<(), TrialFailure> {
    let trials = agent.roster.trial();
    let _alone = trials.lock().await;
    let begun = agent.machine.clock().now();
    let outcome = run_migration(agent, container).await;
    let outcome = outcome.map_err(|failure| unless_docker_left(agent, begun, failure));
    let removed = remove(agent, &container.instance).await;
    outcome?;
    removed
}

/// A trial that ended while Docker was away ended with it, which says nothing about what was tried.
fn unless_docker_left<M: Machine>(
    agent: &Agent<M>,
    begun: Timestamp,
    failure: TrialFailure,
) -> TrialFailure {
    if agent.board.runtime_was_away(begun) {
        let source = format!("it was away during the trial: {failure}");
        return TrialFailure::Runtime(RuntimeError::Unreachable(source.into()));
    }
    failure
}

/// Starts the gateway and gates it.
async fn passes<M: Machine>(agent: &Agent<M>, order: &TrialOrder) -> Result<(), TrialFailure> {
    let network = agent.settings.pool.trial();
    let mut container = order.container.clone();
    container.address = network.container();
    container.dns = network.gateway();
    let trial = Trial { network: Some(network), ..trial(agent, container) };
    start(agent, &trial).await?;
    let policy = &order.health;
    let after = policy.startup_deadline.saturating_add(policy.min_healthy);
    let mut problem = "it has not answered yet".to_owned();
    let gate = gate(agent, order, (network.container(), GATEWAY_PORT).into(), &mut problem);
    match within(agent.machine.clock(), after, gate).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(TrialFailure::Unhealthy { after, problem }),
    }
}

/// Ends when the gateway has been healthy for long enough, or has ended.
async fn gate<M: Machine>(
    agent: &Agent<M>,
    order: &TrialOrder,
    address: std::net::SocketAddr,
    problem: &mut String,
) -> Result<(), TrialFailure> {
    let clock = agent.machine.clock();
    let mut healthy_since = None;
    loop {
        ended("the gateway", state(agent, &order.container.instance).await?)?;
        match agent.machine.gateway().look_directly(address).await {
            GatewayAnswer::Started { .. } => {
                let since = *healthy_since.get_or_insert_with(|| clock.now());
                if clock.now().since(since) >= order.health.min_healthy {
                    return Ok(());
                }
                "it did not stay healthy".clone_into(problem);
            }
            GatewayAnswer::Starting(why)
            | GatewayAnswer::Failing(why)
            | GatewayAnswer::ProxyFailing(why) => {
                healthy_since = None;
                *problem = why;
            }
            GatewayAnswer::Draining => {
                healthy_since = None;
                "it is draining".clone_into(problem);
            }
        }
        clock.sleep(LOOK_AGAIN).await;
    }
}

async fn run_migration<M: Machine>(
    agent: &Agent<M>,
    container: &ContainerPlan,
) -> Result<(), TrialFailure> {
    let command = DOCTOR.map(str::to_owned).to_vec();
    let trial = Trial { command: Some(command), ..trial(agent, container.clone()) };
    start(agent, &trial).await?;
    let clock = agent.machine.clock();
    let end = async {
        loop {
            match state(agent, &container.instance).await? {
                TrialState::Exited(exit, _) if exit.code == 0 => return Ok(()),
                other => ended("the migration", other)?,
            }
            clock.sleep(LOOK_AGAIN).await;
        }
    };
    select! {
        biased;
        outcome = end => outcome,
        () = clock.sleep(MIGRATION) => Err(TrialFailure::MigrationTimeout),
    }
}

/// Removes every trial that an earlier agent left behind.
pub(super) async fn sweep<M: Machine>(agent: &Agent<M>) {
    let (machine, clock) = (&agent.machine, agent.machine.clock());
    let trials = agent.roster.trial();
    let _alone = trials.lock().await;
    let found = match within(clock, deadline::LOOK, machine.runtime().trials()).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return tracing::warn!(error = chain(&error), "cannot look for trials"),
        Err(error) => return tracing::warn!(error = chain(&error), "cannot look for trials"),
    };
    for name in found {
        let removed = within(clock, deadline::CHANGE, machine.runtime().remove_trial(&name)).await;
        match removed {
            Ok(Ok(())) => tracing::info!(instance = name.as_str(), "removed a trial left behind"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "cannot remove a trial"),
            Err(error) => tracing::warn!(error = chain(&error), "cannot remove a trial"),
        }
    }
}

fn ended(what: &'static str, state: TrialState) -> Result<(), TrialFailure> {
    match state {
        TrialState::Running => Ok(()),
        TrialState::Exited(exit, output) => Err(TrialFailure::Exited { what, exit, output }),
        TrialState::Gone => {
            let exit = Exit { code: 137, oom: false, at: Timestamp::default() };
            let output = "somebody removed its container".to_owned();
            Err(TrialFailure::Exited { what, exit, output })
        }
    }
}

fn trial<M: Machine>(agent: &Agent<M>, container: ContainerPlan) -> Trial {
    let mounts = agent.machine.files().mounts(&container.instance, container.data);
    Trial { container, mounts, network: None, command: None }
}

async fn start<M: Machine>(agent: &Agent<M>, trial: &Trial) -> Result<(), TrialFailure> {
    let work = agent.machine.runtime().start_trial(trial);
    Ok(within(agent.machine.clock(), deadline::CHANGE, work).await??)
}

async fn state<M: Machine>(
    agent: &Agent<M>,
    name: &InstanceName,
) -> Result<TrialState, TrialFailure> {
    let work = agent.machine.runtime().trial_state(name);
    Ok(within(agent.machine.clock(), deadline::LOOK, work).await??)
}

async fn remove<M: Machine>(agent: &Agent<M>, name: &InstanceName) -> Result<(), TrialFailure> {
    let work = agent.machine.runtime().remove_trial(name);
    Ok(within(agent.machine.clock(), deadline::CHANGE, work).await??)
}
