//! A disk without room.

use std::fs;

use clawd::ports::{VolumeError, Volumes, Writers};

use crate::ground::{Ground, SECOND, in_memory};

async fn goes_on_when_there_is_room(size: &str, files: usize, length: usize) {
    let place = tempfile::tempdir().unwrap();
    in_memory(place.path(), size);
    let ground = Ground::at(&place.path().join("lib"));
    for n in 0..files {
        ground.write(&format!("file {n}"), &n.to_string().repeat(length));
    }
    for writers in [Writers::Somebody, Writers::Nobody] {
        let error = ground.try_copy(writers).await.unwrap_err();
        assert!(matches!(error, VolumeError::Full { .. }), "{error:?}");
        assert!(!ground.is_complete().await);
    }
    for n in 0..files / 2 {
        fs::remove_file(ground.first(&format!("file {n}"))).unwrap();
    }
    ground.volumes.remove(&ground.instance, SECOND).await.unwrap();
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
    assert!(ground.is_complete().await);
    let found = ground.volumes.measure(&ground.instance, SECOND).await.unwrap();
    assert!(found.total_bytes <= 16 << 20, "{found:?}");
}

#[tokio::test]
async fn a_copy_goes_on_when_there_is_room() {
    goes_on_when_there_is_room("size=16m", 40, 150_000).await;
}

#[tokio::test]
async fn a_copy_goes_on_when_there_are_inodes() {
    goes_on_when_there_is_room("size=16m,nr_inodes=70", 40, 10).await;
}
