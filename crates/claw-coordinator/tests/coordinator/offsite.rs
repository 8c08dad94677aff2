//! Where hosts copy their repositories to, and what is brought back from there.

use claw_identity::Role;
use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::rollback_instance_request::Target;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::session_request::Message as Up;
use tonic::{Code, Status};

use crate::fixture::{Clients, Fleet, IMAGE, fields, reason};
use crate::snapshots::{in_state, listed};

pub(crate) const ACCESS: &str = "AKIDHUSHHUSH";
pub(crate) const SECRET: &str = "hunter2-hunter2";

pub(crate) fn storage() -> node::OffsiteStorage {
    node::OffsiteStorage {
        endpoint: "https://s3.example".to_owned(),
        region: "eu".to_owned(),
        bucket: "claws".to_owned(),
        prefix: "fleet".to_owned(),
        addressing: node::BucketAddressing::Path.into(),
        access_key: ACCESS.to_owned(),
        secret_key: SECRET.to_owned(),
        bandwidth: 1000,
    }
}

pub(crate) async fn set(
    clients: &Clients,
    host: &str,
    storage: Option<node::OffsiteStorage>,
) -> Result<fleet::Host, Status> {
    let name = format!("hosts/{host}");
    let request = fleet::SetHostOffsiteRequest { name, storage, ..Default::default() };
    let answer = clients.clone().hosts.set_host_offsite(request).await?;
    Ok(answer.into_inner().host.unwrap())
}

/// What a host says of a repository with these snapshots, copied off-site.
pub(crate) fn copied(instance: &str, snapshots: Vec<node::SnapshotInfo>) -> Up {
    let offsite = node::OffsiteReport {
        path: format!("fleet/a/{instance}/0123456789abcdef"),
        copied_at: Some(prost_types::Timestamp { seconds: 1_795_237_300, nanos: 0 }),
        ..Default::default()
    };
    let report = node::BackupReport { snapshots, offsite: Some(offsite), ..Default::default() };
    Up::BackupStatus(node::BackupStatus { instance: instance.to_owned(), report: Some(report) })
}

#[tokio::test]
async fn a_storage_is_set_for_one_host_and_its_keys_stay_within() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    agent.desired().await;
    let mut operator = fleet.operator().await;
    let before = operator.host("a").await.unwrap();
    let host = set(&operator, "a", Some(storage())).await.unwrap();
    assert_ne!(host.etag, before.etag);
    let shown = host.offsite.clone().unwrap();
    assert_eq!((shown.endpoint.as_str(), shown.bucket.as_str()), ("https://s3.example", "claws"));
    assert_eq!((shown.prefix.as_str(), shown.bandwidth, shown.keys_set), ("fleet", 1000, true));
    let (_stamp, state) = agent.desired().await;
    assert_eq!(state.offsite, Some(storage()));

    // Saying it again changes nothing; another host has its own.
    assert_eq!(set(&operator, "a", Some(storage())).await.unwrap().etag, host.etag);
    assert_eq!(operator.create_host("b").await.unwrap().offsite, None);
    let audit = operator.audit("hosts/a").await;
    let said: Vec<&str> = audit.iter().map(|entry| entry.summary.as_str()).collect();
    assert!(
        said.contains(&"repositories are copied to https://s3.example/claws/fleet"),
        "{said:?}"
    );
    let told = format!("{audit:?} {host:?} {:?}", operator.host("a").await.unwrap());
    assert!(!told.contains(SECRET) && !told.contains(ACCESS), "{told}");

    // Sealed on disk, and still there after a restart.
    drop(agent);
    let fleet = fleet.restart(|data| {
        for file in std::fs::read_dir(data).unwrap() {
            let path = file.unwrap().path();
            let bytes = if path.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            let holds = |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
            assert!(!holds(SECRET) && !holds(ACCESS), "{}", path.display());
        }
    });
    let fleet = fleet.await;
    let mut operator = fleet.operator().await;
    assert_eq!(operator.host("a").await.unwrap().offsite, Some(shown));
    let cleared = set(&operator, "a", None).await.unwrap();
    assert_eq!(cleared.offsite, None);
    let last = operator.audit("hosts/a").await.remove(0);
    assert_eq!(last.summary, "repositories are copied nowhere");
}

#[tokio::test]
async fn every_wrong_field_of_a_storage_is_named() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let bare = node::OffsiteStorage { endpoint: "ftp://x".to_owned(), ..Default::default() };
    let refused = set(&operator, "a", Some(bare)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        fields(&refused),
        ["endpoint", "region", "bucket", "access_key", "secret_key"]
            .map(|field| format!("storage.{field}"))
    );
    let keyless = node::OffsiteStorage { secret_key: String::new(), ..storage() };
    let refused = set(&operator, "a", Some(keyless)).await.unwrap_err();
    assert_eq!(fields(&refused), ["storage.secret_key"]);
    let check = fleet::SetHostOffsiteRequest {
        name: "hosts/a".to_owned(),
        storage: Some(storage()),
        validate_only: true,
        ..Default::default()
    };
    operator.hosts.set_host_offsite(check.clone()).await.unwrap();
    assert_eq!(operator.host("a").await.unwrap().offsite, None);
    let stale = fleet::SetHostOffsiteRequest { etag: "x.1".to_owned(), ..check };
    let refused = operator.hosts.set_host_offsite(stale).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted);
    assert_eq!(set(&operator, "z", None).await.unwrap_err().code(), Code::NotFound);
    for role in [Role::Service, Role::Viewer] {
        let other = Clients::new(fleet.channel(role, "other").await);
        let refused = set(&other, "a", Some(storage())).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
}

async fn back(
    clients: &Clients,
    snapshot: &str,
    from: node::RestoreSource,
) -> Result<fleet::Instance, Status> {
    let request = fleet::RollbackInstanceRequest {
        name: "instances/demo".to_owned(),
        target: Some(Target::Snapshot(format!("instances/demo/snapshots/{snapshot}"))),
        from: from.into(),
        ..Default::default()
    };
    let answer = clients.clone().instances.rollback_instance(request).await?;
    Ok(answer.into_inner().instance.unwrap())
}

#[tokio::test]
async fn a_damaged_snapshot_comes_back_from_its_copy() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    let made = operator.create_instance("demo", "a").await.unwrap();
    let copy =
        |name: &str, nth| node::SnapshotInfo { offsite: true, ..listed(name, nth, 2, IMAGE) };
    let damaged =
        |snapshot| node::SnapshotInfo { health: node::SnapshotHealth::Damaged.into(), ..snapshot };
    let all = vec![
        copy("good", 1),
        damaged(copy("bad", 2)),
        damaged(listed("lost", 3, 2, IMAGE)),
        listed("new", 4, 2, IMAGE),
    ];
    agent.send(copied("demo", all)).await;
    let shown = in_state(&operator, "bad", fleet::SnapshotState::Damaged).await;
    assert!(shown.offsite);
    assert!(!in_state(&operator, "new", fleet::SnapshotState::Ready).await.offsite);
    let repository = operator.list_snapshots("demo").await.unwrap().repository.unwrap();
    let stands = repository.offsite.unwrap();
    assert_eq!(stands.path, "fleet/a/demo/0123456789abcdef");
    assert_eq!((stands.copy_time.unwrap().seconds, stands.overdue), (1_795_237_300, false));

    let offsite = node::RestoreSource::Offsite;
    let refused = back(&operator, "bad", offsite).await.unwrap_err();
    assert_eq!(reason(&refused), "NO_OFFSITE_STORAGE");
    set(&operator, "a", Some(storage())).await.unwrap();
    let refused = back(&operator, "bad", node::RestoreSource::Host).await.unwrap_err();
    assert_eq!(reason(&refused), "SNAPSHOT_DAMAGED");
    for without in ["lost", "new"] {
        let refused = back(&operator, without, offsite).await.unwrap_err();
        assert_eq!(reason(&refused), "SNAPSHOT_NOT_OFFSITE");
    }
    let to_revision = fleet::RollbackInstanceRequest {
        name: "instances/demo".to_owned(),
        target: Some(Target::Revision(made.revision)),
        from: offsite.into(),
        ..Default::default()
    };
    let refused = operator.instances.rollback_instance(to_revision).await.unwrap_err();
    assert_eq!(fields(&refused), ["from"]);
    let plan = fleet::PlanInstanceRequest {
        name: "instances/demo".to_owned(),
        change: Some(fleet::plan_instance_request::Change::Snapshot(
            "instances/demo/snapshots/bad".to_owned(),
        )),
        from: offsite.into(),
    };
    let plan = operator.instances.plan_instance(plan).await.unwrap().into_inner().plan.unwrap();
    assert!(plan.consequences[0].contains("instances/demo/snapshots/bad, read off-site,"));

    back(&operator, "bad", offsite).await.unwrap();
    let order = loop {
        let (_stamp, state) = agent.desired().await;
        if let Some(order) = state.instances.first().and_then(|wanted| wanted.restore.clone()) {
            break order;
        }
    };
    let expected =
        node::RestoreOrder { number: 1, snapshot: "bad".to_owned(), from: offsite.into() };
    assert_eq!(order, expected);
}
