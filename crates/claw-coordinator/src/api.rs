//! gRPC handlers: decode, call, encode. No decisions here.

mod archive;
pub mod audit;
pub mod enrolment;
pub mod hosts;
pub mod instances;
pub mod node;
pub mod snapshots;
pub mod tokens;
mod transfer;
mod watching;

use std::sync::Arc;

use tonic::Request;

use crate::auth::Caller;
use crate::clock::Clock;
use crate::refusal::Refusal;
use crate::store::mutation::{Call, Mode};
use crate::store::requests::RequestKey;

/// What a request says of itself, whatever it asks for.
#[derive(Debug, Clone, Copy)]
struct Envelope<'a> {
    method: &'static str,
    validate_only: bool,
    request_id: &'a str,
}

impl Envelope<'_> {
    /// Everything about a change except the change.
    fn call(
        &self,
        caller: &Caller,
        content: &[u8],
        clock: &Clock,
        request_secret: &[u8],
    ) -> Result<Call, Refusal> {
        Ok(Call {
            principal: caller.principal(),
            source: caller.source.ip().to_string(),
            method: self.method,
            now: clock.now(),
            request: RequestKey::new(self.request_id, self.method, content, request_secret)?,
            mode: Mode::from_validate_only(self.validate_only),
        })
    }
}

/// The caller, which [`crate::routes`] has put into the request.
fn caller_of<T>(request: &Request<T>) -> Result<Arc<Caller>, Refusal> {
    request
        .extensions()
        .get::<Arc<Caller>>()
        .cloned()
        .ok_or_else(|| Refusal::damaged("request", "it has no caller"))
}
