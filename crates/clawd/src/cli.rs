//! The command line.

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use claw_core::name::{HostName, NameError};
use claw_identity::{JoinToken, TokenError};
use zeroize::Zeroizing;

use crate::config::STANDARD_PATH;
use crate::session::address::Address;

/// The agent of a claw fleet: makes this host's desired state true.
#[derive(Debug, Parser)]
#[command(name = "clawd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Configuration file.
    #[arg(long, value_name = "FILE", default_value = STANDARD_PATH, global = true)]
    pub config: PathBuf,
    /// Check the configuration, change nothing.
    #[arg(long, conflicts_with = "print_config")]
    pub check_config: bool,
    /// Print the whole configuration with its defaults.
    #[arg(long)]
    pub print_config: bool,
    /// What to do; without it, run the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What else than running the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give this host its identity in a fleet, with a one-time join token.
    Join(JoinArgs),
    /// Put the last good firewall rules in force; run at boot by clawd-firewall.service.
    FirewallBoot,
    /// Try firewall rules that the agent wrote down; run by clawd-firewall-check.service, in a network
    /// namespace of its own.
    FirewallCheck,
    /// Wait until new firewall rules should have proven good, then put back the old ones; run by
    /// clawd-firewall-revert.service.
    FirewallRevert,
    /// Answer the names of every instance on its bridge; run by clawd-dns.service.
    Dns,
    /// Do one job on an instance's snapshots, read from standard input; run for clawd-snapshots.socket.
    #[command(hide = true)]
    SnapWorker,
}

/// How to join.
#[derive(Args)]
pub struct JoinArgs {
    /// Where the coordinator is, as host:port.
    #[arg(long)]
    pub coordinator: Address,
    /// The join token. Other users can see it in the process list while the command runs: prefer
    /// --token-file or the environment variable CLAW_JOIN_TOKEN.
    #[arg(long, conflicts_with = "token_file", env = "CLAW_JOIN_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File that holds the join token; - is standard input.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// This host's name in the fleet; the system's host name by default.
    #[arg(long)]
    pub host_name: Option<String>,
}

/// Hides the token.
impl std::fmt::Debug for JoinArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinArgs")
            .field("coordinator", &self.coordinator)
            .field("host_name", &self.host_name)
            .finish_non_exhaustive()
    }
}

/// Why the arguments of `join` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JoinArgsError {
    /// No token was given.
    #[error(
        "no join token; hint: --token-file FILE, --token-file - (standard input), or CLAW_JOIN_TOKEN"
    )]
    NoToken,
    /// The token file cannot be read.
    #[error("cannot read the join token from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The token is damaged.
    #[error("cannot use the join token")]
    Token(#[from] TokenError),
    /// The host's name is not one.
    #[error("the host name {name:?} cannot be used in a fleet; hint: --host-name")]
    HostName {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: NameError,
    },
}

impl JoinArgs {
    /// The token, from wherever it was given.
    ///
    /// # Errors
    /// [`JoinArgsError`]; no message holds any part of the token.
    pub fn token(&self) -> Result<JoinToken, JoinArgsError> {
        let text = match (&self.token_file, &self.token) {
            (Some(path), _) => {
                read(path).map_err(|source| JoinArgsError::Read { path: path.clone(), source })?
            }
            (None, Some(text)) => Zeroizing::new(text.clone()),
            (None, None) => return Err(JoinArgsError::NoToken),
        };
        Ok(JoinToken::parse(&text)?)
    }

    /// The host's name in the fleet: the one given, else the first label of the system's.
    ///
    /// # Errors
    /// [`JoinArgsError::HostName`].
    pub fn host(&self) -> Result<HostName, JoinArgsError> {
        let name = self.host_name.clone().unwrap_or_else(system_host_name);
        HostName::parse(&name).map_err(|source| JoinArgsError::HostName { name, source })
    }
}

/// A token is short; this protects against a wrong file.
const MAX_TOKEN: u64 = 4096;

fn read(path: &Path) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") {
        std::io::stdin().take(MAX_TOKEN).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(MAX_TOKEN).read_to_string(&mut text)?;
    }
    Ok(text)
}

fn system_host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_else(|_error| OsString::new());
    let name = name.to_string_lossy();
    name.split('.').next().unwrap_or_default().to_ascii_lowercase()
}
