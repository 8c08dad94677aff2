//! Root file systems made by debootstrap: the base of all lab hosts, and that of an image.
//!
//! A host's base has what a VPS provider's Debian plus our packages' dependencies have, and none of
//! our own packages. It deliberately differs from a real installation only in what cannot work or
//! would disturb in a namespace (kernel file systems, periodic timers).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, sha256};
use crate::deadline::Deadline;
use crate::process::{Launch, command};
use crate::requirements;

/// A Debian release that a lab host can run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    /// Debian 12: systemd 252, Docker 20.10.
    #[default]
    Bookworm,
    /// Debian 13: systemd 257, Docker 26.1.
    Trixie,
}

impl Suite {
    /// Its code name, as in the archive.
    #[must_use]
    pub fn code_name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// What a lab host has beyond Debian's minimal variant, of this release.
    pub(crate) fn host_packages(self) -> Vec<&'static str> {
        let mut packages = HOST_PACKAGES.to_vec();
        if self == Self::Trixie {
            packages.push("docker-cli");
        }
        packages
    }
}

/// What a lab host has beyond Debian's minimal variant.
const HOST_PACKAGES: [&str; 20] = [
    "ca-certificates",
    "conntrack",
    "curl",
    "dbus",
    "docker.io",
    "fail2ban",
    "iproute2",
    "iptables",
    "ipset",
    "iputils-ping",
    "kmod",
    "nftables",
    "nginx-light",
    "openssh-server",
    "procps",
    "python3-minimal",
    "python3-systemd",
    "sqlite3",
    "systemd",
    "systemd-sysv",
];

/// Raised when `finish` changes, so that cached bases are made anew.
const HOST_VERSION: u32 = 2;

/// Units that cannot work in a namespace, would touch the machine's kernel, or only cost time.
const MASKED: [&str; 16] = [
    "dev-hugepages.mount",
    "e2scrub_reap.service",
    "getty-static.service",
    "getty.target",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-modules-load.service",
    "systemd-networkd-wait-online.service",
    "systemd-pstore.service",
    "systemd-sysctl.service",
    "systemd-udevd.service",
];

/// The base of lab hosts, from the cache or built.
pub(crate) fn host(cache: &Cache, suite: Suite) -> Result<std::path::PathBuf> {
    let packages = suite.host_packages();
    let recipe = format!("{HOST_VERSION} {} {MASKED:?} {packages:?}", std::env::consts::ARCH);
    let digest = sha256(recipe.as_bytes())?;
    let key = format!("{}-{}", suite.code_name(), digest.get(..12).unwrap_or(&digest));
    cache.entry("base", &key, |partial| {
        debootstrap(cache, "host", suite.code_name(), &packages, partial)?;
        finish(partial, &MASKED)
    })
}

/// Runs debootstrap's minimal variant into `target`; `purpose` tells those apart that may run at once.
pub(crate) fn debootstrap(
    cache: &Cache,
    purpose: &str,
    suite: &str,
    packages: &[&str],
    target: &Path,
) -> Result<()> {
    requirements::require_root("build a Debian root file system (debootstrap)")?;
    requirements::ensure(&[requirements::Requirement::Debootstrap], cache.progress())?;
    let archives = cache.shared("debs")?.join(format!("{suite}-{purpose}"));
    fs::create_dir_all(&archives)?;
    let mirror = mirror(suite);
    let mut debootstrap = command("debootstrap");
    debootstrap
        .arg("--variant=minbase")
        .arg(format!("--cache-dir={}", archives.display()))
        .arg(format!("--include={}", packages.join(",")))
        .arg(suite)
        .arg(target)
        .args(&mirror)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8");
    // Two runs of one purpose would write the same archives.
    let _lock = cache.lock(&format!("debs-{suite}-{purpose}"))?;
    let log = cache.dir().join(format!("debootstrap-{suite}-{purpose}.log"));
    let from = mirror.as_deref().unwrap_or("debootstrap's own mirror");
    cache.progress().begin(&format!("debootstrap {suite} ({purpose}) from {from}"));
    let built = follow(Launch::plain(debootstrap), &log, Duration::from_secs(1200), cache);
    cache.progress().end();
    built
}

/// Runs a long command, contained, with its output in a log file, whose lines go to the progress as details.
pub(crate) fn follow(launch: Launch, log: &Path, length: Duration, cache: &Cache) -> Result<()> {
    let _ = fs::remove_file(log);
    let what = crate::process::describe(&launch.command);
    let process = launch.contained().logging_to(log.to_owned())?.spawn()?;
    let deadline = Deadline::after(length);
    let mut shown = 0;
    let ended = deadline.poll(Duration::ZERO, || {
        let ended = process.wait(Duration::from_millis(200)).is_ok();
        let text = process.log();
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.get(shown..).unwrap_or_default() {
            cache.progress().detail(line);
        }
        shown = lines.len();
        ended
    });
    if !ended {
        process.kill()?;
        bail!("{what} was killed after {length:?}, see {}", log.display());
    }
    let status = process.wait(Duration::ZERO)?;
    if !status.success() {
        let text = process.log();
        let tail: Vec<&str> = text.lines().rev().take(15).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("{what} failed ({status}), see {}\n{}", log.display(), tail.join("\n"));
    }
    fs::remove_file(log).context("cannot remove the log")
}

/// Installed for the tests that want it, and off until one enables it.
const DISABLED: &str = "multi-user.target.wants/fail2ban.service";

/// Makes a fresh root file system that of a host: no periodic work, no units that are `masked`, no
/// identity, no site of nginx's own.
pub(crate) fn finish(root: &Path, masked: &[&str]) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for timer in fs::read_dir(units.join("timers.target.wants")).into_iter().flatten() {
        fs::remove_file(timer?.path())?;
    }
    let _ = fs::remove_file(units.join(DISABLED));
    for unit in masked {
        let _ = fs::remove_file(units.join(unit));
        symlink("/dev/null", units.join(unit))?;
    }
    fs::remove_file(root.join("etc/nginx/sites-enabled/default"))?;
    let _ = fs::remove_file(root.join("etc/machine-id"));
    let _ = fs::remove_file(root.join("var/lib/dbus/machine-id"));
    fs::write(root.join("etc/resolv.conf"), "nameserver 198.51.100.1\noptions timeout:1\n")?;
    Ok(())
}

/// The archive that this machine's apt takes a suite from, else that of another release of Debian: one
/// archive holds them all. Without either, debootstrap takes its own.
fn mirror(suite: &str) -> Option<String> {
    let own = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().filter_map(Result::ok);
    let mut files = vec!["/etc/apt/sources.list".into()];
    files.extend(own.map(|entry| entry.path()));
    files.sort();
    let texts: Vec<String> = files.iter().map(|path| crate::process::read_lossy(path)).collect();
    let of = |suite: &str| {
        texts
            .iter()
            .find_map(|text| one_line_mirror(text, suite).or_else(|| deb822_mirror(text, suite)))
    };
    of(suite).or_else(|| [Suite::Bookworm, Suite::Trixie].iter().find_map(|s| of(s.code_name())))
}

/// `deb [options] URI suite components…` (`man 5 sources.list`).
fn one_line_mirror(text: &str, suite: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']')?.1,
            None => rest,
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let fits = words.get(1) == Some(&suite) && words.contains(&"main");
        words.first().filter(|uri| fits && usable(uri)).map(|uri| (*uri).to_owned())
    })
}

/// The deb822 style: stanzas of `Field: value` (`man 5 sources.list`).
fn deb822_mirror(text: &str, suite: &str) -> Option<String> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.split_whitespace().collect::<Vec<_>>())
            })
        };
        let fits = field("Types")?.contains(&"deb")
            && field("Suites")?.contains(&suite)
            && field("Components")?.contains(&"main");
        field("URIs")?.first().filter(|uri| fits && usable(uri)).map(|uri| (*uri).to_owned())
    })
}

/// Whether debootstrap can fetch from it.
fn usable(uri: &str) -> bool {
    uri.starts_with("http://") || uri.starts_with("https://") || uri.starts_with("file:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_one_line_sources() {
        let text = "# deb http://no/ bookworm main\n\
                    deb https://packages.example/apt tool-bookworm main\n\
                    deb http://sec.example/ bookworm-security main\n\
                    deb [arch=amd64 signed-by=/k] http://mirror.example/debian bookworm main contrib\n";
        assert_eq!(
            one_line_mirror(text, "bookworm").as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(one_line_mirror(text, "trixie"), None);
    }

    #[test]
    fn the_mirror_is_found_in_deb822_sources() {
        let text = "Types: deb\nURIs: http://sec.example/\nSuites: bookworm-security\nComponents: main\n\n\
                    Types: deb deb-src\n# URIs: http://old.example\nURIs: http://mirror.example/debian\n\
                    Suites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(
            deb822_mirror(text, "bookworm").as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(deb822_mirror(text, "sid"), None);
    }
}
