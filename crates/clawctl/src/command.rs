//! What the commands do. Each is a few calls and one answer; nothing is decided here that the
//! coordinator decides.

mod apply;
mod audit;
mod delete;
mod generate;
mod host;
mod instance;
mod migrate;
mod plan;
mod rollback;
mod snapshot;
mod token;
mod waiting;

use std::io::{Read, Write};
use std::time::Duration;

use clap::CommandFactory as _;

use crate::Surroundings;
use crate::cli::{Cli, Command, Format, HostCommand, InstanceGroup};
use crate::clock;
use crate::connection::Connection;
use crate::failure::CommandError;
use crate::meter::Style;
use crate::output::Output;
use crate::settings::Settings;
pub(crate) use migrate::MigrationError;
pub(crate) use snapshot::{ArchiveError, SnapshotError};
use waiting::Glimpse;

/// How long `--wait` and `--until` wait unless `--timeout` says otherwise: longer than a start with
/// its default deadline (180 s) after a slow pull.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(600);

/// What a command works with.
struct Session<'a> {
    connection: Connection,
    patience: Option<Duration>,
    output: Output<'a>,
    /// For remarks that are no answers.
    err: &'a mut dyn Write,
    /// How the way of an instance is shown there.
    style: Style,
}

/// Whether a change is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Commit,
    /// The coordinator checks everything and changes nothing: `validate_only`.
    Check,
}

/// What `apply` and `create` read besides: standard input and variables.
struct Sources<'a> {
    stdin: &'a mut dyn Read,
    variable: &'a dyn Fn(&str) -> Option<String>,
}

/// Runs the command.
pub(crate) async fn run(cli: Cli, around: &mut Surroundings<'_>) -> Result<(), CommandError> {
    if let Some(what) = cli.generate {
        return Ok(generate::write(what, around.stdout)?);
    }
    let Some(command) = cli.command else {
        let help = Cli::command().render_help();
        return Ok(write!(around.stdout, "{help}")?);
    };
    if let Command::Completions { shell } = command {
        return Ok(generate::completions(shell, around.stdout)?);
    }
    let mut sources = Sources { stdin: &mut *around.stdin, variable: around.variable };
    // Files are read before anything is dialled: their faults need no coordinator.
    let prepared = Prepared::new(command, &mut sources)?;
    let settings = Settings::load(&cli.connection, around.variable)?;
    let mut session = Session {
        connection: Connection::open(&settings).await?,
        patience: settings.patience,
        output: Output { format: cli.output, out: &mut *around.stdout, now: clock::now() },
        err: &mut *around.stderr,
        style: if around.terminal { Style::Terminal } else { Style::Plain },
    };
    Box::pin(prepared.run(&mut session)).await?;
    Ok(session.output.out.flush()?)
}

/// A command with everything read that it reads.
enum Prepared {
    Apply(apply::Plan),
    Create(Box<instance::NewInstance>),
    Delete(delete::Targets),
    Offsite(host::NewStorage),
    Plan(plan::Draft),
    Other(Box<Command>),
}

impl Prepared {
    fn new(command: Command, sources: &mut Sources<'_>) -> Result<Self, CommandError> {
        Ok(match command {
            Command::Apply(arguments) => Self::Apply(apply::Plan::read(&arguments, sources)?),
            Command::Delete(arguments)
            | Command::InstanceGroup(InstanceGroup::Delete(arguments)) => {
                Self::Delete(delete::Targets::read(&arguments, sources)?)
            }
            Command::Plan(arguments) => Self::Plan(plan::Draft::read(&arguments, sources)?),
            Command::Host(HostCommand::Offsite(command)) => {
                Self::Offsite(host::NewStorage::read(command, sources)?)
            }
            Command::InstanceGroup(InstanceGroup::Create(arguments)) => {
                Self::Create(instance::NewInstance::read(*arguments, sources)?.into())
            }
            other => Self::Other(Box::new(other)),
        })
    }

    async fn run(self, session: &mut Session<'_>) -> Result<(), CommandError> {
        let command = match self {
            Self::Apply(plan) => return Box::pin(apply::run(plan, session)).await,
            Self::Create(new) => return instance::create(*new, session).await,
            Self::Delete(targets) => return delete::run(targets, session).await,
            Self::Offsite(new) => return host::set_offsite(new, session).await,
            Self::Plan(draft) => return plan::run(draft, session).await,
            Self::Other(command) => *command,
        };
        match command {
            Command::Instance(command) | Command::InstanceGroup(InstanceGroup::Any(command)) => {
                instance::run(command, session).await
            }
            Command::Snapshot(command) => snapshot::run(command, session).await,
            Command::Host(command) => host::run(command, session).await,
            Command::Token(command) => token::run(command, session).await,
            Command::Audit(arguments) => audit::run(arguments, session).await,
            // Taken by `new` and `run` above.
            Command::Apply(_)
            | Command::Delete(_)
            | Command::Plan(_)
            | Command::InstanceGroup(InstanceGroup::Create(_) | InstanceGroup::Delete(_))
            | Command::Completions { .. } => Ok(()),
        }
    }
}

impl Mode {
    /// From the flag `--dry-run`.
    fn of(dry_run: bool) -> Self {
        if dry_run { Self::Check } else { Self::Commit }
    }
}

impl Session<'_> {
    /// Says on the error stream what happens while a person waits; nothing for programs.
    fn remark(&mut self, text: &str) -> Result<(), CommandError> {
        if self.output.format == Format::Table {
            writeln!(self.err, "{text}")?;
        }
        Ok(())
    }
}
