//! Thousands of simulated agents on the released coordinator: connecting, idling, changes, a kill; beside raw
//! rustls in the same run. The load is made by `tests/claw-load`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use claw_lab::command;

use super::table::Table;
use crate::cargo::{cargo, run as run_command, target};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Simulated agents; several, separated by commas, give a curve. One open file each.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000, 10_000])]
    agents: Vec<usize>,
    /// Seconds of heartbeats.
    #[arg(long, default_value_t = 30)]
    idle: u64,
}

/// A row: what is shown, of which figure, beside which floor, with which goal.
struct Row {
    label: &'static str,
    figure: &'static str,
    floor: &'static str,
    goal: &'static str,
}

const fn row(
    label: &'static str,
    figure: &'static str,
    floor: &'static str,
    goal: &'static str,
) -> Row {
    Row { label, figure, floor, goal }
}

/// In the order in which they are measured.
const ROWS: &[Row] = &[
    row("hosts enrolled and given an instance, 1/s", "enrolled_per_s", "", ""),
    row("connects/s", "connects_per_s", "floor_connects_per_s", "≥ 1 500"),
    row("CPU of the server for a connect, ms", "connect_cpu_ms", "floor_connect_cpu_ms", ""),
    row("RSS per agent, idle, KiB", "rss_idle_kib", "floor_rss_idle_kib", "≤ 45"),
    row("RSS per agent, after changes, KiB", "rss_pushed_kib", "floor_rss_pushed_kib", ""),
    row(
        "heartbeats, % of a core",
        "heartbeat_cpu_percent",
        "floor_heartbeat_cpu_percent",
        "≤ 6 at 10 000",
    ),
    row(
        "2 KB to every host, stored and acknowledged, s",
        "push_all_s",
        "floor_push_all_s",
        "≤ 1 at 10 000",
    ),
    row("CPU of the coordinator for each of them, µs", "push_cpu_us", "", ""),
    row("one change, p50, ms", "push_one_p50_ms", "floor_push_one_p50_ms", ""),
    row("one change, p99, ms", "push_one_p99_ms", "floor_push_one_p99_ms", "≤ 5"),
    row("kill -9 until all are back, s", "storm_s", "floor_storm_s", "≤ 15"),
];

/// Figures of one run by name.
type Figures = BTreeMap<String, f64>;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let programs = Programs::build()?;
    let mut runs = Vec::new();
    for agents in &arguments.agents {
        eprintln!("{agents} agents");
        let (count, idle) = (agents.to_string(), arguments.idle.to_string());
        let options = ["fleet", "--agents", &count, "--idle", &idle];
        runs.push(programs.measure(&options, &["--coordinator", "--dir"])?);
    }
    let counts = arguments.agents.iter().map(|agents| format!("{agents} (rustls)"));
    let columns: Vec<String> =
        ["what".to_owned()].into_iter().chain(counts).chain(["goal".to_owned()]).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let mut table = Table::new("fleet", &columns);
    for row in ROWS {
        let cells = runs.iter().map(|figures| cell(figures, row));
        let label = [row.label.to_owned()].into_iter();
        table.row(&label.chain(cells).chain([row.goal.to_owned()]).collect::<Vec<_>>());
    }
    table.print();
    Ok(())
}

/// A figure, and its floor in brackets.
fn cell(figures: &Figures, row: &Row) -> String {
    let show = |name: &str| figures.get(name).map(|figure| format!("{figure:.2}"));
    let figure = show(row.figure).unwrap_or_else(|| "–".to_owned());
    show(row.floor).map_or_else(|| figure.clone(), |floor| format!("{figure} ({floor})"))
}

/// The load generator and what it loads.
pub(super) struct Programs {
    load: PathBuf,
    coordinator: PathBuf,
}

impl Programs {
    /// Both as they are released.
    pub(super) fn build() -> Result<Self> {
        let packages = ["--package", "claw-load", "--package", "claw-coordinator"];
        let mut build = cargo(&["build", "--quiet", "--locked", "--release"]);
        build.args(packages);
        run_command(build)?;
        let program = |name: &str| target().join("release").join(name);
        Ok(Self { load: program("claw-load"), coordinator: program("claw-coordinator") })
    }

    /// Runs a command of the generator; data goes below the directory of compiled code, which is on a disk.
    pub(super) fn measure(&self, options: &[&str], with: &[&str]) -> Result<Figures> {
        let mut load = command(&self.load);
        load.args(options);
        for option in with {
            load.arg(option);
            load.arg(if *option == "--dir" { target() } else { self.coordinator.clone() });
        }
        let done = load.stderr(std::process::Stdio::inherit()).output();
        let done = done.with_context(|| format!("cannot run {}", self.load.display()))?;
        ensure!(done.status.success(), "claw-load {options:?}: {}", done.status);
        let text = String::from_utf8(done.stdout).context("no text")?;
        serde_json::from_str(&text).context("no figures")
    }
}
