//! A fleet of simulated agents on a real coordinator: what connecting, idling, changing and losing the
//! coordinator cost.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::agent::{Agent, Board};
use crate::api::Api;
use crate::figures::{Figures, number, progress, quantile};
use crate::process::Usage;
use crate::push;
use crate::site::Site;
use crate::{floor, limits};

/// First dials at a time; a fleet is not made by a storm.
pub(crate) const RAMP: usize = 256;
/// Until buffers that nobody needs any more are gone.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The coordinator's program.
    #[arg(long, value_name = "FILE")]
    coordinator: PathBuf,
    /// Where the fleet's data goes; on the disk that is to be measured.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Simulated agents.
    #[arg(long)]
    agents: usize,
    /// Seconds of heartbeats.
    #[arg(long, default_value_t = 30)]
    pub(crate) idle: u64,
    /// Changes of every host.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Single changes.
    #[arg(long, default_value_t = 500)]
    pub(crate) singles: usize,
}

/// Measures, and prints the figures.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let room = limits::room()?;
    ensure!(
        u64::try_from(arguments.agents)? <= room,
        "the limit of open files has room for {room} agents"
    );
    let mut figures = Figures::default();
    let dir = tempfile::tempdir_in(&arguments.dir)?;
    let mut site = Site::make(&arguments.coordinator, dir.path()).await?;
    let agents = make(&mut site, arguments, &mut figures).await?;
    let mut crowd = Crowd::connect(&mut site, &agents, &mut figures).await?;
    crowd.idle(&site, arguments, &mut figures).await?;
    crowd.change_all(&site, arguments, &mut figures).await?;
    crowd.change_some(&site, arguments, &mut figures).await?;
    crowd.lose_coordinator(&mut site, &mut figures).await?;
    crowd.tasks.shutdown().await;
    site.stop().await?;
    floor::run(&site, &agents, arguments, &mut figures).await?;
    figures.print()
}

/// Every host enrols and gets an instance; then the coordinator starts anew, so that what it needed for that is
/// not taken for a cost of sessions.
async fn make(
    site: &mut Site,
    arguments: &Arguments,
    figures: &mut Figures,
) -> Result<Arc<Vec<Agent>>> {
    progress(&format!("{} hosts enrol and get an instance", arguments.agents));
    site.start().await?;
    let api = Api::connect(site.address(), &site.operator()).await?;
    let begun = Instant::now();
    let agents = api.join_all(arguments.agents).await?;
    let rate = number(agents.len()) / begun.elapsed().as_secs_f64();
    figures.note("enrolled_per_s", rate);
    drop(api);
    site.stop().await?;
    Ok(Arc::new(agents))
}

/// Agents that run.
struct Crowd {
    agents: Arc<Vec<Agent>>,
    board: Arc<Board>,
    tasks: JoinSet<()>,
    base: Usage,
    api: Api,
}

impl Crowd {
    /// Starts the coordinator and lets every agent connect, as fast as they are served.
    async fn connect(
        site: &mut Site,
        agents: &Arc<Vec<Agent>>,
        figures: &mut Figures,
    ) -> Result<Self> {
        figures.note("start_s", site.start().await?.as_secs_f64());
        let api = Api::connect(site.address(), &site.operator()).await?;
        let base = Usage::of(site.pid()?)?;
        figures.note("rss_base_mib", base.rss_kib / 1024.0);
        let board = Board::new(RAMP);
        let (mut tasks, count) = (JoinSet::new(), agents.len());
        let begun = Instant::now();
        for agent in agents.iter() {
            tasks.spawn(agent.clone().run(site.address(), Arc::clone(&board)));
        }
        let all = || board.acknowledged.load(Ordering::Relaxed) >= count;
        let connected = push::until("every agent to connect", all).await?;
        figures.note("connects_per_s", number(count) / (connected - begun).as_secs_f64());
        let cpu = Usage::of(site.pid()?)?.cpu - base.cpu;
        figures.note("connect_cpu_ms", cpu / number(count) * 1e3);
        let failed = board.failed.load(Ordering::Relaxed);
        figures.note("connects_failed", number(failed));
        Ok(Self { agents: Arc::clone(agents), board, tasks, base, api })
    }

    /// Heartbeats, and what a session holds.
    async fn idle(&self, site: &Site, arguments: &Arguments, figures: &mut Figures) -> Result<()> {
        tokio::time::sleep(SETTLE).await;
        let (before, begun) = (Usage::of(site.pid()?)?, Instant::now());
        figures.note("rss_idle_kib", self.per_agent(before));
        tokio::time::sleep(Duration::from_secs(arguments.idle)).await;
        let after = Usage::of(site.pid()?)?;
        let cpu = (after.cpu - before.cpu) / begun.elapsed().as_secs_f64() * 100.0;
        figures.note("heartbeat_cpu_percent", cpu);
        figures.note("rss_beaten_kib", self.per_agent(after));
        Ok(())
    }

    async fn change_all(
        &self,
        site: &Site,
        arguments: &Arguments,
        figures: &mut Figures,
    ) -> Result<()> {
        let before = Usage::of(site.pid()?)?;
        let mut rounds = Vec::new();
        for round in 1..=arguments.rounds {
            let took = push::to_all(&self.api, &self.agents, &self.board, round).await?;
            progress(&format!("round {round}: {took:?}"));
            rounds.push(took.as_secs_f64());
        }
        figures.note("push_all_s", quantile(&rounds, 0.5));
        let after = Usage::of(site.pid()?)?;
        let pushes = number(arguments.rounds * self.agents.len());
        figures.note("push_cpu_us", (after.cpu - before.cpu) / pushes * 1e6);
        tokio::time::sleep(SETTLE).await;
        figures.note("rss_pushed_kib", self.per_agent(Usage::of(site.pid()?)?));
        self.check("after changes of every host").await
    }

    async fn change_some(
        &self,
        site: &Site,
        arguments: &Arguments,
        figures: &mut Figures,
    ) -> Result<()> {
        let before = Usage::of(site.pid()?)?;
        let first = arguments.rounds + 1;
        let samples = push::one_by_one(&self.api, &self.agents, arguments.singles, first).await?;
        let cpu = Usage::of(site.pid()?)?.cpu - before.cpu;
        figures.note("push_one_cpu_us", cpu / number(arguments.singles) * 1e6);
        let samples: Vec<f64> = samples.into_iter().map(|seconds| seconds * 1e3).collect();
        figures.note("push_one_p50_ms", quantile(&samples, 0.5));
        figures.note("push_one_p99_ms", quantile(&samples, 0.99));
        self.check("after single changes").await
    }

    /// kill -9, and a new start at once: until every agent is back, and has what it should have.
    async fn lose_coordinator(&mut self, site: &mut Site, figures: &mut Figures) -> Result<()> {
        let (audited, count) = (self.api.audited().await?, self.agents.len());
        let begun = Instant::now();
        site.kill().await?;
        push::until("everybody to notice", || self.connected() == 0).await?;
        site.start().await?;
        let back = push::until("every agent to be back", || self.connected() == count).await?;
        figures.note("storm_s", (back - begun).as_secs_f64());
        let cpu = Usage::of(site.pid()?)?.cpu;
        figures.note("storm_cpu_ms", cpu / number(count) * 1e3);
        let failed = self.board.failed.load(Ordering::Relaxed);
        figures.note("storm_failed", number(failed));
        self.api = Api::connect(site.address(), &site.operator()).await?;
        let now = self.api.audited().await?;
        ensure!(now == audited, "{audited} audit entries before the kill, {now} after it");
        self.check("after the coordinator was killed").await
    }

    /// Every host has what is wanted of it, and was never told to go back.
    async fn check(&self, when: &str) -> Result<()> {
        let backwards = self.board.backwards.load(Ordering::Relaxed);
        ensure!(backwards == 0, "{backwards} states went back, {when}");
        let begun = Instant::now();
        loop {
            let (all, converged) = self.api.converged().await?;
            if all == self.agents.len() && converged == all {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < Duration::from_secs(30),
                "{converged} of {all} hosts have persisted their state, {when}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn connected(&self) -> usize {
        self.board.connected.load(Ordering::Relaxed)
    }

    fn per_agent(&self, usage: Usage) -> f64 {
        (usage.rss_kib - self.base.rss_kib) / number(self.agents.len())
    }
}
