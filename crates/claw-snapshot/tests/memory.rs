//! The worker's memory, with as many files as a large instance has.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::fs;

use support::{Fixture, noise, run};

/// What the worker may take at most, in KiB: 96 MiB.
const LIMIT: u64 = 96 << 10;
const FILES: u64 = 20_000;

#[track_caller]
fn probe(arguments: &[&str]) -> (String, u64) {
    let output = run(env!("CARGO_BIN_EXE_claw-snapshot-probe"), arguments, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    let peak = text.lines().find_map(|line| line.strip_prefix("peak ")).unwrap();
    (text.clone(), peak.parse().unwrap())
}

#[test]
fn twenty_thousand_files_fit() {
    let fixture = Fixture::roomy();
    for directory in 0..200 {
        let directory_path = fixture.source().join(format!("sessions/{directory}"));
        fs::create_dir_all(&directory_path).unwrap();
        for file in 0..FILES / 200 {
            let seed = directory * 1000 + file;
            fs::write(directory_path.join(format!("{file}.jsonl")), noise(seed, 400)).unwrap();
        }
    }
    // And some that are larger than any buffer.
    for number in 0..4 {
        fixture.write(&format!("large-{number}"), noise(number, 8_000_000));
    }
    let (repository, source, out) = (fixture.path("repo"), fixture.source(), fixture.path("out"));
    let [repository, source, out] = [&repository, &source, &out].map(|path| path.to_str().unwrap());
    probe(&["create", repository]);
    let (text, first) = probe(&["snapshot", repository, source, "4000000000000"]);
    let id = text.lines().find_map(|line| line.strip_prefix("snapshot ")).unwrap().to_owned();
    fixture.write("sessions/7/7.jsonl", "changed");
    let (_, second) = probe(&["snapshot", repository, source, "4000000000001"]);
    let (_, restore) = probe(&["restore", repository, &id, out]);
    let (text, verify) = probe(&["verify", repository]);
    assert!(text.contains("sound true"));
    let (_, prune) = probe(&["prune", repository]);
    let [copy, archive, unpacked] =
        ["copy", "archive.tar.zst", "unpacked"].map(|name| fixture.path(name));
    let [copy, archive, unpacked] = [&copy, &archive, &unpacked].map(|path| path.to_str().unwrap());
    let (_, replicate) = probe(&["replicate", repository, copy]);
    let (_, export) = probe(&["export", copy, &id, archive]);
    let (_, unpack) = probe(&["unpack", archive, unpacked]);
    for (name, peak) in [
        ("first", first),
        ("second", second),
        ("restore", restore),
        ("verify", verify),
        ("prune", prune),
        ("replicate", replicate),
        ("export", export),
        ("unpack", unpack),
    ] {
        println!("{name}: {peak} KiB");
        assert!(peak < LIMIT, "{name}: {peak} KiB");
    }
}
