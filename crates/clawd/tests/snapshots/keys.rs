//! What opens a repository, and what happens without it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use clawd::ports::{Snapshots as _, SnapshotsError};

use crate::ground::{Ground, files_below, run};

#[test]
fn keys_are_sealed_private_and_nowhere_else() {
    run(async {
        let ground = Ground::new();
        ground.write("openclaw.json", "{}");
        ground.take("one").await.unwrap();
        let keys = ground.worker.keys(&ground.instance).await.unwrap().unwrap();
        assert_eq!(keys.secret.reveal().len(), 64);
        let path = ground.data.join("repo/demo.keys");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(
            fs::metadata(ground.data.join("repo")).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        for file in files_below(&ground.data) {
            let content = fs::read(&file).unwrap();
            for secret in [keys.secret.reveal(), keys.recovery.reveal()] {
                let found = content.windows(secret.len()).any(|part| part == secret.as_bytes());
                assert!(!found, "{}", file.display());
            }
        }
    });
}

#[test]
fn a_repository_without_its_keys_is_never_replaced() {
    run(async {
        let ground = Ground::new();
        ground.write("openclaw.json", "{}");
        ground.take("one").await.unwrap();
        let path = ground.data.join("repo/demo.keys");
        let sealed = fs::read(&path).unwrap();
        let before = files_below(&ground.repository());

        fs::remove_file(&path).unwrap();
        for refused in [
            ground.take("two").await.map(drop),
            ground.worker.list(&ground.instance).await.map(drop),
            ground.restore("one", 2).await,
        ] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, SnapshotsError::Keys(_)), "{refused:?}");
            let text = clawd::logging::chain(&refused);
            assert!(text.contains("demo.keys is missing"), "{text}");
        }
        assert!(!path.exists());
        assert_eq!(files_below(&ground.repository()), before);

        // Another instance's, and damaged ones.
        for wrong in [b"nothing".to_vec(), sealed.iter().map(|byte| byte ^ 1).collect()] {
            fs::write(&path, &wrong).unwrap();
            let refused = ground.take("two").await.unwrap_err();
            let text = clawd::logging::chain(&refused);
            assert!(text.contains("hint: put back the seal.key"), "{text}");
        }
        fs::write(&path, &sealed).unwrap();
        ground.take("two").await.unwrap();
        assert_eq!(ground.names().await, ["one", "two"]);
    });
}

#[test]
fn keys_of_a_repository_that_was_not_made_are_used_for_it() {
    run(async {
        let ground = Ground::new();
        // The directory is absent: the keys are made, then the job fails.
        ground.take("one").await.unwrap_err();
        let keys = ground.worker.keys(&ground.instance).await.unwrap().unwrap();
        ground.write("openclaw.json", "{}");
        ground.take("one").await.unwrap();
        assert_eq!(ground.worker.keys(&ground.instance).await.unwrap(), Some(keys));
    });
}
