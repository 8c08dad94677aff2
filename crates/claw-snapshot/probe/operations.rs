//! The operations.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claw_core::time::Timestamp;
use claw_snapshot::{
    Credential, Extent, Frozen, Owner, Parent, RecoveryPassword, Removal, Repository,
    RepositorySecret, SnapshotRequest, Source, Stillness, Subtree, Taken, UnpackLimits, Watcher,
    replicate, unpack,
};

use crate::place::storage;
use crate::{Failure, say};

const USAGE: &str = "usage: claw-snapshot-probe OPERATION REPOSITORY [ARGUMENT…]
create REPOSITORY
snapshots REPOSITORY
snapshot REPOSITORY SOURCE MILLISECONDS
freeze REPOSITORY SOURCE MILLISECONDS STAGING
restore REPOSITORY SNAPSHOT INTO
verify REPOSITORY
prune REPOSITORY
forget REPOSITORY SNAPSHOT
rebuild-index REPOSITORY
export REPOSITORY SNAPSHOT FILE
replicate REPOSITORY REPOSITORY
unpack FILE INTO";

pub(crate) fn run(arguments: &[&str]) -> Result<String, Failure> {
    let secret = RepositorySecret::from_bytes([7; 32]);
    match arguments {
        ["create", place] => {
            let recovery = RecoveryPassword::parse(&"0".repeat(32))?;
            Repository::create(storage(place)?, &secret, &recovery, &mut rand::rng())?;
            Ok("created".to_owned())
        }
        ["replicate", from, to] => {
            let (from, to) = (storage(from)?, storage(to)?);
            let done = replicate(from.as_ref(), to.as_ref(), Removal::Mirrored, &watcher())?;
            Ok(format!("{done:?}"))
        }
        ["unpack", file, into] => {
            let limits = UnpackLimits { entries: u64::MAX, bytes: u64::MAX, owner: Owner::Kept };
            let unpacked = unpack(File::open(file)?, Path::new(into), limits)?;
            Ok(format!("unpacked {}", unpacked.files))
        }
        [operation, place, rest @ ..] => {
            let repository = Repository::open(storage(place)?, &Credential::Secret(secret))?;
            operate(&repository, operation, rest)
        }
        _ => Err(USAGE.into()),
    }
}

fn operate(
    repository: &Repository,
    operation: &str,
    arguments: &[&str],
) -> Result<String, Failure> {
    match (operation, arguments) {
        ("snapshots", []) => {
            let snapshots = repository.snapshots()?;
            let lines: Vec<_> =
                snapshots.iter().map(|one| format!("snapshot {}", one.id)).collect();
            Ok(lines.join("\n"))
        }
        ("snapshot", [source, millis]) => {
            let request = request(millis.parse()?, Parent::Latest);
            let source = Source::openclaw(Path::new(source));
            let taken = repository.snapshot(&request, &source, watcher())?;
            Ok(format!("snapshot {}", taken.snapshot.id))
        }
        ("freeze", [source, millis, staging]) => {
            freeze(repository, Path::new(source), millis.parse()?, Path::new(staging))
        }
        ("restore", [id, into]) => {
            let into = Path::new(into);
            let restored = repository.restore(id.parse()?, &Subtree::data(), into, &watcher())?;
            Ok(format!("restored {}", restored.files))
        }
        ("export", [id, file]) => {
            let file = File::create_new(file)?;
            let exported = repository.export(id.parse()?, &file, &watcher())?;
            file.sync_all()?;
            Ok(format!("exported {}", exported.written))
        }
        ("verify", []) => {
            let verified = repository.verify(Extent::Everything)?;
            Ok(format!("sound {}", verified.is_sound()))
        }
        ("prune", []) => Ok(format!("{:?}", repository.prune(Duration::ZERO)?)),
        ("forget", [id]) => {
            repository.forget(&BTreeSet::from([id.parse()?]))?;
            Ok("forgotten".to_owned())
        }
        ("rebuild-index", []) => Ok(format!("removed {}", repository.rebuild_index()?)),
        _ => Err(USAGE.into()),
    }
}

fn watcher() -> Watcher {
    Watcher::new(|progress| {
        if progress.entries % 10 == 0 {
            _ = say(&format!("progress {}", progress.entries));
        }
    })
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
    let Taken { snapshot: rough, listing, .. } =
        repository.snapshot(&request(millis, Parent::Latest), &moving, Watcher::none())?;
    say("rough")?;
    io::stdin().read_line(&mut String::new())?;
    std::fs::create_dir(staging)?;
    let begun = Instant::now();
    let time = Timestamp::from_millis(millis + 1);
    let frozen = Frozen::hold(&source, listing, staging, time)?;
    let held = begun.elapsed();
    say(&format!("held {} us, {} files copied", held.as_micros(), frozen.copied()))?;
    let request = request(millis + 1, Parent::Of(rough.id));
    let taken = repository.snapshot_frozen(&request, Arc::new(frozen), Watcher::none())?;
    std::fs::remove_dir_all(staging)?;
    Ok(format!("snapshot {}", taken.snapshot.id))
}
