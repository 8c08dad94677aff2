//! Any tree, and any change of it and of its copy between passes: the copy is the same afterwards.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use clawd::ports::Writers;
use proptest::prelude::*;

use crate::ground::{FIRST, Ground, SECOND, XATTR, tree};

/// Trees per case: they share the wait until files count as settled.
const TREES: usize = 12;

/// Names that order, hide and collide.
const NAMES: [&str; 6] = ["a", "a.b", "b", "tmp", "\u{e4}\n", ".clawd-removing-1"];

/// Something that a program does to a tree; what cannot be done is not.
#[derive(Debug, Clone)]
struct Change {
    what: u8,
    path: Vec<usize>,
    other: Vec<usize>,
    value: u16,
}

fn change() -> impl Strategy<Value = Change> {
    let path = || prop::collection::vec(0..NAMES.len(), 1..4);
    (0..14_u8, path(), path(), any::<u16>()).prop_map(|(what, path, other, value)| Change {
        what,
        path,
        other,
        value,
    })
}

fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec(change(), 0..most)
}

fn path(root: &Path, names: &[usize]) -> PathBuf {
    names.iter().fold(root.to_owned(), |path, name| path.join(NAMES[*name]))
}

/// Whether a path leads through a link: then it is not this tree that would be changed.
fn is_own(root: &Path, path: &Path) -> bool {
    let above = path.ancestors().skip(1).take_while(|ancestor| *ancestor != root);
    above.into_iter().all(|ancestor| ancestor.symlink_metadata().is_ok_and(|stat| stat.is_dir()))
}

fn apply(root: &Path, change: &Change) {
    let (path, other) = (path(root, &change.path), path(root, &change.other));
    if change.what < 4 {
        let _parents = is_own(root, path.parent().unwrap_or(root))
            .then(|| fs::create_dir_all(path.parent().unwrap_or(root)));
    }
    if !is_own(root, &path) || !is_own(root, &other) {
        return;
    }
    let is_link = path.symlink_metadata().is_ok_and(|stat| stat.is_symlink());
    // Opening a pipe waits for its other end.
    let is_pipe = path.symlink_metadata().is_ok_and(|stat| stat.file_type().is_fifo());
    let text = change.value.to_string().repeat(usize::from(change.value % 300));
    let times = path.symlink_metadata().and_then(|stat| stat.modified());
    let _refused = match change.what {
        0..=2 if !is_link && !is_pipe => fs::write(&path, text),
        3 => fs::create_dir(&path),
        4 => symlink(&other, &path),
        5 => fs::hard_link(&path, &other),
        6 => fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path)),
        7 => fs::rename(&path, &other),
        8 if !is_link => {
            let mode = u32::from(change.value % 0o1000) | 0o700;
            fs::set_permissions(&path, PermissionsExt::from_mode(mode))
        }
        9 => std::os::unix::fs::lchown(&path, Some(u32::from(change.value)), Some(1000)),
        // A pipe has none (xattr(7)).
        10 if path.exists() && !is_link && !is_pipe => {
            try_extend(&path, text.get(..16).unwrap_or(&text).as_bytes());
            Ok(())
        }
        11 => nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).map_err(Into::into),
        // A change that hides behind the old time.
        12 if path.is_file() && !is_link => fs::write(&path, &text)
            .and_then(|()| fs::File::options().write(true).open(&path)?.set_modified(times?)),
        13 if path.is_file() && !is_link => {
            fs::File::options().write(true).open(&path).and_then(|file| file.set_len(17))
        }
        _ => Ok(()),
    };
}

/// Before Linux 6.6 a file system in memory has no such attributes.
fn try_extend(path: &Path, value: &[u8]) {
    let set = rustix::fs::lsetxattr(path, XATTR, value, rustix::fs::XattrFlags::empty());
    assert!(matches!(set, Ok(()) | Err(rustix::io::Errno::OPNOTSUPP)), "{set:?}");
}

#[derive(Debug, Clone)]
struct Story {
    made: Vec<Change>,
    changed: Vec<Change>,
    rehearsed: Vec<Change>,
    again: Vec<Change>,
}

fn story() -> impl Strategy<Value = Story> {
    (changes(30), changes(8), changes(8), changes(4))
        .prop_map(|(made, changed, rehearsed, again)| Story { made, changed, rehearsed, again })
}

fn play(ground: &Ground, changes: &[Change], on: claw_core::data::DataGeneration) {
    changes.iter().for_each(|change| apply(&ground.path(on), change));
}

async fn tell(stories: &[Story]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    // Where nothing has to be written out; otherwise like any other.
    crate::ground::in_memory(dir.path(), "size=256m");
    let grounds: Vec<Ground> =
        (0..stories.len()).map(|n| Ground::at(&dir.path().join(n.to_string()))).collect();
    let told = || grounds.iter().zip(stories);
    told().for_each(|(ground, story)| play(ground, &story.made, FIRST));
    crate::ground::settle(dir.path()).await;
    for (ground, story) in told() {
        ground.copy(Writers::Somebody).await;
        same(ground)?;
        crate::ground::tick(dir.path()).await;
        play(ground, &story.changed, FIRST);
        play(ground, &story.rehearsed, SECOND);
        ground.copy(Writers::Held).await;
        same(ground)?;
        crate::ground::tick(dir.path()).await;
        play(ground, &story.again, SECOND);
        ground.copy(Writers::Nobody).await;
        same(ground)?;
        prop_assert!(ground.is_complete().await);
    }
    crate::ground::settle(dir.path()).await;
    for (ground, story) in told() {
        play(ground, &story.again, FIRST);
        ground.copy(Writers::Nobody).await;
        same(ground)?;
    }
    Ok(())
}

fn same(ground: &Ground) -> Result<(), TestCaseError> {
    prop_assert_eq!(tree(&ground.path(SECOND)), tree(&ground.path(FIRST)));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_copy_is_the_same_after_every_pass(stories in prop::collection::vec(story(), TREES)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tell(&stories))?;
    }
}
