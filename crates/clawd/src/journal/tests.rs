use claw_core::cutover::{Cutover, Deployment, Migration, RefusedTarget, Replaced, Stage, Verdict};
use claw_core::data::DataGeneration;
use claw_core::event::{EventKind, Severity};
use claw_core::name::{ImageRef, SnapshotName};
use claw_core::reclaim::Reclaimed;
use claw_core::restart::RestartHistory;
use claw_core::spec::{RestoreOrder, RestoreSource};
use tokio::task::LocalSet;

use super::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn name(text: &str) -> InstanceName {
    InstanceName::parse(text).unwrap()
}

fn stamp(generation: u64, bytes: &[u8]) -> Stamp {
    Stamp { epoch: Epoch(2), generation: Generation(generation), digest: Digest::of(bytes) }
}

fn image(text: &str) -> ImageRef {
    ImageRef::parse(text).unwrap()
}

fn data(number: u32) -> DataGeneration {
    DataGeneration::new(number).unwrap()
}

fn cutover(stage: Stage) -> Cutover {
    let snapshot = SnapshotName::parse("monday").unwrap();
    Cutover {
        image: image("openclaw:2"),
        restore: Some(RestoreOrder { number: 7, snapshot, from: RestoreSource::Offsite }),
        data: data(5),
        asked: (7, 1),
        begun: at(3),
        stage,
    }
}

/// Everything that can be remembered.
fn remembered() -> Remembered {
    let digest = Digest::of(b"x");
    Remembered {
        record: Record {
            restarts_done: 3,
            started_with_secrets: Some(digest),
            history: RestartHistory::restore(Some(digest), vec![at(1), at(2)]),
            pull_not_before: None,
            retry_not_before: None,
            active: Some(Deployment { image: image("openclaw:1"), data: data(4) }),
            cutover: Some(cutover(Stage::Preparing)),
            restored: 6,
            refused: Some(RefusedTarget {
                image: image("openclaw:3"),
                restore: 1,
                rebuilds: 2,
                problem: "it crashed".to_owned(),
                at: at(8),
            }),
            reverts: 2,
            replaced: Some(Replaced { data: data(3), since: at(1), until: at(2) }),
            doomed: [data(1), data(2)].into(),
            reclaimed: Some(Reclaimed {
                snapshot: SnapshotName::parse("pause-7").unwrap(),
                into: Some(data(5)),
            }),
        },
        files: Some(digest),
        restart_count: 4,
        died: true,
        last_exit: Some(Exit { code: 137, oom: true, at: at(5) }),
        seen_exit: Some(("c".to_owned(), at(5))),
        stop: Some(StopIntent {
            container: "c".to_owned(),
            reason: StopReason::Hung,
            until: at(9),
        }),
        start: Some(StartIntent { at: at(7), secrets: digest, restarts: 5 }),
        boot: Some("b".to_owned()),
        healthy: Some(HealthyRun { container: "c".to_owned(), since: at(1), healthy_since: at(2) }),
    }
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn what_is_remembered_comes_back() {
    for kept in [Remembered::default(), remembered()] {
        assert_eq!(stored::decode(&stored::encode(&kept)).unwrap(), kept);
    }
    let stages = [
        Stage::Preparing,
        Stage::Switching { migration: Migration::Unknown },
        Stage::Switching { migration: Migration::Needed },
        Stage::Probing { migration: Migration::Done, deadline: at(9) },
        Stage::Reverting { problem: "p".to_owned(), verdict: Verdict::Failed },
        Stage::Reverting { problem: String::new(), verdict: Verdict::Superseded },
    ];
    for stage in stages {
        let mut kept = Remembered::default();
        kept.record.cutover = Some(cutover(stage));
        assert_eq!(stored::decode(&stored::encode(&kept)).unwrap(), kept);
    }
    for reason in
        ["wanted", "restart", "replacement", "removal", "revert", "startup deadline", "hung"]
    {
        let text = format!(r#"{{"stop":{{"container":"c","reason":"{reason}","until":1}}}}"#);
        assert_eq!(stored::decode(&text).unwrap().stop.unwrap().reason.to_string(), reason);
    }
    assert!(
        stored::decode("{\"stop\":{\"container\":\"c\",\"reason\":\"?\",\"until\":1}}").is_err()
    );
    assert!(stored::decode("{\"files\":\"zz\"}").is_err());
}

#[test]
fn a_journal_survives_its_agent() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (journal, recovered) = Journal::open(directory.path(), at(0)).unwrap();
        assert!(recovered.state.is_none() && recovered.instances.is_empty());
        let slot = Slot::new(7).unwrap();
        let state = b"a state with a s3cret".as_slice();
        journal.persist_state(&stamp(1, state), state, vec![(name("a"), slot)]).await.unwrap();
        let steps = vec!["one".to_owned(), "two".to_owned()];
        let ids =
            journal.begin(&name("a"), &remembered(), Generation(1), steps, at(1)).await.unwrap();
        let done = StepOutcome { id: ids[0], outcome: "done".to_owned() };
        journal.finish(&name("a"), &remembered(), vec![done], at(2)).await.unwrap();
        drop(journal);

        let (journal, recovered) = Journal::open(directory.path(), at(3)).unwrap();
        let persisted = recovered.state.unwrap();
        assert_eq!(persisted.stamp, stamp(1, state));
        assert_eq!(persisted.bytes.unwrap().as_slice(), state);
        assert_eq!(recovered.instances[&name("a")], (slot, remembered()));
        assert_eq!(recovered.interrupted, 1);
        assert_eq!(journal.steps(&name("a")).unwrap(), ["one: done", "two: interrupted"]);
        journal.forget(&name("a")).await.unwrap();
        drop(journal);
        let file = std::fs::read(directory.path().join("journal.db")).unwrap();
        assert!(!file.windows(6).any(|window| window == b"s3cret"));

        std::fs::remove_file(directory.path().join("seal.key")).unwrap();
        let (_journal, recovered) = Journal::open(directory.path(), at(4)).unwrap();
        assert!(recovered.instances.is_empty());
        let persisted = recovered.state.unwrap();
        assert_eq!((persisted.stamp, persisted.bytes.is_none()), (stamp(1, state), true));
    });
}

#[test]
fn steps_and_events_are_bounded() {
    run(async {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path(), at(0)).unwrap();
        let slot = Slot::new(0).unwrap();
        journal.add(&name("a"), slot).await.unwrap();
        for round in 0..30_i64 {
            let steps = (0..100).map(|step| format!("{round}.{step}")).collect();
            let kept = Remembered::default();
            journal.begin(&name("a"), &kept, Generation(1), steps, at(round)).await.unwrap();
        }
        let steps = journal.steps(&name("a")).unwrap();
        assert_eq!(steps.len(), 2000);
        assert_eq!(steps.last().unwrap(), "29.99: open");

        let mut news = journal.events().subscribe();
        for number in 0..5000 {
            journal.events().append(NewEvent {
                at: at(number),
                instance: Some(name("a")),
                kind: EventKind::StepDone,
                severity: Severity::Info,
                message: "x".repeat(5000),
            });
            if number % 500 == 0 {
                journal.answer().await.unwrap();
            }
        }
        news.wait_for(|range| range.next == 5001).await.unwrap();
        assert_eq!(*news.borrow(), EventRange { oldest: 905, next: 5001 });
        let events = journal.events().from(0, 3).unwrap();
        let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, [905, 906, 907]);
        assert_eq!(events[0].message.len(), 1000);
        drop(journal);
        let (journal, _) = Journal::open(directory.path(), at(1)).unwrap();
        assert_eq!(journal.events().subscribe().borrow().next, 5001);
    });
}
