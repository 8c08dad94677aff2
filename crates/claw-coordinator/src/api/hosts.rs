//! `claw.fleet.v1.HostService`.

use claw_core::name::HostName;
use claw_proto::convert::name::{parse_host_name, parse_instance_name};
use claw_proto::convert::violation::Violations;
use claw_proto::fleet::v1::host_service_server::HostService;
use claw_proto::fleet::v1::{self as fleet};
use tonic::{Request, Response, Status};

use super::{Envelope, caller_of};
use crate::fleet::Fleet;
use crate::fleet::hosts::{Answer, HostPatch};
use crate::page::Page;
use crate::refusal::Refusal;
use crate::store::mutation::Codec;
use crate::store::{events, hosts, migrations};

/// The service.
#[derive(Debug, Clone)]
pub struct HostApi {
    /// What it serves.
    pub fleet: Fleet,
}

/// Paths that an update may name.
const PATHS: [&str; 3] = ["labels", "cordoned", "firewall"];

#[tonic::async_trait]
impl HostService for HostApi {
    async fn create_host(
        &self,
        request: Request<fleet::CreateHostRequest>,
    ) -> Result<Response<fleet::CreateHostResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.HostService/CreateHost",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let content = claw_proto::encode(&request);
        let call = self.call(&envelope, &caller, &content)?;
        let name =
            HostName::parse(&request.host_id).map_err(|error| Refusal::field("host_id", error))?;
        let host = request.host.unwrap_or_default();
        let patch = HostPatch {
            labels: Some(host.labels),
            cordoned: Some(host.cordoned),
            firewall: host.firewall,
        };
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |host| fleet::CreateHostResponse { host: Some(host) },
        };
        Ok(Response::new(self.fleet.create_host(call, name, patch, answer).await?))
    }

    async fn get_host(
        &self,
        request: Request<fleet::GetHostRequest>,
    ) -> Result<Response<fleet::GetHostResponse>, Status> {
        let name = parse_host_name("name", &request.get_ref().name).map_err(Refusal::from)?;
        let (row, wanted) = self.fleet.store.read(|connection, _keys| {
            let row = hosts::load(connection, &name)?;
            Ok((row, migrations::names_on_host(connection, &name)?))
        })?;
        let now = self.fleet.clock.now();
        let host = crate::view::host(&row, &wanted, &self.fleet.registry, now);
        Ok(Response::new(fleet::GetHostResponse { host: Some(host) }))
    }

    async fn list_hosts(
        &self,
        request: Request<fleet::ListHostsRequest>,
    ) -> Result<Response<fleet::ListHostsResponse>, Status> {
        let request = request.into_inner();
        let page = Page::parse("hosts", request.page_size, &request.page_token)?;
        let (rows, next_page_token) = self
            .fleet
            .store
            .read_long(move |connection, _keys| {
                let (rows, token) = hosts::list(connection, &page)?;
                let with_wanted = rows.into_iter().map(|row| {
                    let wanted = migrations::names_on_host(connection, &row.name)?;
                    Ok((row, wanted))
                });
                Ok((with_wanted.collect::<Result<Vec<_>, Refusal>>()?, token))
            })
            .await?;
        let now = self.fleet.clock.now();
        let registry = &self.fleet.registry;
        let hosts = rows
            .iter()
            .map(|(row, wanted)| crate::view::host(row, wanted, registry, now))
            .collect();
        Ok(Response::new(fleet::ListHostsResponse { hosts, next_page_token }))
    }

    async fn update_host(
        &self,
        request: Request<fleet::UpdateHostRequest>,
    ) -> Result<Response<fleet::UpdateHostResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.HostService/UpdateHost",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let content = claw_proto::encode(&request);
        let call = self.call(&envelope, &caller, &content)?;
        let host = request.host.unwrap_or_default();
        let mut violations = Violations::default();
        let name = parse_host_name("host.name", &host.name);
        let name = name.map_err(|violation| violations.0.push(violation)).ok();
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        for path in paths.iter().filter(|path| !PATHS.contains(&path.as_str())) {
            let text = format!("unknown path {path:?}; known paths: {}", PATHS.join(", "));
            violations.push("update_mask", text);
        }
        let named = |path: &str| paths.is_empty() || paths.iter().any(|other| other == path);
        let patch = HostPatch {
            labels: named("labels").then_some(host.labels),
            cordoned: named("cordoned").then_some(host.cordoned),
            firewall: named("firewall").then(|| host.firewall.unwrap_or_default()),
        };
        violations.extend(patch.faults());
        let Some(name) = name.filter(|_name| violations.0.is_empty()) else {
            return Err(Refusal::Invalid(violations).into());
        };
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |host| fleet::UpdateHostResponse { host: Some(host) },
        };
        Ok(Response::new(self.fleet.update_host(call, name, host.etag, patch, answer).await?))
    }

    async fn delete_host(
        &self,
        request: Request<fleet::DeleteHostRequest>,
    ) -> Result<Response<fleet::DeleteHostResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.HostService/DeleteHost",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let content = claw_proto::encode(&request);
        let call = self.call(&envelope, &caller, &content)?;
        let name = parse_host_name("name", &request.name).map_err(Refusal::from)?;
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |_host| fleet::DeleteHostResponse {},
        };
        Ok(Response::new(self.fleet.delete_host(call, name, request.etag, answer).await?))
    }

    async fn revoke_host(
        &self,
        request: Request<fleet::RevokeHostRequest>,
    ) -> Result<Response<fleet::RevokeHostResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.HostService/RevokeHost",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let content = claw_proto::encode(&request);
        let call = self.call(&envelope, &caller, &content)?;
        let name = parse_host_name("name", &request.name).map_err(Refusal::from)?;
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |host| fleet::RevokeHostResponse { host: Some(host) },
        };
        Ok(Response::new(self.fleet.revoke_host(call, name, request.etag, answer).await?))
    }

    async fn list_host_events(
        &self,
        request: Request<fleet::ListHostEventsRequest>,
    ) -> Result<Response<fleet::ListHostEventsResponse>, Status> {
        let request = request.into_inner();
        let host = parse_host_name("host", &request.host).map_err(Refusal::from)?;
        let instance = if request.instance.is_empty() {
            None
        } else {
            Some(parse_instance_name("instance", &request.instance).map_err(Refusal::from)?)
        };
        let list = format!("events {host} {}", request.instance);
        let page = Page::parse(list, request.page_size, &request.page_token)?;
        let (rows, next_page_token) = self
            .fleet
            .store
            .read_long(move |connection, _keys| {
                hosts::load(connection, &host)?;
                events::list(connection, &host, instance.as_ref(), &page)
            })
            .await?;
        let events = rows.into_iter().map(|row| row.event).collect();
        Ok(Response::new(fleet::ListHostEventsResponse { events, next_page_token }))
    }

    async fn get_host_firewall(
        &self,
        request: Request<fleet::GetHostFirewallRequest>,
    ) -> Result<Response<fleet::GetHostFirewallResponse>, Status> {
        let name = parse_host_name("name", &request.get_ref().name).map_err(Refusal::from)?;
        let firewall = Some(self.fleet.host_firewall(&name).await?);
        Ok(Response::new(fleet::GetHostFirewallResponse { firewall }))
    }

    async fn set_host_offsite(
        &self,
        request: Request<fleet::SetHostOffsiteRequest>,
    ) -> Result<Response<fleet::SetHostOffsiteResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.HostService/SetHostOffsite",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let content = claw_proto::encode(&request);
        let call = self.call(&envelope, &caller, &content)?;
        let name = parse_host_name("name", &request.name).map_err(Refusal::from)?;
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |host| fleet::SetHostOffsiteResponse { host: Some(host) },
        };
        let set = self.fleet.set_host_offsite(call, name, request.etag, request.storage, answer);
        Ok(Response::new(set.await?))
    }
}

impl HostApi {
    fn call(
        &self,
        envelope: &Envelope<'_>,
        caller: &crate::auth::Caller,
        content: &[u8],
    ) -> Result<crate::store::mutation::Call, Refusal> {
        let secret = &self.fleet.store.keys().request_key;
        envelope.call(caller, content, &self.fleet.clock, secret)
    }
}
