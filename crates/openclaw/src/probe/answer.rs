//! What the bodies of the probe endpoints mean.
//!
//! Pure: bytes in, answer out.

use http::StatusCode;
use serde::Deserialize;

use super::{BodyKind, ProbeError, ProbePath};

/// What a gateway said about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// The process answers (`/healthz`). Says nothing about its start.
    Live,
    /// Started (`/startupz`).
    Started,
    /// Still starting (`/startupz`).
    Starting {
        /// The HTTP status, 503 as far as known.
        status: u16,
        /// What it waits for. Only told over the container's own loopback or with the token.
        failing: Vec<String>,
    },
    /// Going down or suspended (`/startupz`; `/readyz` with details).
    Draining,
    /// Everything works (`/readyz`).
    Ready,
    /// Something does not (`/readyz`). Starting and draining are reported so, too, when the gateway
    /// gives no details.
    NotReady {
        /// Names of channels and parts that fail; empty when the gateway gives no details.
        failing: Vec<String>,
    },
}

impl ProbeAnswer {
    /// Whether this is the good answer of its endpoint.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        matches!(self, Self::Live | Self::Started | Self::Ready)
    }
}

/// The union of the three bodies. Source: `server-http-probes.ts` in openclaw 2026.9.6.
#[derive(Debug, Deserialize)]
struct Body {
    ok: Option<bool>,
    status: Option<String>,
    #[serde(rename = "pendingReason")]
    pending_reason: Option<String>,
    ready: Option<bool>,
    #[serde(default)]
    failing: Vec<String>,
}

/// The body of the refusals of HTTP requests and WebSocket upgrades.
#[derive(Debug, Deserialize)]
struct Refusal {
    error: RefusalReason,
}

#[derive(Debug, Deserialize)]
struct RefusalReason {
    #[serde(rename = "type")]
    reason: String,
}

/// Reads the answer of `path`.
pub(super) fn interpret(
    path: ProbePath,
    status: StatusCode,
    body: &[u8],
) -> Result<ProbeAnswer, ProbeError> {
    if status == StatusCode::FORBIDDEN && refuses_attribution(body) {
        return Err(ProbeError::ProxyAttribution);
    }
    if status != StatusCode::OK && status != StatusCode::SERVICE_UNAVAILABLE {
        return Err(ProbeError::UnexpectedStatus { status: status.as_u16() });
    }
    let good = status == StatusCode::OK;
    serde_json::from_slice::<Body>(body)
        .ok()
        .and_then(|body| match path {
            ProbePath::Live => live(good, &body),
            ProbePath::Startup => startup(good, status.as_u16(), body),
            ProbePath::Ready => ready(good, body),
        })
        .ok_or_else(|| ProbeError::UnexpectedBody { status: status.as_u16(), found: kind(body) })
}

/// Whether a 403 is the one that OpenClaw calls `proxy_attribution_required`.
pub(super) fn refuses_attribution(body: &[u8]) -> bool {
    serde_json::from_slice::<Refusal>(body)
        .is_ok_and(|refusal| refusal.error.reason == "proxy_attribution_required")
}

fn live(good: bool, body: &Body) -> Option<ProbeAnswer> {
    let live = good && body.ok == Some(true) && body.status.as_deref() == Some("live");
    live.then_some(ProbeAnswer::Live)
}

fn startup(good: bool, status: u16, body: Body) -> Option<ProbeAnswer> {
    match (good, body.ok?, body.status?.as_str()) {
        (true, true, "started") => Some(ProbeAnswer::Started),
        (false, false, "draining") => Some(ProbeAnswer::Draining),
        (false, false, "starting") => {
            let failing = body.pending_reason.into_iter().chain(body.failing).collect();
            Some(ProbeAnswer::Starting { status, failing })
        }
        _ => None,
    }
}

fn ready(good: bool, body: Body) -> Option<ProbeAnswer> {
    match (good, body.ready?) {
        (true, true) => Some(ProbeAnswer::Ready),
        (false, false) if body.failing.iter().any(|name| name == "gateway-draining") => {
            Some(ProbeAnswer::Draining)
        }
        (false, false) => Some(ProbeAnswer::NotReady { failing: body.failing }),
        _ => None,
    }
}

fn kind(body: &[u8]) -> BodyKind {
    let text = body.trim_ascii_start();
    if text.is_empty() {
        BodyKind::Empty
    } else if serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok() {
        BodyKind::OtherJson
    } else if text.first() == Some(&b'<') {
        BodyKind::Html
    } else {
        BodyKind::Other
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(path: ProbePath, status: u16, body: &str, expected: &str) {
        let found = match interpret(path, StatusCode::from_u16(status).unwrap(), body.as_bytes()) {
            Ok(answer) => format!("{answer:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "{status} {body}");
    }

    // Bodies as openclaw 2026.9.6 gives them, without and with details.
    #[test]
    fn the_gateways_own_answers() {
        use ProbePath::{Live, Ready, Startup};
        check(Live, 200, r#"{"ok":true,"status":"live"}"#, "Live");
        check(Startup, 200, r#"{"ok":true,"status":"started"}"#, "Started");
        check(
            Startup,
            503,
            r#"{"ok":false,"status":"starting"}"#,
            "Starting { status: 503, failing: [] }",
        );
        check(
            Startup,
            503,
            r#"{"ok":false,"status":"starting","version":"2026.9.6","uptimeMs":5,"pendingReason":"startup-sidecars"}"#,
            r#"Starting { status: 503, failing: ["startup-sidecars"] }"#,
        );
        check(Startup, 503, r#"{"ok":false,"status":"draining"}"#, "Draining");
        check(Ready, 200, r#"{"ready":true,"failing":[],"uptimeMs":1}"#, "Ready");
        check(Ready, 503, r#"{"ready":false}"#, "NotReady { failing: [] }");
        check(
            Ready,
            503,
            r#"{"ready":false,"failing":["telegram"]}"#,
            r#"NotReady { failing: ["telegram"] }"#,
        );
        check(Ready, 503, r#"{"ready":false,"failing":["gateway-draining"]}"#, "Draining");
    }

    #[test]
    fn nothing_else_is_taken_for_healthy() {
        use ProbePath::{Live, Ready, Startup};
        let page = "<!doctype html>\n<title>OpenClaw Control</title>";
        for path in [Live, Ready, Startup] {
            let error = "status 200 with an HTML page instead of the endpoint's own answer";
            check(path, 200, page, error);
        }
        check(Live, 200, "", "status 200 with no body instead of the endpoint's own answer");
        check(
            Live,
            200,
            "ok",
            "status 200 with an unknown body instead of the endpoint's own answer",
        );
        let other = "status 200 with other JSON instead of the endpoint's own answer";
        check(Startup, 200, r#"{"ok":true,"status":"live"}"#, other);
        check(Startup, 200, r#"{"ok":false,"status":"started"}"#, other);
        check(Startup, 200, r#"{"ready":true}"#, other);
        check(Ready, 200, r#"{"ready":false}"#, other);
        check(Ready, 200, "[]", other);
        check(
            Startup,
            503,
            r#"{"ok":true,"status":"started"}"#,
            "status 503 with other JSON instead of the endpoint's own answer",
        );
        check(Live, 502, r#"{"ok":true,"status":"live"}"#, "unexpected status 502");
        check(Live, 403, page, "unexpected status 403");
    }

    #[test]
    fn the_attribution_trap_has_its_own_error_with_a_hint() {
        let body = br#"{"error":{"message":"x","type":"proxy_attribution_required"}}"#;
        let error = interpret(ProbePath::Startup, StatusCode::FORBIDDEN, body).unwrap_err();
        assert!(matches!(error, ProbeError::ProxyAttribution));
        assert!(error.to_string().contains("hint: send X-Forwarded-For"));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_fail_otherwise_than_by_an_error(
            status in prop::sample::select(vec![200u16, 403, 503]),
            body in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let status = StatusCode::from_u16(status).unwrap();
            prop_assert!(interpret(ProbePath::Startup, status, &body).is_err());
        }
    }
}
