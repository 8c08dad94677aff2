//! One operation on a repository as a process of its own, as the agent's worker is one.
//!
//! `claw-snapshot-probe OPERATION REPOSITORY [ARGUMENT…]`; the secrets are fixed, so this is for
//! tests and measurements only. A repository is a directory, or `s3:ENDPOINT/BUCKET/PREFIX` with
//! `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` in the environment. It prints a line per ten
//! entries, then the result, then the most memory that it had, in KiB.
//!
//! Where to start: [`operations::run`] has the list of operations.

mod operations;
mod place;

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use claw_snapshot::limit_processors;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let limited = limit_processors(NonZeroUsize::MIN.saturating_add(1));
    let done = limited.map_err(Failure::from).and_then(|()| operations::run(&arguments));
    match done.and_then(|result| say(&result)).and_then(|()| say(&peak()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let mut text = fault.to_string();
            let mut cause = fault.source();
            while let Some(next) = cause {
                text.push_str(&format!(": {next}"));
                cause = next.source();
            }
            _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// proc(5), `VmHWM`.
fn peak() -> Result<String, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM")?;
    Ok(format!("peak {kib}"))
}
