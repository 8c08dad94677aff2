//! A container beside an instance's own, for a rehearsal, a drill or a migration.
//!
//! It is hardened and limited as the instance's own is and weighs less than anything else on the host. Its
//! label is not the one of instances, so that nothing that watches over instances ever sees it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, NetworkCreateRequest};
use bollard::query_parameters as query;
use claw_core::name::InstanceName;
use claw_core::observed::{ContainerState, Exit};
use futures_util::{Stream, StreamExt};

use super::{
    CHANGE, Docker, GENERATION_LABEL, LOOK, absent_is_none, container, failure, is_image_missing,
    list_containers, network, within,
};
use crate::ports::{RuntimeError, Trial, TrialState, Trials};

/// Label of every container and network of a trial; its value is the instance's name.
const TRIAL_LABEL: &str = "dev.claw.trial";

/// A trial may use what nobody else wants: an ordinary container has 1024 shares (docker-run(1)).
const CPU_SHARES: i64 = 128;

/// As with the CPU; an ordinary container has 500 of 10 to 1000 (docker-run(1)).
const IO_WEIGHT: u16 = 50;

/// A trial holds nothing of value, so it is not waited for.
const GRACE: Duration = Duration::from_secs(2);

/// Lines of output that are asked for, and characters that are kept.
const TAIL_LINES: &str = "200";
const TAIL_CHARACTERS: usize = 2_000;

/// Bytes that are kept while reading: room for the characters, whatever they are.
const TAIL_BYTES: usize = 4 * TAIL_CHARACTERS;

/// The name of a trial's container and network. No instance has a dot in its name: an instance `trial-a`
/// cannot be mistaken for a trial of `a`.
fn trial_name(instance: &InstanceName) -> String {
    format!("claw-trial.{instance}")
}

fn label_is(instance: &InstanceName) -> [String; 1] {
    [format!("{TRIAL_LABEL}={instance}")]
}

impl Trials for Docker {
    async fn start_trial(&self, trial: &Trial) -> Result<(), RuntimeError> {
        let instance = &trial.container.instance;
        self.remove_trial(instance).await?;
        let client = self.client()?;
        if let Some(wanted) = &trial.network {
            let request = NetworkCreateRequest {
                // Docker's own rules keep it in, whatever becomes of ours: only the host reaches it.
                internal: Some(true),
                labels: Some(labels(instance)),
                ..network::isolated_request(trial_name(instance), wanted)
            };
            let doing = "creating a trial's network";
            let created = within(doing, CHANGE, client.create_network(request)).await?;
            created.map_err(|error| failure(doing, error))?;
        }
        let doing = "creating a trial";
        let name = trial_name(instance);
        let options = query::CreateContainerOptionsBuilder::new().name(&name).build();
        let created = client.create_container(Some(options), create_body(trial, io_weight()));
        let created = match within(doing, CHANGE, created).await? {
            Ok(created) => created,
            // What was ours has just been removed.
            Err(error) if super::status(&error) == Some(409) => {
                return Err(RuntimeError::Stranger { name });
            }
            Err(error) if is_image_missing(&error) => {
                let (image, source) = (trial.container.image.clone(), Box::new(error));
                return Err(RuntimeError::Image { image, source });
            }
            Err(error) => return Err(failure(doing, error)),
        };
        let doing = "starting a trial";
        let started = client.start_container(&created.id, None::<query::StartContainerOptions>);
        within(doing, CHANGE, started).await?.map_err(|error| failure(doing, error))
    }

    async fn trial_state(&self, instance: &InstanceName) -> Result<TrialState, RuntimeError> {
        let client = self.client()?;
        let listed = list_containers(&client, &label_is(instance)).await?;
        let newest = listed.into_iter().max_by_key(|container| container.created);
        let Some(id) = newest.and_then(|container| container.id) else {
            return Ok(TrialState::Gone);
        };
        match self.inspect(&client, &id).await? {
            None => Ok(TrialState::Gone),
            Some(found) => match exit_of(&found) {
                None => Ok(TrialState::Running),
                Some(exit) => Ok(TrialState::Exited(exit, output(&client, &id).await?)),
            },
        }
    }

    async fn remove_trial(&self, instance: &InstanceName) -> Result<(), RuntimeError> {
        let client = self.client()?;
        for container in list_containers(&client, &label_is(instance)).await? {
            let Some(id) = container.id else { continue };
            self.stop(&id, GRACE).await?;
            let doing = "removing a trial";
            let options = query::RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let removed =
                within(doing, CHANGE, client.remove_container(&id, Some(options))).await?;
            match removed {
                Err(error) if super::is_being_removed(&error) => {
                    self.wait_until_gone(&client, &id).await?;
                }
                removed => absent_is_none(doing, removed).map(drop)?,
            }
        }
        for network in network::list(&client, &label_is(instance)).await? {
            let Some(id) = network.id else { continue };
            network::remove(&client, &id).await?;
        }
        Ok(())
    }

    async fn trials(&self) -> Result<BTreeSet<InstanceName>, RuntimeError> {
        let client = self.client()?;
        let labels = [TRIAL_LABEL.to_owned()];
        let (containers, networks) =
            tokio::join!(list_containers(&client, &labels), network::list(&client, &labels));
        let containers = containers?.into_iter().filter_map(|container| container.labels);
        let networks = networks?.into_iter().filter_map(|network| network.labels);
        let name =
            |labels: HashMap<String, String>| InstanceName::parse(labels.get(TRIAL_LABEL)?).ok();
        Ok(containers.chain(networks).filter_map(name).collect())
    }
}

fn labels(instance: &InstanceName) -> HashMap<String, String> {
    HashMap::from([(TRIAL_LABEL.to_owned(), instance.to_string())])
}

/// The container of a trial: the instance's own, but for what makes it a trial.
fn create_body(trial: &Trial, io_weight: Option<u16>) -> ContainerCreateBody {
    let mut plan = trial.container.clone();
    match &trial.network {
        Some(network) => {
            plan.network = trial_name(&plan.instance);
            plan.address = network.container();
            plan.dns = network.gateway();
        }
        None => "none".clone_into(&mut plan.network),
    }
    let mut body = container::create_body(&plan, &trial.mounts);
    let mut of_trial = labels(&plan.instance);
    of_trial.insert(GENERATION_LABEL.to_owned(), plan.generation.to_string());
    body.labels = Some(of_trial);
    body.cmd.clone_from(&trial.command);
    if trial.network.is_none() {
        body.networking_config = None;
    }
    if let Some(host) = &mut body.host_config {
        host.cpu_shares = Some(CPU_SHARES);
        host.blkio_weight = io_weight;
        if trial.network.is_none() {
            host.dns = None;
        }
    }
    body
}

/// The weight, where giving one is no error: with cgroup v2 a container that has one does not start on a
/// kernel without such weights (runc, `libcontainer/cgroups/fs2/io.go`); with v1 Docker drops it itself.
fn io_weight() -> Option<u16> {
    let root = Path::new("/sys/fs/cgroup");
    let unified = root.join("cgroup.controllers").exists();
    let slice = root.join("system.slice");
    let weights = ["io.weight", "io.bfq.weight"].iter().any(|file| slice.join(file).exists());
    (!unified || weights).then_some(IO_WEIGHT)
}

/// How a container ended; none while it has not.
fn exit_of(found: &ContainerInspectResponse) -> Option<Exit> {
    match container::state(found.state.as_ref()?, None) {
        ContainerState::Exited(exit) => Some(exit),
        ContainerState::Created | ContainerState::Running { .. } | ContainerState::Paused => None,
    }
}

/// The end of what a container has printed.
async fn output(client: &bollard::Docker, id: &str) -> Result<String, RuntimeError> {
    let options =
        query::LogsOptionsBuilder::new().stdout(true).stderr(true).tail(TAIL_LINES).build();
    let doing = "reading a trial's output";
    let read = within(doing, LOOK, tail(client.logs(id, Some(options)))).await?;
    read.map_err(|error| failure(doing, error))
}

/// The last characters of a log, in bounded memory.
pub(super) async fn tail(
    log: impl Stream<Item = Result<LogOutput, bollard::errors::Error>>,
) -> Result<String, bollard::errors::Error> {
    let mut log = std::pin::pin!(log);
    let mut kept = Vec::new();
    while let Some(piece) = log.next().await {
        kept.extend_from_slice(&piece?.into_bytes());
        let excess = kept.len().saturating_sub(TAIL_BYTES);
        kept.drain(..excess);
    }
    let text = String::from_utf8_lossy(&kept);
    let excess = text.chars().count().saturating_sub(TAIL_CHARACTERS);
    Ok(text.chars().skip(excess).collect::<String>().trim().to_owned())
}

#[cfg(test)]
mod tests;
