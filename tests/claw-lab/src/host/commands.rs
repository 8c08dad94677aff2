//! Commands and files on a host, as root, from outside.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::LabHost;
use crate::deadline::Deadline;
use crate::process::{Launch, Output, Process, stdin_of};

/// How long an ordinary command may take.
const ORDINARY: Duration = Duration::from_secs(60);
/// How long the installation of packages may take, their maintainer scripts included.
const INSTALLATION: Duration = Duration::from_secs(300);
/// Keeps changed configuration files, as apt must without a terminal; gives up on the network at once.
pub(crate) const APT_INSTALL: [&str; 9] = [
    "apt-get",
    "install",
    "--yes",
    "--allow-downgrades",
    "--reinstall",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    "Acquire::Retries=0",
];
/// Where packages to install are put; a tmpfs.
const PACKAGES: &str = "/run/lab-packages";

impl LabHost {
    /// Runs a command as root on the host and waits for its end, 60 s at most.
    ///
    /// # Errors
    /// When the host is off, the program is not there, or the deadline passes (it is then killed).
    /// An exit status other than 0 is no error.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        self.exec_with(argv, &[], ORDINARY)
    }

    /// Like [`exec`](Self::exec) with bytes for stdin and a deadline.
    ///
    /// # Errors
    /// As for `exec`.
    pub fn exec_with(&self, argv: &[&str], stdin: &[u8], deadline: Duration) -> Result<Output> {
        self.exec_from(argv, stdin_of(stdin)?, deadline)
    }

    /// Runs a command that must succeed and returns its stdout without trailing white space.
    ///
    /// # Errors
    /// As for `exec`, and when it exits with another status than 0; the error then shows its output.
    pub fn exec_ok(&self, argv: &[&str]) -> Result<String> {
        self.ok(argv, self.exec(argv)?)
    }

    /// Starts a command as root on the host without waiting for it; output goes to a log file.
    /// Dropping the process kills it.
    ///
    /// # Errors
    /// When the host is off or the program is not there.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        let mut launch = self.launch(argv)?;
        launch.command.stdin(Stdio::null());
        let free = (0..).map(|n: u32| self.dir.join(format!("spawned.{n}.log")));
        let log = free.into_iter().find(|path| !path.exists()).unwrap_or_default();
        launch.logging_to(log)?.spawn()
    }

    /// Writes a file (absolute path), creating its directory; `mode` as in chmod, owner root.
    ///
    /// # Errors
    /// When the host is off or the file cannot be written.
    pub fn write_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.put(path, mode, content)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When the host is off or the file cannot be read.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        self.within(|| fs::read(path))?.with_context(|| self.about("cannot read", path))
    }

    /// Copies a file of the machine to a path of the host, its mode kept.
    ///
    /// # Errors
    /// When the host is off, or reading or writing fails.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        let file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
        let mode = file.metadata()?.permissions().mode() & 0o7777;
        self.put(to, mode, file)
    }

    /// Installs Debian packages (files of the machine) as a user would: `apt-get install ./x.deb`,
    /// offline.
    ///
    /// # Errors
    /// When a dependency is not in the base system or a maintainer script fails.
    pub fn install_deb(&self, packages: &[PathBuf]) -> Result<()> {
        let mut argv: Vec<String> = APT_INSTALL.map(str::to_owned).to_vec();
        for package in packages {
            let name = package.file_name().unwrap_or_default().to_string_lossy();
            let inside = format!("{PACKAGES}/{name}");
            self.copy_in(package, &inside)?;
            argv.push(inside);
        }
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        self.ok(&argv, self.exec_with(&argv, &[], INSTALLATION)?).map(drop)
    }

    /// Waits until a unit is active.
    ///
    /// # Errors
    /// When the deadline passes or the host stops; shows the unit's state and journal.
    pub fn wait_until_active(&self, unit: &str, deadline: Duration) -> Result<()> {
        let deadline = Deadline::after(deadline);
        // systemd answers root here as soon as its first transaction is queued.
        deadline.poll(Duration::from_millis(20), || {
            let up = self.within(|| Path::new("/run/systemd/private").exists());
            up.unwrap_or(true)
        });
        self.running().with_context(|| self.console())?;
        // Ordered after the unit, this ends when the unit's job ends, and starts nothing itself.
        if let Some(left) = deadline.left() {
            let after = format!("After={unit}");
            let argv =
                ["systemd-run", "--quiet", "--collect", "-p", "Type=oneshot", "-p", &after, "true"];
            let _ = self.exec_with(&argv, &[], left);
        }
        let active = deadline.poll(Duration::from_millis(100), || {
            self.exec(&["systemctl", "is-active", "--quiet", unit]).is_ok_and(|out| out.success())
        });
        if active {
            return Ok(());
        }
        self.running()?;
        let status = self.exec(&["systemctl", "status", "--no-pager", "--full", unit])?;
        let jobs = self.exec(&["systemctl", "list-jobs", "--no-pager"])?;
        bail!(
            "{unit} on {} is not active after {:.1} s\n{}\n{}\n{}",
            self.name(),
            deadline.elapsed().as_secs_f32(),
            status.stdout,
            jobs.stdout,
            self.journal(unit)?
        )
    }

    /// The journal of a unit, this boot only.
    ///
    /// # Errors
    /// When the host is off.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.exec_ok(&["journalctl", "--no-pager", "-b", "-o", "short-precise", "-u", unit])
    }

    /// Runs a command with a stream for stdin.
    pub(crate) fn exec_from(
        &self,
        argv: &[&str],
        stdin: Stdio,
        deadline: Duration,
    ) -> Result<Output> {
        self.launch(argv)?.run(stdin, deadline).with_context(|| format!("on host {}", self.name()))
    }

    fn launch(&self, argv: &[&str]) -> Result<Launch> {
        let running = self.running()?;
        self.guest(&running)?.launch(argv, running.subtree.outside()?)
    }

    /// Runs `work` with the host's files in view.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let running = self.running()?;
        self.guest(&running)?.within(work)
    }

    fn put(&self, path: &str, mode: u32, mut content: impl io::Read + Send) -> Result<()> {
        let write = || -> io::Result<()> {
            if let Some(dir) = Path::new(path).parent() {
                fs::create_dir_all(dir)?;
            }
            let mut options = File::options();
            let mut file = options.create(true).truncate(true).write(true).mode(mode).open(path)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            io::copy(&mut content, &mut file).map(drop)
        };
        self.within(write)?.with_context(|| self.about("cannot write", path))
    }

    fn ok(&self, argv: &[&str], output: Output) -> Result<String> {
        if !output.success() {
            let what = self.about(&argv.join(" "), "");
            bail!("{what} exited with {}\n{}{}", output.status, output.stdout, output.stderr);
        }
        Ok(output.stdout.trim_end().to_owned())
    }

    fn about(&self, what: &str, path: &str) -> String {
        format!("{what} {path} on host {}", self.name())
    }
}
