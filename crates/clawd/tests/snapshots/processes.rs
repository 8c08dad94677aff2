//! Processes that are killed, stopped or left alone.

use std::path::PathBuf;
use std::time::Duration;

use clawd::ports::{Snapshots as _, SnapshotsError};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::ground::{
    Ground, Holding, children, files_below, is_alive, job, noise, run, signal, until,
};

/// Rounds of a job that is killed; each at another moment.
const ROUNDS: u32 = 16;
/// Says to this very program that it is an agent that is killed, and where its data is.
const AGENT: &str = "CLAW_SNAPSHOT_AGENT";

#[test]
fn a_killed_job_is_reported_and_damages_nothing() {
    run(async {
        let ground = Ground::new();
        for number in 0..200 {
            ground.write(&format!("{}/{number}", number % 10), noise(number, 20_000));
        }
        let since = Instant::now();
        ground.take("first").await.unwrap();
        let whole = since.elapsed();
        let (mut killed, mut kept) = (0, vec!["first".to_owned()]);
        for round in 0..ROUNDS {
            ground.write(&format!("changed-{round}"), noise(u64::from(round) + 1000, 2_000_000));
            let name = format!("round-{round}");
            let moment = whole * (2 * round + 1) / (2 * ROUNDS);
            let kill = async {
                until("the job has a process", || job().is_some()).await;
                tokio::time::sleep(moment).await;
                if let Some(job) = job() {
                    signal(job, Signal::SIGKILL);
                }
                std::future::pending::<()>().await;
            };
            let writing = Holding::doing(|| ground.write("0/0", format!("round {round}")));
            let taken = tokio::select! {
                taken = ground.take_up(&name, &writing) => taken,
                () = kill => unreachable!(),
            };
            assert_eq!(writing.held.get(), writing.released.get());
            match taken {
                Ok(_) => kept.push(name),
                Err(error @ SnapshotsError::Worker { .. }) => {
                    assert!(error.to_string().contains("killed by signal 9"), "{error}");
                    killed += 1;
                    // It may have been complete.
                    if ground.names().await.contains(&name) {
                        kept.push(name);
                    }
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        println!("{killed} of {ROUNDS} killed");
        assert!(killed >= ROUNDS / 4, "{killed}");
        assert_eq!(ground.names().await, kept);
        ground.assert_sound().await;
        ground.worker.forget(&ground.instance, &[].into(), &|_| ()).await.unwrap();
        ground.take("last").await.unwrap();
        ground.assert_sound().await;
        assert_eq!(files_below(&ground.staging()), Vec::<PathBuf>::new());
        ground.restore("last", 2).await.unwrap();
    });
}

#[test]
fn a_job_that_hangs_is_ended() {
    run(async {
        let ground = Ground::with(|settings| settings.silence = Duration::from_millis(2500));
        ground.write("file", noise(1, 100_000));
        let stopped = std::cell::Cell::new(None);
        let stopping = Holding {
            releasing: Some(Box::new(|| {
                let job = job().unwrap();
                signal(job, Signal::SIGSTOP);
                stopped.set(Some(job));
            })),
            ..Holding::default()
        };
        let refused = ground.take_up("one", &stopping).await;
        // It may have been faster.
        if let Err(refused) = refused {
            assert!(matches!(refused, SnapshotsError::Stuck { .. }), "{refused:?}");
        }
        assert!(!is_alive(stopped.get().unwrap()));
        ground.take("two").await.unwrap();
    });
}

#[test]
fn an_instance_is_held_for_so_long_and_no_longer() {
    run(async {
        let longest = Duration::from_millis(400);
        let ground = Ground::with(|settings| settings.longest_hold = longest);
        ground.write("file", noise(1, 100_000));
        let since = std::cell::Cell::new(None);
        let held = std::cell::Cell::new(Duration::ZERO);
        let hanging = Holding {
            holding: Some(Box::new(|| {
                signal(job().unwrap(), Signal::SIGSTOP);
                since.set(Some(Instant::now()));
            })),
            releasing: Some(Box::new(|| held.set(since.get().unwrap().elapsed()))),
            ..Holding::default()
        };
        let refused = ground.take_up("one", &hanging).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Failed { .. }), "{refused:?}");
        assert!(refused.to_string().contains("held for 0.4 s"), "{refused}");
        assert_eq!(hanging.released.get(), 1);
        assert!(held.get() >= longest && held.get() < longest * 5, "{:?}", held.get());
        assert_eq!(job(), None);
        assert_eq!(ground.names().await, Vec::<String>::new());
        ground.take_up("one", &Holding::default()).await.unwrap();
        assert!(!ground.staging().exists());
    });
}

#[test]
fn a_job_that_is_dropped_ends() {
    run(async {
        let ground = Ground::new();
        ground.write("file", noise(1, 100_000));
        let order = ground.order("one");
        let never = Never;
        {
            let taking = ground.worker.take(&order, Some(&never), &|_| ());
            let begun = until("the job has a process", || job().is_some());
            tokio::select! { _ = taking => unreachable!(), () = begun => {} }
        }
        until("its process is gone", || job().is_none()).await;
        ground.take("one").await.unwrap();
    });
}

/// An instance that never stands still.
struct Never;

impl clawd::ports::Quiesce for Never {
    async fn hold(&self) -> Result<(), clawd::ports::RuntimeError> {
        std::future::pending().await
    }

    async fn release(&self) -> Result<(), clawd::ports::RuntimeError> {
        Ok(())
    }
}

/// The agent: in the midst of a job.
#[test]
fn killed_agent() {
    let Some(data) = std::env::var_os(AGENT) else { return };
    run(async {
        let ground = Ground::at(&PathBuf::from(data), |_| ());
        let refused = ground.take_up("one", &Never).await;
        panic!("{refused:?}");
    });
}

#[test]
fn a_job_ends_with_its_agent() {
    run(async {
        let ground = Ground::new();
        ground.write("file", noise(1, 100_000));
        let mut agent = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "processes::killed_agent"])
            .env(AGENT, &ground.data)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let pid = agent.id().unwrap();
        until("its job waits for the instance", || ground.staging().exists()).await;
        let job = children(pid).first().copied().unwrap();
        signal(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        let since = Instant::now();
        agent.wait().await.unwrap();
        until("the job is gone", || !is_alive(job)).await;
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        // The next agent goes on at once.
        ground.take_up("one", &Holding::default()).await.unwrap();
        assert_eq!(ground.names().await, ["one"]);
        ground.assert_sound().await;
    });
}
