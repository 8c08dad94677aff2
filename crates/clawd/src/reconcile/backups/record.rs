//! What must be remembered of an instance's snapshots beyond the repository itself, as a note in the journal.
//!
//! Times of the last verification, drill and pruning, what a verification found, and what people asked for and
//! was accepted. Unknown fields are ignored, missing ones are as at the beginning: an older or newer agent
//! reads the note too.

use std::collections::{BTreeMap, BTreeSet};

use claw_core::name::SnapshotName;
use claw_core::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::offsite::{Copy, StoredCopy};

/// Parts in which the data of a repository is verified, one a week: all of it in ten weeks.
pub(super) const DATA_PARTS: u32 = 10;

/// What is remembered of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct BackupRecord {
    /// Since when the instance is known.
    pub(super) first_seen: Timestamp,
    /// When the newest snapshot of its data in use was begun, as far as was ever known.
    pub(super) taken_at: Option<Timestamp>,
    /// When the structure was verified last, whatever came of it.
    pub(super) structure_at: Option<Timestamp>,
    /// When a part of the data was verified last, whatever came of it.
    pub(super) data_at: Option<Timestamp>,
    /// The part that is verified next.
    pub(super) data_part: u32,
    /// When a verification found nothing wrong last.
    pub(super) sound_at: Option<Timestamp>,
    /// When snapshots were last forgotten by the policy.
    pub(super) pruned_at: Option<Timestamp>,
    /// When a drill ended last, well or not.
    pub(super) drill_at: Option<Timestamp>,
    /// When a drill passed last.
    pub(super) drilled_at: Option<Timestamp>,
    /// A drill was begun: its data may lie on the disk.
    pub(super) drilling: bool,
    /// It was said that the next snapshot is overdue.
    pub(super) overdue_told: bool,
    /// What was accepted and is not done.
    pub(super) asks: Vec<Ask>,
    /// Snapshots that are damaged.
    pub(super) damage: Damage,
    /// How the copy off-site stands.
    pub(super) copy: Copy,
}

/// Something that was asked for once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    /// Take a snapshot of this name.
    Take(SnapshotName),
    /// Forget this one.
    Forget(SnapshotName),
    /// Verify the structure of everything.
    Structure,
    /// Verify the structure and data of everything.
    Data,
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Take(name) => write!(f, "snapshot {name}"),
            Self::Forget(name) => write!(f, "removal of {name}"),
            Self::Structure => f.write_str("verification of the structure"),
            Self::Data => f.write_str("verification of all data"),
        }
    }
}

/// Snapshots that a verification found damaged, by what found it: only the same can take it back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Damage {
    structure: BTreeSet<SnapshotName>,
    parts: BTreeMap<u32, BTreeSet<SnapshotName>>,
}

/// What a verification looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// The structure only.
    Structure,
    /// The structure and this part of the data.
    Part(u32),
    /// Everything.
    All,
}

impl Damage {
    /// Every damaged one.
    pub(super) fn snapshots(&self) -> BTreeSet<SnapshotName> {
        self.structure.iter().chain(self.parts.values().flatten()).cloned().collect()
    }

    /// A verification of what was looked at found these.
    pub(super) fn found(&mut self, looked: Looked, affected: BTreeSet<SnapshotName>) {
        match looked {
            Looked::Structure => self.structure = affected,
            Looked::Part(part) => {
                self.structure.clear();
                self.parts.insert(part, affected);
            }
            Looked::All => {
                self.parts.clear();
                self.structure = affected;
            }
        }
        self.parts.retain(|_, affected| !affected.is_empty());
    }

    /// Something else than a verification found that one is.
    pub(super) fn is(&mut self, snapshot: SnapshotName) {
        self.structure.insert(snapshot);
    }

    /// Only these exist.
    pub(super) fn retain(&mut self, exists: impl Fn(&SnapshotName) -> bool) {
        self.structure.retain(&exists);
        self.parts.values_mut().for_each(|affected| affected.retain(&exists));
        self.parts.retain(|_, affected| !affected.is_empty());
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Stored {
    first_seen: i64,
    taken_at: Option<i64>,
    structure_at: Option<i64>,
    data_at: Option<i64>,
    data_part: u32,
    sound_at: Option<i64>,
    pruned_at: Option<i64>,
    drill_at: Option<i64>,
    drilled_at: Option<i64>,
    drilling: bool,
    overdue_told: bool,
    asks: Vec<(String, String)>,
    damaged: BTreeSet<String>,
    damaged_parts: BTreeMap<u32, BTreeSet<String>>,
    copy: StoredCopy,
}

impl BackupRecord {
    /// Whether a snapshot of this name was asked for and is not taken yet.
    pub(super) fn takes(&self, name: &SnapshotName) -> bool {
        self.asks.iter().any(|ask| matches!(ask, Ask::Take(known) if known == name))
    }

    /// As the bytes of a note.
    pub(super) fn encode(&self) -> Vec<u8> {
        let millis = |at: Option<Timestamp>| at.map(Timestamp::millis);
        let names =
            |names: &BTreeSet<SnapshotName>| names.iter().map(ToString::to_string).collect();
        let stored = Stored {
            first_seen: self.first_seen.millis(),
            taken_at: millis(self.taken_at),
            structure_at: millis(self.structure_at),
            data_at: millis(self.data_at),
            data_part: self.data_part,
            sound_at: millis(self.sound_at),
            pruned_at: millis(self.pruned_at),
            drill_at: millis(self.drill_at),
            drilled_at: millis(self.drilled_at),
            drilling: self.drilling,
            overdue_told: self.overdue_told,
            asks: self.asks.iter().map(stored_ask).collect(),
            damaged: names(&self.damage.structure),
            damaged_parts: self.damage.parts.iter().map(|(part, n)| (*part, names(n))).collect(),
            copy: StoredCopy::from(&self.copy),
        };
        // Numbers, texts and lists: nothing that JSON cannot hold.
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// From the bytes of a note.
    ///
    /// # Errors
    /// The bytes are no such note.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let stored: Stored = serde_json::from_slice(bytes)?;
        let time = |at: Option<i64>| at.map(Timestamp::from_millis);
        Ok(Self {
            first_seen: Timestamp::from_millis(stored.first_seen),
            taken_at: time(stored.taken_at),
            structure_at: time(stored.structure_at),
            data_at: time(stored.data_at),
            data_part: stored.data_part,
            sound_at: time(stored.sound_at),
            pruned_at: time(stored.pruned_at),
            drill_at: time(stored.drill_at),
            drilled_at: time(stored.drilled_at),
            drilling: stored.drilling,
            overdue_told: stored.overdue_told,
            asks: stored.asks.iter().filter_map(read_ask).collect(),
            damage: Damage {
                structure: read_names(&stored.damaged),
                parts: stored
                    .damaged_parts
                    .iter()
                    .map(|(part, n)| (*part, read_names(n)))
                    .collect(),
            },
            copy: stored.copy.into(),
        })
    }
}

fn stored_ask(ask: &Ask) -> (String, String) {
    let (kind, name) = match ask {
        Ask::Take(name) => ("take", name.as_str()),
        Ask::Forget(name) => ("forget", name.as_str()),
        Ask::Structure => ("structure", ""),
        Ask::Data => ("data", ""),
    };
    (kind.to_owned(), name.to_owned())
}

/// One of a newer agent is dropped.
fn read_ask((kind, name): &(String, String)) -> Option<Ask> {
    match kind.as_str() {
        "take" => SnapshotName::parse(name).ok().map(Ask::Take),
        "forget" => SnapshotName::parse(name).ok().map(Ask::Forget),
        "structure" => Some(Ask::Structure),
        "data" => Some(Ask::Data),
        _ => None,
    }
}

fn read_names(names: &BTreeSet<String>) -> BTreeSet<SnapshotName> {
    names.iter().filter_map(|name| SnapshotName::parse(name).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SnapshotName {
        SnapshotName::parse(text).expect("valid")
    }

    fn set(names: &[&str]) -> BTreeSet<SnapshotName> {
        names.iter().map(|text| name(text)).collect()
    }

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let at = |millis| Some(Timestamp::from_millis(millis));
        let mut damage = Damage::default();
        damage.found(Looked::Part(3), set(&["x"]));
        damage.is(name("y"));
        let record = BackupRecord {
            first_seen: Timestamp::from_millis(1),
            taken_at: at(2),
            structure_at: at(3),
            data_at: at(4),
            data_part: 7,
            sound_at: at(5),
            pruned_at: at(6),
            drill_at: at(7),
            drilled_at: at(8),
            drilling: true,
            overdue_told: true,
            asks: vec![Ask::Take(name("a")), Ask::Forget(name("b")), Ask::Structure, Ask::Data],
            damage,
            copy: Copy::default(),
        };
        assert_eq!(BackupRecord::decode(&record.encode()).expect("ours"), record);
    }

    #[test]
    fn what_is_missing_or_unknown_does_no_harm() {
        let read = |text: &str| BackupRecord::decode(text.as_bytes());
        assert_eq!(read("{}").expect("empty"), BackupRecord::default());
        let newer = r#"{"colour":"red","asks":[["export","x"],["take","a"],["take","A B"]]}"#;
        assert_eq!(read(newer).expect("newer").asks, [Ask::Take(name("a"))]);
        assert!(read("nonsense").is_err());
    }

    #[test]
    fn damage_goes_only_when_the_same_is_looked_at_again() {
        let mut damage = Damage::default();
        damage.found(Looked::Part(3), set(&["x", "y"]));
        damage.found(Looked::Structure, set(&["z"]));
        assert_eq!(damage.snapshots(), set(&["x", "y", "z"]));
        damage.found(Looked::Structure, set(&[]));
        damage.found(Looked::Part(4), set(&[]));
        assert_eq!(damage.snapshots(), set(&["x", "y"]));
        damage.retain(|snapshot| snapshot.as_str() != "x");
        assert_eq!(damage.snapshots(), set(&["y"]));
        damage.found(Looked::Part(3), set(&[]));
        assert_eq!(damage, Damage::default());
        damage.found(Looked::Part(3), set(&["x"]));
        damage.found(Looked::All, set(&[]));
        assert_eq!(damage, Damage::default());
    }
}
