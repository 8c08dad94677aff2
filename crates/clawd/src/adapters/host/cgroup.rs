//! What a control group uses, in both versions.
//!
//! Sources: cgroups(7); `Documentation/admin-guide/cgroup-v1/{memory,cpuacct,pids}.rst` and
//! `cgroup-v2.rst` of the kernel. On a hybrid machine each controller is where it is mounted.

use std::path::{Path, PathBuf};

use claw_core::report::Usage;

/// Usage of the process whose `/proc/<pid>/cgroup` is `membership`; `None` once its group is gone,
/// or if it is in no group of its own.
pub(super) fn usage(root: &Path, membership: &str) -> Option<Usage> {
    match Group::v1(root, membership, "memory") {
        Some(memory) => version1(root, membership, &memory),
        None => version2(&Group::v2(root, membership)?),
    }
}

fn version1(root: &Path, membership: &str, memory: &Group) -> Option<Usage> {
    let used = memory.number("memory.usage_in_bytes")?;
    let inactive = memory.field("memory.stat", "total_inactive_file").unwrap_or(0);
    let group = |controller| Group::v1(root, membership, controller);
    let cpu = group("cpuacct").and_then(|group| group.number("cpuacct.usage"));
    let pids = group("pids").and_then(|group| group.number("pids.current"));
    Some(Usage {
        memory_bytes: used.saturating_sub(inactive),
        memory_limit_bytes: memory.number("memory.limit_in_bytes").unwrap_or(0),
        cpu_usage_us: cpu.unwrap_or(0) / 1000,
        pids: pids.unwrap_or(0),
        // Since Linux 4.13.
        oom_kills: memory.field("memory.oom_control", "oom_kill").unwrap_or(0),
    })
}

fn version2(group: &Group) -> Option<Usage> {
    let used = group.number("memory.current")?;
    let inactive = group.field("memory.stat", "inactive_file").unwrap_or(0);
    Some(Usage {
        memory_bytes: used.saturating_sub(inactive),
        // "max" is no limit, as 0 is.
        memory_limit_bytes: group.number("memory.max").unwrap_or(0),
        cpu_usage_us: group.field("cpu.stat", "usage_usec").unwrap_or(0),
        pids: group.number("pids.current").unwrap_or(0),
        oom_kills: group.field("memory.events", "oom_kill").unwrap_or(0),
    })
}

/// A control group's directory.
struct Group(PathBuf);

impl Group {
    /// The group in the hierarchy of a version 1 controller: a line `4:memory:/docker/…`.
    fn v1(root: &Path, membership: &str, controller: &str) -> Option<Self> {
        let path = membership.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == controller).then_some(path)
        })?;
        Self::below(root.join(controller), path)
    }

    /// The group in the version 2 hierarchy: the line `0::/…`.
    fn v2(root: &Path, membership: &str) -> Option<Self> {
        let path = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
        Self::below(root.to_owned(), path)
    }

    /// The root group is the whole machine, and a path with `..` lies outside of what this
    /// namespace sees; neither is a container.
    fn below(root: PathBuf, path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        let own = !path.is_empty() && path.split('/').all(|part| part != "..");
        own.then(|| Self(root.join(path)))
    }

    fn read(&self, file: &str) -> Option<String> {
        super::read(&self.0.join(file))
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file)?.trim().parse().ok()
    }

    /// The value of a line `name value`.
    fn field(&self, file: &str, name: &str) -> Option<u64> {
        let text = self.read(file)?;
        text.lines().find_map(|line| {
            let (key, value) = line.split_once(' ')?;
            (key == name).then(|| value.trim().parse().ok())?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    const EXPECTED: Usage = Usage {
        memory_bytes: 600_000,
        memory_limit_bytes: 1_073_741_824,
        cpu_usage_us: 1234,
        pids: 29,
        oom_kills: 2,
    };

    #[test]
    fn version_1() {
        let dir = tree(&[
            ("memory/docker/abc/memory.usage_in_bytes", "1000000\n"),
            ("memory/docker/abc/memory.limit_in_bytes", "1073741824\n"),
            (
                "memory/docker/abc/memory.stat",
                "cache 5\ninactive_file 1\ntotal_inactive_file 400000\n",
            ),
            (
                "memory/docker/abc/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
            ("cpuacct/docker/abc/cpuacct.usage", "1234567\n"),
            ("pids/docker/abc/pids.current", "29\n"),
        ]);
        let membership =
            "12:pids:/docker/abc\n4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/x\n";
        assert_eq!(usage(dir.path(), membership), Some(EXPECTED));
    }

    #[test]
    fn version_2() {
        let group = "system.slice/docker-abc.scope";
        let file = |name: &str| format!("{group}/{name}");
        let dir = tree(&[
            (&file("memory.current"), "1000000\n"),
            (&file("memory.max"), "1073741824\n"),
            (&file("memory.stat"), "anon 5\nfile 7\ninactive_file 400000\n"),
            (&file("memory.events"), "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n"),
            (&file("cpu.stat"), "usage_usec 1234\nuser_usec 1000\n"),
            (&file("pids.current"), "29\n"),
        ]);
        let membership = "0::/system.slice/docker-abc.scope\n";
        assert_eq!(usage(dir.path(), membership), Some(EXPECTED));
        std::fs::write(dir.path().join(file("memory.max")), "max\n").unwrap();
        let unlimited = Usage { memory_limit_bytes: 0, ..EXPECTED };
        assert_eq!(usage(dir.path(), membership), Some(unlimited));
    }

    #[test]
    fn what_is_no_container_has_no_usage() {
        let dir = tree(&[("memory.current", "5\n"), ("a/memory.current", "5\n")]);
        for membership in
            ["0::/\n", "0::/../a\n", "0::/gone\n", "4:memory:/gone\n0::/a\n", "", "nonsense"]
        {
            assert_eq!(usage(dir.path(), membership), None, "{membership:?}");
        }
    }
}
