//! Variables and paths.
//!
//! As in OpenClaw, the process environment wins over the `.env` file of the state directory, and the
//! state directory is `$OPENCLAW_STATE_DIR`, else `.openclaw` in the home directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the real image has its home directory; used when the environment names none or the root,
/// which is what Docker gives a user that an empty image does not know.
const HOME: &str = "/home/node";

/// The variables that count, and the paths that follow from them.
pub(crate) struct Environment {
    variables: BTreeMap<String, String>,
    state_dir: PathBuf,
}

impl Environment {
    /// Reads the process environment and the `.env` file, once.
    pub(crate) fn read() -> Self {
        let process = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::with_process(process)
    }

    fn with_process(process: BTreeMap<String, String>) -> Self {
        let set = |name: &str| process.get(name).filter(|value| !value.is_empty());
        let state_dir = set("OPENCLAW_STATE_DIR").map_or_else(
            || {
                let home = set("HOME").map_or(HOME, String::as_str);
                Path::new(if home == "/" { HOME } else { home }).join(".openclaw")
            },
            PathBuf::from,
        );
        let file = fs::read_to_string(state_dir.join(".env")).unwrap_or_default();
        let mut variables = openclaw::env_file::parse(&file);
        variables.extend(process);
        Self { variables, state_dir }
    }

    /// A variable that is set and not empty.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The variables whose name starts with `prefix`, without it.
    pub(crate) fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value.as_str())))
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The configuration file.
    pub(crate) fn config_path(&self) -> PathBuf {
        self.variable("OPENCLAW_CONFIG_PATH")
            .map_or_else(|| self.state_dir.join("openclaw.json"), PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Environment {
        let process = pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Environment::with_process(process)
    }

    #[test]
    fn paths_follow_from_the_variables() {
        assert_eq!(with(&[]).state_dir(), Path::new("/home/node/.openclaw"));
        assert_eq!(with(&[("HOME", "/")]).state_dir(), Path::new("/home/node/.openclaw"));
        let moved = with(&[("HOME", "/h"), ("OPENCLAW_STATE_DIR", "/s")]);
        assert_eq!(moved.config_path(), Path::new("/s/openclaw.json"));
        let config = with(&[("HOME", "/h"), ("OPENCLAW_CONFIG_PATH", "/c.json")]);
        assert_eq!(config.state_dir(), Path::new("/h/.openclaw"));
        assert_eq!(config.config_path(), Path::new("/c.json"));
    }

    #[test]
    fn the_process_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".env"), "A='file'\nB='file'\nC=''\n").unwrap();
        let state = dir.path().to_str().unwrap();
        let environment = with(&[("OPENCLAW_STATE_DIR", state), ("A", "process")]);
        assert_eq!(environment.variable("A"), Some("process"));
        assert_eq!(environment.variable("B"), Some("file"));
        assert_eq!(environment.variable("C"), None);
    }
}
