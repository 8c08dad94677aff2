//! The docker-archive format: a tar of `manifest.json`, the image's configuration and its layers
//! (moby, `image/spec/v1.2.md`, "Combined image JSON + filesystem changeset format").

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Image;
use crate::cache::{sha256, sha256_of};
use crate::process::{self, command};

/// How long a tar of a gigabyte may take on a busy machine.
const PACKING: Duration = Duration::from_secs(600);
/// The same for every build, so that the same content is the same image.
const CREATED: &str = "2026-01-01T00:00:00Z";
const TAR: &str = "image.tar";
const ABOUT: &str = "image.json";

/// An image to write.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) reference: String,
    /// The part of the configuration that containers get (`Entrypoint`, `Env` and so on).
    pub(super) config: Value,
    /// Uncompressed layer tars, lowest first, in the directory that the image is written to.
    pub(super) layers: Vec<PathBuf>,
}

impl Recipe {
    /// Writes the archive and its description into `dir`; consumes the layers.
    pub(super) fn write(self, dir: &Path) -> Result<()> {
        let mut names = Vec::new();
        for layer in &self.layers {
            let name = sha256_of(layer)?;
            fs::rename(layer, dir.join(format!("{name}.tar")))?;
            names.push(name);
        }
        let diff_ids: Vec<String> = names.iter().map(|name| format!("sha256:{name}")).collect();
        let history: Vec<Value> = names.iter().map(|_| json!({ "created": CREATED })).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": CREATED,
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        let config = serde_json::to_vec(&config)?;
        let digest = sha256(&config)?;
        let files: Vec<String> = names.iter().map(|name| format!("{name}.tar")).collect();
        let manifest = json!([{
            "Config": format!("{digest}.json"),
            "RepoTags": [self.reference],
            "Layers": files,
        }]);
        fs::write(dir.join(format!("{digest}.json")), config)?;
        fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
        let mut members = vec!["manifest.json".to_owned(), format!("{digest}.json")];
        members.extend(files);
        let listed: Vec<&str> = members.iter().map(String::as_str).collect();
        pack(&dir.join(TAR), dir, 0, &listed)?;
        for member in members {
            fs::remove_file(dir.join(member))?;
        }
        describe(dir, &digest, &self.reference)
    }
}

/// Where the archive of a directory is.
pub(super) fn tar_in(dir: &Path) -> PathBuf {
    dir.join(TAR)
}

/// Writes the description beside an archive; `digest` is that of the configuration, in hexadecimal.
pub(super) fn describe(dir: &Path, digest: &str, reference: &str) -> Result<()> {
    let about = json!({ "id": format!("sha256:{digest}"), "reference": reference });
    fs::write(dir.join(ABOUT), serde_json::to_vec_pretty(&about)?).map_err(Into::into)
}

/// The image in a directory.
pub(super) fn read(dir: &Path) -> Result<Image> {
    let about: Value = serde_json::from_slice(&fs::read(dir.join(ABOUT))?)?;
    let field = |name: &str| {
        let value = about.get(name).and_then(Value::as_str);
        value.map(str::to_owned).with_context(|| format!("{} lacks {name}", dir.display()))
    };
    Ok(Image { tar: tar_in(dir), id: field("id")?, reference: field("reference")? })
}

/// Packs `members` of `dir` into a new tar, owned by one user, always the same for the same content.
pub(super) fn pack(tar: &Path, dir: &Path, owner: u32, members: &[&str]) -> Result<()> {
    run("--create", tar, dir, &[&format!("--owner={owner}"), &format!("--group={owner}")], members)
}

/// Adds further `members` of another owner to a tar.
pub(super) fn append(tar: &Path, dir: &Path, owner: u32, members: &[&str]) -> Result<()> {
    run("--append", tar, dir, &[&format!("--owner={owner}"), &format!("--group={owner}")], members)
}

/// Packs `members` of `dir` as they are, owners and extended attributes included.
pub(super) fn pack_as_is(tar: &Path, dir: &Path, members: &[&str]) -> Result<()> {
    run("--create", tar, dir, &["--xattrs"], members)
}

fn run(verb: &str, tar: &Path, dir: &Path, options: &[&str], members: &[&str]) -> Result<()> {
    let mut command = command("tar");
    command.arg(verb).arg("--file").arg(tar).arg("--directory").arg(dir);
    command.args(["--sort=name", "--numeric-owner", "--format=posix"]);
    // Neither the times of files nor tar's own process id may show.
    command.args([
        "--mtime=@0",
        "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
    ]);
    command.args(options).args(members).env("LC_ALL", "C");
    process::run(command, PACKING).map(drop)
}

/// The machine's architecture in Docker's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
