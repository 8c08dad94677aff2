//! The one place where errors become gRPC statuses with `google.rpc` details.
//!
//! An internal error is logged with its causes and shown as a fixed text.

use std::error::Error;
use std::fmt::{self, Write as _};
use std::time::Duration;

use claw_proto::convert::violation::Violations;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::refusal::Refusal;

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "claw.fleet";

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = code(&refusal);
        let mut details = ErrorDetails::new();
        details.set_error_info(reason(&refusal), DOMAIN, std::collections::HashMap::new());
        add_details(&mut details, &refusal);
        if code == Code::Internal {
            tracing::error!(error = %Chain(&refusal), "a call failed");
        }
        Self::with_error_details(code, message(&refusal), details)
    }
}

/// The status code of a refusal.
#[must_use]
pub fn code(refusal: &Refusal) -> Code {
    match refusal {
        Refusal::Invalid(_) => Code::InvalidArgument,
        Refusal::NotFound { .. } => Code::NotFound,
        Refusal::Exists { .. } | Refusal::ShownOnce { .. } => Code::AlreadyExists,
        Refusal::StaleEtag { .. } | Refusal::BrokenOff { .. } => Code::Aborted,
        Refusal::Precondition { .. } => Code::FailedPrecondition,
        Refusal::Unauthenticated { .. } => Code::Unauthenticated,
        Refusal::Denied { .. } => Code::PermissionDenied,
        Refusal::Exhausted { .. } => Code::ResourceExhausted,
        Refusal::TooLate { .. } => Code::DeadlineExceeded,
        Refusal::Unavailable { .. } => Code::Unavailable,
        Refusal::Internal(_) => Code::Internal,
    }
}

/// The stable word for programs.
#[must_use]
pub fn reason(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Invalid(_) => "INVALID_FIELDS",
        Refusal::NotFound { .. } => "NOT_FOUND",
        Refusal::Exists { .. } => "ALREADY_EXISTS",
        Refusal::ShownOnce { .. } => "SHOWN_ONCE",
        Refusal::StaleEtag { .. } => "STALE_ETAG",
        Refusal::Precondition { reason, .. } => reason.as_str(),
        Refusal::Unauthenticated { reason, .. } | Refusal::Denied { reason, .. } => reason,
        Refusal::Exhausted { .. } => "TOO_MANY",
        Refusal::TooLate { .. } => "TOO_LATE",
        Refusal::BrokenOff { .. } => "BROKEN_OFF",
        Refusal::Unavailable { .. } => "UNAVAILABLE",
        Refusal::Internal(_) => "INTERNAL",
    }
}

/// Most bytes of wrong fields that one status tells. They stand in the trailers twice and encoded, and
/// hyper's client takes 16 KiB of headers (its `max_header_list_size`).
const MAX_FAULTS: usize = 2000;

/// The wrong fields that are told, at least one; where more follow, a last one counts them.
fn told(violations: &Violations) -> Violations {
    let mut told = Violations::default();
    let mut bytes = 0;
    for violation in &violations.0 {
        bytes += violation.field.len() + violation.description.len();
        if bytes > MAX_FAULTS && !told.0.is_empty() {
            let more = violations.0.len() - told.0.len();
            told.push(&violation.field, format!("is the first of {more} more that are wrong"));
            break;
        }
        told.0.push(violation.clone());
    }
    told
}

fn message(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Invalid(violations) => told(violations).to_string(),
        Refusal::Internal(_) => "internal error; the coordinator's log has the cause".to_owned(),
        refusal => refusal.to_string(),
    }
}

fn add_details(details: &mut ErrorDetails, refusal: &Refusal) {
    match refusal {
        Refusal::Invalid(violations) => {
            for violation in &told(violations).0 {
                details.add_bad_request_violation(&violation.field, &violation.description);
            }
        }
        Refusal::Precondition { reason, subject, description } => {
            details.add_precondition_failure_violation(reason.as_str(), subject, description);
        }
        Refusal::NotFound { resource } | Refusal::Exists { resource } => {
            let kind = resource.split('/').next().unwrap_or_default();
            details.set_resource_info(kind, resource, "", "");
        }
        Refusal::Exhausted { retry, .. } | Refusal::Unavailable { retry, .. } => {
            details.set_retry_info(Some(*retry));
        }
        Refusal::StaleEtag { .. }
        | Refusal::ShownOnce { .. }
        | Refusal::Unauthenticated { .. }
        | Refusal::Denied { .. }
        | Refusal::TooLate { .. }
        | Refusal::BrokenOff { .. }
        | Refusal::Internal(_) => {}
    }
}

/// UNAVAILABLE with a time to come back.
#[must_use]
pub fn unavailable(description: &str, retry: Duration) -> Status {
    Refusal::Unavailable { description: description.to_owned(), retry }.into()
}

/// An error with its causes, each after a colon.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut last = self.0.to_string();
        let mut source = self.0.source();
        while let Some(cause) = source {
            let mut text = String::new();
            write!(text, "{cause}")?;
            // A transparent error repeats its source.
            if text != last {
                write!(f, ": {text}")?;
            }
            last = text;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::{Fault, Precondition};

    fn every_refusal() -> Vec<Refusal> {
        let text = || "text".to_owned();
        let second = Duration::from_secs(1);
        let precondition = |reason| Refusal::precondition(reason, text(), text());
        let mut violations = Violations::one("a.b", "is wrong");
        violations.push("c", "too");
        vec![
            Refusal::Invalid(violations),
            Refusal::NotFound { resource: "hosts/a".to_owned() },
            Refusal::Exists { resource: "hosts/a".to_owned() },
            Refusal::ShownOnce { id: text() },
            Refusal::StaleEtag { resource: text(), given: "1".to_owned(), current: "2".to_owned() },
            precondition(Precondition::HostCordoned),
            precondition(Precondition::HostFull),
            precondition(Precondition::HostInUse),
            precondition(Precondition::NameBeingRemoved),
            precondition(Precondition::InstanceDeleting),
            precondition(Precondition::InstanceStopped),
            precondition(Precondition::InstanceNotPaused),
            precondition(Precondition::SnapshotDamaged),
            precondition(Precondition::SnapshotNotReady),
            precondition(Precondition::RevisionUnknown),
            precondition(Precondition::TooManySnapshots),
            precondition(Precondition::NoEscrow),
            precondition(Precondition::Migrating),
            precondition(Precondition::NotMigrating),
            precondition(Precondition::HostConnected),
            precondition(Precondition::NoOffsiteCopy),
            precondition(Precondition::NoOffsiteStorage),
            precondition(Precondition::SnapshotNotOffsite),
            precondition(Precondition::HostnameTaken),
            precondition(Precondition::ProtocolVersion),
            precondition(Precondition::HostCloned),
            precondition(Precondition::ImplausibleStamp),
            precondition(Precondition::HostNotConnected),
            precondition(Precondition::CommandFailed),
            Refusal::Unauthenticated { reason: "NO_CERTIFICATE", description: text() },
            Refusal::Denied { reason: "ROLE", description: text() },
            Refusal::Exhausted { description: text(), retry: second },
            Refusal::TooLate { description: text() },
            Refusal::BrokenOff { description: text() },
            Refusal::Unavailable { description: text(), retry: second },
            Refusal::Internal(Fault::Damaged { what: text(), problem: "secret".to_owned() }),
        ]
    }

    #[test]
    fn the_table() {
        let table: Vec<String> = every_refusal()
            .into_iter()
            .map(|refusal| {
                let status = Status::from(refusal);
                let details = status.get_error_details();
                let info = details.error_info().map(|info| info.reason.clone());
                let mut kinds = Vec::new();
                if let Some(bad) = details.bad_request() {
                    kinds.push(format!("BadRequest x{}", bad.field_violations.len()));
                }
                if details.precondition_failure().is_some() {
                    kinds.push("PreconditionFailure".to_owned());
                }
                if details.resource_info().is_some() {
                    kinds.push("ResourceInfo".to_owned());
                }
                if details.retry_info().is_some() {
                    kinds.push("RetryInfo".to_owned());
                }
                format!(
                    "{:?} {} [{}] {}",
                    status.code(),
                    info.unwrap_or_default(),
                    kinds.join(", "),
                    status.message()
                )
            })
            .collect();
        let expected = "\
InvalidArgument INVALID_FIELDS [BadRequest x2] a.b: is wrong; c: too
NotFound NOT_FOUND [ResourceInfo] hosts/a does not exist
AlreadyExists ALREADY_EXISTS [ResourceInfo] hosts/a exists already
AlreadyExists SHOWN_ONCE [] request text was answered before, and its answer is shown only once
Aborted STALE_ETAG [] text has changed: etag \"1\" was given, the present one is \"2\"
FailedPrecondition HOST_CORDONED [PreconditionFailure] text
FailedPrecondition HOST_FULL [PreconditionFailure] text
FailedPrecondition HOST_IN_USE [PreconditionFailure] text
FailedPrecondition NAME_BEING_REMOVED [PreconditionFailure] text
FailedPrecondition INSTANCE_DELETING [PreconditionFailure] text
FailedPrecondition INSTANCE_STOPPED [PreconditionFailure] text
FailedPrecondition INSTANCE_NOT_PAUSED [PreconditionFailure] text
FailedPrecondition SNAPSHOT_DAMAGED [PreconditionFailure] text
FailedPrecondition SNAPSHOT_NOT_READY [PreconditionFailure] text
FailedPrecondition REVISION_UNKNOWN [PreconditionFailure] text
FailedPrecondition TOO_MANY_SNAPSHOTS [PreconditionFailure] text
FailedPrecondition NO_ESCROW [PreconditionFailure] text
FailedPrecondition MIGRATING [PreconditionFailure] text
FailedPrecondition NOT_MIGRATING [PreconditionFailure] text
FailedPrecondition HOST_CONNECTED [PreconditionFailure] text
FailedPrecondition NO_OFFSITE_COPY [PreconditionFailure] text
FailedPrecondition NO_OFFSITE_STORAGE [PreconditionFailure] text
FailedPrecondition SNAPSHOT_NOT_OFFSITE [PreconditionFailure] text
FailedPrecondition HOSTNAME_TAKEN [PreconditionFailure] text
FailedPrecondition PROTOCOL_VERSION [PreconditionFailure] text
FailedPrecondition HOST_CLONED [PreconditionFailure] text
FailedPrecondition IMPLAUSIBLE_STAMP [PreconditionFailure] text
FailedPrecondition HOST_NOT_CONNECTED [PreconditionFailure] text
FailedPrecondition COMMAND_FAILED [PreconditionFailure] text
Unauthenticated NO_CERTIFICATE [] text
PermissionDenied ROLE [] text
ResourceExhausted TOO_MANY [RetryInfo] text
DeadlineExceeded TOO_LATE [] text
Aborted BROKEN_OFF [] text
Unavailable UNAVAILABLE [RetryInfo] text
Internal INTERNAL [] internal error; the coordinator's log has the cause";
        assert_eq!(table.join("\n"), expected);
    }
}
