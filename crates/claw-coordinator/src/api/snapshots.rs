//! `claw.fleet.v1.SnapshotService`.

use claw_core::name::SnapshotName;
use claw_proto::convert::name::{parse_instance_name, parse_snapshot_name};
use claw_proto::convert::violation::Violations;
use claw_proto::fleet::v1::snapshot_service_server::SnapshotService;
use claw_proto::fleet::v1::{self as fleet};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Envelope, archive, caller_of};
use crate::auth::Caller;
use crate::fleet::Fleet;
use crate::fleet::snapshots::{Answer, Depth, one};
use crate::page::Page;
use crate::refusal::{Fault, Refusal};
use crate::store::mutation::{Call, Codec};
use crate::store::{revisions, snapshots};
use crate::view;

/// The service.
#[derive(Debug, Clone)]
pub struct SnapshotApi {
    /// What it serves.
    pub fleet: Fleet,
}

#[tonic::async_trait]
impl SnapshotService for SnapshotApi {
    async fn create_snapshot(
        &self,
        request: Request<fleet::CreateSnapshotRequest>,
    ) -> Result<Response<fleet::CreateSnapshotResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.SnapshotService/CreateSnapshot",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let mut violations = Violations::default();
        let parent = parse_instance_name("parent", &request.parent);
        let parent = parent.map_err(|violation| violations.0.push(violation)).ok();
        let name = violations.take("snapshot_id", SnapshotName::parse(&request.snapshot_id));
        let (Some(parent), Some(name)) = (parent, name) else {
            return Err(Refusal::Invalid(violations).into());
        };
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |snapshot| fleet::CreateSnapshotResponse { snapshot: Some(snapshot) },
        };
        Ok(Response::new(self.fleet.create_snapshot(call, parent, name, answer).await?))
    }

    async fn get_snapshot(
        &self,
        request: Request<fleet::GetSnapshotRequest>,
    ) -> Result<Response<fleet::GetSnapshotResponse>, Status> {
        let request = request.into_inner();
        let (instance, name) = parse_snapshot_name("name", &request.name).map_err(Refusal::from)?;
        let now = self.fleet.clock.now();
        let snapshot = self.fleet.store.read(|connection, _keys| {
            let row = snapshots::resolve(connection, &instance, &request.instance_uid)?;
            one(connection, &row, &name, now)
        })?;
        Ok(Response::new(fleet::GetSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn list_snapshots(
        &self,
        request: Request<fleet::ListSnapshotsRequest>,
    ) -> Result<Response<fleet::ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let parent = parse_instance_name("parent", &request.parent).map_err(Refusal::from)?;
        let list = format!("snapshots {parent} {}", request.instance_uid);
        let page = Page::parse(list, request.page_size, &request.page_token)?;
        let now = self.fleet.clock.now();
        let query = move |connection: &_, _keys: &_| {
            let row = snapshots::resolve(connection, &parent, &request.instance_uid)?;
            let (rows, next_page_token) = snapshots::list(connection, &row.uid, &page)?;
            let history = revisions::history(connection, &row.uid)?;
            let shown = rows.iter().map(|one| view::snapshots::snapshot(one, &row, &history, now));
            Ok(fleet::ListSnapshotsResponse {
                snapshots: shown.collect(),
                next_page_token,
                repository: Some(view::snapshots::repository(&row)),
            })
        };
        Ok(Response::new(self.fleet.store.read_long(query).await?))
    }

    async fn delete_snapshot(
        &self,
        request: Request<fleet::DeleteSnapshotRequest>,
    ) -> Result<Response<fleet::DeleteSnapshotResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.SnapshotService/DeleteSnapshot",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let (instance, name) = parse_snapshot_name("name", &request.name).map_err(Refusal::from)?;
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |snapshot| fleet::DeleteSnapshotResponse { snapshot: Some(snapshot) },
        };
        Ok(Response::new(self.fleet.delete_snapshot(call, instance, name, answer).await?))
    }

    async fn verify_snapshots(
        &self,
        request: Request<fleet::VerifySnapshotsRequest>,
    ) -> Result<Response<fleet::VerifySnapshotsResponse>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.SnapshotService/VerifySnapshots",
            validate_only: request.validate_only,
            request_id: &request.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&request))?;
        let parent = parse_instance_name("parent", &request.parent).map_err(Refusal::from)?;
        let depth = match fleet::VerifyDepth::try_from(request.depth) {
            Ok(fleet::VerifyDepth::Unspecified | fleet::VerifyDepth::Structure) => Depth::Structure,
            Ok(fleet::VerifyDepth::Data) => Depth::Data,
            Err(_) => {
                let text = format!("unknown value {}", request.depth);
                return Err(Refusal::field("depth", text).into());
            }
        };
        let answer = Answer {
            codec: Codec { encode: claw_proto::encode, decode: claw_proto::decode },
            make: |repository| fleet::VerifySnapshotsResponse { repository: Some(repository) },
        };
        Ok(Response::new(self.fleet.verify_snapshots(call, parent, depth, answer).await?))
    }

    type ExportSnapshotStream = ReceiverStream<Result<fleet::ExportSnapshotResponse, Status>>;

    async fn export_snapshot(
        &self,
        request: Request<fleet::ExportSnapshotRequest>,
    ) -> Result<Response<Self::ExportSnapshotStream>, Status> {
        let caller = caller_of(&request)?;
        let request = request.into_inner();
        let envelope = Envelope {
            method: "claw.fleet.v1.SnapshotService/ExportSnapshot",
            validate_only: false,
            request_id: "",
        };
        let call = self.call(&envelope, &caller, &[])?;
        let (instance, name) = parse_snapshot_name("name", &request.name).map_err(Refusal::from)?;
        let export = self.fleet.export_snapshot(call, instance, name).await?;
        Ok(Response::new(archive::send(export)))
    }

    async fn import_snapshot(
        &self,
        request: Request<Streaming<fleet::ImportSnapshotRequest>>,
    ) -> Result<Response<fleet::ImportSnapshotResponse>, Status> {
        let caller = caller_of(&request)?;
        let mut inbound = request.into_inner();
        let header = archive::header(&mut inbound).await?;
        let envelope = Envelope {
            method: "claw.fleet.v1.SnapshotService/ImportSnapshot",
            validate_only: header.validate_only,
            request_id: &header.request_id,
        };
        let call = self.call(&envelope, &caller, &claw_proto::encode(&header))?;
        let mut violations = Violations::default();
        let parent = parse_instance_name("header.parent", &header.parent);
        let parent = parent.map_err(|violation| violations.0.push(violation)).ok();
        let name = violations.take("header.snapshot_id", SnapshotName::parse(&header.snapshot_id));
        let (Some(parent), Some(name)) = (parent, name) else {
            return Err(Refusal::Invalid(violations).into());
        };
        // To its end also when the caller goes: the host hears of it, and the snapshot says why it failed.
        let (words, heard) = mpsc::channel(1);
        let taking = archive::take(self.fleet.clone(), call, parent, name, heard);
        let importing = tokio::spawn(taking);
        archive::hear(inbound, words).await;
        let response = importing.await.map_err(|lost| Refusal::from(Fault::Task(lost)))??;
        Ok(Response::new(response))
    }
}

impl SnapshotApi {
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
