//! The `clawctl` binary: gives [`clawctl::run`] the process's arguments, streams and environment.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _unheard = clawctl::report(&error, &mut io::stderr());
            return ExitCode::FAILURE;
        }
    };
    let variable = |name: &str| std::env::var(name).ok();
    let terminal = io::stderr().is_terminal() && variable("TERM").is_none_or(|t| t != "dumb");
    let mut surroundings = clawctl::Surroundings {
        stdin: &mut io::stdin().lock(),
        stdout: &mut io::stdout().lock(),
        stderr: &mut io::stderr().lock(),
        terminal,
        variable: &variable,
    };
    runtime.block_on(clawctl::run(std::env::args_os(), &mut surroundings))
}
