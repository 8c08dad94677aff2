//! How long a gateway does not answer: asked every millisecond from its host, as the reverse proxy would.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use claw_lab::LabHost;
use claw_tests::http;

use super::rig::now;

/// An attempt is given up after this: one that waits for TCP to try again would wait a second.
const PATIENCE: Duration = Duration::from_millis(20);

/// Somebody who asks without pause. Stops when dropped.
#[derive(Debug)]
pub(super) struct Outage {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<f64>>>,
}

impl Outage {
    /// Begins to ask.
    pub(super) fn watch(host: &LabHost, address: SocketAddr) -> Result<Self> {
        let (netns, over) = (host.netns()?, Arc::new(AtomicBool::new(false)));
        let stop = Arc::clone(&over);
        let thread = std::thread::Builder::new().name("outage".to_owned());
        let thread = thread.spawn(move || netns.within(|| longest(address, &stop)))?;
        Ok(Self { over, thread: Some(thread) })
    }

    /// The longest time from one answer to the next, in seconds.
    pub(super) fn longest(mut self) -> Result<f64> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("stopped twice")?;
        thread.join().map_err(|_| anyhow!("the watcher panicked"))?
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn longest(address: SocketAddr, over: &AtomicBool) -> f64 {
    let (mut last, mut longest) = (now(), 0.0_f64);
    // The last answer is one after the end: an outage until then counts.
    loop {
        let stop = over.load(Ordering::Relaxed);
        let answered = TcpStream::connect_timeout(&address, PATIENCE)
            .map_err(anyhow::Error::from)
            .and_then(|stream| http::get(stream, "bench", "/healthz"))
            .is_ok_and(|answer| answer.status == 200);
        if answered {
            let present = now();
            longest = longest.max(present - last);
            last = present;
        }
        if stop {
            return longest;
        }
        sleep(Duration::from_millis(1));
    }
}
