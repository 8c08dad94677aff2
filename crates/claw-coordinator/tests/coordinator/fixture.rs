//! A fleet in a temporary directory, clients of every role, and an agent that can be scripted.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use claw_coordinator::clock::Clock;
use claw_coordinator::config::{Config, RawConfig};
use claw_coordinator::init::{self, Init};
use claw_coordinator::server::{AUTHORITY, Coordinator};
use claw_identity::{
    CertificateAuthority, ClientIdentity, HostKey, IssueRequest, JoinToken, PeerIdentity, Role,
    Subject, Tls, TrustDomain,
};
use claw_proto::fleet::v1::audit_service_client::AuditServiceClient;
use claw_proto::fleet::v1::host_service_client::HostServiceClient;
use claw_proto::fleet::v1::instance_service_client::InstanceServiceClient;
use claw_proto::fleet::v1::join_token_service_client::JoinTokenServiceClient;
use claw_proto::fleet::v1::snapshot_service_client::SnapshotServiceClient;
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::enrolment_service_client::EnrolmentServiceClient;
use claw_proto::node::v1::node_service_client::NodeServiceClient;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::{self as node};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_types::StatusExt as _;

pub(crate) const TRUST_DOMAIN: &str = "fleet.test";
/// Nothing here takes that long, except on a machine that is hopelessly overloaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const IMAGE: &str = "registry.example/gateway:1";

/// Waits for something that must happen.
#[track_caller]
pub(crate) fn soon<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let place = std::panic::Location::caller();
    async move {
        tokio::time::timeout(PATIENCE, future)
            .await
            .unwrap_or_else(|_elapsed| panic!("did not happen in time: {place}"))
    }
}

/// Asks again until the answer is there.
#[track_caller]
pub(crate) fn until<T, F: Future<Output = Option<T>>>(
    mut ask: impl FnMut() -> F,
) -> impl Future<Output = T> {
    soon(async move {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}

/// `ErrorInfo.reason` of a status.
#[track_caller]
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    info.reason.clone()
}

/// The fields that a status names.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let bad = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
    bad.into_iter().map(|violation| violation.field).collect()
}

/// A fleet with a running coordinator.
pub(crate) struct Fleet {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    pub(crate) authority: CertificateAuthority,
    pub(crate) clock: ShiftedClock,
    pub(crate) coordinator: Coordinator,
}

/// The system's clock, moved forward at will.
#[derive(Clone, Default)]
pub(crate) struct ShiftedClock(Arc<AtomicU64>);

impl ShiftedClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::SeqCst);
    }

    pub(crate) fn clock(&self) -> Clock {
        let system = Clock::system();
        let shift = Arc::clone(&self.0);
        Clock::from_fn(move || {
            system.system_time() + Duration::from_secs(shift.load(Ordering::SeqCst))
        })
    }
}

impl Fleet {
    pub(crate) async fn start() -> Self {
        Self::start_with(|_config| {}).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let clock = ShiftedClock::default();
        init_fleet(&data_dir, &clock.clock());
        let mut config = Config::try_from(RawConfig::default()).unwrap();
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.data_dir = data_dir;
        config.terms.retry_after = Duration::from_secs(1);
        config.drain = Duration::from_secs(5);
        change(&mut config);
        let authority = CertificateAuthority::load(&config.data_dir.join(AUTHORITY)).unwrap();
        let coordinator = Coordinator::start(config.clone(), clock.clock()).await.unwrap();
        Self { dir, config, authority, clock, coordinator }
    }

    /// Stops and starts the coordinator; `between` may touch the data directory.
    pub(crate) async fn restart(self, between: impl FnOnce(&Path)) -> Self {
        let Self { dir, config, authority, clock, coordinator } = self;
        coordinator.shutdown().await;
        between(&config.data_dir);
        let coordinator = Coordinator::start(config.clone(), clock.clock()).await.unwrap();
        Self { dir, config, authority, clock, coordinator }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.coordinator.address()
    }

    /// Credentials from the fleet's own authority.
    pub(crate) fn identity(&self, role: Role, name: &str) -> ClientIdentity {
        identity_from(&self.authority, role, name, Duration::from_secs(3600))
    }

    pub(crate) async fn channel(&self, role: Role, name: &str) -> Channel {
        self.channel_as(&self.identity(role, name)).await
    }

    pub(crate) async fn channel_as(&self, identity: &ClientIdentity) -> Channel {
        connect(self.address(), client_tls(identity)).await.unwrap()
    }

    pub(crate) async fn operator(&self) -> Clients {
        Clients::new(self.channel(Role::Operator, "alice").await)
    }

    /// Without a certificate, as a host that wants to join.
    pub(crate) async fn stranger(&self) -> Channel {
        let pin = self.authority.spki_pin();
        let config = tls().enrolment_client(pin).unwrap();
        connect(self.address(), config).await.unwrap()
    }

    /// Registers a host and joins it.
    pub(crate) async fn join(&self, host: &str) -> ClientIdentity {
        let mut operator = self.operator().await;
        operator.create_host(host).await.unwrap();
        let token = operator.join_token(host).await.unwrap();
        let mut enrolment = EnrolmentServiceClient::new(self.stranger().await);
        let key = HostKey::generate().unwrap();
        let request = enrol_request(&token, host, &key);
        let answer = enrolment.enrol(request).await.unwrap().into_inner();
        let (chain, bundle) = (answer.certificate_chain_pem, answer.ca_bundle_pem);
        ClientIdentity::from_pem(Arc::new(key), &chain, &bundle).unwrap()
    }

    /// Joins a host and opens its session.
    pub(crate) async fn agent(&self, host: &str) -> Agent {
        let identity = self.join(host).await;
        Agent::connect(self, &identity, hello(host, "boot-1")).await
    }
}

pub(crate) fn init_fleet(data_dir: &Path, clock: &Clock) {
    let request = Init {
        data_dir: data_dir.to_owned(),
        names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        trust_domain: TrustDomain::parse(TRUST_DOMAIN).unwrap(),
    };
    init::init(&request, clock).unwrap();
}

pub(crate) fn identity_from(
    authority: &CertificateAuthority,
    role: Role,
    name: &str,
    lifetime: Duration,
) -> ClientIdentity {
    let key = HostKey::generate().unwrap();
    let request = IssueRequest {
        subject: Subject::Client(PeerIdentity::new(role, name).unwrap()),
        not_before: Clock::system().system_time() - Duration::from_secs(60),
        lifetime: lifetime + Duration::from_secs(60),
    };
    let csr = key.csr().unwrap();
    let issued = authority.issue_from_csr(&csr, &request, &mut rand::rng()).unwrap();
    let bundle = authority.bundle().unwrap();
    ClientIdentity::new(Arc::new(key), vec![issued.certificate], bundle).unwrap()
}

pub(crate) fn tls() -> Tls {
    Tls::new(claw_identity::provider::aws_lc_rs())
}

pub(crate) fn client_tls(identity: &ClientIdentity) -> ClientConfig {
    tls().client(identity).unwrap()
}

/// A finished handshake.
pub(crate) async fn handshake(
    address: SocketAddr,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

pub(crate) async fn connect(
    address: SocketAddr,
    config: ClientConfig,
) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_uri| {
        let config = config.clone();
        async move { handshake(address, config).await.map(TokioIo::new) }
    });
    Endpoint::from_static("https://localhost").connect_with_connector(connector).await
}

pub(crate) fn enrol_request(token: &str, host: &str, key: &HostKey) -> node::EnrolRequest {
    let parsed = JoinToken::parse(token).unwrap();
    let secret = token.split('.').nth(2).unwrap();
    node::EnrolRequest {
        token_id: parsed.id().to_string(),
        token_secret: {
            use base64::Engine as _;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(secret).unwrap()
        },
        csr_der: key.csr().unwrap().der().to_vec(),
        host: host.to_owned(),
    }
}

/// Clients of the whole API over one connection.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) hosts: HostServiceClient<Channel>,
    pub(crate) instances: InstanceServiceClient<Channel>,
    pub(crate) snapshots: SnapshotServiceClient<Channel>,
    pub(crate) tokens: JoinTokenServiceClient<Channel>,
    pub(crate) audit: AuditServiceClient<Channel>,
}

impl Clients {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            hosts: HostServiceClient::new(channel.clone()),
            instances: InstanceServiceClient::new(channel.clone()),
            snapshots: SnapshotServiceClient::new(channel.clone()),
            tokens: JoinTokenServiceClient::new(channel.clone()),
            audit: AuditServiceClient::new(channel),
        }
    }

    pub(crate) async fn create_host(&mut self, host: &str) -> Result<fleet::Host, Status> {
        let request = fleet::CreateHostRequest { host_id: host.to_owned(), ..Default::default() };
        Ok(self.hosts.create_host(request).await?.into_inner().host.unwrap())
    }

    pub(crate) async fn host(&mut self, host: &str) -> Result<fleet::Host, Status> {
        let request = fleet::GetHostRequest { name: format!("hosts/{host}") };
        Ok(self.hosts.get_host(request).await?.into_inner().host.unwrap())
    }

    pub(crate) async fn join_token(&mut self, host: &str) -> Result<String, Status> {
        let host = format!("hosts/{host}");
        let request = fleet::CreateJoinTokenRequest { host, ..Default::default() };
        Ok(self.tokens.create_join_token(request).await?.into_inner().token)
    }

    pub(crate) async fn create_instance(
        &mut self,
        name: &str,
        host: &str,
    ) -> Result<fleet::Instance, Status> {
        let created = self.instances.create_instance(create_request(name, host)).await?;
        Ok(created.into_inner().instance.unwrap())
    }

    pub(crate) async fn instance(&mut self, name: &str) -> Result<fleet::Instance, Status> {
        let request = fleet::GetInstanceRequest { name: format!("instances/{name}") };
        Ok(self.instances.get_instance(request).await?.into_inner().instance.unwrap())
    }

    pub(crate) async fn delete_instance(&mut self, name: &str) -> Result<fleet::Instance, Status> {
        let name = format!("instances/{name}");
        let request = fleet::DeleteInstanceRequest { name, ..Default::default() };
        Ok(self.instances.delete_instance(request).await?.into_inner().instance.unwrap())
    }

    pub(crate) async fn revisions(&mut self, name: &str) -> Vec<fleet::InstanceRevision> {
        let name = format!("instances/{name}");
        let request =
            fleet::ListInstanceRevisionsRequest { name, page_size: 1000, ..Default::default() };
        self.instances.list_instance_revisions(request).await.unwrap().into_inner().revisions
    }

    pub(crate) async fn list_snapshots(
        &mut self,
        name: &str,
    ) -> Result<fleet::ListSnapshotsResponse, Status> {
        let parent = format!("instances/{name}");
        let request = fleet::ListSnapshotsRequest { parent, ..Default::default() };
        Ok(self.snapshots.list_snapshots(request).await?.into_inner())
    }

    pub(crate) async fn audit(&mut self, resource: &str) -> Vec<fleet::AuditEntry> {
        let resource = resource.to_owned();
        let request = fleet::ListAuditEntriesRequest { resource, ..Default::default() };
        self.audit.list_audit_entries(request).await.unwrap().into_inner().audit_entries
    }

    pub(crate) async fn events(&mut self, host: &str) -> Vec<node::Event> {
        let host = format!("hosts/{host}");
        let request = fleet::ListHostEventsRequest { host, page_size: 1000, ..Default::default() };
        self.hosts.list_host_events(request).await.unwrap().into_inner().events
    }
}

pub(crate) fn create_request(name: &str, host: &str) -> fleet::CreateInstanceRequest {
    fleet::CreateInstanceRequest {
        instance_id: name.to_owned(),
        instance: Some(fleet::Instance {
            host: format!("hosts/{host}"),
            spec: Some(spec()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn spec() -> fleet::InstanceSpec {
    fleet::InstanceSpec {
        image: IMAGE.to_owned(),
        tier: "balanced".to_owned(),
        ..Default::default()
    }
}

pub(crate) fn hello(host: &str, boot: &str) -> node::Hello {
    node::Hello {
        host: host.to_owned(),
        boot_id: boot.to_owned(),
        agent_version: "test".to_owned(),
        protocol_version: 1,
        oldest_event: 1,
        next_event: 1,
        ..Default::default()
    }
}

/// One side of a session, scripted.
pub(crate) struct Agent {
    up: mpsc::Sender<node::SessionRequest>,
    down: Streaming<node::SessionResponse>,
    pub(crate) welcome: node::Welcome,
}

impl Agent {
    /// Connects, greets, and waits for the welcome.
    pub(crate) async fn connect(
        fleet: &Fleet,
        identity: &ClientIdentity,
        hello: node::Hello,
    ) -> Self {
        Self::try_connect(fleet, identity, hello).await.unwrap()
    }

    pub(crate) async fn try_connect(
        fleet: &Fleet,
        identity: &ClientIdentity,
        hello: node::Hello,
    ) -> Result<Self, Status> {
        let channel = fleet.channel_as(identity).await;
        Self::over(channel, Up::Hello(hello)).await
    }

    pub(crate) async fn over(channel: Channel, first: Up) -> Result<Self, Status> {
        let (up, stream) = mpsc::channel(16);
        up.send(node::SessionRequest { message: Some(first) }).await.unwrap();
        let mut client =
            NodeServiceClient::new(channel).max_decoding_message_size(16 * 1024 * 1024);
        let mut down = client.session(ReceiverStream::new(stream)).await?.into_inner();
        match soon(down.message()).await? {
            Some(node::SessionResponse { message: Some(Down::Welcome(welcome)) }) => {
                Ok(Self { up, down, welcome })
            }
            other => panic!("instead of a welcome: {other:?}"),
        }
    }

    pub(crate) async fn send(&self, message: Up) {
        // A session that has ended is what some tests are about.
        let _sent = self.up.send(node::SessionRequest { message: Some(message) }).await;
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Result<Down, Status> {
        match soon(self.down.message()).await? {
            Some(message) => Ok(message.message.unwrap()),
            None => Err(Status::ok("ended")),
        }
    }

    /// The next message, however long it takes; none when the stream ends.
    pub(crate) async fn next_for_ever(&mut self) -> Option<Down> {
        self.down.message().await.ok().flatten()?.message
    }

    /// The next desired state; anything else is a failure.
    pub(crate) async fn desired(&mut self) -> (node::Stamp, node::HostState) {
        match self.next().await.unwrap() {
            Down::DesiredState(desired) => {
                let state = claw_proto::decode(&desired.host_state).unwrap();
                (desired.stamp.unwrap(), state)
            }
            other => panic!("instead of a desired state: {other:?}"),
        }
    }

    /// The status that ends the stream, whatever comes before it.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// Says that a state is on disk and carried out.
    pub(crate) async fn settle(&self, stamp: &node::Stamp, instances: Vec<node::InstanceReport>) {
        self.send(Up::Status(node::Status {
            persisted: Some(stamp.clone()),
            last_result_generation: stamp.generation,
            instances,
            ..Default::default()
        }))
        .await;
    }
}

pub(crate) fn report(name: &str, generation: u64, phase: node::Phase) -> node::InstanceReport {
    node::InstanceReport {
        name: name.to_owned(),
        generation,
        phase: phase.into(),
        ..Default::default()
    }
}

pub(crate) fn event(sequence: u64, kind: &str) -> node::Event {
    node::Event {
        sequence,
        at: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        kind: kind.to_owned(),
        severity: node::Severity::Info.into(),
        message: format!("event {sequence}"),
        ..Default::default()
    }
}
