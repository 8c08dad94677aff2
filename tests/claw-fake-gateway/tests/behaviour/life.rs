//! Starting, stopping, crashing; configuration, lease and state.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::gateway::{Home, PATIENCE, body, get};

#[track_caller]
fn refuses(home: &Home, switches: &[(&str, &str)], code: i32, message: &str) {
    let mut gateway = home.start(switches);
    assert_eq!(gateway.exit(), code, "{}", gateway.log());
    assert!(gateway.log().contains(message), "{}", gateway.log());
}

#[test]
fn without_configuration_it_exits_with_78_unless_allowed() {
    let home = Home::empty();
    refuses(&home, &[], 78, "gateway.mode=local");
    home.write("openclaw.json", "{ gateway: { mode: 'remote' } }");
    refuses(&home, &[], 78, "gateway.mode=local");
    let allowed = ["gateway", "--allow-unconfigured", "--port", "0", "--bind", "loopback"];
    home.command(&allowed, &[]).ready();
}

#[test]
fn invalid_configuration_exits_with_78() {
    let home = Home::empty();
    home.write("openclaw.json", "{ gateway: { mode: 'local' }, nope: 1 }");
    refuses(&home, &[], 78, "nope: unknown key");
    home.write("openclaw.json", "{ gateway: ");
    refuses(&home, &[], 78, "not JSON5");
}

#[test]
fn a_misspelt_switch_exits_with_2() {
    let home = Home::configured();
    refuses(&home, &[("STARTT_MS", "1")], 2, "there is no switch CLAW_FAKE_STARTT_MS");
    refuses(&home, &[("START_MS", "soon")], 2, "is no number that fits");
    refuses(&home, &[("HANG", "yes")], 2, "is no number that fits");
}

#[test]
fn switches_are_read_from_the_env_file_too() {
    let home = Home::configured();
    home.write(".env", "CLAW_FAKE_CRASH_BEFORE_READY=1\nCLAW_FAKE_EXIT_CODE=9\n");
    assert_eq!(home.start(&[]).exit(), 9);
    assert_eq!(home.start(&[("EXIT_CODE", "7")]).exit(), 7);
}

#[test]
fn without_a_token_it_warns_and_makes_one_up() {
    let home = Home::configured();
    home.write(".env", "");
    let mut digests = Vec::new();
    for _ in 0..2 {
        let mut gateway = home.start(&[("CONTROL", "1")]);
        gateway.wait_for_log("using a random one");
        digests.push(body(gateway.ready(), "/__fake/token-sha256"));
        gateway.signal(Signal::SIGTERM);
        assert_eq!(gateway.exit(), 0);
    }
    assert_eq!(digests[0].len(), 64);
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn the_token_comes_from_the_env_file() {
    let home = Home::configured();
    let mut gateway = home.start(&[("CONTROL", "1")]);
    // sha256 of "t0ken", from coreutils.
    let expected = "b46c09677343261f0b439a472422225e3a230c9c094d6ab16762e2036b597053";
    assert_eq!(body(gateway.ready(), "/__fake/token-sha256"), expected);
    assert!(!gateway.log().contains("t0ken"));
}

#[test]
fn a_second_sigterm_neither_hurries_nor_stops_the_drain() {
    let home = Home::configured();
    let mut gateway = home.start(&[("DRAIN_MS", "1000")]);
    gateway.ready();
    gateway.signal(Signal::SIGTERM);
    gateway.wait_for_log("shutting down");
    gateway.signal(Signal::SIGTERM);
    gateway.wait_for_log("ignoring");
    assert_eq!(gateway.exit(), 0);
    assert!(!home.path().join("state/lease").exists());
}

#[test]
fn sigterm_before_it_listens_ends_it_cleanly() {
    let home = Home::configured();
    let mut gateway = home.start(&[("NEVER_LISTEN", "1")]);
    gateway.wait_for_log("gateway ready");
    gateway.signal(Signal::SIGINT);
    assert_eq!(gateway.exit(), 0);
    assert!(!gateway.log().contains("listening"));
}

#[test]
fn crashes_end_with_the_code_asked_for_and_leave_the_lease() {
    let home = Home::configured();
    let mut gateway = home.start(&[("EXIT_AFTER_MS", "1"), ("EXIT_CODE", "42")]);
    assert_eq!(gateway.exit(), 42);
    assert!(gateway.log().contains("gateway ready"));
    assert!(home.path().join("state/lease").exists());

    let mut gateway = home.start(&[("CONTROL", "1")]);
    // It can be dead before it has answered.
    let _ = get(gateway.ready(), "/__fake/crash?code=3");
    assert_eq!(gateway.exit(), 3);
}

#[test]
fn after_a_kill_the_same_hostname_starts_at_once_and_another_does_not() {
    let home = Home::configured();
    let mut gateway = home.start(&[]);
    gateway.ready();
    gateway.signal(Signal::SIGKILL);
    assert_eq!(gateway.exit(), -9);

    let mut gateway = home.start(&[]);
    gateway.ready();
    gateway.signal(Signal::SIGKILL);
    gateway.exit();

    let lease = home.path().join("state/lease");
    let mut left: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&lease).unwrap()).unwrap();
    left["host"] = "another-host".into();
    fs::write(&lease, left.to_string()).unwrap();
    refuses(&home, &[], 1, "Another Gateway owner lease is still active");

    left["expires"] = 1.into();
    fs::write(&lease, left.to_string()).unwrap();
    home.start(&[]).ready();
}

#[test]
fn two_gateways_never_share_a_state_directory() {
    let home = Home::configured();
    let mut first = home.start(&[]);
    first.ready();
    refuses(&home, &[], 1, "Another Gateway owner lease is still active");
}

#[test]
fn state_migrates_forward_and_never_back() {
    let home = Home::configured();
    let run = |version: &str| {
        let mut gateway = home.start(&[("STATE_VERSION", version), ("CONTROL", "1")]);
        let found = body(gateway.ready(), "/__fake/state-version");
        gateway.signal(Signal::SIGTERM);
        assert_eq!(gateway.exit(), 0);
        found
    };
    assert_eq!(run("18"), "18");
    assert_eq!(run("19"), "19");
    refuses(&home, &[("STATE_VERSION", "18")], 78, "newer than this build understands");
}

#[test]
fn a_build_that_needs_doctor_starts_after_doctor() {
    let home = Home::configured();
    let old = &[("STATE_VERSION", "18"), ("CRASH_BEFORE_READY", "1")];
    assert_eq!(home.start(old).exit(), 1);
    let new = &[("STATE_VERSION", "19"), ("NEEDS_DOCTOR", "1")];
    refuses(&home, new, 78, "gateway.maintenance_required");
    let doctor = ["doctor", "--fix", "--yes", "--non-interactive"];
    assert_eq!(home.command(&doctor, new).exit(), 0);
    home.start(new).ready();
}

#[test]
fn a_migration_can_fail_after_it_touched_the_state() {
    let home = Home::configured();
    assert_eq!(home.start(&[("CRASH_BEFORE_READY", "1")]).exit(), 1);
    let failing = &[("STATE_VERSION", "19"), ("MIGRATION_FAILS", "1")];
    refuses(&home, failing, 1, "failed half way");
    refuses(&home, &[("STATE_VERSION", "18")], 78, "newer than this build understands");
}

#[test]
fn rows_survive_a_kill() {
    let home = Home::configured();
    let mut gateway = home.start(&[("CONTROL", "1")]);
    let address = gateway.ready();
    assert_eq!(body(address, "/__fake/write?key=order&value=no%201"), "ok");
    gateway.signal(Signal::SIGKILL);
    gateway.exit();
    let mut gateway = home.start(&[("CONTROL", "1")]);
    let address = gateway.ready();
    assert_eq!(body(address, "/__fake/read?key=order"), "no 1");
    assert!(get(address, "/__fake/read?key=nothing").starts_with("HTTP/1.1 404 "));
    assert!(get(address, "/__fake/write?key=&value=x").starts_with("HTTP/1.1 400 "));
}

#[test]
fn what_the_writer_acknowledged_is_in_the_database_after_a_kill() {
    let home = Home::configured();
    let [acked, database] =
        ["acked", "openclaw.sqlite"].map(|name| home.path().join("state").join(name));
    let mut rows = 0;
    for _ in 0..2 {
        let mut gateway = home.start(&[("WRITER_MS", "0")]);
        gateway.ready();
        let lines = || fs::read_to_string(&acked).unwrap_or_default().lines().count();
        let wrote = (0..PATIENCE.as_millis()).any(|_| {
            lines() >= rows + 20 || {
                std::thread::sleep(Duration::from_millis(1));
                false
            }
        });
        assert!(wrote, "{} rows after {rows}: {}", lines(), gateway.log());
        gateway.signal(Signal::SIGKILL);
        gateway.exit();
        rows = lines();
    }
    let text = fs::read_to_string(&acked).unwrap();
    let acked: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
    let database = rusqlite::Connection::open(database).unwrap();
    for id in acked {
        let found = database.query_row("SELECT 1 FROM row WHERE id = ?1", [id], |_| Ok(()));
        assert_eq!(found, Ok(()), "row {id} was acknowledged");
    }
}

#[test]
fn a_build_says_which_it_is_and_which_rows_it_has() {
    let home = Home::configured();
    let mut gateway = home.start(&[("CONTROL", "1"), ("BUILD", "v2")]);
    let address = gateway.ready();
    assert_eq!(body(address, "/__fake/build"), "v2");
    for key in ["a", "b"] {
        let written = body(address, &format!("/__fake/write?key={key}&value=1"));
        assert_eq!(written, "ok v2");
    }
    assert_eq!(body(address, "/__fake/keys"), "a\nb");
}

#[test]
fn memory_is_small_until_it_is_eaten() {
    let home = Home::configured();
    let mut gateway = home.start(&[("CONTROL", "1")]);
    let address = gateway.ready();
    let before = resident_kib(gateway.pid());
    assert!(before < 8 * 1024, "an unoptimised build takes {before} KiB");
    assert_eq!(body(address, "/__fake/eat?mb=64"), "ok");
    gateway.wait_for_log("memory eaten");
    let after = resident_kib(gateway.pid());
    assert!(after > 64 * 1024, "{after} KiB");
}

#[test]
fn the_configuration_can_be_validated_without_serving() {
    let home = Home::configured();
    let words = ["node", "openclaw.mjs", "config", "validate", "--json"];
    let mut valid = home.command(&words, &[]);
    assert_eq!(valid.exit(), 0);
    assert!(valid.printed().contains(r#""valid":true"#));
    home.write("openclaw.json", "{ nope: 1 }");
    let mut invalid = home.command(&words, &[]);
    assert_eq!(invalid.exit(), 1);
    let printed = invalid.printed();
    assert!(printed.contains(r#"{"message":"unknown key","path":"nope"}"#), "{printed}");
}

/// `VmRSS` of proc(5).
fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
