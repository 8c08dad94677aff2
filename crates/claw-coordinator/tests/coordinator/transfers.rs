//! Archives on their way between callers and hosts.

use std::time::Duration;

use claw_identity::{ClientIdentity, Role};
use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::export_snapshot_response::Message as Exported;
use claw_proto::fleet::v1::import_snapshot_request::Message as Importing;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_proto::node::v1::node_service_client::NodeServiceClient;
use claw_proto::node::v1::transfer_request::Message as Up;
use claw_proto::node::v1::transfer_response::Message as Down;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::fixture::{Agent, Clients, Fleet, IMAGE, hello, reason, soon, until};
use crate::snapshots::{answer, in_state, listed, status};

const PIECE: usize = 64 * 1024;
const SNAPSHOT: &str = "instances/demo/snapshots/nightly";
const REQUEST_ID: &str = "7f1c9a52-30f4-4b9e-8d47-5d3a9a0e6b11";

/// An agent's end of a transfer.
pub(crate) struct TransferEnd {
    up: mpsc::Sender<node::TransferRequest>,
    down: Streaming<node::TransferResponse>,
}

impl TransferEnd {
    pub(crate) async fn open(channel: Channel, transfer: &str) -> Result<Self, Status> {
        let (up, stream) = mpsc::channel(1);
        let first = node::TransferRequest { message: Some(Up::Transfer(transfer.to_owned())) };
        up.send(first).await.unwrap();
        let mut client = NodeServiceClient::new(channel);
        let down = client.transfer(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Self { up, down })
    }

    pub(crate) async fn send(&self, message: Up) {
        // The coordinator may have ended it.
        let _sent = self.up.send(node::TransferRequest { message: Some(message) }).await;
    }

    pub(crate) async fn end(&self, problem: &str) {
        self.send(Up::End(node::TransferEnd { problem: problem.to_owned() })).await;
    }

    pub(crate) async fn next(&mut self) -> Result<Down, Status> {
        let message = soon(self.down.message()).await?;
        message.map(|message| message.message.unwrap()).ok_or_else(|| Status::ok("ended"))
    }

    /// Every piece up to the end.
    pub(crate) async fn drain(&mut self) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        loop {
            match self.next().await? {
                Down::Piece(piece) => all.extend(piece),
                Down::End(end) => {
                    assert_eq!(end.problem, "");
                    return Ok(all);
                }
            }
        }
    }
}

struct Demo {
    fleet: Fleet,
    identity: ClientIdentity,
    agent: Agent,
    operator: Clients,
}

/// A fleet with host `a`, its agent, and instance `demo` with a snapshot.
async fn demo() -> Demo {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let mut operator = fleet.operator().await;
    operator.create_instance("demo", "a").await.unwrap();
    agent.send(status("demo", vec![listed("nightly", 1, 2, IMAGE)])).await;
    in_state(&operator, "nightly", fleet::SnapshotState::Ready).await;
    Demo { fleet, identity, agent, operator }
}

impl Demo {
    async fn end_of(&self, transfer: &str) -> Result<TransferEnd, Status> {
        TransferEnd::open(self.fleet.channel_as(&self.identity).await, transfer).await
    }

    /// Begins an export; the caller's stream, and the agent's end.
    async fn export(&mut self) -> (Streaming<fleet::ExportSnapshotResponse>, TransferEnd) {
        let mut caller = self.operator.clone();
        let request = fleet::ExportSnapshotRequest { name: SNAPSHOT.to_owned() };
        let (stream, command) =
            tokio::join!(caller.snapshots.export_snapshot(request), answer(&mut self.agent, ""));
        let Command::ExportSnapshot(command) = command else { panic!("{command:?}") };
        assert_eq!((command.instance.as_str(), command.name.as_str()), ("demo", "nightly"));
        let end = self.end_of(&command.transfer).await.unwrap();
        (stream.unwrap().into_inner(), end)
    }

    /// Begins an import; the caller's pieces go into the sender, its answer comes from the task.
    async fn import(&mut self, id: &str) -> (mpsc::Sender<Importing>, Answered, TransferEnd) {
        let (pieces, answered) = import(&self.operator, header(id));
        let Command::ImportArchive(command) = answer(&mut self.agent, "").await else {
            panic!("another command");
        };
        assert_eq!((command.instance.as_str(), command.name.as_str()), ("demo", id));
        let end = self.end_of(&command.transfer).await.unwrap();
        (pieces, answered, end)
    }
}

type Answered = tokio::task::JoinHandle<Result<fleet::Snapshot, Status>>;

fn header(id: &str) -> fleet::ImportHeader {
    fleet::ImportHeader {
        parent: "instances/demo".to_owned(),
        snapshot_id: id.to_owned(),
        ..Default::default()
    }
}

fn import(clients: &Clients, header: fleet::ImportHeader) -> (mpsc::Sender<Importing>, Answered) {
    use tokio_stream::StreamExt as _;
    let (pieces, stream) = mpsc::channel(1);
    let first = tokio_stream::once(Importing::Header(header));
    let messages = first.chain(ReceiverStream::new(stream));
    let requests = messages.map(|message| fleet::ImportSnapshotRequest { message: Some(message) });
    let mut clients = clients.clone();
    let answered = tokio::spawn(async move {
        let answer = clients.snapshots.import_snapshot(requests).await?;
        Ok(answer.into_inner().snapshot.unwrap())
    });
    (pieces, answered)
}

async fn next(
    stream: &mut Streaming<fleet::ExportSnapshotResponse>,
) -> Result<Option<Exported>, Status> {
    Ok(soon(stream.message()).await?.map(|message| message.message.unwrap()))
}

async fn header_of(stream: &mut Streaming<fleet::ExportSnapshotResponse>) -> fleet::ExportHeader {
    match next(stream).await.unwrap() {
        Some(Exported::Header(header)) => header,
        other => panic!("instead of a header: {other:?}"),
    }
}

async fn none_open(fleet: &Fleet) {
    let transfers = fleet.coordinator.fleet().transfers.clone();
    until(|| async { (transfers.open_count() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn an_archive_reaches_its_caller_whole() {
    let mut demo = demo().await;
    let (mut stream, mut end) = demo.export().await;
    let header = header_of(&mut stream).await;
    assert_eq!((header.name.as_str(), header.size_estimate), (SNAPSHOT, 4096));
    let sending = async {
        for number in 0..40_u8 {
            end.send(Up::Piece(vec![number; PIECE])).await;
        }
        end.end("").await;
    };
    let reading = async {
        let mut all = Vec::new();
        while let Some(message) = next(&mut stream).await.unwrap() {
            let Exported::Piece(piece) = message else { panic!("{message:?}") };
            all.extend(piece);
        }
        all
    };
    let ((), all) = tokio::join!(sending, reading);
    let expected: Vec<u8> = (0..40_u8).flat_map(|number| vec![number; PIECE]).collect();
    assert!(all == expected, "{} bytes", all.len());
    assert_eq!(end.next().await.unwrap(), Down::End(node::TransferEnd::default()));
    none_open(&demo.fleet).await;
    let audit = demo.operator.audit(SNAPSHOT).await;
    assert_eq!(audit[0].summary, "exported as an archive");
    assert_eq!(audit[0].principal, "operator/alice");
}

#[tokio::test]
async fn a_slow_reader_holds_its_host_back() {
    let mut demo = demo().await;
    let (mut stream, end) = demo.export().await;
    header_of(&mut stream).await;
    let most = 200;
    let mut sent = 0;
    // As much as lies in buffers on the way, and no more: 2 MiB of it is what this caller's HTTP/2 takes
    // unread, the rest is the hub's and the connections'.
    while sent < most {
        let send = end.send(Up::Piece(vec![7; PIECE]));
        if tokio::time::timeout(Duration::from_secs(3), send).await.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 32 + 16, "{sent} pieces went without a reader");
    let reading = async {
        let mut bytes = 0;
        while let Some(Exported::Piece(piece)) = next(&mut stream).await.unwrap() {
            bytes += piece.len();
        }
        bytes
    };
    let rest = async {
        // The one that waited was taken back with its deadline.
        end.end("").await;
    };
    let (bytes, ()) = tokio::join!(reading, rest);
    assert_eq!(bytes, sent * PIECE);
}

#[tokio::test]
async fn each_end_hears_that_the_other_gave_up() {
    let mut demo = demo().await;
    let (mut stream, end) = demo.export().await;
    header_of(&mut stream).await;
    end.end("the repository is damaged").await;
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Aborted, "BROKEN_OFF"));
    assert_eq!(status.message(), "the other end gave up: the repository is damaged");

    let (mut stream, end) = demo.export().await;
    header_of(&mut stream).await;
    drop(end);
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "the other end went away"));

    let (stream, mut end) = demo.export().await;
    drop(stream);
    let status = end.drain().await.map(|_all| ()).err();
    let status = match status {
        Some(status) => status,
        // Its own half was complete from the beginning; what it sends is refused.
        None => end.next().await.unwrap_err(),
    };
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert_eq!(status.message(), "the other end gave up: the caller went away");
    none_open(&demo.fleet).await;
}

#[tokio::test]
async fn an_archive_becomes_a_snapshot() {
    let mut demo = demo().await;
    let (pieces, answered, mut end) = demo.import("brought").await;
    let sending = async {
        for number in 0..20_u8 {
            pieces.send(Importing::Piece(vec![number; PIECE])).await.unwrap();
        }
        drop(pieces);
    };
    let (all, ()) = tokio::join!(end.drain(), sending);
    assert_eq!(all.unwrap().len(), 20 * PIECE);
    in_state(&demo.operator, "brought", fleet::SnapshotState::Taking).await;
    let imported = node::SnapshotInfo {
        cause: node::SnapshotCause::Import.into(),
        ..listed("brought", 2, 2, IMAGE)
    };
    demo.agent.send(status("demo", vec![listed("nightly", 1, 2, IMAGE), imported])).await;
    end.end("").await;
    let snapshot = soon(answered).await.unwrap().unwrap();
    assert_eq!(snapshot.state(), fleet::SnapshotState::Ready);
    assert_eq!(snapshot.cause(), node::SnapshotCause::Import);
    let audit = demo.operator.audit("instances/demo/snapshots/brought").await;
    assert_eq!(audit[0].summary, "imported from an archive");
    none_open(&demo.fleet).await;
}

#[tokio::test]
async fn an_import_that_fails_says_why() {
    let mut demo = demo().await;
    let (pieces, answered, end) = demo.import("no-archive").await;
    pieces.send(Importing::Piece(vec![1; 100])).await.unwrap();
    end.end("this is no archive").await;
    let status = soon(answered).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    let failed = in_state(&demo.operator, "no-archive", fleet::SnapshotState::Failed).await;
    assert_eq!(failed.problem, "the other end gave up: this is no archive");

    // A caller that goes leaves nothing open, and the host hears of it.
    let (pieces, answered, mut end) = demo.import("half").await;
    pieces.send(Importing::Piece(vec![1; 100])).await.unwrap();
    assert!(matches!(end.next().await.unwrap(), Down::Piece(_)));
    answered.abort();
    assert!(answered.await.unwrap_err().is_cancelled());
    drop(pieces);
    let status = end.drain().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    let failed = in_state(&demo.operator, "half", fleet::SnapshotState::Failed).await;
    assert_eq!(failed.problem, "the caller went away before the archive's end");

    let (pieces, answered, _end) = demo.import("large").await;
    assert_eq!(demo.fleet.coordinator.fleet().transfers.open_count(), 1);
    pieces.send(Importing::Piece(vec![1; PIECE + 1])).await.unwrap();
    let status = soon(answered).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    none_open(&demo.fleet).await;
}

#[tokio::test]
async fn imports_are_checked_before_anything_moves() {
    let mut demo = demo().await;
    let exists = import(&demo.operator, header("nightly")).1.await.unwrap().unwrap_err();
    assert_eq!(exists.code(), Code::AlreadyExists);
    let (_pieces, answered) = import(&demo.operator, header("Bad Name"));
    assert_eq!(answered.await.unwrap().unwrap_err().code(), Code::InvalidArgument);
    let check = fleet::ImportHeader { validate_only: true, ..header("later") };
    let (_pieces, answered) = import(&demo.operator, check);
    assert_eq!(answered.await.unwrap().unwrap().state(), fleet::SnapshotState::Taking);
    let none = demo.operator.list_snapshots("demo").await.unwrap().snapshots;
    assert_eq!(none.len(), 1, "nothing was changed");
    let (pieces, stream) = mpsc::channel(1);
    pieces
        .send(fleet::ImportSnapshotRequest { message: Some(Importing::Piece(vec![1])) })
        .await
        .unwrap();
    let headless = demo.operator.snapshots.import_snapshot(ReceiverStream::new(stream));
    assert_eq!(soon(headless).await.unwrap_err().code(), Code::InvalidArgument);

    // The same request again is answered without asking.
    let with_id = fleet::ImportHeader { request_id: REQUEST_ID.to_owned(), ..header("once") };
    let (pieces, answered) = import(&demo.operator, with_id.clone());
    let Command::ImportArchive(command) = answer(&mut demo.agent, "").await else { panic!() };
    let mut end = demo.end_of(&command.transfer).await.unwrap();
    drop(pieces);
    assert_eq!(end.drain().await.unwrap(), Vec::<u8>::new());
    let both = vec![listed("nightly", 1, 2, IMAGE), listed("once", 2, 2, IMAGE)];
    demo.agent.send(status("demo", both)).await;
    end.end("").await;
    let first = soon(answered).await.unwrap().unwrap();
    let (_pieces, answered) = import(&demo.operator, with_id);
    assert_eq!(soon(answered).await.unwrap().unwrap(), first);
}

#[tokio::test]
async fn nobody_else_comes_in() {
    let mut demo = demo().await;
    let foreign = demo.fleet.join("b").await;
    let (mut stream, command) = {
        let mut caller = demo.operator.clone();
        let request = fleet::ExportSnapshotRequest { name: SNAPSHOT.to_owned() };
        let asked = answer(&mut demo.agent, "");
        let (stream, command) = tokio::join!(caller.snapshots.export_snapshot(request), asked);
        let Command::ExportSnapshot(command) = command else { panic!("{command:?}") };
        (stream.unwrap().into_inner(), command)
    };
    header_of(&mut stream).await;
    let channel = demo.fleet.channel_as(&foreign).await;
    for (channel, transfer) in [
        (channel, command.transfer.as_str()),
        (demo.fleet.channel_as(&demo.identity).await, "another"),
    ] {
        let mut end = TransferEnd::open(channel, transfer).await.unwrap();
        assert_eq!(end.next().await.unwrap_err().code(), Code::NotFound);
    }
    let end = demo.end_of(&command.transfer).await.unwrap();
    let mut again = demo.end_of(&command.transfer).await.unwrap();
    assert_eq!(again.next().await.unwrap_err().code(), Code::NotFound, "once");
    end.send(Up::Piece(vec![1; PIECE + 1])).await;
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "a piece above the bound ends it");

    let operator = demo.fleet.channel(Role::Operator, "alice").await;
    let refused = TransferEnd::open(operator, "x").await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut viewer = Clients::new(demo.fleet.channel(Role::Viewer, "vera").await);
    let request = fleet::ExportSnapshotRequest { name: SNAPSHOT.to_owned() };
    let refused = viewer.snapshots.export_snapshot(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = import(&viewer, header("x")).1.await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn an_agent_may_refuse_and_a_shutdown_is_told() {
    let mut demo = demo().await;
    let mut caller = demo.operator.clone();
    let request = || fleet::ExportSnapshotRequest { name: SNAPSHOT.to_owned() };
    let (refused, _command) = tokio::join!(
        caller.snapshots.export_snapshot(request()),
        answer(&mut demo.agent, "busy with another one")
    );
    let refused = refused.unwrap_err();
    assert_eq!(reason(&refused), "COMMAND_FAILED");
    none_open(&demo.fleet).await;
    let absent = fleet::ExportSnapshotRequest { name: "instances/demo/snapshots/x".to_owned() };
    let absent = demo.operator.snapshots.export_snapshot(absent).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);

    let (mut stream, mut end) = demo.export().await;
    header_of(&mut stream).await;
    let told = async {
        let told = next(&mut stream).await.unwrap_err();
        assert_eq!(told.code(), Code::Unavailable);
        // Its own half was complete from the beginning.
        let told = match end.next().await {
            Ok(_end) => end.next().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!(told.code(), Code::Unavailable);
    };
    tokio::join!(demo.fleet.coordinator.shutdown(), told);
}
