//! What tests ask for: one instance, as the file that `clawctl apply` takes.

use std::collections::BTreeMap;

use claw_lab::LabHost;
use serde_json::{Value, json};

/// What an instance should be, as far as tests care.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Its image.
    pub image: String,
    /// Memory limit in MiB.
    pub memory_mib: u64,
    /// CPU limit in thousandths of a core.
    pub cpu_millis: u64,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Its `openclaw.json`.
    pub config: String,
    /// How long it must stay healthy, in seconds.
    pub min_healthy_s: u64,
    /// From start to health, in seconds.
    pub startup_deadline_s: u64,
    /// Silence after which it counts as hung, in seconds.
    pub hang_deadline_s: u64,
    /// From SIGTERM to SIGKILL, in seconds.
    pub stop_grace_s: u64,
    /// Other fields of the spec; they win over those above.
    pub more: BTreeMap<String, Value>,
}

impl Instance {
    /// A small instance that starts fast.
    #[must_use]
    pub fn new(name: &str, host: &LabHost, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            host: host.name().to_owned(),
            image: image.to_owned(),
            memory_mib: 256,
            cpu_millis: 1000,
            env: Vec::new(),
            config: "{}".to_owned(),
            min_healthy_s: 0,
            startup_deadline_s: 60,
            hang_deadline_s: 30,
            stop_grace_s: 10,
            more: BTreeMap::new(),
        }
    }

    /// With one more environment variable, or another value of one.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// With another field of the spec, such as `identity`.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.more.insert(field.to_owned(), value.into());
        self
    }

    /// The file that `clawctl apply` takes.
    #[must_use]
    pub fn document(&self) -> String {
        let env: serde_json::Map<String, Value> =
            self.env.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect();
        let mut spec = json!({
            "image": self.image,
            "resources": {
                "memory": format!("{}MiB", self.memory_mib),
                "cpu": format!("{}m", self.cpu_millis),
                "pids": 256,
            },
            "env": env,
            "config": self.config,
            "health": {
                "startupDeadline": format!("{}s", self.startup_deadline_s),
                "minHealthy": format!("{}s", self.min_healthy_s),
                "hangDeadline": format!("{}s", self.hang_deadline_s),
            },
            "stopGrace": format!("{}s", self.stop_grace_s),
        });
        for (field, value) in &self.more {
            spec[field] = value.clone();
        }
        let document = json!({
            "kind": "Instance",
            "name": self.name,
            "host": self.host,
            "spec": spec,
        });
        document.to_string()
    }
}
