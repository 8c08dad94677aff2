//! Join tokens; of the secret only a hash.

use claw_core::name::HostName;
use claw_core::time::Timestamp;
use claw_identity::{SecretHash, Serial};
use claw_store::rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::{time, time_or_none};
use crate::page::Page;
use crate::refusal::Refusal;

/// What a token shows, roughly.
const ROW_BYTES: usize = 256;

/// One token as stored.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// Public part.
    pub id: String,
    /// The host that it is bound to.
    pub host: HostName,
    /// Hash of the secret.
    pub secret_hash: SecretHash,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// When it was used, and the certificate that it gave.
    pub used: Option<(Timestamp, Serial)>,
}

const COLUMNS: &str = "id, host, secret_hash, created_ms, expires_ms, used_ms, used_serial";

/// A token, if it exists.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn find(connection: &Connection, id: &str) -> Result<Option<TokenRow>, Refusal> {
    connection
        .prepare_cached(&format!("SELECT {COLUMNS} FROM join_token WHERE id = ?1"))?
        .query_row([id], |row| Ok(from_row(row)))
        .optional()?
        .transpose()
}

/// One page by id, and the token of the next.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn list(connection: &Connection, page: &Page) -> Result<(Vec<TokenRow>, String), Refusal> {
    let sql = format!("SELECT {COLUMNS} FROM join_token WHERE id > ?1 ORDER BY id LIMIT ?2");
    let mut statement = connection.prepare_cached(&sql)?;
    let after = page.after.as_deref().unwrap_or_default();
    let rows = statement.query_map((after, page.fetch()), |row| Ok(from_row(row)))?;
    page.collect(rows.map(|row| row?), |_row| ROW_BYTES, |row| row.id.clone())
}

pub(crate) fn insert(connection: &Connection, token: &TokenRow) -> Result<(), Refusal> {
    connection.execute(
        "INSERT INTO join_token (id, host, secret_hash, created_ms, expires_ms)
         VALUES (:id, :host, :hash, :created, :expires)",
        named_params! {
            ":id": token.id,
            ":host": token.host.as_str(),
            ":hash": token.secret_hash.as_bytes(),
            ":created": token.created.millis(),
            ":expires": token.expires.millis(),
        },
    )?;
    Ok(())
}

/// Uses a token up; false when somebody else was faster.
pub(crate) fn consume(
    connection: &Connection,
    id: &str,
    now: Timestamp,
    serial: &Serial,
) -> Result<bool, Refusal> {
    let changed = connection.execute(
        "UPDATE join_token SET used_ms = ?2, used_serial = ?3
         WHERE id = ?1 AND used_ms IS NULL AND expires_ms > ?2",
        (id, now.millis(), serial.to_string()),
    )?;
    Ok(changed == 1)
}

pub(crate) fn delete(connection: &Connection, id: &str) -> Result<bool, Refusal> {
    Ok(connection.execute("DELETE FROM join_token WHERE id = ?1", [id])? == 1)
}

/// Forgets tokens that ended before `before`.
pub(crate) fn delete_old(connection: &Connection, before: Timestamp) -> Result<(), Refusal> {
    connection.execute("DELETE FROM join_token WHERE expires_ms < ?1", [before.millis()])?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> Result<TokenRow, Refusal> {
    let id: String = row.get("id")?;
    let hash: [u8; 32] = row.get("secret_hash")?;
    let used = match (time_or_none(row, "used_ms")?, row.get::<_, Option<String>>("used_serial")?) {
        (Some(at), Some(serial)) => {
            let serial = serial
                .parse()
                .map_err(|error| Refusal::damaged(format!("serial of token {id}"), error))?;
            Some((at, serial))
        }
        _ => None,
    };
    Ok(TokenRow {
        host: super::hosts::parse_name(&row.get::<_, String>("host")?)?,
        secret_hash: SecretHash::from_bytes(hash),
        created: time(row, "created_ms")?,
        expires: time(row, "expires_ms")?,
        used,
        id,
    })
}
