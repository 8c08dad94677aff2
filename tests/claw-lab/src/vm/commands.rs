//! Commands and files on a machine, as root. The same words as on a [`LabHost`](crate::LabHost), with
//! more patience.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::ssh::{self, line};
use super::{PAUSE, Vm};
use crate::Image;
use crate::deadline::Deadline;
use crate::host::APT_INSTALL;
use crate::process::{Output, stdin_of};

/// How long an ordinary command may take.
const ORDINARY: Duration = Duration::from_secs(120);
/// How long the installation of packages or the loading of an image may take.
const INSTALLATION: Duration = Duration::from_secs(400);
/// What a command finds in its environment.
const ENVIRONMENT: [&str; 7] = [
    "env",
    "--ignore-environment",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "TERM=dumb",
    "DEBIAN_FRONTEND=noninteractive",
];
/// What timeout(1) exits with when it had to end the command.
const TIMED_OUT: i32 = 124;
/// Added to a deadline, so that the command is ended on the machine before ssh is here.
const MARGIN: Duration = Duration::from_secs(15);
/// Where packages to install are put; a tmpfs.
const PACKAGES: &str = "/run/lab-packages";

impl Vm {
    /// Runs a command as root and waits for its end, two minutes at most.
    ///
    /// # Errors
    /// When the machine is off, the connection breaks (a command that exits with 255 looks the
    /// same), or the deadline passes: it is then ended. Another exit status than 0 is no error; 127
    /// means that the program is not there.
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

    /// Copies a file of the machine that runs the lab to a path of this one, its mode kept.
    ///
    /// # Errors
    /// When this machine is off, or reading or writing fails.
    pub fn copy_in(&self, from: &Path, to: &str) -> Result<()> {
        let file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
        let mode = file.metadata()?.permissions().mode() & 0o7777;
        self.put(to, mode, file.into())
    }

    /// Reads a file that is text.
    ///
    /// # Errors
    /// When the machine is off or the file cannot be read.
    pub fn read_text(&self, path: &str) -> Result<String> {
        let argv = ["cat", "--", path];
        let output = self.exec(&argv)?;
        self.ok(&argv, output.clone())?;
        Ok(output.stdout)
    }

    /// Installs Debian packages (files here) as a user would: `apt-get install ./x.deb`, offline.
    ///
    /// # Errors
    /// When a dependency is not in the base or a maintainer script fails.
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

    /// Loads an image into its Docker.
    ///
    /// # Errors
    /// When Docker does not answer or refuses it, or gives it another id.
    pub fn load_image(&self, image: &Image) -> Result<()> {
        let tar = File::open(&image.tar)
            .with_context(|| format!("cannot open {}", image.tar.display()))?;
        let load = ["docker", "load"];
        self.ok(&load, self.exec_from(&load, tar.into(), INSTALLATION)?)?;
        let inspect = ["docker", "image", "inspect", "-f", "{{.Id}}", &image.reference];
        let id = self.exec_ok(&inspect)?;
        if id != image.id {
            bail!("Docker calls {} {id} instead of {}", image.reference, image.id);
        }
        Ok(())
    }

    /// Waits until a unit is active.
    ///
    /// # Errors
    /// When the deadline passes or the machine ends; shows the unit's state and journal.
    pub fn wait_until_active(&self, unit: &str, deadline: Duration) -> Result<()> {
        let deadline = Deadline::after(deadline);
        let active = deadline.poll(PAUSE, || {
            let asked = self.exec(&["systemctl", "is-active", "--quiet", unit]);
            asked.is_ok_and(|output| output.success())
        });
        if active {
            return Ok(());
        }
        let status = self.exec(&["systemctl", "status", "--no-pager", "--full", unit])?;
        bail!(
            "{unit} on {} is not active after {:.1} s\n{}\n{}",
            self.name(),
            deadline.elapsed().as_secs_f32(),
            status.stdout,
            self.journal(unit)?
        )
    }

    /// The journal of a unit, this boot only.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.exec_ok(&["journalctl", "--no-pager", "-b", "-o", "short-precise", "-u", unit])
    }

    fn exec_from(&self, argv: &[&str], stdin: Stdio, deadline: Duration) -> Result<Output> {
        let running = self.running()?;
        let seconds = deadline.as_secs().max(1).to_string();
        let limited = [&ENVIRONMENT, &["timeout", "--kill-after=5", &*seconds][..], argv].concat();
        let ran = running.session.run(&line(&limited), stdin, deadline + MARGIN);
        let output = ran.with_context(|| self.about(&argv.join(" ")))?;
        let what = match output.status {
            ssh::BROKEN => "lost the connection",
            TIMED_OUT => "ended the command, it took too long",
            _ => return Ok(output),
        };
        let Output { stdout, stderr, .. } = output;
        bail!("machine {} {what}: {}\n{stdout}{stderr}", self.name(), argv.join(" "))
    }

    fn put(&self, path: &str, mode: u32, content: Stdio) -> Result<()> {
        let script = r#"set -e; mkdir -p "$(dirname "$1")"; cat > "$1"; chmod "$2" "$1""#;
        let argv = ["sh", "-c", script, "put", path, &format!("{mode:o}")];
        self.ok(&argv, self.exec_from(&argv, content, INSTALLATION)?).map(drop)
    }

    fn ok(&self, argv: &[&str], output: Output) -> Result<String> {
        if !output.success() {
            let Output { status, stdout, stderr } = output;
            let what = argv.join(" ");
            bail!("{what} on machine {} exited with {status}\n{stdout}{stderr}", self.name());
        }
        Ok(output.stdout.trim_end().to_owned())
    }
}
