//! Agendas as text: what is due, in which order, and when the rest is.

use std::collections::BTreeSet;

use claw_core::backup::Retention;
use claw_core::name::{HostName, ImageRef, SnapshotName};
use claw_core::offsite::{BucketAddressing, OffsitePolicy, OffsiteStorage};
use claw_core::spec::Secret;
use claw_core::stamp::{Digest, Generation};

use super::*;
use crate::reconcile::backups::offsite::Copy;
use crate::roster::Elsewhere;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// 2026-01-10T00:00:00Z.
fn start() -> Timestamp {
    Timestamp::from_millis(1_768_003_200_000)
}

fn ago(span: Duration) -> Timestamp {
    let millis = i64::try_from(span.as_millis()).expect("short");
    Timestamp::from_millis(start().millis() - millis)
}

fn instance(text: &str) -> InstanceName {
    InstanceName::parse(text).expect("valid")
}

fn snapshot(cause: SnapshotCause, at: Timestamp) -> SnapshotInfo {
    let name = SnapshotName::of(cause, at).expect("valid");
    SnapshotInfo {
        id: Digest::of(name.as_str().as_bytes()),
        name,
        taken_at: at,
        cause,
        image: ImageRef::parse("registry.example/gateway:1").expect("valid"),
        generation: Generation(1),
        files: 1,
        bytes: 1,
        added_bytes: 1,
        health: SnapshotHealth::Sound,
        offsite: false,
    }
}

/// A subject that can be changed, at rest of everything else: nothing is due but what a test makes due.
struct Scene {
    name: InstanceName,
    policy: Option<BackupPolicy>,
    standing: Standing,
    awaits: Option<SnapshotCause>,
    replaced: Option<(SnapshotCause, Timestamp)>,
    list: Option<Vec<SnapshotInfo>>,
    stale: bool,
    gave_up: bool,
    record: BackupRecord,
    attempts: Attempts,
    forgettable: usize,
    room: Room,
    destination: Destination,
}

impl Scene {
    fn new() -> Self {
        let recently = Some(ago(MINUTE));
        let record = BackupRecord {
            first_seen: ago(DAY),
            structure_at: recently,
            data_at: recently,
            pruned_at: recently,
            drill_at: recently,
            ..BackupRecord::default()
        };
        Self {
            name: instance("a"),
            policy: Some(BackupPolicy {
                every: Some(DAY),
                retention: Retention::default(),
                drill_every: Some(30 * DAY),
                offsite: OffsitePolicy::Auto,
            }),
            standing: Standing::Up,
            awaits: None,
            replaced: None,
            list: Some(vec![snapshot(SnapshotCause::Scheduled, ago(MINUTE))]),
            stale: false,
            gave_up: false,
            record,
            attempts: Attempts::default(),
            forgettable: 0,
            room: Room::Enough,
            destination: Destination::default(),
        }
    }

    fn held(&self) -> Held {
        Held { snapshots: self.list.clone(), gave_up: self.gave_up, ..Held::default() }
    }

    fn with_subject<T>(&self, look: impl FnOnce(&Subject<'_>) -> T) -> T {
        look(&Subject {
            name: &self.name,
            policy: self.policy,
            standing: self.standing,
            awaits: self.awaits,
            replaced: self.replaced,
            list: self.list.as_deref(),
            stale: self.stale,
            held: &self.held(),
            record: &self.record,
            attempts: &self.attempts,
            forgettable: self.forgettable,
            room: self.room,
            destination: &self.destination,
        })
    }

    /// What is due now, most urgent first.
    fn due(&self) -> String {
        let mut due = self.with_subject(|subject| agenda(subject, start()));
        due.retain(|due| due.at <= start());
        due.sort_by_key(|due| due.work.kind());
        due.iter().map(|due| due.work.to_string()).collect::<Vec<_>>().join("; ")
    }

    /// When something is due, if it ever is.
    fn when(&self, work: &Work) -> Option<Timestamp> {
        let agenda = self.with_subject(|subject| agenda(subject, start()));
        agenda.into_iter().find(|due| due.work == *work).map(|due| due.at)
    }

    fn schedule(&self) -> Option<Schedule> {
        self.with_subject(|subject| schedule(subject, start()))
    }
}

#[track_caller]
fn check(change: impl FnOnce(&mut Scene), expected: &str) {
    let mut scene = Scene::new();
    change(&mut scene);
    assert_eq!(scene.due(), expected);
}

#[test]
fn when_all_was_done_recently_nothing_is_due_and_everything_comes_back() {
    let scene = Scene::new();
    assert_eq!(scene.due(), "");
    let later = [
        (Work::Scheduled, DAY),
        (Work::Structure, DAY),
        (Work::Data(0), 7 * DAY),
        (Work::Prune, 7 * DAY),
        (Work::Drill, 30 * DAY),
    ];
    for (work, every) in later {
        let at = scene.when(&work).expect("comes back");
        let after = at.since(ago(MINUTE));
        assert!(after >= every / 2 && after <= every * 3 / 2, "{work}: {after:?}");
    }
}

#[test]
fn a_host_that_knows_nothing_looks_first() {
    check(|scene| scene.list = None, "look");
    check(
        |scene| {
            scene.list = None;
            scene.standing = Standing::Down(Some(ago(HOUR)));
            scene.awaits = Some(SnapshotCause::Pause);
            scene.record.asks = vec![Ask::Data];
        },
        "look",
    );
    check(|scene| scene.stale = true, "look");
    check(
        |scene| {
            scene.record.drilling = true;
            scene.list = None;
        },
        "sweep; look",
    );
}

#[test]
fn a_repository_that_cannot_be_listed_keeps_nobody_waiting_for_ever() {
    let broken = |scene: &mut Scene| {
        scene.list = None;
        scene.standing = Standing::Down(Some(ago(HOUR)));
        scene.awaits = Some(SnapshotCause::Final);
        scene.policy = None;
        scene.attempts.failed(Kind::Look, "broken".to_owned(), start(), 0);
    };
    check(broken, "final snapshot at rest");
    let goes_by_the_record = |scene: &mut Scene| {
        scene.list = None;
        scene.attempts.failed(Kind::Look, "broken".to_owned(), start(), 0);
        scene.record.taken_at = Some(ago(MINUTE));
    };
    check(goes_by_the_record, "");
    let mut scene = Scene::new();
    goes_by_the_record(&mut scene);
    scene.record.taken_at = Some(ago(4 * DAY));
    assert_eq!(scene.schedule().map(|schedule| schedule.overdue), Some(true));
}

#[test]
fn the_first_snapshot_is_due_at_once_and_without_data_none_is() {
    check(|scene| scene.list = Some(Vec::new()), "scheduled snapshot");
    check(
        |scene| {
            scene.list = Some(Vec::new());
            scene.standing = Standing::Bare;
        },
        "",
    );
    let none = |scene: &mut Scene| {
        scene.list = Some(Vec::new());
        scene.policy = scene.policy.map(|policy| BackupPolicy { every: None, ..policy });
    };
    check(none, "");
}

#[test]
fn every_instance_has_its_own_time_of_day() {
    let mut times = BTreeSet::new();
    for number in 0..20 {
        let mut scene = Scene::new();
        scene.name = instance(&format!("tenant-{number}"));
        times.insert(scene.when(&Work::Scheduled).expect("due some time"));
    }
    assert_eq!(times.len(), 20);
    let (first, last) = (times.first().expect("some"), times.last().expect("some"));
    assert!(last.since(*first) > 12 * HOUR, "they are spread over the day");
}

#[test]
fn what_waits_for_a_snapshot_comes_before_all_others() {
    check(
        |scene| {
            scene.stale = true;
            scene.standing = Standing::Down(Some(ago(MINUTE / 2)));
            scene.awaits = Some(SnapshotCause::Pause);
            scene.replaced = Some((SnapshotCause::Update, ago(HOUR)));
            scene.record.asks = vec![Ask::Data, Ask::Structure];
            scene.list = Some(vec![snapshot(SnapshotCause::Scheduled, ago(3 * DAY))]);
            scene.record.structure_at = None;
            scene.record.data_at = None;
            scene.record.pruned_at = None;
            scene.room = Room::Wanted;
        },
        "look; make room; pause snapshot at rest; update snapshot of replaced data; \
         asked: verification of all data; verify structure",
    );
}

#[test]
fn a_snapshot_at_rest_is_due_until_one_is_newer_than_the_stop() {
    let down = |list: Vec<SnapshotInfo>| {
        move |scene: &mut Scene| {
            scene.standing = Standing::Down(Some(ago(HOUR)));
            scene.awaits = Some(SnapshotCause::Pause);
            scene.list = Some(list);
        }
    };
    let rest = "pause snapshot at rest";
    check(down(vec![snapshot(SnapshotCause::Scheduled, ago(MINUTE))]), rest);
    check(down(vec![snapshot(SnapshotCause::Pause, ago(2 * HOUR))]), rest);
    check(down(vec![snapshot(SnapshotCause::Pause, ago(MINUTE))]), "");
    let up = |scene: &mut Scene| scene.awaits = Some(SnapshotCause::Pause);
    check(up, "");
    let given_up = |scene: &mut Scene| {
        scene.standing = Standing::Down(Some(ago(MINUTE / 2)));
        scene.awaits = Some(SnapshotCause::Pause);
        scene.gave_up = true;
    };
    check(given_up, rest);
}

#[test]
fn replaced_data_is_held_once() {
    let replaced = Some((SnapshotCause::Restore, ago(HOUR)));
    check(|scene| scene.replaced = replaced, "restore snapshot of replaced data");
    let held = |scene: &mut Scene| {
        scene.replaced = replaced;
        let list = scene.list.get_or_insert_default();
        list.push(snapshot(SnapshotCause::Restore, ago(MINUTE / 2)));
    };
    check(held, "");
}

#[test]
fn data_that_lies_still_is_not_snapshotted_again_and_is_never_overdue() {
    let mut scene = Scene::new();
    scene.list = Some(vec![snapshot(SnapshotCause::Pause, ago(9 * DAY))]);
    scene.record.structure_at = Some(ago(MINUTE));
    scene.standing = Standing::Down(Some(ago(9 * DAY)));
    assert_eq!((scene.due().as_str(), scene.schedule()), ("", None));
    scene.standing = Standing::Down(Some(ago(8 * DAY)));
    assert_eq!(scene.due(), "scheduled snapshot");
    scene.standing = Standing::Down(None);
    assert_eq!(scene.due(), "scheduled snapshot");
}

#[test]
fn it_is_overdue_after_half_an_interval_more_and_when_there_never_was_one() {
    let mut scene = Scene::new();
    let overdue = |scene: &Scene| scene.schedule().map(|schedule| schedule.overdue);
    assert_eq!(overdue(&scene), Some(false));
    scene.list = Some(vec![snapshot(SnapshotCause::Scheduled, ago(4 * DAY))]);
    assert_eq!(overdue(&scene), Some(true));
    scene.list = Some(Vec::new());
    scene.record.first_seen = ago(36 * HOUR);
    assert_eq!(overdue(&scene), Some(false));
    scene.record.first_seen = ago(37 * HOUR);
    assert_eq!(overdue(&scene), Some(true));
    scene.policy = None;
    assert_eq!(overdue(&scene), None, "it is being removed");
}

#[test]
fn snapshots_before_a_change_damaged_ones_and_those_of_a_wrong_clock_do_not_count() {
    let mut damaged = snapshot(SnapshotCause::Scheduled, ago(MINUTE));
    damaged.health = SnapshotHealth::Damaged;
    let future = snapshot(SnapshotCause::Scheduled, start().after(300 * DAY));
    for list in [
        vec![snapshot(SnapshotCause::Update, ago(MINUTE))],
        vec![snapshot(SnapshotCause::Restore, ago(MINUTE))],
        vec![damaged],
        vec![future],
    ] {
        check(|scene| scene.list = Some(list), "scheduled snapshot");
    }
    for cause in [SnapshotCause::Requested, SnapshotCause::Pause] {
        check(|scene| scene.list = Some(vec![snapshot(cause, ago(MINUTE))]), "");
    }
}

#[test]
fn pruning_is_weekly_or_when_much_is_not_kept_or_room_is_short() {
    check(|scene| scene.forgettable = MANY - 1, "");
    check(|scene| scene.forgettable = MANY, "prune");
    check(|scene| scene.record.pruned_at = Some(ago(11 * DAY)), "prune");
    check(|scene| scene.room = Room::Low, "");
    let low = |scene: &mut Scene| {
        scene.room = Room::Low;
        scene.forgettable = 1;
    };
    check(low, "make room");
    check(|scene| scene.room = Room::Wanted, "make room");
}

#[test]
fn verification_goes_round() {
    check(|scene| scene.record.structure_at = Some(ago(2 * DAY)), "verify structure");
    let fourth = |scene: &mut Scene| {
        scene.record.data_at = Some(ago(11 * DAY));
        scene.record.data_part = 4;
    };
    check(fourth, "verify data, part 4");
    let empty = |since: Duration| {
        move |scene: &mut Scene| {
            scene.list = Some(Vec::new());
            scene.record = BackupRecord { first_seen: ago(since), ..BackupRecord::default() };
        }
    };
    check(empty(MINUTE), "");
    check(empty(HOUR), "scheduled snapshot");
}

#[test]
fn a_drill_needs_an_instance_that_is_up() {
    let due = |scene: &mut Scene| scene.record.drill_at = Some(ago(50 * DAY));
    check(due, "drill");
    let down = |scene: &mut Scene| {
        due(scene);
        scene.standing = Standing::Down(Some(ago(MINUTE)));
    };
    check(down, "");
    let never = |scene: &mut Scene| {
        due(scene);
        scene.policy = scene.policy.map(|policy| BackupPolicy { drill_every: None, ..policy });
    };
    check(never, "");
    let first = |scene: &mut Scene| {
        scene.record.drill_at = None;
        scene.list = Some(vec![
            snapshot(SnapshotCause::Scheduled, ago(50 * DAY)),
            snapshot(SnapshotCause::Scheduled, ago(MINUTE)),
        ]);
    };
    check(first, "drill");
}

#[test]
fn an_instance_that_is_being_removed_gets_its_last_snapshot_and_nothing_else() {
    let removed = |scene: &mut Scene| {
        scene.policy = None;
        scene.standing = Standing::Down(Some(ago(MINUTE / 2)));
        scene.awaits = Some(SnapshotCause::Final);
        scene.record.structure_at = None;
        scene.record.pruned_at = None;
        scene.forgettable = 0;
    };
    check(removed, "final snapshot at rest");
}

#[test]
fn what_failed_waits_and_holds_up_nothing_else() {
    let failed = |scene: &mut Scene| {
        scene.list = Some(vec![snapshot(SnapshotCause::Scheduled, ago(3 * DAY))]);
        scene.attempts.failed(Kind::Scheduled, "no room".to_owned(), start(), 0);
        scene.record.structure_at = Some(ago(2 * DAY));
    };
    check(failed, "verify structure");
    let mut scene = Scene::new();
    failed(&mut scene);
    let at = scene.when(&Work::Scheduled).expect("tried again");
    assert_eq!(at, start().after(MINUTE * 3 / 4));
}

#[test]
fn the_host_does_the_most_urgent_first_and_of_equals_the_longest_due() {
    let due = |at, work| Due { at, work };
    let agendas = [
        (instance("a"), vec![due(ago(MINUTE), Work::Scheduled), due(ago(DAY), Work::Drill)]),
        (instance("b"), vec![due(ago(HOUR), Work::Scheduled)]),
        (instance("c"), vec![due(start().after(HOUR), Work::Look)]),
    ];
    assert_eq!(next(&agendas, start()), Next::Do(instance("b"), Work::Scheduled));
    let (now, later) = agendas.split_at(2);
    assert_eq!(next(later, start()), Next::Wait(Some(start().after(HOUR))));
    assert_eq!(next(&[], start()), Next::Wait(None));
    assert_eq!(next(now, ago(2 * HOUR)), Next::Do(instance("a"), Work::Drill));
}

/// A scene whose host has a storage, since a day.
fn with_storage(scene: &mut Scene) {
    scene.destination = destination("claws", "0123456789abcdef");
    scene.record.copy.settle(&scene.destination, ago(DAY));
}

fn destination(bucket: &str, repository: &str) -> Destination {
    let elsewhere = Elsewhere {
        host: HostName::parse("web-1").ok(),
        storage: Some(OffsiteStorage {
            endpoint: "https://s3.example".to_owned(),
            region: "eu".to_owned(),
            bucket: bucket.to_owned(),
            prefix: String::new(),
            addressing: BucketAddressing::Path,
            access_key: Secret::new("AKID".to_owned()),
            secret_key: Secret::new("hush".to_owned()),
            bandwidth: None,
        }),
    };
    Destination::new(&elsewhere, &instance("a"), Some(repository))
}

fn copied(scene: &mut Scene, at: Timestamp) {
    with_storage(scene);
    let list = scene.list.clone().unwrap_or_default();
    scene.record.copy.copied(&list, Surplus::Kept, at);
}

#[test]
fn a_copy_is_due_when_the_repository_has_changed() {
    check(with_storage, "copy off-site");
    check(|scene| copied(scene, ago(MINUTE)), "");
    let more = |scene: &mut Scene| {
        copied(scene, ago(2 * MINUTE));
        let list = scene.list.get_or_insert_default();
        list.push(snapshot(SnapshotCause::Requested, ago(MINUTE)));
    };
    check(more, "copy off-site");
    let fewer = |scene: &mut Scene| {
        more(scene);
        copied(scene, ago(MINUTE));
        scene.list.get_or_insert_default().remove(0);
    };
    check(fewer, "copy off-site");
    let never = |scene: &mut Scene| {
        with_storage(scene);
        let never = OffsitePolicy::Never;
        scene.policy = scene.policy.map(|policy| BackupPolicy { offsite: never, ..policy });
    };
    check(never, "");
    let removed = |scene: &mut Scene| {
        with_storage(scene);
        scene.policy = None;
    };
    check(removed, "");
    let empty = |scene: &mut Scene| {
        scene.list = Some(Vec::new());
        scene.standing = Standing::Bare;
        with_storage(scene);
    };
    check(empty, "");
}

#[test]
fn a_fleet_does_not_begin_to_copy_at_one_moment() {
    let mut times = BTreeSet::new();
    for number in 0..20 {
        let mut scene = Scene::new();
        scene.name = instance(&format!("tenant-{number}"));
        scene.destination = destination("claws", "0123456789abcdef");
        scene.record.copy.settle(&scene.destination, start());
        let at = scene.when(&Work::Offsite(Surplus::Kept)).expect("due soon");
        assert!(at.since(start()) < MINUTE);
        times.insert(at);
    }
    assert!(times.len() >= 19, "{times:?}");
    let mut scene = Scene::new();
    with_storage(&mut scene);
    scene.attempts.failed(Kind::Offsite, "no bucket".to_owned(), start(), 0);
    let at = scene.when(&Work::Offsite(Surplus::Kept)).expect("tried again");
    assert_eq!(at, start().after(MINUTE * 3 / 4));
}

#[test]
fn the_copy_is_swept_once_after_a_sound_verification() {
    let swept = "copy off-site and sweep there";
    let dropped = |verified: Duration, sound: Duration| {
        move |scene: &mut Scene| {
            copied(scene, ago(HOUR));
            scene.record.copy.dropped(ago(2 * HOUR));
            scene.record.structure_at = Some(ago(verified));
            scene.record.sound_at = Some(ago(sound));
        }
    };
    check(dropped(HOUR, HOUR), swept);
    check(dropped(3 * HOUR, 3 * HOUR), "");
    // The last one found something.
    check(dropped(MINUTE, HOUR), "");
    let long_ago = |scene: &mut Scene| {
        dropped(60 * HOUR, 60 * HOUR)(scene);
        scene.record.copy.dropped(ago(70 * HOUR));
    };
    check(long_ago, "verify structure");
    let damaged = |scene: &mut Scene| {
        dropped(HOUR, HOUR)(scene);
        scene.record.damage.is(SnapshotName::parse("x").expect("valid"));
    };
    check(damaged, "");
    let done = |scene: &mut Scene| {
        dropped(HOUR, HOUR)(scene);
        let list = scene.list.clone().unwrap_or_default();
        scene.record.copy.copied(&list, Surplus::Removed, ago(MINUTE));
    };
    check(done, "");
}

#[test]
fn another_place_begins_anew_and_earlier_copies_are_found() {
    let mut scene = Scene::new();
    copied(&mut scene, ago(HOUR));
    let list = scene.list.clone().unwrap_or_default();
    let first = list.first().expect("one").clone();
    let copy = &mut scene.record.copy;
    assert!(copy.holds(&scene.destination, &first));
    let paths = |copy: &Copy, to: &Destination| -> Vec<String> {
        copy.places(to).into_iter().map(|place| place.path).collect()
    };
    // The repository was lost, and another one made.
    let anew = destination("claws", "fedcba9876543210");
    copy.settle(&anew, ago(MINUTE));
    assert!(!copy.holds(&anew, &first));
    let (old, new) = ("web-1/a/0123456789abcdef", "web-1/a/fedcba9876543210");
    assert_eq!(paths(copy, &anew), [old, new], "where nothing was copied to comes last");
    copy.copied(&list, Surplus::Kept, ago(MINUTE));
    assert_eq!(paths(copy, &anew), [new, old]);
    let read = BackupRecord::decode(&scene.record.encode()).expect("ours");
    assert_eq!(read, scene.record);
    let copy = &mut scene.record.copy;
    // Without its repository, or its notes.
    let lost = Destination { place: None, ..anew.clone() };
    assert_eq!(paths(copy, &lost), [new, old]);
    assert_eq!(paths(&Copy::default(), &anew), [new]);
    assert_eq!(paths(copy, &Destination::default()), [""; 0]);
    // In another storage there is nothing of it.
    let other = destination("other", "fedcba9876543210");
    assert_eq!(paths(copy, &other), [new]);
    copy.settle(&other, start());
    assert!(!copy.holds(&other, &first));
    assert_eq!(paths(copy, &other), [new]);
}

#[test]
fn what_takes_long_gives_way() {
    let fetch = Work::Errand(ErrandKind::Fetch);
    let export = Work::Errand(ErrandKind::Export);
    let copy = Work::Offsite(Surplus::Kept);
    for kind in [Kind::AtRest, Kind::Errand, Kind::Asked, Kind::Scheduled, Kind::Prune, Kind::Drill]
    {
        assert!(copy.gives_way_to(kind), "{kind:?}");
    }
    assert!(!copy.gives_way_to(Kind::Offsite));
    assert!(fetch.gives_way_to(Kind::Replaced) && !fetch.gives_way_to(Kind::Asked));
    assert!(!export.may_wait() && !export.gives_way_to(Kind::AtRest));
    assert!(Work::Structure.gives_way_to(Kind::Errand));
    assert!(!Work::Structure.gives_way_to(Kind::Scheduled));
    assert!(!Work::Scheduled.gives_way_to(Kind::AtRest));
}
