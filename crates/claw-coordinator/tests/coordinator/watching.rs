//! WatchInstances.

use claw_proto::fleet::v1::{self as fleet, WatchKind};
use claw_proto::node::v1::{self as node};
use tonic::{Code, Streaming};

use crate::fixture::{Clients, Fleet, report, soon, until};

async fn watch(
    operator: &mut Clients,
    names: &[&str],
    host: &str,
) -> Result<Streaming<fleet::WatchInstancesResponse>, tonic::Status> {
    let request = fleet::WatchInstancesRequest {
        names: names.iter().map(|name| format!("instances/{name}")).collect(),
        host: host.to_owned(),
    };
    Ok(operator.instances.watch_instances(request).await?.into_inner())
}

async fn next(stream: &mut Streaming<fleet::WatchInstancesResponse>) -> (WatchKind, String) {
    let message = soon(stream.message()).await.unwrap().unwrap();
    let name = message.instance.as_ref().map(|instance| instance.name.clone()).unwrap_or_default();
    (message.kind(), name)
}

#[tokio::test]
async fn the_present_comes_first_then_every_change() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    operator.create_instance("one", "a").await.unwrap();
    operator.create_instance("two", "a").await.unwrap();
    let mut stream = watch(&mut operator, &[], "").await.unwrap();
    assert_eq!(next(&mut stream).await, (WatchKind::Current, "instances/one".to_owned()));
    assert_eq!(next(&mut stream).await, (WatchKind::Current, "instances/two".to_owned()));
    assert_eq!(next(&mut stream).await, (WatchKind::Synced, String::new()));
    operator.create_instance("three", "a").await.unwrap();
    assert_eq!(next(&mut stream).await, (WatchKind::Changed, "instances/three".to_owned()));
    operator.delete_instance("one").await.unwrap();
    assert_eq!(next(&mut stream).await, (WatchKind::Changed, "instances/one".to_owned()));
}

#[tokio::test]
async fn reports_and_the_end_are_seen() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    agent.desired().await;
    let created = operator.create_instance("demo", "a").await.unwrap();
    let (stamp, _state) = agent.desired().await;
    let mut stream = watch(&mut operator, &["demo"], "").await.unwrap();
    assert_eq!(next(&mut stream).await.0, WatchKind::Current);
    assert_eq!(next(&mut stream).await.0, WatchKind::Synced);
    operator.create_instance("other", "a").await.unwrap();
    agent.settle(&stamp, vec![report("demo", stamp.generation, node::Phase::Running)]).await;
    let message = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!(message.kind(), WatchKind::Changed);
    let status = message.instance.unwrap().status.unwrap();
    assert_eq!(status.phase(), node::Phase::Running);

    operator.delete_instance("demo").await.unwrap();
    assert_eq!(next(&mut stream).await.0, WatchKind::Changed);
    let stamp = loop {
        let (stamp, state) = agent.desired().await;
        if !state.confirm_removal.is_empty() {
            break stamp;
        }
    };
    agent.settle(&stamp, vec![report("demo", stamp.generation, node::Phase::Removed)]).await;
    loop {
        let message = soon(stream.message()).await.unwrap().unwrap();
        if message.kind() == WatchKind::Deleted {
            assert_eq!(message.instance.unwrap().uid, created.uid);
            break;
        }
    }
    // The name again: it is another instance.
    let again = operator.create_instance("demo", "a").await.unwrap();
    let message = soon(stream.message()).await.unwrap().unwrap();
    assert_eq!((message.kind(), message.instance.unwrap().uid), (WatchKind::Changed, again.uid));
}

#[tokio::test]
async fn a_host_that_goes_away_is_seen_on_its_instances() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    agent.desired().await;
    let mut operator = fleet.operator().await;
    operator.create_instance("demo", "a").await.unwrap();
    let mut stream = watch(&mut operator, &[], "hosts/a").await.unwrap();
    assert_eq!(next(&mut stream).await.0, WatchKind::Current);
    assert_eq!(next(&mut stream).await.0, WatchKind::Synced);
    drop(agent);
    let message = soon(stream.message()).await.unwrap().unwrap();
    let status = message.instance.unwrap().status.unwrap();
    assert_eq!(status.host_state(), fleet::HostState::Offline);
}

#[tokio::test]
async fn a_slow_watcher_sees_the_newest_not_every_state() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let mut request = crate::fixture::create_request("demo", "a");
    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.files.insert("big".to_owned(), "x".repeat(200 * 1024));
    operator.instances.create_instance(request).await.unwrap();
    let mut watcher = fleet.operator().await;
    let mut stream = watch(&mut watcher, &["demo"], "").await.unwrap();
    let name = "instances/demo".to_owned();
    let restart = fleet::RestartInstanceRequest { name, ..Default::default() };
    let mut etag = String::new();
    for _change in 0..100 {
        let changed = operator.instances.restart_instance(restart.clone()).await.unwrap();
        etag = changed.into_inner().instance.unwrap().etag;
    }
    let mut seen = 0;
    loop {
        let message = soon(stream.message()).await.unwrap().unwrap();
        seen += 1;
        if message.instance.is_some_and(|instance| instance.etag == etag) {
            break;
        }
    }
    assert!(seen < 60, "{seen} states were queued");
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let fleet = Fleet::start_with(|config| config.watches = 1).await;
    let mut operator = fleet.operator().await;
    let status = watch(&mut operator, &["absent"], "").await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = watch(&mut operator, &["NOT"], "x").await.unwrap_err();
    assert_eq!(crate::fixture::fields(&status), ["names[0]", "host"]);
    let first = watch(&mut operator, &[], "").await.unwrap();
    let status = watch(&mut operator, &[], "").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    drop(first);
    until(|| async { watch(&mut operator.clone(), &[], "").await.ok() }).await;
}

#[tokio::test]
async fn a_shutdown_ends_a_watch_with_unavailable() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    let mut stream = watch(&mut operator, &[], "").await.unwrap();
    assert_eq!(next(&mut stream).await.0, WatchKind::Synced);
    let Fleet { coordinator, dir: _dir, .. } = fleet;
    let shutdown = tokio::spawn(coordinator.shutdown());
    let status = soon(stream.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    soon(shutdown).await.unwrap();
}
