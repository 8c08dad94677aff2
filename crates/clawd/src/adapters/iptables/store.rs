//! What survives the process: last good rules, what the watchdog restores, and who may change them.
//!
//! Everything lies in two directories. In the data directory (`/var/lib/clawd/firewall`):
//!
//! | name | holds | changes by |
//! | --- | --- | --- |
//! | `good/` | rules that were proven: what a boot restores | one exchange of directories |
//! | `pending/` | what was in force before unproven rules, and until when the watchdog waits | one rename |
//! | `lock` | nothing; whoever changes rules or the two above holds it (flock(2)) | – |
//!
//! In the runtime directory (`/run/clawd/firewall`): `candidate/`, rules to be tried, and why they were
//! refused. A set of rules is three files: `sets`, `rules.v4`, `rules.v6`, as `ipset save` and
//! `iptables-save` print them, ours only.
//!
//! A power cut or a kill between any two steps leaves one of these states, and each has one meaning:
//!
//! | killed after | `pending/` | `good/` | in force | then |
//! | --- | --- | --- | --- | --- |
//! | – | absent | A | A | nothing to do |
//! | `pending.new/` was written | absent | A | A | the remains are removed by the next arming |
//! | it became `pending/` | A | A | A | watchdog, or the next agent: A is restored (it is there), `pending/` goes |
//! | the watchdog was started, rules of B were applied in part or whole | A | A | A, B or both | the same |
//! | `good.new/` was written | A | A | B | the same |
//! | it was exchanged with `good/` | A | B | B | A is restored, then made good again, then `pending/` goes |
//! | `pending/` became `pending.done/` | absent | B | B | the remains are removed by the next arming |
//!
//! A boot restores `good/` and drops `pending/`: there is nothing in force to put back, and what is good
//! was either proven or is what was in force before. What this deliberately does not do: run programs.
//! Blocking; callers keep it off the agent's thread.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::firewall::Ruleset;
use claw_core::firewall::saved::{Saved, SavedSets, ruleset};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::ports::FirewallError;

const SETS: &str = "sets";
const RULES: [&str; 2] = ["rules.v4", "rules.v6"];
const UNTIL: &str = "until";
const REFUSAL: &str = "refusal";
/// Between two attempts to get the lock.
const LOCK_RETRY: Duration = Duration::from_millis(10);
/// Characters of a refusal that are kept (contract of [`FirewallError::Invalid`]).
const MAX_REFUSAL: usize = 2000;

/// The two directories.
#[derive(Debug, Clone)]
pub(super) struct Store {
    data: PathBuf,
    run: PathBuf,
}

/// Whoever holds it may change rules. Let go of by dropping it, or by dying.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

/// What the watchdog restores.
#[derive(Debug)]
pub(super) struct Pending {
    /// Rules in force before.
    pub(super) before: Ruleset,
    /// When its patience ends, in milliseconds since the boot.
    pub(super) until: u64,
}

impl Store {
    pub(super) const fn new(data: PathBuf, run: PathBuf) -> Self {
        Self { data, run }
    }

    /// Waits for the lock; at most so long. Cancel-safe.
    pub(super) async fn lock(&self, patience: Duration) -> Result<Lock, FirewallError> {
        let path = self.data.join("lock");
        make_dir(&self.data)?;
        let file = File::create(&path).map_err(store("opening", &path))?;
        let attempts = async {
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(()),
                    Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_RETRY).await,
                    Err(TryLockError::Error(error)) => return Err(error),
                }
            }
        };
        let locked = tokio::time::timeout(patience, attempts).await;
        let late = |_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut));
        locked.unwrap_or_else(late).map_err(store("waiting for the lock", &path))?;
        Ok(Lock(file))
    }

    /// The last good rules; `None` when there never were any, or when "none" was put back.
    pub(super) fn good(&self) -> Result<Option<Ruleset>, FirewallError> {
        let good = read_ruleset(&self.data.join("good"))?;
        Ok(good.filter(|rules| rules.families.iter().any(|family| !family.tables.is_empty())))
    }

    /// Makes rules the last good ones, durably, all at once.
    pub(super) fn set_good(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        let (good, next) = (self.data.join("good"), self.data.join("good.new"));
        remove(&next)?;
        write_ruleset(&next, rules)?;
        if good.exists() {
            let exchanged =
                renameat2(AT_FDCWD, &next, AT_FDCWD, &good, RenameFlags::RENAME_EXCHANGE);
            exchanged.map_err(|errno| store("replacing", &good)(errno.into()))?;
        } else {
            fs::rename(&next, &good).map_err(store("making", &good))?;
        }
        sync_dir(&self.data)?;
        remove(&next)
    }

    /// What the watchdog restores; `None` when nothing is armed.
    pub(super) fn pending(&self) -> Result<Option<Pending>, FirewallError> {
        let directory = self.pending_dir();
        let Some(before) = read_ruleset(&directory)? else { return Ok(None) };
        let path = directory.join(UNTIL);
        let text = fs::read_to_string(&path).map_err(store("reading", &path))?;
        let until = text.trim().parse().map_err(|error| damaged(&path, error))?;
        Ok(Some(Pending { before, until }))
    }

    /// Whether something is armed.
    pub(super) fn is_pending(&self) -> bool {
        self.pending_dir().exists()
    }

    /// Writes down what to restore and until when to wait. What is armed already stays what is
    /// restored: what came after it was never proven.
    pub(super) fn arm(&self, before: &Ruleset, until: u64) -> Result<(), FirewallError> {
        let (pending, next) = (self.pending_dir(), self.data.join("pending.new"));
        remove(&next)?;
        remove(&self.data.join("pending.done"))?;
        if pending.exists() {
            return self.wait_until(until);
        }
        write_ruleset(&next, before)?;
        write_durably(&next.join(UNTIL), until.to_string().as_bytes())?;
        sync_dir(&next)?;
        fs::rename(&next, &pending).map_err(store("making", &pending))?;
        sync_dir(&self.data)
    }

    fn wait_until(&self, until: u64) -> Result<(), FirewallError> {
        let directory = self.pending_dir();
        let (path, next) = (directory.join(UNTIL), directory.join("until.new"));
        write_durably(&next, until.to_string().as_bytes())?;
        fs::rename(&next, &path).map_err(store("replacing", &path))?;
        sync_dir(&directory)
    }

    /// Nothing is to be restored any more. Doing it twice does no harm.
    pub(super) fn disarm(&self) -> Result<(), FirewallError> {
        let (pending, done) = (self.pending_dir(), self.data.join("pending.done"));
        remove(&done)?;
        match fs::rename(&pending, &done) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(store("removing", &pending)(error)),
        }
        sync_dir(&self.data)?;
        remove(&done)
    }

    /// Where what is armed lies, for errors.
    pub(super) fn pending_dir(&self) -> PathBuf {
        self.data.join("pending")
    }

    /// Writes rules that are to be tried.
    pub(super) fn propose(&self, rules: &Ruleset) -> Result<(), FirewallError> {
        remove(&self.candidate_dir())?;
        write_ruleset(&self.candidate_dir(), rules)
    }

    /// Rules that are to be tried; `None` when there are none.
    pub(super) fn candidate(&self) -> Result<Option<Ruleset>, FirewallError> {
        read_ruleset(&self.candidate_dir())
    }

    /// Writes down why they were refused.
    pub(super) fn refuse(&self, why: &str) -> Result<(), FirewallError> {
        let path = self.candidate_dir().join(REFUSAL);
        let why: String = why.chars().take(MAX_REFUSAL).collect();
        fs::write(&path, why).map_err(store("writing", &path))
    }

    /// Why they were refused; `None` when they were not.
    pub(super) fn refusal(&self) -> Option<String> {
        fs::read_to_string(self.candidate_dir().join(REFUSAL)).ok()
    }

    /// Where rules that are to be tried lie.
    pub(super) fn candidate_dir(&self) -> PathBuf {
        self.run.join("candidate")
    }
}

/// An error of this module with what was being done.
pub(super) fn store(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FirewallError {
    move |source| FirewallError::Store { doing, path: path.to_owned(), source }
}

fn damaged(
    path: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> FirewallError {
    store("understanding", path)(io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Rules from a directory; `None` when it does not exist.
fn read_ruleset(directory: &Path) -> Result<Option<Ruleset>, FirewallError> {
    if !directory.exists() {
        return Ok(None);
    }
    let read = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).map_err(store("reading", &path))
    };
    let [v4, v6] = RULES;
    let rules = |name: &str| {
        Saved::parse(&read(name)?).map_err(|error| damaged(&directory.join(name), error))
    };
    let (v4, v6) = (rules(v4)?, rules(v6)?);
    let sets = SavedSets::parse(&read(SETS)?);
    let sets = sets.map_err(|error| damaged(&directory.join(SETS), error))?;
    Ok(Some(ruleset(&v4, &v6, &sets)))
}

/// Writes rules into a directory that does not exist yet, durably.
fn write_ruleset(directory: &Path, rules: &Ruleset) -> Result<(), FirewallError> {
    make_dir(directory)?;
    write_durably(&directory.join(SETS), rules.sets_record_text().as_bytes())?;
    for (name, family) in RULES.into_iter().zip(&rules.families) {
        write_durably(&directory.join(name), family.record_text().as_bytes())?;
    }
    sync_dir(directory)
}

fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), FirewallError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(store("writing", path))
}

fn sync_dir(path: &Path) -> Result<(), FirewallError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(store("syncing", path))
}

fn make_dir(path: &Path) -> Result<(), FirewallError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(store("making", path))
}

/// Removes a directory with what is in it; gone is success.
fn remove(path: &Path) -> Result<(), FirewallError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(store("removing", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use claw_core::firewall::{Chain, Family, FamilyRules, Table, TableRules};

    use super::*;

    const SOON: Duration = Duration::from_millis(30);

    fn rules(rule: &str) -> Ruleset {
        let chains = vec![Chain { name: "CLAW-IN".to_owned(), rules: vec![rule.to_owned()] }];
        let table = TableRules { table: Table::Filter, chains, hooks: Vec::new() };
        let families =
            Family::BOTH.map(|family| FamilyRules { family, tables: vec![table.clone()] });
        Ruleset { sets: Vec::new(), families }
    }

    fn at(dir: &Path) -> Store {
        Store::new(dir.join("data"), dir.join("run"))
    }

    #[track_caller]
    fn check(store: &Store, good: Option<&str>, pending: Option<(&str, u64)>) {
        assert_eq!(store.good().unwrap(), good.map(rules));
        let found = store.pending().unwrap().map(|pending| (pending.before, pending.until));
        assert_eq!(found, pending.map(|(before, until)| (rules(before), until)));
        assert_eq!(store.is_pending(), pending.is_some());
    }

    #[tokio::test]
    async fn rules_are_armed_and_proven() {
        let dir = tempfile::tempdir().unwrap();
        let store = at(dir.path());
        let lock = store.lock(SOON).await.unwrap();
        check(&store, None, None);
        store.arm(&rules("-j A"), 5).unwrap();
        check(&store, None, Some(("-j A", 5)));
        store.arm(&rules("-j B"), 7).unwrap();
        check(&store, None, Some(("-j A", 7)));
        store.set_good(&rules("-j B")).unwrap();
        check(&store, Some("-j B"), Some(("-j A", 7)));
        store.disarm().unwrap();
        store.disarm().unwrap();
        check(&store, Some("-j B"), None);
        store.set_good(&rules("-j C")).unwrap();
        check(&store, Some("-j C"), None);
        let late = at(dir.path()).lock(SOON).await;
        assert!(matches!(late, Err(FirewallError::Store { .. })), "{late:?}");
        drop(lock);
        at(dir.path()).lock(SOON).await.unwrap();
    }

    #[test]
    fn what_a_kill_leaves_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let store = at(dir.path());
        for remains in ["pending.new", "pending.done", "good.new"] {
            let remains = dir.path().join("data").join(remains);
            write_ruleset(&remains, &rules("-j OLD")).unwrap();
            fs::write(remains.join("part"), "of something").unwrap();
        }
        check(&store, None, None);
        store.arm(&rules("-j A"), 5).unwrap();
        store.set_good(&rules("-j B")).unwrap();
        check(&store, Some("-j B"), Some(("-j A", 5)));
        store.disarm().unwrap();
        let left = fs::read_dir(dir.path().join("data")).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["good"]);
    }

    #[test]
    fn rules_that_were_put_back_to_none_are_not_good_ones() {
        let dir = tempfile::tempdir().unwrap();
        let store = at(dir.path());
        let families = Family::BOTH.map(|family| FamilyRules { family, tables: Vec::new() });
        store.set_good(&Ruleset { sets: Vec::new(), families }).unwrap();
        check(&store, None, None);
    }

    #[test]
    fn a_candidate_is_refused_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let store = at(dir.path());
        assert_eq!(store.candidate().unwrap(), None);
        store.propose(&rules("-j A")).unwrap();
        assert_eq!((store.candidate().unwrap(), store.refusal()), (Some(rules("-j A")), None));
        store.refuse(&"no ".repeat(2000)).unwrap();
        assert_eq!(store.refusal().map(|why| why.len()), Some(MAX_REFUSAL));
        store.propose(&rules("-j B")).unwrap();
        assert_eq!(store.refusal(), None);
    }

    #[test]
    fn damaged_rules_are_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = at(dir.path());
        store.set_good(&rules("-j A")).unwrap();
        for (name, text) in [("rules.v4", "*filter\n"), ("sets", "nonsense"), ("rules.v6", "x")] {
            let path = dir.path().join("data/good").join(name);
            let whole = fs::read(&path).unwrap();
            fs::write(&path, text).unwrap();
            let error = store.good().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            fs::write(&path, whole).unwrap();
        }
        fs::remove_file(dir.path().join("data/good/sets")).unwrap();
        assert!(store.good().is_err());
    }
}
