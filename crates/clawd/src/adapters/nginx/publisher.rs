//! The one task that changes nginx's configuration. Requests that arrive while it works are put
//! together into one test and one reload.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use claw_core::name::InstanceName;
use claw_core::stamp::Digest;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{mpsc, oneshot};

use super::render::{self, Rendered};
use super::{NginxSettings, probe};
use crate::adapters::command::{self, CommandError};
use crate::ports::ProxyError;

/// Deadline of `nginx -t`, which takes 16 ms (measured with 1.22).
const TEST: Duration = Duration::from_secs(20);

/// Deadline of starting nginx.
const START: Duration = Duration::from_secs(60);

/// How long the last reload may take to be seen; see [`super::ATTEMPTS`].
const SETTLED: Duration = Duration::from_millis(200);

/// A reload takes 21 ms (measured with 1.22); past this the cause is looked for.
const RELOAD: Duration = Duration::from_secs(3);

/// Past this a reload whose configuration is good has failed all the same.
const SLOW_RELOAD: Duration = Duration::from_secs(20);

/// A wish for one instance.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) instance: InstanceName,
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<(), Failure>>,
}

/// What should become of an instance's virtual host.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Put(Rendered),
    Remove,
}

impl Change {
    const fn text(&self) -> Option<&String> {
        match self {
            Self::Put(rendered) => Some(&rendered.text),
            Self::Remove => None,
        }
    }

    const fn digest(&self) -> Option<Digest> {
        match self {
            Self::Put(rendered) => Some(rendered.digest),
            Self::Remove => None,
        }
    }
}

/// Why a change was not carried out; shared by all requests that it concerns.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    Write(Arc<io::Error>),
    Refused(String),
    Command(&'static str, Arc<dyn Error + Send + Sync>),
}

/// nginx runs, its configuration is good, and the virtual hosts are not served.
#[derive(Debug, thiserror::Error)]
#[error(
    "it does not serve what lies in {}; hint: is that directory included from /etc/nginx/conf.d/claw.conf, \
     and is its port free?", .hosts.display()
)]
struct NotLoaded {
    hosts: PathBuf,
}

/// The publisher has ended.
#[derive(Debug, thiserror::Error)]
#[error("the publisher has ended")]
struct Stopped;

impl Failure {
    pub(super) fn stopped() -> Self {
        Self::command("changing", Stopped)
    }

    /// The failure as an error about one instance.
    pub(super) fn of(self, instance: &InstanceName) -> ProxyError {
        match self {
            Self::Write(source) => ProxyError::Write {
                instance: instance.clone(),
                source: io::Error::new(source.kind(), source),
            },
            Self::Refused(output) => ProxyError::Refused { output },
            Self::Command(doing, source) => ProxyError::Command { doing, source: Box::new(source) },
        }
    }

    fn command(doing: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Command(doing, Arc::new(source))
    }

    fn write(source: io::Error) -> Self {
        Self::Write(Arc::new(source))
    }
}

/// Files by name: their content, or `None` for absent.
type FileSet = BTreeMap<String, Option<Vec<u8>>>;

/// Changes nginx.
#[derive(Debug)]
pub(super) struct Publisher {
    settings: Arc<NginxSettings>,
}

impl Publisher {
    pub(super) const fn new(settings: Arc<NginxSettings>) -> Self {
        Self { settings }
    }

    /// Works until the last sender is gone.
    pub(super) async fn run(self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.recv().await {
            let mut changes = BTreeMap::new();
            let mut waiting = Vec::new();
            let mut next = Some(first);
            while let Some(request) = next {
                changes.insert(request.instance.clone(), request.change);
                waiting.push((request.instance, request.done));
                next = requests.try_recv().ok();
            }
            let refused = self.carry_out(changes).await;
            for (instance, done) in waiting {
                let outcome = refused.get(&instance).cloned().map_or(Ok(()), Err);
                // Whoever asked may have stopped waiting.
                let _answered = done.send(outcome);
            }
        }
    }

    /// Carries out a batch; returns what failed.
    async fn carry_out(
        &self,
        mut changes: BTreeMap<InstanceName, Change>,
    ) -> BTreeMap<InstanceName, Failure> {
        let mut failed = BTreeMap::new();
        if self.test(&changes).await.is_err() {
            // One bad virtual host must not keep the others back.
            for (instance, change) in std::mem::take(&mut changes) {
                let alone = BTreeMap::from([(instance.clone(), change)]);
                match self.test(&alone).await {
                    Ok(()) => changes.extend(alone),
                    Err(failure) => drop(failed.insert(instance, failure)),
                }
            }
        }
        if !changes.is_empty()
            && let Err(failure) = self.put_in_place(&changes).await
        {
            failed.extend(changes.into_keys().map(|instance| (instance, failure.clone())));
        }
        failed
    }

    /// Lets nginx test the new virtual hosts, apart from everything else.
    async fn test(&self, changes: &BTreeMap<InstanceName, Change>) -> Result<(), Failure> {
        let texts: Vec<(String, String)> = changes
            .iter()
            .filter_map(|(name, change)| Some((render::file_name(name), change.text()?.clone())))
            .chain([(render::DEFAULT_FILE.to_owned(), self.settings.site().default_server())])
            .collect();
        let work = self.settings.work.clone();
        let configuration = work.join("test.conf");
        let written = configuration.clone();
        off_thread(move || write_candidates(&work, &written, &texts)).await?;
        self.nginx_test(&["-c", &configuration.to_string_lossy()]).await
    }

    async fn nginx_test(&self, more: &[&str]) -> Result<(), Failure> {
        let mut argv = vec![self.settings.program.as_str(), "-t", "-q"];
        argv.extend(more);
        match command::run(&argv, TEST).await {
            Ok(_) => Ok(()),
            Err(CommandError::Failed { output, .. }) => Err(Failure::Refused(output)),
            Err(error) => Err(Failure::command("testing the configuration of", error)),
        }
    }

    /// Swaps the files and makes nginx load them; puts the previous ones back on failure.
    async fn put_in_place(&self, changes: &BTreeMap<InstanceName, Change>) -> Result<(), Failure> {
        let mut files: FileSet = changes
            .iter()
            .map(|(name, change)| {
                (render::file_name(name), change.text().map(|t| t.clone().into_bytes()))
            })
            .collect();
        let default = self.settings.site().default_server();
        files.insert(render::DEFAULT_FILE.to_owned(), Some(default.into_bytes()));
        let previous = self.swap(files.clone()).await?;
        if previous == files && self.wait_until_loaded(changes, SETTLED).await {
            return Ok(());
        }
        let only_removals = changes.values().all(|change| change.digest().is_none());
        if only_removals && self.master().is_none() {
            return Ok(());
        }
        let loaded = self.load(changes).await;
        if let Err(Failure::Refused(_)) = loaded {
            self.swap(previous).await?;
            self.reload_or_start().await?;
        }
        loaded
    }

    /// Makes nginx load what is in place and waits until it serves that.
    async fn load(&self, changes: &BTreeMap<InstanceName, Change>) -> Result<(), Failure> {
        let told = self.reload_or_start().await;
        if told.is_ok() && self.wait_until_loaded(changes, RELOAD).await {
            return Ok(());
        }
        // The whole configuration, with the operator's other sites: it says what is wrong.
        self.nginx_test(&[]).await?;
        told?;
        if self.wait_until_loaded(changes, SLOW_RELOAD).await {
            return Ok(());
        }
        let hosts = self.settings.hosts.clone();
        Err(Failure::command("loading the configuration of", NotLoaded { hosts }))
    }

    async fn reload_or_start(&self) -> Result<(), Failure> {
        if let Some(master) = self.master()
            && kill(master, Signal::SIGHUP).is_ok()
        {
            return Ok(());
        }
        let argv: Vec<&str> = self.settings.start.iter().map(String::as_str).collect();
        let started = command::run(&argv, START).await;
        started.map(drop).map_err(|error| Failure::command("starting", error))
    }

    /// nginx's first process, if the pid file names a living nginx.
    fn master(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(&self.settings.pid_file).ok()?;
        let pid: i32 = text.trim().parse().ok().filter(|pid| *pid > 1)?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "nginx").then(|| Pid::from_raw(pid))
    }

    async fn wait_until_loaded(
        &self,
        changes: &BTreeMap<InstanceName, Change>,
        deadline: Duration,
    ) -> bool {
        let polling = async {
            let mut pause = Duration::from_millis(2);
            while !self.is_loaded(changes).await {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
        };
        tokio::time::timeout(deadline, polling).await.is_ok()
    }

    /// Whether nginx answers, and serves exactly these changes.
    async fn is_loaded(&self, changes: &BTreeMap<InstanceName, Change>) -> bool {
        let address = self.settings.probe_address();
        for (instance, change) in changes {
            let name = render::probe_name(instance);
            let loaded = probe::loaded_digest(address, &name).await;
            if !loaded.is_ok_and(|digest| digest == change.digest()) {
                return false;
            }
        }
        true
    }

    /// Puts files in place and returns what was there. All or nothing, as far as the disk lets.
    async fn swap(&self, files: FileSet) -> Result<FileSet, Failure> {
        let hosts = self.settings.hosts.clone();
        off_thread(move || swap(&hosts, &files)).await
    }
}

fn write_candidates(
    work: &Path,
    configuration: &Path,
    texts: &[(String, String)],
) -> io::Result<()> {
    let candidates = work.join("candidates");
    std::fs::remove_dir_all(&candidates).or_else(gone_is_fine)?;
    std::fs::create_dir_all(&candidates)?;
    for (name, text) in texts {
        std::fs::write(candidates.join(name), text)?;
    }
    std::fs::write(configuration, render::test_configuration(work, &candidates))
}

fn swap(hosts: &Path, files: &FileSet) -> io::Result<FileSet> {
    std::fs::create_dir_all(hosts)?;
    let mut previous = FileSet::new();
    for (name, content) in files {
        let path = hosts.join(name);
        let swapped = current(&path).and_then(|found| {
            if found != *content {
                replace(&path, content.as_deref())?;
            }
            Ok(found)
        });
        match swapped {
            Ok(found) => drop(previous.insert(name.clone(), found)),
            Err(error) => {
                for (name, content) in &previous {
                    let _best_effort = replace(&hosts.join(name), content.as_deref());
                }
                return Err(error);
            }
        }
    }
    std::fs::File::open(hosts)?.sync_all()?;
    Ok(previous)
}

fn current(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn replace(path: &Path, content: Option<&[u8]>) -> io::Result<()> {
    let Some(content) = content else {
        return std::fs::remove_file(path).or_else(gone_is_fine);
    };
    // nginx includes *.conf only.
    let unfinished = path.with_extension("unfinished");
    let mut file = std::fs::File::create(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)
}

fn gone_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Runs blocking work on a thread for such work.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(io::Error::other).and_then(|result| result).map_err(Failure::write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapping_is_undone_by_swapping_back() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("claw.d");
        let set = |entries: &[(&str, Option<&str>)]| -> FileSet {
            let content = |text: &&str| text.as_bytes().to_vec();
            entries.iter().map(|(n, text)| ((*n).to_owned(), text.as_ref().map(content))).collect()
        };
        let first = set(&[("a.conf", Some("1")), ("b.conf", Some("2")), ("c.conf", None)]);
        let nothing = swap(&hosts, &first).unwrap();
        assert_eq!(nothing, set(&[("a.conf", None), ("b.conf", None), ("c.conf", None)]));
        let second = set(&[("a.conf", None), ("b.conf", Some("3"))]);
        let previous = swap(&hosts, &second).unwrap();
        assert_eq!(previous, set(&[("a.conf", Some("1")), ("b.conf", Some("2"))]));
        assert_eq!(swap(&hosts, &previous).unwrap(), second);
        let names: Vec<_> =
            std::fs::read_dir(&hosts).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_swap_that_fails_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b.conf")).unwrap();
        let files = FileSet::from([
            ("a.conf".to_owned(), Some(b"1".to_vec())),
            ("b.conf".to_owned(), Some(b"2".to_vec())),
        ]);
        assert!(swap(dir.path(), &files).is_err());
        assert!(!dir.path().join("a.conf").exists());
    }
}
