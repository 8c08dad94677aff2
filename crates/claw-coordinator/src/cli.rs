//! The command line: parsed here, carried out by [`crate::init`] and [`crate::server`].

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use claw_identity::{PeerIdentity, Role, TrustDomain};
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::config::{Config, LogFormat, RawConfig};
use crate::init::{self, Init, Issue};
use crate::server::Coordinator;

/// Where data lies unless said otherwise.
const DATA_DIR: &str = "/var/lib/claw-coordinator";
/// Where the configuration lies unless said otherwise.
const CONFIG: &str = "/etc/claw-coordinator/coordinator.toml";

/// Holds the fleet's desired state, enrols hosts, serves the API.
#[derive(Debug, Parser)]
#[command(name = "claw-coordinator", version)]
pub struct Cli {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub config: PathBuf,
    /// Check the configuration and exit.
    #[arg(long)]
    pub check_config: bool,
    /// Print the configuration with every default and exit.
    #[arg(long)]
    pub print_config: bool,
    /// Without a command, serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new fleet: authority, keys, database, and the first operator's credentials.
    Init {
        /// Where its data goes.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
        /// DNS name or address under which hosts and clients reach the coordinator; repeatable.
        #[arg(long = "name", value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Stands in every certificate of the fleet.
        #[arg(long, value_name = "DOMAIN", default_value = "claw.internal")]
        trust_domain: TrustDomain,
        /// Name of the first operator.
        #[arg(long, value_name = "NAME", requires = "out")]
        operator: Option<String>,
        /// Directory for the operator's key.pem, cert.pem and ca.pem.
        #[arg(long, value_name = "DIR", requires = "operator")]
        out: Option<PathBuf>,
    },
    /// Make a key and certificate for a person or service.
    Issue {
        /// The fleet's data.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
        /// operator, service or viewer.
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// Name of the person or service.
        #[arg(long)]
        name: String,
        /// Directory for key.pem, cert.pem and ca.pem.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Days until the certificate ends.
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Denylist every certificate of a person or service.
    Deny {
        /// The fleet's data.
        #[arg(long, value_name = "DIR", default_value = DATA_DIR)]
        data_dir: PathBuf,
        /// operator, service or viewer.
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// Name of the person or service.
        #[arg(long)]
        name: String,
    },
}

fn parse_role(text: &str) -> Result<Role, String> {
    match text.parse() {
        Ok(Role::Agent) => Err("hosts get their certificates with a join token".to_owned()),
        Ok(role) => Ok(role),
        Err(error) => Err(format!("{error}")),
    }
}

impl Cli {
    /// Does what was asked for; returns what is to be printed.
    ///
    /// # Errors
    /// Whatever went wrong, with its causes.
    pub fn run(self) -> anyhow::Result<String> {
        if let Some(command) = self.command {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            return runtime.block_on(command.run(&Clock::system()));
        }
        let raw = RawConfig::load(&self.config)?;
        let printed = raw.to_toml()?;
        let config = Config::try_from(raw)?;
        if self.print_config {
            return Ok(printed);
        }
        if self.check_config {
            return Ok(format!("{} is good\n", self.config.display()));
        }
        start_logging(config.log_format);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.workers.get())
            .enable_all()
            .build()?;
        runtime.block_on(serve(config))?;
        Ok(String::new())
    }
}

impl Command {
    async fn run(self, clock: &Clock) -> anyhow::Result<String> {
        match self {
            Self::Init { data_dir, names, trust_domain, operator, out } => {
                let request = Init { data_dir: data_dir.clone(), names, trust_domain };
                init::init(&request, clock)?;
                let mut said = format!("made a fleet in {}\n", data_dir.display());
                if let Some((name, out)) = operator.zip(out) {
                    let lifetime = days(90);
                    let identity = PeerIdentity::new(Role::Operator, &name)
                        .with_context(|| format!("{name:?} is no name of an operator"))?;
                    let request = Issue { data_dir, identity, out, lifetime };
                    init::issue(&request, clock).await?;
                    said.push_str(&issued(&request));
                }
                Ok(said)
            }
            Self::Issue { data_dir, role, name, out, days: count } => {
                let identity = PeerIdentity::new(role, &name)
                    .with_context(|| format!("{name:?} is no name of a {role}"))?;
                let request = Issue { data_dir, identity, out, lifetime: days(count) };
                init::issue(&request, clock).await?;
                Ok(issued(&request))
            }
            Self::Deny { data_dir, role, name } => {
                let identity = PeerIdentity::new(role, &name)
                    .with_context(|| format!("{name:?} is no name of a {role}"))?;
                let count = init::deny(&data_dir, identity, clock).await?;
                Ok(format!("denylisted {count} certificates of {role}/{name}\n"))
            }
        }
    }
}

fn days(count: u32) -> Duration {
    Duration::from_secs(u64::from(count) * 24 * 3600)
}

fn issued(request: &Issue) -> String {
    format!(
        "made credentials of {} in {}: key.pem, cert.pem, ca.pem\n",
        request.identity,
        request.out.display()
    )
}

/// Serves until SIGTERM or SIGINT; SIGHUP reads certificates again.
async fn serve(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let coordinator = Coordinator::start(config, Clock::system()).await?;
    let watchdog = sd_notify::watchdog_enabled().map(|interval| interval / 2);
    notify(sd_notify::NotifyState::Ready);
    loop {
        tokio::select! {
            _signal = terminate.recv() => break,
            _signal = interrupt.recv() => break,
            _signal = hangup.recv() => coordinator.reload().await,
            () = pause(watchdog) => notify(sd_notify::NotifyState::Watchdog),
        }
    }
    notify(sd_notify::NotifyState::Stopping);
    coordinator.shutdown().await;
    Ok(())
}

async fn pause(interval: Option<Duration>) {
    match interval {
        Some(interval) => tokio::time::sleep(interval).await,
        None => std::future::pending().await,
    }
}

/// Without systemd there is nobody to tell.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}

fn start_logging(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_unset| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
