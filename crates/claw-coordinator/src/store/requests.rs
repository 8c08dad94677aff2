//! Answers to requests that may come again: idempotency by `request_id` for a day.

use std::time::Duration;

use claw_core::time::Timestamp;
use claw_store::rusqlite::{Connection, OptionalExtension as _};
use sha2::{Digest as _, Sha256};

use crate::refusal::Refusal;

/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A request that may come again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The caller's choice, a UUID.
    pub id: String,
    /// Over method and content, keyed.
    pub digest: [u8; 32],
}

impl RequestKey {
    /// The key of a request; `None` without an id.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when the id is no UUID.
    pub fn new(
        id: &str,
        method: &str,
        content: &[u8],
        secret: &[u8],
    ) -> Result<Option<Self>, Refusal> {
        if id.is_empty() {
            return Ok(None);
        }
        if !is_uuid(id) {
            return Err(Refusal::field(
                "request_id",
                "must be a UUID such as 7f1c9a52-30f4-4b9e-8d47-5d3a9a0e6b11",
            ));
        }
        let digest = Sha256::new()
            .chain_update(secret)
            .chain_update(method.as_bytes())
            .chain_update([0])
            .chain_update(content)
            .finalize();
        Ok(Some(Self { id: id.to_ascii_lowercase(), digest: digest.into() }))
    }
}

/// The answer that was given to this request before.
///
/// # Errors
/// [`Refusal::Invalid`] when the id was used for another request.
pub(crate) fn find(
    connection: &Connection,
    principal: &str,
    key: &RequestKey,
) -> Result<Option<Vec<u8>>, Refusal> {
    let found: Option<([u8; 32], Vec<u8>)> = connection
        .prepare_cached("SELECT digest, response FROM request WHERE principal = ?1 AND id = ?2")?
        .query_row((principal, &key.id), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        Some((digest, _)) if digest != key.digest => Err(Refusal::field(
            "request_id",
            "was used for another request; every new request needs a new one",
        )),
        Some((_, response)) => Ok(Some(response)),
        None => Ok(None),
    }
}

pub(crate) fn insert(
    connection: &Connection,
    principal: &str,
    key: &RequestKey,
    response: &[u8],
    now: Timestamp,
) -> Result<(), Refusal> {
    connection
        .prepare_cached(
            "INSERT INTO request (principal, id, digest, response, at_ms)
             VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((principal, &key.id, key.digest, response, now.millis()))?;
    Ok(())
}

/// Forgets answers that were given before `before`.
pub(crate) fn delete_old(connection: &Connection, before: Timestamp) -> Result<(), Refusal> {
    connection.execute("DELETE FROM request WHERE at_ms < ?1", [before.millis()])?;
    Ok(())
}

/// RFC 9562, section 4: 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_uuids_are_taken() {
        assert!(is_uuid("7f1c9a52-30f4-4b9e-8d47-5d3a9a0e6b11"));
        for bad in ["x", "7f1c9a52-30f4-4b9e-8d47-5d3a9a0e6b1", "7f1c9a5230f44b9e8d475d3a9a0e6b11"]
        {
            assert!(!is_uuid(bad), "{bad}");
        }
    }

    #[test]
    fn method_content_and_secret_tell_requests_apart() {
        let id = "7f1c9a52-30f4-4b9e-8d47-5d3a9a0e6b11";
        let key = |method, content: &[u8], secret: &[u8]| {
            RequestKey::new(id, method, content, secret).unwrap().unwrap().digest
        };
        assert_eq!(key("m", b"c", b"s"), key("m", b"c", b"s"));
        assert_ne!(key("m", b"c", b"s"), key("n", b"c", b"s"));
        assert_ne!(key("m", b"c", b"s"), key("m", b"d", b"s"));
        assert_ne!(key("m", b"c", b"s"), key("m", b"c", b"t"));
    }
}
