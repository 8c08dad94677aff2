//! A gateway that behaves like OpenClaw from the outside, starts in milliseconds and fails on demand.
//!
//! It stands in for the real one wherever a test is about *us*: probes with their start-up phases, the
//! 403 trap of trusted proxies, the owner lease by hostname, drain on SIGTERM, state that migrates
//! forward, exit codes, pairing and suspension over the RPC. It is one static binary that runs as PID 1 in an
//! otherwise empty image, as any user, on a read-only root. It is no assistant: there is no other RPC.
//!
//! Commands, found after any words before them, so that the command line of the real image works:
//! `gateway [--allow-unconfigured] [--port N] [--bind MODE]`, `doctor`, `config validate`, `devices approve
//! REQUEST`; and
//! `dial ADDRESS…`, a container that does nothing but try to get out.
//!
//! For an image it is built as `RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile agent
//! -p claw-fake-gateway --target x86_64-unknown-linux-gnu`. It takes 1.5 MiB of memory (3.5 with a writer) and is ready
//! 7 ms after its start.
//!
//! What goes wrong is chosen by variables named `CLAW_FAKE_*`, in the process environment or the state
//! directory's `.env`: see [`switches`]. Start reading at [`life`].

mod clock;
mod command;
mod devices;
mod dial;
mod environment;
mod ingress;
mod lease;
mod life;
mod log;
mod request;
mod route;
mod rpc;
mod server;
mod sha1;
mod startup;
mod state;
mod status;
mod suspension;
mod switches;
mod websocket;
mod writer;

use std::io::Write;
use std::process::ExitCode;

use command::Command;
use environment::Environment;
use startup::Refusal;

fn main() -> ExitCode {
    // First of all, so that every later thread inherits the mask; PID 1 has no default handlers.
    if let Err(error) = life::block_signals() {
        log::error(&format!("blocking signals: {error}"));
        return ExitCode::FAILURE;
    }
    let environment = Environment::read();
    let outcome = match Command::parse(std::env::args().skip(1)) {
        Ok(Command::Gateway(options)) => startup::prepare(&options, &environment).map(life::run),
        Ok(Command::Doctor) => startup::doctor(&environment).map(|()| ExitCode::SUCCESS),
        Ok(Command::Dial(addresses)) => return dial::run(&addresses),
        Ok(Command::Approve(request)) => startup::approve(&request, &environment).map(print),
        Ok(Command::ValidateConfig) => return validate(&environment),
        Err(error) => Err(Refusal { code: 2, message: error.to_string() }),
    };
    outcome.unwrap_or_else(|refusal| {
        log::error(&refusal.message);
        ExitCode::from(refusal.code)
    })
}

/// Prints the verdict as `openclaw config validate --json` does: 0 valid, 1 not.
fn validate(environment: &Environment) -> ExitCode {
    let (verdict, code) = startup::validate(environment);
    match print(verdict) {
        ExitCode::SUCCESS => ExitCode::from(code),
        failure => failure,
    }
}

fn print(answer: serde_json::Value) -> ExitCode {
    match writeln!(std::io::stdout(), "{answer}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
