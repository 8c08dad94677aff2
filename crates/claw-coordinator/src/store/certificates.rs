//! Certificates that were issued, and the denylist.

use std::collections::BTreeSet;

use claw_core::time::Timestamp;
use claw_identity::{PeerIdentity, Role, Serial, SpkiPin};
use claw_store::rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::time;
use crate::refusal::Refusal;

/// One certificate as stored.
#[derive(Debug, Clone)]
pub struct CertificateRow {
    /// Its number.
    pub serial: Serial,
    /// Whom it is for.
    pub identity: PeerIdentity,
    /// Hash of its public key.
    pub pin: SpkiPinBytes,
    /// The certificate as PEM.
    pub pem: String,
    /// When it was issued.
    pub issued: Timestamp,
    /// Its last moment.
    pub not_after: Timestamp,
}

/// A [`SpkiPin`] as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpkiPinBytes(pub [u8; 32]);

impl From<SpkiPin> for SpkiPinBytes {
    fn from(pin: SpkiPin) -> Self {
        Self(*pin.as_bytes())
    }
}

pub(crate) fn insert(connection: &Connection, certificate: &CertificateRow) -> Result<(), Refusal> {
    connection.execute(
        "INSERT INTO certificate (serial, role, name, pin, pem, issued_ms, not_after_ms)
         VALUES (:serial, :role, :name, :pin, :pem, :issued, :not_after)",
        named_params! {
            ":serial": certificate.serial.to_string(),
            ":role": certificate.identity.role().as_str(),
            ":name": certificate.identity.name(),
            ":pin": certificate.pin.0,
            ":pem": certificate.pem,
            ":issued": certificate.issued.millis(),
            ":not_after": certificate.not_after.millis(),
        },
    )?;
    Ok(())
}

/// A certificate by its number.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn find(connection: &Connection, serial: &Serial) -> Result<Option<CertificateRow>, Refusal> {
    connection
        .query_row(
            "SELECT serial, role, name, pin, pem, issued_ms, not_after_ms FROM certificate
             WHERE serial = ?1",
            [serial.to_string()],
            |row| Ok(from_row(row)),
        )
        .optional()?
        .transpose()
}

/// The newest certificate of a peer that was issued for this key since `since`.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn find_recent(
    connection: &Connection,
    identity: &PeerIdentity,
    pin: SpkiPinBytes,
    since: Timestamp,
) -> Result<Option<CertificateRow>, Refusal> {
    connection
        .query_row(
            "SELECT serial, role, name, pin, pem, issued_ms, not_after_ms FROM certificate
             WHERE role = ?1 AND name = ?2 AND pin = ?3 AND issued_ms >= ?4
             ORDER BY issued_ms DESC LIMIT 1",
            (identity.role().as_str(), identity.name(), pin.0, since.millis()),
            |row| Ok(from_row(row)),
        )
        .optional()?
        .transpose()
}

/// Denylists every certificate of a peer that has not ended; returns their numbers.
pub(crate) fn deny_all(
    connection: &Connection,
    identity: &PeerIdentity,
    now: Timestamp,
    reason: &str,
) -> Result<Vec<Serial>, Refusal> {
    connection.execute(
        "INSERT OR IGNORE INTO denylist (serial, reason, at_ms, not_after_ms)
         SELECT serial, ?3, ?4, not_after_ms FROM certificate
         WHERE role = ?1 AND name = ?2 AND not_after_ms >= ?4",
        (identity.role().as_str(), identity.name(), reason, now.millis()),
    )?;
    let mut statement = connection.prepare_cached(
        "SELECT serial FROM certificate WHERE role = ?1 AND name = ?2 AND not_after_ms >= ?3",
    )?;
    let serials = statement
        .query_map((identity.role().as_str(), identity.name(), now.millis()), |row| {
            row.get::<_, String>(0)
        })?;
    serials.map(|serial| parse_serial(&serial?)).collect()
}

/// The whole denylist.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn denied(connection: &Connection) -> Result<BTreeSet<Serial>, Refusal> {
    let mut statement = connection.prepare_cached("SELECT serial FROM denylist")?;
    let serials = statement.query_map((), |row| row.get::<_, String>(0))?;
    serials.map(|serial| parse_serial(&serial?)).collect()
}

/// Forgets certificates that ended before `before`; TLS refuses them anyway.
pub(crate) fn delete_old(connection: &Connection, before: Timestamp) -> Result<(), Refusal> {
    connection.execute("DELETE FROM certificate WHERE not_after_ms < ?1", [before.millis()])?;
    connection.execute("DELETE FROM denylist WHERE not_after_ms < ?1", [before.millis()])?;
    Ok(())
}

fn parse_serial(text: &str) -> Result<Serial, Refusal> {
    text.parse().map_err(|error| Refusal::damaged("serial of a certificate", error))
}

fn from_row(row: &Row<'_>) -> Result<CertificateRow, Refusal> {
    let serial = parse_serial(&row.get::<_, String>("serial")?)?;
    let damaged = |error| Refusal::damaged(format!("identity of certificate {serial}"), error);
    let role: Role = row.get::<_, String>("role")?.parse().map_err(damaged)?;
    let identity = PeerIdentity::new(role, &row.get::<_, String>("name")?).map_err(damaged)?;
    Ok(CertificateRow {
        identity,
        pin: SpkiPinBytes(row.get("pin")?),
        pem: row.get("pem")?,
        issued: time(row, "issued_ms")?,
        not_after: time(row, "not_after_ms")?,
        serial,
    })
}
