//! The RPC that is spoken over WebSockets (protocol 4), as far as an agent needs it.
//!
//! A login carries the gateway's token. Over loopback the token alone gives every scope; from elsewhere it gives
//! none, and a device that signs gives those that it asks for, once it was approved. Methods: `health`,
//! `gateway.suspend.prepare`, `.status` and `.resume`; everything else is refused by name. While the gateway is
//! suspended, everything but the last three is refused as `UNAVAILABLE`.
//!
//! Source: openclaw 2026.9.6, run. Start reading at [`Session::respond`].

use std::time::Duration;

use openclaw::device::Claim;
use serde_json::{Value, json};

use crate::devices::Devices;
use crate::log;
use crate::route::Site;
use crate::suspension::{Held, Refused};

/// Policy violation (RFC 6455, section 7.4): what a device that is not paired is closed with.
pub(crate) const NOT_PAIRED: u16 = 1008;

const ADMIN: &str = "operator.admin";
const READ: &str = "operator.read";

/// One connection.
#[derive(Debug)]
pub(crate) struct Session {
    nonce: String,
    ts: u64,
    /// Whether it comes from within the container.
    local: bool,
    /// What it may do; nothing before a login.
    scopes: Option<Vec<String>>,
}

/// What is sent for a text, and the code with which the connection is closed then.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) text: Vec<u8>,
    pub(crate) close: Option<u16>,
}

impl Session {
    pub(crate) fn new(nonce: String, ts: u64, local: bool) -> Self {
        Self { nonce, ts, local, scopes: None }
    }

    /// The first message.
    pub(crate) fn challenge(&self) -> String {
        let payload = json!({ "nonce": self.nonce, "ts": self.ts });
        json!({ "type": "event", "event": "connect.challenge", "payload": payload }).to_string()
    }

    /// The answer to a text: a response if it is a request, else the text itself.
    pub(crate) fn respond(&mut self, site: &Site, text: Vec<u8>) -> Reply {
        let Ok(request) = serde_json::from_slice::<Value>(&text) else {
            return Reply { text, close: None };
        };
        if request.get("type").and_then(Value::as_str) != Some("req") {
            return Reply { text, close: None };
        }
        let id = request.get("id").cloned().unwrap_or_default();
        let outcome = match request.get("method").and_then(Value::as_str) {
            Some("connect") => self.connect(site, &request),
            Some(method) => self.call(site, method, &request),
            None => Err(invalid("no method")),
        };
        let (response, close) = match outcome {
            Ok(payload) => {
                (json!({ "type": "res", "id": id, "ok": true, "payload": payload }), None)
            }
            Err(error) => {
                let close = (error["code"] == "NOT_PAIRED").then_some(NOT_PAIRED);
                (json!({ "type": "res", "id": id, "ok": false, "error": error }), close)
            }
        };
        Reply { text: response.to_string().into_bytes(), close }
    }

    fn connect(&mut self, site: &Site, request: &Value) -> Result<Value, Value> {
        let text = |path: &str| request.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let token = text("/params/auth/token");
        if !site.knows(token) {
            return Err(invalid("unauthorized: gateway token mismatch"));
        }
        let asked: Vec<&str> = request
            .pointer("/params/scopes")
            .and_then(Value::as_array)
            .map(|scopes| scopes.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let granted = match request.pointer("/params/device") {
            None if self.local => vec![ADMIN.to_owned(), READ.to_owned()],
            None => Vec::new(),
            Some(_) => {
                self.is_signed(request, &asked)?;
                pair(site, text("/params/device/id"), &asked)?;
                asked.iter().map(|&scope| scope.to_owned()).collect()
            }
        };
        let phase = if site.status.suspension.is_held() { "prepared" } else { "accepting" };
        let hello = json!({
            "type": "hello-ok",
            "protocol": 4,
            "snapshot": { "suspension": { "phase": phase } },
            "auth": { "role": "operator", "scopes": granted },
        });
        self.scopes = Some(granted);
        Ok(hello)
    }

    /// Whether the device has signed exactly this login.
    fn is_signed(&self, request: &Value, scopes: &[&str]) -> Result<(), Value> {
        let text = |path: &str| request.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let claim = Claim {
            client_id: text("/params/client/id"),
            client_mode: text("/params/client/mode"),
            role: text("/params/role"),
            scopes,
            signed_at: self.ts,
            token: text("/params/auth/token"),
            nonce: &self.nonce,
            platform: text("/params/client/platform"),
        };
        let (id, key) = (text("/params/device/id"), text("/params/device/publicKey"));
        if claim.is_signed_by(id, key, text("/params/device/signature")) {
            return Ok(());
        }
        Err(invalid("device signature invalid"))
    }

    fn call(&self, site: &Site, method: &str, request: &Value) -> Result<Value, Value> {
        let Some(scopes) = &self.scopes else {
            return Err(invalid("the first request is connect"));
        };
        let needs = |scope: &str| {
            if scopes.iter().any(|has| has == scope || has == ADMIN) {
                return Ok(());
            }
            let details = json!({ "code": "MISSING_SCOPE", "missingScope": scope });
            Err(error("FORBIDDEN", &format!("missing scope: {scope}"), details))
        };
        let text = |name: &str| {
            let value = request.pointer(&format!("/params/{name}")).and_then(Value::as_str);
            value.map(str::trim).filter(|value| (1..=128).contains(&value.len()))
        };
        match method {
            "gateway.suspend.prepare" => {
                needs(ADMIN)?;
                prepare(site, text("requestId").ok_or_else(|| invalid("invalid params"))?)
            }
            "gateway.suspend.status" => {
                needs(READ)?;
                let status = if site.status.suspension.is_held() { "ready" } else { "running" };
                Ok(json!({ "status": status }))
            }
            "gateway.suspend.resume" => {
                needs(ADMIN)?;
                let id = text("suspensionId").ok_or_else(|| invalid("invalid params"))?;
                let resumed = site.status.suspension.resume(id);
                let resumed =
                    resumed.ok_or_else(|| invalid("gateway suspension id does not match"))?;
                if resumed {
                    log::info("reopened: suspend phase");
                }
                Ok(json!({ "ok": true, "status": "running", "resumed": resumed }))
            }
            _ if site.status.suspension.is_held() => {
                let message = format!("{method} unavailable during gateway suspension");
                Err(error("UNAVAILABLE", &message, json!({ "reason": "gateway-suspending" })))
            }
            "health" => Ok(json!({ "ok": true })),
            _ => Err(invalid("unknown method")),
        }
    }
}

fn pair(site: &Site, device: &str, scopes: &[&str]) -> Result<(), Value> {
    let devices = Devices::of(site.state.dir());
    if devices.is_paired(device) {
        return Ok(());
    }
    let request = devices.ask(device);
    let request = request.map_err(|fault| error("UNAVAILABLE", &fault.to_string(), Value::Null))?;
    let details = json!({
        "code": "PAIRING_REQUIRED",
        "reason": "not-paired",
        "requestId": request,
        "deviceId": device,
        "requestedRole": "operator",
        "requestedScopes": scopes,
    });
    Err(error("NOT_PAIRED", "pairing required: device is not approved yet", details))
}

fn prepare(site: &Site, request: &str) -> Result<Value, Value> {
    if site.busy {
        return Ok(json!({
            "status": "busy",
            "reason": "active-work",
            "retryAfterMs": 20_000,
            "activeCount": 1,
            "blockers": [{ "kind": "embedded-run", "count": 1, "message": "1 active run" }],
        }));
    }
    match site.status.suspension.prepare(request, site.lease) {
        Ok(held) => {
            // In the real one's words.
            log::info("closed: suspend phase");
            Ok(ready(&held))
        }
        Err(Refused::Conflict(until)) => {
            let details = json!({ "reason": "gateway-suspension-conflict", "expiresAtMs": until });
            Err(error("UNAVAILABLE", "another gateway suspension is already prepared", details))
        }
        Err(Refused::NoId(fault)) => Err(error("UNAVAILABLE", &fault.to_string(), Value::Null)),
    }
}

fn ready(held: &Held) -> Value {
    json!({
        "status": "ready",
        "suspensionId": held.id,
        "expiresAtMs": held.until,
        "activeCount": 0,
        "blockers": [],
    })
}

fn invalid(message: &str) -> Value {
    json!({ "code": "INVALID_REQUEST", "message": message })
}

fn error(code: &str, message: &str, details: Value) -> Value {
    json!({ "code": code, "message": message, "details": details })
}

/// How long a suspension lasts that nobody resumes. Source: `GATEWAY_SUSPEND_TTL_MS` in openclaw 2026.9.6.
pub(crate) const LEASE: Duration = Duration::from_secs(120);
