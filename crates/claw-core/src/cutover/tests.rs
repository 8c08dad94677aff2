//! What is decided, as text, and the proof that no kill leaves an instance between two versions.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::address::{AddressPool, Slot};
use crate::backup::BackupPolicy;
use crate::name::{InstanceName, SnapshotName};
use crate::plan::Delivery;
use crate::spec::{HealthPolicy, Resources, RestoreSource, Secret, UpdatePolicy, WebPolicy};
use crate::stamp::Generation;
use crate::unit::{CpuMillis, MIB, Memory, PidsLimit};

const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const KEEP: Duration = Duration::from_secs(3600);

fn image(text: &str) -> ImageRef {
    ImageRef::parse(text).expect("valid")
}

fn generation(number: u32) -> DataGeneration {
    DataGeneration::new(number).expect("not 0")
}

fn spec(of: &str) -> InstanceSpec {
    InstanceSpec {
        image: image(of),
        resources: Resources {
            memory: Memory::from_bytes(2048 * MIB).expect("in range"),
            cpu: CpuMillis::from_millis(2000).expect("in range"),
            pids: PidsLimit::from_count(512).expect("in range"),
        },
        run: RunState::Running,
        restarts: 0,
        rebuilds: 0,
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        config: String::new(),
        files: BTreeMap::new(),
        web: WebPolicy::default(),
        network: crate::firewall::NetworkPolicy::default(),
        health: HealthPolicy::default(),
        stop_grace: Duration::from_secs(330),
        backup: BackupPolicy::default(),
        update: UpdatePolicy::default(),
        restore: None,
    }
}

fn restore(of: &str, number: u64) -> InstanceSpec {
    let snapshot = SnapshotName::parse("monday").expect("valid");
    InstanceSpec {
        restore: Some(RestoreOrder { number, snapshot, from: RestoreSource::Host }),
        ..spec(of)
    }
}

fn wanted(spec: InstanceSpec) -> DesiredInstance {
    let delivery = Delivery { files: BTreeMap::new(), secrets: Secret::new(String::new()) };
    DesiredInstance {
        name: InstanceName::parse("demo").expect("valid"),
        generation: Generation(7),
        network: AddressPool::STANDARD.network(Slot::new(0).expect("below the limit")),
        data: DataGeneration::FIRST,
        target: Target::Present { spec: Box::new(spec), delivery: Box::new(delivery) },
    }
}

fn confirmed(of: &str, data: u32) -> Record {
    let active = Some(Deployment { image: image(of), data: generation(data) });
    Record { active, ..Record::default() }
}

fn decide(spec: &InstanceSpec, record: &Record) -> Course {
    course(&wanted(spec.clone()), record, NOW)
}

#[test]
fn what_never_ran_is_simply_deployed() {
    let plain = Course::Plain(Version::Wanted(DataGeneration::FIRST));
    assert_eq!(decide(&spec("openclaw:1"), &Record::default()), plain);
}

#[test]
fn another_image_gets_data_of_its_own() {
    let record = confirmed("openclaw:1", 4);
    let Course::Begin(cutover) = decide(&spec("openclaw:2"), &record) else { panic!("begins") };
    assert_eq!((cutover.data, &cutover.stage), (generation(5), &Stage::Preparing));
    let same = decide(&spec("openclaw:1"), &record);
    assert_eq!(same, Course::Plain(Version::Wanted(generation(4))));
}

#[test]
fn data_that_is_kept_is_not_written_over() {
    let mut record = confirmed("openclaw:1", 4);
    record.replaced = Some(Replaced { data: generation(5), since: NOW, until: NOW });
    let Course::Begin(cutover) = decide(&spec("openclaw:2"), &record) else { panic!("begins") };
    assert_eq!(cutover.data, generation(6));
}

#[test]
fn an_instance_that_is_down_is_not_updated_but_restored() {
    let record = confirmed("openclaw:1", 1);
    let stopped = InstanceSpec { run: RunState::Stopped, ..spec("openclaw:2") };
    assert_eq!(decide(&stopped, &record), Course::Plain(Version::Wanted(generation(1))));
    let restored = InstanceSpec { run: RunState::Stopped, ..restore("openclaw:1", 1) };
    assert!(matches!(decide(&restored, &record), Course::Begin(_)));
}

#[test]
fn a_restore_without_any_data_brings_the_first() {
    let Course::Begin(cutover) = decide(&restore("openclaw:1", 1), &Record::default()) else {
        panic!("begins")
    };
    let record = Record { cutover: Some(cutover), ..Record::default() };
    assert_eq!(decide(&restore("openclaw:1", 1), &record), Course::Prepare(None));
}

#[test]
fn without_its_data_nothing_is_started_in_its_place() {
    let wish = restore("openclaw:1", 1);
    let Course::Begin(cutover) = decide(&wish, &Record::default()) else { panic!("begins") };
    let failed = cutover.failed("no such snapshot".to_owned(), Verdict::Failed);
    let mut record = Record { cutover: Some(failed), ..Record::default() };
    record.end_cutover(NOW);
    assert_eq!(decide(&wish, &record), Course::Hold);
}

#[test]
fn what_failed_is_not_tried_again_until_something_changes() {
    let mut record = confirmed("openclaw:1", 1);
    let new = spec("openclaw:2");
    for attempt in 1..=MOST_REVERTS {
        let wanted = InstanceSpec { rebuilds: u64::from(attempt), ..new.clone() };
        let Course::Begin(cutover) = decide(&wanted, &record) else { panic!("begins") };
        let cutover = cutover.prepared(Migration::Unknown).switched(&wanted, NOW);
        record.cutover = Some(cutover.failed("it crashed".to_owned(), Verdict::Failed));
        assert_eq!(decide(&wanted, &record), Course::Revert);
        record.end_cutover(NOW);
        let held = Course::Plain(Version::Confirmed(generation(1)));
        assert_eq!(decide(&wanted, &record), held);
    }
    let other = InstanceSpec { rebuilds: 3, ..spec("openclaw:3") };
    let held = Course::Plain(Version::Confirmed(generation(1)));
    assert_eq!(decide(&other, &record), held, "the breaker is open for every image");
    let asked = InstanceSpec { rebuilds: 4, ..spec("openclaw:3") };
    assert!(matches!(decide(&asked, &record), Course::Begin(_)), "until somebody asks");
    let back = InstanceSpec { rebuilds: 3, ..spec("openclaw:1") };
    let plain = Course::Plain(Version::Wanted(generation(1)));
    assert_eq!(decide(&back, &record), plain, "going back is no change");
}

#[test]
fn another_wish_in_the_middle_leads_back_without_blame() {
    let mut record = confirmed("openclaw:1", 1);
    let Course::Begin(cutover) = decide(&spec("openclaw:2"), &record) else { panic!("begins") };
    record.cutover = Some(cutover.clone());
    assert_eq!(decide(&spec("openclaw:3"), &record), Course::Abandon);
    let probing = cutover.prepared(Migration::Unknown).switched(&spec("openclaw:2"), NOW);
    record.cutover = Some(probing.clone());
    assert_eq!(decide(&spec("openclaw:3"), &record), Course::Revert);
    record.cutover = Some(probing.failed("superseded".to_owned(), Verdict::Superseded));
    record.end_cutover(NOW);
    assert_eq!((&record.refused, record.reverts), (&None, 0));
}

#[test]
fn what_is_held_back_runs_when_it_is_wanted_to() {
    let old = InstanceSpec { config: "old".to_owned(), ..spec("openclaw:1") };
    let new = InstanceSpec {
        config: "new".to_owned(),
        run: RunState::Stopped,
        restarts: 5,
        ..spec("openclaw:2")
    };
    let held = held_back(&old, &new);
    assert_eq!((held.config.as_str(), held.run, held.restarts), ("old", RunState::Stopped, 5));
    assert_eq!(held.image, old.image);
}

/// What a host does, in the model: each call is one effect that is journaled, after which it may be killed.
fn step(record: &mut Record, spec: &InstanceSpec, works: bool) -> Option<Version> {
    match course(&wanted(spec.clone()), record, NOW) {
        Course::Plain(version) => return Some(version),
        Course::Hold | Course::BeginRecovery(_) | Course::Recover { .. } => {}
        Course::Begin(cutover) => record.cutover = Some(cutover),
        Course::Abandon => record.end_cutover(NOW),
        Course::Prepare(_) if works => {
            record.cutover = record.cutover.take().map(|c| c.prepared(Migration::Unknown));
        }
        Course::Switch => {
            record.cutover = record.cutover.take().map(|c| c.switched(spec, NOW));
        }
        Course::Probe(_) if works => record.confirm_cutover(KEEP, NOW),
        Course::Prepare(_) | Course::Probe(_) => {
            let problem = "it does not work".to_owned();
            record.cutover = record.cutover.take().map(|c| c.failed(problem, Verdict::Failed));
        }
        Course::Revert => {
            let reverting = |c: Cutover| match c.stage {
                Stage::Reverting { .. } => c,
                _ => c.failed("superseded".to_owned(), Verdict::Superseded),
            };
            record.cutover = record.cutover.take().map(reverting);
            record.end_cutover(NOW);
        }
    }
    None
}

proptest! {
    #[test]
    fn whatever_is_wanted_and_fails_it_ends_in_one_version(
        wishes in prop::collection::vec((0_u8..4, 0_u64..3, 0_u64..3), 1..8),
        luck in prop::collection::vec(any::<bool>(), 0..60),
    ) {
        let mut record = confirmed("openclaw:0", 1);
        let mut luck = luck.into_iter();
        for (tag, number, rebuilds) in wishes {
            let wish = InstanceSpec { rebuilds, ..restore(&format!("openclaw:{tag}"), number) };
            let wish = if number == 0 { InstanceSpec { restore: None, ..wish } } else { wish };
            // A newer wish may come at any moment.
            for _ in 0..luck.next().map_or(9, |long| if long { 9 } else { 2 }) {
                let before = record.active.clone();
                let works = luck.next().unwrap_or(true);
                let plain = step(&mut record, &wish, works);
                if record.active != before {
                    prop_assert!(record.active.as_ref().is_some_and(|a| a.image == wish.image));
                    prop_assert_eq!(record.replaced.map(|r| r.data), before.map(|b| b.data));
                }
                if plain.is_some() { break; }
            }
        }
        let last = InstanceSpec { rebuilds: 9, ..spec("openclaw:9") };
        let plain = (0..9).find_map(|_| step(&mut record, &last, true));
        let data = record.active.as_ref().map(|active| active.data);
        prop_assert_eq!(plain.map(Some), Some(data.map(Version::Wanted)));
        prop_assert_eq!(record.active.map(|active| active.image), Some(last.image));
        prop_assert_eq!(record.cutover, None);
    }
}
