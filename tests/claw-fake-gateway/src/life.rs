//! The life of a gateway: from refusing connections through serving to its end.
//!
//! One thread, this one, owns the state and decides; all others only send it [`Event`]s: the signal
//! thread, the time line that the switches describe, the heartbeat of the lease, the control endpoints.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

use crate::lease::Lease;
use crate::log;
use crate::route::Site;
use crate::server;
use crate::startup::Gateway;
use crate::status::{Phase, Status};
use crate::switches::Switches;
use crate::writer;

/// How often the lease is renewed. Source: `heartbeatMs` in openclaw 2026.9.6.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Something that changes what the gateway does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Accept connections from now on.
    Listen,
    /// Started.
    Ready,
    /// Asked to end.
    Stop,
    /// The drain is over.
    Drained,
    /// Die without cleaning up.
    Crash(u8),
    /// Take so many MiB of memory.
    Eat(u32),
    /// Renew the lease.
    Heartbeat,
}

/// Keeps the signals that end a process for [`run`]'s own thread. Call it before any thread exists.
pub(crate) fn block_signals() -> nix::Result<()> {
    stop_signals().thread_block()
}

/// Returns when a signal asks to end.
pub(crate) fn wait_for_stop() {
    while stop_signals().wait().is_err() {}
}

/// Serves until a signal or a switch ends it.
pub(crate) fn run(gateway: Gateway) -> ExitCode {
    let (events, inbox) = sync_channel(64);
    let Gateway { switches, address, config, token, state, lease } = gateway;
    let status = Arc::new(Status::new(&switches));
    let site = Site {
        status: Arc::clone(&status),
        config,
        token,
        state,
        control: switches.control,
        busy: switches.busy,
        lease: switches.suspend,
        build: switches.build.clone(),
        events: events.clone(),
    };
    let writes = switches.writer.map(|pause| (site.state.dir().to_owned(), pause));
    let started = spawn("signals", &events, watch_signals)
        .and_then(|()| spawn("heartbeat", &events, beat))
        .and_then(|()| {
            let switches = switches.clone();
            spawn("timeline", &events, move |events| follow(&switches, events))
        });
    if let Err(error) = started {
        log::error(&format!("starting a thread: {error}"));
        return ExitCode::FAILURE;
    }
    let life = Life { events, status, drain: switches.drain, lease, writes };
    life.serve(&inbox, || serve_at(address, site))
}

struct Life {
    events: SyncSender<Event>,
    status: Arc<Status>,
    drain: Duration,
    lease: Lease,
    /// Where a writer is to write, and how long it rests after each row.
    writes: Option<(PathBuf, Duration)>,
}

impl Life {
    fn serve(self, inbox: &Receiver<Event>, listen: impl FnOnce() -> io::Result<()>) -> ExitCode {
        let mut listen = Some(listen);
        loop {
            // The senders live as long as `self`, so this never fails.
            let Ok(event) = inbox.recv() else { return ExitCode::FAILURE };
            match event {
                Event::Listen => {
                    if let Some(Err(error)) = listen.take().map(|listen| listen()) {
                        log::error(&format!("listening: {error}"));
                        self.lease.release();
                        return ExitCode::FAILURE;
                    }
                }
                Event::Ready => {
                    self.status.enter(Phase::Started);
                    log::info("gateway ready");
                    if let Some((dir, pause)) = &self.writes {
                        writer::start(dir, *pause);
                    }
                }
                Event::Stop if self.status.phase() == Phase::Draining => {
                    log::info("received a signal during shutdown; ignoring");
                }
                Event::Stop => self.start_draining(),
                Event::Drained => {
                    self.lease.release();
                    return ExitCode::SUCCESS;
                }
                Event::Crash(code) => {
                    log::error(&format!("crashing on demand with exit code {code}"));
                    return ExitCode::from(code);
                }
                Event::Eat(mib) => eat(mib),
                Event::Heartbeat => {
                    if let Err(error) = self.lease.renew() {
                        log::warn(&format!("owner lease heartbeat: {error}"));
                    }
                }
            }
        }
    }

    fn start_draining(&self) {
        self.status.enter(Phase::Draining);
        log::info("shutting down");
        let drain = self.drain;
        let spawned = spawn("drain", &self.events, move |events| {
            thread::sleep(drain);
            let _ = events.send(Event::Drained);
        });
        if spawned.is_err() {
            // Without a thread to wait in, end at once. The channel can only be full, not closed.
            let _ = self.events.try_send(Event::Drained);
        }
    }
}

fn serve_at(address: std::net::SocketAddr, site: Site) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    log::info(&format!("listening on {}", listener.local_addr()?));
    server::serve(listener, site)
}

fn stop_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals
}

fn watch_signals(events: &SyncSender<Event>) {
    let signals = stop_signals();
    while signals.wait().is_ok() {
        if events.send(Event::Stop).is_err() {
            return;
        }
    }
}

fn beat(events: &SyncSender<Event>) {
    loop {
        thread::sleep(HEARTBEAT);
        if events.send(Event::Heartbeat).is_err() {
            return;
        }
    }
}

/// Plays the time line of the switches. Sending fails only when the process is ending.
fn follow(switches: &Switches, events: &SyncSender<Event>) {
    thread::sleep(switches.start);
    if !switches.never_listen {
        let _ = events.send(Event::Listen);
    }
    thread::sleep(switches.starting);
    if switches.crash_before_ready {
        let _ = events.send(Event::Crash(switches.exit_code));
        return;
    }
    let _ = events.send(Event::Ready);
    if switches.eat_memory_mb > 0 {
        let _ = events.send(Event::Eat(switches.eat_memory_mb));
    }
    if let Some(after) = switches.exit_after {
        thread::sleep(after);
        let _ = events.send(Event::Crash(switches.exit_code));
    }
}

/// Takes `mib` MiB, touches every page and keeps it for ever, in a thread of its own.
fn eat(mib: u32) {
    log::warn(&format!("eating {mib} MiB of memory"));
    let eater = move || {
        let mut eaten = Vec::new();
        for _ in 0..mib {
            eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
        }
        log::warn("memory eaten");
        loop {
            thread::park();
        }
    };
    if thread::Builder::new().name("eater".to_owned()).spawn(eater).is_err() {
        log::error("no thread to eat memory in");
    }
}

fn spawn(
    name: &str,
    events: &SyncSender<Event>,
    work: impl FnOnce(&SyncSender<Event>) + Send + 'static,
) -> io::Result<()> {
    let events = events.clone();
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(server::STACK_BYTES)
        .spawn(move || work(&events))
        .map(drop)
}
