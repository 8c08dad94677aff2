//! A tenant's programs that do their worst while their data is copied.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use clawd::ports::{Volumes, Writers};

use crate::ground::{FIRST, Ground, SECOND};

/// Does something again and again while something else goes on.
async fn while_doing(change: impl Fn(u64) + Send + 'static, work: impl Future<Output = ()>) {
    let ended = std::sync::Arc::new(AtomicBool::new(false));
    let changing = std::thread::spawn({
        let ended = ended.clone();
        move || {
            let mut times = 0;
            while !ended.load(Ordering::Relaxed) {
                change(times);
                times += 1;
            }
            times
        }
    });
    work.await;
    ended.store(true, Ordering::Relaxed);
    assert!(changing.join().unwrap() > 0);
}

/// A directory that turns into a link to the host's files and back: nothing of theirs gets into the copy.
#[tokio::test]
async fn links_that_come_and_go_lead_nowhere() {
    let ground = Ground::new();
    let outside = ground.home().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "secret of the host").unwrap();
    ground.write("dir/file", "own");
    for n in 0..50 {
        ground.write(&format!("some/{n}"), "own");
    }
    let (dir, aside) = (ground.first("dir"), ground.first("aside"));
    let change = move |times: u64| {
        if times.is_multiple_of(2) {
            fs::rename(&dir, &aside).unwrap();
            symlink(&outside, &dir).unwrap();
        } else {
            fs::remove_file(&dir).unwrap();
            fs::rename(&aside, &dir).unwrap();
        }
    };
    while_doing(change, async {
        for _pass in 0..40 {
            ground.copy(Writers::Somebody).await;
            let got = fs::symlink_metadata(ground.second("dir")).is_ok_and(|stat| stat.is_dir());
            if got && let Ok(text) = fs::read_to_string(ground.second("dir/file")) {
                assert_eq!(text, "own");
            }
        }
    })
    .await;
    let outside = ground.home().join("outside");
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "secret of the host");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1, "nothing was written outside");
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
}

/// The same on the other side: what a rehearsal has planted in the copy is never written through.
#[tokio::test]
async fn links_planted_in_the_copy_lead_nowhere() {
    let ground = Ground::new();
    ground.write("dir/file", "own");
    ground.write("file", "own");
    ground.copy(Writers::Somebody).await;
    let outside = ground.home().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "untouched").unwrap();
    fs::remove_dir_all(ground.second("dir")).unwrap();
    symlink(&outside, ground.second("dir")).unwrap();
    fs::remove_file(ground.second("file")).unwrap();
    fs::hard_link(outside.join("file"), ground.second("file")).unwrap();
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
    assert_eq!(fs::read_to_string(outside.join("file")).unwrap(), "untouched");
}

#[tokio::test]
async fn files_that_come_go_and_change_are_no_error() {
    let ground = Ground::new();
    for n in 0..100 {
        ground.write(&format!("dir {}/file {n}", n % 7), &"x".repeat(n * 1000));
    }
    let first = ground.path(FIRST);
    let change = move |times: u64| {
        let dir = first.join(format!("dir {}", times % 7));
        let path = dir.join(format!("file {}", times * 31 % 100));
        let _gone = match times % 6 {
            0 => fs::remove_file(&path),
            1 => fs::remove_dir_all(&dir),
            2 => fs::rename(&path, dir.join("moved")),
            3 => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).map_err(Into::into),
            4 => fs::create_dir_all(&path),
            _ => fs::create_dir_all(&dir).and_then(|()| fs::write(&path, times.to_string())),
        };
    };
    while_doing(change, async {
        for _pass in 0..30 {
            ground.copy(Writers::Somebody).await;
        }
    })
    .await;
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
}

/// A file that grows faster than it is read would be copied for ever.
#[tokio::test]
async fn a_file_that_grows_is_copied_as_far_as_it_went() {
    let ground = Ground::new();
    ground.write("log", &"x".repeat(1 << 20));
    let log = ground.first("log");
    let change = move |_times: u64| {
        use std::io::Write;
        let mut file = fs::File::options().append(true).open(&log).unwrap();
        if file.metadata().unwrap().len() < 256 << 20 {
            file.write_all(&[b'x'; 1 << 16]).unwrap();
        }
    };
    while_doing(change, async {
        for _pass in 0..5 {
            ground.copy(Writers::Somebody).await;
        }
    })
    .await;
    ground.copy(Writers::Nobody).await;
    ground.assert_same();
}

/// Deeper than any path can say, and deeper than there are file descriptors.
#[tokio::test]
async fn a_bottomless_tree_is_refused_and_can_be_removed() {
    let ground = Ground::new();
    let mut dir = nix::dir::Dir::open(
        &ground.path(FIRST),
        nix::fcntl::OFlag::O_DIRECTORY,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    let name = "a name of quite some length, so that a path gets too long sooner";
    for _level in 0..3000 {
        nix::sys::stat::mkdirat(&dir, name, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        let mode = nix::sys::stat::Mode::empty();
        dir = nix::dir::Dir::openat(&dir, name, flags, mode).unwrap();
    }
    let error = ground.try_copy(Writers::Nobody).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("too long"), "{error}: {source}");
    for data in [SECOND, FIRST] {
        ground.volumes.remove(&ground.instance, data).await.unwrap();
    }
    assert_eq!(fs::read_dir(ground.home()).unwrap().count(), 0);
}

#[tokio::test]
async fn an_original_that_is_a_link_is_not_followed() {
    let ground = Ground::new();
    fs::remove_dir(ground.path(FIRST)).unwrap();
    symlink(Path::new("/etc"), ground.path(FIRST)).unwrap();
    assert!(ground.try_copy(Writers::Somebody).await.is_err());
    assert!(ground.volumes.measure(&ground.instance, FIRST).await.is_err());
    ground.volumes.remove(&ground.instance, FIRST).await.unwrap();
    assert!(Path::new("/etc/passwd").exists());
}
