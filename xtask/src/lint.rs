//! Everything that is checked without running the product.

use anyhow::Result;
use claw_lab::command;

use crate::cargo::{self, cargo, root, tool};
use crate::{check_deps, proto};

/// cargo-deny's version; a newer one may know other checks.
const CARGO_DENY: &str = "0.20.2";

/// Runs every check; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    cargo::run(cargo(&["fmt", "--all", "--check"]))?;
    check_deps::run()?;
    proto::run()?;
    // The virtual machine's test is behind a feature; nothing else is.
    let mut clippy = cargo(&["clippy", "--workspace", "--all-targets", "--locked"]);
    clippy.args(["--features", "claw-tests/vm", "--", "-D", "warnings"]);
    cargo::run(clippy)?;
    let mut docs =
        cargo(&["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    cargo::run(docs)?;
    deny()
}

/// Licences, sources and duplicates always; advisories where their database can be fetched.
fn deny() -> Result<()> {
    let program = tool("cargo-deny", CARGO_DENY)?;
    let deny = |arguments: &[&str]| {
        let mut deny = command(&program);
        deny.current_dir(root()).args(["--config", ".cargo/deny.toml"]).args(arguments);
        deny
    };
    // cargo-deny reads the manifests of every platform's crates, and a build fetches this one's only.
    cargo::run(cargo(&["fetch", "--locked"]))?;
    cargo::run(deny(&["--offline", "check", "licenses", "bans", "sources"]))?;
    if let Err(error) = cargo::output(deny(&["fetch", "db"])) {
        let cause = error.to_string();
        let line = cause.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        eprintln!("advisories: NOT CHECKED, their database cannot be fetched from here: {line}");
        return Ok(());
    }
    cargo::run(deny(&["check", "advisories"]))
}
