//! Conventions of the API: violations, etags, request ids, pages, dry runs, audit.

use claw_identity::Role;
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::{self as node};
use prost_types::FieldMask;
use tonic::Code;

use crate::fixture::{Clients, Fleet, create_request, fields, reason, spec};

const REQUEST_ID: &str = "7f1c9a52-30f4-4b9e-8d47-5d3a9a0e6b11";
const OTHER_ID: &str = "0d4c3f0e-5f57-4f0e-9a53-3f2f4f3a2b10";

#[tokio::test]
async fn every_wrong_field_is_named_at_once() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    let request = fleet::CreateInstanceRequest {
        instance_id: "Not-A-Name".to_owned(),
        instance: Some(fleet::Instance {
            host: "nowhere".to_owned(),
            spec: Some(fleet::InstanceSpec {
                image: "not an image".to_owned(),
                tier: "gold".to_owned(),
                config: "{gateway: {port: 'x'}, nonsense: 1}".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let status = operator.instances.create_instance(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(reason(&status), "INVALID_FIELDS");
    assert_eq!(
        fields(&status),
        [
            "instance_id",
            "instance.host",
            "instance.spec.image",
            "instance.spec.tier",
            "instance.spec.config",
            "instance.spec.config"
        ]
    );
    assert!(status.message().contains("gateway.port: expected a whole number"), "{status}");
}

#[tokio::test]
async fn a_config_that_openclaw_would_refuse_is_refused() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let mut request = create_request("demo", "a");
    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.config = "{models: {providers: {p: {apiKey: '${PROVIDER_KEY}'}}}}".to_owned();
    let status = operator.instances.create_instance(request.clone()).await.unwrap_err();
    assert_eq!(fields(&status), ["instance.spec.config"]);
    assert!(status.message().contains("nothing supplies the variable PROVIDER_KEY"), "{status}");
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);

    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.secrets.insert("PROVIDER_KEY".to_owned(), "k".to_owned());
    operator.instances.create_instance(request).await.unwrap();
}

#[tokio::test]
async fn absent_and_taken_names_are_told_apart() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    let status = operator.create_instance("demo", "a").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "hosts/a does not exist"));
    operator.create_host("a").await.unwrap();
    let status = operator.create_host("a").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::AlreadyExists, "hosts/a exists already"));
    operator.create_instance("demo", "a").await.unwrap();
    let status = operator.create_instance("demo", "a").await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(status.message(), "instances/demo exists already");
}

#[tokio::test]
async fn a_stale_etag_is_aborted_and_an_empty_one_means_any() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let first = operator.create_instance("demo", "a").await.unwrap();
    let update = |etag: &str, tier: &str| fleet::UpdateInstanceRequest {
        instance: Some(fleet::Instance {
            name: "instances/demo".to_owned(),
            etag: etag.to_owned(),
            spec: Some(fleet::InstanceSpec { tier: tier.to_owned(), ..spec() }),
            ..Default::default()
        }),
        update_mask: Some(FieldMask { paths: vec!["spec.tier".to_owned()] }),
        ..Default::default()
    };
    let second = operator.instances.update_instance(update(&first.etag, "pro")).await.unwrap();
    let second = second.into_inner().instance.unwrap();
    assert_ne!(second.etag, first.etag);
    assert_eq!(second.uid, first.uid);
    let stale = operator.instances.update_instance(update(&first.etag, "budget")).await;
    let stale = stale.unwrap_err();
    assert_eq!((stale.code(), reason(&stale).as_str()), (Code::Aborted, "STALE_ETAG"));
    assert_eq!(operator.instance("demo").await.unwrap().spec.unwrap().tier, "pro");
    operator.instances.update_instance(update("", "budget")).await.unwrap();
    assert_eq!(operator.instance("demo").await.unwrap().spec.unwrap().tier, "budget");
}

#[tokio::test]
async fn the_same_request_again_gets_the_first_answer() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let request = fleet::CreateInstanceRequest {
        request_id: REQUEST_ID.to_owned(),
        ..create_request("demo", "a")
    };
    let first = operator.instances.create_instance(request.clone()).await.unwrap().into_inner();
    let again = operator.instances.create_instance(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    assert_eq!(operator.audit("instances/demo").await.len(), 1);

    let mut other = create_request("other", "a");
    other.request_id = REQUEST_ID.to_owned();
    let status = operator.instances.create_instance(other).await.unwrap_err();
    assert_eq!(fields(&status), ["request_id"]);

    // Another caller's ids are its own.
    let mut service = Clients::new(fleet.channel(Role::Service, "billing").await);
    let status = service.instances.create_instance(request).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);

    let bad = fleet::CreateInstanceRequest {
        request_id: "again".to_owned(),
        ..create_request("third", "a")
    };
    let status = operator.instances.create_instance(bad).await.unwrap_err();
    assert_eq!(fields(&status), ["request_id"]);
}

#[tokio::test]
async fn many_of_the_same_request_at_once_make_one() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _copy in 0..16 {
        let mut operator = operator.clone();
        tasks.spawn(async move {
            let request = fleet::CreateInstanceRequest {
                request_id: REQUEST_ID.to_owned(),
                ..create_request("demo", "a")
            };
            operator.instances.create_instance(request).await.unwrap().into_inner()
        });
    }
    let mut answers = tasks.join_all().await;
    // Each generated a token; the one that was kept is everybody's answer.
    answers.dedup();
    assert_eq!(answers.len(), 1);
}

#[tokio::test]
async fn a_join_token_is_shown_once() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let request = fleet::CreateJoinTokenRequest {
        host: "hosts/a".to_owned(),
        request_id: REQUEST_ID.to_owned(),
        ..Default::default()
    };
    let made = operator.tokens.create_join_token(request.clone()).await.unwrap().into_inner();
    assert!(made.token.starts_with("clw1."));
    let status = operator.tokens.create_join_token(request).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::AlreadyExists, "SHOWN_ONCE"));
    let listed = operator.tokens.list_join_tokens(fleet::ListJoinTokensRequest::default()).await;
    let listed = listed.unwrap().into_inner().join_tokens;
    assert_eq!(listed, [made.join_token.unwrap()]);

    let ttl = Some(prost_types::Duration { seconds: 5, nanos: 0 });
    let short = fleet::CreateJoinTokenRequest { host: "x".to_owned(), ttl, ..Default::default() };
    let status = operator.tokens.create_join_token(short).await.unwrap_err();
    assert_eq!(fields(&status), ["ttl", "host"]);
}

#[tokio::test]
async fn lists_come_in_pages_that_neither_skip_nor_repeat() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    operator.create_host("b").await.unwrap();
    for number in 0..5 {
        operator.create_instance(&format!("demo-{number}"), "a").await.unwrap();
    }
    operator.create_instance("elsewhere", "b").await.unwrap();
    let (mut names, mut token) = (Vec::new(), String::new());
    loop {
        let request = fleet::ListInstancesRequest {
            host: "hosts/a".to_owned(),
            page_size: 2,
            page_token: token,
        };
        let page = operator.instances.list_instances(request).await.unwrap().into_inner();
        assert!(page.instances.len() <= 2);
        names.extend(page.instances.into_iter().map(|instance| instance.name));
        token = page.next_page_token;
        // What comes before the place of the token does not shift it.
        if names.len() == 2 {
            operator.create_instance("aaa", "a").await.unwrap();
        }
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..5).map(|number| format!("instances/demo-{number}")).collect();
    assert_eq!(names, expected);

    let audit = fleet::ListAuditEntriesRequest { page_size: 3, ..Default::default() };
    let audit = operator.audit.list_audit_entries(audit).await.unwrap().into_inner();
    let ids: Vec<&str> = audit.audit_entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(ids, ["auditEntries/9", "auditEntries/8", "auditEntries/7"]);
    let foreign = fleet::ListHostsRequest { page_token: audit.next_page_token, page_size: 0 };
    let status = operator.hosts.list_hosts(foreign).await.unwrap_err();
    assert_eq!(fields(&status), ["page_token"]);
}

#[tokio::test]
async fn a_dry_run_checks_everything_and_changes_nothing() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    let dry = fleet::CreateHostRequest {
        host_id: "a".to_owned(),
        validate_only: true,
        request_id: REQUEST_ID.to_owned(),
        ..Default::default()
    };
    let shown = operator.hosts.create_host(dry.clone()).await.unwrap().into_inner().host.unwrap();
    assert_eq!(shown.name, "hosts/a");
    assert_eq!(operator.host("a").await.unwrap_err().code(), Code::NotFound);
    operator.create_host("a").await.unwrap();
    assert_eq!(operator.hosts.create_host(dry).await.unwrap_err().code(), Code::AlreadyExists);

    let before = operator.host("a").await.unwrap().status.unwrap().desired;
    let dry = fleet::CreateInstanceRequest {
        validate_only: true,
        request_id: OTHER_ID.to_owned(),
        ..create_request("demo", "a")
    };
    operator.instances.create_instance(dry).await.unwrap();
    assert_eq!(operator.instance("demo").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(operator.host("a").await.unwrap().status.unwrap().desired, before);
    assert_eq!(operator.audit("").await.len(), 1);
}

#[tokio::test]
async fn every_mutation_leaves_one_audit_entry() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let labels = [("zone".to_owned(), "1".to_owned())].into();
    let host = fleet::Host { name: "hosts/a".to_owned(), labels, ..Default::default() };
    let update = fleet::UpdateHostRequest { host: Some(host), ..Default::default() };
    operator.hosts.update_host(update).await.unwrap();
    operator.join_token("a").await.unwrap();
    operator.create_instance("demo", "a").await.unwrap();
    let name = || "instances/demo".to_owned();
    let restart = fleet::RestartInstanceRequest { name: name(), ..Default::default() };
    operator.instances.restart_instance(restart).await.unwrap();
    let stop = fleet::StopInstanceRequest { name: name(), ..Default::default() };
    operator.instances.stop_instance(stop).await.unwrap();
    let start = fleet::StartInstanceRequest { name: name(), ..Default::default() };
    operator.instances.start_instance(start).await.unwrap();
    let rebuild = fleet::RebuildInstanceRequest { name: name(), ..Default::default() };
    operator.instances.rebuild_instance(rebuild).await.unwrap();
    let fetch = fleet::FetchGatewayTokenRequest { name: name() };
    let token = operator.instances.fetch_gateway_token(fetch).await.unwrap().into_inner().token;
    operator.delete_instance("demo").await.unwrap();
    let revoke = fleet::RevokeHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    operator.hosts.revoke_host(revoke).await.unwrap();
    let delete = fleet::DeleteHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    operator.hosts.delete_host(delete).await.unwrap();

    let mut entries = operator.audit("").await;
    entries.reverse();
    for entry in &entries {
        assert_eq!(entry.principal, "operator/alice");
        assert_eq!(entry.source, "127.0.0.1");
        assert!(!entry.summary.contains(&token));
    }
    let lines: Vec<String> = entries
        .iter()
        .map(|entry| {
            let method = entry.method.rsplit('/').next().unwrap();
            let kind = entry.resource.split('/').next().unwrap();
            format!("{method} {kind}")
        })
        .collect();
    assert_eq!(
        lines,
        [
            "CreateHost hosts",
            "UpdateHost hosts",
            "CreateJoinToken joinTokens",
            "CreateInstance instances",
            "RestartInstance instances",
            "StopInstance instances",
            "StartInstance instances",
            "RebuildInstance instances",
            "FetchGatewayToken instances",
            "DeleteInstance instances",
            "RevokeHost hosts",
            "DeleteHost hosts",
        ]
    );
    assert_eq!(entries.last().unwrap().name, "auditEntries/12");
}

#[tokio::test]
async fn secrets_go_in_and_never_come_out() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let mut request = create_request("demo", "a");
    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.secrets.insert("KEY".to_owned(), "hunter2-hunter2".to_owned());
    let created = operator.instances.create_instance(request).await.unwrap().into_inner();
    let shown = created.instance.unwrap().spec.unwrap();
    let names: Vec<_> = shown.secrets.iter().collect();
    assert_eq!(
        names,
        [
            (&"KEY".to_owned(), &String::new()),
            (&"OPENCLAW_GATEWAY_TOKEN".to_owned(), &String::new())
        ]
    );
    // An update with what was shown keeps what was stored.
    let fetch = || fleet::FetchGatewayTokenRequest { name: "instances/demo".to_owned() };
    let before = operator.instances.fetch_gateway_token(fetch()).await.unwrap().into_inner();
    assert_eq!(before.token.len(), 43);
    let update = fleet::UpdateInstanceRequest {
        instance: Some(fleet::Instance {
            name: "instances/demo".to_owned(),
            spec: Some(fleet::InstanceSpec { tier: "pro".to_owned(), ..shown }),
            ..Default::default()
        }),
        ..Default::default()
    };
    operator.instances.update_instance(update).await.unwrap();
    let after = operator.instances.fetch_gateway_token(fetch()).await.unwrap().into_inner();
    assert_eq!(before, after);
    for file in walk(fleet.dir.path()) {
        let bytes = std::fs::read(&file).unwrap();
        for secret in ["hunter2-hunter2".as_bytes(), before.token.as_bytes()] {
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "a secret lies in {}", file.display());
        }
    }
}

fn walk(directory: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path);
        }
    }
    assert!(!files.is_empty());
    files
}

#[tokio::test]
async fn the_status_of_a_host_begins_as_registered() {
    let fleet = Fleet::start().await;
    let mut operator = fleet.operator().await;
    operator.create_host("a").await.unwrap();
    let status = operator.host("a").await.unwrap().status.unwrap();
    assert_eq!(status.state(), fleet::HostState::Registered);
    operator.create_instance("demo", "a").await.unwrap();
    let status = operator.instance("demo").await.unwrap().status.unwrap();
    assert_eq!(status.phase(), node::Phase::Pending);
    assert_eq!(status.message, "hosts/a has not joined yet");
    assert!(!status.persisted && !status.current);
}
