//! Taking a snapshot.
//!
//! Of an instance that is up in four parts: a live pass that gives a rough snapshot; the instance is held
//! while what changed since is copied aside; it goes on; the snapshot is made of the copies and of what the
//! rough one brought into the repository. The rough one is forgotten then; when the job ends early, it
//! remains as the parent of the next try.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use claw_core::time::Timestamp;
use claw_snapshot::{
    AttachmentName, Frozen, Parent, Repository, SnapshotId, SnapshotRequest, Source, Stillness,
    Taken, Watcher,
};

use super::errors::{failed, fault};
use super::link::{Link, Meter, say};
use super::protocol::{Fault, FaultKind, Job, NAME_TAG, Outcome, Said, Take};
use super::repository::{find, open_or_make, rough, stored, sweep};
use super::room;
use crate::adapters::clock::SystemClock;
use crate::ports::Clock as _;

/// Bytes that a snapshot takes in the repository beside data: its index and trees, rounded up.
const OVERHEAD: u64 = 8 << 20;

/// Takes a snapshot; one of that name is there already when a try ended after its last step.
pub(super) fn take(job: &Job, order: &Take, link: &Link) -> Result<Outcome, Fault> {
    let repository = open_or_make(job)?;
    if let Some(snapshot) = find(&repository, &order.name)? {
        return Ok(Outcome::Taken(stored(&snapshot)));
    }
    let source = source(&job.home.join(&order.data), order)?;
    let meter = link.meter();
    make_room(job, &repository, &source, &meter)?;
    let request = request(job, order, Parent::Latest);
    let taken = if order.up {
        let held = take_held(job, &repository, (&request, &source), link);
        sweep(&job.staging)?;
        held?
    } else {
        take_still(&repository, &request, &source, &meter)?
    };
    read_back(&repository, taken.snapshot.id, &source)?;
    repository.forget(&rough(&repository)?).map_err(|error| fault(&error))?;
    tell(&taken);
    Ok(Outcome::Taken(stored(&taken.snapshot)))
}

/// Takes a snapshot of a directory that nobody writes to and that no earlier snapshot is of.
pub(super) fn take_new(
    job: &Job,
    order: &Take,
    (repository, root): (&Repository, &Path),
    meter: &Arc<Meter>,
) -> Result<Outcome, Fault> {
    let source = source(root, order)?;
    make_room(job, repository, &source, meter)?;
    let request = request(job, order, Parent::Nothing);
    let taken = repository.snapshot(&request, &source, watcher(meter))?;
    read_back(repository, taken.snapshot.id, &source)?;
    tell(&taken);
    Ok(Outcome::Taken(stored(&taken.snapshot)))
}

fn request(job: &Job, order: &Take, parent: Parent) -> SnapshotRequest {
    // The engine trusts times of files that are older than this. An agent whose clock runs ahead must not
    // make it trust younger ones.
    let time = Timestamp::from_millis(order.at).min(SystemClock.now());
    let mut tags: BTreeSet<String> = order.tags.iter().cloned().collect();
    tags.insert(format!("{NAME_TAG}{}", order.name));
    SnapshotRequest { host: job.instance.clone(), time, tags, parent }
}

fn take_held(
    job: &Job,
    repository: &Repository,
    (request, source): (&SnapshotRequest, &Source),
    link: &Link,
) -> Result<Taken, Fault> {
    let meter = link.meter();
    let first = take_rough(repository, request, source, &meter)?;
    make_staging(&job.staging)?;
    let longest = Duration::from_millis(job.hold_millis);
    let frozen = link.while_held(
        longest,
        || Frozen::hold(source, first.listing, &job.staging, request.time),
        |frozen| (frozen.copied(), frozen.copied_bytes()),
    )?;
    let request = SnapshotRequest { parent: Parent::Of(first.snapshot.id), ..request.clone() };
    Ok(repository.snapshot_frozen(&request, Arc::new(frozen), watcher(&meter))?)
}

fn take_still(
    repository: &Repository,
    request: &SnapshotRequest,
    source: &Source,
    meter: &Arc<Meter>,
) -> Result<Taken, Fault> {
    let mut request = request.clone();
    if parent_misleads(repository, source)? {
        let first = take_rough(repository, &request, source, meter)?;
        request.parent = Parent::Of(first.snapshot.id);
    }
    Ok(repository.snapshot(&request, source, watcher(meter))?)
}

/// A snapshot of a moving source, good as a parent. It has no attachments: see [`parent_misleads`].
fn take_rough(
    repository: &Repository,
    request: &SnapshotRequest,
    source: &Source,
    meter: &Arc<Meter>,
) -> Result<Taken, Fault> {
    let attachments = BTreeMap::new();
    let moving = Source { stillness: Stillness::Moving, attachments, ..source.clone() };
    let live = SnapshotRequest { tags: BTreeSet::new(), ..request.clone() };
    Ok(repository.snapshot(&live, &moving, watcher(meter))?)
}

/// Whether the snapshot that would be the parent has an attachment of the same size as one of ours, and of
/// another content: attachments have no times, so that the engine would take the old one for ours.
fn parent_misleads(repository: &Repository, source: &Source) -> Result<bool, Fault> {
    let Some(parent) = repository.snapshots()?.pop() else { return Ok(false) };
    // What cannot be read is no parent to rely on; that it is damaged is for a verification to say.
    let Ok(theirs) = repository.attachments(parent.id) else { return Ok(true) };
    Ok(source.attachments.iter().any(|(name, ours)| {
        theirs.get(name).is_some_and(|theirs| theirs.len() == ours.len() && theirs != ours)
    }))
}

/// What is read: the state directory and what belongs to it.
fn source(root: &Path, order: &Take) -> Result<Source, Fault> {
    let mut attachments = BTreeMap::new();
    for (name, content) in &order.attachments {
        let name = AttachmentName::parse(name).map_err(|error| fault(&error))?;
        attachments.insert(name, STANDARD.decode(content).map_err(|error| fault(&error))?);
    }
    Ok(Source { attachments, ..Source::openclaw(root) })
}

/// Refuses when what changed since the last snapshot might not fit: once into the repository, and once more
/// as copies while the instance is held.
fn make_room(
    job: &Job,
    repository: &Repository,
    source: &Source,
    meter: &Meter,
) -> Result<(), Fault> {
    let last = repository.snapshots()?.iter().map(|snapshot| snapshot.time).max();
    let left_out: Vec<&str> = source.leave_out.iter().filter_map(|name| name.to_str()).collect();
    let size = room::measure(&source.root, &left_out, last)
        .map_err(|error| failed(format!("looking at {}: {error}", source.root.display())))?;
    meter.expect(size.bytes);
    let needed = size.changed_bytes.saturating_add(OVERHEAD);
    room::claim(&job.repository, needed, job.reserve)
}

fn make_staging(staging: &Path) -> Result<(), Fault> {
    let made = DirBuilder::new().mode(0o700).create(staging);
    made.map_err(|error| failed(format!("making {}: {error}", staging.display())))
}

/// What was written opens again and says what it was told. Trees on the way to it are read for that.
fn read_back(repository: &Repository, id: SnapshotId, source: &Source) -> Result<(), Fault> {
    let found = repository.attachments(id).map_err(|error| fault(&error))?;
    if found == source.attachments {
        return Ok(());
    }
    let problem = "the new snapshot does not hold what was put into it".to_owned();
    Err(Fault { kind: FaultKind::Damaged, problem })
}

fn watcher(meter: &Arc<Meter>) -> Watcher {
    let meter = Arc::clone(meter);
    Watcher::new(move |progress| meter.reach(progress.bytes))
}

fn tell(taken: &Taken) {
    if taken.lost_packs > 0 {
        let packs = taken.lost_packs;
        say(&Said::Log(format!("{packs} packs of older snapshots are gone from the repository")));
    }
    if taken.special > 0 {
        let special = taken.special;
        say(&Said::Log(format!("{special} sockets, pipes and devices were left out")));
    }
}
