//! OpenClaw's image made from its npm package: a small Debian, Node's binary, and the package, one
//! layer each. User, paths and entry point are those of the upstream image.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::archive::{Recipe, pack_as_is};
use crate::cache::Cache;
use crate::process::{self, Launch, command};
use crate::requirements::{self, Requirement};
use crate::rootfs;

/// Raised when the recipe changes, so that cached images are made anew.
pub(super) const RECIPE: u32 = 1;

/// OpenClaw 2026.9.6 needs Node >= 26.1 (its package.json).
const NODE_VERSION: &str = "26.10.0";
/// What the package needs at run time, `libatomic1` for Node itself.
const PACKAGES: [&str; 10] = [
    "ca-certificates",
    "curl",
    "git",
    "hostname",
    "libatomic1",
    "lsof",
    "openssl",
    "procps",
    "python3-minimal",
    "tini",
];
/// uid and gid of the user `node`, as upstream.
const NODE_USER: u32 = 1000;
/// How long npm may take on a busy machine with a slow network.
const INSTALLATION: Duration = Duration::from_secs(1200);

/// Builds the image into `dir`.
pub(super) fn openclaw(version: &str, reference: &str, dir: &Path, cache: &Cache) -> Result<()> {
    requirements::require_root("build the OpenClaw image")?;
    requirements::ensure(&[Requirement::Npm], cache.progress())?;
    let layers = vec![debian(dir, cache)?, node(dir, cache)?, application(version, dir, cache)?];
    let config = json!({
        "User": "node",
        "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/home/node",
            "NODE_ENV=production",
        ],
        "Entrypoint": ["tini", "-s", "--"],
        "Cmd": [
            "node", "openclaw.mjs", "gateway", "--allow-unconfigured", "--bind", "lan", "--port", "18789",
        ],
        "WorkingDir": "/app",
        "ExposedPorts": { "18789/tcp": {} },
        "Labels": { "org.opencontainers.image.version": version },
    });
    cache.progress().begin("write the OpenClaw image");
    let written = Recipe { reference: reference.to_owned(), config, layers }.write(dir);
    cache.progress().end();
    written?;
    ["debian", "node", "npm", "npm-cache"]
        .iter()
        .try_for_each(|name| crate::cache::remove_tree(&dir.join(name)))
}

/// The lowest layer: Debian with the user `node`.
fn debian(dir: &Path, cache: &Cache) -> Result<PathBuf> {
    let root = dir.join("debian");
    fs::create_dir(&root)?;
    rootfs::debootstrap(cache, "image", "bookworm", &PACKAGES, &root)?;
    let lines = [
        ("passwd", "node:x:1000:1000::/home/node:/bin/sh\n"),
        ("group", "node:x:1000:\n"),
        ("shadow", "node:!:20000:0:99999:7:::\n"),
    ];
    for (file, line) in lines {
        let path = root.join("etc").join(file);
        OpenOptions::new().append(true).open(path)?.write_all(line.as_bytes())?;
    }
    let home = root.join("home/node");
    fs::create_dir_all(home.join(".openclaw"))?;
    for path in [home.join(".openclaw"), home] {
        chown(&path, Some(NODE_USER), Some(NODE_USER))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    }
    let layer = dir.join("debian.tar");
    let left_out = [
        "./dev/*",
        "./proc/*",
        "./sys/*",
        "./var/cache/apt/*",
        "./var/lib/apt/lists/*",
        "./var/log/*",
    ]
    .map(|pattern| format!("--exclude={pattern}"));
    let mut members: Vec<&str> = left_out.iter().map(String::as_str).collect();
    members.push(".");
    pack_as_is(&layer, &root, &members)?;
    Ok(layer)
}

/// The middle layer: Node's binary, which npm carries as a package for each architecture.
fn node(dir: &Path, cache: &Cache) -> Result<PathBuf> {
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "x64",
    };
    let package = format!("node-linux-{architecture}");
    let prefix = dir.join("npm/node");
    npm(&["--no-save", &format!("{package}@{NODE_VERSION}")], &prefix, None, dir, cache)?;
    let bin = dir.join("node/usr/local/bin");
    fs::create_dir_all(&bin)?;
    fs::rename(prefix.join("node_modules").join(package).join("bin/node"), bin.join("node"))?;
    let layer = dir.join("node.tar");
    pack_as_is(&layer, &dir.join("node"), &["--owner=0", "--group=0", "usr"])?;
    Ok(layer)
}

/// The top layer: OpenClaw at `/app`, and its command on the path.
fn application(version: &str, dir: &Path, cache: &Cache) -> Result<PathBuf> {
    let prefix = dir.join("npm/openclaw");
    // With the Node that will run it, for packages that choose a binary when installed.
    let node = dir.join("node/usr/local/bin");
    npm(&["--global", &format!("openclaw@{version}")], &prefix, Some(&node), dir, cache)?;
    let stage = prefix.join("stage");
    fs::create_dir_all(stage.join("usr/local/bin"))?;
    fs::rename(prefix.join("lib/node_modules/openclaw"), stage.join("app"))
        .context("npm did not install openclaw where expected")?;
    symlink("/app/openclaw.mjs", stage.join("usr/local/bin/openclaw"))?;
    let layer = dir.join("app.tar");
    let members = ["--owner=0", "--group=0", "--mode=u+rwX,go+rX,go-w", "app", "usr"];
    pack_as_is(&layer, &stage, &members)?;
    Ok(layer)
}

/// `npm install` below `prefix`, with `node` first on the path.
fn npm(what: &[&str], prefix: &Path, node: Option<&Path>, dir: &Path, cache: &Cache) -> Result<()> {
    fs::create_dir_all(prefix)?;
    let mut npm = command("npm");
    npm.arg("install").arg("--prefix").arg(prefix);
    npm.args(["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=http"]).args(what);
    npm.env("npm_config_cache", dir.join("npm-cache"));
    if let Some(node) = node {
        let path = std::iter::once(node.to_owned()).chain(process::search_path());
        npm.env("PATH", std::env::join_paths(path)?);
    }
    let log = cache.dir().join("npm.log");
    cache.progress().begin(&format!("npm install {}", what.last().unwrap_or(&"")));
    let installed = rootfs::follow(Launch::plain(npm), &log, INSTALLATION, cache);
    cache.progress().end();
    installed
}
