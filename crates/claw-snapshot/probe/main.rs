//! One operation on a repository as a process of its own, as the agent's worker is one.
//!
//! `claw-snapshot-probe OPERATION REPOSITORY [ARGUMENT…]`; the secrets are fixed, so this is for
//! tests and measurements only. It prints a line per ten entries, then the result, then the most
//! memory that it had, in KiB.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claw_core::time::Timestamp;
use claw_snapshot::{
    Access, Credential, DirectoryStorage, Extent, Frozen, Parent, RecoveryPassword, Repository,
    RepositorySecret, SnapshotRequest, Source, Stillness, Subtree, Watcher, limit_processors,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments).and_then(|result| say(&result)).and_then(|()| say(&peak()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let mut text = fault.to_string();
            let mut cause = fault.source();
            while let Some(next) = cause {
                text.push_str(&format!(": {next}"));
                cause = next.source();
            }
            _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<String, Failure> {
    limit_processors(NonZeroUsize::MIN.saturating_add(1))?;
    let secret = RepositorySecret::from_bytes([7; 32]);
    match arguments {
        ["create", repository] => {
            let storage = DirectoryStorage::open(Path::new(repository), Access::Exclusive)?;
            let recovery = RecoveryPassword::parse(&"0".repeat(32))?;
            Repository::create(Arc::new(storage), &secret, &recovery, &mut rand::rng())?;
            Ok("created".to_owned())
        }
        [operation, repository, rest @ ..] => {
            let storage = DirectoryStorage::open(Path::new(repository), Access::Exclusive)?;
            let repository = Repository::open(Arc::new(storage), &Credential::Secret(secret))?;
            operate(&repository, operation, rest)
        }
        _ => Err("usage: claw-snapshot-probe OPERATION REPOSITORY [ARGUMENT…]".into()),
    }
}

fn operate(
    repository: &Repository,
    operation: &str,
    arguments: &[&str],
) -> Result<String, Failure> {
    let watcher = Watcher::new(|progress| {
        if progress.entries % 10 == 0 {
            _ = say(&format!("progress {}", progress.entries));
        }
    });
    match (operation, arguments) {
        ("snapshot", [source, millis]) => {
            let request = request(millis.parse()?, Parent::Latest);
            let source = Source::openclaw(Path::new(source));
            let taken = repository.snapshot(&request, &source, watcher)?;
            Ok(format!("snapshot {}", taken.snapshot.id))
        }
        ("freeze", [source, millis, staging]) => {
            freeze(repository, Path::new(source), millis.parse()?, Path::new(staging))
        }
        ("restore", [id, into]) => {
            let into = Path::new(into);
            let restored = repository.restore(id.parse()?, &Subtree::data(), into, &watcher)?;
            Ok(format!("restored {}", restored.files))
        }
        ("verify", []) => {
            let verified = repository.verify(Extent::Everything)?;
            Ok(format!("sound {}", verified.is_sound()))
        }
        ("prune", []) => Ok(format!("{:?}", repository.prune(Duration::ZERO)?)),
        _ => Err(format!("no operation {operation} with these arguments").into()),
    }
}

fn request(millis: i64, parent: Parent) -> SnapshotRequest {
    let time = Timestamp::from_millis(millis);
    SnapshotRequest { host: "probe".to_owned(), time, tags: BTreeSet::new(), parent }
}

/// A rough snapshot, then, when a line comes in, the source is held, and snapshotted. Says how
/// long it had to stand still.
#[expect(clippy::disallowed_methods, reason = "the time is what is measured")]
fn freeze(
    repository: &Repository,
    root: &Path,
    millis: i64,
    staging: &Path,
) -> Result<String, Failure> {
    let source = Source::openclaw(root);
    let moving = Source { stillness: Stillness::Moving, ..source.clone() };
    let rough = repository.snapshot(&request(millis, Parent::Latest), &moving, Watcher::none())?;
    say("rough")?;
    io::stdin().read_line(&mut String::new())?;
    std::fs::create_dir(staging)?;
    let begun = Instant::now();
    let time = Timestamp::from_millis(millis + 1);
    let frozen = Frozen::hold(&source, &rough.listing, staging, time)?;
    let held = begun.elapsed();
    say(&format!("held {} us, {} files copied", held.as_micros(), frozen.copied()))?;
    let request = request(millis + 1, Parent::Of(rough.snapshot.id));
    let taken = repository.snapshot_frozen(&request, Arc::new(frozen), Watcher::none())?;
    std::fs::remove_dir_all(staging)?;
    Ok(format!("snapshot {}", taken.snapshot.id))
}

fn say(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// proc(5), `VmHWM`.
fn peak() -> Result<String, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).ok_or("no VmHWM")?;
    Ok(format!("peak {kib}"))
}
