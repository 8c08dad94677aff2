//! What the agent and its child process say to each other: one JSON object per line, both ways, over one
//! socket.
//!
//! The agent says [`Job`] first, then a [`Told`] after each [`Said::Hold`], and what comes through the job's
//! pipe. The child says [`Said`]; a line that is no JSON is something that a library printed, and counts as
//! a line of its log. When either end closes the socket, the other one gives up. Nobody hurries: who does not
//! read makes the other wait.
//!
//! Both ends are the same program, so there are no versions: during an upgrade a job may fail, once.

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

/// A password on its way into the child: never an argument, never in the environment, never printed.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Private(String);

/// Everything that one child does.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The instance, as the repository knows it.
    pub(crate) instance: String,
    /// The directory of its repository.
    pub(crate) repository: PathBuf,
    /// The directory of its data directories.
    pub(crate) home: PathBuf,
    /// The directory for copies of files that change; absent between jobs.
    pub(crate) staging: PathBuf,
    /// What opens the repository: 64 hexadecimal digits.
    pub(crate) secret: Private,
    /// What people open it with; only where a repository may be made.
    pub(crate) recovery: Option<Private>,
    /// Whose the files of an archive become.
    pub(crate) owner: Owner,
    /// Room that stays free.
    pub(crate) reserve: Reserve,
    /// A limit that the child sets itself, in bytes; none when the service manager has set one.
    pub(crate) memory_bytes: Option<u64>,
    /// For how long the instance may be held, in milliseconds.
    pub(crate) hold_millis: u64,
    /// What to do.
    pub(crate) task: Task,
}

/// A user and a group.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// User id.
    pub(crate) user: u32,
    /// Group id.
    pub(crate) group: u32,
}

/// How much of a file system is left to others.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Reserve {
    /// Thousandths of it.
    pub(crate) permille: u64,
    /// And no less than so many bytes.
    pub(crate) least_bytes: u64,
}

/// A repository's place in a storage behind a network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// `https://HOST` or `https://HOST:PORT`.
    pub(crate) endpoint: String,
    /// As the storage calls it.
    pub(crate) region: String,
    /// An existing one.
    pub(crate) bucket: String,
    /// The directory in it.
    pub(crate) path: String,
    /// How the bucket is named in a request.
    pub(crate) addressing: Addressing,
    /// The name of the key.
    pub(crate) access_key: Private,
    /// The key.
    pub(crate) secret_key: Private,
    /// In bytes per second.
    pub(crate) bandwidth: Option<NonZeroU64>,
}

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Addressing {
    /// In the path.
    Path,
    /// In the host's name.
    Host,
}

/// What becomes of files that a copy has and the repository has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Surplus {
    /// They stay.
    Kept,
    /// They go.
    Removed,
}

/// One thing to do with a repository.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Take a snapshot.
    Take(Take),
    /// List them.
    List,
    /// Bring one back.
    Restore {
        /// Its name.
        snapshot: String,
        /// The name of the new directory.
        into: String,
    },
    /// Remove some, and what nothing needs any more.
    Forget {
        /// Their ids.
        snapshots: Vec<String>,
    },
    /// Look for damage; with a part, in the data too.
    Verify {
        /// Which part, from 0.
        part: u32,
        /// Of how many; 0: no data is read.
        parts: u32,
    },
    /// Copy the repository to a place.
    CopyOut {
        /// Which.
        place: Place,
        /// What becomes of the rest.
        surplus: Surplus,
    },
    /// Fetch the repository from a place.
    CopyIn {
        /// Which.
        place: Place,
    },
    /// Bring one back from a copy.
    RestoreFrom {
        /// Where it is.
        place: Place,
        /// Its name.
        snapshot: String,
        /// The name of the new directory.
        into: String,
    },
    /// Send a snapshot as an archive.
    Export {
        /// Its name.
        snapshot: String,
    },
    /// Take a snapshot of an archive that comes. The order's directory says nothing.
    Import(Take),
    /// Send the repository to another host.
    Send,
    /// Take the repository that another host sends.
    Receive,
}

/// A snapshot that shall be taken.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Take {
    /// Of which directory.
    pub(crate) data: String,
    /// Its name.
    pub(crate) name: String,
    /// Everything else that it says about itself.
    pub(crate) tags: Vec<String>,
    /// Now, in milliseconds since 1970.
    pub(crate) at: i64,
    /// Files that belong to it, base64.
    pub(crate) attachments: Vec<(String, String)>,
    /// Whether somebody writes, and can be held.
    pub(crate) up: bool,
}

/// What the agent answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Told {
    /// Nobody writes from now on.
    Held,
    /// The next bytes of the pipe, base64.
    Piece(String),
    /// The other end of the pipe has sent everything.
    End,
    /// Nothing more comes, and that was not everything. In words.
    Broken(String),
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// It has begun.
    Begun {
        /// The unit of the service manager that it runs in.
        unit: Option<String>,
    },
    /// It works; the numbers may be the same as before.
    Progress {
        /// Bytes.
        done: u64,
        /// Bytes; 0: unknown.
        total: u64,
    },
    /// The instance is to be held.
    Hold,
    /// It may go on.
    Release {
        /// Files that were copied aside meanwhile.
        files: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Bytes for the pipe, base64.
    Piece(String),
    /// For the log.
    Log(String),
    /// The end, with the most memory that the child had, in bytes.
    Done(Outcome, u64),
    /// The end.
    Failed(Fault),
}

/// What a job gave.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// Of [`Task::Take`] and [`Task::Import`].
    Taken(Stored),
    /// Of [`Task::List`].
    Listed {
        /// Oldest first.
        snapshots: Vec<Stored>,
        /// Bytes of the repository.
        stored_bytes: u64,
        /// The repository's id; empty when there is none.
        repository: String,
    },
    /// Of [`Task::CopyOut`], [`Task::CopyIn`] and [`Task::Send`].
    Carried {
        /// Files that were copied.
        files: u64,
        /// Their bytes.
        bytes: u64,
        /// Files that went.
        removed: u64,
    },
    /// Of every other task.
    Nothing,
    /// Of [`Task::Verify`].
    Verified {
        /// In words.
        damage: Vec<String>,
        /// Names of snapshots.
        affected: Vec<String>,
    },
}

/// A snapshot as it is in a repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// Its id.
    pub(crate) id: String,
    /// When it was begun, in milliseconds since 1970.
    pub(crate) at: i64,
    /// What it says about itself.
    pub(crate) tags: Vec<String>,
    /// Files and links.
    pub(crate) files: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Bytes by which the repository grew.
    pub(crate) added_bytes: u64,
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    /// What it means.
    pub(crate) kind: FaultKind,
    /// In words.
    pub(crate) problem: String,
}

/// What a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FaultKind {
    /// No room.
    Full,
    /// Something that is needed is damaged.
    Damaged,
    /// There is no such snapshot.
    NotFound,
    /// There is another repository.
    OtherRepository,
    /// The pipe broke, or who is at its other end refuses.
    Pipe,
    /// The process cannot go on.
    Ended,
    /// Anything else.
    Failed,
}

/// What is said of a process that took too much.
pub(crate) const OUT_OF_MEMORY: &str = "it needed more memory than it may have";
/// The tag that holds a snapshot's name.
pub(crate) const NAME_TAG: &str = "name:";
/// The tag that holds why it was taken.
pub(crate) const CAUSE_TAG: &str = "cause:";
/// The tag that holds the image that ran on the data.
pub(crate) const IMAGE_TAG: &str = "image:";
/// The tag that holds the generation of the host's state.
pub(crate) const GENERATION_TAG: &str = "generation:";

impl Private {
    /// Takes a password.
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The password.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl Task {
    /// The snapshot that it needs.
    pub(crate) fn snapshot(&self) -> Option<&str> {
        match self {
            Self::Restore { snapshot, .. }
            | Self::RestoreFrom { snapshot, .. }
            | Self::Export { snapshot } => Some(snapshot),
            _ => None,
        }
    }

    /// Whether its process must reach the network.
    pub(crate) const fn reach(&self) -> Reach {
        match self {
            Self::CopyOut { .. } | Self::CopyIn { .. } | Self::RestoreFrom { .. } => Reach::Network,
            _ => Reach::Host,
        }
    }
}

/// What a process must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Files of this host.
    Host,
    /// And storages elsewhere.
    Network,
}

impl Stored {
    /// What follows one of the tags' names.
    pub(crate) fn tag(&self, prefix: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(prefix))
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Private(..)")
    }
}
