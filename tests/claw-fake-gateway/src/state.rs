//! The durable state: a version that only moves forward, and rows that tests write and look for again.
//!
//! It lies in `state/` below the state directory, like the real one's databases. A build with a higher
//! version migrates older state when it starts (or in `doctor`), a build with a lower one refuses newer
//! state: rolling back takes the data back, too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::switches::Switches;

/// The longest accepted key and value of a row, in bytes.
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 4096;

/// Why the state cannot be used.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("unable to open the state database in {path}: {source}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "gateway.maintenance_required: state version {found} is newer than this build understands \
        ({supported})"
    )]
    Newer { found: u32, supported: u32 },
    #[error(
        "gateway.maintenance_required: state version {found}, run doctor with version {wanted}"
    )]
    MaintenanceRequired { found: u32, wanted: u32 },
    #[error("migrating the state to version {wanted} failed half way")]
    MigrationFailed { wanted: u32 },
}

/// Why a row was not written.
#[derive(Debug, Error)]
pub(crate) enum RowError {
    #[error("a key is 1 to 64 of A-Z a-z 0-9 . _ -, a value up to 4096 bytes on one line")]
    Form,
    #[error("writing the row: {0}")]
    Write(#[source] io::Error),
}

/// The directory `state/`.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
}

impl State {
    /// Opens or makes it below `state_dir`.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, StateError> {
        let dir = state_dir.join("state");
        match fs::create_dir_all(&dir) {
            Ok(()) => Ok(Self { dir }),
            Err(source) => Err(StateError::Open { path: dir, source }),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The version of the state, if it was ever written.
    pub(crate) fn version(&self) -> Option<u32> {
        fs::read_to_string(self.dir.join("schema")).ok()?.trim().parse().ok()
    }

    /// What the gateway does at start: new state, the same, or a migration unless one needs `doctor`.
    pub(crate) fn prepare(&self, switches: &Switches) -> Result<(), StateError> {
        let wanted = switches.state_version;
        match self.version() {
            Some(found) if found < wanted && switches.needs_doctor => {
                Err(StateError::MaintenanceRequired { found, wanted })
            }
            _ => self.migrate(switches),
        }
    }

    /// Brings the state to the version of this build.
    pub(crate) fn migrate(&self, switches: &Switches) -> Result<(), StateError> {
        let wanted = switches.state_version;
        match self.version() {
            Some(found) if found == wanted => return Ok(()),
            Some(found) if found > wanted => {
                return Err(StateError::Newer { found, supported: wanted });
            }
            Some(_) if switches.migration_fails => {
                self.write_version(wanted)?;
                return Err(StateError::MigrationFailed { wanted });
            }
            _ => {}
        }
        self.write_version(wanted)
    }

    /// Appends a row and returns when it is on the disk.
    pub(crate) fn write_row(&self, key: &str, value: &str) -> Result<(), RowError> {
        let key_fits = (1..=MAX_KEY).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !key_fits || value.len() > MAX_VALUE || value.contains(char::is_control) {
            return Err(RowError::Form);
        }
        let append = || {
            let mut file = OpenOptions::new().create(true).append(true).open(self.rows())?;
            file.write_all(format!("{key}\t{value}\n").as_bytes())?;
            file.sync_all()
        };
        append().map_err(RowError::Write)
    }

    /// The last value written for `key`.
    pub(crate) fn row(&self, key: &str) -> Option<String> {
        let rows = fs::read_to_string(self.rows()).ok()?;
        rows.lines()
            .filter_map(|line| line.split_once('\t'))
            .rfind(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
    }

    /// The keys of all rows in the order in which they were written, a line each.
    pub(crate) fn keys(&self) -> String {
        let rows = fs::read_to_string(self.rows()).unwrap_or_default();
        let keys: Vec<&str> =
            rows.lines().filter_map(|line| Some(line.split_once('\t')?.0)).collect();
        keys.join("\n")
    }

    fn rows(&self) -> PathBuf {
        self.dir.join("rows")
    }

    fn write_version(&self, version: u32) -> Result<(), StateError> {
        write_durably(&self.dir.join("schema"), &version.to_string())
            .map_err(|source| StateError::Open { path: self.dir.clone(), source })
    }
}

/// Replaces the file at `path` by `text`, whole or not at all.
pub(crate) fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(state_version: u32) -> Switches {
        Switches { state_version, ..Switches::default() }
    }

    #[test]
    fn the_version_only_moves_forward() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.prepare(&version(18)).unwrap();
        state.prepare(&version(19)).unwrap();
        assert_eq!(state.version(), Some(19));
        let error = state.prepare(&version(18)).unwrap_err();
        let said = "gateway.maintenance_required: state version 19 is newer than this build \
            understands (18)";
        assert_eq!(error.to_string(), said);
        assert_eq!(state.version(), Some(19));
    }

    #[test]
    fn a_migration_can_need_doctor() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        let careful = Switches { needs_doctor: true, ..version(19) };
        state.prepare(&version(18)).unwrap();
        let refused = state.prepare(&careful);
        assert!(matches!(refused, Err(StateError::MaintenanceRequired { found: 18, wanted: 19 })));
        state.migrate(&careful).unwrap();
        state.prepare(&careful).unwrap();
    }

    #[test]
    fn a_failed_migration_has_touched_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.prepare(&version(18)).unwrap();
        let failing = Switches { migration_fails: true, ..version(19) };
        assert!(matches!(state.migrate(&failing), Err(StateError::MigrationFailed { wanted: 19 })));
        assert!(matches!(state.prepare(&version(18)), Err(StateError::Newer { .. })));
    }

    #[test]
    fn rows_are_found_again_and_bad_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.write_row("a", "1").unwrap();
        state.write_row("b", "x y").unwrap();
        state.write_row("a", "2").unwrap();
        assert_eq!(state.row("a").as_deref(), Some("2"));
        assert_eq!(state.row("b").as_deref(), Some("x y"));
        assert_eq!(state.row("c"), None);
        assert_eq!(state.keys(), "a\nb\na");
        for (key, value) in [("", "x"), ("a\tb", "x"), ("a", "x\ny"), ("ä", "x")] {
            assert!(
                matches!(state.write_row(key, value), Err(RowError::Form)),
                "{key:?} {value:?}"
            );
        }
    }
}
