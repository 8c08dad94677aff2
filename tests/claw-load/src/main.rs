//! Load for a coordinator: thousands of agents that speak the real protocol with the real identity library.
//!
//! What it is for: `cargo xtask bench fleet` and `bench store`, which print what this program
//! measures. It is a program of its own because nothing that measures may share a process with what is
//! measured, and a crate of its own because it needs the coordinator's and the protocol's crates, which
//! xtask and `claw-tests` must not depend on.
//!
//! What it does not do: simulate anything of the coordinator. That is the released binary with its SQLite
//! store, started on loopback. Agents enrol with join tokens as hosts do.
//!
//! Where to start: [`fleet::run`], and [`agent`] for how an agent behaves. Each command prints one line of JSON
//! on stdout, and its progress on stderr.
#![forbid(unsafe_code)]

mod agent;
mod api;
mod echo;
mod figures;
mod fleet;
mod floor;
mod inside;
mod instances;
mod limits;
mod process;
mod push;
mod site;
mod store;
mod wire;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// What to measure.
#[derive(Debug, Parser)]
#[command(name = "claw-load", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A fleet of simulated agents and a coordinator, beside raw rustls.
    Fleet(fleet::Arguments),
    /// Durable changes per second through the coordinator's own code, beside plain SQLite.
    Store {
        /// Where databases go; on the disk that is to be measured.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Seconds for each figure.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Start and paged lists of a coordinator that holds many instances.
    Instances {
        /// The coordinator's program.
        #[arg(long, value_name = "FILE")]
        coordinator: PathBuf,
        /// Where its data goes.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How many instances; ten on each host.
        #[arg(long, default_value_t = 100_000)]
        count: usize,
    },
    /// Serves the echo that `fleet` compares with, until it is killed.
    EchoServer {
        /// A fleet's data directory: its authority certifies the server.
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// Port on loopback.
        #[arg(long)]
        port: u16,
    },
}

fn main() -> anyhow::Result<()> {
    limits::raise_open_files()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match Cli::parse().command {
        Command::Fleet(arguments) => runtime.block_on(fleet::run(&arguments)),
        Command::Store { dir, seconds } => runtime.block_on(store::run(&dir, seconds)),
        Command::Instances { coordinator, dir, count } => {
            runtime.block_on(instances::run(&coordinator, &dir, count))
        }
        Command::EchoServer { data_dir, port } => runtime.block_on(echo::serve(&data_dir, port)),
    }
}
