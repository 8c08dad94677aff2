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
        self.files.mounts(&name()).data
    }

    async fn deliver(&self, files: &[(&str, &str)]) -> Result<(), FilesError> {
        let files = files.iter().map(|(path, text)| (state(path), (*text).to_owned())).collect();
        self.files.deliver(&name(), &files).await
    }

    async fn view(&self, files: &[&str]) -> FilesView {
        let files = files.iter().map(|path| state(path)).collect();
        self.files.view(&name(), &files).await.unwrap()
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
    let path = place.files.mounts(&name()).secrets;
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
    assert_eq!(place.files.mounts(&name()).secrets.exists(), on_tmpfs);
}

#[tokio::test]
async fn data_is_set_aside_and_kept() {
    let place = Place::new();
    place.deliver(&[("openclaw.json", "{}")]).await.unwrap();
    let at = Timestamp::from_millis(42);
    for _again in 0..2 {
        place.files.set_aside(&name(), at).await.unwrap();
    }
    assert!(!place.view(&[]).await.data_present);
    let aside = place.dir.path().join("lib/removed/demo.42/gen-1/openclaw.json");
    assert_eq!(std::fs::read_to_string(aside).unwrap(), "{}");
}
