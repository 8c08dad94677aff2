//! Entering a running host from outside: its namespaces and its control groups.

use std::fs::File;
use std::io;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::netns::on_own_thread;
use crate::process::Launch;

/// The namespaces of a host's PID 1. Holding it holds them.
#[derive(Debug)]
pub(crate) struct Guest {
    namespaces: Vec<(File, CloneFlags)>,
}

impl Guest {
    /// Opens the namespaces of a process that surely is the PID 1 meant.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        // The mount namespace last: what comes after it is seen with the host's eyes.
        let kinds = [
            ("cgroup", CloneFlags::CLONE_NEWCGROUP),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("net", CloneFlags::CLONE_NEWNET),
            ("pid", CloneFlags::CLONE_NEWPID),
            ("mnt", CloneFlags::CLONE_NEWNS),
        ];
        let open = |(kind, flag)| {
            let path = format!("/proc/{pid}/ns/{kind}");
            Ok((File::open(&path).with_context(|| format!("cannot open {path}"))?, flag))
        };
        Ok(Self { namespaces: kinds.into_iter().map(open).collect::<Result<_>>()? })
    }

    /// Runs `work` on a thread that sees the host's files and network.
    pub(crate) fn within<T: Send>(self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_own_thread(move || self.enter().map(|()| work()))?
    }

    /// A launch of a command of the host, which joins the control groups of `members` first.
    pub(crate) fn launch(self, argv: &[&str], members: Vec<File>) -> Result<Launch> {
        let (program, arguments) = argv.split_first().context("an empty command")?;
        let mut command: Command = crate::process::command(program);
        command.args(arguments).env_clear().envs([
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LANG", "C.UTF-8"),
            ("TERM", "dumb"),
            ("DEBIAN_FRONTEND", "noninteractive"),
        ]);
        let mut launch = Launch::plain(command).prepared(move || self.enter());
        launch.in_child = Box::new(move || join(&members));
        Ok(launch)
    }

    /// Moves the calling thread, and the processes it will start, into the host.
    fn enter(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_FS).context("cannot leave the shared file system state")?;
        self.namespaces
            .iter()
            .try_for_each(|(file, flag)| setns(file, *flag))
            .context("cannot enter the host's namespaces")?;
        std::env::set_current_dir("/").context("cannot change to the host's root")
    }
}

/// Makes the calling process a member of control groups by their opened `cgroup.procs`.
pub(crate) fn join(members: &[File]) -> io::Result<()> {
    for file in members {
        nix::unistd::write(file, b"0")?;
    }
    Ok(())
}
