//! The contract of the port, against the real thing and against the fake.

use std::collections::BTreeMap;

use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName, StatePath};
use claw_core::time::Timestamp;
use clawd::contract::{SnapshotsSubject, snapshots};
use clawd::fakes::{FakeMachine, FakeSnapshots, Mishap};
use clawd::ports::{Snapshots as _, SnapshotsError};

use crate::ground::{Ground, Holding, files_below, run, silent, snapshot};

struct Faked {
    machine: FakeMachine,
    instance: InstanceName,
}

impl SnapshotsSubject for Faked {
    type Snapshots = FakeSnapshots;

    fn snapshots(&self) -> &FakeSnapshots {
        &self.machine.snapshots
    }

    fn instance(&self) -> &InstanceName {
        &self.instance
    }

    fn now(&self) -> Timestamp {
        let taken = self.machine.mishaps().effects().len();
        Timestamp::from_millis(i64::try_from(taken).unwrap())
    }

    fn set_data(&self, data: DataGeneration, content: &BTreeMap<StatePath, String>) {
        self.machine.files.set_data(&self.instance, data, Some(content.clone()));
    }

    fn data(&self, data: DataGeneration) -> Option<BTreeMap<StatePath, String>> {
        self.machine.files.data(&self.instance, data)
    }

    fn damage(&self, snapshot: &SnapshotName) {
        self.machine.snapshots.damage(&self.instance, snapshot);
    }
}

fn faked() -> Faked {
    Faked { machine: FakeMachine::new(&[]), instance: InstanceName::parse("demo").unwrap() }
}

#[test]
fn processes_keep_the_contract() {
    run(async {
        let ground = Ground::new();
        snapshots(&ground).await.unwrap();
        assert!(!ground.staging().exists());
        let left = files_below(&ground.home()).into_iter().map(|path| path.display().to_string());
        assert_eq!(left.filter(|path| path.contains("partial")).count(), 0);
    });
}

#[test]
fn the_fake_keeps_the_contract() {
    run(async { snapshots(&faked()).await.unwrap() });
}

#[test]
fn every_method_of_the_fake_fails_when_told_to() {
    run(async {
        let faked = faked();
        let (port, instance) = (faked.snapshots(), &faked.instance);
        faked.set_data(DataGeneration::FIRST, &BTreeMap::new());
        let order = Ground::new().order("one");
        let mishaps = faked.machine.mishaps();
        for call in [
            "take-snapshot",
            "restore-snapshot",
            "forget-snapshots",
            "list-snapshots",
            "verify-snapshots",
            "repository-keys",
        ] {
            mishaps.named(call, 1, Mishap::FailsBefore);
        }
        let still = None::<&Holding<'_>>;
        let depth = clawd::ports::VerifyDepth::Structure;
        assert!(port.take(&order, still, &silent).await.is_err());
        assert_eq!(port.content(instance, &order.name), None);
        let into = DataGeneration::FIRST.next();
        assert!(port.restore(instance, &order.name, into, &silent).await.is_err());
        assert!(port.forget(instance, &[].into(), &silent).await.is_err());
        assert!(port.list(instance).await.is_err());
        assert!(port.verify(instance, depth, &silent).await.is_err());
        assert!(port.keys(instance).await.is_err());

        mishaps.named("take-snapshot", 1, Mishap::FailsAfter);
        assert!(port.take(&order, still, &silent).await.is_err());
        assert_eq!(port.assignment(instance, &order.name), Some(b"the spec".to_vec()));
        port.set_full(Some("no bytes are left"));
        let refused = port.restore(instance, &snapshot("one"), into, &silent).await;
        assert!(matches!(refused, Err(SnapshotsError::Full { .. })), "{refused:?}");
        port.set_full(None);
        port.restore(instance, &snapshot("one"), into, &silent).await.unwrap();
        port.set_aside(instance);
        assert_eq!(port.list(instance).await.unwrap(), clawd::ports::SnapshotList::default());
    });
}
