//! A control group subtree for each lab host, in every hierarchy that the machine has mounted: the
//! v1 controllers and the named and unified ones of a hybrid machine, or the single one of v2.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::deadline::Deadline;

/// Where the commands run that come from outside, below the host's subtree.
const OUTSIDE: &str = "lab-exec";

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where the machine has it mounted.
    pub(crate) mount: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub(crate) fstype: String,
    /// Mount options that name it: `cpu,cpuacct`, `none,name=systemd`; empty for v2.
    pub(crate) options: String,
}

/// A host's subtree in every hierarchy; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Subtree {
    name: String,
    pub(crate) hierarchies: Vec<Hierarchy>,
}

impl Subtree {
    /// Creates `name` at the top of every hierarchy.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let subtree = Self { name: name.to_owned(), hierarchies: mounted()? };
        for hierarchy in &subtree.hierarchies {
            if hierarchy.fstype == "cgroup2" {
                delegate(&hierarchy.mount);
            }
            create_group(&hierarchy.mount.join(name))?;
        }
        Ok(subtree)
    }

    /// Opens what a process writes `0` to in order to become a member of the subtree's top.
    pub(crate) fn top(&self) -> Result<Vec<File>> {
        self.members(Path::new(&self.name))
    }

    /// The same for processes that come from outside: systemd must own the top for itself.
    pub(crate) fn outside(&self) -> Result<Vec<File>> {
        let group = Path::new(&self.name).join(OUTSIDE);
        let open = || {
            for hierarchy in &self.hierarchies {
                create_group(&hierarchy.mount.join(&group))?;
            }
            self.members(&group)
        };
        // While it boots, systemd removes the empty groups that it did not make: once more, then.
        open().or_else(|_| open()).or_else(|_| open())
    }

    /// Kills what is left in it and removes it.
    pub(crate) fn remove(&self) -> Result<()> {
        self.hierarchies.iter().try_for_each(|hierarchy| clear(&hierarchy.mount.join(&self.name)))
    }

    fn members(&self, group: &Path) -> Result<Vec<File>> {
        let open = |hierarchy: &Hierarchy| {
            let path = hierarchy.mount.join(group).join("cgroup.procs");
            let file = OpenOptions::new().write(true).open(&path);
            file.with_context(|| format!("cannot open {}", path.display()))
        };
        self.hierarchies.iter().map(open).collect()
    }
}

impl Drop for Subtree {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next start.
        let _ = self.remove();
    }
}

/// Removes every group at the top of a hierarchy whose name starts with `prefix`, killing what is
/// in it: only for the groups of a run that is dead.
pub(crate) fn sweep(prefix: &str) -> Result<()> {
    for hierarchy in mounted()? {
        for entry in fs::read_dir(&hierarchy.mount)?.filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                clear(&entry.path())?;
            }
        }
    }
    Ok(())
}

fn mounted() -> Result<Vec<Hierarchy>> {
    let found = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
    if found.is_empty() {
        bail!("no control groups are mounted below /sys/fs/cgroup");
    }
    Ok(found)
}

/// Parses `/proc/self/mountinfo` (`man 5 proc_pid_mountinfo`).
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let parse = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mount = PathBuf::from(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let (fstype, options) = (right.next()?.to_owned(), right.nth(1)?);
        if !mount.starts_with("/sys/fs/cgroup") {
            return None;
        }
        let own: Vec<&str> = options.split(',').filter(|word| names_hierarchy(word)).collect();
        let options = match (fstype.as_str(), own.as_slice()) {
            ("cgroup2", _) => String::new(),
            ("cgroup", ["name=systemd"]) => "none,name=systemd".to_owned(),
            ("cgroup", [first, ..]) if !first.starts_with("name=") => own.join(","),
            _ => return None,
        };
        Some(Hierarchy { mount, fstype, options })
    };
    mountinfo.lines().filter_map(parse).collect()
}

fn names_hierarchy(option: &str) -> bool {
    let general =
        ["rw", "ro", "clone_children", "xattr", "noprefix", "nsdelegate", "release_agent"];
    !general.contains(&option) && !option.starts_with("release_agent=")
}

/// Lets the children of a v2 group use its controllers, as far as they exist.
fn delegate(group: &Path) {
    for controller in ["+cpu", "+memory", "+io", "+pids", "+cpuset"] {
        // An absent or already enabled controller is no fault; a needed one shows in the host.
        let _ = fs::write(group.join("cgroup.subtree_control"), controller);
    }
}

fn create_group(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => {
            return Err(error)
                .with_context(|| format!("cannot create control group {}", dir.display()));
        }
        Ok(()) => {}
    }
    // A v1 cpuset group takes no member before it has both (kernel, cgroup-v1/cpusets.rst).
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Some(parent) = dir.parent() else { continue };
        if let (Ok(mine), Ok(theirs)) =
            (fs::read_to_string(dir.join(file)), fs::read_to_string(parent.join(file)))
            && mine.trim().is_empty()
            && !theirs.trim().is_empty()
        {
            fs::write(dir.join(file), theirs)?;
        }
    }
    Ok(())
}

/// Kills the members of a group and of those below it, and removes them all.
fn clear(group: &Path) -> Result<()> {
    let deadline = Deadline::after(Duration::from_secs(10));
    let gone = deadline.poll(Duration::from_millis(10), || {
        kill_members(group);
        remove_groups(group).is_ok()
    });
    if !gone {
        bail!("control group {} cannot be removed", group.display());
    }
    Ok(())
}

fn kill_members(group: &Path) {
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    for child in children(group) {
        kill_members(&child);
    }
}

fn remove_groups(group: &Path) -> io::Result<()> {
    for child in children(group) {
        remove_groups(&child)?;
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|e| e.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mountinfo: &str, expected: &[(&str, &str)]) {
        let found = hierarchies(mountinfo);
        let found: Vec<_> =
            found.iter().map(|h| (h.mount.to_str().unwrap(), h.options.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_hybrid_machine_has_v1_controllers_a_named_and_a_unified_hierarchy() {
        check(
            "24 23 0:21 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw,mode=755\n\
             25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             26 24 0:23 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
             27 24 0:24 / /sys/fs/cgroup/elogind rw - cgroup cgroup rw,name=elogind\n\
             28 24 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n",
            &[
                ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
                ("/sys/fs/cgroup/systemd", "none,name=systemd"),
                ("/sys/fs/cgroup/unified", ""),
            ],
        );
    }

    #[test]
    fn a_pure_v2_machine_has_one_hierarchy() {
        check(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
             31 23 0:27 / /proc rw - proc proc rw\n",
            &[("/sys/fs/cgroup", "")],
        );
    }
}
