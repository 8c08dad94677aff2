//! Containers, images and networks, through Docker's API on its Unix socket.
//!
//! What it is for: what the agent asks of Docker, each request with a deadline, each answer in our
//! own types. Containers and networks are found by our labels; a container or network that merely
//! has one of our names is a stranger and stays as it is.
//!
//! What it deliberately does not do: retry, decide, poll `stats`, build images. Where to start:
//! [`Docker`]; `container` says how a gateway's container is made, `events` how changes are noticed,
//! `trial` what runs beside an instance, `exec` how a program is run within one.
//!
//! Requests carry no API version, so that every daemon answers in its own newest one; fields that
//! one of them lacks are optional here (tried with 20.10, 26.1). Each request has its own
//! connection: a daemon that was restarted needs no reconnecting.

mod container;
mod events;
mod exec;
mod images;
mod network;
mod pull;
mod stream;
mod trial;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters as query;
use claw_core::images::HostImage;
use claw_core::name::{ImageRef, InstanceName};
use claw_core::observed::ObservedContainer;
use claw_core::plan::{ContainerPlan, container_name};
use claw_core::unit::{CpuMillis, PidsLimit};
use tokio::sync::mpsc;

use crate::ports::{
    Mounts, PullProgress, Runtime, RuntimeChange, RuntimeError, RuntimeEvent, RuntimeView,
};
use events::OomLog;

/// Label of every container and network of an instance; its value is the instance's name.
const INSTANCE_LABEL: &str = "dev.claw.instance";

/// Label with the generation of the state that a container was made for.
const GENERATION_LABEL: &str = "dev.claw.generation";

/// Label with the digest of what a container was made from.
const DIGEST_LABEL: &str = "dev.claw.spec-digest";

/// Deadline of looking; an inspection takes 0.6 ms (measured with 20.10).
const LOOK: Duration = Duration::from_secs(10);

/// Deadline of a change that Docker carries out by itself.
const CHANGE: Duration = Duration::from_secs(60);

/// Deadline of freezing and thawing, which take milliseconds: an instance must not stay frozen.
const FREEZE: Duration = Duration::from_secs(10);

/// What Docker may take to stop a container beyond the grace.
const STOP_EXTRA: Duration = Duration::from_secs(20);

/// Above every deadline of ours, so that those are the ones that count.
const CLIENT_TIMEOUT_SECS: u64 = 24 * 3600;

/// How large a container's log may grow, and how many old ones are kept.
const LOG_FILE_SIZE: &str = "10m";
const LOG_FILES: &str = "3";

/// Docker on this host.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
    oom_log: Arc<OomLog>,
}

impl Docker {
    /// Docker behind a socket, `/run/docker.sock` as a rule. Nothing is connected yet.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket, oom_log: Arc::new(OomLog::default()) }
    }

    fn client(&self) -> Result<bollard::Docker, RuntimeError> {
        let socket = self.socket.to_string_lossy();
        bollard::Docker::connect_with_unix(
            &socket,
            CLIENT_TIMEOUT_SECS,
            bollard::API_DEFAULT_VERSION,
        )
        .map_err(|error| failure("connecting", error))
    }

    async fn inspect(
        &self,
        client: &bollard::Docker,
        id: &str,
    ) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        let doing = "inspecting a container";
        let inspected = client.inspect_container(id, None::<query::InspectContainerOptions>);
        absent_is_none(doing, within(doing, LOOK, inspected).await?)
    }

    /// The container that has the instance's name, if it is the instance's.
    async fn named(
        &self,
        client: &bollard::Docker,
        instance: &InstanceName,
    ) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        let name = container_name(instance);
        let Some(found) = self.inspect(client, &name).await? else { return Ok(None) };
        if container::instance_of(&found).as_deref() == Some(instance.as_str()) {
            return Ok(Some(found));
        }
        Err(RuntimeError::Stranger { name })
    }

    async fn containers_of(
        &self,
        client: &bollard::Docker,
        instance: &InstanceName,
    ) -> Result<Option<ObservedContainer>, RuntimeError> {
        let listed = list_containers(client, &label_is(instance)).await?;
        let newest = listed.into_iter().max_by_key(|container| container.created);
        let Some(id) = newest.and_then(|container| container.id) else { return Ok(None) };
        let found = self.inspect(client, &id).await?;
        Ok(found.and_then(|found| container::observed(found, &self.oom_log)))
    }

    async fn create(&self, plan: &ContainerPlan, mounts: &Mounts) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let doing = "creating a container";
        let options = query::CreateContainerOptionsBuilder::new().name(&plan.name).build();
        let body = container::create_body(plan, mounts);
        let created = client.create_container(Some(options), body);
        match within(doing, CHANGE, created).await? {
            Ok(_) => Ok(()),
            Err(error) => {
                // A stranger under our name explains any refusal.
                let found = self.named(&client, &plan.instance).await?;
                let same =
                    found.is_some_and(|found| container::digest_of(&found) == Some(plan.digest));
                if same && status(&error) == Some(409) {
                    return Ok(());
                }
                if is_image_missing(&error) {
                    let source = Box::new(error);
                    return Err(RuntimeError::Image { image: plan.image.clone(), source });
                }
                Err(failure(doing, error))
            }
        }
    }

    async fn start(&self, instance: &InstanceName) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let doing = "starting a container";
        // A container that is not there is for Docker to refuse, in its own words.
        let id = self.named(&client, instance).await?.and_then(|found| found.id);
        let id = id.unwrap_or_else(|| container_name(instance));
        let started = client.start_container(&id, None::<query::StartContainerOptions>);
        within(doing, CHANGE, started).await?.map_err(|error| failure(doing, error))
    }

    async fn pause(&self, id: &str) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let doing = "freezing a container";
        match within(doing, FREEZE, client.pause_container(id)).await? {
            Ok(()) => Ok(()),
            Err(error) => match self.inspect(&client, id).await? {
                Some(found) if container::is_frozen(&found) => Ok(()),
                _ => Err(failure(doing, error)),
            },
        }
    }

    async fn unpause(&self, id: &str) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let doing = "thawing a container";
        match within(doing, FREEZE, client.unpause_container(id)).await? {
            Ok(()) => Ok(()),
            Err(error) => match self.inspect(&client, id).await? {
                Some(found) if container::is_running(&found) => Ok(()),
                _ => Err(failure(doing, error)),
            },
        }
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let doing = "stopping a container";
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        let options = query::StopContainerOptionsBuilder::new().t(seconds).build();
        let stopped = client.stop_container(id, Some(options));
        let stopped = within(doing, grace.saturating_add(STOP_EXTRA), stopped).await?;
        absent_is_none(doing, stopped).map(drop)
    }

    async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let doing = "removing a container";
        let options = query::RemoveContainerOptionsBuilder::new().force(false).v(false).build();
        let removed = within(doing, CHANGE, client.remove_container(id, Some(options))).await?;
        match removed {
            Err(error) if is_being_removed(&error) => self.wait_until_gone(&client, id).await,
            removed => absent_is_none(doing, removed).map(drop),
        }
    }

    async fn wait_until_gone(
        &self,
        client: &bollard::Docker,
        id: &str,
    ) -> Result<(), RuntimeError> {
        let gone = async {
            while self.inspect(client, id).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        };
        let after = CHANGE;
        let timeout = RuntimeError::Timeout { doing: "removing a container", after };
        tokio::time::timeout(after, gone).await.unwrap_or(Err(timeout))
    }

    async fn limit(&self, id: &str, cpu: CpuMillis, pids: PidsLimit) -> Result<(), RuntimeError> {
        let client = self.client()?;
        let doing = "changing a container's limits";
        let updated = client.update_container(id, container::update_body(cpu, pids));
        within(doing, CHANGE, updated).await?.map_err(|error| failure(doing, error))
    }
}

impl Runtime for Docker {
    async fn version(&self) -> Result<String, RuntimeError> {
        let client = self.client()?;
        let doing = "asking for the version";
        let version = within(doing, LOOK, client.version()).await?;
        Ok(version.map_err(|error| failure(doing, error))?.version.unwrap_or_default())
    }

    async fn inventory(&self) -> Result<BTreeSet<InstanceName>, RuntimeError> {
        let client = self.client()?;
        let labels = [INSTANCE_LABEL.to_owned()];
        let (containers, networks) =
            tokio::join!(list_containers(&client, &labels), network::list(&client, &labels));
        let containers = containers?.into_iter().filter_map(|container| container.labels);
        let networks = networks?.into_iter().filter_map(|network| network.labels);
        let name =
            |labels: HashMap<String, String>| InstanceName::parse(labels.get(INSTANCE_LABEL)?).ok();
        Ok(containers.chain(networks).filter_map(name).collect())
    }

    async fn view(
        &self,
        instance: &InstanceName,
        image: Option<&ImageRef>,
    ) -> Result<RuntimeView, RuntimeError> {
        let client = self.client()?;
        let (container, network, image_present) = tokio::join!(
            self.containers_of(&client, instance),
            network::of(&client, instance),
            pull::is_present(&client, image),
        );
        Ok(RuntimeView { image_present: image_present?, network: network?, container: container? })
    }

    async fn pull(
        &self,
        image: &ImageRef,
        progress: &dyn Fn(PullProgress),
    ) -> Result<(), RuntimeError> {
        pull::pull(&self.client()?, image, progress).await
    }

    async fn images(
        &self,
        references: &BTreeSet<ImageRef>,
    ) -> Result<BTreeMap<ImageRef, HostImage>, RuntimeError> {
        images::of(&self.client()?, references).await
    }

    async fn remove_image(&self, image: &ImageRef) -> Result<u64, RuntimeError> {
        images::remove(&self.client()?, image).await
    }

    async fn change(
        &self,
        instance: &InstanceName,
        change: RuntimeChange<'_>,
    ) -> Result<(), RuntimeError> {
        match change {
            RuntimeChange::CreateNetwork(wanted) => {
                network::create(&self.client()?, instance, wanted).await
            }
            RuntimeChange::RemoveNetwork(id) => network::remove(&self.client()?, id).await,
            RuntimeChange::CreateContainer(plan, mounts) => self.create(plan, mounts).await,
            RuntimeChange::Start => self.start(instance).await,
            RuntimeChange::Pause(id) => self.pause(id).await,
            RuntimeChange::Unpause(id) => self.unpause(id).await,
            RuntimeChange::Stop(id, grace) => self.stop(id, grace).await,
            RuntimeChange::Remove(id) => self.remove(id).await,
            RuntimeChange::Limits(id, cpu, pids) => self.limit(id, cpu, pids).await,
        }
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        events::start(self.clone())
    }
}

/// Containers with these labels, or all of anybody's.
async fn list_containers(
    client: &bollard::Docker,
    labels: &[String],
) -> Result<Vec<bollard::models::ContainerSummary>, RuntimeError> {
    let doing = "listing containers";
    let mut filters = HashMap::new();
    if !labels.is_empty() {
        filters.insert("label", labels.to_vec());
    }
    let options = query::ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let listed = within(doing, LOOK, client.list_containers(Some(options))).await?;
    listed.map_err(|error| failure(doing, error))
}

/// The filter that finds what belongs to an instance.
fn label_is(instance: &InstanceName) -> [String; 1] {
    [format!("{INSTANCE_LABEL}={instance}")]
}

/// Gives a request its deadline.
async fn within<T>(
    doing: &'static str,
    after: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<Result<T, Error>, RuntimeError> {
    let answer = tokio::time::timeout(after, request).await;
    answer.map_err(|_late| RuntimeError::Timeout { doing, after })
}

/// The status of an answer that refuses.
const fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

fn absent_is_none<T>(
    doing: &'static str,
    answer: Result<T, Error>,
) -> Result<Option<T>, RuntimeError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if status(&error) == Some(404) => Ok(None),
        Err(error) => Err(failure(doing, error)),
    }
}

/// A missing network is "not found", too; only the text tells (moby, `daemon/images`).
fn is_image_missing(error: &Error) -> bool {
    match error {
        Error::DockerResponseServerError { status_code: 404, message } => {
            message.to_ascii_lowercase().contains("no such image")
        }
        _ => false,
    }
}

/// Docker says so in a text only (moby, `daemon/delete.go`).
fn is_being_removed(error: &Error) -> bool {
    match error {
        Error::DockerResponseServerError { status_code: 409, message } => {
            message.contains("is already in progress")
        }
        _ => false,
    }
}

/// Tells a daemon that is not there from one that refuses.
fn failure(doing: &'static str, error: Error) -> RuntimeError {
    match error {
        Error::HyperLegacyError { err } => RuntimeError::Unreachable(Box::new(err)),
        Error::SocketNotFoundError(_)
        | Error::HyperResponseError { .. }
        | Error::IOError { .. } => RuntimeError::Unreachable(Box::new(error)),
        error => RuntimeError::Refused { doing, source: Box::new(error) },
    }
}
