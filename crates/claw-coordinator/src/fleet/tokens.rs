//! Join tokens.

use std::time::Duration;

use claw_core::name::HostName;
use claw_core::time::Timestamp;
use claw_identity::{JoinToken, TokenId};

use super::Fleet;
use crate::refusal::Refusal;
use crate::store::mutation::{Call, Codec, Done, Effects};
use crate::store::tokens::{self, TokenRow};
use crate::store::{hosts, random_id};

/// When the caller does not say.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Shortest.
pub const MIN_TTL: Duration = Duration::from_secs(60);
/// Longest.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);

/// Most characters of a token's id in its random part.
const ID_LENGTH: usize = 16;

impl Fleet {
    /// Makes a token for one host. `make` gets the row and the token itself.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] (host).
    pub async fn create_join_token<R: Send + 'static>(
        &self,
        call: Call,
        host: HostName,
        ttl: Duration,
        codec: Codec<R>,
        make: fn(&TokenRow, String) -> R,
    ) -> Result<R, Refusal> {
        let now = call.now;
        let (row, token) = self.new_token(host, now, ttl)?;
        let job = move |connection: &claw_store::rusqlite::Connection, _keys: &_| {
            hosts::load(connection, &row.host)?;
            tokens::insert(connection, &row)?;
            Ok(Done {
                response: make(&row, token),
                resource: format!("joinTokens/{}", row.id),
                summary: format!("made for hosts/{}, good for {} s", row.host, ttl.as_secs()),
                effects: Effects::default(),
            })
        };
        let (response, _none) = self.store.mutate(call, codec, job).await?;
        Ok(response)
    }

    /// Makes a token useless.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]
    pub async fn delete_join_token<R: Default + Send + 'static>(
        &self,
        call: Call,
        id: String,
        codec: Codec<R>,
    ) -> Result<R, Refusal> {
        let job = move |connection: &claw_store::rusqlite::Connection, _keys: &_| {
            let resource = format!("joinTokens/{id}");
            if !tokens::delete(connection, &id)? {
                return Err(Refusal::NotFound { resource });
            }
            Ok(Done {
                response: R::default(),
                resource,
                summary: "deleted".to_owned(),
                effects: Effects::default(),
            })
        };
        let (response, _none) = self.store.mutate(call, codec, job).await?;
        Ok(response)
    }

    fn new_token(
        &self,
        host: HostName,
        now: Timestamp,
        ttl: Duration,
    ) -> Result<(TokenRow, String), Refusal> {
        let id: String = random_id().chars().take(ID_LENGTH).collect();
        let id = TokenId::parse(&id).map_err(|error| Refusal::damaged("id of a token", error))?;
        let token = JoinToken::generate(id, self.authority.spki_pin(), &mut rand::rng());
        let row = TokenRow {
            id: token.id().to_string(),
            host,
            secret_hash: token.secret_hash(),
            created: now,
            expires: now.after(ttl),
            used: None,
        };
        Ok((row, token.reveal().to_string()))
    }
}
