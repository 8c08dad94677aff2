//! Little room.

use std::fs;
use std::path::Path;

use clawd::adapters::snapshots::{RESERVE_BYTES, RESERVE_PERMILLE};
use clawd::ports::SnapshotsError;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::ground::{Ground, Holding, noise, run};

/// A small file system that this process alone sees.
fn small(place: &Path, mebibytes: u32) {
    const NOTHING: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).unwrap();
    let size = format!("size={mebibytes}m");
    mount(Some("claw"), place, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
}

#[test]
fn a_full_disk_fails_the_job_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    small(place.path(), 48);
    run(async {
        let ground = Ground::at(place.path(), |_| ());
        ground.write("file", noise(1, 1_000_000));
        ground.take("one").await.unwrap();
        // What is held changes as much as there is room for, and more.
        ground.write("changed", noise(2, 6_000_000));
        let filler = place.path().join("filler");
        let filling = Holding::doing(|| {
            ground.write("changed", noise(3, 6_000_000));
            let mut size = 64 << 20;
            while size > 4096 {
                if fs::write(&filler, vec![1; size]).is_ok() {
                    break;
                }
                size = size * 15 / 16;
            }
        });
        let refused = ground.take_up("two", &filling).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Full { .. }), "{refused:?}");
        assert_eq!((filling.held.get(), filling.released.get()), (1, 1));
        assert!(!ground.staging().exists(), "copies are not left on a full disk");
        fs::remove_file(&filler).unwrap();
        assert_eq!(ground.names().await, ["one"]);
        ground.take_up("two", &Holding::default()).await.unwrap();
        ground.assert_sound().await;
        ground.restore("two", 2).await.unwrap();
        assert_eq!(fs::read(ground.generation(2).join("changed")).unwrap(), noise(3, 6_000_000));
    });
}

#[test]
fn room_for_others_is_kept() {
    let place = tempfile::tempdir().unwrap();
    small(place.path(), 64);
    run(async {
        let open = Ground::at(place.path(), |_| ());
        open.write("file", noise(1, 3_000_000));
        open.take("one").await.unwrap();
        let careful = Ground::at(place.path(), |settings| {
            (settings.reserve_permille, settings.reserve_bytes) = (RESERVE_PERMILLE, RESERVE_BYTES);
        });
        for refused in [careful.take("two").await.map(drop), careful.restore("one", 2).await] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, SnapshotsError::Full { .. }), "{refused:?}");
            let text = refused.to_string();
            assert!(text.contains("it may take "), "{text}");
            assert!(text.contains("of which 512 MiB are kept free"), "{text}");
        }
        assert!(!open.generation(2).exists());
        // A restore takes as much as there was.
        let near = Ground::at(place.path(), |settings| settings.reserve_bytes = 57 << 20);
        let refused = near.restore("one", 2).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Full { .. }), "{refused:?}");
        open.restore("one", 2).await.unwrap();
    });
}
