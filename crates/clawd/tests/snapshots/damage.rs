//! Repositories that are damaged.

use std::fs;

use clawd::ports::{Snapshots as _, SnapshotsError, VerifyDepth};

use crate::ground::{Ground, files_below, flip, noise, run, silent, snapshot};

#[test]
fn damage_is_named_and_hits_only_those_that_need_it() {
    run(async {
        let ground = Ground::new();
        ground.write("old.bin", noise(1, 300_000));
        ground.take("one").await.unwrap();
        let before = files_below(&ground.repository().join("data"));
        ground.write("new.bin", noise(2, 300_000));
        ground.take("two").await.unwrap();
        let packs = files_below(&ground.repository().join("data"));
        let new = packs.iter().filter(|pack| !before.contains(pack));
        // The data's, not the directories'.
        let pack = new.max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
        flip(pack);

        let structure =
            ground.worker.verify(&ground.instance, VerifyDepth::Structure, &silent).await.unwrap();
        assert_eq!(structure.damage, Vec::<String>::new(), "no data was read");
        let mut affected = Vec::new();
        for part in 0..3 {
            let depth = VerifyDepth::Data { part, parts: 3 };
            let found = ground.worker.verify(&ground.instance, depth, &silent).await.unwrap();
            if !found.damage.is_empty() {
                let name = pack.file_name().unwrap().to_str().unwrap();
                assert!(found.damage.iter().any(|line| line.contains(name)), "{found:?}");
                assert!(found.damage.iter().any(|line| line.contains("new.bin")), "{found:?}");
                affected.extend(found.affected);
            }
        }
        assert_eq!(affected, [snapshot("two")], "one part has the pack, and one snapshot needs it");

        let refused = ground.restore("two", 2).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Damaged(_)), "{refused:?}");
        assert_eq!(fs::read(ground.live().join("new.bin")).unwrap(), noise(2, 300_000));
        assert_eq!(fs::read_dir(ground.home()).unwrap().count(), 1, "nothing half-made remains");
        ground.restore("one", 2).await.unwrap();
        assert_eq!(fs::read(ground.generation(2).join("old.bin")).unwrap(), noise(1, 300_000));
    });
}

#[test]
fn a_missing_pack_is_seen_without_reading_data() {
    run(async {
        let ground = Ground::new();
        ground.write("file", noise(1, 300_000));
        ground.take("one").await.unwrap();
        let packs = files_below(&ground.repository().join("data"));
        let pack = packs.iter().max_by_key(|pack| fs::metadata(pack).unwrap().len()).unwrap();
        fs::remove_file(pack).unwrap();
        let found =
            ground.worker.verify(&ground.instance, VerifyDepth::Structure, &silent).await.unwrap();
        assert!(found.damage.iter().any(|line| line.ends_with("is missing")), "{found:?}");
        assert!(found.affected.contains(&snapshot("one")), "{found:?}");
        let refused = ground.restore("one", 2).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Damaged(_)), "{refused:?}");
        // What is still there mends the repository.
        ground.take("two").await.unwrap();
        ground.restore("one", 2).await.unwrap();
    });
}

#[test]
fn one_snapshot_that_cannot_be_read_hides_no_other() {
    run(async {
        let ground = Ground::new();
        ground.write("file", "content");
        let first = ground.take("one").await.unwrap();
        ground.take("two").await.unwrap();
        let lost = ground.repository().join("snapshots").join(first.id.to_string());
        flip(&lost);
        assert_eq!(ground.names().await, ["two"]);
        ground.restore("two", 2).await.unwrap();
        let refused = ground.restore("one", 3).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::NotFound(_)), "{refused:?}");
        ground.take("three").await.unwrap();
        assert_eq!(ground.names().await, ["two", "three"]);
        let structure =
            ground.worker.verify(&ground.instance, VerifyDepth::Structure, &silent).await.unwrap();
        let id = first.id.to_string();
        assert!(structure.damage.iter().any(|line| line.contains(&id)), "{structure:?}");
        // What only that one needs is not taken for unneeded.
        let refused =
            ground.worker.forget(&ground.instance, &[].into(), &silent).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Damaged(_)), "{refused:?}");
        ground.worker.forget(&ground.instance, &[first.id].into(), &silent).await.unwrap();
        assert!(!lost.exists());
        ground.assert_sound().await;
    });
}

#[test]
fn an_index_that_cannot_be_read_is_damage() {
    run(async {
        let ground = Ground::new();
        ground.write("file", "content");
        ground.take("one").await.unwrap();
        for index in files_below(&ground.repository().join("index")) {
            flip(&index);
        }
        let refused = ground.restore("one", 2).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Damaged(_)), "{refused:?}");
        let found =
            ground.worker.verify(&ground.instance, VerifyDepth::Structure, &silent).await.unwrap();
        assert_eq!(found.affected, [snapshot("one")].into());
        assert_eq!(fs::read(ground.live().join("file")).unwrap(), b"content");
        assert!(!ground.generation(2).exists());
    });
}

#[test]
fn what_was_left_half_made_is_swept() {
    run(async {
        let ground = Ground::new();
        ground.write("file", "content");
        ground.take("one").await.unwrap();
        let partial = ground.home().join("gen-2.partial");
        for (directory, name) in [(ground.staging(), "0"), (partial.clone(), "file")] {
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(name), "left").unwrap();
        }
        ground.restore("one", 2).await.unwrap();
        assert!(!ground.staging().exists() && !partial.exists());
        assert_eq!(fs::read(ground.generation(2).join("file")).unwrap(), b"content");
    });
}
