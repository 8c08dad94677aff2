//! Certificates that must not be taken, and roles that must not be exceeded.

use std::sync::Arc;
use std::time::Duration;

use claw_coordinator::clock::Clock;
use claw_identity::{CertificateAuthority, HostKey, PeerIdentity, Role, TrustDomain};
use claw_proto::fleet::v1::host_service_client::HostServiceClient;
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::enrolment_service_client::EnrolmentServiceClient;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::{self as node};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::AsyncReadExt as _;
use tonic::Code;

use crate::fixture::{
    Agent, Clients, Fleet, TRUST_DOMAIN, client_tls, connect, handshake, hello, identity_from,
    reason, soon,
};

/// A client that presents exactly this.
fn presenting(
    fleet: &Fleet,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let pem = fleet.authority.root_pem();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(claw_identity::provider::aws_lc_rs())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A certificate of the fleet's own root, made by hand.
fn forged(
    fleet: &Fleet,
    uris: &[&str],
    usage: ExtendedKeyUsagePurpose,
    change: impl FnOnce(&mut CertificateParams),
) -> ClientConfig {
    let directory = fleet.config.data_dir.join("ca");
    let root_key = std::fs::read_to_string(directory.join("root-key.pem")).unwrap();
    let root_key = KeyPair::from_pem(&root_key).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&fleet.authority.root_pem(), root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names =
        uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    parameters.extended_key_usages = vec![usage];
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.use_authority_key_identifier_extension = true;
    change(&mut parameters);
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialized_der().to_vec());
    presenting(fleet, vec![certificate.der().clone()], key.into())
}

/// The alert with which the server ends the connection.
async fn alert(fleet: &Fleet, config: ClientConfig) -> String {
    let mut stream = match handshake(fleet.address(), config).await {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    // In TLS 1.3 a client has finished before the server has judged its certificate.
    let mut buffer = [0; 4096];
    match soon(stream.read(&mut buffer)).await {
        Ok(0) => "closed without an alert".to_owned(),
        Ok(_settings) => panic!("the server let it in"),
        Err(error) => error.to_string(),
    }
}

fn uri(role: &str, name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{role}/{name}")
}

#[tokio::test]
async fn certificates_of_another_authority_are_refused() {
    let fleet = Fleet::start().await;
    let domain = TrustDomain::parse(TRUST_DOMAIN).unwrap();
    let now = Clock::system().system_time() - Duration::from_secs(60);
    let other = CertificateAuthority::create(domain, now, &mut rand::rng()).unwrap();
    let hour = Duration::from_secs(3600);
    let foreign = identity_from(&other, Role::Operator, "mallory", hour);
    let config = presenting(&fleet, foreign.chain().to_vec(), foreign.key().private_key_der());
    let alert = alert(&fleet, config).await;
    assert!(alert.contains("UnknownCA") || alert.contains("DecryptError"), "{alert}");
}

#[tokio::test]
async fn expired_and_future_certificates_are_refused() {
    let fleet = Fleet::start().await;
    let operator = uri("operator", "alice");
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let expired = forged(&fleet, &[&operator], client.clone(), |parameters| {
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2020, 1, 8);
    });
    let text = alert(&fleet, expired).await;
    assert!(text.contains("CertificateExpired"), "{text}");
    let future = forged(&fleet, &[&operator], client, |parameters| {
        parameters.not_before = rcgen::date_time_ymd(2099, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2099, 1, 8);
    });
    let text = alert(&fleet, future).await;
    assert!(text.contains("fatal alert"), "{text}");
}

#[tokio::test]
async fn certificates_that_name_nobody_of_ours_are_refused() {
    let fleet = Fleet::start().await;
    let operator = uri("operator", "alice");
    let second = uri("operator", "bob");
    let client = || ExtendedKeyUsagePurpose::ClientAuth;
    let names: [&[&str]; 6] = [
        &[&operator, &second],
        &["spiffe://other.test/operator/alice"],
        &["spiffe://fleet.test/root/alice"],
        &["spiffe://fleet.test/operator/alice/more"],
        &["https://fleet.test/operator/alice"],
        &[],
    ];
    for names in names {
        let text = alert(&fleet, forged(&fleet, names, client(), |_parameters| {})).await;
        assert!(text.contains("fatal alert"), "{names:?}: {text}");
    }
    let server_usage = ExtendedKeyUsagePurpose::ServerAuth;
    let text = alert(&fleet, forged(&fleet, &[&operator], server_usage, |_parameters| {})).await;
    assert!(text.contains("fatal alert"), "{text}");
    // The same by hand, but right: what is refused above is refused for its fault.
    let good = forged(&fleet, &[&operator], client(), |_parameters| {});
    let mut clients = Clients::new(connect(fleet.address(), good).await.unwrap());
    clients.create_host("a").await.unwrap();
}

#[tokio::test]
async fn the_servers_own_certificate_is_no_clients() {
    let fleet = Fleet::start().await;
    let names = vec![ServerName::try_from("localhost").unwrap()];
    let now = Clock::system().system_time() - Duration::from_secs(60);
    let hour = Duration::from_secs(3600);
    let server = fleet.authority.issue_server(names, now, hour, &mut rand::rng()).unwrap();
    let config = presenting(&fleet, server.chain().to_vec(), server.key().private_key_der());
    let text = alert(&fleet, config).await;
    assert!(text.contains("fatal alert"), "{text}");
}

#[tokio::test]
async fn nothing_but_tls_1_3_is_spoken() {
    let fleet = Fleet::start().await;
    let identity = fleet.identity(Role::Operator, "alice");
    let mut roots = RootCertStore::empty();
    let pem = fleet.authority.root_pem();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(claw_identity::provider::aws_lc_rs())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().private_key_der())
        .unwrap();
    let error = handshake(fleet.address(), config).await.unwrap_err().to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn no_session_is_resumed() {
    let fleet = Fleet::start().await;
    let mut config = client_tls(&fleet.identity(Role::Operator, "alice"));
    config.resumption = rustls::client::Resumption::in_memory_sessions(8);
    for _round in 0..2 {
        let stream = handshake(fleet.address(), config.clone()).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    }
}

#[tokio::test]
async fn without_a_certificate_there_is_enrolment_and_nothing_else() {
    let fleet = Fleet::start().await;
    let channel = fleet.stranger().await;
    let mut stranger = Clients::new(channel.clone());
    let status = stranger.host("a").await.unwrap_err();
    assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, "NO_CERTIFICATE".into()));
    assert!(status.message().contains("clawd join"), "{status}");
    let refused = Agent::over(channel.clone(), Up::Hello(hello("a", "1"))).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut enrolment = EnrolmentServiceClient::new(channel.clone());
    let status = enrolment.renew(node::RenewRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = enrolment.enrol(node::EnrolRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "this one is answered");
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest::default();
    assert_eq!(health.check(request).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn roles_are_not_exceeded() {
    let fleet = Fleet::start().await;
    fleet.operator().await.create_host("a").await.unwrap();
    let denied = |status: tonic::Status| {
        assert_eq!((status.code(), reason(&status)), (Code::PermissionDenied, "ROLE".into()));
    };
    let mut viewer = Clients::new(fleet.channel(Role::Viewer, "eve").await);
    viewer.host("a").await.unwrap();
    denied(viewer.create_host("b").await.unwrap_err());
    denied(viewer.create_instance("demo", "a").await.unwrap_err());
    denied(viewer.join_token("a").await.unwrap_err());
    let fetch = fleet::FetchGatewayTokenRequest { name: "instances/demo".to_owned() };
    denied(viewer.instances.fetch_gateway_token(fetch).await.unwrap_err());

    let mut service = Clients::new(fleet.channel(Role::Service, "billing").await);
    service.create_instance("demo", "a").await.unwrap();
    let delete = fleet::DeleteHostRequest { name: "hosts/a".to_owned(), ..Default::default() };
    denied(service.hosts.delete_host(delete).await.unwrap_err());
    let audit = fleet::ListAuditEntriesRequest::default();
    denied(service.audit.list_audit_entries(audit).await.unwrap_err());

    let agent = fleet.join("c").await;
    let mut agent_clients = Clients::new(fleet.channel_as(&agent).await);
    denied(agent_clients.host("c").await.unwrap_err());
    denied(agent_clients.join_token("c").await.unwrap_err());
    let operator = fleet.channel(Role::Operator, "alice").await;
    let refused = Agent::over(operator.clone(), Up::Hello(hello("c", "1"))).await;
    denied(refused.err().unwrap());
    let mut enrolment = EnrolmentServiceClient::new(operator);
    denied(enrolment.renew(node::RenewRequest::default()).await.unwrap_err());
}

#[tokio::test]
async fn a_method_that_does_not_exist_is_unimplemented() {
    let fleet = Fleet::start().await;
    let channel = fleet.channel(Role::Operator, "alice").await;
    let mut client = tonic::client::Grpc::new(channel);
    for path in ["/claw.fleet.v1.HostService/Nothing", "/nothing", "/a/b/c"] {
        client.ready().await.unwrap();
        let request = tonic::Request::new(fleet::GetHostRequest::default());
        let codec =
            tonic_prost::ProstCodec::<fleet::GetHostRequest, fleet::GetHostResponse>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        let status = client.unary(request, path, codec).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented);
    }
}

#[tokio::test]
async fn denied_people_are_out_within_seconds() {
    let fleet = Fleet::start().await;
    let out = fleet.dir.path().join("bob");
    let identity = PeerIdentity::new(Role::Operator, "bob").unwrap();
    let issue = claw_coordinator::init::Issue {
        data_dir: fleet.config.data_dir.clone(),
        identity: identity.clone(),
        out: out.clone(),
        lifetime: Duration::from_secs(3600),
    };
    claw_coordinator::init::issue(&issue, &Clock::system()).await.unwrap();
    let key = Arc::new(HostKey::load(&out.join("key.pem")).unwrap());
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let (chain, bundle) = (read("cert.pem"), read("ca.pem"));
    let bob = claw_identity::ClientIdentity::from_pem(key, &chain, &bundle).unwrap();
    let channel = fleet.channel_as(&bob).await;
    let mut client = HostServiceClient::new(channel);
    client.list_hosts(fleet::ListHostsRequest::default()).await.unwrap();
    let (data_dir, clock) = (&fleet.config.data_dir, Clock::system());
    let denied = claw_coordinator::init::deny(data_dir, identity, &clock).await;
    assert_eq!(denied.unwrap(), 1);
    fleet.coordinator.reload().await;
    let status = client.list_hosts(fleet::ListHostsRequest::default()).await.unwrap_err();
    assert_eq!(reason(&status), "CERTIFICATE_REVOKED");
}
