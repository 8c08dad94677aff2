//! Pausing, revisions, rollback and plans.

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::plan_instance_request::Change;
use claw_proto::fleet::v1::rollback_instance_request::Target;
use claw_proto::node::v1 as node;
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::fixture::{Agent, Clients, Fleet, IMAGE, create_request, fields, reason, spec};
use crate::snapshots::{in_state, listed, status};

const NEXT: &str = "registry.example/gateway:2";

fn update(spec: fleet::InstanceSpec, paths: &[&str]) -> fleet::UpdateInstanceRequest {
    fleet::UpdateInstanceRequest {
        instance: Some(fleet::Instance {
            name: "instances/demo".to_owned(),
            spec: Some(spec),
            ..Default::default()
        }),
        update_mask: Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() }),
        ..Default::default()
    }
}

async fn set_image(clients: &mut Clients, image: &str) -> fleet::Instance {
    let spec = fleet::InstanceSpec { image: image.to_owned(), ..Default::default() };
    let updated = clients.instances.update_instance(update(spec, &["spec.image"])).await.unwrap();
    updated.into_inner().instance.unwrap()
}

fn back(target: Target) -> fleet::RollbackInstanceRequest {
    fleet::RollbackInstanceRequest {
        name: "instances/demo".to_owned(),
        target: Some(target),
        ..Default::default()
    }
}

async fn roll_back(clients: &mut Clients, target: Target) -> Result<fleet::Instance, Status> {
    let rolled = clients.instances.rollback_instance(back(target)).await?;
    Ok(rolled.into_inner().instance.unwrap())
}

fn snapshot(id: &str) -> Target {
    Target::Snapshot(format!("instances/demo/snapshots/{id}"))
}

/// The newest assignment of `demo` and the generation that brought it.
async fn assignment(agent: &mut Agent) -> (u64, node::InstanceAssignment) {
    let (stamp, mut state) = agent.desired().await;
    (stamp.generation, state.instances.remove(0))
}

/// Host `a` with its agent, and `demo` with two secrets.
async fn demo() -> (Fleet, Agent, Clients, u64) {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    agent.desired().await;
    let mut operator = fleet.operator().await;
    let mut request = create_request("demo", "a");
    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.secrets = [("KEY", "first"), ("GONE", "kept")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    spec.identity = "I am one".to_owned();
    operator.instances.create_instance(request).await.unwrap();
    let (generation, _first) = assignment(&mut agent).await;
    (fleet, agent, operator, generation)
}

#[tokio::test]
async fn pause_and_resume_are_desired_state() {
    let (_fleet, mut agent, mut operator, _generation) = demo().await;
    let name = || "instances/demo".to_owned();
    let pause = || fleet::PauseInstanceRequest { name: name(), ..Default::default() };
    let paused = operator.instances.pause_instance(pause()).await.unwrap().into_inner();
    let paused = paused.instance.unwrap();
    assert_eq!(paused.spec.unwrap().run_state(), fleet::RunState::Paused);
    let (_generation, wanted) = assignment(&mut agent).await;
    assert_eq!((wanted.running, wanted.paused), (false, true));
    let again = operator.instances.pause_instance(pause()).await.unwrap().into_inner();
    assert_eq!(again.instance.unwrap().etag, paused.etag, "nothing changed");

    let restart = fleet::RestartInstanceRequest { name: name(), ..Default::default() };
    let refused = operator.instances.restart_instance(restart).await.unwrap_err();
    assert_eq!(reason(&refused), "INSTANCE_STOPPED");
    assert_eq!(refused.message(), "instances/demo is paused; resume it instead");
    let resume = || fleet::ResumeInstanceRequest { name: name(), ..Default::default() };
    operator.instances.resume_instance(resume()).await.unwrap();
    let (_generation, wanted) = assignment(&mut agent).await;
    assert_eq!((wanted.running, wanted.paused), (true, false));
    operator.instances.resume_instance(resume()).await.unwrap();

    let stop = fleet::StopInstanceRequest { name: name(), ..Default::default() };
    operator.instances.stop_instance(stop).await.unwrap();
    let refused = operator.instances.resume_instance(resume()).await.unwrap_err();
    assert_eq!(reason(&refused), "INSTANCE_NOT_PAUSED");
    let spec = fleet::InstanceSpec { run_state: 3, ..Default::default() };
    operator.instances.update_instance(update(spec, &["spec.run_state"])).await.unwrap();
    let audit = operator.audit("instances/demo").await;
    let told: Vec<&str> = audit.iter().rev().map(|entry| entry.summary.as_str()).skip(1).collect();
    let expected = [
        "paused",
        "nothing changed",
        "resumed",
        "nothing changed",
        "wanted down",
        "changed run_state",
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn policies_reach_the_agent_and_wrong_ones_do_not() {
    let (_fleet, mut agent, mut operator, _generation) = demo().await;
    let backup = node::BackupPolicy {
        every: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    };
    let policy =
        node::UpdatePolicy { rehearsal: node::Rehearsal::Always.into(), ..Default::default() };
    let spec = fleet::InstanceSpec {
        backup: Some(backup),
        update: Some(policy),
        network: Some(node::NetworkPolicy {
            web_sources: vec!["192.0.2.0/24".to_owned()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let paths = ["spec.backup", "spec.update", "spec.network"];
    let shown = operator.instances.update_instance(update(spec, &paths)).await.unwrap();
    let shown = shown.into_inner().instance.unwrap().spec.unwrap();
    assert_eq!((shown.backup, shown.update), (Some(backup), Some(policy)), "as they were given");
    let (_generation, wanted) = assignment(&mut agent).await;
    let every = wanted.backup.unwrap();
    assert_eq!(every.every.unwrap().seconds, 3600);
    assert_eq!(every.retention.unwrap().daily, 7, "defaults are filled in");
    assert_eq!(wanted.update.unwrap().rehearsal(), node::Rehearsal::Always);
    let audit = operator.audit("instances/demo").await;
    assert_eq!(audit[0].summary, "changed network, backup, update");

    let wrong = fleet::InstanceSpec {
        backup: Some(node::BackupPolicy {
            retention: Some(node::Retention::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = operator.instances.update_instance(update(wrong, &["spec.backup"])).await;
    assert_eq!(fields(&refused.unwrap_err()), ["instance.spec.backup.retention"]);
}

#[tokio::test]
async fn a_rollback_to_a_snapshot_is_one_change_of_everything() {
    let (fleet, mut agent, mut operator, first) = demo().await;
    agent.send(status("demo", vec![listed("nightly", 1, first, IMAGE)])).await;
    in_state(&operator, "nightly", fleet::SnapshotState::Ready).await;
    // Since then: another image, another identity, one secret rotated, one removed, one new.
    let changed = fleet::InstanceSpec {
        image: NEXT.to_owned(),
        identity: "I am another".to_owned(),
        secrets: [("KEY", "rotated"), ("NEW", "new")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        backup: Some(node::BackupPolicy {
            drill_every: Some(prost_types::Duration::default()),
            ..Default::default()
        }),
        ..spec()
    };
    operator.instances.update_instance(update(changed, &[])).await.unwrap();
    let (_generation, wanted) = assignment(&mut agent).await;
    assert_eq!((wanted.image.as_str(), &wanted.restore), (NEXT, &None));
    let token = wanted.secrets["OPENCLAW_GATEWAY_TOKEN"].clone();

    let check = fleet::RollbackInstanceRequest { validate_only: true, ..back(snapshot("nightly")) };
    operator.instances.rollback_instance(check).await.unwrap();
    let rolled = roll_back(&mut operator, snapshot("nightly")).await.unwrap();
    assert_eq!(rolled.spec.as_ref().unwrap().image, IMAGE);
    let (_generation, wanted) = assignment(&mut agent).await;
    assert_eq!(wanted.image, IMAGE);
    assert_eq!(wanted.files["workspace/IDENTITY.md"], "I am one");
    let order = node::RestoreOrder { number: 1, snapshot: "nightly".to_owned(), from: 1 };
    assert_eq!(wanted.restore, Some(order));
    assert_eq!(wanted.rebuilds, 1, "an agent that has given up tries again");
    assert_eq!(wanted.secrets["KEY"], "rotated", "secrets are those of now");
    assert_eq!(wanted.secrets["GONE"], "kept", "unless there is none of that name");
    assert!(!wanted.secrets.contains_key("NEW"));
    assert_eq!(wanted.secrets["OPENCLAW_GATEWAY_TOKEN"], token);
    assert_eq!(wanted.backup.unwrap().drill_every.unwrap().seconds, 0, "looked after as now");
    let audit = operator.audit("instances/demo").await;
    assert_eq!(
        audit[0].summary,
        "rolled back to snapshot nightly with the spec of revision 1: changed image, secrets, identity"
    );

    // The order stays what it is through other changes and a restart; another rollback is another order.
    drop(agent);
    let fleet = fleet.restart(|_data| {}).await;
    let mut operator = fleet.operator().await;
    let before = operator.host("a").await.unwrap().status.unwrap().desired.unwrap();
    let rolled = roll_back(&mut operator, snapshot("nightly")).await.unwrap();
    assert_eq!(rolled.revision, 4, "also when no word of the spec changes");
    let after = operator.host("a").await.unwrap().status.unwrap().desired.unwrap();
    assert_eq!(after.generation, before.generation + 1);
}

#[tokio::test]
async fn a_rollback_to_a_revision_leaves_the_data() {
    let (_fleet, mut agent, mut operator, _generation) = demo().await;
    set_image(&mut operator, NEXT).await;
    assignment(&mut agent).await;
    let pause =
        fleet::PauseInstanceRequest { name: "instances/demo".to_owned(), ..Default::default() };
    operator.instances.pause_instance(pause).await.unwrap();
    assignment(&mut agent).await;
    let rolled = roll_back(&mut operator, Target::Revision(1)).await.unwrap();
    assert_eq!(rolled.spec.unwrap().run_state(), fleet::RunState::Paused, "as it is now");
    let (_generation, wanted) = assignment(&mut agent).await;
    assert_eq!((wanted.image.as_str(), wanted.paused, wanted.restore), (IMAGE, true, None));
    assert_eq!(wanted.rebuilds, 0);
    let again = roll_back(&mut operator, Target::Revision(1)).await.unwrap();
    assert_eq!(again.revision, rolled.revision, "nothing changed");

    let revisions = operator.revisions("demo").await;
    let told: Vec<(u64, String)> = revisions
        .iter()
        .map(|revision| (revision.revision, revision.spec.clone().unwrap().image))
        .collect();
    let expected = [(4, IMAGE), (3, NEXT), (2, NEXT), (1, IMAGE)];
    assert_eq!(told, expected.map(|(number, image)| (number, image.to_owned())));
    let secrets = &revisions[3].spec.as_ref().unwrap().secrets;
    assert_eq!(secrets.get("KEY").map(String::as_str), Some(""), "names, no values");
    let missing = roll_back(&mut operator, Target::Revision(99)).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
}

#[tokio::test]
async fn what_cannot_be_gone_back_to_is_refused() {
    let (_fleet, agent, mut operator, first) = demo().await;
    let unknown = roll_back(&mut operator, snapshot("never")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(unknown.message(), "instances/demo/snapshots/never does not exist");
    let damaged = node::SnapshotInfo {
        health: node::SnapshotHealth::Damaged.into(),
        ..listed("bad", 1, first, IMAGE)
    };
    agent.send(status("demo", vec![damaged])).await;
    in_state(&operator, "bad", fleet::SnapshotState::Damaged).await;
    let refused = roll_back(&mut operator, snapshot("bad")).await.unwrap_err();
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::FailedPrecondition, "SNAPSHOT_DAMAGED")
    );
    let other = Target::Snapshot("instances/other/snapshots/bad".to_owned());
    assert_eq!(fields(&roll_back(&mut operator, other).await.unwrap_err()), ["snapshot"]);
    let nothing = fleet::RollbackInstanceRequest { target: None, ..back(snapshot("bad")) };
    let refused = operator.instances.rollback_instance(nothing).await.unwrap_err();
    assert_eq!(fields(&refused), ["target"]);
    let stale =
        fleet::RollbackInstanceRequest { etag: "old.1".to_owned(), ..back(Target::Revision(1)) };
    let refused = operator.instances.rollback_instance(stale).await.unwrap_err();
    assert_eq!(reason(&refused), "STALE_ETAG");
    assert_eq!(operator.revisions("demo").await.len(), 1, "nothing has changed");
}

#[tokio::test]
async fn specs_of_snapshots_outlive_many_changes() {
    let (_fleet, mut agent, mut operator, first) = demo().await;
    set_image(&mut operator, NEXT).await;
    let (second, _wanted) = assignment(&mut agent).await;
    agent.send(status("demo", vec![listed("early", 1, first, IMAGE)])).await;
    in_state(&operator, "early", fleet::SnapshotState::Ready).await;
    // What is too old goes at every sixteenth revision; this ends at number 64.
    for number in 0..62 {
        set_image(&mut operator, &format!("{NEXT}.{number}")).await;
    }
    let revisions = operator.revisions("demo").await;
    assert_eq!(revisions.len(), 51, "the newest 50 and the one of the snapshot");
    let oldest = revisions.last().unwrap();
    assert_eq!((oldest.revision, oldest.generation), (1, first));
    assert_eq!(oldest.snapshots, ["instances/demo/snapshots/early"]);

    // One that was taken under a spec that is gone is not brought back with another.
    let late = listed("late", 2, second, NEXT);
    agent.send(status("demo", vec![listed("early", 1, first, IMAGE), late])).await;
    let late = in_state(&operator, "late", fleet::SnapshotState::Ready).await;
    assert_eq!(late.revision, 0);
    let refused = roll_back(&mut operator, snapshot("late")).await.unwrap_err();
    assert_eq!(reason(&refused), "REVISION_UNKNOWN");
    let rolled = roll_back(&mut operator, snapshot("early")).await.unwrap();
    assert_eq!(rolled.spec.unwrap().image, IMAGE);
}

#[tokio::test]
async fn data_comes_back_with_the_image_that_ran_on_it() {
    let (_fleet, mut agent, mut operator, _first) = demo().await;
    set_image(&mut operator, NEXT).await;
    let (second, _wanted) = assignment(&mut agent).await;
    // The new image is refused by the agent, which goes on with the old one and keeps snapshots of it.
    agent.send(status("demo", vec![listed("held-back", 1, second, IMAGE)])).await;
    let held = in_state(&operator, "held-back", fleet::SnapshotState::Ready).await;
    assert_eq!(held.revision, 1);
    let rolled = roll_back(&mut operator, snapshot("held-back")).await.unwrap();
    assert_eq!(rolled.spec.unwrap().image, IMAGE);
}

async fn plan(clients: &Clients, change: Change) -> Result<fleet::InstancePlan, Status> {
    let request = fleet::PlanInstanceRequest {
        name: "instances/demo".to_owned(),
        change: Some(change),
        ..Default::default()
    };
    let planned = clients.clone().instances.plan_instance(request).await?;
    Ok(planned.into_inner().plan.unwrap())
}

fn patch(spec: fleet::InstanceSpec, paths: &[&str]) -> Change {
    let paths = paths.iter().map(ToString::to_string).collect();
    let update_mask = Some(FieldMask { paths });
    Change::Update(fleet::SpecChange { spec: Some(spec), update_mask })
}

fn told(plan: &fleet::InstancePlan) -> String {
    let flag = |set: bool, text: &'static str| set.then_some(text);
    let flags: Vec<&str> = [
        flag(plan.replaces_container, "replaces"),
        flag(plan.interrupts, "interrupts"),
        flag(plan.updates_image, "updates"),
        flag(plan.restores_data, "restores"),
    ]
    .into_iter()
    .flatten()
    .collect();
    format!(
        "{} [{}]\n{}",
        plan.changed_fields.join(", "),
        flags.join(", "),
        plan.consequences.join("\n")
    )
}

#[tokio::test]
async fn plans_say_what_would_happen_and_change_nothing() {
    let (_fleet, agent, mut operator, first) = demo().await;
    let before = operator.instance("demo").await.unwrap();
    let plain = |spec: fleet::InstanceSpec, path: &'static str| {
        let clients = operator.clone();
        async move { told(&plan(&clients, patch(spec, &[path])).await.unwrap()) }
    };
    let image = fleet::InstanceSpec { image: NEXT.to_owned(), ..Default::default() };
    assert_eq!(
        plain(image, "spec.image").await,
        "image [replaces, interrupts, updates]
image registry.example/gateway:2 is pulled, the data copied and rehearsed on it without any network if there is room, all while registry.example/gateway:1 serves; then it takes its place
a snapshot of the present data is taken and held for 3 days
if the new version does not become healthy, image, data and configuration go back together"
    );
    let config = fleet::InstanceSpec { identity: "x".to_owned(), ..Default::default() };
    assert_eq!(
        plain(config, "spec.identity").await,
        "identity []\neverything takes effect while the gateway runs"
    );
    let tier = fleet::InstanceSpec { tier: "pro".to_owned(), ..Default::default() };
    assert_eq!(
        plain(tier, "spec.tier").await,
        "tier [replaces, interrupts]\na new container takes the place of the old one; the gateway is down meanwhile"
    );
    let secrets = fleet::InstanceSpec {
        secrets: [("KEY".to_owned(), "other".to_owned())].into(),
        ..Default::default()
    };
    assert_eq!(
        plain(secrets, "spec.secrets").await,
        "secrets [interrupts]\nthe gateway is restarted, because its secrets change"
    );
    let paused = fleet::InstanceSpec { run_state: 3, ..Default::default() };
    assert_eq!(
        plain(paused, "spec.run_state").await,
        "run_state [interrupts]\nthe gateway is stopped and a snapshot of its data is held"
    );
    let same = fleet::InstanceSpec { image: IMAGE.to_owned(), ..Default::default() };
    assert_eq!(plain(same, "spec.image").await, " []\nnothing changes");

    agent.send(status("demo", vec![listed("nightly", 1, first, IMAGE)])).await;
    in_state(&operator, "nightly", fleet::SnapshotState::Ready).await;
    let name = "instances/demo/snapshots/nightly".to_owned();
    let restore = plan(&operator, Change::Snapshot(name)).await.unwrap();
    assert_eq!(
        told(&restore),
        " [replaces, interrupts, restores]
4096 bytes of instances/demo/snapshots/nightly are restored beside the present data
a snapshot of the present data is taken and held for 3 days
if the new version does not become healthy, image, data and configuration go back together"
    );
    let shown = restore.spec.unwrap();
    assert_eq!(shown.secrets["KEY"], "", "names, no values");
    assert!(plan(&operator, Change::Revision(1)).await.unwrap().changed_fields.is_empty());
    let wrong = fleet::InstanceSpec { image: "A b".to_owned(), ..Default::default() };
    let refused = plan(&operator, patch(wrong, &["spec.image"])).await.unwrap_err();
    assert_eq!(fields(&refused), ["instance.spec.image"]);
    let refused = plan(&operator, Change::Revision(9)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);

    let after = operator.instance("demo").await.unwrap();
    assert_eq!((after.etag, after.spec), (before.etag, before.spec));
    assert_eq!(operator.audit("instances/demo").await.len(), 1, "looking is not audited");
}
