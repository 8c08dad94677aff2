//! A change that a caller asked for: checked, audited and answered in one transaction.
//!
//! The job runs in the writing thread. With `validate_only` it runs as well, to its end, and is
//! then undone: what it would have said is exactly what it says.

use std::collections::BTreeSet;
use std::sync::Arc;

use claw_core::name::{HostName, InstanceName};
use claw_core::time::Timestamp;
use claw_identity::Serial;
use claw_proto::DecodeError;
use claw_store::WriteError;
use claw_store::rusqlite::Connection;

use super::audit::{self, Entry};
use super::requests::{self, RequestKey};
use super::{Keys, Store};
use crate::refusal::{Fault, Refusal};

/// Who asks for what.
#[derive(Debug, Clone)]
pub struct Call {
    /// The caller, such as `operator/alice`.
    pub principal: String,
    /// The caller's address.
    pub source: String,
    /// The method, such as `claw.fleet.v1.HostService/CreateHost`.
    pub method: &'static str,
    /// When.
    pub now: Timestamp,
    /// Set when the same request may come again.
    pub request: Option<RequestKey>,
    /// Whether to keep the change.
    pub mode: Mode,
}

/// Whether a change is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Commit,
    /// Everything is checked, nothing is kept.
    ValidateOnly,
}

impl Mode {
    /// From the field of a request.
    #[must_use]
    pub fn from_validate_only(validate_only: bool) -> Self {
        if validate_only { Self::ValidateOnly } else { Self::Commit }
    }
}

/// What a change did.
#[derive(Debug)]
pub struct Done<R> {
    /// The answer.
    pub response: R,
    /// For the audit entry: the resource, such as `hosts/a`.
    pub resource: String,
    /// For the audit entry: what was changed, without secrets.
    pub summary: String,
    /// Who must be told.
    pub effects: Effects,
}

/// Who must be told of a change once it is durable.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// Hosts whose desired state may have changed.
    pub hosts: BTreeSet<HostName>,
    /// Instances that were created, changed or removed.
    pub instances: BTreeSet<InstanceName>,
    /// Certificates that are denylisted now.
    pub denied: Vec<Serial>,
    /// Hosts that no longer exist.
    pub forgotten: BTreeSet<HostName>,
}

/// How an answer is kept for the case that the request comes again.
#[derive(Debug)]
pub struct Codec<R> {
    /// To bytes.
    pub encode: fn(&R) -> Vec<u8>,
    /// From bytes.
    pub decode: fn(&[u8]) -> Result<R, DecodeError>,
}

/// Why a job's writes are undone.
enum Undo {
    DryRun(Vec<u8>),
    Replay(Vec<u8>),
    Refused(Refusal),
}

impl From<Refusal> for Undo {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Store {
    /// The answer that was given to this request before, for changes that ask a host first.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when the request's id was used for another request.
    pub fn earlier_answer<R>(&self, call: &Call, codec: &Codec<R>) -> Result<Option<R>, Refusal> {
        let Some(request) = &call.request else { return Ok(None) };
        let find = |connection: &Connection, _keys: &Keys| {
            requests::find(connection, &call.principal, request)
        };
        let Some(answer) = self.read(find)? else { return Ok(None) };
        let what = || format!("an answer of {}", call.method);
        let decoded = (codec.decode)(&answer);
        Ok(Some(decoded.map_err(|source| Fault::Stored { what: what(), source })?))
    }

    /// Carries out a change; the answer is durable with it.
    ///
    /// # Errors
    /// What the job returned; nothing was changed then.
    pub async fn mutate<R>(
        &self,
        call: Call,
        codec: Codec<R>,
        job: impl FnOnce(&Connection, &Keys) -> Result<Done<R>, Refusal> + Send + 'static,
    ) -> Result<(R, Effects), Refusal>
    where
        R: Send + 'static,
    {
        let keys = Arc::clone(self.keys());
        let encode = codec.encode;
        let method = call.method;
        let submitted = self.writer().submit(move |connection| {
            if let Some(request) = &call.request
                && let Some(answer) = requests::find(connection, &call.principal, request)?
            {
                return Err(Undo::Replay(answer));
            }
            let done = job(connection, &keys)?;
            let answer = encode(&done.response);
            if call.mode == Mode::ValidateOnly {
                return Err(Undo::DryRun(answer));
            }
            record(connection, &call, &done.resource, &done.summary, &answer)?;
            Ok((done.response, done.effects))
        });
        match submitted.await {
            Ok(done) => Ok(done),
            Err(WriteError::Job(Undo::DryRun(answer) | Undo::Replay(answer))) => {
                let response = (codec.decode)(&answer).map_err(|source| Fault::Stored {
                    what: format!("an answer of {method}"),
                    source,
                })?;
                Ok((response, Effects::default()))
            }
            Err(WriteError::Job(Undo::Refused(refusal))) => Err(refusal),
            Err(WriteError::Busy { capacity }) => {
                Err(WriteError::<Refusal>::Busy { capacity }.into())
            }
            Err(WriteError::Commit(source)) => Err(WriteError::<Refusal>::Commit(source).into()),
            Err(WriteError::Panicked) => Err(WriteError::<Refusal>::Panicked.into()),
            Err(WriteError::Stopped) => Err(WriteError::<Refusal>::Stopped.into()),
        }
    }
}

fn record(
    connection: &Connection,
    call: &Call,
    resource: &str,
    summary: &str,
    answer: &[u8],
) -> Result<(), Refusal> {
    let entry = Entry {
        principal: call.principal.clone(),
        source: call.source.clone(),
        method: call.method.to_owned(),
        resource: resource.to_owned(),
        summary: summary.to_owned(),
    };
    audit::append(connection, call.now, &entry)?;
    if let Some(request) = &call.request {
        requests::insert(connection, &call.principal, request, answer, call.now)?;
    }
    Ok(())
}
