//! The loop on a machine in memory, with a roster that the tests write: no instance's loop takes part.

mod errands;
mod offsite;
mod world;

use std::time::Duration;

use claw_core::backup::{BackupPolicy, SnapshotCause, SnapshotHealth};
use claw_core::event::{EventKind, Severity};
use claw_core::name::SnapshotName;
use claw_core::unit::MIB;

use super::drill::DRILL_DATA;
use super::request::{BackupWork, Extent};
use crate::fakes::{Mishap, TrialOutcome};
use world::{DAY, HOUR, World, image, name, run, snapshot, spec};

#[test]
fn a_schedule_needs_no_coordinator_and_holds_the_container_still() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("the first", || agent.taken("a").len() == 1).await;
        assert_eq!(world.effects(), ["take-snapshot", "pause", "unpause"]);
        let began = agent.now();
        agent.until("four more", || agent.taken("a").len() == 5).await;
        let days = agent.now().since(began);
        assert!(days > 3 * DAY && days < 6 * DAY, "{days:?}");
        let report = agent.report("a");
        assert_eq!((report.snapshots.len(), report.problem.as_str()), (5, ""));
        assert!(report.next_due.is_some_and(|due| due > agent.now()));
        assert!(!report.overdue);
        assert_eq!(agent.count(EventKind::SnapshotTaken), 5);
        let images: Vec<_> = report.snapshots.iter().map(|s| s.image.clone()).collect();
        assert!(images.iter().all(|of| *of == image()));
    });
}

#[test]
fn a_snapshot_holds_the_spec_and_no_secret() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("taken", || agent.taken("a").len() == 1).await;
        let snapshot = agent.taken("a").remove(0);
        let bytes = world.machine.snapshots.assignment(&name("a"), &snapshot).expect("held");
        let (of, kept) = claw_proto::convert::spec::decode_assignment(&bytes).expect("a spec");
        assert_eq!((of, &kept.image), (name("a"), &image()));
        assert_eq!(kept.secrets.len(), spec().secrets.len());
        let secret = world::TOKEN.as_bytes();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret));
    });
}

#[test]
fn instances_are_done_one_after_the_other_at_times_of_their_own() {
    run(async {
        let world = World::new();
        let agent = world.start();
        for instance in ["a", "b", "c"] {
            agent.up(instance);
        }
        let all = |count| ["a", "b", "c"].iter().all(|i| agent.taken(i).len() == count);
        agent.until("one of each", || all(1)).await;
        agent.until("two of each", || all(2)).await;
        let due = |instance| agent.report(instance).next_due.expect("due some time");
        assert!(due("a") != due("b") && due("b") != due("c"));
    });
}

#[test]
fn a_pause_gets_its_snapshot_before_everything_else_and_its_loop_is_told() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("b");
        agent.down("a", Some(SnapshotCause::Pause));
        agent.until("both", || agent.taken("a").len() + agent.taken("b").len() == 2).await;
        assert_eq!(world.effects(), ["take-snapshot", "take-snapshot", "pause", "unpause"]);
        let held = agent.agent.roster.held(&name("a"));
        assert_eq!(held.at_rest(agent.down_since("a")), claw_core::observed::RestSnapshot::Held);
        // Data that lies still is held as it lies.
        agent.pass(5 * DAY).await;
        assert_eq!(agent.taken("a").len(), 1);
        assert_eq!(agent.report("a").next_due, None);
        assert!(agent.taken("b").len() > 3);
    });
}

#[test]
fn after_three_failures_nobody_waits_for_a_snapshot_at_rest() {
    run(async {
        let world = World::new();
        let agent = world.start();
        world.machine.mishaps().named("take-snapshot", 3, Mishap::FailsBefore);
        agent.down("a", Some(SnapshotCause::Final));
        let gave_up = || agent.agent.roster.held(&name("a")).gave_up;
        agent.until("given up", gave_up).await;
        let began = agent.event(EventKind::SnapshotFailed, Severity::Warning);
        let ended = agent.event(EventKind::SnapshotFailed, Severity::Error);
        let took = ended.at.since(began.at);
        assert!(took >= Duration::from_secs(120) && took < HOUR, "{took:?}");
        assert!(agent.report("a").problem.contains("told to fail"));
        // It goes on all the same, and a later one takes it back.
        agent.until("taken", || agent.taken("a").len() == 1).await;
        agent.settle().await;
        assert!(!gave_up());
        assert_eq!(agent.report("a").problem, "");
    });
}

#[test]
fn a_removed_instance_of_which_nothing_is_remembered_is_held_all_the_same() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.removed("a");
        agent.until("taken", || agent.taken("a").len() == 1).await;
        let report = agent.report("a");
        let last = report.snapshots.first().expect("one");
        assert_eq!((last.cause, last.image.as_str()), (SnapshotCause::Final, "unknown"));
        let asked = agent.ask("a", BackupWork::Take(snapshot("x"))).await;
        assert_eq!(asked, Err("instance a is being removed".to_owned()));
        agent.pass(9 * DAY).await;
        assert_eq!(agent.taken("a").len(), 1);
    });
}

#[test]
fn replaced_data_is_held_with_what_ran_on_it() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("the first", || agent.taken("a").len() == 1).await;
        agent.pass(HOUR).await;
        let since = agent.now();
        agent.replaced("a", since);
        let held = || agent.agent.roster.held(&name("a")).holds_replaced(since);
        agent.until("held", held).await;
        let snapshot = agent.taken("a").into_iter().last().expect("two");
        assert!(snapshot.as_str().starts_with("update-"), "{snapshot}");
        let content = world.machine.snapshots.content(&name("a"), &snapshot).expect("held");
        assert!(content.values().any(|text| text == "of the second"), "{content:?}");
        agent.pass(5 * HOUR).await;
        assert_eq!(agent.taken("a").len(), 2);
    });
}

#[test]
fn the_policy_is_kept_and_what_is_needed_stays() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.down("a", Some(SnapshotCause::Pause));
        agent.until("at rest", || agent.taken("a").len() == 1).await;
        let pause = agent.taken("a").remove(0);
        // It is down for weeks, and its snapshot is not forgotten.
        agent.pass(30 * DAY).await;
        assert_eq!(agent.taken("a"), std::slice::from_ref(&pause));
        agent.up("a");
        agent.pass(40 * DAY).await;
        assert!(!agent.taken("a").contains(&pause), "held for seven days only");
        let kept = agent.taken("a").len();
        // Seven days, four weeks, two months, the last three, and what came since the last pruning.
        assert!((8..=20).contains(&kept), "{kept}: {:#?}", agent.taken("a"));
        let prunings = world.effects().iter().filter(|name| *name == "forget-snapshots").count();
        assert!((8..=12).contains(&prunings), "{prunings}");
    });
}

#[test]
fn it_is_told_once_that_a_snapshot_is_overdue() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("the first", || agent.taken("a").len() == 1).await;
        world.machine.mishaps().named("take-snapshot", 1000, Mishap::FailsBefore);
        agent.until("overdue", || agent.report("a").overdue).await;
        agent.pass(DAY).await;
        assert_eq!(agent.count(EventKind::BackupOverdue), 1);
        // A new agent does not repeat it.
        agent.kill().await;
        let agent = world.start();
        agent.up("a");
        agent.pass(DAY).await;
        assert!(agent.report("a").overdue);
        assert_eq!(agent.count(EventKind::BackupOverdue), 1);
        world.machine.mishaps().clear();
        agent.until("taken", || agent.taken("a").len() == 2).await;
        agent.settle().await;
        assert!(!agent.report("a").overdue);
        world.machine.mishaps().named("take-snapshot", 1000, Mishap::FailsBefore);
        agent.until("overdue again", || agent.count(EventKind::BackupOverdue) == 2).await;
    });
}

#[test]
fn a_full_disk_is_told_once_and_tried_again() {
    run(async {
        let world = World::new();
        let agent = world.start();
        world.machine.snapshots.set_full(Some("the disk is full"));
        agent.up("a");
        agent.until("told", || agent.count(EventKind::SnapshotFailed) == 1).await;
        let room = ["take-snapshot", "forget-snapshots", "take-snapshot"];
        assert_eq!(world.effects(), room, "room was made once before it counted as failed");
        agent.pass(12 * HOUR).await;
        assert_eq!(agent.count(EventKind::SnapshotFailed), 1);
        let tries = world.effects().iter().filter(|name| *name == "take-snapshot").count();
        assert!((12..=24).contains(&tries), "{tries}");
        assert!(agent.report("a").problem.contains("no room"), "{}", agent.report("a").problem);
        world.machine.snapshots.set_full(None);
        agent.until("taken", || agent.taken("a").len() == 1).await;
        agent.settle().await;
        assert_eq!(agent.report("a").problem, "");
    });
}

#[test]
fn nothing_is_begun_below_the_watermark_and_the_figures_are_told() {
    run(async {
        let world = World::new();
        let agent = world.start();
        world.machine.volumes.set_room(1024 * MIB, 20_480 * MIB);
        world.machine.volumes.set_weight(MIB);
        agent.up("a");
        agent.until("told", || agent.count(EventKind::SnapshotFailed) == 1).await;
        let problem = agent.report("a").problem;
        assert_eq!(problem, "no room: 1036 MiB needed, 1024 MiB free");
        assert!(!world.effects().contains(&"take-snapshot".to_owned()));
    });
}

#[test]
fn requests_are_answered_precisely() {
    run(async {
        let world = World::new();
        let agent = world.start();
        let take = |text: &str| BackupWork::Take(snapshot(text));
        let unknown = agent.ask("nobody", take("x")).await;
        assert_eq!(unknown, Err("instance nobody is not on this host".to_owned()));
        agent.up("a");
        agent.bare("b");
        agent.until("looked", || agent.agent.roster.held(&name("b")).snapshots.is_some()).await;
        let empty = agent.ask("b", take("x")).await;
        assert_eq!(empty, Err("instance b has no data yet".to_owned()));
        let nothing = agent.ask("b", BackupWork::Verify(Extent::Structure)).await;
        assert_eq!(nothing, Err("instance b has no snapshots that could be verified".to_owned()));
        assert_eq!(agent.ask("a", take("before-lunch")).await, Ok(()));
        let twice = agent.ask("a", take("before-lunch")).await;
        assert_eq!(twice, Err("there is a snapshot before-lunch already".to_owned()));
        agent.until("taken", || agent.taken("a").contains(&snapshot("before-lunch"))).await;
        let twice = agent.ask("a", take("before-lunch")).await;
        assert_eq!(twice, Err("there is a snapshot before-lunch already".to_owned()));
        let absent = agent.ask("a", BackupWork::Forget(snapshot("x"))).await;
        assert_eq!(absent, Err("there is no snapshot x".to_owned()));
        let forget = BackupWork::Forget(snapshot("before-lunch"));
        assert_eq!(agent.ask("a", forget).await, Ok(()));
        agent.until("gone", || !agent.taken("a").contains(&snapshot("before-lunch"))).await;
    });
}

#[test]
fn too_many_requests_are_refused() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("the first", || agent.taken("a").len() == 1).await;
        world.machine.mishaps().named("take-snapshot", 1, Mishap::HangsBefore);
        for number in 0..8 {
            let work = BackupWork::Take(snapshot(&format!("n-{number}")));
            assert_eq!(agent.ask("a", work).await, Ok(()));
        }
        let refused = agent.ask("a", BackupWork::Take(snapshot("n-8"))).await;
        let message = "8 requests of instance a wait already; try again later";
        assert_eq!(refused, Err(message.to_owned()));
        let flood: Vec<_> =
            (0..20).map(|_| agent.send("a", BackupWork::Take(snapshot("y")))).collect();
        let answers = futures_util::future::join_all(flood).await;
        let full = "too many requests about snapshots wait; try again in a moment";
        let refused = answers.iter().filter(|answer| **answer == Ok(Err(full.to_owned())));
        assert_eq!(refused.count(), 4);
    });
}

#[test]
fn what_is_needed_is_not_forgotten_for_a_person() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.down("a", Some(SnapshotCause::Pause));
        agent.until("at rest", || agent.taken("a").len() == 1).await;
        let pause = agent.taken("a").remove(0);
        let refused = agent.ask("a", BackupWork::Forget(pause.clone())).await;
        let why = "the instance is down and this is its newest snapshot";
        assert_eq!(refused, Err(format!("snapshot {pause} stays: {why}")));
    });
}

#[test]
fn what_was_accepted_is_done_by_the_next_agent() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("the first", || agent.taken("a").len() == 1).await;
        world.machine.mishaps().named("take-snapshot", 1, Mishap::HangsBefore);
        assert_eq!(agent.ask("a", BackupWork::Take(snapshot("wanted"))).await, Ok(()));
        agent.settle().await;
        agent.kill().await;
        let agent = world.start();
        agent.up("a");
        agent.until("taken", || agent.taken("a").contains(&snapshot("wanted"))).await;
        agent.settle().await;
        agent.kill().await;
        let agent = world.start();
        agent.up("a");
        agent.pass(HOUR).await;
        assert_eq!(agent.taken("a").len(), 2, "it is done once");
    });
}

#[test]
fn a_request_that_fails_three_times_is_given_up() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("the first", || agent.taken("a").len() == 1).await;
        world.machine.mishaps().named("take-snapshot", 3, Mishap::FailsBefore);
        let asked = agent.ask("a", BackupWork::Take(snapshot("wanted"))).await;
        assert_eq!(asked, Ok(()));
        agent.until("told", || agent.count(EventKind::SnapshotFailed) == 2).await;
        let told = agent.event(EventKind::SnapshotFailed, Severity::Error);
        assert!(told.message.starts_with("snapshot wanted: given up: "), "{}", told.message);
    });
}

#[test]
fn damage_is_found_told_once_and_kept_from_use() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("two", || agent.taken("a").len() == 2).await;
        let broken = agent.taken("a").remove(1);
        world.machine.snapshots.damage(&name("a"), &broken);
        agent.until("told", || agent.count(EventKind::SnapshotDamaged) == 1).await;
        let told = agent.event(EventKind::SnapshotDamaged, Severity::Error);
        assert!(told.message.contains(broken.as_str()), "{}", told.message);
        agent.settle().await;
        let health = |agent: &world::Running| {
            let report = agent.report("a");
            let found = report.snapshots.iter().find(|snapshot| snapshot.name == broken);
            found.map(|snapshot| snapshot.health)
        };
        assert_eq!(health(&agent), Some(SnapshotHealth::Damaged));
        let sound = agent.agent.roster.held(&name("a")).snapshots.expect("looked");
        assert!(sound.iter().all(|snapshot| snapshot.name != broken));
        agent.pass(3 * DAY).await;
        assert_eq!(agent.count(EventKind::SnapshotDamaged), 1);
        agent.kill().await;
        let agent = world.start();
        agent.up("a");
        agent.until("looked", || !agent.taken("a").is_empty()).await;
        agent.settle().await;
        assert_eq!(health(&agent), Some(SnapshotHealth::Damaged), "a new agent knows it");
    });
}

#[test]
fn verification_is_asked_for_and_comes_by_itself() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("two", || agent.taken("a").len() == 2).await;
        assert_eq!(agent.ask("a", BackupWork::Verify(Extent::Data)).await, Ok(()));
        agent.settle().await;
        let first = agent.report("a").verified_at;
        assert!(first.is_some());
        agent.until("verified", || agent.report("a").verified_at > first).await;
    });
}

#[test]
fn what_can_wait_is_broken_off_for_a_pause() {
    for call in ["verify-snapshots", "restore-snapshot", "start-trial"] {
        run(async move {
            let world = World::new();
            world.pull().await;
            let agent = world.start();
            let policy = BackupPolicy { drill_every: Some(2 * DAY), ..BackupPolicy::default() };
            agent.with_policy("a", policy);
            agent.up("b");
            world.machine.mishaps().named(call, 1, Mishap::HangsBefore);
            let stuck = || world.effects().iter().any(|effect| effect == call);
            let passes = Duration::from_secs(40 * 3600);
            if call == "verify-snapshots" {
                agent.until("two", || agent.taken("b").len() == 2).await;
                assert_eq!(agent.ask("a", BackupWork::Verify(Extent::Data)).await, Ok(()));
                agent.settle().await;
            } else {
                agent.until("stuck", stuck).await;
            }
            agent.down("b", Some(SnapshotCause::Pause));
            agent.settle().await;
            agent.settle().await;
            let taken = agent.taken("b").into_iter().last().expect("some");
            assert!(taken.as_str().starts_with("pause-"), "{call}: {taken}");
            let verified = agent.report("a").verified_at;
            agent.pass(passes).await;
            assert!(agent.report("a").verified_at > verified, "{call}: it is done again");
            agent.until("drilled", || agent.count(EventKind::DrillPassed) == 1).await;
            assert_eq!(world.machine.files.data(&name("a"), DRILL_DATA), None);
        });
    }
}

#[test]
fn a_drill_restores_boots_and_leaves_nothing() {
    run(async {
        let world = World::new();
        world.pull().await;
        let agent = world.start();
        agent.with_policy(
            "a",
            BackupPolicy { drill_every: Some(2 * DAY), ..BackupPolicy::default() },
        );
        agent.until("passed", || agent.count(EventKind::DrillPassed) == 1).await;
        agent.settle().await;
        let trials = world.machine.runtime.trials_so_far();
        assert_eq!(trials.len(), 1);
        assert!(trials.iter().all(|trial| trial.container.image == image()));
        let data = trials.first().map(|trial| trial.mounts.data.clone()).expect("one");
        assert!(data.ends_with(DRILL_DATA.to_string()), "{}", data.display());
        assert_eq!(world.machine.files.data(&name("a"), DRILL_DATA), None);
        let drilled = agent.report("a").drilled_at;
        assert!(drilled.is_some());
        let began = agent.now();
        agent.until("another", || agent.count(EventKind::DrillPassed) == 2).await;
        let after = agent.now().since(began);
        assert!(after > DAY && after < 4 * DAY, "{after:?}");
    });
}

#[test]
fn a_drill_that_fails_is_told_and_leaves_nothing() {
    run(async {
        let world = World::new();
        world.pull().await;
        let ends = TrialOutcome::Ends(1, "cannot read my state".to_owned());
        world.machine.runtime.trial_outcome(&image(), ends);
        let agent = world.start();
        agent.with_policy(
            "a",
            BackupPolicy { drill_every: Some(2 * DAY), ..BackupPolicy::default() },
        );
        agent.until("failed", || agent.count(EventKind::DrillFailed) == 1).await;
        agent.settle().await;
        let told = agent.event(EventKind::DrillFailed, Severity::Error);
        assert!(told.message.contains("cannot read my state"), "{}", told.message);
        assert!(agent.report("a").problem.contains("does not boot"));
        assert_eq!(world.machine.files.data(&name("a"), DRILL_DATA), None);
        assert_eq!(agent.report("a").drilled_at, None);
    });
}

#[test]
fn a_drill_without_room_or_memory_says_why_it_is_left_out() {
    run(async {
        let world = World::new();
        world.pull().await;
        let agent = world.start();
        let policy = BackupPolicy { drill_every: Some(2 * DAY), ..BackupPolicy::default() };
        agent.with_memory("a", policy, 6144 * MIB);
        let left_out = || agent.report("a").problem.starts_with("no memory for a restore drill");
        agent.until("left out", left_out).await;
        assert_eq!(
            agent.report("a").problem,
            "no memory for a restore drill: 6144 MiB needed, 4096 MiB free"
        );
        assert!(!world.effects().contains(&"restore-snapshot".to_owned()));
        assert_eq!(agent.count(EventKind::DrillFailed), 0);
    });
}

#[test]
fn wherever_the_agent_is_killed_in_a_drill_the_next_one_clears_up() {
    for mishap in [Mishap::HangsBefore, Mishap::HangsAfter] {
        for call in ["remove-data", "restore-snapshot", "start-trial", "remove-trial"] {
            run(async move {
                let world = World::new();
                world.pull().await;
                let agent = world.start();
                let policy = BackupPolicy { drill_every: Some(2 * DAY), ..BackupPolicy::default() };
                agent.with_policy("a", policy);
                agent.until("the first", || agent.taken("a").len() == 1).await;
                world.machine.mishaps().named(call, 1, mishap);
                agent.until("stuck", || world.effects().iter().any(|effect| effect == call)).await;
                agent.kill().await;
                world.machine.mishaps().clear();
                let agent = world.start();
                agent.up("a");
                agent.settle().await;
                agent.settle().await;
                assert_eq!(world.machine.files.data(&name("a"), DRILL_DATA), None, "{call}");
                assert!(world.trials().await.is_empty(), "{call}");
                agent.with_policy("a", policy);
                agent.until("passed", || agent.count(EventKind::DrillPassed) == 1).await;
            });
        }
    }
}

#[test]
fn wherever_the_agent_is_killed_the_next_one_goes_on() {
    let calls = ["take-snapshot", "pause", "unpause", "forget-snapshots", "list-snapshots"];
    for mishap in [Mishap::HangsBefore, Mishap::HangsAfter] {
        for call in calls {
            run(async move {
                let world = World::new();
                let agent = world.start();
                agent.up("a");
                world.machine.mishaps().named(call, 1, mishap);
                agent.pass(15 * DAY).await;
                agent.kill().await;
                world.machine.mishaps().clear();
                let agent = world.start();
                agent.up("a");
                let before = agent.now();
                agent.pass(10 * DAY).await;
                let report = agent.report("a");
                let newest = report.snapshots.last().expect("some").taken_at;
                assert!(newest > before, "{call} {mishap:?}");
                assert_eq!((report.problem.as_str(), report.overdue), ("", false), "{call}");
            });
        }
    }
}

#[test]
fn keys_are_given_away_once() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("taken", || agent.taken("a").len() == 1).await;
        agent.settle().await;
        let keys = agent.agent.board.unescrowed();
        assert_eq!(keys.keys().collect::<Vec<_>>(), [&name("a")]);
        agent.agent.board.escrowed(&name("a"));
        agent.pass(3 * DAY).await;
        assert!(agent.agent.board.unescrowed().is_empty());
    });
}

#[test]
fn an_instance_of_the_same_name_as_a_removed_one_begins_anew() {
    run(async {
        let world = World::new();
        let agent = world.start();
        agent.up("a");
        agent.until("two", || agent.taken("a").len() == 2).await;
        agent.agent.roster.remove(&name("a"));
        world.machine.snapshots.set_aside(&name("a"));
        agent.up("a");
        agent.settle().await;
        agent.settle().await;
        assert_eq!(agent.taken("a"), []);
        agent.pass(HOUR).await;
        let names: Vec<SnapshotName> = agent.taken("a");
        assert_eq!(names.len(), 1, "{names:?}");
    });
}
