//! Snapshots as the fake has them: what a test says, in the order in which it says it.

use std::collections::VecDeque;

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::export_snapshot_response::Message;
use claw_proto::fleet::v1::import_snapshot_request::Message as Given;
use claw_proto::fleet::v1::snapshot_service_server::SnapshotService;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::services::{Services, absent, page};

type Answer<T> = Result<Response<T>, Status>;

/// The next of several answers; the last one stays.
fn next<T: Clone>(answers: &mut VecDeque<T>) -> Option<T> {
    if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }
}

#[tonic::async_trait]
impl SnapshotService for Services {
    async fn create_snapshot(
        &self,
        request: Request<fleet::CreateSnapshotRequest>,
    ) -> Answer<fleet::CreateSnapshotResponse> {
        let request = request.into_inner();
        let name = format!("{}/snapshots/{}", request.parent, request.snapshot_id);
        self.state().enter(format!("create {name}"), Some(&request.request_id))?;
        let state = fleet::SnapshotState::Taking.into();
        let snapshot = fleet::Snapshot { name, state, ..fleet::Snapshot::default() };
        Ok(Response::new(fleet::CreateSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn get_snapshot(
        &self,
        request: Request<fleet::GetSnapshotRequest>,
    ) -> Answer<fleet::GetSnapshotResponse> {
        let fleet::GetSnapshotRequest { name, instance_uid } = request.into_inner();
        let mut state = self.state();
        state.enter(format!("get {name} {instance_uid}").trim_end().to_owned(), None)?;
        let snapshot = state.snapshots.get_mut(&name).and_then(next);
        let snapshot = snapshot.ok_or_else(|| absent(&name))?;
        Ok(Response::new(fleet::GetSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn list_snapshots(
        &self,
        request: Request<fleet::ListSnapshotsRequest>,
    ) -> Answer<fleet::ListSnapshotsResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        let uid = &request.instance_uid;
        state
            .enter(format!("snapshots of {} {uid}", request.parent).trim_end().to_owned(), None)?;
        let listing = if request.page_token.is_empty() {
            next(&mut state.listings)
        } else {
            state.listings.front().cloned()
        };
        let mut listing = listing.ok_or_else(|| absent(&request.parent))?;
        let all = std::mem::take(&mut listing.snapshots);
        (listing.snapshots, listing.next_page_token) = page(all, &request.page_token);
        Ok(Response::new(listing))
    }

    async fn delete_snapshot(
        &self,
        request: Request<fleet::DeleteSnapshotRequest>,
    ) -> Answer<fleet::DeleteSnapshotResponse> {
        let request = request.into_inner();
        let mut state = self.state();
        state.enter(format!("delete {}", request.name), Some(&request.request_id))?;
        let known = state.snapshots.remove(&request.name).and_then(|mut all| all.pop_front());
        let mut snapshot = known.ok_or_else(|| absent(&request.name))?;
        snapshot.set_state(fleet::SnapshotState::Deleting);
        Ok(Response::new(fleet::DeleteSnapshotResponse { snapshot: Some(snapshot) }))
    }

    async fn verify_snapshots(
        &self,
        request: Request<fleet::VerifySnapshotsRequest>,
    ) -> Answer<fleet::VerifySnapshotsResponse> {
        let request = request.into_inner();
        let call = format!("verify {} {:?}", request.parent, request.depth());
        self.state().enter(call, Some(&request.request_id))?;
        let repository = Some(fleet::SnapshotRepository::default());
        Ok(Response::new(fleet::VerifySnapshotsResponse { repository }))
    }

    type ExportSnapshotStream = BoxStream<'static, Result<fleet::ExportSnapshotResponse, Status>>;

    async fn export_snapshot(
        &self,
        request: Request<fleet::ExportSnapshotRequest>,
    ) -> Answer<Self::ExportSnapshotStream> {
        let name = request.into_inner().name;
        let mut state = self.state();
        state.enter(format!("export {name}"), None)?;
        let pieces = state.archives.get(&name).cloned().ok_or_else(|| absent(&name))?;
        let header = Message::Header(fleet::ExportHeader { name, size_estimate: 2 << 20 });
        let messages = std::iter::once(Ok(header))
            .chain(pieces.into_iter().map(|piece| piece.map(Message::Piece)))
            .map(|message| message.map(|m| fleet::ExportSnapshotResponse { message: Some(m) }));
        let messages: Vec<_> = messages.collect();
        Ok(Response::new(futures_util::stream::iter(messages).boxed()))
    }

    async fn import_snapshot(
        &self,
        request: Request<Streaming<fleet::ImportSnapshotRequest>>,
    ) -> Answer<fleet::ImportSnapshotResponse> {
        let mut stream = request.into_inner();
        let (mut header, mut pieces) = (fleet::ImportHeader::default(), Vec::new());
        while let Some(request) = stream.message().await? {
            match request.message {
                Some(Given::Header(first)) => header = first,
                Some(Given::Piece(piece)) => pieces.push(Ok(piece)),
                None => return Err(Status::invalid_argument("nothing")),
            }
        }
        let name = format!("{}/snapshots/{}", header.parent, header.snapshot_id);
        let mut state = self.state();
        state.enter(format!("import {name}"), Some(&header.request_id))?;
        state.archives.insert(name.clone(), pieces);
        let state = fleet::SnapshotState::Ready.into();
        let snapshot = fleet::Snapshot { name, state, ..fleet::Snapshot::default() };
        Ok(Response::new(fleet::ImportSnapshotResponse { snapshot: Some(snapshot) }))
    }
}
