//! What a copy costs.

use std::fs;
use std::process::Command;

use clawd::ports::Writers;

use crate::ground::{Ground, in_memory};

/// Says to this very program that it is the one that is measured.
const MEASURED: &str = "CLAW_MEASURED_COPY";

const FILES: u64 = 20_000;

/// Most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn measured_copy() {
    let Some(data) = std::env::var_os(MEASURED) else { return };
    let ground = Ground::at(&std::path::PathBuf::from(data));
    let before = peak();
    for writers in [Writers::Somebody, Writers::Somebody, Writers::Nobody] {
        ground.copy(writers).await;
    }
    println!("\npeak {before} {}", peak());
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the adapter runs in a process of its own here")]
async fn memory_does_not_grow_with_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    in_memory(dir.path(), "size=64m");
    let ground = Ground::at(&dir.path().join("lib"));
    for n in 0..FILES {
        ground.write(&format!("directory {}/file with some name {n}", n % 100), "");
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::measured_copy", "--nocapture"])
        .env(MEASURED, dir.path().join("lib"))
        .output()
        .unwrap();
    ground.assert_same();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said.lines().find_map(|line| line.strip_prefix("peak ")).expect("it says so");
    let (before, after) = line.split_once(' ').unwrap();
    let grown = after.parse::<u64>().unwrap().saturating_sub(before.parse().unwrap());
    assert!(grown < 2048, "{FILES} files took {grown} KiB: {line}");
}
