//! The operator's command line of a claw fleet.
//!
//! What it is for: registering hosts, making join tokens, applying files of hosts and instances,
//! looking at them, waiting for them, their snapshots and what they were before. Every command is a few calls of `claw.fleet.v1` over mTLS.
//!
//! What it does not do: it decides nothing about the fleet and keeps no state. What is valid is for
//! the coordinator to say; clawctl shows all that is wrong at once and what to do about it.
//!
//! # Where to start
//!
//! | for | see |
//! | --- | --- |
//! | commands and flags | `cli.rs` |
//! | what a command does | `command.rs` and below |
//! | the file format | `file.rs`, `file/spec.rs` |
//! | JSON and YAML output, which are stable | `view.rs` and below |
//! | errors, hints and exit codes | `failure.rs`, `call.rs` |
//! | waiting | `watch.rs`, `watch/goal.rs`; what is seen meanwhile: `meter.rs` |
#![forbid(unsafe_code)]

mod call;
mod cli;
mod clock;
mod command;
mod connection;
mod failure;
mod file;
mod meter;
mod output;
mod settings;
mod table;
mod view;
mod watch;

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _};

/// What a process has around it.
pub struct Surroundings<'a> {
    /// Read by `-f -` only.
    pub stdin: &'a mut dyn Read,
    /// Answers.
    pub stdout: &'a mut dyn Write,
    /// Errors, hints and remarks.
    pub stderr: &'a mut dyn Write,
    /// Whether `stderr` is a terminal on which a line can be drawn again.
    pub terminal: bool,
    /// Reads a variable of the environment: `HOME`, `XDG_CONFIG_HOME` and what files name.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
}

impl fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").finish_non_exhaustive()
    }
}

/// The command line's definition, for man pages and completions.
#[must_use]
pub fn command() -> clap::Command {
    cli::Cli::command()
}

/// Runs one command; `arguments` begin with the program's name.
///
/// The exit code is 0 when it was done, 1 when it failed, 2 when command line, settings or file
/// are wrong and nothing was sent. Dropping the future leaves a mutation that was sent done or not done.
pub async fn run(
    arguments: impl IntoIterator<Item = OsString>,
    surroundings: &mut Surroundings<'_>,
) -> ExitCode {
    ExitCode::from(status(arguments, surroundings).await)
}

/// As [`run`], with the status as a number.
pub async fn status(
    arguments: impl IntoIterator<Item = OsString>,
    surroundings: &mut Surroundings<'_>,
) -> u8 {
    let parsed = command()
        .try_get_matches_from(arguments)
        .and_then(|matches| cli::Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return answer_parse_error(&error, surroundings),
    };
    match Box::pin(command::run(cli, surroundings)).await {
        Ok(()) => failure::DONE,
        Err(error) => {
            let status = error.exit_code();
            if status != failure::DONE {
                let _unheard = failure::show(&error, surroundings.stderr);
            }
            status
        }
    }
}

/// Writes an error with its causes, as every error of clawctl looks.
///
/// # Errors
/// What writing to `err` says.
pub fn report(error: &dyn Error, err: &mut dyn Write) -> io::Result<()> {
    failure::chain(error, err)
}

/// Help and version are answers; everything else is wrong usage.
fn answer_parse_error(error: &clap::Error, surroundings: &mut Surroundings<'_>) -> u8 {
    let text = error.render();
    let written = if error.use_stderr() {
        write!(surroundings.stderr, "{text}")
    } else {
        write!(surroundings.stdout, "{text}")
    };
    let _unheard = written;
    if error.use_stderr() { failure::USAGE } else { failure::DONE }
}
