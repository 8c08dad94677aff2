//! Copies in a storage: when they are made, broken off, told, and what comes of a change of storage.

use std::time::Duration;

use claw_core::backup::{BackupPolicy, SnapshotCause};
use claw_core::event::{EventKind, Severity};
use claw_core::offsite::OffsitePolicy;

use super::super::request::{BackupWork, Extent};
use super::world::{DAY, HOUR, Running, World, name, run, storage};
use crate::fakes::{Mishap, Reach};

/// Daily snapshots, no drills, and this said of copies.
fn policy(offsite: OffsitePolicy) -> BackupPolicy {
    BackupPolicy { drill_every: None, offsite, ..BackupPolicy::default() }
}

/// A running loop with one snapshot of "a", copied to the bucket "claws".
async fn copied(world: &World) -> Running {
    world.offer("claws");
    let agent = world.start();
    agent.copy_to(Some("claws"));
    agent.up("a");
    agent.until("copied", || agent.is_offsite("a")).await;
    agent
}

#[test]
fn a_repository_is_copied_after_every_change_and_only_then() {
    run(async {
        let world = World::new();
        let agent = copied(&world).await;
        let report = agent.report("a").offsite;
        assert!(report.path.starts_with("fleet/web-1/a/"), "{}", report.path);
        assert_eq!((report.overdue, report.problem.as_str()), (false, ""));
        let waited = agent.now().since(agent.report("a").snapshots[0].taken_at);
        assert!(waited <= Duration::from_secs(60), "{waited:?}");
        let there = world.machine.snapshots.storage().copied(&storage("claws"), &report.path);
        assert_eq!(there.map(|names| names.len()), Some(1));
        assert_eq!(world.times("copy-out"), 1);
        agent.pass(6 * HOUR).await;
        assert_eq!((world.times("copy-out"), agent.taken("a").len()), (1, 1), "nothing changed");
        agent.until("two", || agent.taken("a").len() == 2).await;
        assert!(!agent.is_offsite("a"));
        agent.until("copied again", || agent.is_offsite("a")).await;
        assert!(agent.report("a").offsite.copied_at > report.copied_at);
        assert_eq!(agent.count(EventKind::OffsiteFailed), 0);
        // A new agent knows it, and copies nothing again.
        let copies = world.times("copy-out");
        agent.kill().await;
        let agent = world.start();
        agent.copy_to(Some("claws"));
        agent.up("a");
        agent.until("looked", || agent.is_offsite("a")).await;
        assert_eq!(world.times("copy-out"), copies);
    });
}

#[test]
fn nothing_is_copied_without_a_storage_or_against_the_policy() {
    run(async {
        let world = World::new();
        world.offer("claws");
        let agent = world.start();
        agent.with_policy("a", policy(OffsitePolicy::Never));
        agent.up("b");
        agent.pass(3 * DAY).await;
        assert_eq!(world.times("copy-out"), 0);
        assert_eq!(agent.report("b").offsite, Default::default());
        agent.copy_to(Some("claws"));
        agent.until("copied", || agent.is_offsite("b")).await;
        agent.pass(3 * DAY).await;
        assert!(!agent.is_offsite("a"));
        assert!(!agent.report("a").offsite.overdue);
        let paths = world.machine.snapshots.storage().paths(&storage("claws"));
        assert_eq!(paths.len(), 1, "{paths:?}");
    });
}

#[test]
fn copies_that_are_required_need_a_storage() {
    run(async {
        let world = World::new();
        world.offer("claws");
        let agent = world.start();
        agent.with_policy("a", policy(OffsitePolicy::Required));
        agent.until("told", || agent.count(EventKind::OffsiteOverdue) == 1).await;
        let why = "copies off-site are required, and this host has no storage for them";
        let report = agent.report("a");
        assert_eq!((report.offsite.overdue, report.offsite.problem.as_str()), (true, why));
        assert_eq!((report.overdue, report.problem.as_str()), (false, ""));
        assert_eq!(agent.event(EventKind::OffsiteOverdue, Severity::Warning).message, why);
        agent.pass(2 * DAY).await;
        assert_eq!(agent.count(EventKind::OffsiteOverdue), 1);
        agent.copy_to(Some("claws"));
        agent.until("copied", || agent.is_offsite("a")).await;
        assert!(!agent.report("a").offsite.overdue);
    });
}

#[test]
fn a_copy_that_fails_is_told_once_tried_rarely_and_no_problem_of_the_snapshots() {
    run(async {
        let world = World::new();
        let agent = copied(&world).await;
        let buckets = world.machine.snapshots.storage();
        buckets.set_reach(Reach::None);
        agent.until("failed", || agent.count(EventKind::OffsiteFailed) == 1).await;
        let before = world.times("copy-out");
        let taken = agent.taken("a").len();
        agent.until("late", || agent.report("a").offsite.overdue).await;
        agent.pass(HOUR).await;
        assert_eq!(agent.count(EventKind::OffsiteFailed), 1);
        assert_eq!(agent.count(EventKind::OffsiteOverdue), 1);
        let tries = world.times("copy-out") - before;
        assert!((8..=40).contains(&tries), "{tries}");
        let report = agent.report("a");
        assert!(report.offsite.problem.contains("cannot be reached"), "{report:?}");
        assert_eq!((report.problem.as_str(), report.overdue), ("", false));
        let told = agent.event(EventKind::OffsiteOverdue, Severity::Warning);
        assert!(told.message.contains("within 12 h"), "{}", told.message);
        agent.pass(DAY).await;
        assert!(agent.taken("a").len() > taken, "snapshots go on");
        // A new agent does not tell it again.
        agent.kill().await;
        let agent = world.start();
        agent.copy_to(Some("claws"));
        agent.up("a");
        agent.pass(HOUR).await;
        assert_eq!(agent.count(EventKind::OffsiteFailed), 1);
        assert_eq!(agent.count(EventKind::OffsiteOverdue), 1);
        buckets.set_reach(Reach::All);
        agent.until("copied", || agent.is_offsite("a")).await;
        assert_eq!(agent.count(EventKind::OffsiteRecovered), 1);
        assert_eq!(agent.report("a").offsite.problem, "");
        buckets.set_reach(Reach::None);
        agent.until("told again", || agent.count(EventKind::OffsiteFailed) == 2).await;
    });
}

#[test]
fn a_key_that_was_put_right_is_tried_at_once() {
    run(async {
        let world = World::new();
        world.offer("claws");
        let agent = world.start();
        agent.copy_to(Some("claws"));
        let wrong = claw_core::spec::Secret::new("wrong".to_owned());
        let wrong = claw_core::offsite::OffsiteStorage { secret_key: wrong, ..storage("claws") };
        agent.agent.roster.copy_to(Some(wrong));
        agent.up("a");
        agent.until("failed", || agent.count(EventKind::OffsiteFailed) == 1).await;
        agent.pass(10 * HOUR).await;
        assert!(agent.report("a").offsite.problem.contains("credentials"));
        agent.copy_to(Some("claws"));
        let before = agent.now();
        agent.until("copied", || agent.is_offsite("a")).await;
        assert!(agent.now().since(before) <= Duration::from_secs(60));
    });
}

#[test]
fn another_storage_gets_everything_anew() {
    run(async {
        let world = World::new();
        let agent = copied(&world).await;
        agent.until("two", || agent.taken("a").len() == 2 && agent.is_offsite("a")).await;
        world.offer("other");
        agent.copy_to(Some("other"));
        agent.settle().await;
        let report = agent.report("a");
        assert!(report.snapshots.iter().all(|snapshot| !snapshot.offsite), "{report:#?}");
        assert_eq!((report.offsite.path.as_str(), report.offsite.copied_at), ("", None));
        assert!(!report.offsite.overdue, "it is not late before it could have been copied");
        agent.until("copied", || agent.is_offsite("a")).await;
        let path = agent.report("a").offsite.path;
        let there = world.machine.snapshots.storage().copied(&storage("other"), &path);
        assert_eq!(there.map(|names| names.len()), Some(2));
        // Without one nothing is said to be there; nothing is forgotten either.
        agent.copy_to(None);
        agent.settle().await;
        assert!(!agent.is_offsite("a"));
        agent.copy_to(Some("other"));
        agent.settle().await;
        assert!(agent.is_offsite("a"));
    });
}

#[test]
fn what_the_host_drops_goes_from_the_copy_after_a_sound_verification_only() {
    run(async {
        let world = World::new();
        let agent = copied(&world).await;
        agent.until("two", || agent.taken("a").len() == 2 && agent.is_offsite("a")).await;
        let path = agent.report("a").offsite.path;
        let there = || {
            let copied = world.machine.snapshots.storage().copied(&storage("claws"), &path);
            copied.unwrap_or_default()
        };
        assert_eq!(agent.ask("a", BackupWork::Verify(Extent::Structure)).await, Ok(()));
        agent.settle().await;
        let oldest = agent.taken("a").remove(0);
        let copies = world.times("copy-out");
        assert_eq!(agent.ask("a", BackupWork::Forget(oldest.clone())).await, Ok(()));
        agent.until("forgotten", || agent.taken("a").len() == 1).await;
        agent.until("copied", || world.times("copy-out") > copies).await;
        assert!(there().contains(&oldest), "the verification was before it was dropped");
        let verified = agent.report("a").verified_at;
        agent.until("verified", || agent.report("a").verified_at > verified).await;
        agent.until("swept", || !there().contains(&oldest)).await;
        agent.settle().await;
        assert!(agent.is_offsite("a"));
        assert_eq!(there(), agent.taken("a").into_iter().collect());
    });
}

#[test]
fn damage_keeps_the_copy_as_it_is() {
    run(async {
        let world = World::new();
        let agent = copied(&world).await;
        agent.until("three", || agent.taken("a").len() == 3 && agent.is_offsite("a")).await;
        let path = agent.report("a").offsite.path;
        let [first, second, _] = &agent.taken("a")[..] else { panic!("three") };
        let (first, second) = (first.clone(), second.clone());
        world.machine.snapshots.damage(&name("a"), &second);
        assert_eq!(agent.ask("a", BackupWork::Forget(first.clone())).await, Ok(()));
        agent.until("told", || agent.count(EventKind::SnapshotDamaged) == 1).await;
        agent.pass(3 * DAY).await;
        let there = world.machine.snapshots.storage().copied(&storage("claws"), &path);
        let there = there.expect("copied");
        assert!(there.contains(&first) && there.contains(&second), "{there:?}");
        let report = agent.report("a");
        let damaged = report.snapshots.iter().find(|s| s.name == second).expect("listed");
        assert!(damaged.offsite, "it was copied while it was sound");
    });
}

#[test]
fn a_copy_is_broken_off_for_whatever_becomes_due_and_goes_on() {
    for what in ["asked", "pause", "schedule"] {
        run(async move {
            let world = World::new();
            let agent = copied(&world).await;
            agent.up("b");
            agent.until("of b", || agent.is_offsite("b")).await;
            world.machine.mishaps().named("copy-out", 1, Mishap::HangsBefore);
            let copies = world.times("copy-out");
            agent.until("stuck", || world.times("copy-out") > copies).await;
            let stuck_since = agent.now();
            let (a, b) = (agent.taken("a").len(), agent.taken("b").len());
            match what {
                "asked" => {
                    let work = BackupWork::Take(super::world::snapshot("wanted"));
                    assert_eq!(agent.ask("b", work).await, Ok(()));
                    agent.settle().await;
                    assert_eq!(agent.taken("b").len(), b + 1);
                }
                "pause" => {
                    agent.down("b", Some(SnapshotCause::Pause));
                    agent.settle().await;
                    agent.settle().await;
                    assert_eq!(agent.taken("b").len(), b + 1);
                }
                _ => {
                    let more = || agent.taken("a").len() + agent.taken("b").len() > a + b;
                    agent.until("the next", more).await;
                }
            }
            assert!(agent.now().since(stuck_since) < DAY + HOUR, "{what}");
            agent.until("copied", || agent.is_offsite("a") && agent.is_offsite("b")).await;
            assert_eq!(agent.count(EventKind::OffsiteFailed), 0, "{what}");
        });
    }
}

#[test]
fn a_copy_to_a_storage_that_is_taken_away_is_broken_off() {
    run(async {
        let world = World::new();
        world.offer("claws");
        let agent = world.start();
        world.machine.mishaps().named("copy-out", 1, Mishap::HangsBefore);
        agent.copy_to(Some("claws"));
        agent.up("a");
        agent.until("stuck", || world.times("copy-out") == 1).await;
        agent.copy_to(None);
        agent.settle().await;
        assert_eq!(agent.ask("a", BackupWork::Verify(Extent::Data)).await, Ok(()));
        agent.settle().await;
        assert!(agent.report("a").verified_at.is_some(), "the loop is free");
        agent.pass(DAY).await;
        assert_eq!(world.times("copy-out"), 1);
    });
}

#[test]
fn a_copy_of_many_hours_is_no_failure() {
    run(async {
        let world = World::new();
        world.offer("claws");
        let agent = world.start();
        world.machine.mishaps().named("copy-out", 5, Mishap::HangsBefore);
        agent.copy_to(Some("claws"));
        agent.up("a");
        agent.until("stuck", || world.times("copy-out") == 1).await;
        agent.pass(4 * HOUR + HOUR / 2).await;
        assert_eq!(world.times("copy-out"), 5, "an hour each");
        assert_eq!(agent.count(EventKind::OffsiteFailed), 0);
        agent.until("copied", || agent.is_offsite("a")).await;
    });
}

#[test]
fn wherever_the_agent_is_killed_while_it_copies_the_next_one_goes_on() {
    for mishap in [Mishap::HangsBefore, Mishap::HangsAfter] {
        run(async move {
            let world = World::new();
            let agent = copied(&world).await;
            world.machine.mishaps().named("copy-out", 1, mishap);
            let copies = world.times("copy-out");
            agent.until("stuck", || world.times("copy-out") > copies).await;
            agent.kill().await;
            let agent = world.start();
            agent.copy_to(Some("claws"));
            agent.up("a");
            agent.until("copied", || agent.is_offsite("a")).await;
            assert_eq!(agent.report("a").offsite.problem, "");
        });
    }
}
