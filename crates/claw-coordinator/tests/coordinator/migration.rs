//! Instances move between hosts, and stay where they were when anything is wrong.

use std::future::Future;
use std::time::Duration;

use claw_identity::Role;
use claw_proto::fleet::v1::plan_instance_request::Change;
use claw_proto::fleet::v1::{self as fleet, MigrationSource, MigrationStage};
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_proto::node::v1::session_request::Message as Up;
use tonic::{Code, Status};

use crate::fixture::{
    Agent, Clients, Fleet, IMAGE, PATIENCE, create_request, hello, reason, until,
};
use crate::moving_host::{Host, Manner, Starts, join, rejoin};
use crate::offsite::{SECRET, copied, set, storage};
use crate::snapshots::{in_state, listed};

const PASSWORD: &str = "00112233445566778899aabbccddeeff";

struct World {
    fleet: Fleet,
    a: Host,
    b: Host,
    operator: Clients,
}

/// Instance `demo` on host `a` with a snapshot and stored passwords, and host `b`.
async fn world() -> World {
    Box::pin(async move {
        let fleet = Fleet::start().await;
        let operator = fleet.operator().await;
        let (a, b) = (join(&fleet, "a").await, join(&fleet, "b").await);
        let mut request = create_request("demo", "a");
        let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
        spec.hostnames = vec!["demo.example".to_owned()];
        operator.clone().instances.create_instance(request).await.unwrap();
        a.until(|seen| !seen.state.instances.is_empty()).await;
        World { fleet, a, b, operator }
    })
    .await
}

/// What the host of `demo` says once: its passwords and a snapshot. It speaks over a session of its own, which
/// the host's agent then takes over again.
async fn acquaint(world: &mut World) {
    Box::pin(async move {
        world.a.leave();
        let agent = Agent::connect(&world.fleet, &world.a.identity, hello("a", "boot-1")).await;
        agent
            .send(Up::RepositoryEscrow(node::RepositoryEscrow {
                instance: "demo".to_owned(),
                secret: PASSWORD.to_owned(),
                recovery: "orbit-velvet".to_owned(),
            }))
            .await;
        let nightly = node::SnapshotInfo { offsite: true, ..listed("nightly", 1, 2, IMAGE) };
        agent.send(copied("demo", vec![nightly])).await;
        in_state(&world.operator, "nightly", fleet::SnapshotState::Ready).await;
        drop(agent);
        world.a = rejoin(&world.fleet, &world.a, Manner::default()).await;
        world.a.until(|seen| !seen.state.instances.is_empty() || seen.generation == 0).await;
    })
    .await
}

/// Hosts that know each other, with an instance to move.
async fn ready() -> World {
    Box::pin(async move {
        let mut world = world().await;
        acquaint(&mut world).await;
        world
    })
    .await
}

impl World {
    async fn migrate(&self, source: MigrationSource) -> Result<fleet::Instance, Status> {
        let request = fleet::MigrateInstanceRequest {
            name: "instances/demo".to_owned(),
            host: "hosts/b".to_owned(),
            source: source.into(),
            ..Default::default()
        };
        let answer = self.operator.clone().instances.migrate_instance(request).await?;
        Ok(answer.into_inner().instance.unwrap())
    }

    async fn cancel(&self) -> Result<fleet::Instance, Status> {
        let name = "instances/demo".to_owned();
        let request = fleet::CancelMigrationRequest { name, ..Default::default() };
        let answer = self.operator.clone().instances.cancel_migration(request).await?;
        Ok(answer.into_inner().instance.unwrap())
    }

    async fn demo(&self) -> fleet::Instance {
        self.operator.clone().instance("demo").await.unwrap()
    }

    #[track_caller]
    fn in_stage(&self, stage: MigrationStage) -> impl Future<Output = fleet::Migration> {
        let place = std::panic::Location::caller();
        async move {
            let ends = tokio::time::Instant::now() + PATIENCE;
            loop {
                let migration = self.demo().await.migration.unwrap_or_default();
                if migration.stage() == stage {
                    return migration;
                }
                let is_over =
                    matches!(migration.stage(), MigrationStage::Done | MigrationStage::Reverted);
                let waits = !is_over && tokio::time::Instant::now() < ends;
                assert!(waits, "{place}: not {stage:?}: {migration:?}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// The coordinator is stopped and started; both agents come back.
    async fn restart(self) -> Self {
        let manners = (self.a.manner.borrow().clone(), self.b.manner.borrow().clone());
        let Self { fleet, a, b, operator: _old } = self;
        a.leave();
        b.leave();
        let fleet = fleet.restart(|_data| {}).await;
        let a = rejoin(&fleet, &a, manners.0).await;
        let b = rejoin(&fleet, &b, manners.1).await;
        let operator = fleet.operator().await;
        Self { fleet, a, b, operator }
    }

    async fn serves_on(&self, host: &Host) {
        host.until(|seen| {
            seen.state.instances.iter().any(|wanted| wanted.name == "demo" && wanted.running)
        })
        .await;
    }

    async fn gone_from(&self, host: &Host) {
        host.until(|seen| {
            let named = seen.state.instances.iter().any(|wanted| wanted.name == "demo");
            !named && seen.state.confirm_removal.is_empty()
        })
        .await;
    }
}

#[tokio::test]
async fn an_instance_moves_with_its_data() {
    let world = ready().await;
    let before = world.demo().await;
    let begun = world.migrate(MigrationSource::Host).await.unwrap();
    let moving = begun.migration.clone().unwrap();
    assert_eq!(moving.stage(), MigrationStage::Preparing);
    assert_eq!((moving.source_host.as_str(), moving.target_host.as_str()), ("hosts/a", "hosts/b"));
    assert_eq!(begun.host, "hosts/a", "it is where it was until it serves there");
    let done = world.in_stage(MigrationStage::Done).await;
    assert_eq!(done.snapshot, "instances/demo/snapshots/pause-1");
    assert_eq!(done.problem, "");

    let after = world.demo().await;
    assert_eq!((after.host.as_str(), &after.uid), ("hosts/b", &before.uid));
    assert_eq!(after.spec, before.spec);
    assert_ne!(after.etag, before.etag);
    world.serves_on(&world.b).await;
    let order = world.b.has("demo").unwrap().restore.unwrap();
    assert_eq!((order.number, order.snapshot.as_str()), (1, "pause-1"));
    assert_eq!(order.from(), node::RestoreSource::Host);
    world.gone_from(&world.a).await;
    let sent = world.a.seen.borrow().commands.len();
    assert_eq!(sent, 2, "once while it served, once what was new");
    let received = world.b.seen.borrow().clone();
    assert_eq!(received.received, 6000);
    let Command::ReceiveRepository(receive) = &received.commands[0] else { panic!() };
    assert_eq!(receive.keys.as_ref().unwrap().secret, PASSWORD);
    // Generations rise with the instance, so that its history stays in order.
    assert!(received.generation > before.status.unwrap().report.unwrap().generation);

    let mut operator = world.operator.clone();
    let audit = operator.audit("instances/demo").await;
    let said: Vec<&str> = audit.iter().map(|entry| entry.summary.as_str()).collect();
    for expected in [
        "moves from hosts/a to hosts/b",
        "has moved from hosts/a to hosts/b",
        "hosts/a has removed what it had of it",
    ] {
        assert!(said.contains(&expected), "{said:?}");
    }
    assert!(!format!("{audit:?} {after:?}").contains(PASSWORD));
    for host in ["a", "b"] {
        let kinds: Vec<String> =
            operator.events(host).await.into_iter().map(|event| event.kind).collect();
        assert!(kinds.contains(&"migration_begun".to_owned()), "{kinds:?}");
        assert!(kinds.contains(&"migration_done".to_owned()), "{kinds:?}");
    }
    let repository = operator.list_snapshots("demo").await.unwrap().repository.unwrap();
    assert_eq!(repository.host, "hosts/b");
    assert!(operator.host("a").await.unwrap().status.unwrap().strays.is_empty());
    // And back again.
    let request = fleet::MigrateInstanceRequest {
        name: "instances/demo".to_owned(),
        host: "hosts/a".to_owned(),
        ..Default::default()
    };
    operator.instances.migrate_instance(request).await.unwrap();
    until(|| async { (world.demo().await.host == "hosts/a").then_some(()) }).await;
    assert_eq!(world.a.has("demo").unwrap().restore.unwrap().number, 2);
}

#[tokio::test]
async fn nothing_else_changes_meanwhile() {
    let world = ready().await;
    world.a.change(|manner| manner.pauses = false);
    world.migrate(MigrationSource::Host).await.unwrap();
    world.in_stage(MigrationStage::Stopping).await;
    world.a.until(|seen| seen.state.instances.iter().any(|wanted| wanted.paused)).await;
    let shown = world.demo().await.spec.unwrap();
    assert_eq!(shown.run_state(), fleet::RunState::Unspecified, "what is wanted stays");
    let mut operator = world.operator.clone();
    let name = "instances/demo".to_owned();
    let stop = fleet::StopInstanceRequest { name: name.clone(), ..Default::default() };
    let delete = operator.delete_instance("demo").await.unwrap_err();
    let again = world.migrate(MigrationSource::Host).await.unwrap_err();
    let snapshot = fleet::CreateSnapshotRequest {
        parent: name.clone(),
        snapshot_id: "x".to_owned(),
        ..Default::default()
    };
    let back = fleet::RollbackInstanceRequest {
        name: name.clone(),
        target: Some(fleet::rollback_instance_request::Target::Revision(1)),
        ..Default::default()
    };
    let update = fleet::UpdateInstanceRequest {
        instance: Some(fleet::Instance { name, ..Default::default() }),
        ..Default::default()
    };
    let refused = [
        delete,
        again,
        operator.instances.stop_instance(stop).await.unwrap_err(),
        operator.instances.rollback_instance(back).await.unwrap_err(),
        operator.instances.update_instance(update).await.unwrap_err(),
        operator.snapshots.create_snapshot(snapshot).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(reason(&refused), "MIGRATING");
    }
    let host = fleet::DeleteHostRequest { name: "hosts/b".to_owned(), ..Default::default() };
    let refused = operator.hosts.delete_host(host).await.unwrap_err();
    assert_eq!(reason(&refused), "HOST_IN_USE");
    let mut other = create_request("other", "b");
    let spec = other.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.hostnames = vec!["demo.example".to_owned()];
    let refused = operator.instances.create_instance(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "its name is kept for it");
    world.a.change(|manner| manner.pauses = true);
    world.in_stage(MigrationStage::Done).await;
}

#[tokio::test]
async fn a_target_that_fails_its_gate_leaves_the_old_host_serving() {
    let world = ready().await;
    world.b.change(|manner| manner.starts = Starts::Refused);
    world.migrate(MigrationSource::Host).await.unwrap();
    let reverted = world.in_stage(MigrationStage::Reverted).await;
    let problem = "it did not come up on the new host: the gateway exited with 1";
    assert_eq!(reverted.problem, problem);
    assert_eq!(world.demo().await.host, "hosts/a");
    world.serves_on(&world.a).await;
    world.gone_from(&world.b).await;
    let events = world.operator.clone().events("a").await;
    let told = events.iter().find(|event| event.kind == "migration_reverted").unwrap();
    assert_eq!(told.message, format!("instances/demo stays on hosts/a: {problem}"));
    // It can be tried again.
    world.b.change(|manner| manner.starts = Starts::Well);
    world.migrate(MigrationSource::Host).await.unwrap();
    world.in_stage(MigrationStage::Done).await;
}

#[tokio::test]
async fn an_agent_that_refuses_again_and_again_ends_it() {
    let world = ready().await;
    world.a.change(|manner| manner.refuses = Some("the disk is full"));
    world.migrate(MigrationSource::Host).await.unwrap();
    let tried = until(|| async {
        let moving = world.demo().await.migration?;
        (!moving.problem.is_empty()).then_some(moving)
    })
    .await;
    assert_eq!(tried.stage(), MigrationStage::Preparing);
    assert_eq!(tried.problem, "hosts/a answered: the disk is full");
    let reverted = until(|| async {
        // Each attempt waits longer for the next.
        world.fleet.clock.advance(Duration::from_secs(301));
        let moving = world.demo().await.migration?;
        (moving.stage() == MigrationStage::Reverted).then_some(moving)
    })
    .await;
    assert_eq!(
        reverted.problem,
        "8 attempts failed, the last one: hosts/a answered: the disk is full"
    );
    world.serves_on(&world.a).await;
    let discarded = world.b.seen.borrow().commands.iter().any(|command| {
        matches!(command, Command::DiscardRepository(discard) if discard.instance == "demo")
    });
    assert!(discarded, "what came for nothing goes");
}

/// Brings a move to a stage in which it stays, until [`release`].
async fn hold(world: &World, stage: MigrationStage) {
    match stage {
        MigrationStage::Preparing => world.a.change(|manner| manner.refuses = Some("busy")),
        MigrationStage::Stopping => world.a.change(|manner| manner.pauses = false),
        MigrationStage::Syncing => {
            world.a.change(|manner| manner.pauses = false);
        }
        _ => world.b.change(|manner| manner.starts = Starts::Never),
    }
    world.migrate(MigrationSource::Host).await.unwrap();
    if stage == MigrationStage::Syncing {
        world.in_stage(MigrationStage::Stopping).await;
        world.a.change(|manner| {
            manner.pauses = true;
            manner.refuses = Some("busy");
        });
    }
    world.in_stage(stage).await;
}

fn release(world: &World) {
    world.a.change(|manner| *manner = Manner::default());
    world.b.change(|manner| *manner = Manner::default());
}

const STAGES: [MigrationStage; 4] = [
    MigrationStage::Preparing,
    MigrationStage::Stopping,
    MigrationStage::Syncing,
    MigrationStage::Starting,
];

#[tokio::test]
async fn a_restart_of_the_coordinator_changes_nothing() {
    for stage in STAGES {
        let world = ready().await;
        hold(&world, stage).await;
        let world = world.restart().await;
        assert_eq!(world.demo().await.migration.unwrap().stage(), stage);
        release(&world);
        until(|| async {
            world.fleet.clock.advance(Duration::from_secs(6));
            let moving = world.demo().await.migration.unwrap();
            assert_ne!(moving.stage(), MigrationStage::Reverted, "{stage:?}: {moving:?}");
            (moving.stage() == MigrationStage::Done).then_some(())
        })
        .await;
        world.serves_on(&world.b).await;
        world.gone_from(&world.a).await;
    }
}

#[tokio::test]
async fn it_can_be_cancelled_until_it_is_done() {
    for stage in STAGES {
        let world = ready().await;
        hold(&world, stage).await;
        let cancelled = world.cancel().await.unwrap();
        assert_eq!(cancelled.migration.unwrap().stage(), MigrationStage::Reverting);
        release(&world);
        let reverted = world.in_stage(MigrationStage::Reverted).await;
        assert_eq!(reverted.problem, "cancelled by operator/alice");
        assert_eq!(world.demo().await.host, "hosts/a");
        world.serves_on(&world.a).await;
        world.gone_from(&world.b).await;
        let refused = world.cancel().await.unwrap_err();
        assert_eq!(reason(&refused), "NOT_MIGRATING");
        let audit = world.operator.clone().audit("instances/demo").await;
        let by = audit.iter().find(|entry| entry.summary.starts_with("the move is cancelled"));
        assert_eq!(by.unwrap().principal, "operator/alice");
    }
}

#[tokio::test]
async fn a_host_that_goes_away_while_the_instance_is_down_ends_it() {
    let world = ready().await;
    hold(&world, MigrationStage::Starting).await;
    world.b.leave();
    let reverted = until(|| async {
        world.fleet.clock.advance(Duration::from_secs(20));
        let moving = world.demo().await.migration?;
        (moving.stage() == MigrationStage::Reverted).then_some(moving)
    })
    .await;
    assert_eq!(reverted.problem, "the new host went away");
    world.serves_on(&world.a).await;
    // When it is back it hears that it is not its own.
    let b = rejoin(&world.fleet, &world.b, Manner { removes: false, ..Manner::default() }).await;
    b.until(|seen| seen.state.confirm_removal == ["demo"]).await;
    let refused = world.migrate(MigrationSource::Host).await.unwrap_err();
    assert_eq!(reason(&refused), "NAME_BEING_REMOVED");
    b.change(|manner| manner.removes = true);
    world.gone_from(&b).await;
}

#[tokio::test]
async fn what_stands_in_the_way_is_told() {
    let world = world().await;
    let mut operator = world.operator.clone();
    let refused = world.migrate(MigrationSource::Host).await.unwrap_err();
    assert_eq!(reason(&refused), "NO_ESCROW");
    let refused = world.migrate(MigrationSource::Offsite).await.unwrap_err();
    assert_eq!(reason(&refused), "NO_ESCROW");
    let mut other = create_request("other", "b");
    let spec = other.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.hostnames = vec!["demo.example".to_owned()];
    operator.instances.create_instance(other).await.unwrap();
    let cordon = fleet::UpdateHostRequest {
        host: Some(fleet::Host {
            name: "hosts/b".to_owned(),
            cordoned: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    operator.hosts.update_host(cordon).await.unwrap();
    world.b.leave();
    until(|| async {
        let state = operator.clone().host("b").await.unwrap().status.unwrap().state();
        (state != fleet::HostState::Online).then_some(())
    })
    .await;
    let plan = |source: MigrationSource| {
        let mut operator = operator.clone();
        async move {
            let change = fleet::MigrationChange {
                host: "hosts/b".to_owned(),
                source: source.into(),
                ..Default::default()
            };
            let request = fleet::PlanInstanceRequest {
                name: "instances/demo".to_owned(),
                change: Some(Change::Migrate(change)),
                ..Default::default()
            };
            let answer = operator.instances.plan_instance(request).await.unwrap();
            answer.into_inner().plan.unwrap()
        }
    };
    let told = plan(MigrationSource::Host).await;
    assert!(told.interrupts && told.restores_data && told.replaces_container);
    assert_eq!(
        told.blockers,
        [
            "hosts/b is cordoned: no instances are placed there",
            "hosts/b is not connected",
            "hosts/b: demo.example is served for instances/other on this host",
            "hosts/a has not sent the passwords of instances/demo yet",
        ]
    );
    let told = plan(MigrationSource::Offsite).await;
    assert_eq!(
        told.blockers[4..],
        [
            "hosts/a is connected and has newer data; move from it, or revoke it first",
            "no copy of instances/demo off-site is known",
        ]
    );
    assert!(world.demo().await.migration.is_none(), "looking changes nothing");
    let request = |host: &str, snapshot: &str| fleet::MigrateInstanceRequest {
        name: "instances/demo".to_owned(),
        host: host.to_owned(),
        snapshot: snapshot.to_owned(),
        ..Default::default()
    };
    for (request, code) in [
        (request("hosts/a", ""), Code::InvalidArgument),
        (request("hosts/z", ""), Code::NotFound),
        (request("hosts/b", "instances/demo/snapshots/x"), Code::InvalidArgument),
    ] {
        let refused = operator.instances.migrate_instance(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    let mut viewer = Clients::new(world.fleet.channel(Role::Viewer, "vera").await);
    let refused = viewer.instances.migrate_instance(request("hosts/b", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

/// A world whose host `a` is gone, with a copy of `demo` off-site.
async fn orphan() -> World {
    Box::pin(async move {
        let world = ready().await;
        set(&world.operator, "a", Some(storage())).await.unwrap();
        world.a.leave();
        until(|| async {
            let state = world.operator.clone().host("a").await.unwrap().status.unwrap().state();
            (state != fleet::HostState::Online).then_some(())
        })
        .await;
        world
    })
    .await
}

#[tokio::test]
async fn an_instance_whose_host_is_gone_comes_back_from_off_site() {
    let world = orphan().await;
    let refused = world.migrate(MigrationSource::Host).await.unwrap_err();
    assert_eq!(reason(&refused), "HOST_NOT_CONNECTED");
    world.b.change(|manner| manner.fetches = false);
    let begun = world.migrate(MigrationSource::Offsite).await.unwrap().migration.unwrap();
    assert_eq!(begun.stage(), MigrationStage::Fetching);
    assert_eq!(begun.snapshot, "instances/demo/snapshots/nightly");
    let seen = world.b.until(|seen| !seen.commands.is_empty()).await;
    let Command::FetchRepository(fetch) = &seen.commands[0] else { panic!("{seen:?}") };
    assert_eq!(fetch.storage, Some(storage()));
    assert_eq!(fetch.path, "fleet/a/demo/0123456789abcdef");
    assert_eq!(fetch.keys.as_ref().unwrap().secret, PASSWORD);
    // Asked again after a restart of the coordinator, and then it comes.
    let world = {
        let manner = Manner::default();
        let World { fleet, a, b, operator: _old } = world;
        b.leave();
        let fleet = fleet.restart(|_data| {}).await;
        let b = rejoin(&fleet, &b, manner).await;
        let operator = fleet.operator().await;
        World { fleet, a, b, operator }
    };
    world.in_stage(MigrationStage::Done).await;
    let demo = world.demo().await;
    assert_eq!(demo.host, "hosts/b");
    let order = world.b.has("demo").unwrap().restore.unwrap();
    assert_eq!(order.snapshot, "nightly");
    let audit = world.operator.clone().audit("").await;
    let told = format!("{audit:?} {demo:?}");
    assert!(!told.contains(SECRET) && !told.contains(PASSWORD));

    // The old host returns from the dead: it drops what it has.
    let a = rejoin(&world.fleet, &world.a, Manner { removes: false, ..Manner::default() }).await;
    a.until(|seen| seen.state.confirm_removal == ["demo"]).await;
    a.change(|manner| manner.removes = true);
    world.gone_from(&a).await;
}

#[tokio::test]
async fn a_host_that_is_back_in_time_keeps_its_instance() {
    let world = orphan().await;
    world.b.change(|manner| manner.fetches = false);
    world.migrate(MigrationSource::Offsite).await.unwrap();
    world.b.until(|seen| !seen.commands.is_empty()).await;
    let a = rejoin(&world.fleet, &world.a, Manner::default()).await;
    let reverted = world.in_stage(MigrationStage::Reverted).await;
    assert_eq!(reverted.problem, "the old host is back; move the instance from it");
    world.serves_on(&a).await;
    assert_eq!(world.demo().await.host, "hosts/a");
}
