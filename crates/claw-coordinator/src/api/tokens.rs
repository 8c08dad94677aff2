//! `claw.fleet.v1.JoinTokenService`.

use std::time::Duration;

use claw_proto::convert::name::{parse_host_name, parse_join_token_name};
use claw_proto::convert::violation::Violations;
use claw_proto::fleet::v1::join_token_service_server::JoinTokenService;
use claw_proto::fleet::v1::{self as fleet};
use tonic::{Request, Response, Status};

use super::{Envelope, caller_of};
use crate::fleet::Fleet;
use crate::fleet::tokens::{DEFAULT_TTL, MAX_TTL, MIN_TTL};
use crate::page::Page;
use crate::refusal::Refusal;
use crate::store::mutation::Codec;
use crate::store::tokens;

/// The service.
#[derive(Debug, Clone)]
pub struct JoinTokenApi {
    /// What it serves.
    pub fleet: Fleet,
}

#[tonic::async_trait]
impl JoinTokenService for JoinTokenApi {
    async fn create_join_token(
        &self,
        request: Request<fleet::CreateJoinTokenRequest>,
    ) -> Result<Response<fleet::CreateJoinTokenResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.JoinTokenService/CreateJoinToken",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let (clock, secret) = (&self.fleet.clock, &self.fleet.store.keys().request_key);
        let call = envelope.call(&caller, &claw_proto::encode(&request), clock, secret)?;
        let mut violations = Violations::default();
        let ttl = match request.ttl {
            None => Some(DEFAULT_TTL),
            Some(ttl) => violations.take("ttl", parse_ttl(ttl.seconds, ttl.nanos)),
        };
        let host = parse_host_name("host", &request.host);
        let host = host.map_err(|violation| violations.0.push(violation)).ok();
        let (Some(host), Some(ttl)) = (host, ttl) else {
            return Err(Refusal::Invalid(violations).into());
        };
        // What is kept for a repeated request lacks the token: it is shown once.
        let codec = Codec { encode: encode_without_token, decode: claw_proto::decode };
        let make = |row: &tokens::TokenRow, token| fleet::CreateJoinTokenResponse {
            join_token: Some(crate::view::join_token(row)),
            token,
        };
        let made = self.fleet.create_join_token(call, host, ttl, codec, make).await?;
        if made.token.is_empty() && !request.validate_only {
            return Err(Refusal::ShownOnce { id: request.request_id }.into());
        }
        Ok(Response::new(made))
    }

    async fn list_join_tokens(
        &self,
        request: Request<fleet::ListJoinTokensRequest>,
    ) -> Result<Response<fleet::ListJoinTokensResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse("joinTokens", request.page_size, &request.page_token)?;
        let (rows, next_page_token) = self
            .fleet
            .store
            .read_long(move |connection, _keys| tokens::list(connection, &page))
            .await?;
        let join_tokens = rows.iter().map(crate::view::join_token).collect();
        Ok(Response::new(fleet::ListJoinTokensResponse { join_tokens, next_page_token }))
    }

    async fn delete_join_token(
        &self,
        request: Request<fleet::DeleteJoinTokenRequest>,
    ) -> Result<Response<fleet::DeleteJoinTokenResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.JoinTokenService/DeleteJoinToken",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let (clock, secret) = (&self.fleet.clock, &self.fleet.store.keys().request_key);
        let call = envelope.call(&caller, &claw_proto::encode(&request), clock, secret)?;
        let id = parse_join_token_name("name", &request.name).map_err(Refusal::from)?;
        let codec = Codec { encode: claw_proto::encode, decode: claw_proto::decode };
        Ok(Response::new(self.fleet.delete_join_token(call, id, codec).await?))
    }
}

fn encode_without_token(response: &fleet::CreateJoinTokenResponse) -> Vec<u8> {
    claw_proto::encode(&fleet::CreateJoinTokenResponse {
        join_token: response.join_token.clone(),
        token: String::new(),
    })
}

fn parse_ttl(seconds: i64, nanos: i32) -> Result<Duration, String> {
    let bad = || format!("must be {} s to {} s", MIN_TTL.as_secs(), MAX_TTL.as_secs());
    let seconds = u64::try_from(seconds).map_err(|_negative| bad())?;
    let nanos = u32::try_from(nanos).map_err(|_negative| bad())?;
    let ttl = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(u64::from(nanos)));
    if (MIN_TTL..=MAX_TTL).contains(&ttl) { Ok(ttl) } else { Err(bad()) }
}
