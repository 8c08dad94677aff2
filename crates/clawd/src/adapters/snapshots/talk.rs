//! One job, from the start of its process to its end.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claw_core::name::SnapshotName;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Split};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use super::launch::{Launched, launch};
use super::{JobCost, SnapshotSettings};
use crate::ports::{JobProgress, MAX_PIECE, Parcel, Pipe, PipeError, Quiesce, SnapshotsError};
use crate::snap_worker::protocol::{Fault, FaultKind, Job, Outcome, Reach, Said, Told};

/// Most characters of a process's last words that are kept.
const LAST_WORDS: usize = 1000;

/// How one job is talked about.
pub(super) struct Conversation<'a> {
    pub(super) doing: &'static str,
    pub(super) settings: &'a SnapshotSettings,
    pub(super) progress: &'a dyn Fn(JobProgress),
}

/// The agent's end of the socket.
struct Line {
    ear: Ear,
    out: OwnedWriteHalf,
}

/// What the process says, and what is known of it by that.
struct Ear {
    lines: Split<BufReader<OwnedReadHalf>>,
    launched: Launched,
    last_words: String,
}

/// Why talking ended without a result.
enum Ended {
    /// The process closed its socket.
    Gone,
    /// It said nothing for too long.
    Silent,
    /// The instance was held for too long.
    Overheld,
    /// The job's own end.
    Told(SnapshotsError),
}

impl Conversation<'_> {
    /// Starts the process, gives it the job, and hears it out.
    pub(super) async fn hold<Q: Quiesce>(
        &self,
        job: &Job,
        (quiesce, pipe): (Option<&Q>, Option<&mut Pipe>),
    ) -> Result<(Outcome, JobCost), SnapshotsError> {
        let mut line = self.start(job).await?;
        let mut cost = JobCost::default();
        let heard = match pipe {
            None => self.listen(&mut line, quiesce, (job, &mut cost)).await,
            Some(pipe) => self.relay(&mut line, pipe, (job, &mut cost)).await,
        };
        match heard {
            Ok(outcome) => {
                let Line { ear: Ear { lines, launched, .. }, out } = line;
                drop((lines, out));
                launched.gone().await;
                tracing::debug!(job = self.doing, ?cost, "done");
                Ok((outcome, cost))
            }
            Err(ended) => Err(self.give_up(ended, line).await),
        }
    }

    async fn start(&self, job: &Job) -> Result<Line, SnapshotsError> {
        let doing = self.doing;
        let failed = |problem: String| SnapshotsError::Worker { doing, problem };
        let reach = job.task.reach();
        let started = launch(&self.settings.launcher, reach).await;
        let (stream, launched) = started.map_err(|error| {
            let socket = match reach {
                Reach::Host => "clawd-snapshots.socket",
                Reach::Network => "clawd-offsite.socket",
            };
            failed(format!("it could not be started: {error}; hint: systemctl start {socket}"))
        })?;
        let (lines, out) = UnixStream::into_split(stream);
        let lines = BufReader::new(lines).split(b'\n');
        let mut line = Line { ear: Ear { lines, launched, last_words: String::new() }, out };
        let mut text = Zeroizing::new(
            serde_json::to_vec(job).map_err(|error| failed(format!("the job: {error}")))?,
        );
        text.push(b'\n');
        match timeout(self.settings.silence, line.out.write_all(&text)).await {
            Ok(Ok(())) => Ok(line),
            Ok(Err(_closed)) => Err(self.give_up(Ended::Gone, line).await),
            Err(_late) => Err(self.give_up(Ended::Silent, line).await),
        }
    }

    async fn listen<Q: Quiesce>(
        &self,
        line: &mut Line,
        quiesce: Option<&Q>,
        (job, cost): (&Job, &mut JobCost),
    ) -> Result<Outcome, Ended> {
        loop {
            match line.ear.next(self.settings.silence).await? {
                Said::Hold => {
                    let quiesce = quiesce.ok_or(Ended::Gone)?;
                    self.hold_still(line, quiesce, (job, &mut *cost)).await?;
                }
                Said::Done(outcome, peak_bytes) => {
                    cost.peak_bytes = peak_bytes;
                    return Ok(outcome);
                }
                Said::Failed(fault) => return Err(Ended::Told(self.told(job, fault))),
                said => self.hear(&mut line.ear, said),
            }
        }
    }

    /// As [`Self::listen`], for a job that has a pipe: bytes go through it both ways meanwhile.
    async fn relay(
        &self,
        line: &mut Line,
        pipe: &mut Pipe,
        (job, cost): (&Job, &mut JobCost),
    ) -> Result<Outcome, Ended> {
        let Line { ear, out } = line;
        let Pipe { out: away, inward } = pipe;
        let broken = RefCell::new(None);
        let feeding = feed(inward, out, &broken);
        let listening = async {
            loop {
                match ear.next(self.settings.silence).await? {
                    Said::Piece(text) => self.send(away, &text).await.map_err(|error| {
                        let source = broken.take().unwrap_or(error);
                        Ended::Told(SnapshotsError::Pipe { doing: self.doing, source })
                    })?,
                    Said::Done(outcome, peak_bytes) => {
                        cost.peak_bytes = peak_bytes;
                        return Ok(outcome);
                    }
                    Said::Failed(fault) => return Err(Ended::Told(self.told(job, fault))),
                    Said::Hold => return Err(Ended::Gone),
                    said => self.hear(ear, said),
                }
            }
        };
        tokio::select! {
            heard = listening => heard,
            never = feeding => match never {},
        }
    }

    async fn send(&self, away: &Sender<Parcel>, text: &str) -> Result<(), PipeError> {
        let garbled = || PipeError("a piece is garbled".to_owned());
        let piece = STANDARD.decode(text).map_err(|_error| garbled())?;
        match timeout(self.settings.silence, away.send(Parcel::Piece(piece))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_closed)) => Err(PipeError("the other end went away".to_owned())),
            Err(_late) => {
                let silence = self.settings.silence.as_secs();
                Err(PipeError(format!("the other end took nothing for {silence} s")))
            }
        }
    }

    /// Holds the instance until the process says that it may go on, and no longer than allowed. It goes on
    /// in any case.
    async fn hold_still<Q: Quiesce>(
        &self,
        line: &mut Line,
        quiesce: &Q,
        (job, cost): (&Job, &mut JobCost),
    ) -> Result<(), Ended> {
        let held = quiesce.hold().await;
        let copied = match held {
            Ok(()) => self.until_released(line, (job, cost)).await,
            Err(error) => Err(Ended::Told(SnapshotsError::Quiesce(error))),
        };
        let released = quiesce.release().await;
        copied?;
        released.map_err(|error| Ended::Told(SnapshotsError::Quiesce(error)))
    }

    async fn until_released(
        &self,
        line: &mut Line,
        (job, cost): (&Job, &mut JobCost),
    ) -> Result<(), Ended> {
        let since = Instant::now();
        let deadline = since + self.settings.longest_hold;
        let whole = async {
            tell(&mut line.out, &Told::Held).await?;
            loop {
                match line.ear.next(self.settings.silence).await? {
                    Said::Release { files, bytes } => {
                        tracing::debug!(files, bytes, "copied while the instance was held");
                        return Ok(files);
                    }
                    Said::Failed(fault) => return Err(Ended::Told(self.told(job, fault))),
                    Said::Done(..) | Said::Hold => return Err(Ended::Gone),
                    said => self.hear(&mut line.ear, said),
                }
            }
        };
        let copied = timeout_at(deadline, whole).await;
        cost.held += since.elapsed();
        cost.copied_files += copied.unwrap_or(Err(Ended::Overheld))?;
        Ok(())
    }

    /// What changes nothing of the job's course.
    fn hear(&self, line: &mut Ear, said: Said) {
        match said {
            Said::Begun { unit } => {
                if let Launched::Unit(known) = &mut line.launched {
                    *known = unit;
                }
            }
            Said::Progress { done, total } => {
                (self.progress)(JobProgress { done_bytes: done, total_bytes: total });
            }
            Said::Log(text) => line.remember(&text),
            Said::Hold
            | Said::Release { .. }
            | Said::Piece(_)
            | Said::Done(..)
            | Said::Failed(_) => {}
        }
    }

    fn told(&self, job: &Job, fault: Fault) -> SnapshotsError {
        let (doing, problem) = (self.doing, fault.problem);
        match fault.kind {
            FaultKind::Full => SnapshotsError::Full { doing, problem },
            FaultKind::Ended => SnapshotsError::Worker { doing, problem },
            FaultKind::Damaged => SnapshotsError::Damaged(problem),
            FaultKind::OtherRepository => SnapshotsError::OtherRepository(problem),
            FaultKind::Pipe => SnapshotsError::Pipe { doing, source: PipeError(problem) },
            FaultKind::NotFound => match job.task.snapshot().map(SnapshotName::parse) {
                Some(Ok(name)) => SnapshotsError::NotFound(name),
                _ => SnapshotsError::Failed { doing, problem },
            },
            FaultKind::Failed => SnapshotsError::Failed { doing, problem },
        }
    }

    async fn give_up(&self, ended: Ended, line: Line) -> SnapshotsError {
        let Line { ear: Ear { lines, launched, last_words }, out } = line;
        drop((lines, out));
        let doing = self.doing;
        match ended {
            Ended::Gone => {
                SnapshotsError::Worker { doing, problem: launched.end(&last_words).await }
            }
            Ended::Silent => {
                launched.kill().await;
                SnapshotsError::Stuck { doing, after: self.settings.silence }
            }
            Ended::Overheld => {
                launched.kill().await;
                let longest = self.settings.longest_hold.as_secs_f32();
                let problem = format!("the instance was held for {longest} s, and then let go");
                SnapshotsError::Failed { doing, problem }
            }
            Ended::Told(error) => {
                launched.gone().await;
                error
            }
        }
    }
}

/// Gives the process what comes through the pipe, for as long as somebody listens to it. Why nothing more
/// comes is left in `broken`.
async fn feed(
    inward: &mut Receiver<Parcel>,
    out: &mut OwnedWriteHalf,
    broken: &RefCell<Option<PipeError>>,
) -> Infallible {
    loop {
        let (told, last) = match inward.recv().await {
            Some(Parcel::Piece(piece)) if piece.len() <= MAX_PIECE => {
                (Told::Piece(STANDARD.encode(piece)), None)
            }
            Some(Parcel::Piece(_)) => fail("a piece is too large"),
            Some(Parcel::End) => (Told::End, Some(None)),
            Some(Parcel::GaveUp(why)) => fail(&why),
            None => fail("the other end went away"),
        };
        let said = tell(out, &told).await;
        if let Some(why) = last {
            *broken.borrow_mut() = why;
            return pending().await;
        }
        // That it is gone is heard by who listens.
        if said.is_err() {
            return pending().await;
        }
    }
}

fn fail(why: &str) -> (Told, Option<Option<PipeError>>) {
    (Told::Broken(why.to_owned()), Some(Some(PipeError(why.to_owned()))))
}

async fn tell(out: &mut OwnedWriteHalf, told: &Told) -> Result<(), Ended> {
    let mut text = serde_json::to_vec(told).map_err(|_error| Ended::Gone)?;
    text.push(b'\n');
    out.write_all(&text).await.map_err(|_closed| Ended::Gone)
}

impl Ear {
    /// What it says next.
    async fn next(&mut self, silence: Duration) -> Result<Said, Ended> {
        loop {
            let text = match timeout(silence, self.lines.next_segment()).await {
                Ok(Ok(Some(text))) => text,
                Ok(Ok(None) | Err(_)) => return Err(Ended::Gone),
                Err(_late) => return Err(Ended::Silent),
            };
            match serde_json::from_slice(&text) {
                Ok(said) => return Ok(said),
                Err(_) => self.remember(&String::from_utf8_lossy(&text)),
            }
        }
    }

    /// A line of its log.
    fn remember(&mut self, text: &str) {
        tracing::debug!(text, "a job's process says");
        self.last_words.push_str(text);
        self.last_words.push(' ');
        let surplus = self.last_words.chars().count().saturating_sub(LAST_WORDS);
        if surplus > 0 {
            self.last_words = self.last_words.chars().skip(surplus).collect();
        }
    }
}
