//! A coordinator that does what a test says: real certificates, TLS and HTTP/2.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its fixtures too"
)]

pub(crate) mod transfer;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use claw_core::time::Timestamp;
use claw_identity::{
    Admission, CertificateAuthority, ClientIdentity, Csr, HostKey, IdentityDir, IssueRequest,
    PeerIdentity, Role, SpkiPin, Subject, Tls, TrustDomain, provider,
};
use claw_proto::node::v1::enrolment_service_server::{EnrolmentService, EnrolmentServiceServer};
use claw_proto::node::v1::node_service_server::{NodeService, NodeServiceServer};
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::{
    EnrolRequest, EnrolResponse, Hello, RenewRequest, RenewResponse, SessionRequest,
    SessionResponse, Status as NodeStatus, TransferRequest, TransferResponse, Welcome,
};
use clawd::joined;
use clawd::ports::Clock as _;
use clawd::session::Session;
use clawd::session::address::Address;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::Service as _;
use tonic::{Request, Response, Status, Streaming};

use crate::support::{Running, World};
use transfer::Transfer;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Longer than any machine is busy.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn tls() -> Tls {
    Tls::new(provider::ring())
}

/// Waits until a condition holds, in real time.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    assert!(waited.is_ok(), "never {what}");
}

struct Shared {
    authority: CertificateAuthority,
    refuse: AtomicBool,
    enrolments: AtomicUsize,
    sessions: mpsc::UnboundedSender<Scripted>,
    transfers: mpsc::UnboundedSender<Transfer>,
}

/// The server.
pub(crate) struct Coordinator {
    shared: Arc<Shared>,
    address: Address,
    sessions: Mutex<mpsc::UnboundedReceiver<Scripted>>,
    transfers: Mutex<mpsc::UnboundedReceiver<Transfer>>,
}

/// The server's end of one session.
pub(crate) struct Scripted {
    up: Streaming<SessionRequest>,
    down: mpsc::Sender<Result<SessionResponse, Status>>,
}

/// A host that joined.
pub(crate) struct Host {
    pub(crate) world: World,
    pub(crate) running: Running,
    said: Rc<RefCell<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        let rng = &mut rand::rng();
        let hour_ago = real_now() - Duration::from_secs(3600);
        let domain = TrustDomain::parse("fleet.example").unwrap();
        let authority = CertificateAuthority::create(domain, hour_ago, rng).unwrap();
        let name = "localhost".try_into().unwrap();
        let server = authority.issue_server(vec![name], hour_ago, DAY, rng).unwrap();
        let config = tls().server(
            &server,
            &authority.bundle().unwrap(),
            authority.trust_domain(),
            Admission::CertifiedOrNew,
        );
        let acceptor = TlsAcceptor::from(Arc::new(config.unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let (sender, sessions) = mpsc::unbounded_channel();
        let (transferring, transfers) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            authority,
            refuse: AtomicBool::new(false),
            enrolments: AtomicUsize::new(0),
            sessions: sender,
            transfers: transferring,
        });
        tokio::spawn(serve(listener, acceptor, Arc::clone(&shared)));
        Self {
            shared,
            address: address.parse().unwrap(),
            sessions: Mutex::new(sessions),
            transfers: Mutex::new(transfers),
        }
    }

    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    pub(crate) fn pin(&self) -> SpkiPin {
        self.shared.authority.spki_pin()
    }

    /// Requests to enrol that arrived.
    pub(crate) fn enrolments(&self) -> usize {
        self.shared.enrolments.load(Ordering::SeqCst)
    }

    pub(crate) fn refuse_enrolments(&self, refuse: bool) {
        self.shared.refuse.store(refuse, Ordering::SeqCst);
    }

    /// A joined host with a running agent; its clock runs with the real one.
    pub(crate) fn host(&self, name: &str) -> Host {
        let world = World::new();
        let directory = IdentityDir::open(joined::identity_dir(world.directory.path())).unwrap();
        let key = HostKey::generate().unwrap();
        let chain = self.shared.certify(&key.csr().unwrap(), name);
        let root = self.shared.authority.root_pem();
        let identity = ClientIdentity::from_pem(Arc::new(key), &chain, &root).unwrap();
        directory.install(&identity).unwrap();
        let running = world.start();
        let address = self.address.clone();
        let session = Session::new(
            Rc::clone(&running.agent),
            running.inbox.clone(),
            tls(),
            directory,
            Box::new(move || Some(address.clone())),
        );
        let said = Rc::<RefCell<Vec<String>>>::default();
        let saying = Rc::clone(&said);
        let session = tokio::task::spawn_local(async move {
            session.run(|state| saying.borrow_mut().push(state.to_string())).await;
        });
        let clock = world.machine.clock.clone();
        let ticking = tokio::task::spawn_local(async move {
            let tick = Duration::from_millis(5);
            loop {
                tokio::time::sleep(tick).await;
                clock.advance(tick);
            }
        });
        Host { world, running, said, tasks: vec![session, ticking] }
    }

    /// The next session that a host opens.
    #[expect(clippy::await_holding_lock, reason = "one test, one thread, one waiter")]
    pub(crate) async fn session(&self) -> Scripted {
        let mut sessions = self.sessions.lock().unwrap();
        tokio::time::timeout(PATIENCE, sessions.recv()).await.unwrap().unwrap()
    }

    /// The next transfer of which a host opens its end.
    #[expect(clippy::await_holding_lock, reason = "one test, one thread, one waiter")]
    pub(crate) async fn transfer(&self) -> Transfer {
        let mut transfers = self.transfers.lock().unwrap();
        tokio::time::timeout(PATIENCE, transfers.recv()).await.unwrap().unwrap()
    }
}

impl Host {
    pub(crate) fn clock_now(&self) -> Timestamp {
        self.world.machine.clock.now()
    }

    /// What the session said last.
    pub(crate) fn said(&self) -> String {
        self.said.borrow().last().cloned().unwrap_or_default()
    }

    /// As kill -9 would end the agent.
    pub(crate) async fn kill(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.running.abort();
        // What has just been told to end does so.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    pub(crate) fn pass(&self, span: Duration) {
        self.world.machine.clock.advance(span);
    }

    pub(crate) fn jump_to_renewal(&self, identity: &ClientIdentity) {
        let latest = identity.peer().not_before + 7 * DAY / 3 * 11 / 10;
        self.pass(self.until(latest));
    }

    pub(crate) fn jump_past_expiry(&self) {
        self.pass(self.until(real_now() + 30 * DAY));
    }

    fn until(&self, at: SystemTime) -> Duration {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let at = Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap());
        at.since(self.clock_now())
    }
}

impl Scripted {
    /// The next message of the host.
    pub(crate) async fn message(&mut self) -> Up {
        let next = tokio::time::timeout(PATIENCE, self.up.message()).await.expect("a message");
        next.unwrap().expect("the stream goes on").message.unwrap()
    }

    pub(crate) async fn hello(&mut self) -> Hello {
        match self.message().await {
            Up::Hello(hello) => hello,
            other => panic!("the first message is no greeting: {other:?}"),
        }
    }

    pub(crate) async fn welcome(&self, resume_event: u64) {
        let welcome = Welcome {
            session: "s1".to_owned(),
            heartbeat_interval: Some(Duration::from_millis(200).try_into().unwrap()),
            server_time: None,
            resume_event,
        };
        self.send(SessionResponse { message: Some(Down::Welcome(welcome)) }).await;
    }

    pub(crate) async fn send(&self, response: SessionResponse) {
        self.down.send(Ok(response)).await.unwrap();
    }

    /// Waits for a status that fits, skipping everything else.
    pub(crate) async fn status(&mut self, fits: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
        let wait = async {
            loop {
                if let Up::Status(status) = self.message().await
                    && fits(&status)
                {
                    return status;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("a status that fits")
    }

    /// Ends the session in order.
    pub(crate) async fn end(self) {
        let unavailable = Status::unavailable("shutting down");
        self.down.send(Err(unavailable)).await.unwrap();
    }
}

impl Shared {
    fn certify(&self, csr: &Csr, host: &str) -> String {
        let request = IssueRequest {
            subject: Subject::Client(PeerIdentity::new(Role::Agent, host).unwrap()),
            not_before: real_now() - Duration::from_secs(60),
            lifetime: CertificateAuthority::AGENT_LIFETIME,
        };
        let issued = self.authority.issue_from_csr(csr, &request, &mut rand::rng()).unwrap();
        let body = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            issued.certificate.as_ref(),
        );
        format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates are checked by the real clock")]
fn real_now() -> SystemTime {
    SystemTime::now()
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (acceptor, shared) = (acceptor.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            // A host that does not trust this server, or is not trusted, ends here.
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let mut node = NodeServiceServer::from_arc(Arc::clone(&shared));
                let mut enrolment = EnrolmentServiceServer::from_arc(Arc::clone(&shared));
                async move {
                    let request = request.map(tonic::body::Body::new);
                    if request.uri().path().starts_with("/claw.node.v1.NodeService/") {
                        node.call(request).await
                    } else {
                        enrolment.call(request).await
                    }
                }
            });
            // How it ends is the tests' business.
            let _ended = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

#[tonic::async_trait]
impl NodeService for Shared {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SessionResponse, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (down, responses) = mpsc::channel(16);
        let scripted = Scripted { up: request.into_inner(), down };
        self.sessions.send(scripted).map_err(|_gone| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }

    type TransferStream = Pin<Box<dyn Stream<Item = Result<TransferResponse, Status>> + Send>>;

    async fn transfer(
        &self,
        request: Request<Streaming<TransferRequest>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let (down, responses) = mpsc::channel(4);
        let transfer = Transfer::named(request.into_inner(), down).await?;
        self.transfers.send(transfer).map_err(|_gone| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}

#[tonic::async_trait]
impl EnrolmentService for Shared {
    async fn enrol(
        &self,
        request: Request<EnrolRequest>,
    ) -> Result<Response<EnrolResponse>, Status> {
        self.enrolments.fetch_add(1, Ordering::SeqCst);
        if self.refuse.load(Ordering::SeqCst) {
            return Err(Status::unauthenticated("the join token is not known"));
        }
        let request = request.into_inner();
        assert_eq!(request.token_secret.len(), 32);
        let csr = Csr::from_der(&request.csr_der).unwrap();
        Ok(Response::new(EnrolResponse {
            certificate_chain_pem: self.certify(&csr, &request.host),
            ca_bundle_pem: self.authority.root_pem(),
            host: request.host,
        }))
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<RenewResponse>, Status> {
        let csr = Csr::from_der(&request.into_inner().csr_der).unwrap();
        Ok(Response::new(RenewResponse {
            certificate_chain_pem: self.certify(&csr, "web-1"),
            ca_bundle_pem: self.authority.root_pem(),
        }))
    }
}
