//! The contract of [`Runtime`].

use std::collections::BTreeSet;
use std::time::Duration;

use claw_core::address::InstanceNetwork;
use claw_core::name::{ImageRef, InstanceName};
use claw_core::observed::{ContainerState, ObservedContainer};
use claw_core::plan::ContainerPlan;
use claw_core::unit::{CpuMillis, PidsLimit};
use tokio::sync::mpsc;

use super::{Breach, done, holds, same};
use crate::ports::{Mounts, Runtime, RuntimeChange, RuntimeError, RuntimeEvent, RuntimeView};

/// How long events may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the suite works on: an instance that the runtime knows nothing of.
#[derive(Debug)]
pub struct RuntimeSubject {
    /// Its network.
    pub network: InstanceNetwork,
    /// Its container; the image can be had, runs until SIGTERM and then ends with 0.
    pub plan: ContainerPlan,
    /// Its mounts, which exist.
    pub mounts: Mounts,
    /// An image that is nowhere.
    pub absent_image: ImageRef,
    /// An image that is present under two names and that no container was made from. The suite removes it.
    pub spare: [ImageRef; 2],
}

/// The contract of [`Runtime`]. It ends as it began.
///
/// # Errors
/// The first rule that is broken.
pub async fn runtime(runtime: &impl Runtime, subject: &RuntimeSubject) -> Result<(), Breach> {
    let mut suite = Suite { runtime, subject, events: runtime.events() };
    suite.nothing().await?;
    let network = suite.network().await?;
    let id = suite.created().await?;
    suite.running().await?;
    suite.limits(&id).await?;
    suite.stopped(&id).await?;
    suite.images().await?;
    suite.removed(&id, &network).await
}

struct Suite<'a, R> {
    runtime: &'a R,
    subject: &'a RuntimeSubject,
    events: mpsc::Receiver<RuntimeEvent>,
}

impl<R: Runtime> Suite<'_, R> {
    const fn instance(&self) -> &InstanceName {
        &self.subject.plan.instance
    }

    async fn view(&self) -> Result<RuntimeView, Breach> {
        let image = Some(&self.subject.plan.image);
        done("looking succeeds", self.runtime.view(self.instance(), image).await)
    }

    async fn container(&self, rule: &'static str) -> Result<ObservedContainer, Breach> {
        let view = self.view().await?;
        view.container.ok_or_else(|| Breach::new(rule, "no container"))
    }

    async fn change(&self, rule: &'static str, change: RuntimeChange<'_>) -> Result<(), Breach> {
        done(rule, self.runtime.change(self.instance(), change).await)
    }

    /// Waits for an event of the instance.
    async fn changed(&mut self, rule: &'static str) -> Result<(), Breach> {
        let expected = RuntimeEvent::Changed(self.instance().clone());
        self.event(rule, &expected).await
    }

    async fn event(&mut self, rule: &'static str, expected: &RuntimeEvent) -> Result<(), Breach> {
        let waiting = async {
            loop {
                match self.events.recv().await {
                    Some(event) if event == *expected => return true,
                    Some(_other) => {}
                    None => return false,
                }
            }
        };
        let came = tokio::time::timeout(PATIENCE, waiting).await;
        holds(rule, came == Ok(true), "the event did not come")
    }

    async fn nothing(&mut self) -> Result<(), Breach> {
        let version = done("there is a version", self.runtime.version().await)?;
        holds("the version is not empty", !version.is_empty(), &version)?;
        self.event("events begin with being connected", &RuntimeEvent::Connected).await?;
        for rule in ["an image is pulled", "pulling what is present is success"] {
            done(rule, self.runtime.pull(&self.subject.plan.image, &|_| {}).await)?;
        }
        let nothing = RuntimeView { image_present: true, network: None, container: None };
        same("there is nothing of an unknown instance", &self.view().await?, &nothing)?;
        let absent = self.runtime.view(self.instance(), Some(&self.subject.absent_image)).await;
        let absent = done("looking for an absent image succeeds", absent)?;
        holds("an absent image is absent", !absent.image_present, absent)?;
        let pulled = self.runtime.pull(&self.subject.absent_image, &|_| {}).await;
        let refused = matches!(pulled, Err(RuntimeError::Image { .. }));
        holds("an image that is nowhere cannot be had", refused, pulled)?;
        self.is_listed(false).await
    }

    async fn is_listed(&self, expected: bool) -> Result<(), Breach> {
        let listed = done("listing succeeds", self.runtime.inventory().await)?;
        let rule = "instances with a container or a network are listed, others are not";
        same(rule, &listed.contains(self.instance()), &expected)
    }

    async fn network(&self) -> Result<String, Breach> {
        let wanted = &self.subject.network;
        for rule in ["a network is made", "making it again is success"] {
            self.change(rule, RuntimeChange::CreateNetwork(wanted)).await?;
        }
        let rule = "the network is as it was asked for";
        let Some(found) = self.view().await?.network else {
            return Err(Breach::new(rule, "no network"));
        };
        same(rule, &found.subnet, &wanted.subnet())?;
        same(rule, &found.bridge, &wanted.bridge())?;
        self.is_listed(true).await?;
        Ok(found.id)
    }

    async fn created(&mut self) -> Result<String, Breach> {
        let RuntimeSubject { plan, mounts, .. } = self.subject;
        for rule in ["a container is made", "making it again is success"] {
            self.change(rule, RuntimeChange::CreateContainer(plan, mounts)).await?;
        }
        self.changed("a new container is told").await?;
        let rule = "the container is as it was asked for";
        let found = self.container(rule).await?;
        same(rule, &found.state, &ContainerState::Created)?;
        same(rule, &found.spec_digest, &Some(plan.digest))?;
        same(rule, &found.generation, &Some(plan.generation))?;
        same(rule, &found.nano_cpus, &plan.resources.cpu.nano())?;
        same(rule, &found.pids_limit, &plan.resources.pids.count())?;
        let other =
            ContainerPlan { digest: claw_core::stamp::Digest::of(b"another spec"), ..plan.clone() };
        let made =
            self.runtime.change(self.instance(), RuntimeChange::CreateContainer(&other, mounts));
        let made = made.await;
        holds("a container from another spec is in the way", made.is_err(), made)?;
        Ok(found.id)
    }

    async fn running(&mut self) -> Result<(), Breach> {
        for rule in ["a container is started", "starting a running one is success"] {
            self.change(rule, RuntimeChange::Start).await?;
        }
        self.changed("a start is told").await?;
        let rule = "a started container runs with its address";
        let found = self.container(rule).await?;
        let runs = matches!(found.state, ContainerState::Running { pid, .. } if pid > 0);
        holds(rule, runs, &found)?;
        same(rule, &found.address, &Some(self.subject.plan.address))
    }

    async fn limits(&self, id: &str) -> Result<(), Breach> {
        let cpu = done("the limit is valid", CpuMillis::from_millis(700))?;
        let pids = done("the limit is valid", PidsLimit::from_count(333))?;
        self.change("limits are changed", RuntimeChange::Limits(id, cpu, pids)).await?;
        let rule = "changed limits are seen";
        let found = self.container(rule).await?;
        same(rule, &(found.nano_cpus, found.pids_limit), &(cpu.nano(), pids.count()))?;
        self.change("thawing what is not frozen is success", RuntimeChange::Unpause(id)).await?;
        self.frozen(id).await
    }

    async fn frozen(&self, id: &str) -> Result<(), Breach> {
        let rule = "a container that was frozen runs on as if nothing had been";
        let before = self.container(rule).await?.state;
        for rule in ["a container is frozen", "freezing it again is success"] {
            self.change(rule, RuntimeChange::Pause(id)).await?;
            same(rule, &self.container(rule).await?.state, &ContainerState::Paused)?;
        }
        let removed = self.runtime.change(self.instance(), RuntimeChange::Remove(id)).await;
        holds("a frozen container is not removed", removed.is_err(), removed)?;
        for again in ["a container is thawed", "thawing it again is success"] {
            self.change(again, RuntimeChange::Unpause(id)).await?;
            same(rule, &self.container(rule).await?.state, &before)?;
        }
        let absent = self.runtime.change(self.instance(), RuntimeChange::Pause("absent")).await;
        holds("what is absent is not frozen", absent.is_err(), absent)
    }

    async fn stopped(&mut self, id: &str) -> Result<(), Breach> {
        let grace = Duration::from_secs(10);
        for rule in ["a container is stopped", "stopping a stopped one is success"] {
            self.change(rule, RuntimeChange::Stop(id, grace)).await?;
        }
        self.changed("an end is told").await?;
        let rule = "an obedient process has ended with 0";
        let found = self.container(rule).await?;
        let ended =
            matches!(found.state, ContainerState::Exited(exit) if exit.code == 0 && !exit.oom);
        holds(rule, ended, &found)?;
        same("limits outlive a stop", &found.pids_limit, &333)?;
        self.change("a stopped container is started again", RuntimeChange::Start).await?;
        let again = self.container(rule).await?;
        let runs = matches!(again.state, ContainerState::Running { .. });
        holds("it runs again", runs && again.id == found.id, &again)?;
        let removed = self.runtime.change(self.instance(), RuntimeChange::Remove(id)).await;
        holds("a running container is not removed", removed.is_err(), removed)?;
        self.change("it is stopped again", RuntimeChange::Stop(id, grace)).await
    }

    /// While there is a container, which is down.
    async fn images(&self) -> Result<(), Breach> {
        let RuntimeSubject { plan, absent_image, spare: [first, second], .. } = self.subject;
        let all = [&plan.image, absent_image, first, second].map(Clone::clone);
        let all = BTreeSet::from(all);
        let look = async || done("looking for images succeeds", self.runtime.images(&all).await);
        let found = look().await?;
        let used = |image: &ImageRef| found.get(image).map(|found| found.used);
        let rule = "images are found by their references, with who uses them";
        same(rule, &used(&plan.image), &Some(true))?;
        same(rule, &used(absent_image), &None)?;
        same(rule, &used(first), &Some(false))?;
        let rule = "two names of the same content have one id";
        let [one, other] = [first, second].map(|image| found.get(image));
        same(rule, &one, &other)?;
        let refused = self.runtime.remove_image(&plan.image).await;
        holds("what a container was made from is not removed", refused.is_err(), refused)?;
        let bytes = one.map_or(0, |image| image.bytes);
        holds("an image takes room", bytes > 0, bytes)?;
        for (rule, image, given_back) in [
            ("removing one of two names gives nothing back", first, 0),
            ("removing what is gone is success", first, 0),
            ("the last name goes with the image", second, bytes),
        ] {
            let removed = done(rule, self.runtime.remove_image(image).await)?;
            same(rule, &removed, &given_back)?;
            let left = look().await?;
            holds(rule, !left.contains_key(image), &left)?;
        }
        let left = look().await?;
        holds("nothing else is gone", left.contains_key(&plan.image) && left.len() == 1, &left)
    }

    async fn removed(&self, id: &str, network: &str) -> Result<(), Breach> {
        for rule in ["a container is removed", "removing one that is gone is success"] {
            self.change(rule, RuntimeChange::Remove(id)).await?;
        }
        let grace = Duration::from_secs(1);
        self.change("stopping one that is gone is success", RuntimeChange::Stop(id, grace)).await?;
        for rule in ["a network is removed", "removing one that is gone is success"] {
            self.change(rule, RuntimeChange::RemoveNetwork(network)).await?;
        }
        let nothing = RuntimeView { image_present: true, network: None, container: None };
        same("nothing is left", &self.view().await?, &nothing)?;
        self.is_listed(false).await
    }
}
