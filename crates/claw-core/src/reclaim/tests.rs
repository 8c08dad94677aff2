//! What may go, in which order, and the proof that nothing is started without its data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::address::{AddressPool, Slot};
use crate::backup::BackupPolicy;
use crate::cutover::{Course, Cutover, Deployment, Migration, Stage, Verdict, Version, course};
use crate::name::ImageRef;
use crate::observed::Exit;
use crate::plan::Delivery;
use crate::spec::{
    HealthPolicy, InstanceSpec, Resources, RestoreOrder, RestoreSource, Secret, UpdatePolicy,
    WebPolicy,
};
use crate::stamp::{Digest, Generation};
use crate::unit::{CpuMillis, MIB, Memory, PidsLimit};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

fn name(text: &str) -> SnapshotName {
    SnapshotName::parse(text).expect("valid")
}

fn generation(number: u32) -> DataGeneration {
    DataGeneration::new(number).expect("not 0")
}

fn spec(run: RunState) -> InstanceSpec {
    InstanceSpec {
        image: ImageRef::parse("openclaw:1").expect("valid"),
        resources: Resources {
            memory: Memory::from_bytes(2048 * MIB).expect("in range"),
            cpu: CpuMillis::from_millis(2000).expect("in range"),
            pids: PidsLimit::from_count(512).expect("in range"),
        },
        run,
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

fn restoring(spec: InstanceSpec, number: u64) -> InstanceSpec {
    let order = RestoreOrder { number, snapshot: name("monday"), from: RestoreSource::Host };
    InstanceSpec { restore: Some(order), ..spec }
}

fn snapshot(of: &str, cause: SnapshotCause, taken_at: i64) -> SnapshotInfo {
    SnapshotInfo {
        name: name(of),
        id: Digest::of(of.as_bytes()),
        taken_at: at(taken_at),
        cause,
        image: ImageRef::parse("openclaw:1").expect("valid"),
        generation: Generation(1),
        files: 1,
        bytes: 1,
        added_bytes: 1,
        health: SnapshotHealth::Sound,
        offsite: false,
    }
}

fn ended(seconds: i64) -> ObservedContainer {
    ObservedContainer {
        id: "c".to_owned(),
        spec_digest: None,
        generation: None,
        state: ContainerState::Exited(Exit { code: 0, oom: false, at: at(seconds) }),
        nano_cpus: 0,
        pids_limit: 0,
        address: None,
    }
}

fn confirmed() -> Record {
    let image = ImageRef::parse("openclaw:1").expect("valid");
    let active = Some(Deployment { image, data: generation(3) });
    Record { active, ..Record::default() }
}

#[test]
fn only_data_that_the_snapshot_of_its_pause_holds_may_go() {
    let paused = wanted(spec(RunState::Paused));
    let (record, container) = (confirmed(), ended(100));
    let list = [
        snapshot("old", SnapshotCause::Pause, 50),
        snapshot("good", SnapshotCause::Pause, 101),
        snapshot("other", SnapshotCause::Requested, 102),
    ];
    let found = reclaimable(&paused, &record, Some(&container), &list);
    assert_eq!(found, Some(Reclaimable { since: at(100), snapshot: name("good") }));
    let none = |wanted: &DesiredInstance, record: &Record, container, list: &[SnapshotInfo]| {
        assert_eq!(reclaimable(wanted, record, container, list), None);
    };
    none(&paused, &record, Some(&container), &list[..1]);
    none(&paused, &record, None, &list);
    none(&paused, &Record::default(), Some(&container), &list);
    none(&wanted(spec(RunState::Stopped)), &record, Some(&container), &list);
    none(&wanted(restoring(spec(RunState::Paused), 1)), &record, Some(&container), &list);
    let running = ContainerState::Running { since: at(1), pid: 5 };
    let up = ObservedContainer { state: running, ..ended(1) };
    none(&paused, &record, Some(&up), &list);
    let damaged = SnapshotInfo { health: SnapshotHealth::Damaged, ..list[1].clone() };
    none(&paused, &record, Some(&container), &[damaged]);
    let mut gone = confirmed();
    gone.reclaim(name("good"));
    none(&paused, &gone, Some(&container), &list);
}

#[test]
fn who_was_paused_first_goes_first() {
    let of = |since| Reclaimable { since: at(since), snapshot: name("s") };
    let all = BTreeMap::from([("a", of(9)), ("b", of(3)), ("c", of(3))]);
    let all: BTreeMap<_, _> =
        all.into_iter().map(|(name, of)| (InstanceName::parse(name).expect("valid"), of)).collect();
    assert_eq!(next(&all).map(|(name, _)| name.as_str()), Some("b"));
    assert_eq!(next(&BTreeMap::new()), None);
}

#[test]
fn it_comes_back_for_everything_but_a_pause() {
    let mut record = confirmed();
    record.reclaim(name("good"));
    assert_eq!(record.being_reclaimed(), Some(generation(3)));
    let decide = |run, record: &Record| course(&wanted(spec(run)), record, at(0));
    assert_eq!(decide(RunState::Paused, &record), Course::Plain(Version::Wanted(generation(3))));
    for run in [RunState::Running, RunState::Stopped] {
        assert_eq!(decide(run, &record), Course::BeginRecovery(generation(4)));
    }
    record.begin_recovery(generation(4));
    let recover = Course::Recover { snapshot: name("good"), into: generation(4) };
    assert_eq!(decide(RunState::Running, &record), recover);
    assert_eq!(decide(RunState::Paused, &record), Course::Abandon);
    record.recovered();
    assert_eq!(decide(RunState::Running, &record), Course::Plain(Version::Wanted(generation(4))));
    assert_eq!((record.reclaimed, record.doomed), (None, BTreeSet::from([generation(3)])));
}

#[test]
fn another_snapshot_may_take_its_place() {
    let mut record = confirmed();
    record.reclaim(name("good"));
    record.begin_recovery(generation(4));
    let other = wanted(restoring(spec(RunState::Running), 1));
    assert_eq!(course(&other, &record, at(0)), Course::Abandon);
    record.end_recovery();
    let Course::Begin(cutover) = course(&other, &record, at(0)) else { panic!("begins") };
    assert_eq!(cutover.data, generation(5));
    record.cutover = Some(cutover.clone());
    assert_eq!(course(&other, &record, at(0)), Course::Prepare(None), "nothing runs meanwhile");
    let mut failed = record.clone();
    failed.cutover = Some(cutover.failed("no".to_owned(), Verdict::Failed));
    failed.end_cutover(at(0));
    assert!(matches!(course(&other, &failed, at(0)), Course::BeginRecovery(_)), "the pause's");
    record.confirm_cutover(Duration::ZERO, at(0));
    assert_eq!((record.reclaimed, record.replaced), (None, None));
    assert_eq!(record.doomed, BTreeSet::from([generation(3), generation(4)]));
}

/// A host with its disk. Effects come after what is remembered of them, and each may be the last.
#[derive(Debug)]
struct Model {
    record: Record,
    disk: BTreeSet<DataGeneration>,
}

impl Model {
    fn new() -> Self {
        Self { record: confirmed(), disk: BTreeSet::from([generation(3)]) }
    }

    /// One journaled step with its effect; whether anything runs then, and on what.
    fn step(&mut self, spec: &InstanceSpec, works: bool) -> Option<DataGeneration> {
        let desired = wanted(spec.clone());
        if let Some(data) = self.record.being_reclaimed() {
            if works {
                self.disk.remove(&data);
                self.record.doomed.remove(&data);
            }
            return None;
        }
        match course(&desired, &self.record, at(1)) {
            Course::Plain(Version::Wanted(data) | Version::Confirmed(data)) => {
                return (spec.run == RunState::Running).then_some(data);
            }
            Course::Prepare(Some(Version::Wanted(data) | Version::Confirmed(data))) => {
                self.prepare(works);
                return Some(data);
            }
            Course::Prepare(None) => self.prepare(works),
            Course::BeginRecovery(into) => self.record.begin_recovery(into),
            Course::Recover { into, .. } => {
                self.disk.insert(into);
                if works {
                    self.record.recovered();
                }
            }
            Course::Abandon => {
                self.record.end_cutover(at(1));
                self.record.end_recovery();
            }
            Course::Begin(cutover) => self.record.cutover = Some(cutover),
            Course::Switch => {
                self.record.cutover = self.record.cutover.take().map(|c| c.switched(spec, at(1)));
            }
            Course::Probe(Version::Wanted(data) | Version::Confirmed(data)) => {
                if works {
                    self.record.confirm_cutover(Duration::ZERO, at(1));
                } else {
                    self.fail();
                }
                return Some(data);
            }
            Course::Revert => {
                if !matches!(
                    &self.record.cutover,
                    Some(Cutover { stage: Stage::Reverting { .. }, .. })
                ) {
                    self.fail();
                }
                self.record.end_cutover(at(1));
            }
            Course::Hold => {}
        }
        None
    }

    fn prepare(&mut self, works: bool) {
        let Some(cutover) = self.record.cutover.take() else { return };
        self.disk.insert(cutover.data);
        self.record.cutover = Some(if works {
            cutover.prepared(Migration::Unknown)
        } else {
            cutover.failed("no".to_owned(), Verdict::Failed)
        });
    }

    fn fail(&mut self) {
        let failed = |c: Cutover| c.failed("no".to_owned(), Verdict::Failed);
        self.record.cutover = self.record.cutover.take().map(failed);
    }
}

proptest! {
    #[test]
    fn nothing_ever_runs_on_data_that_is_not_there(
        wishes in prop::collection::vec((0_u8..3, 0_u64..3, any::<bool>(), any::<bool>()), 1..10),
        luck in prop::collection::vec(any::<bool>(), 0..80),
    ) {
        let mut model = Model::new();
        let mut luck = luck.into_iter();
        for (run, number, reclaim, long) in wishes {
            let run = [RunState::Running, RunState::Stopped, RunState::Paused][usize::from(run)];
            let wish = if number == 0 { spec(run) } else { restoring(spec(run), number) };
            for _ in 0..if long { 12 } else { 2 } {
                let idle = model.record.cutover.is_none() && model.record.reclaimed.is_none();
                if reclaim && run == RunState::Paused && idle {
                    model.record.reclaim(name("good"));
                }
                let runs_on = model.step(&wish, luck.next().unwrap_or(true));
                if let Some(data) = runs_on {
                    prop_assert!(model.disk.contains(&data), "{data} is gone: {:?}", model.record);
                    prop_assert!(!model.record.doomed.contains(&data), "{data} is doomed");
                }
            }
        }
        let runs_on = (0..12).find_map(|_| model.step(&spec(RunState::Running), true));
        let active = model.record.active.as_ref().map(|active| active.data);
        prop_assert!(runs_on.is_some() && runs_on == active, "{:?}", model.record);
        prop_assert_eq!(model.record.reclaimed, None);
    }
}
