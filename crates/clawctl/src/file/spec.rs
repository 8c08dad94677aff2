//! The `spec` of an instance document, which is also how clawctl prints a spec.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::backup::{BackupDocument, UpdateDocument};
use super::network::NetworkDocument;
use super::quantity::{Bytes, Cpu, Span};
use super::secret::SecretText;

/// What an instance should be; see `InstanceSpec` of `claw.fleet.v1` for what each field means.
///
/// `…From` fields take texts from files (relative to the document's own directory) or variables.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SpecDocument {
    pub(crate) image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tier: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) resources: Option<ResourcesDocument>,
    /// Without it an update leaves the instance up, down or paused as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run_state: Option<RunStateDocument>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) env: BTreeMap<String, String>,
    /// Without this and `secretsFrom` an update leaves all secrets as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secrets: Option<BTreeMap<String, SecretText>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) secrets_from: Option<BTreeMap<String, SecretSource>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<ConfigText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config_from: Option<FileSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) identity_from: Option<FileSource>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) files: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) files_from: BTreeMap<String, FileSource>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) hostnames: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) allowed_origins: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<HealthDocument>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stop_grace: Option<Span>,
    /// Without it an update leaves the network policy as it is; `{}` is the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) network: Option<NetworkDocument>,
    /// Without it an update leaves the backup policy as it is; `{}` is the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) backup: Option<BackupDocument>,
    /// Without it an update leaves the update policy as it is; `{}` is the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) update: Option<UpdateDocument>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ResourcesDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<Cpu>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pids: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HealthDocument {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) startup_deadline: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) min_healthy: Option<Span>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hang_deadline: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RunStateDocument {
    Running,
    Stopped,
    Paused,
}

/// Where a secret comes from: exactly one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretSource {
    /// A file; one line end at its end is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<PathBuf>,
    /// A variable of clawctl's own environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) env: Option<String>,
}

/// A file whose text is taken as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileSource {
    pub(crate) file: PathBuf,
}

/// `openclaw.json`: JSON5 text as it is, or a mapping that becomes JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigText(pub(crate) String);

impl Serialize for ConfigText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ConfigText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ConfigVisitor)
    }
}

struct ConfigVisitor;

impl<'de> Visitor<'de> for ConfigVisitor {
    type Value = ConfigText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping or JSON5 text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ConfigText, E> {
        Ok(ConfigText(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ConfigText, A::Error> {
        let value = serde_json::Map::deserialize(MapAccessDeserializer::new(map))?;
        serde_json::to_string_pretty(&value).map(ConfigText).map_err(serde::de::Error::custom)
    }
}

impl From<claw_proto::fleet::v1::InstanceSpec> for SpecDocument {
    /// Values of secrets are left out even if an answer should hold them.
    fn from(wire: claw_proto::fleet::v1::InstanceSpec) -> Self {
        use claw_proto::fleet::v1::RunState;
        let filled = |text: String| (!text.is_empty()).then_some(text);
        let kept = |(name, _)| (name, SecretText::kept());
        Self {
            image: wire.image,
            tier: filled(wire.tier),
            resources: wire.resources.map(|resources| ResourcesDocument {
                memory: Some(resources.memory_bytes).filter(|bytes| *bytes > 0).map(Bytes),
                cpu: Some(resources.cpu_millis).filter(|millis| *millis > 0).map(Cpu),
                pids: Some(resources.pids_limit).filter(|count| *count > 0),
            }),
            run_state: match RunState::try_from(wire.run_state) {
                Ok(RunState::Running) => Some(RunStateDocument::Running),
                Ok(RunState::Stopped) => Some(RunStateDocument::Stopped),
                Ok(RunState::Paused) => Some(RunStateDocument::Paused),
                Ok(RunState::Unspecified) | Err(_) => None,
            },
            env: wire.env,
            secrets: (!wire.secrets.is_empty())
                .then(|| wire.secrets.into_iter().map(kept).collect()),
            config: filled(wire.config).map(ConfigText),
            identity: filled(wire.identity),
            files: wire.files,
            hostnames: wire.hostnames,
            allowed_origins: wire.allowed_origins,
            health: wire.health.map(|health| HealthDocument {
                startup_deadline: health
                    .startup_deadline
                    .map(|span| Span::from_wire(span.seconds, span.nanos)),
                min_healthy: health
                    .min_healthy
                    .map(|span| Span::from_wire(span.seconds, span.nanos)),
                hang_deadline: health
                    .hang_deadline
                    .map(|span| Span::from_wire(span.seconds, span.nanos)),
            }),
            stop_grace: wire.stop_grace.map(|span| Span::from_wire(span.seconds, span.nanos)),
            network: wire.network.map(NetworkDocument::from),
            backup: wire.backup.map(BackupDocument::from),
            update: wire.update.map(UpdateDocument::from),
            ..Self::default()
        }
    }
}
