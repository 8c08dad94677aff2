//! The child's end of the socket: lines out, answers in, and the end when the agent is gone.

use std::io::{self, BufRead as _, Write as _};
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::pieces::Incoming;
use super::protocol::{Fault, FaultKind, Said, Told};

/// How often the child says that it works. The agent waits for many times as long.
const BEAT: Duration = Duration::from_secs(1);
/// Reading its own counters and saying so moves fewer bytes than this: a beat that finds more means work.
const OWN_BYTES: u64 = 16 << 10;
/// Exit code when the agent is gone: nobody hears a reason.
const ORPHANED: i32 = 3;
/// Exit code when the instance was held for too long: the agent has heard why.
const HELD_TOO_LONG: i32 = 4;

/// How far a job is, shared with the threads that know.
#[derive(Debug, Default)]
pub(super) struct Meter {
    done: AtomicU64,
    total: AtomicU64,
    touched: AtomicBool,
}

impl Meter {
    /// How much there is to do.
    pub(super) fn expect(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// How much is done; it never becomes less.
    pub(super) fn reach(&self, done: u64) {
        self.done.fetch_max(done, Ordering::Relaxed);
        self.touched.store(true, Ordering::Relaxed);
    }

    fn said(&self) -> Said {
        Said::Progress {
            done: self.done.load(Ordering::Relaxed),
            total: self.total.load(Ordering::Relaxed),
        }
    }
}

/// The child's end of the socket.
#[derive(Debug)]
pub(super) struct Link {
    answers: Arc<Mutex<Receiver<Told>>>,
    meter: Arc<Meter>,
    _beating: SyncSender<()>,
}

impl Link {
    /// Listens on standard input from now on. When that ends, the process does: an agent that died needs no
    /// result, and the next one wants the repository's lock.
    pub(super) fn open() -> Self {
        let (sender, answers) = sync_channel(1);
        thread::spawn(move || listen(&sender));
        let meter = Arc::new(Meter::default());
        let (beating, ended) = sync_channel(0);
        let beaten = Arc::clone(&meter);
        thread::spawn(move || beat(&beaten, &ended));
        Self { answers: Arc::new(Mutex::new(answers)), meter, _beating: beating }
    }

    /// What comes through the job's pipe.
    pub(super) fn incoming(&self) -> Incoming {
        Incoming::new(Arc::clone(&self.answers))
    }

    /// What says how far the job is.
    pub(super) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Has the instance held, does something meanwhile, and lets it go on. When that takes longer than
    /// `longest`, the process ends: the agent lets the instance go on anyway, and whatever was copied by then
    /// is of no moment.
    pub(super) fn while_held<T, E>(
        &self,
        longest: Duration,
        work: impl FnOnce() -> Result<T, E>,
        copied: impl FnOnce(&T) -> (u64, u64),
    ) -> Result<T, E> {
        say(&Said::Hold);
        let held = self.answers.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Told::Held) = held else { orphaned() };
        let (watching, over) = sync_channel::<()>(0);
        thread::spawn(move || watch(longest, &over));
        let done = work();
        drop(watching);
        // On failure the agent lets it go on when it hears of it.
        if let Ok(done) = &done {
            let (files, bytes) = copied(done);
            say(&Said::Release { files, bytes });
        }
        done
    }
}

/// One line, whole.
pub(super) fn say(said: &Said) {
    static TALKING: Mutex<()> = Mutex::new(());
    let _talking = TALKING.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(mut line) = serde_json::to_vec(said) else { return };
    line.push(b'\n');
    let mut out = io::stdout().lock();
    if out.write_all(&line).and_then(|()| out.flush()).is_err() {
        orphaned();
    }
}

/// Forwards answers; ends the process with its agent.
fn listen(answers: &SyncSender<Told>) {
    let mut line = String::new();
    let mut input = io::stdin().lock();
    loop {
        line.clear();
        match input.read_line(&mut line) {
            Ok(0) | Err(_) => orphaned(),
            Ok(_) => {}
        }
        match serde_json::from_str(&line) {
            Ok(told) => _ = answers.send(told),
            Err(_) => orphaned(),
        }
    }
}

/// Says how far the job is as long as something happens: a job that hangs falls silent.
fn beat(meter: &Meter, ended: &Receiver<()>) {
    let mut moved = moved_bytes();
    while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
        let now = moved_bytes();
        let touched = meter.touched.swap(false, Ordering::Relaxed);
        if touched || now.saturating_sub(moved) > OWN_BYTES {
            moved = now;
            say(&meter.said());
        }
    }
}

/// Bytes that this process has read and written so far (`rchar`, `wchar` of proc(5)).
fn moved_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let count = |line: &str| -> Option<u64> {
        let value = line.strip_prefix("rchar: ").or_else(|| line.strip_prefix("wchar: "))?;
        value.parse().ok()
    };
    text.lines().filter_map(count).sum()
}

fn watch(longest: Duration, over: &Receiver<()>) {
    if over.recv_timeout(longest) == Err(RecvTimeoutError::Timeout) {
        let problem = format!("the instance was held for {} s", longest.as_secs_f32());
        say(&Said::Failed(Fault { kind: FaultKind::Failed, problem }));
        end(HELD_TOO_LONG);
    }
}

fn orphaned() -> ! {
    end(ORPHANED)
}

#[expect(clippy::exit, reason = "threads in the engine cannot be ended otherwise")]
fn end(code: i32) -> ! {
    process::exit(code)
}
