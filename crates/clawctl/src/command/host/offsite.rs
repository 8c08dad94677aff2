//! `host offsite`: where a host copies its repositories to.

use std::path::Path;

use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;

use super::{answer, client};
use crate::cli::{Addressing, OffsiteArgs, OffsiteCommand};
use crate::clock;
use crate::command::{Session, Sources};
use crate::connection::Repeat;
use crate::failure::CommandError;
use crate::file::content::{ContentError, ContentFault};
use crate::view::id;

/// What a host gets: a storage with its keys, or none.
#[derive(Debug)]
pub(in crate::command) struct NewStorage {
    host: String,
    storage: Option<node::OffsiteStorage>,
}

impl NewStorage {
    /// Reads the key.
    pub(in crate::command) fn read(
        command: OffsiteCommand,
        sources: &Sources<'_>,
    ) -> Result<Self, CommandError> {
        let arguments = match command {
            OffsiteCommand::Set(arguments) => *arguments,
            OffsiteCommand::Clear { name } => {
                return Ok(Self { host: id(&name).to_owned(), storage: None });
            }
        };
        let secret_key = secret_key(&arguments, sources)
            .map_err(|fault| CommandError::Content(ContentError(vec![fault])))?;
        let addressing = match arguments.addressing {
            Addressing::Path => node::BucketAddressing::Path,
            Addressing::Host => node::BucketAddressing::Host,
        };
        let storage = node::OffsiteStorage {
            endpoint: arguments.url,
            region: arguments.region,
            bucket: arguments.bucket,
            prefix: arguments.prefix,
            addressing: addressing.into(),
            access_key: arguments.access_key,
            secret_key: secret_key.trim().to_owned(),
            bandwidth: arguments.bandwidth.map_or(0, |bytes| bytes.0),
        };
        Ok(Self { host: id(&arguments.name).to_owned(), storage: Some(storage) })
    }
}

fn secret_key(arguments: &OffsiteArgs, sources: &Sources<'_>) -> Result<String, ContentFault> {
    let field = "secret key".to_owned();
    match (&arguments.secret_key_file, &arguments.secret_key_env) {
        (Some(path), _) => read(path, field),
        (None, Some(variable)) => (sources.variable)(variable)
            .ok_or_else(|| ContentFault::Variable { field, variable: variable.clone() }),
        // The command line has one of the two.
        (None, None) => Err(ContentFault::Source { field }),
    }
}

fn read(path: &Path, field: String) -> Result<String, ContentFault> {
    std::fs::read_to_string(path).map_err(|source| ContentFault::File {
        field,
        path: path.to_owned(),
        source,
    })
}

/// Sets or clears it.
pub(in crate::command) async fn set(
    new: NewStorage,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let name = format!("hosts/{}", new.host);
    let (doing, outcome) = match &new.storage {
        Some(_) => (format!("set the off-site storage of {name}"), "copies off-site"),
        None => (format!("clear the off-site storage of {name}"), "copies nothing off-site"),
    };
    let request = fleet::SetHostOffsiteRequest {
        name,
        storage: new.storage,
        request_id: clock::request_id(),
        ..fleet::SetHostOffsiteRequest::default()
    };
    let host = session
        .connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).set_host_offsite(request).await
        })
        .await?
        .host;
    answer(host.ok_or(CommandError::Answer { missing: "host" })?, outcome, session)
}
