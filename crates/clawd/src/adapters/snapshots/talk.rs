//! One job, from the start of its process to its end.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Split};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout, timeout_at};
use zeroize::Zeroizing;

use super::launch::{Launched, launch};
use super::{JobCost, SnapshotSettings};
use crate::ports::{JobProgress, Quiesce, SnapshotsError};
use crate::snap_worker::protocol::{Fault, FaultKind, Job, Outcome, Said, Task, Told};

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
    lines: Split<BufReader<OwnedReadHalf>>,
    out: OwnedWriteHalf,
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
        quiesce: Option<&Q>,
    ) -> Result<(Outcome, JobCost), SnapshotsError> {
        let mut line = self.start(job).await?;
        let mut cost = JobCost::default();
        match self.listen(&mut line, quiesce, (job, &mut cost)).await {
            Ok(outcome) => {
                let Line { lines, out, launched, .. } = line;
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
        let started = launch(&self.settings.launcher).await;
        let (stream, launched) = started.map_err(|error| {
            failed(format!(
                "it could not be started: {error}; hint: systemctl start clawd-snapshots.socket"
            ))
        })?;
        let (lines, out) = UnixStream::into_split(stream);
        let lines = BufReader::new(lines).split(b'\n');
        let mut line = Line { lines, out, launched, last_words: String::new() };
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
            match line.next(self.settings.silence).await? {
                Said::Hold => {
                    let quiesce = quiesce.ok_or(Ended::Gone)?;
                    self.hold_still(line, quiesce, (job, &mut *cost)).await?;
                }
                Said::Done(outcome, peak_bytes) => {
                    cost.peak_bytes = peak_bytes;
                    return Ok(outcome);
                }
                Said::Failed(fault) => return Err(Ended::Told(self.told(job, fault))),
                said => self.hear(line, said),
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
            line.tell(Told::Held).await?;
            loop {
                match line.next(self.settings.silence).await? {
                    Said::Release { files, bytes } => {
                        tracing::debug!(files, bytes, "copied while the instance was held");
                        return Ok(files);
                    }
                    Said::Failed(fault) => return Err(Ended::Told(self.told(job, fault))),
                    Said::Done(..) | Said::Hold => return Err(Ended::Gone),
                    said => self.hear(line, said),
                }
            }
        };
        let copied = timeout_at(deadline, whole).await;
        cost.held += since.elapsed();
        cost.copied_files += copied.unwrap_or(Err(Ended::Overheld))?;
        Ok(())
    }

    /// What changes nothing of the job's course.
    fn hear(&self, line: &mut Line, said: Said) {
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
            Said::Hold | Said::Release { .. } | Said::Done(..) | Said::Failed(_) => {}
        }
    }

    fn told(&self, job: &Job, fault: Fault) -> SnapshotsError {
        let (doing, problem) = (self.doing, fault.problem);
        match (fault.kind, &job.task) {
            (FaultKind::Full, _) => SnapshotsError::Full { doing, problem },
            (FaultKind::Ended, _) => SnapshotsError::Worker { doing, problem },
            (FaultKind::Damaged, _) => SnapshotsError::Damaged(problem),
            (FaultKind::NotFound, Task::Restore { snapshot, .. }) => {
                match claw_core::name::SnapshotName::parse(snapshot) {
                    Ok(name) => SnapshotsError::NotFound(name),
                    Err(_) => SnapshotsError::Failed { doing, problem },
                }
            }
            (FaultKind::NotFound | FaultKind::Failed, _) => {
                SnapshotsError::Failed { doing, problem }
            }
        }
    }

    async fn give_up(&self, ended: Ended, line: Line) -> SnapshotsError {
        let Line { lines, out, launched, last_words } = line;
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

impl Line {
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

    async fn tell(&mut self, told: Told) -> Result<(), Ended> {
        let mut text = serde_json::to_vec(&told).map_err(|_error| Ended::Gone)?;
        text.push(b'\n');
        self.out.write_all(&text).await.map_err(|_closed| Ended::Gone)
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
