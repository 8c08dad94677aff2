//! Storages off-site, archives and moves, against the fake of the API.

use claw_proto::fleet::v1 as fleet;
use claw_proto::node::v1 as node;
use tonic::Status;

use crate::fake::Fake;
use crate::{check, with_instances};

const SNAPSHOT: &str = "instances/demo/snapshots/good";

fn migration(stage: fleet::MigrationStage, problem: &str) -> Option<fleet::Migration> {
    Some(fleet::Migration {
        stage: stage.into(),
        source_host: "hosts/vps-1".to_owned(),
        target_host: "hosts/vps-2".to_owned(),
        source: fleet::MigrationSource::Host.into(),
        problem: problem.to_owned(),
        permille: Some(250),
        ..fleet::Migration::default()
    })
}

#[tokio::test]
async fn a_host_gets_a_storage_and_its_key_is_never_shown() {
    let fake = Fake::start().await;
    fake.state().hosts.insert(
        "hosts/vps-1".to_owned(),
        fleet::Host { name: "hosts/vps-1".to_owned(), ..fleet::Host::default() },
    );
    let key = fake.file("key", "hush\n");
    let set = "host offsite set vps-1 --url https://s3.example --bucket claws --prefix fleet";
    let from_file = format!("{set} --access-key AKID --secret-key-file {key} --bandwidth 8MiB");
    check(&fake.run(&from_file).await, 0, "hosts/vps-1 copies off-site\n", "");
    let storage = fake.state().storage.clone().unwrap();
    assert_eq!((storage.secret_key.as_str(), storage.bandwidth), ("hush", 8 << 20));
    assert_eq!(storage.addressing(), node::BucketAddressing::Path);
    let from_env = format!("{set} --access-key AKID --secret-key-env FROM_ENVIRONMENT");
    assert_eq!(fake.run(&from_env).await.status, 0);
    assert_eq!(fake.state().storage.clone().unwrap().secret_key, "value-of-env");
    let absent = fake.run(&format!("{set} --access-key AKID --secret-key-env NO_SUCH")).await;
    assert_eq!(absent.status, 2);
    assert!(absent.stderr.contains("the environment has no variable NO_SUCH"), "{absent:?}");
    check(
        &fake.run("host offsite clear vps-1").await,
        0,
        "hosts/vps-1 copies nothing off-site\n",
        "",
    );
    assert_eq!(fake.state().storage, None);
}

#[tokio::test]
async fn an_export_is_a_whole_file_or_none() {
    let fake = Fake::start().await;
    let pieces = vec![Ok(vec![1; 3]), Ok(vec![2; 4])];
    fake.state().archives.insert(SNAPSHOT.to_owned(), pieces);
    let place = fake.identity("out.tar.zst");
    let line = format!("snapshot export demo good --to {}", place.display());
    let outcome = fake.run(&line).await;
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("7B"), "{outcome:?}");
    assert!(outcome.stderr.contains("not encrypted"), "{outcome:?}");
    assert_eq!(std::fs::read(&place).unwrap(), [1, 1, 1, 2, 2, 2, 2]);
    let again = fake.run(&line).await;
    assert!(again.status == 1 && again.stderr.contains("exists already"), "{again:?}");
    std::fs::remove_file(&place).unwrap();
    let broken = vec![Ok(vec![1; 3]), Err(Status::aborted("the host went away"))];
    fake.state().archives.insert(SNAPSHOT.to_owned(), broken);
    let outcome = fake.run(&line).await;
    assert!(outcome.status == 1 && outcome.stderr.contains("the host went away"), "{outcome:?}");
    let left: Vec<_> = std::fs::read_dir(place.parent().unwrap())
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.contains("tar.zst"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn an_archive_is_sent_in_pieces_and_in_order() {
    let fake = Fake::start().await;
    let text: String = (0..30_000).map(|number| format!("{number:06} ")).collect();
    let file = fake.file("in.tar.zst", &text);
    let outcome = fake.run(&format!("snapshot import demo {file} --name good")).await;
    assert_eq!(outcome.status, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("rollback demo --to-snapshot good"), "{outcome:?}");
    let pieces = fake.state().archives.get(SNAPSHOT).cloned().unwrap();
    let pieces: Vec<Vec<u8>> = pieces.into_iter().map(Result::unwrap).collect();
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= 64 * 1024));
    assert!(pieces.concat() == text.as_bytes(), "what arrived is what was sent");
    let absent = fake.run("snapshot import demo no-such-file").await;
    assert!(absent.status == 1 && absent.stderr.contains("no-such-file"), "{absent:?}");
}

#[tokio::test]
async fn a_move_is_waited_for_and_one_that_went_back_is_a_failure() {
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    let set = |migration| {
        let mut state = fake.state();
        state.instances.get_mut("instances/demo").unwrap().migration = migration;
    };
    fake.state().watches_stay = true;
    set(migration(fleet::MigrationStage::Preparing, ""));
    check(&fake.run("migrate demo vps-2").await, 0, "instances/demo moves to hosts/vps-2\n", "");
    let shown = fake.run("get demo").await.stdout;
    assert!(shown.contains("preparing, vps-1 to vps-2, 25%"), "{shown}");
    set(migration(fleet::MigrationStage::Done, ""));
    let outcome = fake.run("migrate demo vps-2 --wait").await;
    assert_eq!(
        (outcome.status, outcome.stdout.as_str()),
        (0, "instances/demo is on hosts/vps-2\n")
    );
    set(migration(fleet::MigrationStage::Reverted, "its gate was not passed"));
    let outcome = fake.run("migrate demo vps-2 --from-offsite --wait").await;
    assert_eq!(outcome.status, 1, "{outcome:?}");
    assert!(
        outcome.stderr.contains("stays on hosts/vps-1: its gate was not passed"),
        "{outcome:?}"
    );
    let calls = fake.calls();
    assert!(calls.iter().any(|call| call.contains("hosts/vps-2 from Offsite")), "{calls:?}");
    let cancelled = fake.run("cancel-migration demo").await;
    assert_eq!(cancelled.stdout, "instances/demo stays on hosts/vps-1\n");
}

#[tokio::test]
async fn a_rollback_reads_off_site_when_told_to() {
    let fake = Fake::start().await;
    with_instances(&fake, &["demo"]);
    let outcome = fake.run("rollback demo --to-snapshot good --from-offsite").await;
    assert_eq!(outcome.stdout, "instances/demo will be rolled back to snapshot good off-site\n");
    let calls = fake.calls();
    assert!(calls.iter().any(|call| call.starts_with("roll back off-site to")), "{calls:?}");
}
