//! The contract of the port, against the real thing and against the fake.

use std::collections::BTreeMap;

use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, SnapshotName, StatePath};
use claw_core::offsite::OffsiteStorage;
use claw_core::spec::Secret;
use claw_core::time::Timestamp;
use clawd::contract::{CarryGround, SnapshotsSubject, carry, snapshots};
use clawd::fakes::{FakeMachine, FakeSnapshots, FakeStorage, Mishap, Reach};
use clawd::ports::{
    Offsite, OffsitePlace, Pipe, RepositoryKeys, Snapshots as _, SnapshotsError, Surplus, Transfers,
};

use crate::ground::{Ground, Holding, files_below, run, silent, snapshot};
use crate::s3::{Moto, offsite};

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

/// Three hosts, and a bucket.
async fn carried<S>(hosts: [&S; 3], storage: &OffsiteStorage)
where
    S: SnapshotsSubject,
    S::Snapshots: Offsite + Transfers,
{
    let [home, away, stranger] = hosts;
    carry(&CarryGround { home, away, stranger, storage }).await.unwrap();
}

#[test]
fn processes_keep_the_contract_of_what_leaves_the_host() {
    let moto = Moto::start();
    run(async {
        // Files of archives belong to whoever runs the tests.
        let [home, away, stranger] = [(); 3].map(|()| Ground::new());
        carried([&home, &away, &stranger], &moto.storage()).await;
        for ground in [&home, &away, &stranger] {
            assert!(!ground.home().join("import.partial").exists());
            assert!(!ground.data.join("repo/demo.received").exists());
        }
    });
}

#[test]
fn fakes_keep_the_contract_of_what_leaves_the_host() {
    run(async {
        let [home, away, stranger] = [(); 3].map(|()| faked());
        let storage = offsite("https://s3.example", "AKID", "hush");
        let buckets = FakeStorage::default();
        buckets.offer(&storage);
        for faked in [&home, &away, &stranger] {
            faked.machine.snapshots.use_storage(&buckets);
        }
        carried([&home, &away, &stranger], &storage).await;
        let copied = buckets.copied(&storage, "hosts/home/demo/1").unwrap();
        assert_eq!(copied, [snapshot("second")].into());
        assert_eq!(buckets.paths(&storage), ["hosts/home/demo/1"]);
        buckets.set_reach(Reach::None);
        let place = OffsitePlace { storage, path: "hosts/home/demo/1".to_owned() };
        let (port, instance) = (home.snapshots(), &home.instance);
        let refused = port.copy_out(instance, &place, Surplus::Kept, &silent).await.unwrap_err();
        assert!(refused.to_string().contains("cannot be reached"), "{refused}");
    });
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

#[test]
fn every_way_out_of_the_fake_fails_when_told_to() {
    run(async {
        let faked = faked();
        let (port, instance) = (faked.snapshots(), &faked.instance);
        faked.set_data(DataGeneration::FIRST, &BTreeMap::new());
        let order = Ground::new().order("one");
        port.take(&order, None::<&Holding<'_>>, &silent).await.unwrap();
        let storage = offsite("https://s3.example", "AKID", "hush");
        port.storage().offer(&storage);
        let place = OffsitePlace { storage: storage.clone(), path: "one".to_owned() };
        let keys = RepositoryKeys {
            secret: Secret::new(String::new()),
            recovery: Secret::new(String::new()),
        };
        let mishaps = faked.machine.mishaps();
        for call in [
            "copy-out",
            "copy-in",
            "restore-from",
            "export-snapshot",
            "import-archive",
            "send-repository",
            "receive-repository",
            "discard-repository",
        ] {
            mishaps.named(call, 1, Mishap::FailsBefore);
        }
        let (name, into) = (snapshot("one"), DataGeneration::FIRST.next());
        let told = |error: SnapshotsError| assert!(error.to_string().contains("told to fail"));
        told(port.copy_out(instance, &place, Surplus::Kept, &silent).await.unwrap_err());
        assert_eq!(port.storage().copied(&storage, "one"), None);
        told(port.copy_in(instance, &place, &keys, &silent).await.unwrap_err());
        told(port.restore_from(instance, &place, &name, into, &silent).await.unwrap_err());
        let pipe = || Pipe::pair().0;
        told(port.export(instance, &name, pipe(), &silent).await.unwrap_err());
        told(port.import(&order, pipe(), &silent).await.unwrap_err());
        told(port.send(instance, pipe(), &silent).await.unwrap_err());
        told(port.receive(instance, &keys, pipe(), &silent).await.unwrap_err());
        told(port.discard(instance).await.unwrap_err());
        mishaps.named("copy-out", 1, Mishap::FailsAfter);
        told(port.copy_out(instance, &place, Surplus::Kept, &silent).await.unwrap_err());
        assert_eq!(port.storage().copied(&storage, "one"), Some([name].into()));
    });
}
