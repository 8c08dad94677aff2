//! `claw.fleet.v1.InstanceService`.

use std::collections::BTreeMap;

use claw_core::name::{InstanceName, SnapshotName};
use claw_core::spec::RestoreSource;
use claw_proto::convert::name::{parse_host_name, parse_instance_name, parse_snapshot_name};
use claw_proto::convert::violation::Violations;
use claw_proto::fleet::v1::instance_service_server::InstanceService;
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1 as node;
use claw_store::rusqlite::Connection;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Envelope, caller_of, watching};
use crate::auth::Caller;
use crate::fleet::Fleet;
use crate::fleet::instances::{Action, Answer, SpecPatch};
use crate::fleet::migration::{Destination, From};
use crate::fleet::plan::Change;
use crate::fleet::rollback::RollbackTarget;
use crate::page::Page;
use crate::refusal::Refusal;
use crate::store::hosts::HostRow;
use crate::store::instances::InstanceRow;
use crate::store::mutation::{Call, Codec};
use crate::store::{Keys, hosts, instances, revisions, snapshots};

/// The service.
#[derive(Debug, Clone)]
pub struct InstanceApi {
    /// What it serves.
    pub fleet: Fleet,
}

/// A request that names an instance and nothing else.
macro_rules! action {
    ($self:ident, $request:ident, $method:literal, $action:expr, $response:ident) => {{
        let caller = caller_of(&$request)?;
        let request = $request.into_inner();
        let envelope = Envelope {
            method: concat!("claw.fleet.v1.InstanceService/", $method),
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = $self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::$response { instance: Some(instance) },
        };
        let acted = $self.fleet.act_on_instance(call, name, request.etag, $action, answer);
        Ok(Response::new(acted.await?))
    }};
}

#[tonic::async_trait]
impl InstanceService for InstanceApi {
    async fn create_instance(
        &self,
        request: Request<fleet::CreateInstanceRequest>,
    ) -> Result<Response<fleet::CreateInstanceResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.InstanceService/CreateInstance",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let mut violations = Violations::default();
        let name = violations.take("instance_id", InstanceName::parse(&request.instance_id));
        let instance = request.instance.unwrap_or_default();
        let host = parse_host_name("instance.host", &instance.host);
        let host = host.map_err(|violation| violations.0.push(violation)).ok();
        let spec = instance.spec.unwrap_or_default();
        let (Some(name), Some(host)) = (name, host) else {
            violations.extend(self.fleet.spec_faults(spec));
            return Err(Refusal::Invalid(violations).into());
        };
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::CreateInstanceResponse { instance: Some(instance) },
        };
        let created = self.fleet.create_instance(call, name, host, spec, answer);
        Ok(Response::new(created.await?))
    }

    async fn get_instance(
        &self,
        request: Request<fleet::GetInstanceRequest>,
    ) -> Result<Response<fleet::GetInstanceResponse>, Status> {
        let name = parse_instance_name("name", &request.get_ref().name).map_err(Refusal::from)?;
        let (row, host) = self.fleet.store.read(|connection, _keys| {
            let row = instances::load(connection, &name)?;
            let host = hosts::load(connection, &row.host)?;
            Ok((row, host))
        })?;
        let now = self.fleet.clock.now();
        let instance = crate::view::instance(&row, &host, &self.fleet.registry, now);
        Ok(Response::new(fleet::GetInstanceResponse { instance: Some(instance) }))
    }

    async fn list_instances(
        &self,
        request: Request<fleet::ListInstancesRequest>,
    ) -> Result<Response<fleet::ListInstancesResponse>, Status> {
        let request = request.into_inner();
        let host = if request.host.is_empty() {
            None
        } else {
            Some(parse_host_name("host", &request.host).map_err(Refusal::from)?)
        };
        let list = format!("instances {}", request.host);
        let page = Page::parse(list, request.page_size, &request.page_token)?;
        let (rows, next_page_token) = self
            .fleet
            .store
            .read_long(move |connection, _keys| {
                let (rows, token) = instances::list(connection, host.as_ref(), &page)?;
                Ok((with_hosts(connection, rows)?, token))
            })
            .await?;
        let now = self.fleet.clock.now();
        let registry = &self.fleet.registry;
        let instances = rows
            .iter()
            .map(|(row, host)| crate::view::instance(row, host, registry, now))
            .collect();
        Ok(Response::new(fleet::ListInstancesResponse { instances, next_page_token }))
    }

    async fn update_instance(
        &self,
        request: Request<fleet::UpdateInstanceRequest>,
    ) -> Result<Response<fleet::UpdateInstanceResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.InstanceService/UpdateInstance",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let instance = request.instance.unwrap_or_default();
        let name = parse_instance_name("instance.name", &instance.name).map_err(Refusal::from)?;
        let host = if instance.host.is_empty() {
            None
        } else {
            Some(parse_host_name("instance.host", &instance.host).map_err(Refusal::from)?)
        };
        let patch = SpecPatch {
            host,
            spec: instance.spec.unwrap_or_default(),
            paths: request.update_mask.map(|mask| mask.paths).unwrap_or_default(),
        };
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::UpdateInstanceResponse { instance: Some(instance) },
        };
        let updated = self.fleet.update_instance(call, name, instance.etag, patch, answer);
        Ok(Response::new(updated.await?))
    }

    async fn delete_instance(
        &self,
        request: Request<fleet::DeleteInstanceRequest>,
    ) -> Result<Response<fleet::DeleteInstanceResponse>, Status> {
        action!(self, request, "DeleteInstance", Action::Delete, DeleteInstanceResponse)
    }

    async fn start_instance(
        &self,
        request: Request<fleet::StartInstanceRequest>,
    ) -> Result<Response<fleet::StartInstanceResponse>, Status> {
        action!(self, request, "StartInstance", Action::Start, StartInstanceResponse)
    }

    async fn stop_instance(
        &self,
        request: Request<fleet::StopInstanceRequest>,
    ) -> Result<Response<fleet::StopInstanceResponse>, Status> {
        action!(self, request, "StopInstance", Action::Stop, StopInstanceResponse)
    }

    async fn pause_instance(
        &self,
        request: Request<fleet::PauseInstanceRequest>,
    ) -> Result<Response<fleet::PauseInstanceResponse>, Status> {
        action!(self, request, "PauseInstance", Action::Pause, PauseInstanceResponse)
    }

    async fn resume_instance(
        &self,
        request: Request<fleet::ResumeInstanceRequest>,
    ) -> Result<Response<fleet::ResumeInstanceResponse>, Status> {
        action!(self, request, "ResumeInstance", Action::Resume, ResumeInstanceResponse)
    }

    async fn restart_instance(
        &self,
        request: Request<fleet::RestartInstanceRequest>,
    ) -> Result<Response<fleet::RestartInstanceResponse>, Status> {
        action!(self, request, "RestartInstance", Action::Restart, RestartInstanceResponse)
    }

    async fn rebuild_instance(
        &self,
        request: Request<fleet::RebuildInstanceRequest>,
    ) -> Result<Response<fleet::RebuildInstanceResponse>, Status> {
        action!(self, request, "RebuildInstance", Action::Rebuild, RebuildInstanceResponse)
    }

    async fn rollback_instance(
        &self,
        request: Request<fleet::RollbackInstanceRequest>,
    ) -> Result<Response<fleet::RollbackInstanceResponse>, Status> {
        use fleet::rollback_instance_request::Target;
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.InstanceService/RollbackInstance",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let target = match &request.target {
            Some(Target::Snapshot(text)) => {
                RollbackTarget::Snapshot(snapshot_of(&name, text)?, source_of(request.from)?)
            }
            Some(Target::Revision(revision)) => to_revision(*revision, request.from)?,
            None => return Err(Refusal::field("target", "must be said").into()),
        };
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::RollbackInstanceResponse { instance: Some(instance) },
        };
        let back = self.fleet.roll_back_instance(call, name, request.etag, target, answer);
        Ok(Response::new(back.await?))
    }

    async fn migrate_instance(
        &self,
        request: Request<fleet::MigrateInstanceRequest>,
    ) -> Result<Response<fleet::MigrateInstanceResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.InstanceService/MigrateInstance",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let asked = (request.host.as_str(), request.source(), request.snapshot.as_str());
        let destination = destination(&name, asked, "")?;
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::MigrateInstanceResponse { instance: Some(instance) },
        };
        let begun = self.fleet.migrate_instance(call, name, request.etag, destination, answer);
        Ok(Response::new(begun.await?))
    }

    async fn cancel_migration(
        &self,
        request: Request<fleet::CancelMigrationRequest>,
    ) -> Result<Response<fleet::CancelMigrationResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.InstanceService/CancelMigration",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |instance| fleet::CancelMigrationResponse { instance: Some(instance) },
        };
        let cancelled = self.fleet.cancel_migration(call, name, request.etag, answer);
        Ok(Response::new(cancelled.await?))
    }

    async fn list_instance_revisions(
        &self,
        request: Request<fleet::ListInstanceRevisionsRequest>,
    ) -> Result<Response<fleet::ListInstanceRevisionsResponse>, Status> {
        let request = request.into_inner();
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let list = format!("revisions {name}");
        let page = Page::parse(list, request.page_size, &request.page_token)?;
        let query = move |connection: &Connection, _keys: &Keys| {
            let instance = instances::load(connection, &name)?;
            let (rows, token) = revisions::list(connection, &instance.uid, &page)?;
            let history = revisions::history(connection, &instance.uid)?;
            let listed = snapshots::all(connection, &instance.uid)?;
            let shown = rows.into_iter().map(|row| {
                crate::view::snapshots::revision(row, &instance.name, &history, &listed)
            });
            Ok((shown.collect(), token))
        };
        let (revisions, next_page_token) = self.fleet.store.read_long(query).await?;
        Ok(Response::new(fleet::ListInstanceRevisionsResponse { revisions, next_page_token }))
    }

    async fn plan_instance(
        &self,
        request: Request<fleet::PlanInstanceRequest>,
    ) -> Result<Response<fleet::PlanInstanceResponse>, Status> {
        use fleet::plan_instance_request::Change as Wire;
        let request = request.into_inner();
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let from = request.from;
        let change = match request.change {
            Some(Wire::Update(update)) => Change::Update(Box::new(SpecPatch {
                host: None,
                spec: update.spec.unwrap_or_default(),
                paths: update.update_mask.map(|mask| mask.paths).unwrap_or_default(),
            })),
            Some(Wire::Snapshot(text)) => Change::Rollback(RollbackTarget::Snapshot(
                snapshot_of(&name, &text)?,
                source_of(from)?,
            )),
            Some(Wire::Revision(revision)) => Change::Rollback(to_revision(revision, from)?),
            Some(Wire::Migrate(change)) => {
                let source = change.source();
                let asked = (change.host.as_str(), source, change.snapshot.as_str());
                Change::Migrate(destination(&name, asked, "migrate.")?)
            }
            None => return Err(Refusal::field("change", "must be said").into()),
        };
        let plan = self.fleet.plan_instance(name, change).await?;
        Ok(Response::new(fleet::PlanInstanceResponse { plan: Some(plan) }))
    }

    type WatchInstancesStream = ReceiverStream<Result<fleet::WatchInstancesResponse, Status>>;

    async fn watch_instances(
        &self,
        request: Request<fleet::WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let caller = caller_of(&request)?;
        let stream = watching::start(&self.fleet, &caller, &request.into_inner()).await?;
        Ok(Response::new(stream))
    }

    async fn fetch_gateway_token(
        &self,
        request: Request<fleet::FetchGatewayTokenRequest>,
    ) -> Result<Response<fleet::FetchGatewayTokenResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.InstanceService/FetchGatewayToken",
            validate_only: false,
            request_id: "",
        };
        let call = self.call(&envelope, &caller, &[])?;
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let codec = Codec { encode: claw_proto::encode, decode: claw_proto::decode };
        let make = |token| fleet::FetchGatewayTokenResponse { token };
        let fetched = self.fleet.fetch_gateway_token(call, name, codec, make);
        Ok(Response::new(fetched.await?))
    }

    async fn fetch_recovery_password(
        &self,
        request: Request<fleet::FetchRecoveryPasswordRequest>,
    ) -> Result<Response<fleet::FetchRecoveryPasswordResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.InstanceService/FetchRecoveryPassword",
            validate_only: false,
            request_id: "",
        };
        let call = self.call(&envelope, &caller, &[])?;
        let name = parse_instance_name("name", &request.name).map_err(Refusal::from)?;
        let codec = Codec { encode: claw_proto::encode, decode: claw_proto::decode };
        let make = |recovery_password| fleet::FetchRecoveryPasswordResponse { recovery_password };
        let fetched = self.fleet.fetch_recovery_password(call, name, request.uid, codec, make);
        Ok(Response::new(fetched.await?))
    }
}

/// A snapshot of this very instance.
fn snapshot_of(instance: &InstanceName, text: &str) -> Result<SnapshotName, Refusal> {
    let (of, snapshot) = parse_snapshot_name("snapshot", text)?;
    if of != *instance {
        return Err(Refusal::field("snapshot", format!("must be one of instances/{instance}")));
    }
    Ok(snapshot)
}

/// Where a snapshot is read.
fn source_of(wire: i32) -> Result<RestoreSource, Refusal> {
    match node::RestoreSource::try_from(wire) {
        Ok(node::RestoreSource::Unspecified | node::RestoreSource::Host) => Ok(RestoreSource::Host),
        Ok(node::RestoreSource::Offsite) => Ok(RestoreSource::Offsite),
        Err(_) => Err(Refusal::field("from", format!("unknown value {wire}"))),
    }
}

/// To a revision, whose data stays: there is nothing to be read off-site.
fn to_revision(revision: u64, from: i32) -> Result<RollbackTarget, Refusal> {
    if source_of(from)? == RestoreSource::Offsite {
        return Err(Refusal::field("from", "may be OFFSITE with a snapshot only"));
    }
    Ok(RollbackTarget::Revision(revision))
}

/// Where an instance shall move, from host, source and snapshot of a request.
fn destination(
    name: &InstanceName,
    (host, source, snapshot): (&str, fleet::MigrationSource, &str),
    path: &str,
) -> Result<Destination, Refusal> {
    let host = parse_host_name(&format!("{path}host"), host)?;
    let from = match source {
        fleet::MigrationSource::Unspecified | fleet::MigrationSource::Host => {
            if !snapshot.is_empty() {
                let text = "may be said with the source OFFSITE only";
                return Err(Refusal::field(&format!("{path}snapshot"), text));
            }
            From::Host
        }
        fleet::MigrationSource::Offsite if snapshot.is_empty() => From::Newest,
        fleet::MigrationSource::Offsite => From::Snapshot(snapshot_of(name, snapshot)?),
    };
    Ok(Destination { host, from })
}

impl InstanceApi {
    fn call(
        &self,
        envelope: &Envelope<'_>,
        caller: &Caller,
        content: &[u8],
    ) -> Result<Call, Refusal> {
        let secret = &self.fleet.store.keys().request_key;
        envelope.call(caller, content, &self.fleet.clock, secret)
    }
}

/// Each instance with its host's row.
pub(super) fn with_hosts(
    connection: &Connection,
    rows: Vec<InstanceRow>,
) -> Result<Vec<(InstanceRow, HostRow)>, Refusal> {
    let mut known: BTreeMap<_, HostRow> = BTreeMap::new();
    let mut joined = Vec::with_capacity(rows.len());
    for row in rows {
        let host = match known.get(&row.host) {
            Some(host) => host.clone(),
            None => {
                let host = hosts::load(connection, &row.host)?;
                known.insert(row.host.clone(), host.clone());
                host
            }
        };
        joined.push((row, host));
    }
    Ok(joined)
}
