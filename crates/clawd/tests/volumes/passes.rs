//! What passes do, one after another.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use clawd::ports::{VolumeError, Volumes, Writers};

use crate::ground::{FIRST, Ground, SECOND, extend};

/// A tree with one of everything.
fn everything(ground: &Ground) {
    ground.write("openclaw.json", "{}");
    ground.write("state/openclaw.sqlite", &"page".repeat(100_000));
    ground.write("empty", "");
    ground.write("deep/er/and/deeper/file", "x");
    ground.write("cache/56 MB", "regenerable, but copied");
    ground.write("tmp/scratch", "left out");
    ground.write("tmp/dir/scratch", "left out");
    symlink("../outside", ground.first("dangling")).unwrap();
    symlink("/etc/passwd", ground.first("deep/absolute")).unwrap();
    fs::hard_link(ground.first("openclaw.json"), ground.first("deep/second name")).unwrap();
    fs::hard_link(ground.first("openclaw.json"), ground.first("zz third name")).unwrap();
    nix::unistd::mkfifo(&ground.first("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(ground.first("socket")).unwrap());
    extend(&ground.first("openclaw.json"), b"of a file");
    extend(&ground.first("deep"), b"of a directory");
    for (path, mode, owner) in
        [("openclaw.json", 0o600, 1000), ("empty", 0o4751, 1001), ("deep/er", 0o2755, 1000)]
    {
        std::os::unix::fs::chown(ground.first(path), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(ground.first(path), PermissionsExt::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::lchown(ground.first("dangling"), Some(1000), Some(1000)).unwrap();
}

#[tokio::test]
async fn a_copy_has_everything() {
    let ground = Ground::new();
    everything(&ground);
    let copied = ground.copy(Writers::Nobody).await;
    ground.assert_same();
    assert_eq!(copied.files, 5, "files with several names are copied once: {copied:?}");
    for left_out in ["pipe", "socket", "tmp/scratch"] {
        assert!(fs::symlink_metadata(ground.second(left_out)).is_err(), "{left_out}");
    }
    assert!(ground.second("tmp").is_dir());
    let root = fs::metadata(ground.path(SECOND)).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid()), (0o700, 1000));
    let names = fs::read_dir(ground.home()).unwrap().count();
    assert_eq!(names, 3, "the original, the copy and its record");
}

#[tokio::test]
async fn the_second_pass_writes_what_has_changed() {
    let ground = Ground::new();
    everything(&ground);
    ground.settle().await;
    assert_eq!(ground.copy(Writers::Somebody).await.files, 5);
    assert!(!ground.is_complete().await);
    assert_eq!(ground.copy(Writers::Somebody).await.files, 0);
    ground.write("state/openclaw.sqlite", "smaller");
    assert_eq!(ground.copy(Writers::Held).await.files, 1);
    let copied = ground.copy(Writers::Nobody).await;
    assert_eq!((copied.files, copied.bytes), (1, 7), "it is too new to be settled");
    ground.assert_same();
    assert!(ground.is_complete().await);
    ground.settle().await;
    // As the first: the file was changed less than a second before the last pass.
    assert_eq!(ground.copy(Writers::Nobody).await.files, 1);
    assert_eq!(ground.copy(Writers::Nobody).await.files, 0);
    ground.assert_same();
}

#[tokio::test]
async fn a_change_that_hides_is_found() {
    let ground = Ground::new();
    ground.write("a", "one");
    ground.write("b", "one");
    ground.settle().await;
    ground.copy(Writers::Somebody).await;
    for path in [ground.first("a"), ground.second("b")] {
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "two").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    }
    assert_eq!(ground.copy(Writers::Nobody).await.files, 2);
    assert_eq!(fs::read_to_string(ground.second("a")).unwrap(), "two");
    assert_eq!(fs::read_to_string(ground.second("b")).unwrap(), "one");
}

#[tokio::test]
async fn what_a_rehearsal_has_done_is_undone() {
    let ground = Ground::new();
    everything(&ground);
    ground.settle().await;
    ground.copy(Writers::Somebody).await;
    ground.write("written meanwhile", "kept");
    fs::write(ground.second("state/openclaw.sqlite"), "migrated").unwrap();
    fs::write(ground.second("new"), "of the rehearsal").unwrap();
    fs::remove_dir_all(ground.second("deep")).unwrap();
    symlink(ground.home(), ground.second("deep")).unwrap();
    fs::hard_link(ground.second("empty"), ground.second("another name")).unwrap();
    fs::remove_file(ground.second("openclaw.json")).unwrap();
    fs::create_dir_all(ground.second("openclaw.json/in/the/way")).unwrap();
    fs::set_permissions(ground.second("cache"), PermissionsExt::from_mode(0o000)).unwrap();
    fs::write(ground.second("tmp/scratch"), "of the rehearsal").unwrap();
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
    assert_eq!(fs::read_dir(ground.second("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn sparse_files_stay_sparse() {
    let ground = Ground::new();
    let file = fs::File::create(ground.first("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"begin", 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 50 << 20).unwrap();
    file.set_len(100 << 20).unwrap();
    fs::File::create(ground.first("hole")).unwrap().set_len(10 << 20).unwrap();
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
    for name in ["sparse", "hole"] {
        let copy = fs::metadata(ground.second(name)).unwrap();
        assert!(copy.blocks() * 512 < 1 << 20, "{name} takes {} bytes", copy.blocks() * 512);
    }
}

#[tokio::test]
async fn a_change_during_the_last_pass_is_an_error() {
    let ground = Ground::new();
    // The walk comes to `a` first and leaves the top directory last.
    ground.write("a/large", &"x".repeat(64 << 20));
    let changing = async {
        while fs::metadata(ground.second("a/large")).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        ground.write("late", "came while nobody was to write");
    };
    let (copied, ()) = tokio::join!(ground.try_copy(Writers::Nobody), changing);
    let error = copied.unwrap_err();
    assert!(matches!(error, VolumeError::Io { doing: "copying", .. }), "{error:?}");
    assert!(!ground.is_complete().await);
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
}

#[tokio::test]
async fn a_copy_that_nobody_waits_for_ends() {
    let ground = Ground::new();
    for n in 0..200 {
        ground.write(&format!("file {n}"), &"x".repeat(1 << 20));
    }
    let begun = async {
        while fs::metadata(ground.second("file 1")).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        copied = ground.try_copy(Writers::Nobody) => panic!("it was to be given up: {copied:?}"),
        () = begun => {}
    }
    // Waits for its turn: for the job that was given up.
    ground.volumes.remove(&ground.instance, SECOND).await.unwrap();
    assert!(fs::read_dir(ground.home()).unwrap().count() == 1, "nothing came back");
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
}

#[tokio::test]
async fn removal_takes_everything_and_nothing_else() {
    let ground = Ground::new();
    everything(&ground);
    for writers in [Writers::Somebody, Writers::Nobody] {
        ground.copy(writers).await;
        ground.volumes.remove(&ground.instance, SECOND).await.unwrap();
        assert_eq!(fs::read_dir(ground.home()).unwrap().count(), 1, "{writers:?}");
    }
    for left in ["gen-2.removing/some/tree", "gen-2.partial/some/tree", "gen-20"] {
        fs::create_dir_all(ground.home().join(left)).unwrap();
    }
    let found = ground.volumes.generations(&ground.instance).await.unwrap();
    assert!(!ground.home().join("gen-2.removing").exists(), "swept");
    assert_eq!(found.len(), 2, "{found:?}");
    ground.volumes.remove(&ground.instance, SECOND).await.unwrap();
    assert!(!ground.home().join("gen-2.partial").exists());
    assert!(ground.home().join("gen-20").exists() && ground.path(FIRST).exists());
}

#[tokio::test]
async fn a_measure_counts_blocks_once() {
    let ground = Ground::new();
    ground.write("a", &"x".repeat(1 << 20));
    fs::hard_link(ground.first("a"), ground.first("b")).unwrap();
    let found = ground.volumes.measure(&ground.instance, FIRST).await.unwrap();
    assert!((1 << 20..1 << 20 | 1 << 16).contains(&found.bytes), "{found:?}");
    assert_eq!(found.entries, 1);
    assert!(found.free_bytes > 0 && found.total_bytes > found.free_bytes);
}
