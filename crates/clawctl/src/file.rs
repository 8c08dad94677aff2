//! Files that `apply` and `delete` read: YAML or JSON, one or many documents, kinds Host and Instance.
//!
//! Parsing says file and line of what is wrong, and sends nothing. What the values must be is the
//! coordinator's business: it names every wrong field at once.
//!
//! Start at [`read`]; [`content`] fetches what `…From` fields point to.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

pub(crate) mod backup;
pub(crate) mod content;
pub(crate) mod firewall;
pub(crate) mod network;
pub(crate) mod quantity;
pub(crate) mod secret;
pub(crate) mod spec;

use firewall::FirewallDocument;
use spec::SpecDocument;

/// Largest file in bytes: well above what the coordinator takes in one instance (256 KiB).
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// A document and the file that it stands in.
#[derive(Debug)]
pub(crate) struct Located {
    /// `-` for standard input.
    pub(crate) file: PathBuf,
    pub(crate) document: Document,
}

/// One document of a file.
#[derive(Debug)]
pub(crate) enum Document {
    Host(Box<HostDocument>),
    Instance(Box<InstanceDocument>),
}

/// What kinds of documents there are; hosts come first where order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    Host,
    Instance,
}

/// `kind: Host`. What `clawctl host get -o yaml` prints besides is taken and ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HostDocument {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    /// Without it an update leaves the labels as they are.
    pub(crate) labels: Option<BTreeMap<String, String>>,
    /// Without it an update leaves the cordon as it is.
    pub(crate) cordoned: Option<bool>,
    /// Without it an update leaves the firewall as it is; `{}` is the default one.
    pub(crate) firewall: Option<FirewallDocument>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
    #[serde(rename = "etag")]
    _etag: Option<IgnoredAny>,
    #[serde(rename = "createTime")]
    _create_time: Option<IgnoredAny>,
    #[serde(rename = "updateTime")]
    _update_time: Option<IgnoredAny>,
}

/// `kind: Instance`. What `clawctl get -o yaml` prints besides is taken and ignored.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct InstanceDocument {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) host: String,
    pub(crate) spec: SpecDocument,
    #[serde(rename = "uid")]
    _uid: Option<IgnoredAny>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
    #[serde(rename = "etag")]
    _etag: Option<IgnoredAny>,
    #[serde(rename = "createTime")]
    _create_time: Option<IgnoredAny>,
    #[serde(rename = "updateTime")]
    _update_time: Option<IgnoredAny>,
    #[serde(rename = "deleteTime")]
    _delete_time: Option<IgnoredAny>,
    #[serde(rename = "revision")]
    _revision: Option<IgnoredAny>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} holds no document", path.display())]
    Empty { path: PathBuf },
    /// Serde's message, with the place in front as compilers print it.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Malformed { path: PathBuf, line: usize, column: usize, message: String },
}

impl Document {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Host(host) => host.kind,
            Self::Instance(instance) => instance.kind,
        }
    }
}

/// Reads and parses files; `-` is `stdin`. Documents keep the order of the files.
pub(crate) fn read(files: &[PathBuf], stdin: &mut dyn Read) -> Result<Vec<Located>, FileError> {
    let mut located = Vec::new();
    for file in files {
        let text = if file.as_os_str() == "-" {
            read_bounded(file, stdin)?
        } else {
            let mut opened = std::fs::File::open(file)
                .map_err(|source| FileError::Read { path: file.clone(), source })?;
            read_bounded(file, &mut opened)?
        };
        let documents = parse(file, &text)?;
        if documents.is_empty() {
            return Err(FileError::Empty { path: file.clone() });
        }
        located
            .extend(documents.into_iter().map(|document| Located { file: file.clone(), document }));
    }
    Ok(located)
}

/// Parses the text of a file.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<Document>, FileError> {
    if is_json(path, text) {
        json(text)
            .map_err(|error| malformed(path, &error.to_string(), (error.line(), error.column())))
    } else {
        yaml(text).map_err(|error| {
            let place = error.location().map_or((1, 1), |place| (place.line(), place.column()));
            malformed(path, &error.to_string(), place)
        })
    }
}

/// As much of a document as says what the rest is.
#[derive(Deserialize)]
struct Header {
    kind: Kind,
}

fn read_bounded(path: &Path, source: &mut dyn Read) -> Result<String, FileError> {
    let mut text = String::new();
    source
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    match u64::try_from(text.len()) {
        Ok(length) if length <= MAX_FILE => Ok(text),
        _ => Err(FileError::TooLarge { path: path.to_owned() }),
    }
}

/// YAML takes nearly all JSON, but not two values one after the other.
fn is_json(path: &Path, text: &str) -> bool {
    let after_brace = text.trim_start().strip_prefix('{').map(str::trim_start);
    path.extension().is_some_and(|extension| extension == "json")
        || after_brace.is_some_and(|rest| rest.starts_with(['"', '}']))
}

/// The kinds first, then each document as what it is: any detour through a generic value would
/// lose the lines of errors.
fn yaml(text: &str) -> Result<Vec<Document>, serde_yaml_ng::Error> {
    let headers = serde_yaml_ng::Deserializer::from_str(text)
        .map(Option::<Header>::deserialize)
        .collect::<Result<Vec<_>, _>>()?;
    serde_yaml_ng::Deserializer::from_str(text)
        .zip(headers)
        .filter_map(|(source, header)| Some(document(header?.kind, source)))
        .collect()
}

fn json(text: &str) -> Result<Vec<Document>, serde_json::Error> {
    let headers = serde_json::Deserializer::from_str(text)
        .into_iter::<Header>()
        .collect::<Result<Vec<_>, _>>()?;
    let mut source = serde_json::Deserializer::from_str(text);
    headers.into_iter().map(|header| document(header.kind, &mut source)).collect()
}

fn document<'de, D: Deserializer<'de>>(kind: Kind, source: D) -> Result<Document, D::Error> {
    match kind {
        Kind::Host => HostDocument::deserialize(source).map(|host| Document::Host(host.into())),
        Kind::Instance => InstanceDocument::deserialize(source)
            .map(|instance| Document::Instance(instance.into())),
    }
}

fn malformed(path: &Path, message: &str, (line, column): (usize, usize)) -> FileError {
    let place = format!(" at line {line} column {column}");
    let message = message.strip_suffix(&place).unwrap_or(message).to_owned();
    FileError::Malformed { path: path.to_owned(), line, column, message }
}

#[cfg(test)]
mod tests;
