//! A database that is written to without pause, and a process that is stopped for a moment.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rusqlite::Connection;

use crate::ground::{Ground, Holding, noise, run, signal, until};

const ROUNDS: u32 = 6;
/// Says to this very program that it is a gateway, and where its data is.
const GATEWAY: &str = "CLAW_SNAPSHOT_GATEWAY";

/// The gateway: commits rows, and writes down each that was committed.
#[test]
fn gateway() {
    let Some(data) = std::env::var_os(GATEWAY).map(PathBuf::from) else { return };
    let database = open(&data.join("state/openclaw.sqlite"));
    database.pragma_update(None, "wal_autocheckpoint", 50).unwrap();
    database
        .execute_batch("CREATE TABLE message (number INTEGER PRIMARY KEY, content BLOB)")
        .unwrap();
    let acknowledged = fs::File::create(data.join("acknowledged")).unwrap();
    for number in 1_u32.. {
        // A gateway's pace: a thousand commits in a second.
        std::thread::sleep(Duration::from_millis(1));
        let content = noise(u64::from(number), 600);
        database.execute("INSERT INTO message VALUES (?1, ?2)", (number, content)).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&acknowledged, &number.to_le_bytes(), 0).unwrap();
    }
}

fn open(path: &Path) -> Connection {
    let database = Connection::open(path).unwrap();
    database.pragma_update(None, "journal_mode", "wal").unwrap();
    database.pragma_update(None, "synchronous", "normal").unwrap();
    database
}

fn acknowledged(data: &Path) -> u32 {
    let bytes = fs::read(data.join("acknowledged")).unwrap_or_default();
    bytes.try_into().map_or(0, u32::from_le_bytes)
}

/// Whether every thread of a process is stopped.
fn is_stopped(pid: Pid) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[test]
fn every_acknowledged_commit_is_in_the_restored_database() {
    run(async {
        let ground = Ground::new();
        for number in 0..300 {
            ground.write(&format!("sessions/{number}"), noise(number, 10_000));
        }
        fs::create_dir(ground.live().join("state")).unwrap();
        let mut gateway = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "databases::gateway"])
            .env(GATEWAY, ground.live())
            .stdout(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(gateway.id().unwrap()).unwrap());
        let at_hold = std::cell::Cell::new(0);
        for round in 0..ROUNDS {
            let reached = acknowledged(&ground.live()) + 200;
            until("the gateway writes", || acknowledged(&ground.live()) >= reached).await;
            let stopping = Holding {
                holding: Some(Box::new(|| {
                    signal(pid, Signal::SIGSTOP);
                    while !is_stopped(pid) {
                        std::thread::yield_now();
                    }
                    at_hold.set(acknowledged(&ground.live()));
                })),
                releasing: Some(Box::new(|| signal(pid, Signal::SIGCONT))),
                ..Holding::default()
            };
            ground.take_up(&format!("round-{round}"), &stopping).await.unwrap();
            let after = at_hold.get();
            until("the gateway goes on", || acknowledged(&ground.live()) > after).await;
            let cost = ground.worker.last_cost();
            ground.restore(&format!("round-{round}"), round + 2).await.unwrap();
            println!("round {round}: {after} acknowledged, {cost:?}");
            assert_restored(&ground.generation(round + 2), after);
        }
        gateway.kill().await.unwrap();
        ground.assert_sound().await;
    });
}

#[track_caller]
fn assert_restored(data: &Path, at_hold: u32) {
    assert_eq!(acknowledged(data), at_hold, "it is of the moment at which it was held");
    let database = Connection::open(data.join("state/openclaw.sqlite")).unwrap();
    let check: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let (rows, last): (u32, u32) = database
        .query_row("SELECT count(*), max(number) FROM message", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert_eq!(rows, last);
    // One more may have been committed and not acknowledged.
    assert!(last == at_hold || last == at_hold + 1, "{last} rows, {at_hold} acknowledged");
}
