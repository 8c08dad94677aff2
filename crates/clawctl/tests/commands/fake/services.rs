//! The services of the fake: resources in memory, every call noted.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};

use claw_proto::convert::mask::apply_mask;
use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::audit_service_server::{AuditService, AuditServiceServer};
use claw_proto::fleet::v1::host_service_server::{HostService, HostServiceServer};
use claw_proto::fleet::v1::instance_service_server::{InstanceService, InstanceServiceServer};
use claw_proto::fleet::v1::join_token_service_server::{JoinTokenService, JoinTokenServiceServer};
use claw_proto::fleet::v1::snapshot_service_server::SnapshotServiceServer;
use claw_proto::node::v1 as node;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use hyper::body::Incoming;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status};

use super::State;

#[derive(Debug, Clone)]
pub(super) struct Services(pub(super) Arc<Mutex<State>>);

type Answer<T> = Result<Response<T>, Status>;

impl Services {
    /// Answers a request by the service that its path names.
    pub(super) async fn route(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Body>, Infallible> {
        let path = request.uri().path().to_owned();
        match path.split('/').nth(1) {
            Some("claw.fleet.v1.HostService") => HostServiceServer::new(self).call(request).await,
            Some("claw.fleet.v1.InstanceService") => {
                InstanceServiceServer::new(self).call(request).await
            }
            Some("claw.fleet.v1.JoinTokenService") => {
                JoinTokenServiceServer::new(self).call(request).await
            }
            Some("claw.fleet.v1.SnapshotService") => {
                SnapshotServiceServer::new(self).call(request).await
            }
            _ => AuditServiceServer::new(self).call(request).await,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Start, stop, pause, resume, restart, rebuild, roll back.
    fn change(
        &self,
        verb: &str,
        name: &str,
        request_id: &str,
    ) -> Result<Option<fleet::Instance>, Status> {
        let mut state = self.state();
        state.enter(format!("{verb} {name}"), Some(request_id))?;
        let found = state.instances.get(name).cloned();
        found.map(Some).ok_or_else(|| Status::not_found(format!("{name} does not exist")))
    }
}

pub(super) fn absent(name: &str) -> Status {
    Status::not_found(format!("{name} does not exist"))
}

/// A page of at most two, so that paging is seen.
pub(super) fn page<T>(all: Vec<T>, token: &str) -> (Vec<T>, String) {
    let begin: usize = token.parse().unwrap_or(0);
    let next = begin + 2;
    let more = if next < all.len() { next.to_string() } else { String::new() };
    (all.into_iter().skip(begin).take(2).collect(), more)
}

#[tonic::async_trait]
impl HostService for Services {
    async fn create_host(
        &self,
        request: Request<fleet::CreateHostRequest>,
    ) -> Answer<fleet::CreateHostResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        let name = format!("hosts/{}", request.host_id);
        state.enter(
            format!("create {name} dry={}", request.validate_only),
            Some(&request.request_id),
        )?;
        let etag = state.next_etag();
        let host = fleet::Host { name: name.clone(), etag, ..request.host.unwrap_or_default() };
        if !request.validate_only {
            state.hosts.insert(name, host.clone());
        }
        Ok(Response::new(fleet::CreateHostResponse { host: Some(host) }))
    }

    async fn get_host(
        &self,
        request: Request<fleet::GetHostRequest>,
    ) -> Answer<fleet::GetHostResponse> {
        let name = request.into_inner().name;
        let mut state = self.state();
        state.enter(format!("get {name}"), None)?;
        let host = state.hosts.get(&name).cloned().ok_or_else(|| absent(&name))?;
        Ok(Response::new(fleet::GetHostResponse { host: Some(host) }))
    }

    async fn list_hosts(
        &self,
        request: Request<fleet::ListHostsRequest>,
    ) -> Answer<fleet::ListHostsResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.enter(format!("list hosts {}", request.page_token), None)?;
        let (hosts, next_page_token) =
            page(state.hosts.values().cloned().collect(), &request.page_token);
        Ok(Response::new(fleet::ListHostsResponse { hosts, next_page_token }))
    }

    async fn set_host_offsite(
        &self,
        request: Request<fleet::SetHostOffsiteRequest>,
    ) -> Answer<fleet::SetHostOffsiteResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        let verb = if request.storage.is_some() { "set" } else { "clear" };
        let call = format!("{verb} off-site of {}", request.name);
        state.enter(call, Some(&request.request_id))?;
        state.storage = request.storage;
        let host = state.hosts.get(&request.name).cloned().ok_or_else(|| absent(&request.name))?;
        Ok(Response::new(fleet::SetHostOffsiteResponse { host: Some(host) }))
    }

    async fn update_host(
        &self,
        request: Request<fleet::UpdateHostRequest>,
    ) -> Answer<fleet::UpdateHostResponse> {
        let request = request.into_inner();
        let new = request.host.unwrap_or_default();
        let paths = request.update_mask.unwrap_or_default().paths;
        let mut state = self.state();
        state.enter(
            format!("update {} {} etag={}", new.name, paths.join(","), new.etag),
            Some(&request.request_id),
        )?;
        let etag = state.next_etag();
        let host = state.hosts.get_mut(&new.name).ok_or_else(|| absent(&new.name))?;
        if paths.iter().any(|path| path == "labels") {
            host.labels = new.labels;
        }
        if paths.iter().any(|path| path == "firewall") {
            host.firewall = new.firewall;
        }
        host.cordoned = new.cordoned;
        host.etag = etag;
        Ok(Response::new(fleet::UpdateHostResponse { host: Some(host.clone()) }))
    }

    async fn delete_host(
        &self,
        request: Request<fleet::DeleteHostRequest>,
    ) -> Answer<fleet::DeleteHostResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.enter(format!("delete {}", request.name), Some(&request.request_id))?;
        state.hosts.remove(&request.name).ok_or_else(|| absent(&request.name))?;
        Ok(Response::new(fleet::DeleteHostResponse {}))
    }

    async fn revoke_host(
        &self,
        request: Request<fleet::RevokeHostRequest>,
    ) -> Answer<fleet::RevokeHostResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.enter(format!("revoke {}", request.name), Some(&request.request_id))?;
        let host = state.hosts.get(&request.name).cloned().ok_or_else(|| absent(&request.name))?;
        Ok(Response::new(fleet::RevokeHostResponse { host: Some(host) }))
    }

    async fn get_host_firewall(
        &self,
        request: Request<fleet::GetHostFirewallRequest>,
    ) -> Answer<fleet::GetHostFirewallResponse> {
        let name = request.into_inner().name;
        let mut state = self.state();
        state.enter(format!("firewall of {name}"), None)?;
        let firewall = state.firewalls.get(&name).cloned().ok_or_else(|| absent(&name))?;
        Ok(Response::new(fleet::GetHostFirewallResponse { firewall: Some(firewall) }))
    }

    async fn list_host_events(
        &self,
        request: Request<fleet::ListHostEventsRequest>,
    ) -> Answer<fleet::ListHostEventsResponse> {
        let request = request.into_inner();
        self.state().enter(format!("events {} {}", request.host, request.instance), None)?;
        let event = |sequence| node::Event {
            sequence,
            instance: "demo".to_owned(),
            kind: "out_of_memory".to_owned(),
            severity: i32::from(node::Severity::Error),
            message: format!("event {sequence}"),
            at: None,
        };
        let (events, next_page_token) = page((1..=3).map(event).collect(), &request.page_token);
        Ok(Response::new(fleet::ListHostEventsResponse { events, next_page_token }))
    }
}

#[tonic::async_trait]
impl InstanceService for Services {
    type WatchInstancesStream = BoxStream<'static, Result<fleet::WatchInstancesResponse, Status>>;

    async fn create_instance(
        &self,
        request: Request<fleet::CreateInstanceRequest>,
    ) -> Answer<fleet::CreateInstanceResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        let name = format!("instances/{}", request.instance_id);
        let mut instance = request.instance.unwrap_or_default();
        state.enter(
            format!("create {name} on {} dry={}", instance.host, request.validate_only),
            Some(&request.request_id),
        )?;
        if state.hosts_matter && !state.hosts.contains_key(&instance.host) {
            return Err(absent(&instance.host));
        }
        instance.name.clone_from(&name);
        instance.etag = state.next_etag();
        let spec = instance.spec.get_or_insert_default();
        let secrets = spec.secrets.clone();
        spec.secrets.values_mut().for_each(String::clear);
        if !request.validate_only {
            state.secrets.insert(name.clone(), secrets);
            state.instances.insert(name, instance.clone());
        }
        Ok(Response::new(fleet::CreateInstanceResponse { instance: Some(instance) }))
    }

    async fn get_instance(
        &self,
        request: Request<fleet::GetInstanceRequest>,
    ) -> Answer<fleet::GetInstanceResponse> {
        let name = request.into_inner().name;
        let mut state = self.state();
        state.enter(format!("get {name}"), None)?;
        let instance = state.instances.get(&name).cloned().ok_or_else(|| absent(&name))?;
        Ok(Response::new(fleet::GetInstanceResponse { instance: Some(instance) }))
    }

    async fn list_instances(
        &self,
        request: Request<fleet::ListInstancesRequest>,
    ) -> Answer<fleet::ListInstancesResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.enter(format!("list instances {}", request.host), None)?;
        let on_host =
            |instance: &&fleet::Instance| request.host.is_empty() || instance.host == request.host;
        let all = state.instances.values().filter(on_host).cloned().collect();
        let (instances, next_page_token) = page(all, &request.page_token);
        Ok(Response::new(fleet::ListInstancesResponse { instances, next_page_token }))
    }

    async fn update_instance(
        &self,
        request: Request<fleet::UpdateInstanceRequest>,
    ) -> Answer<fleet::UpdateInstanceResponse> {
        let request = request.into_inner();
        let new = request.instance.unwrap_or_default();
        let paths = request.update_mask.unwrap_or_default().paths;
        let mut state = self.state();
        let dry_run = request.validate_only;
        state.enter(
            format!("update {} dry={dry_run} etag={}", new.name, new.etag),
            Some(&request.request_id),
        )?;
        let old = state.instances.get(&new.name).cloned().ok_or_else(|| absent(&new.name))?;
        let old_secrets = state.secrets.get(&new.name).cloned().unwrap_or_default();
        let mut old_spec = old.spec.clone().unwrap_or_default();
        old_spec.secrets.clone_from(&old_secrets);
        let mut wanted = new.spec.unwrap_or_default();
        for (secret, value) in wanted.secrets.iter_mut().filter(|(_, value)| value.is_empty()) {
            value.clone_from(&old_secrets[secret]);
        }
        let mut spec = apply_mask(&old_spec, &wanted, &paths)
            .map_err(|violations| Status::invalid_argument(violations.to_string()))?;
        let changed = spec != old_spec;
        let secrets = spec.secrets.clone();
        spec.secrets.values_mut().for_each(String::clear);
        let etag = if changed { state.next_etag() } else { old.etag.clone() };
        let instance = fleet::Instance { spec: Some(spec), etag, ..old };
        if !dry_run {
            state.secrets.insert(new.name.clone(), secrets);
            state.instances.insert(new.name, instance.clone());
        }
        Ok(Response::new(fleet::UpdateInstanceResponse { instance: Some(instance) }))
    }

    async fn delete_instance(
        &self,
        request: Request<fleet::DeleteInstanceRequest>,
    ) -> Answer<fleet::DeleteInstanceResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.enter(format!("delete {}", request.name), Some(&request.request_id))?;
        let gone = state.instances.remove(&request.name).ok_or_else(|| absent(&request.name))?;
        Ok(Response::new(fleet::DeleteInstanceResponse { instance: Some(gone) }))
    }

    async fn start_instance(
        &self,
        request: Request<fleet::StartInstanceRequest>,
    ) -> Answer<fleet::StartInstanceResponse> {
        let request = request.into_inner();
        let instance = self.change("start", &request.name, &request.request_id)?;
        Ok(Response::new(fleet::StartInstanceResponse { instance }))
    }

    async fn stop_instance(
        &self,
        request: Request<fleet::StopInstanceRequest>,
    ) -> Answer<fleet::StopInstanceResponse> {
        let request = request.into_inner();
        let instance = self.change("stop", &request.name, &request.request_id)?;
        Ok(Response::new(fleet::StopInstanceResponse { instance }))
    }

    async fn pause_instance(
        &self,
        request: Request<fleet::PauseInstanceRequest>,
    ) -> Answer<fleet::PauseInstanceResponse> {
        let request = request.into_inner();
        let instance = self.change("pause", &request.name, &request.request_id)?;
        Ok(Response::new(fleet::PauseInstanceResponse { instance }))
    }

    async fn resume_instance(
        &self,
        request: Request<fleet::ResumeInstanceRequest>,
    ) -> Answer<fleet::ResumeInstanceResponse> {
        let request = request.into_inner();
        let instance = self.change("resume", &request.name, &request.request_id)?;
        Ok(Response::new(fleet::ResumeInstanceResponse { instance }))
    }

    async fn rollback_instance(
        &self,
        request: Request<fleet::RollbackInstanceRequest>,
    ) -> Answer<fleet::RollbackInstanceResponse> {
        let request = request.into_inner();
        let off_site =
            if request.from() == node::RestoreSource::Offsite { " off-site" } else { "" };
        let verb = format!("roll back{off_site} to {:?}:", request.target.unwrap());
        let instance = self.change(&verb, &request.name, &request.request_id)?;
        Ok(Response::new(fleet::RollbackInstanceResponse { instance }))
    }

    async fn migrate_instance(
        &self,
        request: Request<fleet::MigrateInstanceRequest>,
    ) -> Answer<fleet::MigrateInstanceResponse> {
        let request = request.into_inner();
        let verb = format!("migrate to {} from {:?}", request.host, request.source());
        let instance = self.change(&verb, &request.name, &request.request_id)?;
        Ok(Response::new(fleet::MigrateInstanceResponse { instance }))
    }

    async fn cancel_migration(
        &self,
        request: Request<fleet::CancelMigrationRequest>,
    ) -> Answer<fleet::CancelMigrationResponse> {
        let request = request.into_inner();
        let instance = self.change("cancel migration", &request.name, &request.request_id)?;
        Ok(Response::new(fleet::CancelMigrationResponse { instance }))
    }

    async fn list_instance_revisions(
        &self,
        request: Request<fleet::ListInstanceRevisionsRequest>,
    ) -> Answer<fleet::ListInstanceRevisionsResponse> {
        let request = request.into_inner();
        self.state().enter(format!("revisions of {}", request.name), None)?;
        let revision = |revision: u64| fleet::InstanceRevision {
            revision,
            spec: Some(fleet::InstanceSpec {
                image: format!("a:{revision}"),
                run_state: 1,
                ..fleet::InstanceSpec::default()
            }),
            snapshots: vec![format!("{}/snapshots/s{revision}", request.name)],
            ..fleet::InstanceRevision::default()
        };
        let all = (1..=3).rev().map(revision).collect();
        let (revisions, next_page_token) = page(all, &request.page_token);
        Ok(Response::new(fleet::ListInstanceRevisionsResponse { revisions, next_page_token }))
    }

    async fn plan_instance(
        &self,
        request: Request<fleet::PlanInstanceRequest>,
    ) -> Answer<fleet::PlanInstanceResponse> {
        use fleet::plan_instance_request::Change;
        let request = request.into_inner();
        let change = match request.change.unwrap() {
            Change::Update(change) => {
                let image = change.spec.unwrap_or_default().image;
                let paths = change.update_mask.unwrap_or_default().paths;
                format!("{image} in {} fields", paths.len())
            }
            other => format!("{other:?}"),
        };
        let mut state = self.state();
        state.enter(format!("plan {}: {change}", request.name), None)?;
        let plan = state.plans.pop_front();
        Ok(Response::new(fleet::PlanInstanceResponse { plan }))
    }

    async fn fetch_recovery_password(
        &self,
        request: Request<fleet::FetchRecoveryPasswordRequest>,
    ) -> Answer<fleet::FetchRecoveryPasswordResponse> {
        let fleet::FetchRecoveryPasswordRequest { name, uid } = request.into_inner();
        self.state().enter(format!("password of {name} {uid}").trim_end().to_owned(), None)?;
        let recovery_password = "recovery-secret".to_owned();
        Ok(Response::new(fleet::FetchRecoveryPasswordResponse { recovery_password }))
    }

    async fn restart_instance(
        &self,
        request: Request<fleet::RestartInstanceRequest>,
    ) -> Answer<fleet::RestartInstanceResponse> {
        let request = request.into_inner();
        let instance = self.change("restart", &request.name, &request.request_id)?;
        Ok(Response::new(fleet::RestartInstanceResponse { instance }))
    }

    async fn rebuild_instance(
        &self,
        request: Request<fleet::RebuildInstanceRequest>,
    ) -> Answer<fleet::RebuildInstanceResponse> {
        let request = request.into_inner();
        let instance = self.change("rebuild", &request.name, &request.request_id)?;
        Ok(Response::new(fleet::RebuildInstanceResponse { instance }))
    }

    async fn watch_instances(
        &self,
        request: Request<fleet::WatchInstancesRequest>,
    ) -> Answer<Self::WatchInstancesStream> {
        let request = request.into_inner();
        let mut state = self.state();
        state.enter(
            format!("watch {} {}", request.names.join(","), request.host).trim_end().to_owned(),
            None,
        )?;
        let stays = state.watches_stay;
        match state.watches.pop_front().or_else(|| stays.then(Vec::new)) {
            Some(messages) if stays => {
                Ok(Response::new(stream::iter(messages).map(Ok).chain(stream::pending()).boxed()))
            }
            Some(messages) => Ok(Response::new(stream::iter(messages).map(Ok).boxed())),
            None => Err(absent(&request.names.join(","))),
        }
    }

    async fn fetch_gateway_token(
        &self,
        request: Request<fleet::FetchGatewayTokenRequest>,
    ) -> Answer<fleet::FetchGatewayTokenResponse> {
        let name = request.into_inner().name;
        self.state().enter(format!("token of {name}"), None)?;
        Ok(Response::new(fleet::FetchGatewayTokenResponse { token: "gateway-secret".to_owned() }))
    }
}

#[tonic::async_trait]
impl JoinTokenService for Services {
    async fn create_join_token(
        &self,
        request: Request<fleet::CreateJoinTokenRequest>,
    ) -> Answer<fleet::CreateJoinTokenResponse> {
        let request = request.into_inner();
        let seconds = request.ttl.map(|ttl| ttl.seconds);
        self.state().enter(
            format!("token for {} ttl={seconds:?}", request.host),
            Some(&request.request_id),
        )?;
        let join_token = fleet::JoinToken {
            name: "joinTokens/t1".to_owned(),
            host: request.host,
            ..fleet::JoinToken::default()
        };
        let token = "clw1.t1.secret.pin".to_owned();
        Ok(Response::new(fleet::CreateJoinTokenResponse { join_token: Some(join_token), token }))
    }

    async fn list_join_tokens(
        &self,
        request: Request<fleet::ListJoinTokensRequest>,
    ) -> Answer<fleet::ListJoinTokensResponse> {
        let token = |number: u32| fleet::JoinToken {
            name: format!("joinTokens/t{number}"),
            host: "hosts/vps-1".to_owned(),
            ..fleet::JoinToken::default()
        };
        self.state().enter("list tokens".to_owned(), None)?;
        let (join_tokens, next_page_token) =
            page((1..=3).map(token).collect(), &request.into_inner().page_token);
        Ok(Response::new(fleet::ListJoinTokensResponse { join_tokens, next_page_token }))
    }

    async fn delete_join_token(
        &self,
        request: Request<fleet::DeleteJoinTokenRequest>,
    ) -> Answer<fleet::DeleteJoinTokenResponse> {
        let request = request.into_inner();
        self.state().enter(format!("delete {}", request.name), Some(&request.request_id))?;
        Ok(Response::new(fleet::DeleteJoinTokenResponse {}))
    }
}

#[tonic::async_trait]
impl AuditService for Services {
    async fn list_audit_entries(
        &self,
        request: Request<fleet::ListAuditEntriesRequest>,
    ) -> Answer<fleet::ListAuditEntriesResponse> {
        let request = request.into_inner();
        self.state()
            .enter(format!("audit {} size={}", request.resource, request.page_size), None)?;
        let entry = |number: u32| fleet::AuditEntry {
            name: format!("auditEntries/{number}"),
            principal: "operator/alice".to_owned(),
            source: "127.0.0.1".to_owned(),
            method: "claw.fleet.v1.InstanceService/CreateInstance".to_owned(),
            resource: "instances/demo".to_owned(),
            summary: format!("change {number}"),
            time: None,
        };
        let (audit_entries, next_page_token) =
            page((1..=5).rev().map(entry).collect(), &request.page_token);
        Ok(Response::new(fleet::ListAuditEntriesResponse { audit_entries, next_page_token }))
    }
}
