//! A customer who keeps asking while something is done to the fleet.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use claw_lab::LabHost;

use crate::fleet::Fleet;

/// Between two requests.
const PAUSE: Duration = Duration::from_millis(50);

/// What a customer saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Requests in all.
    pub requests: usize,
    /// Every request that did not end with 200, with what came instead.
    pub failures: Vec<String>,
}

/// Requests that are made at least, so that a quick work is watched too, and its aftermath.
const FEWEST: usize = 30;

/// GETs `/healthz` of an instance through its host's reverse proxy, twenty times a second, for as long
/// as `work` takes, and at least thirty times.
///
/// # Errors
/// Those of `work`.
pub fn during<T>(
    fleet: &Fleet,
    host: &LabHost,
    name: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Seen)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let customer = scope.spawn(|| {
            let mut seen = Seen::default();
            while !over.load(Ordering::Relaxed) || seen.requests < FEWEST {
                seen.requests += 1;
                match fleet.browse(host, name, "/healthz") {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(answer) => seen.failures.push(answer.head),
                    Err(error) => seen.failures.push(format!("{error:#}")),
                }
                std::thread::sleep(PAUSE);
            }
            seen
        });
        let outcome = work();
        over.store(true, Ordering::Relaxed);
        let seen = customer.join().map_err(|_| anyhow::anyhow!("the customer panicked"))?;
        Ok((outcome?, seen))
    })
}
