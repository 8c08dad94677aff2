//! Anonymous network namespaces: each lives as long as a file descriptor of this process or a
//! process inside it, so that nothing is left when this process dies.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::{self, Launch, command};

/// A network namespace: it lives at least as long as this.
#[derive(Clone, Debug)]
pub struct Netns(Arc<File>);

impl Netns {
    /// A new one, with its loopback up.
    ///
    /// # Errors
    /// Without root.
    pub fn create() -> Result<Self> {
        let file = on_own_thread(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot create a network namespace")?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })??;
        let created = Self(Arc::new(file));
        created.ip("link set lo up\n")?;
        Ok(created)
    }

    /// That of a host's PID 1, of a container, or whatever else a path such as `/proc/PID/ns/net` names.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self(Arc::new(file)))
    }

    /// Moves the calling thread into it, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&*self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// Runs `work` inside, on a thread of its own: sockets made there belong there.
    ///
    /// # Errors
    /// When the thread cannot enter it.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(|| self.enter().map(|()| work()))?
    }

    /// Runs lines of `ip` commands inside; all must succeed.
    ///
    /// # Errors
    /// With what `ip` said.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.batch("ip", lines)
    }

    /// Runs lines of `bridge` commands inside; all must succeed.
    pub(crate) fn bridge(&self, lines: &str) -> Result<()> {
        self.batch("bridge", lines)
    }

    /// A path by which a child of this process, in any namespace, finds this one.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn batch(&self, program: &str, lines: &str) -> Result<()> {
        let mut batch = command(program);
        batch.args(["-batch", "-"]);
        let inside = self.clone();
        let launch = Launch::plain(batch).prepared(move || inside.enter());
        process::checked(launch, lines.as_bytes(), Duration::from_secs(20))
            .with_context(|| format!("in: {lines}"))
            .map(drop)
    }
}

/// Runs `work` on a thread that ends with it, so that the namespaces it joins stay its own.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("lab-namespace".to_owned());
        let joined = thread.spawn_scoped(scope, work)?.join();
        Ok(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
