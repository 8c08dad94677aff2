//! The project's own commands: `cargo xtask demo`, `test`, `lint`, `dist`, `bench`, `check-deps`.
//!
//! Start with `cargo xtask --help`; each command is a module of the same name.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod bench;
mod cargo;
mod check_deps;
mod demo;
mod dist;
mod lint;
mod proto;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Brings up a coordinator and a host, and serves a real OpenClaw through them.
    Demo(demo::Arguments),
    /// Runs every test; sets up what they need.
    Test(test::Arguments),
    /// Formatting, clippy, docs, layers, proto, licences, shipped configuration.
    Lint,
    /// Builds the .deb packages.
    Dist,
    /// Measures; prints tables, asserts nothing about time.
    Bench(bench::Arguments),
    /// Holds the layer table against the crates' dependencies.
    CheckDeps,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Lint => lint::run(),
        Command::Dist => dist::run().map(|_| ()),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::CheckDeps => check_deps::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
