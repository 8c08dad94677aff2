//! Specs that instances had: what a rollback brings back, and what a snapshot was taken under.
//!
//! A revision is in force on the host from its generation up to but without the generation of the next
//! one. It outlives its instance as long as the instance's snapshots are listed.

use std::collections::BTreeSet;

use claw_core::name::ImageRef;
use claw_core::stamp::Generation;
use claw_core::time::Timestamp;
use claw_identity::seal::SealKey;
use claw_proto::fleet::v1 as fleet;
use claw_store::rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::instances::InstanceRow;
use super::{instances, int, snapshots, time, uint};
use crate::page::Page;
use crate::refusal::{Fault, Refusal};

/// Revisions that are kept of an instance, besides those that its listed snapshots refer to.
pub const KEPT: usize = 50;

/// How many changes of an instance lie between two trims; so many revisions more than [`KEPT`] may be there.
const TRIM_EVERY: u64 = 16;

/// What a revision shows besides its spec, roughly.
const ROW_BYTES: usize = 256;

/// A spec that an instance had.
#[derive(Clone)]
pub struct RevisionRow {
    /// The uid of the instance.
    pub uid: String,
    /// Its number.
    pub revision: u64,
    /// The host's generation from which on it was in force.
    pub generation: Generation,
    /// When it was made.
    pub created: Timestamp,
    /// The spec; secrets empty.
    pub spec: fleet::InstanceSpec,
    /// The secrets, sealed as those of the instance.
    sealed: Vec<u8>,
}

impl RevisionRow {
    /// The spec with its secrets.
    ///
    /// # Errors
    /// [`Refusal::Internal`] when they do not open.
    pub fn full_spec(&self, seal: &SealKey) -> Result<fleet::InstanceSpec, Refusal> {
        let what = format!("revision {} of an instance", self.revision);
        instances::open_spec(&self.uid, &what, &self.spec, &self.sealed, seal)
    }
}

impl std::fmt::Debug for RevisionRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RevisionRow")
            .field("uid", &self.uid)
            .field("revision", &self.revision)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// When which revision was in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History(Vec<Span>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    revision: u64,
    from: u64,
    /// The next one's; `None` while it is the present one.
    until: Option<u64>,
    image: String,
}

impl History {
    /// The revision under which data that `image` ran on was kept at `generation`; `None` when it is not
    /// known any more.
    ///
    /// While an update is prepared, or after it was refused, the host goes on with an older image than the
    /// spec in force says: then it is the newest one before with that image.
    #[must_use]
    pub fn at(&self, generation: Generation, image: &ImageRef) -> Option<u64> {
        let covers = |span: &&Span| {
            span.from <= generation.0 && span.until.is_none_or(|until| generation.0 < until)
        };
        let in_force = self.0.iter().rev().find(covers)?;
        let same_image = self
            .0
            .iter()
            .rev()
            .find(|span| span.revision <= in_force.revision && span.image == image.as_str());
        Some(same_image.unwrap_or(in_force).revision)
    }
}

/// The history of an instance.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn history(connection: &Connection, uid: &str) -> Result<History, Refusal> {
    let mut statement = connection.prepare_cached(
        "SELECT revision, generation, until, image FROM revision WHERE uid = ?1 ORDER BY revision",
    )?;
    let rows = statement.query_map([uid], |row| {
        let until: Option<i64> = row.get("until")?;
        Ok(Span {
            revision: uint(row, "revision")?,
            from: uint(row, "generation")?,
            until: until.map(|until| u64::try_from(until).unwrap_or(0)),
            image: row.get("image")?,
        })
    })?;
    Ok(History(rows.collect::<Result<_, _>>()?))
}

const COLUMNS: &str = "uid, revision, generation, created_ms, spec, sealed";

/// A revision, if it is kept.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn find(
    connection: &Connection,
    uid: &str,
    revision: u64,
) -> Result<Option<RevisionRow>, Refusal> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM revision WHERE uid = ?1 AND revision = ?2"
        ))?
        .query_row((uid, int(revision)), |row| Ok(from_row(row)))
        .optional()?
        .transpose()
}

/// One page, newest first, and the token of the next.
///
/// # Errors
/// [`Refusal::Internal`]
pub fn list(
    connection: &Connection,
    uid: &str,
    page: &Page,
) -> Result<(Vec<RevisionRow>, String), Refusal> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM revision WHERE uid = ?1 AND revision < ?2
         ORDER BY revision DESC LIMIT ?3"
    ))?;
    let before = page.after_number(i64::MAX)?;
    let rows = statement.query_map((uid, before, page.fetch()), |row| {
        let bytes = row.get_ref("spec")?.as_blob().map_or(0, <[u8]>::len);
        Ok(from_row(row).map(|revision| (revision, bytes)))
    })?;
    let weight = |(_, bytes): &(RevisionRow, usize)| ROW_BYTES + bytes;
    let key = |(row, _): &(RevisionRow, usize)| row.revision.to_string();
    let (rows, token) = page.collect(rows.map(|row| row?), weight, key)?;
    Ok((rows.into_iter().map(|(row, _)| row).collect(), token))
}

/// Instances from before there were revisions get their present one.
pub(super) fn fill(connection: &Connection) -> Result<(), Refusal> {
    for instance in instances::without_repository(connection)? {
        snapshots::insert(connection, &instance, Generation(0))?;
        keep(connection, &instance)?;
    }
    Ok(())
}

/// Keeps the spec of an instance if it is another one than the newest that is kept; the first one makes
/// the row of its repository as well.
pub(crate) fn keep(connection: &Connection, instance: &InstanceRow) -> Result<(), Refusal> {
    let newest: Option<(i64, Vec<u8>, Vec<u8>)> = connection
        .prepare_cached(
            "SELECT revision, spec, sealed FROM revision WHERE uid = ?1
             ORDER BY revision DESC LIMIT 1",
        )?
        .query_row([&instance.uid], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    if newest.is_none() && snapshots::repository(connection, &instance.uid)?.is_none() {
        snapshots::insert(connection, instance, instance.generation)?;
    }
    let spec = claw_proto::encode(&instance.spec);
    let mut before = 0;
    if let Some((revision, kept, sealed)) = newest {
        if kept == spec && sealed == instance.sealed {
            return Ok(());
        }
        before = u64::try_from(revision).unwrap_or(0);
        connection
            .prepare_cached("UPDATE revision SET until = ?3 WHERE uid = ?1 AND revision = ?2")?
            .execute((&instance.uid, revision, int(instance.generation.0)))?;
    }
    connection
        .prepare_cached(
            "INSERT INTO revision (uid, revision, generation, image, created_ms, spec, sealed)
             VALUES (:uid, :revision, :generation, :image, :created, :spec, :sealed)",
        )?
        .execute(named_params! {
            ":uid": instance.uid,
            ":revision": int(instance.revision),
            ":generation": int(instance.generation.0),
            ":image": instance.spec.image,
            ":created": instance.updated.millis(),
            ":spec": spec,
            ":sealed": instance.sealed,
        })?;
    // Looking for what can go reads every revision of the instance: once in a while is enough.
    if instance.revision / TRIM_EVERY != before / TRIM_EVERY {
        trim(connection, &instance.uid)?;
    }
    Ok(())
}

/// Forgets all but the newest [`KEPT`] and those that a listed snapshot refers to.
fn trim(connection: &Connection, uid: &str) -> Result<(), Refusal> {
    let history = history(connection, uid)?;
    let older = history.0.len().saturating_sub(KEPT);
    if older == 0 {
        return Ok(());
    }
    let listed = snapshots::origins(connection, uid)?;
    let wanted: BTreeSet<u64> =
        listed.iter().filter_map(|(generation, image)| history.at(*generation, image)).collect();
    let mut statement =
        connection.prepare_cached("DELETE FROM revision WHERE uid = ?1 AND revision = ?2")?;
    for span in history.0.iter().take(older).filter(|span| !wanted.contains(&span.revision)) {
        statement.execute((uid, int(span.revision)))?;
    }
    Ok(())
}

/// Forgets every revision of an instance.
pub(crate) fn delete(connection: &Connection, uid: &str) -> Result<(), Refusal> {
    connection.execute("DELETE FROM revision WHERE uid = ?1", [uid])?;
    Ok(())
}

fn from_row(row: &Row<'_>) -> Result<RevisionRow, Refusal> {
    let uid: String = row.get("uid")?;
    let revision = uint(row, "revision")?;
    let spec = claw_proto::decode(&row.get::<_, Vec<u8>>("spec")?)
        .map_err(|source| Fault::Stored { what: format!("revision {revision}"), source })?;
    Ok(RevisionRow {
        uid,
        revision,
        generation: Generation(uint(row, "generation")?),
        created: time(row, "created_ms")?,
        spec,
        sealed: row.get("sealed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History {
        let span = |revision, from, until, image: &str| Span {
            revision,
            from,
            until,
            image: image.to_owned(),
        };
        // 3 was made and replaced within one generation; 4 and 5 are no longer kept.
        History(vec![
            span(1, 2, Some(5), "a:1"),
            span(2, 5, Some(7), "a:1"),
            span(3, 7, Some(7), "a:9"),
            span(6, 20, Some(30), "a:2"),
            span(7, 30, None, "a:3"),
        ])
    }

    #[track_caller]
    fn check(generation: u64, image: &str, expected: Option<u64>) {
        let image = ImageRef::parse(image).unwrap();
        assert_eq!(history().at(Generation(generation), &image), expected);
    }

    #[test]
    fn a_snapshot_belongs_to_the_spec_that_was_in_force() {
        check(1, "a:1", None);
        check(2, "a:1", Some(1));
        check(4, "a:1", Some(1));
        check(5, "a:1", Some(2));
        check(6, "a:1", Some(2));
        check(30, "a:3", Some(7));
        check(99, "a:3", Some(7));
    }

    #[test]
    fn what_is_not_kept_is_not_guessed() {
        check(7, "a:9", None);
        check(19, "a:2", None);
    }

    #[test]
    fn the_image_tells_which_one_was_held_back() {
        check(30, "a:2", Some(6));
        check(35, "a:1", Some(2));
        check(30, "other:1", Some(7));
    }
}
