//! What can go wrong with a storage behind a network.

use std::io::{self, ErrorKind};
use std::sync::Arc;

/// Why a request failed, after every repetition.
#[derive(Debug, Clone, thiserror::Error)]
pub enum S3Fault {
    /// The storage does not know the key, or the signature is not of it.
    #[error("the storage refused the credentials ({code})")]
    Credentials {
        /// The storage's word for it.
        code: String,
    },
    /// The credentials are good and do not allow this.
    #[error("the credentials do not allow this ({code})")]
    Forbidden {
        /// The storage's word for it.
        code: String,
    },
    /// There is no such bucket.
    #[error("there is no bucket {0}")]
    NoBucket(String),
    /// There is no such file.
    #[error("it is absent")]
    Absent,
    /// The storage's clock and this host's differ by more than it allows.
    #[error("the clock of this host or of the storage is wrong")]
    Clock,
    /// The name is unknown, or nobody answers there.
    #[error("{endpoint} cannot be reached")]
    Unreachable {
        /// What.
        endpoint: String,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// It has no certificate of a trusted authority for its name.
    #[error("{endpoint} is not who it should be")]
    Untrusted {
        /// What.
        endpoint: String,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// It was there and then it was not.
    #[error("the connection to {endpoint} broke")]
    Broken {
        /// To what.
        endpoint: String,
        /// How.
        #[source]
        source: Arc<io::Error>,
    },
    /// No answer in time.
    #[error("{endpoint} did not answer in time")]
    TimedOut {
        /// What.
        endpoint: String,
    },
    /// It has no room, or this key has none.
    #[error("the storage is full ({code})")]
    Full {
        /// The storage's word for it.
        code: String,
    },
    /// Another refusal, or trouble that does not pass.
    #[error("the storage answered {status} {code}")]
    Refused {
        /// The status of HTTP.
        status: u16,
        /// The storage's word for it; empty when it has none.
        code: String,
    },
    /// The file is shorter than what was asked of it.
    #[error("it is shorter than expected")]
    Short,
    /// A file of more than 4 GiB, which the format does not have.
    #[error("it is larger than the format allows")]
    TooLarge,
    /// What the storage says that it stored is not what was sent.
    #[error("what was stored is not what was sent")]
    Altered,
    /// The storage does not speak S3, or not as it should.
    #[error("the answer is not understood: {0}")]
    Answer(&'static str),
    /// It was opened for reading.
    #[error("it was opened for reading only")]
    ReadOnly,
}

impl S3Fault {
    /// The refusal in an answer that is no success.
    pub(super) fn of_answer(status: u16, code: &str, bucket: &str) -> Self {
        let code = code.to_owned();
        match (status, code.as_str()) {
            (_, "NoSuchBucket") => Self::NoBucket(bucket.to_owned()),
            (_, "NoSuchKey") => Self::Absent,
            (_, "RequestTimeTooSkewed") => Self::Clock,
            (
                _,
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"
                | "AuthorizationHeaderMalformed",
            )
            | (401, _) => Self::Credentials { code },
            (_, "QuotaExceeded" | "XMinioStorageFull" | "EntityTooLarge") | (507, _) => {
                Self::Full { code }
            }
            (_, "InvalidRange") | (416, _) => Self::Short,
            (403, _) => Self::Forbidden { code },
            (404, _) => Self::Absent,
            _ => Self::Refused { status, code },
        }
    }

    /// The nearest of the system's kinds.
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Credentials { .. } | Self::Forbidden { .. } | Self::Untrusted { .. } => {
                ErrorKind::PermissionDenied
            }
            Self::NoBucket(_) | Self::Absent => ErrorKind::NotFound,
            Self::Unreachable { .. } => ErrorKind::HostUnreachable,
            Self::Broken { .. } => ErrorKind::ConnectionAborted,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
            Self::Full { .. } => ErrorKind::StorageFull,
            Self::Short => ErrorKind::UnexpectedEof,
            Self::TooLarge => ErrorKind::FileTooLarge,
            Self::Altered | Self::Answer(_) => ErrorKind::InvalidData,
            Self::ReadOnly => ErrorKind::ReadOnlyFilesystem,
            Self::Clock | Self::Refused { .. } => ErrorKind::Other,
        }
    }

    /// Whether it may be gone when it is tried again.
    pub(super) fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Broken { .. }
            | Self::TimedOut { .. }
            | Self::Altered => true,
            Self::Refused { status, code } => {
                matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
                    || matches!(code.as_str(), "SlowDown" | "InternalError" | "RequestTimeout")
                    || code == "BadDigest"
            }
            _ => false,
        }
    }
}
