//! `dial ADDRESS…`: connects to each address about a thousand times a second, for as long as it lives.
//!
//! It is what a container does that tries to get out from its first moment on. Whether it gets through
//! shows at the other end; here nothing is noted.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use crate::life;
use crate::log;

/// Callers of each address; each takes two pauses at most for an attempt.
const CALLERS: usize = 32;
/// How long an attempt is waited for, and how long a caller rests after it.
const PAUSE: Duration = Duration::from_millis(15);

/// Dials until it is told to end.
pub(crate) fn run(addresses: &[SocketAddr]) -> ExitCode {
    if let Err(error) = start(addresses) {
        log::error(&format!("starting a caller: {error}"));
        return ExitCode::FAILURE;
    }
    life::wait_for_stop();
    ExitCode::SUCCESS
}

fn start(addresses: &[SocketAddr]) -> io::Result<()> {
    for address in addresses {
        let address = *address;
        for _ in 0..CALLERS {
            std::thread::Builder::new().stack_size(64 << 10).spawn(move || {
                loop {
                    // Both ends of what comes of it are the same to this one.
                    let _ = TcpStream::connect_timeout(&address, PAUSE);
                    std::thread::sleep(PAUSE);
                }
            })?;
        }
    }
    Ok(())
}
