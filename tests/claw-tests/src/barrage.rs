//! Connects without pause: what comes through a firewall while something is done to it.
//!
//! One thread makes them all, a thousand per second and target, and waits for none. Whether what it saw
//! is good is for the caller to say: a denied target must never open, sshd always.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use claw_lab::Netns;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::clock::now;
use crate::dial::{Dial, Verdict};

/// Between two attempts at a target that must stay closed: somewhat more than a thousand per second.
const KILOHERTZ: Duration = Duration::from_micros(800);

/// Attempts that are due for longer than this are left out.
const MOST_LATE: Duration = Duration::from_millis(20);

/// Moments further apart than this are not of one time.
const APART: Duration = Duration::from_millis(30);

/// Attempts of which the moment is kept; further ones are only counted.
const KEPT: usize = 200_000;

/// Where to connect to, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// For people.
    pub name: String,
    /// Where.
    pub to: SocketAddr,
    /// Source addresses, used in turn; empty: the kernel chooses.
    pub from: Vec<IpAddr>,
}

/// How often, and how long an attempt is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two attempts at each target.
    pub every: Duration,
    /// After which an attempt counts as dropped.
    pub patience: Duration,
}

/// Connects that go on until they are told to stop.
#[derive(Debug)]
pub struct Barrage {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Seen>>>,
}

/// What became of the attempts at all targets.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All.
    pub attempts: usize,
    /// Those that came through, oldest first.
    pub opened: Vec<Attempt>,
    /// Those that did not.
    pub closed: Vec<Attempt>,
    /// Attempts that could not even be made: the network itself was gone.
    pub unsent: usize,
    /// When the first attempt was made; none before it.
    pub begun: Option<Instant>,
    /// From the first attempt to the last.
    pub length: Duration,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Which target, by its place in the list.
    pub target: usize,
    /// When it was made.
    pub at: Instant,
    /// What became of it.
    pub verdict: Verdict,
}

impl Target {
    /// A target.
    #[must_use]
    pub fn new(name: &str, to: impl Into<SocketAddr>) -> Self {
        Self { name: name.to_owned(), to: to.into(), from: Vec::new() }
    }
}

impl Pace {
    /// A thousand per second; what has not come through after a quarter of a second has not.
    pub const CLOSED: Self = Self { every: KILOHERTZ, patience: Duration::from_millis(250) };
}

impl Barrage {
    /// Starts it in a network namespace and returns once the first attempts are made.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(netns: &Netns, targets: Vec<Target>, pace: Pace) -> Result<Self> {
        ensure!(!targets.is_empty(), "no targets");
        let over = Arc::new(AtomicBool::new(false));
        let (stop, inside) = (Arc::clone(&over), netns.clone());
        let (begun, first) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("barrage".to_owned()).spawn(move || {
            inside.within(|| {
                let mut engine = Engine::new(targets, pace)?;
                engine.volley();
                let _ = begun.send(());
                engine.run(&stop)
            })?
        })?;
        let started = first.recv_timeout(Duration::from_secs(20));
        let barrage = Self { over, thread: Some(thread) };
        match started {
            Ok(()) => Ok(barrage),
            Err(_) => Err(barrage.stop().err().unwrap_or_else(|| anyhow!("it did not start"))),
        }
    }

    /// Stops it, waits for what is under way, and says what was seen.
    ///
    /// # Errors
    /// When it failed as a whole.
    pub fn stop(mut self) -> Result<Seen> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("stopped twice")?;
        thread.join().map_err(|_| anyhow!("the barrage panicked"))?
    }
}

impl Drop for Barrage {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Seen {
    /// Attempts per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let attempts = u32::try_from(self.attempts).map_or(f64::INFINITY, f64::from);
        attempts / self.length.as_secs_f64().max(0.001)
    }

    /// How long attempts came through, all such times together.
    #[must_use]
    pub fn open_for(&self) -> Duration {
        together(self.opened.iter().map(|attempt| attempt.at).collect())
    }

    /// How long verdicts were others than the one wanted, all such times together.
    #[must_use]
    pub fn amiss_for(&self, wanted: Verdict) -> Duration {
        let amiss = self.opened.iter().chain(&self.closed).filter(|a| a.verdict != wanted);
        together(amiss.map(|attempt| attempt.at).collect())
    }

    /// One line for the transcript.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} attempts in {:.1} s ({:.0}/s), {} came through",
            self.attempts,
            self.length.as_secs_f64(),
            self.rate(),
            self.opened.len()
        )
    }
}

/// The length of all times in which moments follow each other closely.
fn together(mut moments: Vec<Instant>) -> Duration {
    moments.sort();
    let gaps = moments.iter().zip(moments.iter().skip(1)).map(|(one, next)| *next - *one);
    gaps.filter(|gap| *gap < APART).sum()
}

/// What the thread works with.
struct Engine {
    targets: Vec<Target>,
    pace: Pace,
    epoll: Epoll,
    /// Those under way, in the order in which they were begun.
    pending: BTreeMap<u64, (Dial, usize, Instant)>,
    rounds: usize,
    next_id: u64,
    start: Instant,
    seen: Seen,
}

impl Engine {
    fn new(targets: Vec<Target>, pace: Pace) -> Result<Self> {
        Ok(Self {
            targets,
            pace,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            pending: BTreeMap::new(),
            rounds: 0,
            next_id: 0,
            start: now(),
            seen: Seen::default(),
        })
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Seen> {
        let mut due = now() + self.pace.every;
        while !stop.load(Ordering::Relaxed) {
            let late = now();
            // A thread that was away for long makes no burst of what it missed.
            due = due.max(late.checked_sub(MOST_LATE).unwrap_or(late));
            while due <= late {
                self.volley();
                due += self.pace.every;
            }
            self.collect(due.saturating_duration_since(now()))?;
        }
        self.seen.begun = Some(self.start);
        self.seen.length = self.start.elapsed();
        while !self.pending.is_empty() {
            self.collect(Duration::from_millis(5))?;
        }
        Ok(self.seen)
    }

    /// One attempt at each target.
    fn volley(&mut self) {
        for target in 0..self.targets.len() {
            self.attempt(target);
        }
        self.rounds += 1;
    }

    fn attempt(&mut self, index: usize) {
        let Some(target) = self.targets.get(index) else { return };
        let source = target.from.get(self.rounds.checked_rem(target.from.len()).unwrap_or(0));
        let from = source.map(|ip| SocketAddr::new(*ip, 0));
        self.seen.attempts += 1;
        let at = now();
        let begun = Dial::start(target.to, from).and_then(|dial| {
            let event = EpollEvent::new(EpollFlags::EPOLLOUT, self.next_id);
            self.epoll.add(dial.socket(), event)?;
            Ok(dial)
        });
        match begun {
            Ok(dial) => {
                self.pending.insert(self.next_id, (dial, index, at));
                self.next_id += 1;
            }
            Err(_) => self.seen.unsent += 1,
        }
    }

    /// Takes what has a verdict, for `length` at most, and gives up on what is too old.
    fn collect(&mut self, length: Duration) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        // Whole milliseconds: less would be a busy loop.
        let length = length.max(Duration::from_millis(1));
        let timeout = EpollTimeout::try_from(length).unwrap_or(EpollTimeout::ZERO);
        let ready = match self.epoll.wait(&mut events, timeout) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error).context("cannot wait for connects"),
        };
        for event in events.iter().take(ready) {
            if let Some((dial, target, at)) = self.pending.remove(&event.data()) {
                // An error that is no verdict did not come through either.
                let verdict = dial.verdict().unwrap_or(Verdict::TimedOut);
                dial.abort();
                self.record(Attempt { target, at, verdict });
            }
        }
        let present = now();
        while let Some(entry) = self.pending.first_entry() {
            if present.saturating_duration_since(entry.get().2) < self.pace.patience {
                break;
            }
            let (dial, target, at) = entry.remove();
            let verdict = dial.wait(Duration::ZERO).unwrap_or(Verdict::TimedOut);
            dial.abort();
            self.record(Attempt { target, at, verdict });
        }
        Ok(())
    }

    fn record(&mut self, attempt: Attempt) {
        let list = match attempt.verdict {
            Verdict::Open => &mut self.seen.opened,
            _ => &mut self.seen.closed,
        };
        if list.len() < KEPT {
            list.push(attempt);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_apart_are_counted_each_for_itself() {
        let start = now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let moments = [40, 0, 10, 1_000, 20, 1_005].map(at).to_vec();
        assert_eq!(together(moments), Duration::from_millis(45));
        assert_eq!(together(Vec::new()), Duration::ZERO);
    }
}
