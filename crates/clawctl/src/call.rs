//! What a failed call says, taken out of the gRPC status and its google.rpc details.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use rustls::AlertDescription;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::settings::Endpoint;

/// A call that failed, in words of clawctl.
#[derive(Debug)]
pub(crate) struct CallError {
    /// Completes "cannot …".
    pub(crate) doing: String,
    /// The gRPC code.
    pub(crate) code: Code,
    /// What the coordinator said.
    pub(crate) message: String,
    /// Every field that is wrong: path and why.
    pub(crate) fields: Vec<(String, String)>,
    /// What must be so first: subject and why.
    pub(crate) preconditions: Vec<(String, String)>,
    /// When another attempt makes sense.
    pub(crate) retry_after: Option<Duration>,
    /// The stable word for why, such as `SNAPSHOT_DAMAGED`; empty when there is none.
    pub(crate) reason: String,
    /// How the connection failed, when it did.
    pub(crate) transport: Option<TransportFault>,
    endpoint: Endpoint,
}

/// Why a call did not reach the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TransportFault {
    /// The coordinator's TLS did not like this client's certificate.
    Certificate(AlertDescription),
    /// Anything else, in the words of the library.
    Lost(String),
}

impl CallError {
    pub(crate) fn new(doing: &str, endpoint: &Endpoint, status: &Status) -> Box<Self> {
        let details = status.get_error_details();
        let fields = details.bad_request().map(|bad| {
            let pair = |field: &tonic_types::FieldViolation| {
                (field.field.clone(), field.description.clone())
            };
            bad.field_violations.iter().map(pair).collect()
        });
        let preconditions = details.precondition_failure().map(|failure| {
            let pair = |violation: &tonic_types::PreconditionViolation| {
                (violation.subject.clone(), violation.description.clone())
            };
            failure.violations.iter().map(pair).collect()
        });
        Box::new(Self {
            doing: doing.to_owned(),
            code: status.code(),
            message: status.message().to_owned(),
            fields: fields.unwrap_or_default(),
            preconditions: preconditions.unwrap_or_default(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            reason: reason(&details),
            transport: transport_fault(status),
            endpoint: endpoint.clone(),
        })
    }

    /// No answer came in time.
    pub(crate) fn timeout(doing: &str, endpoint: &Endpoint, after: Duration) -> Box<Self> {
        let message = format!("no answer within {}", crate::file::quantity::Span(after));
        Self::new(doing, endpoint, &Status::deadline_exceeded(message))
    }

    /// Lines below the error: everything that is wrong.
    pub(crate) fn details(&self) -> Vec<String> {
        let line = |(subject, why): &(String, String)| match subject.as_str() {
            "" => why.clone(),
            subject => format!("{subject}: {why}"),
        };
        self.fields.iter().chain(&self.preconditions).map(line).collect()
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        if let Some(fault) = &self.transport {
            return Some(self.transport_hint(fault));
        }
        let hint = match self.code {
            Code::InvalidArgument | Code::OutOfRange if self.fields.is_empty() => return None,
            Code::InvalidArgument | Code::OutOfRange => {
                "correct what is listed above and try again"
            }
            Code::NotFound if self.doing.contains("snapshot") => {
                "see what there is with `clawctl list` and `clawctl snapshot list INSTANCE`"
            }
            Code::NotFound if self.doing.contains("revision") => {
                "see what there is with `clawctl list` and `clawctl revisions INSTANCE`"
            }
            Code::NotFound => "see what there is with `clawctl list` and `clawctl host list`",
            Code::AlreadyExists if self.doing.contains("/snapshots/") => "choose another name",
            Code::AlreadyExists => {
                "choose another name, or change what exists with `clawctl apply -f FILE`"
            }
            Code::Aborted => {
                "somebody else changed it meanwhile: look at it again, then repeat the command"
            }
            Code::Unauthenticated => {
                "the coordinator wants a client certificate of this fleet: check --identity"
            }
            Code::PermissionDenied => {
                "the role in this certificate may not do that: use an identity of another role"
            }
            Code::Unavailable | Code::ResourceExhausted => match self.retry_after {
                Some(after) => return Some(format!("try again in {} s", after.as_secs().max(1))),
                None => "try again in a moment",
            },
            Code::DeadlineExceeded | Code::Cancelled => {
                "it may still be done: look before repeating it, or allow more time with --timeout"
            }
            Code::Unimplemented => "the coordinator is older than this clawctl: upgrade it",
            Code::Internal | Code::Unknown | Code::DataLoss => {
                "the coordinator's log has the cause: journalctl --unit claw-coordinator"
            }
            Code::FailedPrecondition => return reason_hint(&self.reason).map(str::to_owned),
            Code::Ok => return None,
        };
        Some(hint.to_owned())
    }

    fn transport_hint(&self, fault: &TransportFault) -> String {
        match fault {
            TransportFault::Certificate(_) => {
                "this certificate is expired, revoked or of another fleet: get a new one from the \
                 fleet's administrator and check --identity"
                    .to_owned()
            }
            TransportFault::Lost(_) => {
                format!("check that claw-coordinator runs and listens at {}", self.endpoint)
            }
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: ", self.doing)?;
        match &self.transport {
            Some(TransportFault::Certificate(alert)) => {
                return write!(f, "the coordinator refused this client's certificate ({alert:?})");
            }
            Some(TransportFault::Lost(why)) => {
                return write!(f, "connection to {} lost: {why}", self.endpoint);
            }
            None => {}
        }
        // The list below it says the same, in full.
        if self.fields.is_empty() && !self.message.is_empty() {
            write!(f, "{}: {}", words(self.code), self.message)
        } else {
            f.write_str(words(self.code))
        }
    }
}

impl Error for CallError {}

fn words(code: Code) -> &'static str {
    match code {
        Code::Ok => "no error",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown error",
        Code::InvalidArgument => "invalid argument",
        Code::DeadlineExceeded => "deadline exceeded",
        Code::NotFound => "not found",
        Code::AlreadyExists => "exists already",
        Code::PermissionDenied => "permission denied",
        Code::ResourceExhausted => "too much",
        Code::FailedPrecondition => "not in this state",
        Code::Aborted => "changed meanwhile",
        Code::OutOfRange => "out of range",
        Code::Unimplemented => "not implemented",
        Code::Internal => "internal error",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data loss",
        Code::Unauthenticated => "not authenticated",
    }
}

/// Of ErrorInfo, or else of the first thing that must be so first.
fn reason(details: &ErrorDetails) -> String {
    let told = details.error_info().map(|info| info.reason.clone());
    let violated = || {
        let first = details.precondition_failure()?.violations.first()?;
        Some(first.r#type.clone())
    };
    told.or_else(violated).unwrap_or_default()
}

/// What to do when something is not in the state for it; the words are the coordinator's.
fn reason_hint(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "HOST_NOT_CONNECTED" => {
            "only its agent can do that: `clawctl host list` shows when it was seen last"
        }
        "INSTANCE_NOT_PAUSED" => "`clawctl start NAME` starts one that is stopped",
        "SNAPSHOT_DAMAGED" => "choose another one: `clawctl snapshot list INSTANCE`",
        "SNAPSHOT_NOT_READY" => {
            "it must be ready first: `clawctl snapshot list INSTANCE` shows how they stand"
        }
        "REVISION_UNKNOWN" => "`clawctl revisions INSTANCE` lists what is kept",
        "TOO_MANY_SNAPSHOTS" => "`clawctl snapshot delete INSTANCE NAME` makes room",
        "NO_ESCROW" => {
            "its host sends it after the first snapshot: take one with `clawctl snapshot create \
             INSTANCE --wait` and try again"
        }
        _ => return None,
    })
}

/// A status that tonic made of a transport error has that error as its source; one that a server
/// sent has none.
fn transport_fault(status: &Status) -> Option<TransportFault> {
    let mut innermost = None;
    let mut next = status.source();
    while let Some(error) = next {
        if let Some(alert) = alert_of(error) {
            return Some(TransportFault::Certificate(alert));
        }
        innermost = Some(error);
        next = error.source();
    }
    innermost.map(|error| TransportFault::Lost(error.to_string()))
}

/// The TLS alerts with which a server answers a certificate (RFC 8446, section 6.2).
///
/// With TLS 1.3 the server judges it after the client's handshake is over, so that the alert arrives
/// while h2 reads, and h2 keeps of an error of the connection nothing but its text.
fn alert_of(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    let text = error.to_string();
    let name = text.strip_prefix("received fatal alert: ")?;
    [
        AlertDescription::BadCertificate,
        AlertDescription::UnsupportedCertificate,
        AlertDescription::CertificateRevoked,
        AlertDescription::CertificateExpired,
        AlertDescription::CertificateUnknown,
        AlertDescription::UnknownCA,
        AlertDescription::AccessDenied,
        AlertDescription::CertificateRequired,
        AlertDescription::DecryptError,
    ]
    .into_iter()
    .find(|alert| format!("{alert:?}") == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: &Status, expected: &str) {
        let endpoint = Endpoint { host: "fleet.example".to_owned(), port: 7443 };
        let error = CallError::new("create instances/demo", &endpoint, status);
        let mut text = format!("{error}\n");
        for detail in error.details() {
            text.push_str(&format!("  {detail}\n"));
        }
        if let Some(hint) = error.hint() {
            text.push_str(&format!("hint: {hint}\n"));
        }
        assert_eq!(text, expected);
    }

    #[test]
    fn every_wrong_field_is_shown() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("spec.image", "must not be empty");
        details.add_bad_request_violation("spec.env[a]", "must be upper case");
        check(
            &Status::with_error_details(Code::InvalidArgument, "2 fields are wrong", details),
            "cannot create instances/demo: invalid argument\n  \
             spec.image: must not be empty\n  \
             spec.env[a]: must be upper case\n\
             hint: correct what is listed above and try again\n",
        );
    }

    #[test]
    fn preconditions_and_delays_are_shown() {
        let mut details = ErrorDetails::new();
        details.add_precondition_failure_violation("CORDONED", "hosts/vps-1", "is cordoned");
        check(
            &Status::with_error_details(Code::FailedPrecondition, "no room", details),
            "cannot create instances/demo: not in this state: no room\n  \
             hosts/vps-1: is cordoned\n",
        );
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(7)));
        check(
            &Status::with_error_details(Code::Unavailable, "shutting down", details),
            "cannot create instances/demo: unavailable: shutting down\nhint: try again in 7 s\n",
        );
    }

    #[test]
    fn every_code_has_words() {
        for number in 0..=16 {
            let code = Code::from_i32(number);
            let status = Status::new(code, "m");
            let endpoint = Endpoint { host: "h".to_owned(), port: 1 };
            let text = CallError::new("x", &endpoint, &status).to_string();
            assert_eq!(text, format!("cannot x: {}: m", words(code)));
        }
    }

    #[test]
    fn a_refused_certificate_is_told_from_a_lost_connection() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        let refused = std::io::Error::new(std::io::ErrorKind::InvalidData, alert);
        let status = Status::from_error(Box::new(refused));
        let fault = transport_fault(&status);
        assert_eq!(fault, Some(TransportFault::Certificate(AlertDescription::CertificateExpired)));
        let reset = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let fault = transport_fault(&Status::from_error(Box::new(reset)));
        assert_eq!(fault, Some(TransportFault::Lost("connection reset".to_owned())));
        assert_eq!(transport_fault(&Status::unavailable("server said so")), None);
    }
}
