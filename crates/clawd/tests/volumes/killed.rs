//! An agent that is killed while it copies.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use clawd::adapters::clock::SystemClock;
use clawd::ports::{Clock as _, Volumes, Writers};
use rand::Rng;

use crate::ground::{Ground, SECOND, in_memory};

/// Says to this very program that it is the agent that is killed, and where it works.
const AGENT: &str = "CLAW_KILLED_COPY";

const FILES: usize = 600;

/// The agent: a whole change of version, again and again.
#[tokio::test]
async fn killed_agent() {
    let Some(data) = std::env::var_os(AGENT) else { return };
    let ground = Ground::at(&PathBuf::from(data));
    loop {
        for writers in [Writers::Somebody, Writers::Held, Writers::Nobody] {
            ground.copy(writers).await;
        }
        ground.volumes.remove(&ground.instance, SECOND).await.unwrap();
    }
}

/// Until it has got as far as one round takes, at most.
#[expect(clippy::disallowed_methods, reason = "the adapter runs in a process of its own here")]
fn kill_at_some_moment(data: &std::path::Path, round: Duration) {
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::killed_agent", "--nocapture"])
        .env(AGENT, data)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let moment = round.mul_f64(rand::rng().random_range(0.0..1.3));
    std::thread::sleep(moment);
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[tokio::test]
async fn whatever_is_left_the_next_agent_finishes_it() {
    let dir = tempfile::tempdir().unwrap();
    // A kill is no power cut: what was written stays, wherever it lies.
    in_memory(dir.path(), "size=64m");
    let ground = Ground::at(&dir.path().join("lib"));
    for n in 0..FILES {
        ground.write(&format!("dir {}/{}/file {n}", n % 13, n % 5), &n.to_string().repeat(500));
    }
    fs::hard_link(ground.first("dir 0/0/file 0"), ground.first("another name")).unwrap();
    ground.settle().await;
    let begun = SystemClock.now();
    for writers in [Writers::Somebody, Writers::Held, Writers::Nobody] {
        ground.copy(writers).await;
    }
    ground.volumes.remove(&ground.instance, SECOND).await.unwrap();
    let round = SystemClock.now().since(begun);
    let (mut complete, mut half) = (0, 0);
    for kill in 0..30 {
        kill_at_some_moment(&dir.path().join("lib"), round);
        if ground.is_complete().await {
            ground.assert_same();
            complete += 1;
        } else if ground.path(SECOND).exists() {
            half += 1;
        }
        ground.write(&format!("written after kill {kill}"), "new");
        if kill % 2 == 0 {
            ground.copy(Writers::Nobody).await;
            ground.assert_same();
            assert!(ground.is_complete().await);
        }
    }
    assert!(half > 0, "{complete} were complete, {half} were not: it was killed too late");
    ground.volumes.remove(&ground.instance, SECOND).await.unwrap();
    assert_eq!(fs::read_dir(ground.home()).unwrap().count(), 1, "nothing is left behind");
}
