//! The coordinator's process: parses arguments, runs, says what went wrong.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use claw_coordinator::cli::Cli;
use claw_coordinator::status::Chain;

fn main() -> ExitCode {
    let outcome = Cli::parse().run();
    // A closed pipe is the reader's decision.
    match outcome {
        Ok(text) => {
            let _written = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _written = writeln!(std::io::stderr(), "error: {}", Chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
