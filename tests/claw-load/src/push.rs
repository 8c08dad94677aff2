//! Changes that reach agents: one to every host, and single ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use claw_proto::fleet::v1::{self as fleet};
use tokio::time::Instant;
use tonic::Streaming;

use crate::agent::{Agent, Board};
use crate::api::{Api, each};

/// Calls of the service under way at a time.
const CALLS: usize = 256;
/// Longest wait for acknowledgements.
const PATIENCE: Duration = Duration::from_secs(120);
/// Instances that single changes go to: one watch takes 100 names at most.
const TARGETS: usize = 100;

/// Waits until something is so; returns when that was seen.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) -> Result<Instant> {
    let begun = Instant::now();
    while !is_so() {
        ensure!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(Instant::now())
}

/// Changes the instance of every host, each with a call of its own; returns the time from the first call
/// until every host has acknowledged its new state.
pub(crate) async fn to_all(
    api: &Api,
    agents: &Arc<Vec<Agent>>,
    board: &Board,
    round: usize,
) -> Result<Duration> {
    let before = board.acknowledged.load(Ordering::Relaxed);
    let begun = Instant::now();
    let (api, all) = (api.clone(), Arc::clone(agents));
    let changed = each(agents.len(), CALLS, move |number| {
        let (api, all) = (api.clone(), Arc::clone(&all));
        async move {
            let agent = all.get(number).context("no such agent")?;
            api.change(number, agent, round).await
        }
    });
    changed.await?;
    let wanted = before + agents.len();
    let is_so = || board.acknowledged.load(Ordering::Relaxed) >= wanted;
    Ok(until("every acknowledgement", is_so).await? - begun)
}

/// Single changes, one after the other: from the call to the moment when a watch of the instance shows that
/// its host has persisted it. In seconds.
pub(crate) async fn one_by_one(
    api: &Api,
    agents: &[Agent],
    count: usize,
    round: usize,
) -> Result<Vec<f64>> {
    // Spread over the fleet.
    let step = (agents.len() / TARGETS).max(1);
    let targets: Vec<(usize, &Agent)> = agents.iter().enumerate().step_by(step).collect();
    let targets = targets.get(..TARGETS.min(targets.len())).context("no targets")?;
    let names = targets.iter().map(|(_, agent)| format!("instances/{}", agent.instance)).collect();
    let mut sight = Sight::begin(api, names).await?;
    let mut samples = Vec::with_capacity(count);
    for (turn, (number, agent)) in targets.iter().cycle().take(count).enumerate() {
        let begun = Instant::now();
        let call = api.change(*number, agent, round + turn);
        let seen = sight.until_persisted(&agent.instance);
        let ((), ()) = tokio::try_join!(call, seen)?;
        samples.push(begun.elapsed().as_secs_f64());
    }
    Ok(samples)
}

/// A watch, and the revision of each instance that it has shown last.
struct Sight {
    watch: Streaming<fleet::WatchInstancesResponse>,
    revisions: BTreeMap<String, u64>,
}

impl Sight {
    async fn begin(api: &Api, names: Vec<String>) -> Result<Self> {
        let request = fleet::WatchInstancesRequest { names, host: String::new() };
        let watch = api.instances(0).watch_instances(request).await?.into_inner();
        let mut sight = Self { watch, revisions: BTreeMap::new() };
        while sight.next().await?.is_some() {}
        Ok(sight)
    }

    /// Waits until the next revision of an instance is on its host's disk.
    async fn until_persisted(&mut self, instance: &str) -> Result<()> {
        let name = format!("instances/{instance}");
        let before = self.revisions.get(&name).copied().context("not watched")?;
        loop {
            let seen = self.next().await?.filter(|seen| seen.name == name);
            let persisted = seen.filter(|seen| seen.revision > before).and_then(|seen| seen.status);
            if persisted.is_some_and(|status| status.persisted) {
                return Ok(());
            }
        }
    }

    /// The next instance that it shows; `None` when the beginning has been shown.
    async fn next(&mut self) -> Result<Option<fleet::Instance>> {
        let message = tokio::time::timeout(PATIENCE, self.watch.message()).await;
        let message = message.context("the watch is silent")??.context("the watch has ended")?;
        if let Some(instance) = &message.instance {
            self.revisions.insert(instance.name.clone(), instance.revision);
        }
        Ok(message.instance)
    }
}
