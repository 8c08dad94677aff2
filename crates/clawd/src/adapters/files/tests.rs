use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;

/// Everything in a temporary directory, owned by whoever runs the test.
struct Place {
    dir: tempfile::TempDir,
    files: InstanceFiles,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let owner = std::fs::metadata(dir.path()).unwrap();
        let files = InstanceFiles::new(FilesSettings {
            data: dir.path().join("lib"),
            secrets: dir.path().join("run/secrets"),
            medium: SecretsMedium::Any,
            owner: Owner { uid: owner.uid(), gid: owner.gid() },
        });
        Self { dir, files }
    }

    fn data(&self) -> PathBuf {
        self.files.mounts(&name(), DataGeneration::FIRST).data
    }

    async fn deliver(&self, files: &[(&str, &str)]) -> Result<(), FilesError> {
        let files = files.iter().map(|(path, text)| (state(path), (*text).to_owned())).collect();
        self.files.deliver(&name(), DataGeneration::FIRST, &files).await
    }

    async fn view(&self, files: &[&str]) -> FilesView {
        let files = files.iter().map(|path| state(path)).collect();
        self.files.view(&name(), DataGeneration::FIRST, &files).await.unwrap()
    }
}

fn name() -> InstanceName {
    InstanceName::parse("demo").unwrap()
}

fn state(path: &str) -> StatePath {
    StatePath::parse(path).unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn files_are_delivered_with_their_modes() {
    let place = Place::new();
    assert_eq!(place.view(&["openclaw.json"]).await, FilesView::default());
    place.deliver(&[("openclaw.json", "{}"), ("workspace/a/IDENTITY.md", "me")]).await.unwrap();
    let data = place.data();
    assert!(data.ends_with("lib/instances/demo/gen-1"));
    assert_eq!(std::fs::read_to_string(data.join("workspace/a/IDENTITY.md")).unwrap(), "me");
    assert_eq!(mode(&data), 0o700);
    assert_eq!(mode(&data.join("workspace")), 0o700);
    assert_eq!(mode(&data.join("openclaw.json")), 0o600);
    assert_eq!(mode(&data.join(".env")), 0o600, "where secrets are mounted");
    let view = place.view(&["openclaw.json", "workspace/a/IDENTITY.md"]).await;
    assert_eq!(view, FilesView { data_present: true, files_present: true, secrets: None });
    assert!(!place.view(&["other"]).await.files_present);

    place.deliver(&[("openclaw.json", "{ a: 1 }")]).await.unwrap();
    assert_eq!(std::fs::read_to_string(data.join("openclaw.json")).unwrap(), "{ a: 1 }");
    let left: Vec<_> = std::fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "no unfinished file is left: {left:?}");
}

#[tokio::test]
async fn a_data_directory_with_another_mode_is_not_as_it_should_be() {
    let place = Place::new();
    place.deliver(&[]).await.unwrap();
    std::fs::set_permissions(place.data(), PermissionsExt::from_mode(0o755)).unwrap();
    assert!(!place.view(&[]).await.data_present);
    place.deliver(&[]).await.unwrap();
    assert!(place.view(&[]).await.data_present);
}

#[tokio::test]
async fn planted_links_lead_nowhere() {
    let place = Place::new();
    let outside = place.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "untouched").unwrap();
    place.deliver(&[]).await.unwrap();
    let data = place.data();

    symlink(&outside, data.join("workspace")).unwrap();
    let error = place.deliver(&[("workspace/victim", "evil")]).await.unwrap_err();
    assert!(error.to_string().ends_with("gen-1/workspace/victim"), "{error}");
    assert!(!place.view(&["workspace/victim"]).await.files_present, "seen through a link");

    symlink(outside.join("victim"), data.join("openclaw.json")).unwrap();
    assert!(!place.view(&["openclaw.json"]).await.files_present, "a link is no file");
    place.deliver(&[("openclaw.json", "{}")]).await.unwrap();
    assert!(place.view(&["openclaw.json"]).await.files_present, "the link was replaced");

    symlink(outside.join("victim"), data.join(".clawd-unfinished")).unwrap();
    place.deliver(&[("openclaw.json", "{}")]).await.unwrap();

    std::fs::remove_file(data.join(".env")).unwrap();
    symlink(outside.join("victim"), data.join(".env")).unwrap();
    place.deliver(&[]).await.unwrap();
    assert!(std::fs::symlink_metadata(data.join(".env")).unwrap().is_file());

    assert_eq!(std::fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1, "nothing was added outside");
}

#[tokio::test]
async fn a_planted_pipe_does_not_block() {
    let place = Place::new();
    place.deliver(&[]).await.unwrap();
    let pipe = place.data().join("openclaw.json");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(!place.view(&["openclaw.json"]).await.files_present);
    place.deliver(&[("openclaw.json", "{}")]).await.unwrap();
    assert!(place.view(&["openclaw.json"]).await.files_present);
}

#[tokio::test]
async fn a_write_that_fails_leaves_the_old_file_and_nothing_else() {
    let place = Place::new();
    place.deliver(&[("a/b", "old")]).await.unwrap();
    let error = place.deliver(&[("a", "a directory is in the way")]).await.unwrap_err();
    assert!(error.to_string().starts_with("writing "), "{error}");
    assert_eq!(std::fs::read_to_string(place.data().join("a/b")).unwrap(), "old");
    assert!(!place.data().join(".clawd-unfinished").exists());
}

#[tokio::test]
async fn secrets_come_and_go() {
    let place = Place::new();
    let text = Secret::new("TOKEN='x'\n".to_owned());
    for _again in 0..2 {
        place.files.write_secrets(&name(), &text).await.unwrap();
    }
    let path = place.files.mounts(&name(), DataGeneration::FIRST).secrets;
    assert!(path.ends_with("run/secrets/demo/.env"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text.reveal());
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o400, 0o700));
    let digest = Digest::of(text.reveal().as_bytes());
    assert_eq!(place.view(&[]).await.secrets, Some(digest));

    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).unwrap();
    assert_eq!(place.view(&[]).await.secrets, None, "readable by others: not as it was written");

    for _again in 0..2 {
        place.files.remove_secrets(&name()).await.unwrap();
    }
    assert_eq!(place.view(&[]).await.secrets, None);
    assert!(!path.parent().unwrap().exists());
}

#[tokio::test]
async fn secrets_never_reach_a_disk() {
    let mut place = Place::new();
    place.files.settings.medium = SecretsMedium::Memory;
    let on_tmpfs = Dir::open(place.dir.path()).unwrap().is_on_tmpfs().unwrap();
    let written = place.files.write_secrets(&name(), &Secret::new("x".to_owned())).await;
    assert_eq!(written.is_ok(), on_tmpfs, "{written:?}");
    assert_eq!(place.files.mounts(&name(), DataGeneration::FIRST).secrets.exists(), on_tmpfs);
}

/// Every file below a directory, as path and text.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// Data of two generations, snapshots and keys of an instance.
async fn everything(place: &Place) {
    place.deliver(&[("openclaw.json", "{}")]).await.unwrap();
    let second = DataGeneration::FIRST.next();
    place.files.deliver(&name(), second, &BTreeMap::new()).await.unwrap();
    let repositories = place.dir.path().join("lib/repo");
    std::fs::create_dir_all(repositories.join("demo")).unwrap();
    std::fs::write(repositories.join("demo/config"), "repository").unwrap();
    std::fs::write(repositories.join("demo.keys"), "sealed").unwrap();
    std::fs::write(repositories.join("demo2.keys"), "of another").unwrap();
}

fn all_of_it() -> BTreeMap<String, String> {
    let parts = [
        ("data/gen-1/.env", ""),
        ("data/gen-1/openclaw.json", "{}"),
        ("data/gen-2/.env", ""),
        ("keys", "sealed"),
        ("repo/config", "repository"),
    ];
    parts.map(|(path, text)| (path.to_owned(), text.to_owned())).into()
}

#[tokio::test]
async fn everything_is_set_aside_and_kept() {
    let place = Place::new();
    place.files.set_aside(&name(), Timestamp::from_millis(41)).await.unwrap();
    let removed = place.dir.path().join("lib/removed");
    assert!(!removed.exists(), "there was nothing to set aside");
    everything(&place).await;
    for _again in 0..2 {
        place.files.set_aside(&name(), Timestamp::from_millis(42)).await.unwrap();
    }
    assert!(!place.view(&[]).await.data_present);
    assert_eq!(tree(&removed.join("demo.42")), all_of_it());
    assert_eq!(std::fs::read_dir(&removed).unwrap().count(), 1);
    assert!(place.dir.path().join("lib/repo/demo2.keys").exists(), "another's stays");

    place.deliver(&[("openclaw.json", "{}")]).await.unwrap();
    place.files.set_aside(&name(), Timestamp::from_millis(43)).await.unwrap();
    assert_eq!(tree(&removed.join("demo.43")).len(), 2, "an instance of the same name later");
}

#[tokio::test]
async fn setting_aside_goes_on_where_it_was_killed() {
    let parts = [("repo/demo", "repo"), ("repo/demo.keys", "keys"), ("instances/demo", "data")];
    for moved in 0..=parts.len() {
        let place = Place::new();
        everything(&place).await;
        let lib = place.dir.path().join("lib");
        std::fs::create_dir_all(lib.join("removed/.demo")).unwrap();
        for (from, part) in &parts[..moved] {
            std::fs::rename(lib.join(from), lib.join("removed/.demo").join(part)).unwrap();
        }
        place.files.set_aside(&name(), Timestamp::from_millis(42)).await.unwrap();
        assert_eq!(tree(&lib.join("removed/demo.42")), all_of_it(), "killed after {moved}");
        assert_eq!(std::fs::read_dir(lib.join("removed")).unwrap().count(), 1);
    }
}
