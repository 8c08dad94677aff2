//! The command line as types. What the commands do is in [`mod@crate::command`].

mod data;
mod offsite;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use claw_proto::fleet::v1 as fleet;

use crate::file::quantity;

pub(crate) use data::{RecoveryArgs, RollbackArgs, SnapshotCommand};
pub(crate) use offsite::{Addressing, MigrateArgs, OffsiteArgs, OffsiteCommand};

/// Long help: where settings come from and what exit codes mean.
const AFTER_HELP: &str = "\
Settings: a flag wins over its environment variable, which wins over clawctl.toml:

  endpoint = \"coordinator.example:7443\"
  identity = \"/home/alice/.config/clawctl\"   # holds key.pem, cert.pem and ca.pem

Exit status: 0 done, 1 failed, 2 wrong command line, settings or file (nothing was sent).";

/// Operates a claw fleet through its coordinator.
#[derive(Debug, Parser)]
#[command(name = "clawctl", version, after_long_help = AFTER_HELP)]
#[command(subcommand_required = false, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connection: ConnectionArgs,
    /// How answers are printed; JSON and YAML are stable, tables are for people.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Write a man page or completions, for packaging.
    #[arg(long, hide = true, exclusive = true, value_enum)]
    pub(crate) generate: Option<Generate>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// Where the coordinator is and who is calling.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectionArgs {
    /// The coordinator; the port is 7443 unless given.
    #[arg(long, global = true, env = "CLAWCTL_ENDPOINT", value_name = "HOST:PORT")]
    pub(crate) endpoint: Option<String>,
    /// Directory with key.pem, cert.pem and ca.pem [default: ~/.config/clawctl].
    #[arg(long, global = true, env = "CLAWCTL_IDENTITY", value_name = "DIR")]
    pub(crate) identity: Option<PathBuf>,
    /// Settings file [default: ~/.config/clawctl/clawctl.toml].
    #[arg(long, global = true, env = "CLAWCTL_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Deadline of one call [default: 30s]; of the whole wait for watch and --wait [default: 10m, none
    /// for a watch without --until].
    #[arg(long, global = true, value_name = "TIME", value_parser = quantity::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON value; one for each line while watching.
    Json,
    /// One YAML document for each resource; `clawctl apply` takes it back.
    Yaml,
    /// Resource names only.
    Name,
}

/// What `--generate` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Generate {
    /// Man page, roff.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create or update hosts and instances from files.
    Apply(ApplyArgs),
    #[command(flatten)]
    Instance(InstanceCommand),
    /// Delete instances by name, or everything that files name.
    Delete(DeleteArgs),
    /// Show what `apply` of files would do, and change nothing.
    Plan(PlanArgs),
    /// Instances: the same commands as above, and `create`.
    #[command(name = "instance", subcommand)]
    InstanceGroup(InstanceGroup),
    /// Snapshots of instances.
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Hosts of the fleet.
    #[command(subcommand)]
    Host(HostCommand),
    /// One-time tokens with which hosts join.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Who did what, newest first.
    Audit(AuditArgs),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// YAML or JSON with one or many documents of kind Host or Instance; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Let the coordinator check everything and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until every instance runs its version (or is stopped or paused, if it should be).
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// YAML or JSON with one or many documents of kind Host or Instance; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    /// Instances.
    #[arg(value_name = "NAME", required_unless_present = "files")]
    pub(crate) names: Vec<String>,
    /// Delete what these files name, instances before hosts; - is standard input.
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "names")]
    pub(crate) files: Vec<PathBuf>,
    /// Wait until the hosts have removed them.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceGroup {
    /// Create an instance from flags; `clawctl apply` knows every field.
    Create(Box<CreateArgs>),
    /// Delete instances.
    Delete(DeleteArgs),
    #[command(flatten)]
    Any(InstanceCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceCommand {
    /// List instances.
    List {
        /// Only those of this host.
        #[arg(long, value_name = "HOST")]
        host: Option<String>,
    },
    /// Show one instance: what it should be and what it is.
    Get {
        /// The instance.
        name: String,
    },
    /// Follow instances as they change.
    Watch(WatchArgs),
    /// Want an instance up.
    Start(ChangeArgs),
    /// Want an instance down, data kept.
    Stop(ChangeArgs),
    /// Want an instance down, with a snapshot of its data held for 7 days at least.
    Pause(ChangeArgs),
    /// Want a paused instance up again, from its own data.
    Resume(ChangeArgs),
    /// Restart an instance once.
    Restart(ChangeArgs),
    /// Replace an instance's container, data kept.
    Rebuild(ChangeArgs),
    /// Bring an instance back to a snapshot, or its spec to an earlier revision, as one change.
    Rollback(RollbackArgs),
    /// Move an instance to another host, with its data and snapshots.
    Migrate(MigrateArgs),
    /// Give a move up: the instance stays where it was.
    CancelMigration {
        /// The instance.
        name: String,
    },
    /// List specs that an instance had, newest first; the first is in force.
    Revisions {
        /// The instance.
        name: String,
    },
    /// Print a gateway's token; this is audited.
    GatewayToken {
        /// The instance.
        name: String,
    },
    /// Print the password with which plain restic reads an instance's snapshots; this is audited.
    RecoveryPassword(RecoveryArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// The instance.
    pub(crate) name: String,
    /// Wait until it is so.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Instances; all of them if none is named.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Only those of this host.
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// End when every named instance is so; fail when one cannot get there.
    #[arg(long, value_enum, requires = "names")]
    pub(crate) until: Option<Until>,
}

/// What a watch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Until {
    /// Serving and past the health gate, with its present spec.
    Running,
    /// Down, with its present spec.
    Stopped,
    /// Down, and a snapshot of its data is held.
    Paused,
    /// Removed from its host.
    Deleted,
}

impl Until {
    /// What an instance's spec wants.
    pub(crate) fn of(instance: &fleet::Instance) -> Self {
        match instance.spec.as_ref().map(fleet::InstanceSpec::run_state) {
            Some(fleet::RunState::Stopped) => Self::Stopped,
            Some(fleet::RunState::Paused) => Self::Paused,
            Some(fleet::RunState::Running | fleet::RunState::Unspecified) | None => Self::Running,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the new instance: a DNS label of at most 40 characters.
    pub(crate) name: String,
    /// The host that runs it.
    #[arg(long)]
    pub(crate) host: String,
    /// Image reference, by digest wherever a registry serves it.
    #[arg(long)]
    pub(crate) image: String,
    /// A tier of the coordinator's catalogue.
    #[arg(long)]
    pub(crate) tier: Option<String>,
    /// Memory limit, such as 2GiB.
    #[arg(long, value_parser = quantity::Bytes::parse)]
    pub(crate) memory: Option<quantity::Bytes>,
    /// CPU limit in cores, such as 1.5 or 1500m.
    #[arg(long, value_parser = quantity::Cpu::parse)]
    pub(crate) cpu: Option<quantity::Cpu>,
    /// Most processes and threads.
    #[arg(long)]
    pub(crate) pids: Option<u64>,
    /// Plain environment variable; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub(crate) env: Vec<(String, String)>,
    /// Secret from a file; may be repeated.
    #[arg(long, value_name = "NAME=FILE", value_parser = parse_pair)]
    pub(crate) secret_file: Vec<(String, String)>,
    /// Secret from a variable of this process's environment; may be repeated.
    #[arg(long, value_name = "NAME=VARIABLE", value_parser = parse_pair)]
    pub(crate) secret_env: Vec<(String, String)>,
    /// The tenant's openclaw.json.
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// IDENTITY.md.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity_file: Option<PathBuf>,
    /// Name under which the host's reverse proxy serves it; may be repeated.
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) hostname: Vec<String>,
    /// Origin from which the control UI may connect; may be repeated.
    #[arg(long, value_name = "URL")]
    pub(crate) origin: Vec<String>,
    /// Create it without starting it.
    #[arg(long)]
    pub(crate) stopped: bool,
    /// Let the coordinator check everything and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until it runs (or is stopped, with --stopped).
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) wait: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// List hosts.
    List,
    /// Show one host with its last report.
    Get {
        /// The host.
        name: String,
    },
    /// Register a host so that it can join.
    Create {
        /// Name of the new host: a DNS label.
        name: String,
        /// Label; may be repeated.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_pair)]
        labels: Vec<(String, String)>,
        /// Place nothing on it yet.
        #[arg(long)]
        cordoned: bool,
    },
    /// Forget a host without instances and refuse its certificates.
    Delete {
        /// The host.
        name: String,
    },
    /// Place no new instances on a host.
    Cordon {
        /// The host.
        name: String,
    },
    /// Place instances on a host again.
    Uncordon {
        /// The host.
        name: String,
    },
    /// Refuse a host's certificates and end its session; it needs a new join token to return.
    Revoke {
        /// The host.
        name: String,
    },
    /// Show a host's firewall as it is in force: what comes in, what instances may reach, what was refused.
    Firewall(FirewallArgs),
    /// Where a host copies its repositories of snapshots to.
    #[command(subcommand)]
    Offsite(OffsiteCommand),
    /// What happened on a host, oldest first.
    Events {
        /// The host.
        name: String,
        /// Only those of this instance.
        #[arg(long, value_name = "INSTANCE")]
        instance: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct FirewallArgs {
    /// The host.
    pub(crate) name: String,
    /// Print the rules in force with their counters, as iptables-save -c does.
    #[arg(long)]
    pub(crate) rules: bool,
    /// Print the network policy that would have refused this instance nothing, for its file.
    #[arg(long, value_name = "INSTANCE", conflicts_with = "rules")]
    pub(crate) proposal: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for one host; it is shown only now.
    Create {
        /// The host that may join with it.
        host: String,
        /// How long it is good for, 1m to 24h [default: 1h].
        #[arg(long, value_name = "TIME", value_parser = quantity::parse_duration)]
        ttl: Option<Duration>,
        /// What is printed.
        #[arg(long, value_enum, default_value_t = TokenForm::Token)]
        print: TokenForm,
    },
    /// List tokens, without their secrets.
    List,
    /// Make a token useless.
    Delete {
        /// The token's id.
        token: String,
    },
}

/// What `token create` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TokenForm {
    /// The token.
    Token,
    /// The command that joins the host.
    JoinCommand,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Only entries of this resource, such as instances/demo.
    #[arg(long)]
    pub(crate) resource: Option<String>,
    /// Most entries; 0 for all.
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: usize,
}

fn parse_pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn delete_needs_names_or_files_and_not_both() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop);
        assert!(parse("clawctl delete").is_err());
        assert!(parse("clawctl delete demo -f x.yaml").is_err());
        assert!(parse("clawctl delete demo").is_ok());
        assert!(parse("clawctl watch --until running").is_err());
        assert!(parse("clawctl instance watch demo --until running --timeout 2m").is_ok());
        assert!(parse("clawctl watch demo --until paused").is_ok());
        assert!(parse("clawctl --generate man").is_ok());
    }
}
