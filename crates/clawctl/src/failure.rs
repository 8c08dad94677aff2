//! Every way in which a command fails, and how that is shown: message, causes, list, hint, status.

use std::error::Error;
use std::io::{self, Write};

use crate::call::CallError;
use crate::command::{ArchiveError, MigrationError, SnapshotError};
use crate::connection::{ConnectError, DialError};
use crate::file::FileError;
use crate::file::content::ContentError;
use crate::output::OutputError;
use crate::settings::SettingsError;
use crate::watch::WatchError;

/// Done.
pub(crate) const DONE: u8 = 0;
/// Something that was tried failed.
pub(crate) const FAILED: u8 = 1;
/// Command line, settings or file are wrong; nothing was sent.
pub(crate) const USAGE: u8 = 2;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("what the file points to cannot be had")]
    Content(ContentError),
    #[error(transparent)]
    Call(#[from] Box<CallError>),
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Migration(#[from] MigrationError),
    #[error(transparent)]
    Output(#[from] OutputError),
    /// An instance does not move.
    #[error("instances/{instance} is on hosts/{present} and cannot move to hosts/{wanted}")]
    Moved { instance: String, present: String, wanted: String },
    /// There is nothing that a list could be made of.
    #[error("hosts/{host} proposes no list for instances/{instance}")]
    NoProposal { instance: String, host: String },
    /// An answer lacks what the API promises.
    #[error("the coordinator's answer lacks its {missing}")]
    Answer { missing: &'static str },
    /// Some of several things failed; each was reported by itself.
    #[error("{failed} of {all} failed")]
    Several { failed: usize, all: usize },
}

impl From<ContentError> for CommandError {
    fn from(error: ContentError) -> Self {
        Self::Content(error)
    }
}

impl From<io::Error> for CommandError {
    fn from(error: io::Error) -> Self {
        Self::Output(error.into())
    }
}

impl CommandError {
    /// The status of the process.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Settings(_) | Self::File(_) | Self::Content(_) => USAGE,
            // The reader has seen enough: `clawctl list | head -1`.
            Self::Output(OutputError::Write(error))
                if error.kind() == io::ErrorKind::BrokenPipe =>
            {
                DONE
            }
            _ => FAILED,
        }
    }

    fn details(&self) -> Vec<String> {
        match self {
            Self::Call(error) => error.details(),
            Self::Content(error) => error.0.iter().map(ToString::to_string).collect(),
            Self::Watch(WatchError::Call(error)) => error.details(),
            _ => Vec::new(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Call(error) => return error.hint(),
            Self::Watch(error) => return error.hint(),
            Self::Snapshot(error) => return error.hint(),
            Self::Migration(error) => return Some(error.hint()),
            Self::Archive(error) => error.hint(),
            Self::Connect(error) => return connect_hint(error),
            Self::Settings(SettingsError::NoEndpoint) => {
                "give --endpoint HOST:PORT, set CLAWCTL_ENDPOINT, or write endpoint = \"HOST:PORT\" \
                 to ~/.config/clawctl/clawctl.toml"
            }
            Self::Settings(SettingsError::NoIdentity) => {
                "give --identity DIR or set CLAWCTL_IDENTITY"
            }
            Self::Settings(_) => "see `clawctl help` for settings",
            Self::File(FileError::Malformed { .. } | FileError::Empty { .. }) => {
                "an example is in /usr/share/doc/clawctl/examples/fleet.yaml"
            }
            Self::Moved { .. } => {
                "move it with `clawctl migrate INSTANCE HOST`, or correct the file"
            }
            Self::NoProposal { .. } => {
                "give it an allowlist first: spec.network.egress.allowlist with mode: observed \
                 records what it reaches"
            }
            Self::Answer { .. } => "coordinator and clawctl differ in version: compare --version",
            Self::File(_) | Self::Content(_) | Self::Output(_) | Self::Several { .. } => {
                return None;
            }
        };
        Some(hint.to_owned())
    }
}

/// Writes an error as a person sees it.
pub(crate) fn show(error: &CommandError, err: &mut dyn Write) -> io::Result<()> {
    chain(error, err)?;
    for detail in error.details() {
        writeln!(err, "  {}", crate::table::printable(&detail))?;
    }
    if let Some(hint) = error.hint() {
        writeln!(err, "hint: {hint}")?;
    }
    Ok(())
}

/// `error: …: cause: cause`, one line unless a cause has several.
pub(crate) fn chain(error: &dyn Error, err: &mut dyn Write) -> io::Result<()> {
    write!(err, "error: {error}")?;
    let mut next = error.source();
    while let Some(cause) = next {
        write!(err, ": {cause}")?;
        next = cause.source();
    }
    writeln!(err)
}

fn connect_hint(error: &ConnectError) -> Option<String> {
    let hint = match error {
        ConnectError::Key { .. } | ConnectError::Read { .. } | ConnectError::Identity { .. } => {
            "an identity is a directory with key.pem (mode 0600), cert.pem and ca.pem: \
             check --identity"
        }
        ConnectError::Expired { .. } => {
            "get a new certificate from the fleet's administrator: \
             `claw-coordinator issue --help` on the coordinator"
        }
        ConnectError::Dial { source: DialError::Handshake(_), .. } => {
            "the server is not this fleet's coordinator, or its certificate lacks that name: \
             check --endpoint and ca.pem of --identity"
        }
        ConnectError::Dial { endpoint, .. } => {
            return Some(format!("check that claw-coordinator runs and listens at {endpoint}"));
        }
        ConnectError::Tls(_) | ConnectError::Channel(_) => return None,
    };
    Some(hint.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::file::content::ContentFault;
    use crate::settings::Endpoint;

    #[track_caller]
    fn check(error: &CommandError, status: u8, expected: &str) {
        let mut text = Vec::new();
        show(error, &mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        assert_eq!(error.exit_code(), status);
    }

    #[test]
    fn causes_follow_the_message() {
        let path = PathBuf::from("/x/fleet.yaml");
        let error = FileError::Read { path, source: io::ErrorKind::PermissionDenied.into() };
        check(&error.into(), USAGE, "error: cannot read /x/fleet.yaml: permission denied\n");
        let endpoint = Endpoint { host: "h".to_owned(), port: 1 };
        let source = DialError::Tcp(io::ErrorKind::ConnectionRefused.into());
        check(
            &ConnectError::Dial { endpoint, source }.into(),
            FAILED,
            "error: cannot connect to h:1: tcp: connection refused\n\
             hint: check that claw-coordinator runs and listens at h:1\n",
        );
    }

    #[test]
    fn everything_that_is_missing_is_listed() {
        let fault = |name: &str| ContentFault::Variable {
            field: format!("spec.secretsFrom[{name}]"),
            variable: name.to_owned(),
        };
        check(
            &ContentError(vec![fault("A"), fault("B")]).into(),
            USAGE,
            "error: what the file points to cannot be had\n  \
             spec.secretsFrom[A]: the environment has no variable A\n  \
             spec.secretsFrom[B]: the environment has no variable B\n",
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let error = CommandError::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(error.exit_code(), DONE);
    }
}
