//! The fleet's API as an internal service calls it: few connections, many calls at once.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claw_identity::{ClientIdentity, HostKey, JoinToken, SpkiPin, Tls};
use claw_proto::fleet::v1::audit_service_client::AuditServiceClient;
use claw_proto::fleet::v1::host_service_client::HostServiceClient;
use claw_proto::fleet::v1::instance_service_client::InstanceServiceClient;
use claw_proto::fleet::v1::join_token_service_client::JoinTokenServiceClient;
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::enrolment_service_client::EnrolmentServiceClient;
use claw_proto::node::v1::{self as node};
use rustls::ClientConfig;
use tokio::task::JoinSet;

use crate::agent::Agent;
use crate::wire::{self, Wire};

/// Connections of the calling service.
const CONNECTIONS: usize = 4;
/// Hosts that join at a time.
const JOINING: usize = 32;
/// Hosts that enrol over one connection without a certificate, which may live for a minute.
const PER_STRANGER: usize = 50;
/// Characters that make the state of a host with one instance about 2 KB.
const IDENTITY: usize = 1500;

/// The API through a few connections.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    wires: Vec<Wire>,
    address: SocketAddr,
    pin: SpkiPin,
}

impl Api {
    /// Connects with the credentials that `init` made.
    pub(crate) async fn connect(address: SocketAddr, operator: &Path) -> Result<Self> {
        let key = HostKey::load(&operator.join("key.pem"))?;
        let chain = fs::read_to_string(operator.join("cert.pem"))?;
        let roots = fs::read_to_string(operator.join("ca.pem"))?;
        let identity = ClientIdentity::from_pem(Arc::new(key), &chain, &roots)?;
        let config = config_of(&identity)?;
        let mut wires = Vec::new();
        for _connection in 0..CONNECTIONS {
            let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
            let stream = wire::handshake(here, address, Arc::clone(&config)).await?;
            wires.push(wire::http2(stream).await?);
        }
        let pin = *identity.bundle().pins().first().context("no root")?;
        Ok(Self { wires, address, pin })
    }

    fn wire(&self, number: usize) -> Wire {
        let [first, ..] = self.wires.as_slice() else { unreachable!("connected in `connect`") };
        self.wires.get(number % CONNECTIONS).unwrap_or(first).clone()
    }

    /// Calls on instances, over one of the connections.
    pub(crate) fn instances(&self, number: usize) -> InstanceServiceClient<Wire> {
        InstanceServiceClient::with_origin(self.wire(number), wire::origin())
    }

    /// Registers a host, enrols it with a join token as clawd does, and gives it an instance.
    async fn join(
        &self,
        number: usize,
        stranger: &mut EnrolmentServiceClient<Wire>,
    ) -> Result<Agent> {
        let (host, instance) = (format!("h{number}"), instance_of(number));
        let mut hosts = HostServiceClient::with_origin(self.wire(number), wire::origin());
        let request = fleet::CreateHostRequest { host_id: host.clone(), ..Default::default() };
        hosts.create_host(request).await?;
        let mut tokens = JoinTokenServiceClient::with_origin(self.wire(number), wire::origin());
        let resource = format!("hosts/{host}");
        let request = fleet::CreateJoinTokenRequest { host: resource, ..Default::default() };
        let token = tokens.create_join_token(request).await?.into_inner().token;
        let tls = Arc::new(enrol(stranger, &host, &token).await?);
        let request = fleet::CreateInstanceRequest {
            instance_id: instance.clone(),
            instance: Some(fleet::Instance {
                host: format!("hosts/{host}"),
                spec: Some(spec(number, 0)),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.instances(number).create_instance(request).await?;
        Ok(Agent { host, instance, source: wire::address_of(number), tls })
    }

    /// A connection without a certificate, as a host that wants to join makes it.
    async fn stranger(&self, number: usize) -> Result<EnrolmentServiceClient<Wire>> {
        let config = Arc::new(tls().enrolment_client(self.pin)?);
        let stream = wire::handshake(wire::address_of(number), self.address, config).await?;
        Ok(EnrolmentServiceClient::with_origin(wire::http2(stream).await?, wire::origin()))
    }

    /// Makes `count` hosts with an instance each.
    pub(crate) async fn join_all(&self, count: usize) -> Result<Vec<Agent>> {
        let mut agents = Vec::with_capacity(count);
        let chunks: Vec<usize> = (0..count).step_by(PER_STRANGER).collect();
        let api = self.clone();
        let joined = each(chunks.len(), JOINING, move |chunk| {
            let api = api.clone();
            async move {
                let first = chunk * PER_STRANGER;
                let mut stranger = api.stranger(first).await?;
                let mut agents = Vec::with_capacity(PER_STRANGER);
                for number in first..count.min(first + PER_STRANGER) {
                    let joined = api.join(number, &mut stranger).await;
                    agents.push(joined.with_context(|| format!("host {number}"))?);
                }
                Ok(agents)
            }
        });
        for chunk in joined.await? {
            agents.extend(chunk);
        }
        Ok(agents)
    }

    /// Gives an instance another identity text; everything else of it stays.
    pub(crate) async fn change(&self, number: usize, agent: &Agent, round: usize) -> Result<()> {
        let request = fleet::UpdateInstanceRequest {
            instance: Some(fleet::Instance {
                name: format!("instances/{}", agent.instance),
                spec: Some(spec(number, round)),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["spec.identity".to_owned()] }),
            ..Default::default()
        };
        let changed = self.instances(number).update_instance(request).await;
        changed.with_context(|| format!("cannot change {}", agent.instance))?;
        Ok(())
    }

    /// Hosts, and how many of them have persisted what is wanted of them.
    pub(crate) async fn converged(&self) -> Result<(usize, usize)> {
        let mut hosts = HostServiceClient::with_origin(self.wire(0), wire::origin());
        let (mut all, mut converged, mut page_token) = (0, 0, String::new());
        loop {
            let request = fleet::ListHostsRequest { page_size: 1000, page_token };
            let page = hosts.list_hosts(request).await?.into_inner();
            all += page.hosts.len();
            let statuses = page.hosts.iter().filter_map(|host| host.status.as_ref());
            converged += statuses
                .filter(|status| status.desired.is_some() && status.desired == status.persisted)
                .count();
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok((all, converged));
            }
        }
    }

    /// Number of the newest entry of the audit log; they count without gaps.
    pub(crate) async fn audited(&self) -> Result<u64> {
        let mut audit = AuditServiceClient::with_origin(self.wire(0), wire::origin());
        let request = fleet::ListAuditEntriesRequest { page_size: 1, ..Default::default() };
        let page = audit.list_audit_entries(request).await?.into_inner();
        let newest = page.audit_entries.first().context("an empty audit log")?;
        let number = newest.name.strip_prefix("auditEntries/").context("an odd name")?;
        Ok(number.parse()?)
    }
}

/// Name of the instance of a host.
fn instance_of(number: usize) -> String {
    format!("i{number}")
}

/// About 2 KB, other ones in each round.
pub(crate) fn spec(number: usize, round: usize) -> fleet::InstanceSpec {
    let mut identity = format!("# Tenant {number}, as of round {round}\n");
    while identity.len() < IDENTITY {
        identity.push_str("Answers questions about orders, and nothing else.\n");
    }
    let allowed = format!("https://t{number}.claw.example");
    fleet::InstanceSpec {
        image: format!("registry.example/openclaw@sha256:{}", "0123456789abcdef".repeat(4)),
        tier: "balanced".to_owned(),
        hostnames: vec![format!("t{number}.claw.example")],
        allowed_origins: vec![allowed],
        config: "{ agents: { defaults: { workspace: '/home/node/.openclaw/workspace' } } }"
            .to_owned(),
        secrets: [("LLM_API_KEY".to_owned(), format!("sk-{number:040}"))].into(),
        identity,
        ..fleet::InstanceSpec::default()
    }
}

async fn enrol(
    stranger: &mut EnrolmentServiceClient<Wire>,
    host: &str,
    token: &str,
) -> Result<ClientConfig> {
    let parsed = JoinToken::parse(token)?;
    let secret = token.split('.').nth(2).context("no secret")?;
    let key = Arc::new(HostKey::generate()?);
    let request = node::EnrolRequest {
        token_id: parsed.id().to_string(),
        token_secret: URL_SAFE_NO_PAD.decode(secret)?,
        csr_der: key.csr()?.der().to_vec(),
        host: host.to_owned(),
    };
    let answer = stranger.enrol(request).await?.into_inner();
    ensure!(answer.host == host, "enrolled as {}", answer.host);
    let (chain, roots) = (answer.certificate_chain_pem, answer.ca_bundle_pem);
    let identity = ClientIdentity::from_pem(key, &chain, &roots)?;
    Ok(tls().client(&identity)?)
}

fn config_of(identity: &ClientIdentity) -> Result<Arc<ClientConfig>> {
    Ok(Arc::new(tls().client(identity)?))
}

/// As clawd: ring.
fn tls() -> Tls {
    Tls::new(claw_identity::provider::ring())
}

/// Does something for each of 0 to `count`, by so many workers; stops at the first failure.
pub(crate) async fn each<T, F, W>(count: usize, workers: usize, work: W) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send,
    W: Fn(usize) -> F + Clone + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _worker in 0..workers.min(count) {
        let (next, work) = (Arc::clone(&next), work.clone());
        tasks.spawn(async move {
            let mut done = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(done);
                }
                done.push((number, work(number).await?));
            }
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    all.sort_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, done)| done).collect())
}
