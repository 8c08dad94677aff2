//! What survives the coordinator, and what happens when its memory is older than the hosts'.

use std::path::Path;

use claw_coordinator::config::Config;
use claw_coordinator::server::{Coordinator, StartError};
use claw_core::tier::TierCatalogue;
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::{self as node};

use crate::fixture::{Agent, Fleet, create_request, event, hello, reason, report, until};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.file_name().unwrap().to_str().unwrap().starts_with("fleet.db") {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn restore(from: &Path, to: &Path) {
    for name in ["fleet.db", "fleet.db-wal", "fleet.db-shm"] {
        if to.join(name).exists() {
            std::fs::remove_file(to.join(name)).unwrap();
        }
    }
    copy(from, to);
}

#[tokio::test]
async fn everything_is_still_there_after_a_restart() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    agent.desired().await;
    let mut operator = fleet.operator().await;
    let made = operator.create_instance("demo", "a").await.unwrap();
    let (stamp, state) = agent.desired().await;
    agent.settle(&stamp, vec![report("demo", stamp.generation, node::Phase::Running)]).await;
    agent.send(Up::Events(node::EventBatch { events: vec![event(1, "healthy")] })).await;
    assert!(matches!(agent.next().await.unwrap(), Down::EventAck(_)));
    let seen = operator.host("a").await.unwrap().status.unwrap().last_seen_time.unwrap();

    let fleet = fleet.restart(|_data| {}).await;
    let mut operator = fleet.operator().await;
    let host = operator.host("a").await.unwrap().status.unwrap();
    assert_eq!(host.state(), fleet::HostState::Unknown, "nobody is declared offline at once");
    assert_eq!(host.desired.as_ref(), Some(&stamp));
    assert!(host.last_seen_time.unwrap().seconds >= seen.seconds);
    let found = operator.instance("demo").await.unwrap();
    assert_eq!((found.uid, found.etag), (made.uid, made.etag));
    assert_eq!(operator.events("a").await.len(), 1);

    let known = node::Hello { persisted: Some(stamp.clone()), next_event: 2, ..hello("a", "1") };
    let mut agent = Agent::connect(&fleet, &identity, known).await;
    assert_eq!(agent.welcome.resume_event, 2);
    // Nothing is sent again; the bytes are the same as before.
    operator.clone().create_instance("more", "a").await.unwrap();
    let (next, with_more) = agent.desired().await;
    assert_eq!(next.generation, stamp.generation + 1);
    assert_eq!(with_more.instances[0], state.instances[0]);

    fleet.clock.advance(std::time::Duration::from_secs(61));
    drop(agent);
    until(|| async {
        let host = operator.clone().host("a").await.unwrap().status.unwrap();
        (host.state() == fleet::HostState::Offline).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_revoked_certificate_stays_revoked_over_a_restart() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let revoke = fleet::RevokeHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    operator.hosts.revoke_host(revoke).await.unwrap();
    let fleet = fleet.restart(|_data| {}).await;
    let refused = Agent::try_connect(&fleet, &identity, hello("a", "boot-1")).await;
    assert_eq!(reason(&refused.err().unwrap()), "CERTIFICATE_REVOKED");
}

#[tokio::test]
async fn a_restored_database_raises_every_epoch() {
    let fleet = Fleet::start().await;
    fleet.join("a").await;
    let backup = tempfile::tempdir().unwrap();
    let fleet = fleet.restart(|data| copy(data, backup.path())).await;
    let mut operator = fleet.operator().await;
    operator.create_instance("demo", "a").await.unwrap();
    let before = operator.host("a").await.unwrap().status.unwrap().desired.unwrap();
    assert_eq!((before.epoch, before.generation), (1, 2));
    let fleet = fleet.restart(|data| restore(backup.path(), data)).await;
    let mut operator = fleet.operator().await;
    let after = operator.host("a").await.unwrap().status.unwrap().desired.unwrap();
    assert_eq!((after.epoch, after.generation), (2, 1));
    let fleet = fleet.restart(|_data| {}).await;
    let again = fleet.operator().await.host("a").await.unwrap().status.unwrap().desired.unwrap();
    assert_eq!(again.epoch, 2, "only once");
}

#[tokio::test]
async fn a_host_that_knows_more_raises_its_own_epoch() {
    let fleet = Fleet::start().await;
    let a = fleet.join("a").await;
    fleet.join("b").await;
    let mut operator = fleet.operator().await;
    operator.create_instance("demo", "a").await.unwrap();
    let stamp = |epoch, generation| node::Stamp { epoch, generation, digest: vec![7; 32] };

    for (persisted, epoch) in [
        // A later generation, the same one with another content, a later epoch.
        (stamp(1, 9), 2),
        (stamp(2, 10), 3),
        (stamp(7, 1), 8),
    ] {
        let later = node::Hello { persisted: Some(persisted), ..hello("a", "boot-1") };
        let mut agent = Agent::connect(&fleet, &a, later).await;
        let (sent, state) = agent.desired().await;
        assert_eq!(sent.epoch, epoch);
        assert_eq!(state.instances.len(), 1);
    }
    let mine = operator.host("a").await.unwrap().status.unwrap().desired.unwrap();
    assert_eq!(mine.epoch, 8);
    let other = operator.host("b").await.unwrap().status.unwrap().desired.unwrap();
    assert_eq!(other.epoch, 1, "a host decides about itself only");
    let kinds: Vec<String> =
        operator.events("a").await.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["epoch_raised"; 3]);

    let absurd = node::Hello { persisted: Some(stamp(u64::MAX, 1)), ..hello("a", "boot-1") };
    let refused = Agent::try_connect(&fleet, &a, absurd).await.err().unwrap();
    assert_eq!(reason(&refused), "IMPLAUSIBLE_STAMP");
}

#[tokio::test]
async fn another_tier_catalogue_changes_states_and_a_smaller_one_is_refused() {
    let fleet = Fleet::start().await;
    fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let mut request = create_request("demo", "a");
    request.instance.as_mut().unwrap().spec.as_mut().unwrap().tier = "pro".to_owned();
    operator.instances.create_instance(request).await.unwrap();
    let Fleet { dir, config, coordinator, clock, .. } = fleet;
    coordinator.shutdown().await;

    let none = Config { tiers: TierCatalogue::new([].into()), ..config.clone() };
    let error = Coordinator::start(none, clock.clock()).await.unwrap_err();
    let text = claw_coordinator::status::Chain(&error).to_string();
    assert!(text.contains("instances/demo.tier: unknown tier \"pro\""), "{text}");

    let standard = TierCatalogue::standard().unwrap();
    let small = standard.resources("budget").unwrap();
    let tiers = TierCatalogue::new([("pro".to_owned(), small)].into());
    let coordinator = Coordinator::start(Config { tiers, ..config }, clock.clock()).await.unwrap();
    let registry = &coordinator.fleet().store;
    let host = claw_core::name::HostName::parse("a").unwrap();
    let stamp = registry
        .read(|connection, _keys| claw_coordinator::store::hosts::load(connection, &host))
        .unwrap()
        .stamp;
    assert_eq!(stamp.generation.0, 3);
    drop(dir);
}

#[tokio::test]
async fn two_coordinators_do_not_share_a_directory() {
    let fleet = Fleet::start().await;
    let second = Coordinator::start(fleet.config.clone(), fleet.clock.clock()).await;
    assert!(matches!(second, Err(StartError::Locked { .. })), "{second:?}");
}
