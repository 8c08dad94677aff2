//! Removes images that nobody needs any more, so that the disk does not fill with old versions.
//!
//! One loop for the host, level-triggered: when what is needed changes, and now and then, it looks at Docker
//! and the disk, decides anew ([`claw_core::images::decide`], pure), and removes. It needs no coordinator. What
//! specs have named here, and since when nobody needs it, is in the journal; a removal needs no note of its own,
//! since looking tells what is gone.
//!
//! What it does not do: know who needs what. The instances' loops and the repositories say so through
//! [`crate::roster::Roster::image_claims`]. An image that is asked for in the very moment in which it goes is
//! pulled again, as one that somebody else removed would be.
//!
//! Where to start: [`Images::run`].

mod note;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use claw_core::backoff::{Backoff, Bounds};
use claw_core::event::{EventKind, Severity};
use claw_core::images::{Claim, Decision, HostImage, Named, Room, Scene, Verdict, decide};
use claw_core::name::{ImageRef, InstanceName};
use claw_core::time::Timestamp;
use claw_core::unit::MIB;
use claw_store::{WriteError, rusqlite};
use tokio::select;

use super::backups::{JobError, is_low};
use super::deadline::{Elapsed, JOURNAL, within};
use crate::agent::Agent;
use crate::journal::Note;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::{Clock as _, Runtime as _, RuntimeError};

/// Between two looks when nothing has changed: how long a disk may be short of room before that shows.
const IDLE: Duration = Duration::from_secs(600);
/// Changes come in flocks; a look is a few questions to Docker.
const SETTLE: Duration = Duration::from_secs(2);
/// After something failed.
const RETRY: Bounds = Bounds { floor: Duration::from_secs(60), ceiling: Duration::from_secs(3600) };
/// Looking at so many images as instances have ever named.
const LOOK: Duration = Duration::from_secs(120);
/// Above the port's own deadline.
const REMOVE: Duration = Duration::from_secs(400);

/// The loop of images.
pub(super) struct Images<M> {
    agent: Rc<Agent<M>>,
    named: BTreeMap<ImageRef, Named>,
    /// What of it is in the journal.
    noted: BTreeMap<ImageRef, Named>,
    retry: Backoff,
}

/// What somebody needs, and of whom that is not known.
type Needs = (BTreeSet<Claim>, BTreeSet<InstanceName>);

/// Why images were not looked after.
#[derive(Debug, thiserror::Error)]
enum ImagesError {
    #[error("cannot look at the host's images")]
    Look(#[source] RuntimeError),
    #[error("cannot look at the disk")]
    Disk(#[source] JobError),
    #[error("cannot note which images are needed")]
    Note(#[source] WriteError<rusqlite::Error>),
    #[error("cannot remove image {image}")]
    Remove {
        image: ImageRef,
        #[source]
        source: RuntimeError,
    },
    #[error(transparent)]
    Silent(#[from] Elapsed),
}

impl<M: Machine> Images<M> {
    /// A loop that goes on where an earlier agent's note ends.
    pub(super) fn new(agent: Rc<Agent<M>>, note: Option<&[u8]>) -> Self {
        let named = note.map(note::decode).transpose().unwrap_or_else(|error| {
            // What is needed now names itself again.
            tracing::error!(error = chain(&error), "the note of images is unreadable");
            None
        });
        let named = named.unwrap_or_default();
        Self { agent, noted: named.clone(), named, retry: Backoff::new(RETRY) }
    }

    /// Runs until dropped. Must be called within a `LocalSet`.
    pub(super) async fn run(mut self) {
        let agent = Rc::clone(&self.agent);
        let clock = agent.machine.clock();
        let mut roster = agent.roster.subscribe();
        loop {
            clock.sleep(SETTLE).await;
            roster.borrow_and_update();
            let needs = agent.roster.image_claims();
            let pause = match self.look_after(&needs).await {
                Ok(wake_at) => {
                    self.retry.reset();
                    let idle = spread(IDLE, clock.random());
                    wake_at.map_or(idle, |at| at.since(clock.now())).min(idle)
                }
                Err(error) => {
                    tracing::warn!(error = chain(&error), "images are looked after later");
                    self.retry.next_delay(clock.random())
                }
            };
            let changed = async {
                while agent.roster.image_claims() == needs {
                    if roster.changed().await.is_err() {
                        return std::future::pending().await;
                    }
                }
            };
            select! {
                biased;
                () = changed => {}
                () = clock.sleep(pause) => {}
            }
        }
    }

    /// Looks, decides, notes, removes; returns when the next image may go.
    async fn look_after(&mut self, needs: &Needs) -> Result<Option<Timestamp>, ImagesError> {
        let (claims, unknown) = needs;
        for image in self.agent.roster.take_named() {
            self.named.entry(image).or_default();
        }
        let present = self.look(claims).await?;
        let room = self.room().await?;
        let scene = Scene { named: &self.named, present: &present, claims, unknown, room };
        let decision = decide(&scene, self.agent.machine.clock().now());
        self.remember(&decision).await?;
        for (image, verdict) in &decision.verdicts {
            tracing::debug!(image = image.as_str(), %verdict, "an image that a spec has named");
        }
        for image in decision.removals() {
            if self.agent.roster.image_claims() != *needs {
                // Somebody needs something else meanwhile.
                return Ok(None);
            }
            self.remove(image, room, &decision).await?;
        }
        Ok(decision.wake_at())
    }

    async fn look(
        &self,
        claims: &BTreeSet<Claim>,
    ) -> Result<BTreeMap<ImageRef, HostImage>, ImagesError> {
        let named = self.named.keys().cloned();
        let all = named.chain(claims.iter().map(|claim| claim.image.clone())).collect();
        let machine = &self.agent.machine;
        let found = within(machine.clock(), LOOK, machine.runtime().images(&all)).await?;
        found.map_err(ImagesError::Look)
    }

    /// How the disk with the instances' data stands: Docker's is the same one as a rule.
    async fn room(&self) -> Result<Room, ImagesError> {
        let Some(instance) = self.agent.roster.members().into_keys().next() else {
            return Ok(Room::Enough);
        };
        let low = is_low(&self.agent, &instance).await.map_err(ImagesError::Disk)?;
        Ok(if low { Room::Low } else { Room::Enough })
    }

    async fn remember(&mut self, decision: &Decision) -> Result<(), ImagesError> {
        self.named.clone_from(&decision.named);
        if self.noted == self.named {
            return Ok(());
        }
        let note = self.agent.journal.note(Note::Images, note::encode(&decision.named));
        let noted = within(self.agent.machine.clock(), JOURNAL, note).await?;
        noted.map_err(ImagesError::Note)?;
        self.noted.clone_from(&self.named);
        Ok(())
    }

    async fn remove(
        &self,
        image: &ImageRef,
        room: Room,
        decision: &Decision,
    ) -> Result<(), ImagesError> {
        let machine = &self.agent.machine;
        let removed =
            within(machine.clock(), REMOVE, machine.runtime().remove_image(image)).await?;
        let bytes =
            removed.map_err(|source| ImagesError::Remove { image: image.clone(), source })?;
        let since = match decision.verdicts.get(image) {
            Some(Verdict::Remove { since }) => machine.clock().now().since(*since),
            _ => Duration::ZERO,
        };
        let message = message(image, bytes, since, room);
        self.agent.event(None, EventKind::ImageRemoved, Severity::Info, message);
        Ok(())
    }
}

fn message(image: &ImageRef, bytes: u64, unneeded: Duration, room: Room) -> String {
    let given_back = match bytes {
        0 => "its content has another name and stays".to_owned(),
        bytes => format!("up to {} MiB are given back", bytes.div_ceil(MIB)),
    };
    let why = match room {
        Room::Low => "the disk is short of room".to_owned(),
        Room::Enough => format!("nobody has needed it for {} h", unneeded.as_secs() / 3600),
    };
    format!("image {image} was removed, {given_back}: {why}")
}

/// A tenth to either side, so that hosts made from one image do not keep step.
fn spread(length: Duration, random: u64) -> Duration {
    let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis - millis / 10 + random % (millis / 5).max(1))
}
