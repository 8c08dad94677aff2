//! A customer's program that writes to a gateway a hundred times a second, and remembers every answer.
//!
//! Each request is a row that the gateway acknowledges when it is on the disk (`/__fake/write` of one that
//! was started with `CLAW_FAKE_CONTROL`). So the same beats tell how long nobody answered and what must be
//! in the data afterwards.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use claw_lab::{LabHost, Network};

use crate::clock::now;
use crate::fleet::{Fleet, WEB_PORT};
use crate::http;

/// Between two requests.
const EVERY: Duration = Duration::from_millis(10);
/// After which an answer counts as missing.
const PATIENCE: Duration = Duration::from_secs(2);
/// Requests under way at the same time at most: all of those that are not answered in time, and some.
const WORKERS: usize = 224;
/// An answer that takes longer is as good as none while one waits for it: TCP alone tries again after a
/// second only.
const PROMPT: Duration = Duration::from_millis(200);
/// A beat that is later than this is left out: the machine was busy, which is not the gateway's fault.
const MOST_LATE: Duration = Duration::from_millis(50);

/// Requests that go on until they are told to stop.
#[derive(Debug)]
pub struct Pulse {
    over: Arc<AtomicBool>,
    first: Beat,
    ticker: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<Result<Vec<Beat>>>>,
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beat {
    /// When it was begun.
    pub at: Instant,
    /// How long it took.
    pub took: Duration,
    /// The row that it was to write.
    pub key: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged by the version with this tag.
    Acked(String),
    /// Anything else.
    Failed(String),
}

/// Every request, in the order in which they were begun.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    beats: Vec<Beat>,
}

/// A time without prompt answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// From the last request that was answered at once to the next one.
    pub length: Duration,
    /// Requests between them that failed.
    pub failed: usize,
    /// Requests between them that were answered late.
    pub late: usize,
}

impl Pulse {
    /// Starts it as a customer of an instance, through its host's reverse proxy; `series` tells its rows
    /// from those of others. Returns when the first request was answered.
    ///
    /// # Errors
    /// When threads cannot be started or nothing is answered for two seconds.
    pub fn start(fleet: &Fleet, host: &LabHost, name: &str, series: &str) -> Result<Self> {
        let site = Site {
            netns: fleet.lab().netns(Network::Client).clone(),
            address: (host.address(), WEB_PORT).into(),
            host: format!("{name}.claw.localhost"),
            series: series.to_owned(),
        };
        let first = site.netns.within(|| site.beat(0))?;
        anyhow::ensure!(matches!(first.outcome, Outcome::Acked(_)), "no answer: {first:?}");
        let over = Arc::new(AtomicBool::new(false));
        let (ticks, due) = sync_channel(1);
        let due = Arc::new(Mutex::new(due));
        let workers = (0..WORKERS).map(|_| {
            let (site, due) = (site.clone(), Arc::clone(&due));
            let work = move || site.netns.within(|| site.work(&due));
            thread().spawn(work)
        });
        let workers = workers.collect::<std::io::Result<Vec<_>>>()?;
        let (start, until) = (first.at, Arc::clone(&over));
        let ticker = Some(thread().spawn(move || tick(start, &ticks, &until))?);
        Ok(Self { over, first, ticker, workers })
    }

    /// Stops it, and says what was heard.
    ///
    /// # Errors
    /// When a thread failed as such.
    pub fn stop(mut self) -> Result<Heard> {
        self.over.store(true, Ordering::Relaxed);
        let ticker = self.ticker.take().context("stopped twice")?;
        ticker.join().map_err(|_| anyhow!("the ticker panicked"))?;
        let mut beats = vec![self.first.clone()];
        for worker in self.workers.drain(..) {
            beats.extend(worker.join().map_err(|_| anyhow!("a pulse panicked"))??);
        }
        beats.sort_by_key(|beat| beat.at);
        Ok(Heard { beats })
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Heard {
    /// Every request, in the order in which they were begun.
    #[must_use]
    pub fn beats(&self) -> &[Beat] {
        &self.beats
    }

    /// Requests that failed, with what came instead.
    pub fn failures(&self) -> impl Iterator<Item = (&Beat, &str)> {
        self.beats.iter().filter_map(|beat| match &beat.outcome {
            Outcome::Acked(_) => None,
            Outcome::Failed(how) => Some((beat, how.as_str())),
        })
    }

    /// Rows that were acknowledged by versions whose tag `by` accepts.
    #[must_use]
    pub fn acked(&self, by: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let acked = self.beats.iter().filter(|beat| match &beat.outcome {
            Outcome::Acked(tag) => by(tag),
            Outcome::Failed(_) => false,
        });
        acked.map(|beat| beat.key.clone()).collect()
    }

    /// Times without prompt answers, in their order.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let (mut gaps, mut last, mut failed, mut late) = (Vec::new(), None, 0, 0);
        for beat in &self.beats {
            match beat.outcome {
                Outcome::Failed(_) => failed += 1,
                Outcome::Acked(_) if beat.took > PROMPT => late += 1,
                Outcome::Acked(_) => {
                    let length = beat.at - last.replace(beat.at).unwrap_or(beat.at);
                    if failed + late > 0 {
                        gaps.push(Gap { length, failed, late });
                        (failed, late) = (0, 0);
                    }
                }
            }
        }
        gaps
    }

    /// All times without prompt answers together.
    #[must_use]
    pub fn outage(&self) -> Duration {
        self.gaps().iter().map(|gap| gap.length).sum()
    }

    /// How long the slowest answer took.
    #[must_use]
    pub fn slowest(&self) -> Duration {
        let answered = self.beats.iter().filter(|beat| matches!(beat.outcome, Outcome::Acked(_)));
        answered.map(|beat| beat.took).max().unwrap_or_default()
    }
}

impl fmt::Display for Heard {
    /// One line for the transcript.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = match (self.beats.first(), self.beats.last()) {
            (Some(first), Some(last)) => last.at - first.at,
            _ => Duration::ZERO,
        };
        write!(
            f,
            "{} requests in {:.1} s, {} failed, {} ms without prompt answers, slowest answer {} ms",
            self.beats.len(),
            length.as_secs_f64(),
            self.failures().count(),
            self.outage().as_millis(),
            self.slowest().as_millis()
        )
    }
}

/// Where the requests go.
#[derive(Debug, Clone)]
struct Site {
    netns: claw_lab::Netns,
    address: SocketAddr,
    host: String,
    series: String,
}

impl Site {
    /// Makes requests as they become due, until there are no more.
    fn work(&self, due: &Mutex<Receiver<u32>>) -> Vec<Beat> {
        let mut beats = Vec::new();
        loop {
            let next = due.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(number) = next else { return beats };
            beats.push(self.beat(number));
        }
    }

    fn beat(&self, number: u32) -> Beat {
        let key = format!("{}.{number}", self.series);
        let at = now();
        let outcome = match self.write(&key) {
            Ok(tag) => Outcome::Acked(tag),
            Err(error) => Outcome::Failed(format!("{error:#}")),
        };
        Beat { at, took: at.elapsed(), key, outcome }
    }

    /// Writes a row; returns the tag of the version that acknowledged it.
    fn write(&self, key: &str) -> Result<String> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        let path = format!("/__fake/write?key={key}&value=x");
        let answer = http::get_within(stream, &self.host, &path, PATIENCE)?;
        anyhow::ensure!(answer.status == 200, "status {}", answer.status);
        let tag = answer.body.strip_prefix("ok").context("an answer of somebody else")?;
        Ok(tag.trim().to_owned())
    }
}

/// Says when a request is due, and ends the workers by ending.
fn tick(start: Instant, ticks: &SyncSender<u32>, over: &AtomicBool) {
    for number in 1.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let due = start + EVERY * number;
        thread::sleep(due.saturating_duration_since(now()));
        if now().saturating_duration_since(due) < MOST_LATE {
            // Nobody is free when all wait for answers: the next one tells as much.
            let _ = ticks.try_send(number);
        }
    }
}

fn thread() -> thread::Builder {
    thread::Builder::new().name("pulse".to_owned()).stack_size(256 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(line: &str) -> Heard {
        let start = now();
        let beat = |(number, word): (u32, &str)| Beat {
            at: start + EVERY * number,
            took: if word == "late" { PROMPT * 2 } else { Duration::from_millis(number.into()) },
            key: number.to_string(),
            outcome: match word {
                "-" => Outcome::Failed("refused".to_owned()),
                tag => Outcome::Acked(tag.to_owned()),
            },
        };
        Heard { beats: (0..).zip(line.split(' ')).map(beat).collect() }
    }

    #[test]
    fn gaps_reach_from_answer_to_answer() {
        let heard = heard("a - - late b b - b");
        let gaps: Vec<_> =
            heard.gaps().iter().map(|g| (g.length.as_millis(), g.failed, g.late)).collect();
        assert_eq!(gaps, [(40, 2, 1), (20, 1, 0)]);
        assert_eq!(heard.outage().as_millis(), 60);
        assert_eq!(heard.failures().count(), 3);
        assert_eq!(heard.slowest(), PROMPT * 2);
        assert_eq!(heard.acked(|tag| tag == "b").len(), 3);
    }
}
