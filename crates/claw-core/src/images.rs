//! Which images may leave a host, so that its disk does not fill with versions that nobody runs.
//!
//! An image goes when nothing has needed it for [`GRACE`], or at once while the disk is short of room. It
//! stays for as long as a spec, a version that can come back, a snapshot or a container of anybody needs it;
//! and as long as the needs of one instance are not known, nothing goes at all. Only references that an
//! instance's spec has named on this host are ever removed: what an operator keeps there for other ends has
//! none of our names, and a second name on the same content keeps the content.
//!
//! What it does not do: look, remove, remember. [`decide`] is pure; the caller keeps [`Decision::named`]
//! for the next time.
//!
//! Where to start: [`claims`], then [`decide`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use crate::name::{ImageRef, InstanceName, SnapshotName};
use crate::observed::Record;
use crate::spec::InstanceSpec;
use crate::time::Timestamp;

/// For how long an image that nobody needs is kept. Whoever changes their mind about a version does so
/// within a working day, and pulling a gigabyte again takes minutes; the disk's watermark ends it early.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// An image that is on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostImage {
    /// The runtime's id of its content: references that lead to the same one share it.
    pub id: String,
    /// Its bytes on the disk, those that it shares with other images included.
    pub bytes: u64,
    /// Whether a container of anybody, up or down, was made from it.
    pub used: bool,
}

/// Why an instance needs an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// Its spec wants it.
    Wanted,
    /// It passed the gate last: a failed change leads back to it.
    Confirmed,
    /// Its data from before the last change is kept.
    Replaced,
    /// A change to it is under way.
    Change,
    /// A snapshot holds data that it ran on.
    Snapshot(SnapshotName),
}

impl Need {
    /// Whether a spec of this host says so. A snapshot may come from elsewhere.
    const fn is_named_here(&self) -> bool {
        !matches!(self, Self::Snapshot(_))
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wanted => f.write_str("its spec wants it"),
            Self::Confirmed => f.write_str("it is the version that works"),
            Self::Replaced => f.write_str("the data before the last change is kept"),
            Self::Change => f.write_str("a change to it is under way"),
            Self::Snapshot(name) => write!(f, "snapshot {name} needs it"),
        }
    }
}

/// An image that an instance needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Which.
    pub image: ImageRef,
    /// Who.
    pub instance: InstanceName,
    /// Why.
    pub need: Need,
}

/// What is remembered of an image that a spec has named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Named {
    /// Since when nobody needs it; none: somebody does.
    pub unneeded_since: Option<Timestamp>,
}

/// How the disk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// There is enough.
    Enough,
    /// It is below its watermark.
    Low,
}

/// Everything that [`decide`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// What specs have named here, as remembered.
    pub named: &'a BTreeMap<ImageRef, Named>,
    /// What is on the host of all that is named or claimed.
    pub present: &'a BTreeMap<ImageRef, HostImage>,
    /// What is needed, as far as known.
    pub claims: &'a BTreeSet<Claim>,
    /// Instances whose needs are not known.
    pub unknown: &'a BTreeSet<InstanceName>,
    /// How the disk stands.
    pub room: Room,
}

/// What becomes of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes.
    Remove {
        /// Since when nobody needs it.
        since: Timestamp,
    },
    /// It stays.
    Stay(Stay),
}

/// Why an image stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stay {
    /// The needs of this instance are not known.
    Unsure(InstanceName),
    /// It, or another name of the same content, is needed.
    Needed(Claim),
    /// A container was made from it.
    Container,
    /// Nobody needs it, and the grace is not over.
    Until(Timestamp),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove { since } => write!(f, "goes, unneeded since {since}"),
            Self::Stay(Stay::Unsure(of)) => write!(f, "stays: what {of} needs is not known"),
            Self::Stay(Stay::Needed(claim)) => {
                write!(f, "stays for {}: {}", claim.instance, claim.need)
            }
            Self::Stay(Stay::Container) => f.write_str("stays: a container was made from it"),
            Self::Stay(Stay::Until(at)) => write!(f, "stays until {at}"),
        }
    }
}

/// What becomes of every image, and what is to be remembered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Of every named reference that leads to something on this host.
    pub verdicts: BTreeMap<ImageRef, Verdict>,
    /// What takes the place of [`Scene::named`].
    pub named: BTreeMap<ImageRef, Named>,
}

impl Decision {
    /// What goes.
    pub fn removals(&self) -> impl Iterator<Item = &ImageRef> {
        let goes = |verdict: &Verdict| matches!(verdict, Verdict::Remove { .. });
        self.verdicts.iter().filter(move |(_, verdict)| goes(verdict)).map(|(image, _)| image)
    }

    /// The earliest time at which a new decision can differ from this one without a cause from outside.
    #[must_use]
    pub fn wake_at(&self) -> Option<Timestamp> {
        let until = |verdict: &Verdict| match verdict {
            Verdict::Stay(Stay::Until(at)) => Some(*at),
            _ => None,
        };
        self.verdicts.values().filter_map(until).min()
    }
}

/// The images that an instance needs beside those of its snapshots. `replaced` is the version of the data
/// that the last change replaced, if anybody knows it.
#[must_use]
pub fn claims(
    instance: &InstanceName,
    wanted: Option<&InstanceSpec>,
    record: &Record,
    replaced: Option<&InstanceSpec>,
) -> BTreeSet<Claim> {
    let active = record.active.as_ref().map(|active| (&active.image, Need::Confirmed));
    let cutover = record.cutover.as_ref().map(|cutover| (&cutover.image, Need::Change));
    let replaced = replaced.filter(|_| record.replaced.is_some());
    let images = [
        wanted.map(|spec| (&spec.image, Need::Wanted)),
        active,
        cutover,
        replaced.map(|spec| (&spec.image, Need::Replaced)),
    ];
    let claim = |(image, need): (&ImageRef, Need)| Claim {
        image: image.clone(),
        instance: instance.clone(),
        need,
    };
    images.into_iter().flatten().map(claim).collect()
}

/// What becomes of the images that specs have named on a host.
#[must_use]
pub fn decide(scene: &Scene<'_>, now: Timestamp) -> Decision {
    let named = remember(scene, now);
    let verdicts = named.iter().filter_map(|(image, named)| {
        let found = scene.present.get(image)?;
        Some((image.clone(), scene.verdict(found, *named, now)))
    });
    Decision { verdicts: verdicts.collect(), named }
}

fn remember(scene: &Scene<'_>, now: Timestamp) -> BTreeMap<ImageRef, Named> {
    let mut named = scene.named.clone();
    for claim in scene.claims.iter().filter(|claim| claim.need.is_named_here()) {
        named.entry(claim.image.clone()).or_default();
    }
    // An id cannot be pulled: whoever put that content here did it by hand, and has it under other names.
    named.retain(|image, _| !image.is_id());
    named.retain(|image, named| {
        let present = scene.present.get(image);
        if present.is_none() && scene.claims.iter().all(|claim| claim.image != *image) {
            return false;
        }
        let needed = present.is_none_or(|found| scene.claim(found).is_some() || found.used);
        named.unneeded_since = match named.unneeded_since {
            _ if needed => None,
            // A clock that was far ahead once must not keep it until then.
            Some(since) => Some(since.min(now)),
            None if scene.unknown.is_empty() => Some(now),
            None => None,
        };
        true
    });
    named
}

impl Scene<'_> {
    fn verdict(&self, found: &HostImage, named: Named, now: Timestamp) -> Verdict {
        if let Some(claim) = self.claim(found) {
            return Verdict::Stay(Stay::Needed(claim.clone()));
        }
        if found.used {
            return Verdict::Stay(Stay::Container);
        }
        if let Some(instance) = self.unknown.first() {
            return Verdict::Stay(Stay::Unsure(instance.clone()));
        }
        let since = named.unneeded_since.unwrap_or(now);
        let until = since.after(GRACE);
        if self.room == Room::Low || now >= until {
            Verdict::Remove { since }
        } else {
            Verdict::Stay(Stay::Until(until))
        }
    }

    /// The first claim to the same content.
    fn claim(&self, found: &HostImage) -> Option<&Claim> {
        let leads_there = |claim: &&Claim| {
            self.present.get(&claim.image).is_some_and(|claimed| claimed.id == found.id)
        };
        self.claims.iter().find(leads_there)
    }
}

#[cfg(test)]
mod tests;
