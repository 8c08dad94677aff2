//! What changes do to desired states: generations, digests, removals, bounds.

use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::{self as node};
use prost_types::FieldMask;
use tonic::Code;

use crate::fixture::{Agent, Fleet, create_request, fields, hello, reason, report, spec, until};

#[tokio::test]
async fn a_deletion_ends_when_the_host_has_removed_it() {
    let fleet = Fleet::start().await;
    let mut agent = fleet.agent("a").await;
    let mut operator = fleet.operator().await;
    let (_empty, _state) = agent.desired().await;
    operator.create_instance("demo", "a").await.unwrap();
    let (stamp, state) = agent.desired().await;
    assert_eq!(state.instances.len(), 1);
    agent.settle(&stamp, vec![report("demo", stamp.generation, node::Phase::Running)]).await;

    let deleting = operator.delete_instance("demo").await.unwrap();
    assert!(deleting.delete_time.is_some());
    let (deleted, state) = agent.desired().await;
    assert_eq!(state.confirm_removal, ["demo"]);
    assert!(state.instances.is_empty());

    let status = operator.create_instance("demo", "a").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status), "NAME_BEING_REMOVED");
    let name = "instances/demo".to_owned();
    let start = fleet::StartInstanceRequest { name, ..Default::default() };
    let status = operator.instances.start_instance(start).await.unwrap_err();
    assert_eq!(reason(&status), "INSTANCE_DELETING");

    // Removed under the old generation says nothing; removing is not removed.
    agent.settle(&stamp, vec![report("demo", stamp.generation, node::Phase::Removed)]).await;
    agent.settle(&deleted, vec![report("demo", deleted.generation, node::Phase::Removing)]).await;
    until(|| async {
        let phase = operator.clone().instance("demo").await.unwrap().status.unwrap().phase();
        (phase == node::Phase::Removing).then_some(())
    })
    .await;
    agent.settle(&deleted, vec![report("demo", deleted.generation, node::Phase::Removed)]).await;
    let (after, state) = agent.desired().await;
    assert!(state.confirm_removal.is_empty());
    assert!(after.generation > deleted.generation);
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(operator.audit("instances/demo").await[0].principal, "system");

    let again = operator.create_instance("demo", "a").await.unwrap();
    assert_ne!(again.uid, deleting.uid);
}

#[tokio::test]
async fn an_instance_that_never_reached_its_host_is_removed_too() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    operator.create_instance("demo", "a").await.unwrap();
    operator.delete_instance("demo").await.unwrap();
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let (stamp, state) = agent.desired().await;
    assert_eq!(state.confirm_removal, ["demo"]);
    // On disk, but not carried out: not yet.
    let persisted = node::Status {
        persisted: Some(stamp.clone()),
        applying_generation: stamp.generation,
        ..Default::default()
    };
    agent.send(node::session_request::Message::Status(persisted)).await;
    agent.settle(&stamp, Vec::new()).await;
    let (_after, state) = agent.desired().await;
    assert!(state.confirm_removal.is_empty());
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_greeting_without_the_instance_ends_its_deletion() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    operator.create_instance("demo", "a").await.unwrap();
    operator.delete_instance("demo").await.unwrap();
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let (stamp, _state) = agent.desired().await;
    drop(agent);
    let mut still = hello("a", "boot-1");
    still.persisted = Some(stamp.clone());
    still.inventory = vec!["demo".to_owned()];
    drop(Agent::connect(&fleet, &identity, still).await);
    assert!(operator.instance("demo").await.is_ok());
    let gone = node::Hello { persisted: Some(stamp), ..hello("a", "boot-1") };
    let mut agent = Agent::connect(&fleet, &identity, gone).await;
    assert!(agent.desired().await.1.confirm_removal.is_empty());
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_host_that_never_comes_back_does_not_keep_its_instances_for_ever() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    operator.create_instance("demo", "a").await.unwrap();
    let delete = || fleet::DeleteHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    let status = operator.hosts.delete_host(delete()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "hosts/a still holds demo; delete them first");
    operator.delete_instance("demo").await.unwrap();
    operator.hosts.delete_host(delete()).await.unwrap();
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);
    operator.create_host("b").await.unwrap();
    operator.create_instance("demo", "b").await.unwrap();
}

#[tokio::test]
async fn only_what_changes_the_state_raises_the_generation() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let generation = async || {
        let host = operator.clone().host("a").await.unwrap();
        host.status.unwrap().desired.unwrap().generation
    };
    assert_eq!(generation().await, 1);
    operator.clone().create_instance("demo", "a").await.unwrap();
    assert_eq!(generation().await, 2);
    let name = || "instances/demo".to_owned();
    let start = fleet::StartInstanceRequest { name: name(), ..Default::default() };
    let etag = operator.clone().instance("demo").await.unwrap().etag;
    let started = operator.clone().instances.start_instance(start).await.unwrap().into_inner();
    assert_eq!(started.instance.unwrap().etag, etag, "it was up already");
    assert_eq!(generation().await, 2);
    let restart = fleet::RestartInstanceRequest { name: name(), ..Default::default() };
    operator.clone().instances.restart_instance(restart.clone()).await.unwrap();
    assert_eq!(generation().await, 3);
    let stop = fleet::StopInstanceRequest { name: name(), ..Default::default() };
    operator.clone().instances.stop_instance(stop).await.unwrap();
    assert_eq!(generation().await, 4);
    let status = operator.clone().instances.restart_instance(restart).await.unwrap_err();
    assert_eq!(reason(&status), "INSTANCE_STOPPED");
    assert_eq!(generation().await, 4);
}

#[tokio::test]
async fn updates_take_the_named_fields_only() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    operator.create_host("b").await.unwrap();
    operator.create_instance("demo", "a").await.unwrap();
    let update =
        |host: &str, paths: &[&str], spec: fleet::InstanceSpec| fleet::UpdateInstanceRequest {
            instance: Some(fleet::Instance {
                name: "instances/demo".to_owned(),
                host: host.to_owned(),
                spec: Some(spec),
                ..Default::default()
            }),
            update_mask: Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() }),
            ..Default::default()
        };
    let new = fleet::InstanceSpec {
        tier: "gold".to_owned(),
        env: [("A".to_owned(), "1".to_owned())].into(),
        ..spec()
    };
    let named = operator.instances.update_instance(update("", &["spec.env"], new.clone())).await;
    let named = named.unwrap().into_inner().instance.unwrap().spec.unwrap();
    assert_eq!((named.tier.as_str(), named.env.len()), ("balanced", 1));
    let status = operator.instances.update_instance(update("", &[], new.clone())).await;
    assert_eq!(fields(&status.unwrap_err()), ["instance.spec.tier"]);
    let status = operator.instances.update_instance(update("", &["spec.nope"], new.clone())).await;
    assert_eq!(fields(&status.unwrap_err()), ["update_mask"]);
    let moved = operator.instances.update_instance(update("hosts/b", &["spec.env"], new)).await;
    assert_eq!(fields(&moved.unwrap_err()), ["instance.host"]);
}

#[tokio::test]
async fn a_host_name_is_served_for_one_instance_only() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let with_name = |instance: &str| {
        let mut request = create_request(instance, "a");
        let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
        spec.hostnames = vec!["tenant.example".to_owned()];
        request
    };
    operator.instances.create_instance(with_name("one")).await.unwrap();
    let status = operator.instances.create_instance(with_name("two")).await.unwrap_err();
    assert_eq!(fields(&status), ["instance.spec.hostnames[0]"]);
    assert!(status.message().contains("instances/one"), "{status}");
}

#[tokio::test]
async fn cordoned_and_full_hosts_take_no_more() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let cordon = |cordoned| fleet::UpdateHostRequest {
        host: Some(fleet::Host { name: "hosts/a".to_owned(), cordoned, ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["cordoned".to_owned()] }),
        ..Default::default()
    };
    operator.hosts.update_host(cordon(true)).await.unwrap();
    let status = operator.create_instance("demo", "a").await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::FailedPrecondition, "HOST_CORDONED".into())
    );
    operator.hosts.update_host(cordon(false)).await.unwrap();

    let large = |name: &str| {
        let mut request = create_request(name, "a");
        let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
        spec.files.insert("big".to_owned(), "x".repeat(250 * 1024));
        request
    };
    let mut refused = None;
    for number in 0..40 {
        let made = operator.instances.create_instance(large(&format!("demo-{number}"))).await;
        if let Err(status) = made {
            refused = Some(status);
            break;
        }
    }
    let status = refused.unwrap();
    assert_eq!((status.code(), reason(&status)), (Code::FailedPrecondition, "HOST_FULL".into()));
    assert!(status.message().contains("8388608"), "{status}");
    let host = operator.host("a").await.unwrap();
    // Large rows come in smaller pages than asked for, so that every client can take them.
    let mut request = fleet::ListInstancesRequest { page_size: 1000, ..Default::default() };
    let mut listed = 0;
    loop {
        let page = operator.instances.list_instances(request.clone()).await.unwrap().into_inner();
        listed += u64::try_from(page.instances.len()).unwrap();
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed + 1, host.status.unwrap().desired.unwrap().generation);
}

#[tokio::test]
async fn a_spec_too_large_is_refused_with_both_numbers() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let mut request = create_request("demo", "a");
    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.files.insert("big".to_owned(), "x".repeat(300 * 1024));
    let status = operator.instances.create_instance(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("262144"), "{status}");

    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.files.insert("big".to_owned(), "x".repeat(2 * 1024 * 1024));
    let status = operator.instances.create_instance(request).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);
}
