//! Asking a gateway to do something, over its WebSocket RPC (protocol 4).
//!
//! [`Rpc::connect`] opens a connection and logs in with the gateway's token, signed by a
//! [`Device`]; the methods then call. A gateway that does not know the device yet refuses with
//! [`RpcError::NotPaired`] and remembers the request, which somebody must approve there.
//!
//! It does not reconnect, retry or approve, and it keeps nothing: a connection lives as long as its value.
//! The gateway is a tenant's and may be hostile: a message has at most [`MAX_MESSAGE_BYTES`], all messages
//! until an answer comes at most [`MAX_TRAFFIC_BYTES`], its words at most [`MAX_WORDS`] characters, and every
//! call has a deadline. After an error, a deadline's included, a connection is worth nothing any more.
//!
//! Source: openclaw 2026.9.6, run and read, and `protocol.schema.json` of `@openclaw/gateway-protocol`
//! 2026.9.1. Where to start: [`Rpc::connect`], then [`Rpc::suspend_prepare`].

mod frame;
mod socket;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use thiserror::Error;

use crate::device::{Claim, Device};
use crate::probe::{ProbeError, Target};
use frame::{Challenge, ErrorShape, Hello, Incoming};
use socket::Socket;

/// The largest message that is read, in bytes. Ours; a gateway's greeting has 16 KB (measured).
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// The most bytes that are read until an answer comes. Ours: events of a busy gateway pass by meanwhile.
pub const MAX_TRAFFIC_BYTES: usize = 8 << 20;

/// The most characters of a gateway's own words that an error repeats.
pub const MAX_WORDS: usize = 200;

/// The protocol that is spoken.
const PROTOCOL: u32 = 4;

/// Closed enumerations of the protocol: what a controller on another machine is called.
const CLIENT_ID: &str = "gateway-client";
const CLIENT_MODE: &str = "backend";
const PLATFORM: &str = "linux";
const ROLE: &str = "operator";

/// What a controller asks for: `gateway.suspend.*` needs it.
const SCOPES: [&str; 1] = ["operator.admin"];

/// Why a call has no result.
#[derive(Debug, Error)]
pub enum RpcError {
    /// There is no WebSocket at all.
    #[error("opening a WebSocket")]
    Open(#[source] ProbeError),
    /// No answer within the deadline.
    #[error("no answer to {doing} within {} ms", deadline.as_millis())]
    TimedOut {
        /// The method.
        doing: &'static str,
        /// How long it was given.
        deadline: Duration,
    },
    /// The gateway does not know this device; it has noted the request.
    #[error("the gateway does not know this device yet (request {request_id})")]
    NotPaired {
        /// What is to be approved: letters, digits and hyphens, at most 128, a letter or digit first.
        request_id: String,
    },
    /// The gateway refused.
    #[error("{doing} was refused: {code}: {message}")]
    Refused {
        /// The method.
        doing: &'static str,
        /// Its code, such as `UNAVAILABLE`.
        code: String,
        /// Its words.
        message: String,
    },
    /// The gateway closed the connection.
    #[error("the gateway closed the connection: {0}")]
    Closed(String),
    /// A message has more than [`MAX_MESSAGE_BYTES`].
    #[error("a message is larger than {MAX_MESSAGE_BYTES} bytes")]
    TooLarge,
    /// More than [`MAX_TRAFFIC_BYTES`] came, and no answer among them.
    #[error("no answer to {doing} among {MAX_TRAFFIC_BYTES} bytes")]
    Flooded {
        /// The method.
        doing: &'static str,
    },
    /// The gateway says something that this protocol does not have there.
    #[error("{doing}: {problem}")]
    Protocol {
        /// The method.
        doing: &'static str,
        /// What it is.
        problem: &'static str,
    },
    /// An answer has another form than it should.
    #[error("the answer to {doing} has another form")]
    Malformed {
        /// The method.
        doing: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// The connection broke, or what came over it is no WebSocket.
    #[error("the connection broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Who logs in.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// The gateway's token.
    pub token: &'a str,
    /// The device that signs.
    pub device: &'a Device,
    /// What people read in the gateway's list of devices.
    pub display_name: &'a str,
}

/// Leaves the token out.
impl std::fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("device", &self.device).finish_non_exhaustive()
    }
}

/// An open connection, logged in.
#[derive(Debug)]
pub struct Rpc {
    socket: Socket,
    calls: u64,
}

/// What became of the wish to suspend a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prepared {
    /// Nothing is under way in it, and nothing is begun, until it is resumed or the lease ends.
    Ready(Suspension),
    /// Something is under way; it goes on as if nobody had asked. With what it is, in the gateway's words.
    Busy(String),
}

/// A gateway's suspension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// What resumes it.
    pub id: String,
    /// When it resumes by itself, in milliseconds since 1970 by the gateway's clock: 120 s after the last
    /// request.
    pub expires_at_ms: u64,
}

/// A wish to resume that was sent; its answer was not read yet.
#[derive(Debug)]
#[must_use]
pub struct Resuming {
    call: u64,
}

impl Rpc {
    /// Connects and logs in.
    ///
    /// # Errors
    /// [`RpcError`]; [`RpcError::NotPaired`] until somebody has approved the device.
    pub async fn connect(
        target: &Target<'_>,
        login: &Login<'_>,
        deadline: Duration,
    ) -> Result<Self, RpcError> {
        within("connect", deadline, Box::pin(Self::log_in(target, login))).await
    }

    async fn log_in(target: &Target<'_>, login: &Login<'_>) -> Result<Self, RpcError> {
        let mut rpc = Self { socket: Socket::open(target).await?, calls: 0 };
        let challenge = rpc.challenge().await?;
        let call = rpc.send("connect", &connect_parameters(login, &challenge)).await?;
        let hello: Hello = rpc.answer("connect", call).await?;
        if hello.protocol != PROTOCOL {
            return Err(RpcError::Protocol {
                doing: "connect",
                problem: "it speaks another protocol",
            });
        }
        Ok(rpc)
    }

    /// Whether the gateway answers calls: it does not while it is suspended.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn health(&mut self, deadline: Duration) -> Result<(), RpcError> {
        let answer = self.call::<Ignored>("health", &json!({}), deadline).await?;
        let Ignored {} = answer;
        Ok(())
    }

    /// Suspends the gateway if nothing is under way in it. The same `request_id` again gives the same
    /// suspension with a new lease, over another connection too; another one is refused meanwhile.
    ///
    /// While it is suspended, it refuses every other call with `UNAVAILABLE`, `/startupz` and `/readyz` fail,
    /// connections and pages are served.
    ///
    /// # Errors
    /// [`RpcError`]. After a lost answer the gateway may be suspended all the same.
    pub async fn suspend_prepare(
        &mut self,
        request_id: &str,
        deadline: Duration,
    ) -> Result<Prepared, RpcError> {
        const METHOD: &str = "gateway.suspend.prepare";
        let answer: PrepareAnswer =
            self.call(METHOD, &json!({ "requestId": request_id }), deadline).await?;
        match answer {
            PrepareAnswer::Ready { suspension_id, expires_at_ms } if suspension_id.len() <= 128 => {
                Ok(Prepared::Ready(Suspension { id: suspension_id, expires_at_ms }))
            }
            PrepareAnswer::Busy { blockers } => {
                let messages: Vec<_> =
                    blockers.into_iter().map(|blocker| blocker.message).collect();
                Ok(Prepared::Busy(words(&messages.join(", "))))
            }
            PrepareAnswer::Ready { .. } => {
                Err(RpcError::Protocol { doing: METHOD, problem: "its id is too long" })
            }
        }
    }

    /// Resumes a gateway; whether it was suspended.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn suspend_resume(
        &mut self,
        suspension_id: &str,
        deadline: Duration,
    ) -> Result<bool, RpcError> {
        let resuming = self.send_resume(suspension_id, deadline).await?;
        self.resumed(resuming, deadline).await
    }

    /// Sends the wish to resume, and does not wait for the answer: to a gateway whose process is frozen, which
    /// finds it first when it goes on.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn send_resume(
        &mut self,
        suspension_id: &str,
        deadline: Duration,
    ) -> Result<Resuming, RpcError> {
        let parameters = json!({ "suspensionId": suspension_id });
        let call = within(RESUME, deadline, self.send(RESUME, &parameters)).await?;
        Ok(Resuming { call })
    }

    /// Waits for the answer to [`Self::send_resume`]; whether the gateway was suspended.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn resumed(
        &mut self,
        resuming: Resuming,
        deadline: Duration,
    ) -> Result<bool, RpcError> {
        let answer = self.answer::<ResumeAnswer>(RESUME, resuming.call);
        Ok(within(RESUME, deadline, answer).await?.resumed)
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        method: &'static str,
        parameters: &impl Serialize,
        deadline: Duration,
    ) -> Result<T, RpcError> {
        let work = async {
            let call = self.send(method, parameters).await?;
            self.answer(method, call).await
        };
        within(method, deadline, work).await
    }

    async fn send(
        &mut self,
        method: &'static str,
        parameters: &impl Serialize,
    ) -> Result<u64, RpcError> {
        self.calls += 1;
        let text = frame::request(&self.calls.to_string(), method, parameters)
            .map_err(|source| RpcError::Malformed { doing: method, source })?;
        self.socket.send(text).await?;
        Ok(self.calls)
    }

    async fn challenge(&mut self) -> Result<Challenge, RpcError> {
        let text = self.socket.receive().await?;
        Challenge::read(&text).map_err(|source| RpcError::Malformed { doing: "connect", source })
    }

    /// The answer to a call; events and answers to others are passed over.
    async fn answer<T: DeserializeOwned>(
        &mut self,
        doing: &'static str,
        call: u64,
    ) -> Result<T, RpcError> {
        let (id, mut read) = (call.to_string(), 0_usize);
        loop {
            let text = self.socket.receive().await?;
            read = read.saturating_add(text.len());
            let frame = Incoming::read(&text, &id);
            match frame.map_err(|source| RpcError::Malformed { doing, source })? {
                Incoming::Answer(answer) => return Ok(answer),
                Incoming::Refusal(refusal) => return Err(refused(doing, refusal)),
                Incoming::Other if read > MAX_TRAFFIC_BYTES => {
                    return Err(RpcError::Flooded { doing });
                }
                Incoming::Other => {}
            }
        }
    }
}

const RESUME: &str = "gateway.suspend.resume";

/// The answer to `gateway.suspend.prepare`. `draining` is only given to those who ask for it.
#[derive(Debug, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase", rename_all_fields = "camelCase")]
enum PrepareAnswer {
    Ready {
        suspension_id: String,
        expires_at_ms: u64,
    },
    Busy {
        #[serde(default)]
        blockers: Vec<Blocker>,
    },
}

/// What is under way in a gateway.
#[derive(Debug, Deserialize)]
struct Blocker {
    message: String,
}

/// The answer to `gateway.suspend.resume`.
#[derive(Debug, Deserialize)]
struct ResumeAnswer {
    resumed: bool,
}

/// An answer of which only the coming counts.
#[derive(Debug, Deserialize)]
struct Ignored {}

fn connect_parameters(login: &Login<'_>, challenge: &Challenge) -> serde_json::Value {
    let claim = Claim {
        client_id: CLIENT_ID,
        client_mode: CLIENT_MODE,
        role: ROLE,
        scopes: &SCOPES,
        signed_at: challenge.ts,
        token: login.token,
        nonce: &challenge.nonce,
        platform: PLATFORM,
    };
    json!({
        "minProtocol": PROTOCOL,
        "maxProtocol": PROTOCOL,
        "client": {
            "id": CLIENT_ID,
            "displayName": login.display_name,
            "version": env!("CARGO_PKG_VERSION"),
            "platform": PLATFORM,
            "mode": CLIENT_MODE,
        },
        "role": ROLE,
        "scopes": SCOPES,
        "auth": { "token": login.token },
        "device": {
            "id": login.device.id(),
            "publicKey": login.device.public_key(),
            "signature": login.device.sign(&claim),
            "signedAt": challenge.ts,
            "nonce": challenge.nonce,
        },
    })
}

fn refused(doing: &'static str, refusal: ErrorShape) -> RpcError {
    if refusal.code == "NOT_PAIRED" {
        return match refusal.request_id() {
            Some(request_id) if is_request_id(&request_id) => RpcError::NotPaired { request_id },
            _ => RpcError::Protocol {
                doing,
                problem: "not paired, and no request that can be approved",
            },
        };
    }
    RpcError::Refused { doing, code: words(&refusal.code), message: words(&refusal.message) }
}

/// It becomes an argument of a command line.
fn is_request_id(text: &str) -> bool {
    text.len() <= 128
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

/// A gateway's own words, made harmless.
fn words(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_WORDS).collect()
}

async fn within<T>(
    doing: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, RpcError>>,
) -> Result<T, RpcError> {
    let late = RpcError::TimedOut { doing, deadline };
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(late))
}
