//! Joining and renewing, and everything that must not work.

use std::sync::Arc;
use std::time::Duration;

use claw_coordinator::clock::Clock;
use claw_identity::{ClientIdentity, HostKey, Role};
use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::enrolment_service_client::EnrolmentServiceClient;
use claw_proto::node::v1::{self as node};
use rcgen::{CertificateParams, IsCa, KeyPair, SanType};
use tonic::Code;

use crate::fixture::{Agent, Fleet, connect, enrol_request, fields, hello, reason, tls};

async fn token(fleet: &Fleet, host: &str) -> String {
    let mut operator = fleet.operator().await;
    operator.create_host(host).await.unwrap();
    operator.join_token(host).await.unwrap()
}

async fn enrol(
    fleet: &Fleet,
    request: node::EnrolRequest,
) -> Result<node::EnrolResponse, tonic::Status> {
    let mut client = EnrolmentServiceClient::new(fleet.stranger().await);
    Ok(client.enrol(request).await?.into_inner())
}

fn identity(key: HostKey, answer: &node::EnrolResponse) -> ClientIdentity {
    let (chain, bundle) = (&answer.certificate_chain_pem, &answer.ca_bundle_pem);
    ClientIdentity::from_pem(Arc::new(key), chain, bundle).unwrap()
}

#[tokio::test]
async fn a_token_gives_one_certificate_of_one_host_for_a_week() {
    let fleet = Fleet::start().await;
    let token = token(&fleet, "a").await;
    let key = HostKey::generate().unwrap();
    let answer = enrol(&fleet, enrol_request(&token, "a", &key)).await.unwrap();
    assert_eq!(answer.host, "a");
    let identity = identity(key, &answer);
    let peer = identity.peer();
    assert_eq!(peer.identity.to_string(), "agent/a");
    let now = Clock::system().system_time();
    let left = peer.not_after.duration_since(now).unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    assert!(left <= week && left > week - Duration::from_secs(60), "{left:?}");
    // A host whose clock is four minutes behind can use it.
    assert!(peer.not_before < now - Duration::from_secs(240));
    let mut operator = fleet.operator().await;
    let entries = operator.audit("hosts/a").await;
    assert!(entries[0].summary.starts_with("joined with token"), "{entries:?}");
    let status = operator.host("a").await.unwrap().status.unwrap();
    assert_eq!(status.state(), fleet::HostState::Unknown, "within the grace after a start");
    assert!(status.certificate_expire_time.is_some());
}

#[tokio::test]
async fn a_lost_reply_comes_again_for_the_same_key_only() {
    let fleet = Fleet::start().await;
    let token = token(&fleet, "a").await;
    let key = HostKey::generate().unwrap();
    let first = enrol(&fleet, enrol_request(&token, "a", &key)).await.unwrap();
    let again = enrol(&fleet, enrol_request(&token, "a", &key)).await.unwrap();
    assert_eq!(first, again);

    let other = HostKey::generate().unwrap();
    let status = enrol(&fleet, enrol_request(&token, "a", &other)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "BAD_TOKEN"));
    let mut operator = fleet.operator().await;
    let kinds: Vec<String> =
        operator.events("a").await.into_iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["enrolment_refused"]);
    let id = token.split('.').nth(1).unwrap();
    let entries = operator.audit(&format!("joinTokens/{id}")).await;
    assert_eq!(entries[0].principal, "anonymous");

    fleet.clock.advance(Duration::from_secs(601));
    let late = enrol(&fleet, enrol_request(&token, "a", &key)).await.unwrap_err();
    assert_eq!(reason(&late), "BAD_TOKEN");
}

#[tokio::test]
async fn of_racing_hosts_one_gets_a_certificate() {
    let fleet = Fleet::start().await;
    let token = token(&fleet, "a").await;
    let mut tasks = tokio::task::JoinSet::new();
    for _host in 0..8 {
        let request = enrol_request(&token, "a", &HostKey::generate().unwrap());
        let mut client = EnrolmentServiceClient::new(fleet.stranger().await);
        tasks.spawn(async move { client.enrol(request).await.is_ok() });
    }
    let won = tasks.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn expired_unknown_deleted_and_foreign_tokens_are_no_good() {
    let fleet = Fleet::start().await;
    let good = token(&fleet, "a").await;
    token(&fleet, "b").await;
    let key = HostKey::generate().unwrap();
    let status = enrol(&fleet, enrol_request(&good, "b", &key)).await.unwrap_err();
    assert_eq!(reason(&status), "TOKEN_OF_OTHER_HOST");
    let mut wrong = enrol_request(&good, "a", &key);
    wrong.token_secret[0] ^= 1;
    assert_eq!(reason(&enrol(&fleet, wrong).await.unwrap_err()), "BAD_TOKEN");
    let mut unknown = enrol_request(&good, "a", &key);
    unknown.token_id = "0123456789abcdef".to_owned();
    assert_eq!(reason(&enrol(&fleet, unknown).await.unwrap_err()), "BAD_TOKEN");

    let mut operator = fleet.operator().await;
    let id = good.split('.').nth(1).unwrap();
    let name = format!("joinTokens/{id}");
    let delete = fleet::DeleteJoinTokenRequest { name, ..Default::default() };
    let second = operator.join_token("a").await.unwrap();
    operator.tokens.delete_join_token(delete.clone()).await.unwrap();
    let status = operator.tokens.delete_join_token(delete).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    let status = enrol(&fleet, enrol_request(&good, "a", &key)).await.unwrap_err();
    assert_eq!(reason(&status), "BAD_TOKEN");

    fleet.clock.advance(Duration::from_secs(3601));
    let status = enrol(&fleet, enrol_request(&second, "a", &key)).await.unwrap_err();
    assert_eq!(reason(&status), "BAD_TOKEN");
    assert!(status.message().contains("make a new one"), "{status}");
}

#[tokio::test]
async fn only_the_public_key_of_a_request_counts() {
    let fleet = Fleet::start().await;
    let token = token(&fleet, "a").await;
    let pair = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::default();
    greedy.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let wish = format!("spiffe://{}/operator/mallory", crate::fixture::TRUST_DOMAIN);
    greedy.subject_alt_names = vec![SanType::URI(wish.as_str().try_into().unwrap())];
    let csr = greedy.serialize_request(&pair).unwrap();
    let key = HostKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
    let request =
        node::EnrolRequest { csr_der: csr.der().to_vec(), ..enrol_request(&token, "a", &key) };
    let answer = enrol(&fleet, request).await.unwrap();
    let identity = identity(key, &answer);
    assert_eq!(identity.peer().identity.role(), Role::Agent);
    assert_eq!(identity.peer().identity.name(), "a");
}

#[tokio::test]
async fn malformed_requests_name_every_field_and_use_nothing_up() {
    let fleet = Fleet::start().await;
    let token = token(&fleet, "a").await;
    let empty = enrol(&fleet, node::EnrolRequest::default()).await.unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
    assert_eq!(fields(&empty), ["token_id", "token_secret", "csr_der", "host"]);
    let key = HostKey::generate().unwrap();
    let mut garbled = enrol_request(&token, "a", &key);
    garbled.csr_der = vec![0x30, 0x82, 0xff];
    assert_eq!(fields(&enrol(&fleet, garbled).await.unwrap_err()), ["csr_der"]);
    // Signed with another key than the one that it is for.
    let mut forged = enrol_request(&token, "a", &key);
    let last = forged.csr_der.len() - 3;
    forged.csr_der[last] ^= 1;
    assert_eq!(fields(&enrol(&fleet, forged).await.unwrap_err()), ["csr_der"]);
    enrol(&fleet, enrol_request(&token, "a", &key)).await.unwrap();
}

#[tokio::test]
async fn guessing_is_slowed_down() {
    let fleet = Fleet::start().await;
    let good = token(&fleet, "a").await;
    let key = HostKey::generate().unwrap();
    let mut client = EnrolmentServiceClient::new(fleet.stranger().await);
    let mut codes = Vec::new();
    for guess in 0..12 {
        let mut request = enrol_request(&good, "a", &key);
        request.token_secret[0] ^= guess + 1;
        codes.push(client.enrol(request).await.unwrap_err().code());
    }
    assert_eq!(codes[0], Code::Unauthenticated);
    assert_eq!(codes[11], Code::ResourceExhausted);
    // Nothing was written for any of it.
    assert_eq!(fleet.operator().await.audit("").await.len(), 2);
}

#[tokio::test]
async fn with_a_wrong_pin_the_secret_is_never_sent() {
    let fleet = Fleet::start().await;
    let pin = HostKey::generate().unwrap().pin();
    let config = tls().enrolment_client(pin).unwrap();
    connect(fleet.address(), config).await.unwrap_err();
}

#[tokio::test]
async fn renewal_keeps_the_identity_and_the_session() {
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    agent.desired().await;
    let mut client = EnrolmentServiceClient::new(fleet.channel_as(&identity).await);
    let key = HostKey::generate().unwrap();
    let request = node::RenewRequest { csr_der: key.csr().unwrap().der().to_vec() };
    let answer = client.renew(request.clone()).await.unwrap().into_inner();
    let again = client.renew(request).await.unwrap().into_inner();
    assert_eq!(answer, again, "a lost reply comes again");
    let (chain, bundle) = (&answer.certificate_chain_pem, &answer.ca_bundle_pem);
    let renewed = ClientIdentity::from_pem(Arc::new(key), chain, bundle).unwrap();
    assert_eq!(renewed.peer().identity, identity.peer().identity);
    assert_ne!(renewed.peer().serial, identity.peer().serial);

    let mut operator = fleet.operator().await;
    operator.create_instance("demo", "a").await.unwrap();
    assert_eq!(agent.desired().await.1.instances.len(), 1, "the old session goes on");
    Agent::connect(&fleet, &renewed, hello("a", "boot-1")).await;
    let empty = client.renew(node::RenewRequest::default()).await.unwrap_err();
    assert_eq!(fields(&empty), ["csr_der"]);
}

#[tokio::test]
async fn joining_again_ends_the_identity_before() {
    let fleet = Fleet::start().await;
    let old = fleet.join("a").await;
    let mut agent = Agent::connect(&fleet, &old, hello("a", "boot-1")).await;
    let mut operator = fleet.operator().await;
    let token = operator.join_token("a").await.unwrap();
    let key = HostKey::generate().unwrap();
    let answer = enrol(&fleet, enrol_request(&token, "a", &key)).await.unwrap();
    assert_eq!(reason(&agent.end().await), "CERTIFICATE_REVOKED");
    let refused = Agent::try_connect(&fleet, &old, hello("a", "boot-1")).await;
    assert_eq!(reason(&refused.err().unwrap()), "CERTIFICATE_REVOKED");
    Agent::connect(&fleet, &identity(key, &answer), hello("a", "boot-1")).await;
}
