//! Why a call was not carried out, before it becomes a gRPC status (see [`crate::status`]).

use std::time::Duration;

use claw_proto::DecodeError;
use claw_proto::convert::violation::{Violation, Violations};
use claw_store::{ReadError, WriteError, rusqlite};

/// Every way in which a call can fail.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Fields are wrong.
    #[error("{0}")]
    Invalid(Violations),
    /// A resource does not exist.
    #[error("{resource} does not exist")]
    NotFound {
        /// Such as `hosts/a`.
        resource: String,
    },
    /// A resource exists already.
    #[error("{resource} exists already")]
    Exists {
        /// Such as `hosts/a`.
        resource: String,
    },
    /// A one-time answer was asked for again.
    #[error("request {id} was answered before, and its answer is shown only once")]
    ShownOnce {
        /// The request's id.
        id: String,
    },
    /// The caller has seen an older version.
    #[error("{resource} has changed: etag {given:?} was given, the present one is {current:?}")]
    StaleEtag {
        /// Such as `hosts/a`.
        resource: String,
        /// What the caller gave.
        given: String,
        /// What it is.
        current: String,
    },
    /// The system is not in the state that the call needs.
    #[error("{description}")]
    Precondition {
        /// Which.
        reason: Precondition,
        /// The resource that it is about.
        subject: String,
        /// What is in the way, with what, and what to do.
        description: String,
    },
    /// The caller did not prove who it is.
    #[error("{description}")]
    Unauthenticated {
        /// Stable word for programs.
        reason: &'static str,
        /// What to do.
        description: String,
    },
    /// The caller may not do this.
    #[error("{description}")]
    Denied {
        /// Stable word for programs.
        reason: &'static str,
        /// What to do.
        description: String,
    },
    /// Too much.
    #[error("{description}")]
    Exhausted {
        /// What is too much.
        description: String,
        /// When to try again.
        retry: Duration,
    },
    /// No answer in time.
    #[error("{description}")]
    TooLate {
        /// Whose, and how long it had.
        description: String,
    },
    /// Whoever was to do it with us broke it off.
    #[error("{description}")]
    BrokenOff {
        /// Who, and what it said.
        description: String,
    },
    /// Not now.
    #[error("{description}")]
    Unavailable {
        /// Why.
        description: String,
        /// When to try again.
        retry: Duration,
    },
    /// Something of ours failed; the caller sees a fixed text.
    #[error("internal error")]
    Internal(#[source] Fault),
}

/// States that stand in the way of a call; the names are part of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// The host takes no new instances.
    HostCordoned,
    /// The host's state would be larger than an agent takes.
    HostFull,
    /// The host still holds instances.
    HostInUse,
    /// An instance of this name is still being removed.
    NameBeingRemoved,
    /// The instance is being deleted.
    InstanceDeleting,
    /// The instance is stopped.
    InstanceStopped,
    /// The instance is stopped, not paused.
    InstanceNotPaused,
    /// The snapshot is damaged.
    SnapshotDamaged,
    /// The snapshot is not there yet, or not any more.
    SnapshotNotReady,
    /// The spec that belongs to a snapshot is not kept any more.
    RevisionUnknown,
    /// The instance has as many snapshots as can be listed.
    TooManySnapshots,
    /// The host has not sent the passwords of the repository yet.
    NoEscrow,
    /// The instance is being moved to another host.
    Migrating,
    /// The instance is not being moved.
    NotMigrating,
    /// The host is connected, and it would be passed over.
    HostConnected,
    /// Nothing is known to be off-site.
    NoOffsiteCopy,
    /// The host has no storage off-site.
    NoOffsiteStorage,
    /// The snapshot is not known to be off-site.
    SnapshotNotOffsite,
    /// A name is served for another instance of the host.
    HostnameTaken,
    /// The agent speaks another version of the protocol.
    ProtocolVersion,
    /// Two machines use one certificate.
    HostCloned,
    /// The agent reports a state that cannot be.
    ImplausibleStamp,
    /// The host has no session, and the question is one that only its agent can answer.
    HostNotConnected,
    /// The host's agent could not do what it was asked for.
    CommandFailed,
}

impl Precondition {
    /// As it stands in `ErrorInfo.reason`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostCordoned => "HOST_CORDONED",
            Self::HostFull => "HOST_FULL",
            Self::HostInUse => "HOST_IN_USE",
            Self::NameBeingRemoved => "NAME_BEING_REMOVED",
            Self::InstanceDeleting => "INSTANCE_DELETING",
            Self::InstanceStopped => "INSTANCE_STOPPED",
            Self::InstanceNotPaused => "INSTANCE_NOT_PAUSED",
            Self::SnapshotDamaged => "SNAPSHOT_DAMAGED",
            Self::SnapshotNotReady => "SNAPSHOT_NOT_READY",
            Self::RevisionUnknown => "REVISION_UNKNOWN",
            Self::TooManySnapshots => "TOO_MANY_SNAPSHOTS",
            Self::NoEscrow => "NO_ESCROW",
            Self::Migrating => "MIGRATING",
            Self::NotMigrating => "NOT_MIGRATING",
            Self::HostConnected => "HOST_CONNECTED",
            Self::NoOffsiteCopy => "NO_OFFSITE_COPY",
            Self::NoOffsiteStorage => "NO_OFFSITE_STORAGE",
            Self::SnapshotNotOffsite => "SNAPSHOT_NOT_OFFSITE",
            Self::HostnameTaken => "HOSTNAME_TAKEN",
            Self::ProtocolVersion => "PROTOCOL_VERSION",
            Self::HostCloned => "HOST_CLONED",
            Self::ImplausibleStamp => "IMPLAUSIBLE_STAMP",
            Self::HostNotConnected => "HOST_NOT_CONNECTED",
            Self::CommandFailed => "COMMAND_FAILED",
        }
    }
}

/// What failed inside the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// SQLite.
    #[error("using the database")]
    Database(#[source] rusqlite::Error),
    /// Reading.
    #[error("reading the database")]
    Read(#[source] ReadError<rusqlite::Error>),
    /// Committing.
    #[error("committing")]
    Commit(#[source] WriteError<rusqlite::Error>),
    /// A stored message does not decode.
    #[error("decoding what is stored of {what}")]
    Stored {
        /// Of what.
        what: String,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// A stored value is not what this program writes.
    #[error("stored {what} is damaged: {problem}")]
    Damaged {
        /// Of what.
        what: String,
        /// Why.
        problem: String,
    },
    /// A sealed value does not open.
    #[error("opening the secrets of {what}")]
    Sealed {
        /// Of what.
        what: String,
        /// Why.
        #[source]
        source: claw_identity::seal::OpenError,
    },
    /// A value could not be sealed.
    #[error("sealing a secret")]
    Seal(#[from] claw_identity::seal::SealError),
    /// A certificate could not be issued.
    #[error("issuing a certificate")]
    Issue(#[from] claw_identity::IssueError),
    /// A task of the runtime was lost.
    #[error("waiting for a task")]
    Task(#[from] tokio::task::JoinError),
}

impl Refusal {
    /// One wrong field.
    pub fn field(field: &str, description: impl std::fmt::Display) -> Self {
        Self::Invalid(Violations::one(field, description))
    }

    /// A state that stands in the way.
    pub fn precondition(reason: Precondition, subject: String, description: String) -> Self {
        Self::Precondition { reason, subject, description }
    }

    /// Damage in the store.
    pub(crate) fn damaged(what: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self::Internal(Fault::Damaged { what: what.into(), problem: problem.to_string() })
    }
}

impl From<Violations> for Refusal {
    fn from(violations: Violations) -> Self {
        Self::Invalid(violations)
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        Self::Invalid(violation.into())
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Internal(fault)
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(source: rusqlite::Error) -> Self {
        Self::Internal(Fault::Database(source))
    }
}

impl From<ReadError<Self>> for Refusal {
    fn from(error: ReadError<Self>) -> Self {
        match error {
            ReadError::Query(refusal) => refusal,
            ReadError::Begin(source) => Self::Internal(Fault::Read(ReadError::Begin(source))),
            ReadError::Busy { connections: _ } => overloaded(),
        }
    }
}

impl From<WriteError<Self>> for Refusal {
    fn from(error: WriteError<Self>) -> Self {
        match error {
            WriteError::Job(refusal) => refusal,
            WriteError::Busy { capacity: _ } => overloaded(),
            WriteError::Commit(source) => Self::Internal(Fault::Commit(WriteError::Commit(source))),
            WriteError::Panicked => Self::Internal(Fault::Commit(WriteError::Panicked)),
            WriteError::Stopped => Self::Unavailable {
                description: "the coordinator is shutting down".to_owned(),
                retry: Duration::from_secs(5),
            },
        }
    }
}

fn overloaded() -> Refusal {
    Refusal::Unavailable {
        description: "the database is overloaded".to_owned(),
        retry: Duration::from_secs(1),
    }
}
