//! A forwarder on loopback addresses, with an upstream and sets that a test holds in its hands.
//!
//! Instances live at 127.x.y.1 in place of 10.x.y.1; each test has an x of its own, so that tests can run
//! beside each other.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::{AddressPool, InstanceNetwork, Slot};
use claw_core::firewall::{
    AllowedName, Cidr, DnsNames, DnsPolicy, DnsRules, DomainPattern, Mode, Port,
};
use claw_core::name::InstanceName;
use clawd::adapters::dns_forwarder::DnsForwarder;
use clawd::dns::listen::Place;
use clawd::dns::sets::{SetChange, Sets, SetsError};
use clawd::dns::upstream::{Source, Upstreams};
use clawd::dns::{Settings, counters_path, policy_path, serve};
use clawd::ports::{DnsCounters, Resolver};
use hickory_proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

/// Every wait ends.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 15_353;

/// Runs a test, which gets an x of its own.
pub(crate) async fn test<T>(body: impl Future<Output = T>) -> T {
    LocalSet::new().run_until(body).await
}

/// 10.x.y.1 answers at 127.x.y.1.
pub(crate) fn loopback(network: InstanceNetwork) -> Place {
    let IpAddr::V4(gateway) = network.gateway() else { panic!("bridges have IPv4 addresses") };
    let [_, second, third, _] = gateway.octets();
    let address = IpAddr::from([127, second, third, 1]);
    Place { listen: (address, PORT).into(), sources: Cidr::containing(address, 24) }
}

/// What an upstream does with a question.
pub(crate) enum Reaction {
    Records(Vec<Record>),
    Code(ResponseCode),
    Truncated,
    Silence,
}

/// How a question came to the upstream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Udp,
    Tcp,
}

type React = dyn Fn(&Query, Over) -> Reaction;

/// A name server of the test's own, by UDP and TCP.
#[derive(Clone)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Rc<Cell<usize>>,
    react: Rc<React>,
}

impl Upstream {
    pub(crate) async fn start(react: impl Fn(&Query, Over) -> Reaction + 'static) -> Self {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(address).await.unwrap();
        let upstream = Self { address, asked: Rc::default(), react: Rc::new(react) };
        spawn_local(upstream.clone().answer_datagrams(udp));
        spawn_local(upstream.clone().answer_streams(tcp));
        upstream
    }

    async fn answer_datagrams(self, socket: UdpSocket) {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if let Some(reply) = self.reply(&buffer[..length], Over::Udp) {
                socket.send_to(&reply, from).await.unwrap();
            }
        }
    }

    async fn answer_streams(self, listener: TcpListener) {
        loop {
            let (mut stream, _from) = listener.accept().await.unwrap();
            let question = read_framed(&mut stream).await.unwrap();
            if let Some(reply) = self.reply(&question, Over::Tcp) {
                write_framed(&mut stream, &reply).await.unwrap();
            }
        }
    }

    fn reply(&self, bytes: &[u8], over: Over) -> Option<Vec<u8>> {
        let mut message = Message::from_vec(bytes).unwrap();
        message.metadata.message_type = MessageType::Response;
        self.asked.set(self.asked.get() + 1);
        match (self.react)(&message.queries[0], over) {
            Reaction::Records(records) => message.answers = records,
            Reaction::Code(code) => message.metadata.response_code = code,
            Reaction::Truncated => message.metadata.truncation = true,
            Reaction::Silence => return None,
        }
        Some(message.to_vec().unwrap())
    }
}

/// Sets in memory.
#[derive(Clone, Default)]
pub(crate) struct FakeSets(Rc<RefCell<Held>>);

#[derive(Default)]
struct Held {
    /// Timeouts in seconds, by set and entry.
    entries: BTreeMap<(String, String), u32>,
    changes: usize,
    broken: bool,
}

impl FakeSets {
    /// `set entry` with its timeout.
    pub(crate) fn timeout(&self, set: &str, entry: &str) -> Option<u32> {
        self.0.borrow().entries.get(&(set.to_owned(), entry.to_owned())).copied()
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        self.0.borrow().entries.keys().map(|(set, entry)| format!("{set} {entry}")).collect()
    }

    /// As somebody else does it.
    pub(crate) fn flush(&self) {
        self.0.borrow_mut().entries.clear();
    }

    pub(crate) fn put(&self, set: &str, entry: &str) {
        self.0.borrow_mut().entries.insert((set.to_owned(), entry.to_owned()), 300);
    }

    pub(crate) fn break_down(&self) {
        self.0.borrow_mut().broken = true;
    }

    pub(crate) fn repair(&self) {
        self.0.borrow_mut().broken = false;
    }
}

impl Sets for FakeSets {
    fn change(&self, set: &str, change: SetChange) -> Result<(), SetsError> {
        let mut held = self.0.borrow_mut();
        held.changes += 1;
        if held.broken {
            let source = io::Error::other("broken by the test");
            return Err(SetsError { set: set.to_owned(), change, source });
        }
        match change {
            SetChange::Add(entry, timeout) => {
                let seconds = clawd::dns::sets::seconds(timeout);
                held.entries.insert((set.to_owned(), entry.to_string()), seconds);
            }
            SetChange::Remove(entry) => {
                held.entries.remove(&(set.to_owned(), entry.to_string()));
            }
            SetChange::Clear => held.entries.retain(|(of, _entry), _timeout| of != set),
        }
        Ok(())
    }
}

/// Runs a forwarder with its files in a directory.
pub(crate) fn run<S: Sets>(
    dir: &Path,
    upstreams: &[SocketAddr],
    place: fn(InstanceNetwork) -> Place,
    sets: S,
) -> AbortHandle {
    let settings = Settings {
        policy: policy_path(dir),
        counters: counters_path(dir),
        upstreams: Upstreams::new(Source::Fixed(upstreams.to_vec())),
        place,
    };
    let task = spawn_local(async move {
        let failed = serve(settings, sets, |_state| {}).await;
        panic!("{:?}", failed.map(drop));
    });
    task.abort_handle()
}

/// A running forwarder, and the agent's side of it.
pub(crate) struct Forwarder {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) agent: DnsForwarder,
    pub(crate) sets: FakeSets,
    pool: AddressPool,
    task: AbortHandle,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Forwarder {
    /// Starts one whose instances live in 127.`x`.0.0/16.
    pub(crate) fn start(x: u8, upstreams: &[SocketAddr]) -> Self {
        Self::with(x, upstreams, FakeSets::default(), tempfile::tempdir().unwrap())
    }

    fn with(x: u8, upstreams: &[SocketAddr], sets: FakeSets, dir: tempfile::TempDir) -> Self {
        let task = run(dir.path(), upstreams, loopback, sets.clone());
        let agent = DnsForwarder::new(dir.path(), dir.path());
        let pool = AddressPool::new(10, x).unwrap();
        Self { agent, dir, sets, pool, task }
    }

    /// Stops it, and starts another with the same files and sets.
    pub(crate) async fn restart(self, x: u8, upstreams: &[SocketAddr]) -> Self {
        let (sets, place) = (self.sets.clone(), loopback(self.network(0)));
        self.task.abort();
        eventually(|| std::net::UdpSocket::bind(place.listen).is_ok()).await;
        let dir = tempfile::tempdir().unwrap();
        let firewall = dir.path().join("firewall");
        std::fs::create_dir(&firewall).unwrap();
        std::fs::copy(policy_path(self.dir.path()), firewall.join("dns.json")).unwrap();
        Self::with(x, upstreams, sets, dir)
    }

    pub(crate) fn network(&self, slot: u8) -> InstanceNetwork {
        self.pool.network(Slot::new(slot).unwrap())
    }

    pub(crate) fn rules(&self, slot: u8, only: Option<DnsNames>) -> DnsRules {
        DnsRules { network: self.network(slot), only, networks: BTreeSet::new() }
    }

    /// Publishes the policy and waits until every instance is answered.
    pub(crate) async fn publish(&self, instances: &[(&str, DnsRules)]) {
        let named = instances.iter().map(|(name, rules)| (instance(name), rules.clone()));
        let policy = DnsPolicy { instances: named.collect() };
        self.agent.publish(&policy).await.unwrap();
        let known: BTreeSet<InstanceName> = policy.instances.keys().cloned().collect();
        until(async || {
            let counters = self.agent.counters().await.unwrap();
            (counters.keys().cloned().collect::<BTreeSet<_>>() == known).then_some(())
        })
        .await;
    }

    pub(crate) async fn counters(&self, name: &str) -> DnsCounters {
        self.agent.counters().await.unwrap().remove(&instance(name)).unwrap_or_default()
    }

    /// A container of an instance.
    pub(crate) fn container(&self, slot: u8) -> Container {
        let server = loopback(self.network(slot)).listen;
        let IpAddr::V4(gateway) = server.ip() else { panic!("bridges have IPv4 addresses") };
        let [a, b, c, _] = gateway.octets();
        Container { server, from: [a, b, c, 2].into() }
    }

    pub(crate) fn policy_file(&self) -> std::path::PathBuf {
        policy_path(self.dir.path())
    }
}

/// Asks from the address of a container.
#[derive(Clone, Copy)]
pub(crate) struct Container {
    pub(crate) server: SocketAddr,
    pub(crate) from: IpAddr,
}

impl Container {
    pub(crate) async fn ask(&self, name: &str) -> Message {
        self.question(&question(name, RecordType::A)).await
    }

    pub(crate) async fn question(&self, question: &Message) -> Message {
        let socket = self.socket().await;
        socket.send(&question.to_vec().unwrap()).await.unwrap();
        let reply = receive(&socket).await;
        assert_eq!(reply.id, question.id);
        reply
    }

    pub(crate) async fn socket(&self) -> UdpSocket {
        let socket = UdpSocket::bind((self.from, 0)).await.unwrap();
        socket.connect(self.server).await.unwrap();
        socket
    }

    pub(crate) async fn stream(&self) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.from, 0).into()).unwrap();
        timeout(PATIENCE, socket.connect(self.server)).await.unwrap()
    }

    pub(crate) async fn ask_by_tcp(&self, name: &str) -> Message {
        exchange(&mut self.stream().await.unwrap(), name).await
    }
}

pub(crate) async fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = vec![0; 4096];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

pub(crate) async fn exchange(stream: &mut TcpStream, name: &str) -> Message {
    let question = question(name, RecordType::A).to_vec().unwrap();
    write_framed(stream, &question).await.unwrap();
    let reply = timeout(PATIENCE, read_framed(stream)).await.unwrap().unwrap();
    Message::from_vec(&reply).unwrap()
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn write_framed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).unwrap();
    stream.write_all(&[length.to_be_bytes().as_slice(), bytes].concat()).await
}

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.queries.push(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// The same, from a client that knows EDNS and takes so many bytes.
pub(crate) fn question_with_edns(name: &str, size: u16) -> Message {
    let mut message = question(name, RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// Addresses in an answer.
pub(crate) fn addresses(message: &Message) -> Vec<String> {
    let addresses = message.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(address.0.to_string()),
        RData::AAAA(address) => Some(address.0.to_string()),
        _ => None,
    });
    addresses.collect()
}

pub(crate) fn address(query: &Query, ttl: u32, address: &str) -> Record {
    let data = match address.parse().unwrap() {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(query.name().clone(), ttl, data)
}

pub(crate) fn alias(query: &Query, target: &str) -> Record {
    let target = CNAME(Name::from_ascii(target).unwrap());
    Record::from_rdata(query.name().clone(), 300, RData::CNAME(target))
}

pub(crate) fn instance(name: &str) -> InstanceName {
    InstanceName::parse(name).unwrap()
}

/// A list of patterns, each with its ports.
pub(crate) fn only(mode: Mode, names: &[(&str, &[u16])]) -> Option<DnsNames> {
    let names = names.iter().map(|(pattern, ports)| AllowedName {
        pattern: DomainPattern::parse(pattern).unwrap(),
        ports: ports.iter().copied().filter_map(Port::new).collect(),
    });
    Some(DnsNames { names: names.collect(), mode })
}

/// Waits until there is something.
pub(crate) async fn until<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, search).await.expect("it did not come to pass")
}

pub(crate) async fn eventually(mut is: impl FnMut() -> bool) {
    until(async || is().then_some(())).await;
}

/// Replaces a file's content as an editor does.
pub(crate) fn overwrite(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}
