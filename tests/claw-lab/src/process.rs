//! Processes that the lab starts: each dies with the process that started it.
//!
//! The kernel sends a parent-death signal when the *thread* that forked ends, so every process here
//! has a thread of its own that prepares it (joins namespaces), forks it, and then does nothing but
//! wait for its end. It deliberately does not restart anything.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// A command of the machine, to hand to [`Lab::spawn`](crate::Lab::spawn). It is also looked for
/// where Debian keeps the programs for root, which not every root has on its path.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the lab's one way to commands")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Ok(path) = std::env::join_paths(search_path()) {
        command.env("PATH", path);
    }
    command
}

/// Where programs are looked for.
pub(crate) fn search_path() -> Vec<PathBuf> {
    let own = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&own).chain(system).collect()
}

/// A running process. Dropping it kills it (SIGKILL).
#[derive(Debug)]
pub struct Process {
    state: Arc<State>,
    log: PathBuf,
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + signal when a signal ended it.
    pub status: i32,
    /// Standard output, lossy UTF-8.
    pub stdout: String,
    /// Standard error, lossy UTF-8.
    pub stderr: String,
}

/// How a process is to be started, beyond what a `Command` says.
pub(crate) struct Launch {
    pub(crate) command: Command,
    /// Runs first, on the thread that will fork: joins namespaces.
    pub(crate) prepare: Box<dyn FnOnce() -> Result<()> + Send>,
    /// Runs in the child before exec: async-signal-safe system calls only.
    pub(crate) in_child: Box<dyn FnMut() -> io::Result<()> + Send + Sync>,
    pub(crate) log: PathBuf,
}

#[derive(Debug)]
struct State {
    pid: i32,
    ended: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Process {
    /// Its process id on the machine.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.state.pid
    }

    /// The file that its stdout and stderr go to.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far (lossy UTF-8).
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state.lock().is_none()
    }

    /// Sends a signal by number (1 to 31), such as 15; nothing happens when it has ended.
    ///
    /// # Errors
    /// When there is no such signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        let signal = Signal::try_from(signal)?;
        // It is reaped under this lock, so the id cannot be another process's by now.
        let ended = self.state.lock();
        if ended.is_none() {
            kill(Pid::from_raw(self.state.pid), signal)?;
        }
        Ok(())
    }

    /// SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// When it has not ended after ten seconds.
    pub fn kill(&self) -> Result<ExitStatus> {
        self.signal(9)?;
        self.wait(Duration::from_secs(10))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the deadline passes first; the process goes on.
    pub fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let guard = self.state.lock();
        let (ended, _) = self
            .state
            .changed
            .wait_timeout_while(guard, deadline, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        ended.with_context(|| format!("process {} still runs after {deadline:?}", self.state.pid))
    }

    /// Runs `work` with its process id while it surely is that process; `None` when it has ended.
    pub(crate) fn with_pid<T>(&self, work: impl FnOnce(i32) -> T) -> Option<T> {
        let ended = self.state.lock();
        ended.is_none().then(|| work(self.state.pid))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The thread reaps it; there is nobody to tell of a failure.
        let _ = self.kill();
    }
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

impl Launch {
    /// A launch that needs no preparation.
    pub(crate) fn plain(command: Command) -> Self {
        Self {
            command,
            prepare: Box::new(|| Ok(())),
            in_child: Box::new(|| Ok(())),
            log: PathBuf::new(),
        }
    }

    pub(crate) fn prepared(
        mut self,
        prepare: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Self {
        self.prepare = Box::new(prepare);
        self
    }

    /// Gives it a process namespace of its own, so that its children die with it, and a mount
    /// namespace, so that nothing it mounts is seen elsewhere.
    pub(crate) fn contained(self) -> Self {
        self.prepared(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
                .context("cannot create namespaces")?;
            private_mounts()
        })
    }

    /// Sends stdout and stderr to the end of a file.
    pub(crate) fn logging_to(mut self, log: PathBuf) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        self.command.stdout(file.try_clone()?).stderr(file);
        self.log = log;
        Ok(self)
    }

    /// Starts it.
    pub(crate) fn spawn(self) -> Result<Process> {
        let log = self.log.clone();
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::Builder::new()
            .name("lab-process".to_owned())
            .stack_size(512 << 10)
            .spawn(move || self.own(&sender))?;
        let state = receiver.recv().context("the launching thread died")??;
        Ok(Process { state, log })
    }

    /// Runs it to its end; at the deadline its process group is killed. Output goes through memory
    /// files, so that a daemon it leaves behind cannot hold the caller up.
    pub(crate) fn run(mut self, stdin: Stdio, deadline: Duration) -> Result<Output> {
        let what = describe(&self.command);
        let (mut stdout, mut stderr) = (memory_file()?, memory_file()?);
        self.command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let process = self.spawn().with_context(|| format!("cannot run {what}"))?;
        let status = match process.wait(deadline) {
            Ok(status) => Some(status),
            Err(_) => {
                process.with_pid(|pid| kill(Pid::from_raw(-pid), Signal::SIGKILL)).transpose()?;
                None
            }
        };
        let (stdout, stderr) = (drain(&mut stdout)?, drain(&mut stderr)?);
        let Some(status) = status else {
            bail!("{what} was killed after {deadline:?}\n{stdout}{stderr}");
        };
        let status = status.code().or_else(|| status.signal().map(|number| 128 + number));
        Ok(Output { status: status.unwrap_or(-1), stdout, stderr })
    }

    /// The life of the launching thread.
    fn own(self, sender: &mpsc::SyncSender<Result<Arc<State>>>) {
        let (child, state) = match self.start() {
            Ok(started) => started,
            Err(error) => return drop(sender.send(Err(error))),
        };
        if sender.send(Ok(Arc::clone(&state))).is_ok() {
            state.reap(child);
        }
    }

    fn start(self) -> Result<(Child, Arc<State>)> {
        let Self { mut command, prepare, mut in_child, .. } = self;
        prepare()?;
        // A Ctrl-C at the terminal is for us; we then end it in order.
        command.process_group(0);
        before_exec(&mut command, move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            in_child()
        });
        let child =
            command.spawn().with_context(|| format!("cannot start {}", describe(&command)))?;
        let pid = i32::try_from(child.id())?;
        let state = State { pid, ended: Mutex::new(None), changed: Condvar::new() };
        Ok((child, Arc::new(state)))
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end without reaping, then reaps under the lock that senders of signals hold.
    fn reap(&self, mut child: Child) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(Pid::from_raw(self.pid)), flags) == Err(nix::Error::EINTR) {}
        let mut ended = self.lock();
        *ended = Some(child.wait().unwrap_or_else(|_| ExitStatus::from_raw(-1)));
        self.changed.notify_all();
    }
}

/// Keeps the mounts of the calling thread's mount namespace, which must be its own, to itself.
pub(crate) fn private_mounts() -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("cannot make mounts private")
}

/// Runs a command of the machine that must succeed; returns its stdout.
pub(crate) fn run(command: Command, deadline: Duration) -> Result<String> {
    checked(Launch::plain(command), &[], deadline)
}

/// Runs a prepared command that must succeed, with `input` on stdin; returns its stdout.
pub(crate) fn checked(launch: Launch, input: &[u8], deadline: Duration) -> Result<String> {
    let what = describe(&launch.command);
    let output = launch.run(stdin_of(input)?, deadline)?;
    if !output.success() {
        bail!("{what} exited with {}\n{}{}", output.status, output.stdout, output.stderr);
    }
    Ok(output.stdout)
}

/// Stdin that yields these bytes.
pub(crate) fn stdin_of(input: &[u8]) -> Result<Stdio> {
    if input.is_empty() {
        return Ok(Stdio::null());
    }
    let mut file = memory_file()?;
    file.write_all(input)?;
    file.rewind()?;
    Ok(file.into())
}

/// The content of a file that may be absent, as text.
pub(crate) fn read_lossy(path: &Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Program and arguments as one would type them.
pub(crate) fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

fn memory_file() -> Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    Ok(File::from(memfd_create(c"lab", MFdFlags::MFD_CLOEXEC)?))
}

fn drain(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[expect(unsafe_code, reason = "the parent-death signal and cgroups can only be set in the child")]
fn before_exec(
    command: &mut Command,
    work: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: `work` is system calls only, on memory prepared before the fork.
    unsafe { command.pre_exec(work) };
}
