//! Benchmarks: each prints a table beside its goal, measured with its baseline in the same run.
//!
//! They assert nothing about time. See README, "Benchmarks".

mod deploy;
mod firewall;
mod fleet;
mod footprint;
mod heal;
mod load;
mod outage;
mod rig;
mod snapshot;
mod store;
mod table;
mod update;

use anyhow::Result;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Rounds; baseline and product alternate within each.
    #[arg(long, global = true, default_value_t = 20)]
    rounds: usize,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// CreateInstance at the coordinator to HTTP 200, against raw network + create + start.
    Deploy,
    /// kill -9 of the gateway to HTTP 200, against die event + start.
    Heal,
    /// Memory, CPU and wake-ups of clawd over 60 s, with 1 and 10 instances, connected and not.
    Footprint,
    /// Applying the firewall, against rule by rule; what leaks meanwhile; how fast it heals.
    Firewall,
    /// An update of a running instance, against stop + create + start; with data and rehearsal.
    Update,
    /// Simulated agents on the coordinator: connects, memory, changes, heartbeats, a kill; against raw rustls.
    Fleet(fleet::Arguments),
    /// Durable changes per second, against plain SQLite; a coordinator with 100 000 instances.
    Store,
    /// Snapshots of a running instance, first and later, against restic; the pause they take.
    Snapshot,
}

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.command {
        Command::Deploy => deploy::run(arguments.rounds),
        Command::Heal => heal::run(arguments.rounds),
        Command::Footprint => footprint::run(),
        Command::Fleet(arguments) => fleet::run(arguments),
        Command::Store => store::run(),
        Command::Firewall => firewall::run(arguments.rounds),
        Command::Update => update::run(arguments.rounds),
        Command::Snapshot => snapshot::run(),
    }
}
