//! The agent's program: parses, loads, starts, waits for a signal.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use claw_identity::{Tls, provider};
use clawd::cli::{Cli, Command, JoinArgs};
use clawd::config::Config;
use clawd::join::{JoinRequest, join};
use clawd::{firewall, logging};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be listening.
            let _written = writeln!(std::io::stderr(), "clawd: {}", logging::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<()> {
    if let Some(Command::SnapWorker) = cli.command {
        return Ok(clawd::snap_worker::run()?);
    }
    let config = Config::load(&cli.config)?;
    if cli.check_config {
        return Ok(());
    }
    if cli.print_config {
        return Ok(write!(std::io::stdout(), "{}", config.to_toml())?);
    }
    let runtime = clawd::run::runtime().context("cannot start the runtime")?;
    match &cli.command {
        Some(Command::Join(args)) => runtime.block_on(join_fleet(args, &config)),
        Some(Command::FirewallBoot) => work(runtime, firewall::boot(&config)),
        Some(Command::FirewallCheck) => work(runtime, firewall::check(&config)),
        Some(Command::FirewallRevert) => work(runtime, firewall::revert(&config)),
        Some(Command::Dns) => work(runtime, clawd::dns::run(&config)),
        Some(Command::SnapWorker) | None => work(runtime, clawd::run::run(&config)),
    }
}

async fn join_fleet(args: &JoinArgs, config: &Config) -> anyhow::Result<()> {
    let request = JoinRequest {
        coordinator: args.coordinator.clone(),
        token: args.token()?,
        host: args.host()?,
        data_dir: config.data_dir.clone(),
    };
    let identity = join(&Tls::new(provider::ring()), &request).await?;
    let (host, fleet) = (request.host, identity.trust_domain());
    Ok(writeln!(std::io::stdout(), "{host} has joined {fleet}; next: systemctl start clawd")?)
}

/// Runs the agent, or what else the service manager starts, to its end.
fn work<E: Error + Send + Sync + 'static>(
    runtime: Runtime,
    work: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<()> {
    logging::init();
    let outcome = LocalSet::new().block_on(&runtime, work);
    // A blocked thread must not hold up the end.
    runtime.shutdown_background();
    Ok(outcome?)
}
