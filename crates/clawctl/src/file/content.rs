//! Turns the spec of a document into the API's: texts are fetched from where `…From` points to.
//!
//! All faults are found at once; a fault never quotes a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use claw_core::spec::Secret;
use claw_proto::convert::duration_to_wire;
use claw_proto::convert::mask::SPEC_PATHS;
use claw_proto::fleet::v1 as fleet;

use super::backup::{BackupDocument, UpdateDocument};
use super::network::NetworkDocument;
use super::spec::{
    FileSource, HealthDocument, ResourcesDocument, RunStateDocument, SecretSource, SpecDocument,
};

/// What a document wants, ready to be sent.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) spec: fleet::InstanceSpec,
    /// Paths of the spec that the document decides; see `UpdateInstanceRequest.update_mask`.
    pub(crate) mask: Vec<String>,
}

/// Everything that a document points to and that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) struct ContentError(pub(crate) Vec<ContentFault>);

/// One text that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentFault {
    #[error("{field}: cannot read {}: {source}", path.display())]
    File { field: String, path: PathBuf, source: io::Error },
    #[error("{field}: the environment has no variable {variable}")]
    Variable { field: String, variable: String },
    #[error("{field}: exactly one of file and env must be given")]
    Source { field: String },
    #[error("{field}: is also given as {other}")]
    Twice { field: String, other: String },
}

/// What `…From` fields are taken from.
#[derive(Clone, Copy)]
pub(crate) struct Origins<'a> {
    /// Relative paths start here: the directory of the document.
    pub(crate) directory: &'a Path,
    /// Variables of the process.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
}

impl fmt::Display for ContentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&faults.join("; "))
    }
}

/// Fetches every text and puts the spec together.
pub(crate) fn wanted(
    document: &SpecDocument,
    origins: Origins<'_>,
) -> Result<Wanted, ContentError> {
    let mut fetch = Fetch { origins, faults: Vec::new() };
    let config = document.config.as_ref().map(|text| text.0.clone());
    let spec = fleet::InstanceSpec {
        image: document.image.clone(),
        tier: document.tier.clone().unwrap_or_default(),
        resources: document.resources.as_ref().map(resources),
        run_state: i32::from(document.run_state.map_or(fleet::RunState::Unspecified, run_state)),
        env: document.env.clone(),
        secrets: fetch.secrets(document),
        config: fetch.text("spec.config", config, document.config_from.as_ref()),
        identity: fetch.text(
            "spec.identity",
            document.identity.clone(),
            document.identity_from.as_ref(),
        ),
        files: fetch.files(document),
        hostnames: document.hostnames.clone(),
        allowed_origins: document.allowed_origins.clone(),
        health: document.health.as_ref().map(health),
        stop_grace: document.stop_grace.map(|span| duration_to_wire(span.0)),
        network: document.network.as_ref().map(NetworkDocument::to_wire),
        backup: document.backup.map(BackupDocument::to_wire),
        update: document.update.map(UpdateDocument::to_wire),
    };
    if fetch.faults.is_empty() {
        Ok(Wanted { spec, mask: mask(document) })
    } else {
        Err(ContentError(fetch.faults))
    }
}

/// Reads texts and collects what goes wrong.
struct Fetch<'a> {
    origins: Origins<'a>,
    faults: Vec<ContentFault>,
}

impl Fetch<'_> {
    fn text(&mut self, field: &str, text: Option<String>, from: Option<&FileSource>) -> String {
        match (text, from) {
            (Some(_), Some(_)) => {
                self.twice(&format!("{field}From"), field);
                String::new()
            }
            (Some(text), None) => text,
            (None, Some(source)) => self.file(&format!("{field}From"), &source.file),
            (None, None) => String::new(),
        }
    }

    fn files(&mut self, document: &SpecDocument) -> BTreeMap<String, String> {
        let mut files = document.files.clone();
        for (path, source) in &document.files_from {
            let field = format!("spec.filesFrom[{path}]");
            let text = self.file(&field, &source.file);
            if files.insert(path.clone(), text).is_some() {
                self.twice(&field, &format!("spec.files[{path}]"));
            }
        }
        files
    }

    fn secrets(&mut self, document: &SpecDocument) -> BTreeMap<String, String> {
        let reveal = |secret: &Secret| secret.reveal().to_owned();
        let plain = document.secrets.iter().flatten();
        let mut secrets: BTreeMap<String, String> =
            plain.map(|(name, value)| (name.clone(), reveal(&value.0))).collect();
        for (name, source) in document.secrets_from.iter().flatten() {
            let field = format!("spec.secretsFrom[{name}]");
            let value = self.secret(&field, source);
            if secrets.insert(name.clone(), value).is_some() {
                self.twice(&field, &format!("spec.secrets[{name}]"));
            }
        }
        secrets
    }

    fn secret(&mut self, field: &str, source: &SecretSource) -> String {
        match (&source.file, &source.env) {
            (Some(file), None) => {
                let text = self.file(field, file);
                let line = text.strip_suffix('\n').unwrap_or(&text);
                line.strip_suffix('\r').unwrap_or(line).to_owned()
            }
            (None, Some(variable)) => (self.origins.variable)(variable).unwrap_or_else(|| {
                self.faults.push(ContentFault::Variable {
                    field: field.to_owned(),
                    variable: variable.clone(),
                });
                String::new()
            }),
            _ => {
                self.faults.push(ContentFault::Source { field: field.to_owned() });
                String::new()
            }
        }
    }

    fn file(&mut self, field: &str, file: &Path) -> String {
        let path = self.origins.directory.join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|source| {
            self.faults.push(ContentFault::File { field: field.to_owned(), path, source });
            String::new()
        })
    }

    fn twice(&mut self, field: &str, other: &str) {
        self.faults.push(ContentFault::Twice { field: field.to_owned(), other: other.to_owned() });
    }
}

fn mask(document: &SpecDocument) -> Vec<String> {
    let decided = |path: &&&str| match **path {
        "spec" => false,
        "spec.run_state" => document.run_state.is_some(),
        "spec.secrets" => document.secrets.is_some() || document.secrets_from.is_some(),
        "spec.network" => document.network.is_some(),
        "spec.backup" => document.backup.is_some(),
        "spec.update" => document.update.is_some(),
        path => !path.starts_with("spec.network."),
    };
    SPEC_PATHS.iter().filter(decided).map(ToString::to_string).collect()
}

fn resources(document: &ResourcesDocument) -> fleet::Resources {
    fleet::Resources {
        memory_bytes: document.memory.map_or(0, |bytes| bytes.0),
        cpu_millis: document.cpu.map_or(0, |cpu| cpu.0),
        pids_limit: document.pids.unwrap_or(0),
    }
}

fn run_state(document: RunStateDocument) -> fleet::RunState {
    match document {
        RunStateDocument::Running => fleet::RunState::Running,
        RunStateDocument::Stopped => fleet::RunState::Stopped,
        RunStateDocument::Paused => fleet::RunState::Paused,
    }
}

fn health(document: &HealthDocument) -> fleet::HealthPolicy {
    fleet::HealthPolicy {
        startup_deadline: document.startup_deadline.map(|span| duration_to_wire(span.0)),
        min_healthy: document.min_healthy.map(|span| duration_to_wire(span.0)),
        hang_deadline: document.hang_deadline.map(|span| duration_to_wire(span.0)),
    }
}
