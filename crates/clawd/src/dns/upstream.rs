//! Asks the host's own name servers: UDP from a fresh port with a random identifier and random case,
//! TCP for what is truncated, the next server when one does not answer.
//!
//! What it deliberately does not do: resolve by itself, validate signatures (the upstream may), or speak
//! DNS over TLS. It is written on `hickory-proto` alone: see [`crate::dns`].
//!
//! Where to start: [`Upstreams::ask`].

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::answer::Answer;
use super::question::MAX_UDP;
use super::resolv_conf::ResolvConf;

/// Longest time for one question, every server and attempt included. Stub resolvers ask again after 5 s
/// (resolv.conf(5)).
pub const DEADLINE: Duration = Duration::from_secs(4);
/// How often every server is asked.
const ROUNDS: u32 = 2;
/// For so long, a server that did not answer is asked last.
const PENALTY: Duration = Duration::from_secs(10);
/// Most connections by TCP at the same time, each with a buffer of up to 64 KiB.
const MAX_STREAMS: usize = 32;
/// Largest UDP message that is read.
const MAX_DATAGRAM: usize = 4096;

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// There is no server to ask.
    #[error("no name server is configured")]
    NoServer,
    /// None answered in time.
    #[error("no name server answered within {} s", DEADLINE.as_secs())]
    Timeout,
    /// The connection failed.
    #[error("talking to a name server")]
    Io(#[from] io::Error),
    /// The answer makes no sense.
    #[error("a name server's answer cannot be read")]
    Malformed,
    /// The server refuses, or has failed itself.
    #[error("a name server answered {0}")]
    Code(ResponseCode),
}

/// Where the servers' addresses come from.
#[derive(Debug)]
pub enum Source {
    /// The configuration.
    Fixed(Vec<SocketAddr>),
    /// A file such as `/etc/resolv.conf`, read again when it changes.
    File(ResolvConf),
}

#[derive(Debug, Clone, Copy)]
struct Server {
    address: SocketAddr,
    /// When it last failed to answer.
    failed: Option<Instant>,
}

/// The host's name servers.
#[derive(Debug)]
pub struct Upstreams {
    source: RefCell<Source>,
    servers: RefCell<Vec<Server>>,
    looked: Cell<Option<Instant>>,
    streams: Semaphore,
}

/// Between two looks at the file that names the servers.
const LOOK: Duration = Duration::from_secs(2);

impl Upstreams {
    /// Asks the servers of a source.
    #[must_use]
    pub fn new(source: Source) -> Self {
        let servers = match &source {
            Source::Fixed(addresses) => servers(addresses),
            Source::File(_) => Vec::new(),
        };
        Self {
            source: RefCell::new(source),
            servers: RefCell::new(servers),
            looked: Cell::new(None),
            streams: Semaphore::new(MAX_STREAMS),
        }
    }

    /// Asks one server after the other, in their order, those that lately failed last.
    ///
    /// # Errors
    /// [`UpstreamError`], after [`DEADLINE`] at the latest.
    pub async fn ask(&self, query: &Query) -> Result<Answer, UpstreamError> {
        timeout(DEADLINE, self.ask_all(query)).await.unwrap_or(Err(UpstreamError::Timeout))
    }

    async fn ask_all(&self, query: &Query) -> Result<Answer, UpstreamError> {
        let end = Instant::now() + DEADLINE;
        let mut last = UpstreamError::NoServer;
        for round in 0..ROUNDS {
            let order = self.order();
            let mut left = (ROUNDS - round) * u32::try_from(order.len()).unwrap_or(1);
            let mut decided = !order.is_empty();
            for server in order {
                let share = end.saturating_duration_since(Instant::now()) / left.max(1);
                left -= 1;
                let asked = timeout(share, self.ask_one(server, query)).await;
                match asked.unwrap_or(Err(UpstreamError::Timeout)) {
                    Ok(answer) => {
                        self.note(server, None);
                        return Ok(answer);
                    }
                    Err(error) => {
                        let silent = !matches!(error, UpstreamError::Code(_));
                        if silent {
                            self.note(server, Some(Instant::now()));
                        }
                        decided &= !silent;
                        last = error;
                    }
                }
            }
            if decided {
                break;
            }
        }
        Err(last)
    }

    async fn ask_one(&self, server: SocketAddr, query: &Query) -> Result<Answer, UpstreamError> {
        let mut asked = query.clone();
        asked.name.randomize_label_case();
        let reply = match by_udp(server, &asked).await? {
            Some(reply) => reply,
            None => {
                // Never closed.
                let _stream = self.streams.acquire().await;
                by_tcp(server, query).await?
            }
        };
        let code = reply.metadata.response_code;
        Answer::distil(query, reply).ok_or(UpstreamError::Code(code))
    }

    /// The servers in the order in which they are asked.
    fn order(&self) -> Vec<SocketAddr> {
        let now = Instant::now();
        self.look(now);
        let mut servers = self.servers.borrow().clone();
        let penalised =
            |server: &Server| server.failed.is_some_and(|failed| now < failed + PENALTY);
        servers.sort_by_key(penalised);
        servers.iter().map(|server| server.address).collect()
    }

    /// Takes up a changed file; at most every [`LOOK`].
    fn look(&self, now: Instant) {
        if self.looked.get().is_some_and(|looked| now < looked + LOOK) {
            return;
        }
        self.looked.set(Some(now));
        if let Source::File(file) = &mut *self.source.borrow_mut()
            && let Some(addresses) = file.changed()
        {
            tracing::info!(servers = ?addresses, "name servers of the host");
            *self.servers.borrow_mut() = servers(&addresses);
        }
    }

    fn note(&self, address: SocketAddr, failed: Option<Instant>) {
        for server in &mut *self.servers.borrow_mut() {
            if server.address == address {
                server.failed = failed;
            }
        }
    }
}

fn servers(addresses: &[SocketAddr]) -> Vec<Server> {
    addresses.iter().map(|&address| Server { address, failed: None }).collect()
}

/// Asks by UDP; `None` if TCP must be tried: the answer is truncated, or its name is not written as we
/// wrote it, which a forger who does not see the question cannot know.
async fn by_udp(server: SocketAddr, query: &Query) -> Result<Option<Message>, UpstreamError> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel takes a random port; being connected, the socket drops what comes from elsewhere.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let message = request(query);
    socket.send(&message.to_vec().map_err(|_too_long| UpstreamError::Malformed)?).await?;
    loop {
        let Some(reply) = receive(&socket).await?.filter(|reply| answers(reply, &message)) else {
            continue;
        };
        let as_written = reply.queries.iter().all(|echo| echo.name().eq_case(query.name()));
        return Ok((as_written && !reply.metadata.truncation).then_some(reply));
    }
}

/// The next message; `None` if it is none. A question that waits for it takes no buffer.
async fn receive(socket: &UdpSocket) -> io::Result<Option<Message>> {
    socket.readable().await?;
    let mut buffer = [0; MAX_DATAGRAM];
    match socket.try_recv(&mut buffer) {
        Ok(length) => Ok(buffer.get(..length).and_then(|bytes| Message::from_vec(bytes).ok())),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

async fn by_tcp(server: SocketAddr, query: &Query) -> Result<Message, UpstreamError> {
    let mut stream = TcpStream::connect(server).await?;
    let message = request(query);
    let bytes = message.to_vec().map_err(|_too_long| UpstreamError::Malformed)?;
    let length = u16::try_from(bytes.len()).map_err(|_too_long| UpstreamError::Malformed)?;
    stream.write_all(&[length.to_be_bytes().as_slice(), &bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    let reply = Message::from_vec(&buffer).map_err(|_malformed| UpstreamError::Malformed)?;
    if answers(&reply, &message) { Ok(reply) } else { Err(UpstreamError::Malformed) }
}

/// A question of our own: a random identifier, nothing of the client's but name and type. No DNSSEC
/// records: they would not fit into what is distilled.
fn request(query: &Query) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.queries.push(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    message.edns = Some(edns);
    message
}

/// Whether a reply belongs to a question of ours; names are compared without regard to case.
fn answers(reply: &Message, asked: &Message) -> bool {
    reply.metadata.id == asked.metadata.id
        && reply.metadata.message_type == hickory_proto::op::MessageType::Response
        && reply.metadata.op_code == OpCode::Query
        && reply.queries == asked.queries
}
