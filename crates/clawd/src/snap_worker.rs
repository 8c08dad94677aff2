//! The child process that does everything to repositories of snapshots: `clawd snap-worker`.
//!
//! What it is for: the engine of snapshots reads data of tenants, takes memory, and may panic. So it never
//! runs in the agent. Each job has a process of its own, with a memory limit and little CPU and I/O; losing
//! it loses that job and nothing else. The process is started by the service manager for a connection to
//! `clawd-snapshots.socket`, or to `clawd-offsite.socket` when it has to reach a storage elsewhere, or by the
//! agent itself, and speaks [`protocol`] on its standard input and output. Repositories and archives on their
//! way to or from another host go through there too.
//!
//! What it deliberately does not do: decide what is taken, kept, copied or restored; hold instances (it asks
//! the agent to); use the network but for storages. It ends with the agent: when its standard input closes, it
//! does.
//!
//! Where to start: [`run`], then [`take`] and [`restore`]; [`offsite`] and [`send`] for what leaves the host.
//! The other end is in [`crate::adapters::snapshots`].

pub(crate) mod protocol;

mod archive;
mod errors;
mod frames;
mod inspect;
mod link;
mod offsite;
mod pieces;
mod ration;
mod read_ahead;
mod receive;
mod repository;
mod restore;
mod room;
mod send;
mod sound;
mod take;

use std::io::{self, BufRead as _};
use std::num::NonZeroUsize;
use std::panic;

use claw_snapshot::limit_processors;
use nix::sys::resource::{Resource, setrlimit};

use errors::failed;
use link::{Link, say};
use protocol::{Fault, FaultKind, Job, OUT_OF_MEMORY, Outcome, Said, Task};
pub(crate) use repository::exists as is_repository;

/// Processors that a job uses. Each takes a few buffers in the engine; the agent's own memory limit is made
/// for two.
const PROCESSORS: NonZeroUsize = NonZeroUsize::new(2).unwrap();
/// The units that this process may run in.
const UNITS: [&str; 2] = ["clawd-snapshots@", "clawd-offsite@"];
/// The longest job: names of 10 000 snapshots to be forgotten fit.
const LONGEST_JOB: usize = 4 << 20;

/// Why the child could not even begin.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its standard input could not be read.
    #[error("cannot read the job from standard input")]
    Read(#[source] io::Error),
    /// What it read is no job.
    #[error(
        "standard input holds no job; hint: clawd itself starts this program, it is not for people"
    )]
    NoJob,
}

/// Reads one job from standard input, does it, and says on standard output what became of it. A job that
/// failed is no error here: it has been said.
///
/// # Errors
/// [`WorkerError`].
pub fn run() -> Result<(), WorkerError> {
    tell_panics();
    say(&Said::Begun { unit: own_unit() });
    let job = read_job()?;
    let link = Link::open();
    say(&match prepare(&job).and_then(|()| carry_out(&job, &link)) {
        Ok(outcome) => Said::Done(outcome, peak_bytes()),
        Err(fault) => Said::Failed(fault),
    });
    Ok(())
}

fn read_job() -> Result<Job, WorkerError> {
    let mut line = zeroize::Zeroizing::new(String::new());
    // The lock is given back, the buffer with what may follow is not lost: it is the process's.
    io::stdin().lock().read_line(&mut line).map_err(WorkerError::Read)?;
    if line.len() > LONGEST_JOB {
        return Err(WorkerError::NoJob);
    }
    serde_json::from_str(&line).map_err(|_error| WorkerError::NoJob)
}

fn prepare(job: &Job) -> Result<(), Fault> {
    if let Some(bytes) = job.memory_bytes {
        let limited = setrlimit(Resource::RLIMIT_DATA, bytes, bytes);
        limited.map_err(|errno| failed(format!("limiting its own memory: {errno}")))?;
    }
    limit_processors(PROCESSORS).map_err(|errno| failed(format!("limiting processors: {errno}")))
}

fn carry_out(job: &Job, link: &Link) -> Result<Outcome, Fault> {
    match &job.task {
        Task::Take(order) => take::take(job, order, link),
        Task::List => inspect::list(job),
        Task::Restore { snapshot, into } => restore::restore(job, snapshot, into, link),
        Task::Forget { snapshots } => inspect::forget(job, snapshots),
        Task::Verify { part, parts } => inspect::verify(job, *part, *parts),
        Task::CopyOut { place, surplus } => offsite::copy_out(job, place, *surplus, link),
        Task::CopyIn { place } => offsite::copy_in(job, place, link),
        Task::RestoreFrom { place, snapshot, into } => {
            offsite::restore_from(job, place, (snapshot, into), link)
        }
        Task::Export { snapshot } => archive::export(job, snapshot, link),
        Task::Import(order) => archive::import(job, order, link),
        Task::Send => send::send(job, link),
        Task::Receive => receive::receive(job, link),
    }
}

/// A panic is heard as the end of the job, with its words.
fn tell_panics() {
    panic::set_hook(Box::new(|info| {
        let said = info.to_string();
        let problem = if said.contains("failed to spawn thread") {
            format!("{OUT_OF_MEMORY}: {said}")
        } else {
            format!("the engine of snapshots gave up: {said}")
        };
        say(&Said::Failed(Fault { kind: FaultKind::Ended, problem }));
    }));
}

/// The unit that this process runs in, by its control group.
fn own_unit() -> Option<String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let unit = groups.lines().filter_map(|line| line.rsplit('/').next());
    let ours = |unit: &&str| UNITS.iter().any(|ours| unit.starts_with(ours));
    unit.filter(ours).map(str::to_owned).next()
}

/// The most memory that this process had (`VmHWM` of proc(5)); 0 when nobody says.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}
