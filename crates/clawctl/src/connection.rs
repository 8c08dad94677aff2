//! The connection to the coordinator: mTLS, a deadline for every call, patience with an overloaded
//! server. It knows nothing of what is called.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use claw_core::backoff::{Backoff, Bounds};
use claw_identity::{ClientIdentity, HostKey, IdentityDirError, KeyError, Tls, TlsError, provider};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Uri};
use tonic::{Code, Request, Response, Status};

use crate::call::CallError;
use crate::clock::{self, Stopwatch};
use crate::file::quantity::Span;
use crate::settings::{Endpoint, Settings};

/// Largest answer: a page of instances, each at most 256 KiB of content and as much around it.
pub(crate) const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Resources asked for in one page; keeps a page below [`MAX_ANSWER`].
pub(crate) const PAGE_SIZE: i32 = 100;

/// TCP and TLS together, unless a call has less time.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A dead connection is noticed after the interval and the timeout together.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Between attempts while the server says that it is unavailable.
const RETRY: Bounds = Bounds { floor: Duration::from_millis(200), ceiling: Duration::from_secs(5) };

/// An open connection. Cheap to clone; it dials again by itself when it was lost.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    channel: Channel,
    endpoint: Endpoint,
    deadline: Duration,
}

/// Whether a call may be sent again when its answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Reads, and mutations with a `request_id`.
    Harmless,
    /// Anything that shows its answer only once.
    Never,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot use the key {}", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the identity in {} is unusable", path.display())]
    Identity {
        path: PathBuf,
        #[source]
        source: IdentityDirError,
    },
    #[error("the certificate of {who} ended at {at}")]
    Expired { who: String, at: String },
    #[error("cannot configure the connection")]
    Tls(#[from] TlsError),
    #[error("cannot configure the connection")]
    Channel(#[source] tonic::transport::Error),
    #[error("cannot connect to {endpoint}")]
    Dial {
        endpoint: Endpoint,
        #[source]
        source: DialError,
    },
}

/// Why the coordinator cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("name cannot be in a certificate")]
    Name(#[source] InvalidDnsNameError),
    #[error("tcp")]
    Tcp(#[source] io::Error),
    #[error("tls handshake")]
    Handshake(#[source] io::Error),
    #[error("no answer within {}", Span(*after))]
    Timeout { after: Duration },
}

impl Connection {
    /// Loads the identity and dials. The first dial fails at once, so that a wrong address shows.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, ConnectError> {
        let identity = load_identity(&settings.identity)?;
        let tls = Arc::new(Tls::new(provider::ring()).client(&identity)?);
        let endpoint = settings.endpoint.clone();
        let after = CONNECT_DEADLINE.min(settings.deadline);
        let failed = |source| ConnectError::Dial { endpoint: endpoint.clone(), source };
        let mut first = Some(dial(&endpoint, &tls, after).await.map_err(failed)?);
        let dialled = endpoint.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let (endpoint, tls, first) = (dialled.clone(), Arc::clone(&tls), first.take());
            async move {
                let stream = match first {
                    Some(stream) => stream,
                    None => dial(&endpoint, &tls, after).await?,
                };
                Ok::<_, DialError>(TokioIo::new(stream))
            }
        });
        let channel = Channel::builder(uri(&endpoint)?)
            .user_agent(concat!("clawctl/", env!("CARGO_PKG_VERSION")))
            .map_err(ConnectError::Channel)?
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(ConnectError::Channel)?;
        Ok(Self { channel, endpoint, deadline: settings.deadline })
    }

    /// The coordinator's address.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// For streams from here.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Opens a stream: the deadline is for its beginning only, and nothing is repeated.
    pub(crate) async fn open_stream<Q, A>(
        &self,
        doing: &str,
        request: Q,
        rpc: impl AsyncFnOnce(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Box<CallError>> {
        let opened = rpc(self.channel.clone(), Request::new(request));
        match tokio::time::timeout(self.deadline, opened).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(CallError::new(doing, &self.endpoint, &status)),
            Err(_) => Err(CallError::timeout(doing, &self.endpoint, self.deadline)),
        }
    }

    /// Calls, again as long as the server is unavailable and the deadline allows.
    ///
    /// `doing` completes "cannot …" for a person.
    pub(crate) async fn call<Q, A>(
        &self,
        doing: &str,
        repeat: Repeat,
        request: Q,
        rpc: impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Box<CallError>>
    where
        Q: Clone,
    {
        let begun = Stopwatch::start();
        let mut backoff = Backoff::new(RETRY);
        loop {
            let left = self.deadline.saturating_sub(begun.elapsed());
            let mut attempt = Request::new(request.clone());
            attempt.set_timeout(left);
            // Requests are large, and so is everything that holds a call.
            let called = Box::pin(rpc(self.channel.clone(), attempt));
            let status = match tokio::time::timeout(left, called).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => return Err(CallError::timeout(doing, &self.endpoint, self.deadline)),
            };
            let error = CallError::new(doing, &self.endpoint, &status);
            let wait = error.retry_after.unwrap_or_else(|| backoff.next_delay(clock::random()));
            let worthwhile = status.code() == Code::Unavailable
                && repeat == Repeat::Harmless
                && begun.elapsed() + wait < self.deadline;
            if !worthwhile {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
        }
    }
}

/// The identity of the caller: `key.pem`, `cert.pem` and `ca.pem` of a directory.
fn load_identity(directory: &Path) -> Result<ClientIdentity, ConnectError> {
    let text = |name: &str| {
        let path = directory.join(name);
        std::fs::read_to_string(&path).map_err(|source| ConnectError::Read { path, source })
    };
    let path = directory.join("key.pem");
    let key = HostKey::load(&path).map_err(|source| ConnectError::Key { path, source })?;
    let identity = ClientIdentity::from_pem(Arc::new(key), &text("cert.pem")?, &text("ca.pem")?)
        .map_err(|source| ConnectError::Identity { path: directory.to_owned(), source })?;
    let end = clock::timestamp(identity.expires());
    if end < clock::now() {
        return Err(ConnectError::Expired {
            who: identity.peer().identity.to_string(),
            at: crate::view::time::text(end),
        });
    }
    Ok(identity)
}

async fn dial(
    endpoint: &Endpoint,
    tls: &Arc<ClientConfig>,
    after: Duration,
) -> Result<TlsStream<TcpStream>, DialError> {
    let name = ServerName::try_from(endpoint.host.clone()).map_err(DialError::Name)?;
    let dialled = async {
        let tcp = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(DialError::Tcp)?;
        tcp.set_nodelay(true).map_err(DialError::Tcp)?;
        let connector = TlsConnector::from(Arc::clone(tls));
        connector.connect(name, tcp).await.map_err(DialError::Handshake)
    };
    tokio::time::timeout(after, dialled).await.map_err(|_| DialError::Timeout { after })?
}

/// The connector makes TLS by itself; the scheme only names the authority.
fn uri(endpoint: &Endpoint) -> Result<Uri, ConnectError> {
    format!("https://{endpoint}").parse().map_err(|_| ConnectError::Dial {
        endpoint: endpoint.clone(),
        source: DialError::Tcp(io::ErrorKind::InvalidInput.into()),
    })
}
