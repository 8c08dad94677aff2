//! The tables of the fleet database.

use claw_store::Migration;

/// `PRAGMA application_id`: "CLWC".
pub(crate) const APPLICATION_ID: i32 = 0x434c_5743;

/// Every schema version. Times are milliseconds since the Unix epoch; messages are encoded
/// `claw.fleet.v1` messages unless something else is said.
pub(crate) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, sql: FIRST },
    // An encoded claw.node.v1.HostFirewall; NULL for its default.
    Migration { version: 2, sql: "ALTER TABLE host ADD COLUMN firewall BLOB;" },
    Migration { version: 3, sql: SNAPSHOTS },
    Migration { version: 4, sql: OFFSITE },
];

/// `host.offsite` is an encoded claw.node.v1.OffsiteStorage without its keys, `host.offsite_sealed` all of it,
/// sealed; both NULL for none. `migration` has one row per instance, the newest; the columns from `snapshot` to
/// `cleaned` are those of its stage. `departed.generation` is the host's that first confirmed the removal.
const OFFSITE: &str = "
ALTER TABLE host ADD COLUMN offsite BLOB;
ALTER TABLE host ADD COLUMN offsite_sealed BLOB;

CREATE TABLE migration (
    uid TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    origin TEXT NOT NULL,
    stage TEXT NOT NULL,
    snapshot TEXT,
    generation INTEGER,
    restore INTEGER,
    cleaned INTEGER NOT NULL DEFAULT 0,
    problem TEXT NOT NULL DEFAULT '',
    begun_ms INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    failed INTEGER NOT NULL DEFAULT 0,
    tried TEXT NOT NULL DEFAULT '',
    tried_ms INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE INDEX migration_target ON migration (target);

CREATE TABLE departed (
    host TEXT NOT NULL,
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    since_ms INTEGER NOT NULL,
    PRIMARY KEY (host, name)
) STRICT, WITHOUT ROWID;
";

/// `instance.restore` is an encoded claw.node.v1.RestoreOrder, NULL before the first. A revision is in
/// force from `generation` up to but without `until`. `repository.since` is the host's generation that
/// brought the instance; what was kept before is of an earlier one of its name. `repository.report` is an encoded
/// claw.node.v1.BackupReport without its list, `snapshot.listed` an encoded claw.node.v1.SnapshotInfo;
/// all are keyed by the uid of an instance, which they outlive.
const SNAPSHOTS: &str = "
ALTER TABLE instance ADD COLUMN restore BLOB;

CREATE TABLE revision (
    uid TEXT NOT NULL,
    revision INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    until INTEGER,
    image TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    spec BLOB NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (uid, revision)
) STRICT, WITHOUT ROWID;

CREATE TABLE repository (
    uid TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    host TEXT NOT NULL,
    since INTEGER NOT NULL,
    deleted_ms INTEGER,
    report BLOB,
    reported_ms INTEGER,
    digest BLOB,
    escrow BLOB,
    escrow_digest BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX repository_name ON repository (name);

CREATE TABLE snapshot (
    uid TEXT NOT NULL REFERENCES repository (uid),
    name TEXT NOT NULL,
    taken_ms INTEGER NOT NULL,
    listed BLOB,
    forgetting_ms INTEGER,
    problem TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (uid, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX snapshot_time ON snapshot (uid, taken_ms);
";

const FIRST: &str = "
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    starts INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    server_names TEXT NOT NULL,
    request_key BLOB NOT NULL,
    state_format TEXT NOT NULL
) STRICT;

CREATE TABLE host (
    name TEXT PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    message BLOB NOT NULL,
    cordoned INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    joined_ms INTEGER,
    revoked INTEGER NOT NULL DEFAULT 0,
    certificate_expires_ms INTEGER,
    last_seen_ms INTEGER,
    epoch INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    digest BLOB NOT NULL,
    event_stream INTEGER NOT NULL DEFAULT 1,
    next_event INTEGER NOT NULL DEFAULT 1
) STRICT, WITHOUT ROWID;

CREATE TABLE instance (
    name TEXT PRIMARY KEY,
    uid TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL REFERENCES host (name),
    spec BLOB NOT NULL,
    sealed BLOB NOT NULL,
    restarts INTEGER NOT NULL,
    rebuilds INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    deleted_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX instance_host ON instance (host, name);

CREATE TABLE join_token (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL REFERENCES host (name),
    secret_hash BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    used_ms INTEGER,
    used_serial TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX join_token_host ON join_token (host);

CREATE TABLE certificate (
    serial TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    pin BLOB NOT NULL,
    pem TEXT NOT NULL,
    issued_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX certificate_name ON certificate (role, name);

CREATE TABLE denylist (
    serial TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    principal TEXT NOT NULL,
    source TEXT NOT NULL,
    method TEXT NOT NULL,
    resource TEXT NOT NULL,
    summary TEXT NOT NULL
) STRICT;
CREATE INDEX audit_resource ON audit (resource, id);
CREATE TRIGGER audit_is_final BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END;
CREATE TRIGGER audit_is_kept BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'audit entries are append-only'); END;

CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    stream INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    instance TEXT NOT NULL,
    kind TEXT NOT NULL,
    severity INTEGER NOT NULL,
    message TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX event_sequence ON event (host, stream, sequence) WHERE sequence > 0;
CREATE INDEX event_host ON event (host, id);

CREATE TABLE request (
    principal TEXT NOT NULL,
    id TEXT NOT NULL,
    digest BLOB NOT NULL,
    response BLOB NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (principal, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX request_age ON request (at_ms);
";
