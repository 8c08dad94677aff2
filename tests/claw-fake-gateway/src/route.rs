//! Which path gets which answer.
//!
//! Bodies and codes are those of openclaw 2026.9.6. The control endpoints under `/__fake/` exist only
//! with the switch `CONTROL`; they are for tests and never reveal the token itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use openclaw::config::GatewayConfig;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ingress::Ingress;
use crate::life::Event;
use crate::request::{Request, Response};
use crate::state::State;
use crate::status::{Phase, Status};

/// The web interface, given for every path that is nothing else.
const PAGE: &str = "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
    <title>OpenClaw (fake)</title></head>\n<body><h1>OpenClaw (fake)</h1></body>\n</html>\n";

/// Everything that connections read.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) status: Arc<Status>,
    pub(crate) config: GatewayConfig,
    pub(crate) token: String,
    pub(crate) state: State,
    pub(crate) control: bool,
    /// Whether something is always under way.
    pub(crate) busy: bool,
    /// How long a suspension lasts that nobody resumes.
    pub(crate) lease: Duration,
    pub(crate) build: String,
    pub(crate) events: SyncSender<Event>,
}

impl Site {
    /// The answer to a request that is no WebSocket upgrade.
    pub(crate) fn answer(&self, request: &Request, ingress: Ingress) -> Response {
        if let Some(control) = request.path.strip_prefix("/__fake/")
            && self.control
        {
            return self.control(control, request);
        }
        let probe = probe_of(&request.path);
        if probe.is_some() && request.method != "GET" && request.method != "HEAD" {
            return Response::text(405, "Method Not Allowed");
        }
        match probe {
            Some(Probe::Live) => Response::json(200, &json!({ "ok": true, "status": "live" })),
            _ if ingress == Ingress::Unattributable => attribution_required(),
            Some(Probe::Startup) => self.startup(self.tells_details(request, ingress)),
            Some(Probe::Ready) => self.ready(self.tells_details(request, ingress)),
            None if is_below_a_probe(&request.path) => Response::text(404, "Not Found"),
            None => Response {
                status: 200,
                content_type: "text/html; charset=utf-8",
                body: PAGE.to_owned(),
            },
        }
    }

    /// Whether `token` is the gateway's.
    pub(crate) fn knows(&self, token: &str) -> bool {
        Sha256::digest(token) == Sha256::digest(&self.token)
    }

    fn tells_details(&self, request: &Request, ingress: Ingress) -> bool {
        let bearer = request.header("authorization").and_then(|auth| auth.strip_prefix("Bearer "));
        ingress == Ingress::Local || bearer.is_some_and(|token| self.knows(token))
    }

    fn startup(&self, details: bool) -> Response {
        let (status, name) = match self.status.shown() {
            Phase::Starting => (503, "starting"),
            Phase::Started => (200, "started"),
            Phase::Draining => (503, "draining"),
        };
        let mut body = json!({ "ok": status == 200, "status": name });
        if details && name == "starting" {
            insert(&mut body, "pendingReason", "startup-sidecars".into());
        }
        Response::json(status, &body)
    }

    fn ready(&self, details: bool) -> Response {
        let failing = match self.status.shown() {
            Phase::Starting => Some("startup-sidecars"),
            Phase::Draining => Some("gateway-draining"),
            Phase::Started => {
                self.status.not_ready.load(Ordering::Relaxed).then_some("fake-channel")
            }
        };
        let mut body = json!({ "ready": failing.is_none() });
        if details {
            insert(&mut body, "failing", failing.into_iter().collect());
        }
        Response::json(if failing.is_none() { 200 } else { 503 }, &body)
    }

    fn control(&self, name: &str, request: &Request) -> Response {
        let number = |name| request.parameter(name).and_then(|text| text.parse::<u32>().ok());
        match name {
            "crash" => {
                let code = number("code").and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
                self.send(Event::Crash(code))
            }
            "eat" => number("mb").map_or_else(
                || Response::text(400, "mb is a number of MiB"),
                |mib| self.send(Event::Eat(mib)),
            ),
            "hang" => self.break_down(&self.status.hangs),
            "unhealthy" => self.break_down(&self.status.unhealthy),
            "not-ready" => self.break_down(&self.status.not_ready),
            "healthy" => {
                self.status.unhealthy.store(false, Ordering::Relaxed);
                self.status.not_ready.store(false, Ordering::Relaxed);
                Response::text(200, "ok")
            }
            "token-sha256" => {
                let digest = Sha256::digest(&self.token);
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                Response::text(200, hex)
            }
            "state-version" => {
                let version = self.state.version().map(|version| version.to_string());
                Response::text(200, version.unwrap_or_default())
            }
            "build" => Response::text(200, &*self.build),
            "keys" => Response::text(200, self.state.keys()),
            "write" => self.write_row(request),
            "read" => request
                .parameter("key")
                .and_then(|key| self.state.row(&key))
                .map_or_else(|| Response::text(404, "no such row"), |row| Response::text(200, row)),
            _ => Response::text(404, "no such control"),
        }
    }

    fn write_row(&self, request: &Request) -> Response {
        let key = request.parameter("key").unwrap_or_default();
        let value = request.parameter("value").unwrap_or_default();
        match self.state.write_row(&key, &value) {
            // Who wrote it: behind a proxy that is not to be seen otherwise.
            Ok(()) => Response::text(200, format!("ok {}", self.build).trim_end()),
            Err(error) => Response::text(400, error.to_string()),
        }
    }

    fn send(&self, event: Event) -> Response {
        match self.events.send(event) {
            Ok(()) => Response::text(200, "ok"),
            Err(_) => Response::text(503, "ending"),
        }
    }

    fn break_down(&self, what: &std::sync::atomic::AtomicBool) -> Response {
        what.store(true, Ordering::Relaxed);
        Response::text(200, "ok")
    }
}

/// The refusal of requests, and of WebSocket upgrades, that name no client.
pub(crate) fn attribution_required() -> Response {
    let message = "Proxy client attribution is required. Configure gateway.trustedProxies narrowly \
        and make the proxy overwrite or safely rebuild forwarded client headers.";
    let error = json!({ "message": message, "type": "proxy_attribution_required" });
    Response::json(403, &json!({ "error": error }))
}

#[derive(Debug, Clone, Copy)]
enum Probe {
    Live,
    Startup,
    Ready,
}

fn probe_of(path: &str) -> Option<Probe> {
    match path {
        "/healthz" | "/health" => Some(Probe::Live),
        "/startupz" | "/startup" => Some(Probe::Startup),
        "/readyz" | "/ready" => Some(Probe::Ready),
        _ => None,
    }
}

/// Nothing lives below the probes, not even the web interface.
fn is_below_a_probe(path: &str) -> bool {
    let mut parts = path.splitn(3, '/').skip(1);
    parts.next().is_some_and(|first| probe_of(&format!("/{first}")).is_some())
        && parts.next().is_some()
}

fn insert(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

/// The source address as the gateway knows it: IPv4 in IPv6 is IPv4.
pub(crate) fn peer_ip(address: std::net::SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
