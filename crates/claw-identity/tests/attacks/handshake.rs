//! Who gets through a handshake, and who does not; nothing is sent to those who do not.

use std::sync::Arc;
use std::time::Duration;

use claw_identity::{
    Admission, CertificateAuthority, ClientIdentity, PeerIdentity, Role, ServerIdentity, SpkiPin,
    peer_of_connection, provider,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::{HandshakeKind, ProtocolVersion, ServerConfig};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::support::{
    DAY, Forger, agent, agent_tls_at, authority, client_of, dns, domain, meet, now, raw_client,
    server_name, server_of, tls_at, uri,
};

fn server(authority: &CertificateAuthority, admission: Admission) -> ServerConfig {
    let clients = authority.bundle().unwrap();
    tls_at(now()).server(&server_of(authority), &clients, &domain(), admission).unwrap()
}

/// What a forger does to a good certificate.
type Change = fn(&mut CertificateParams);

/// A server of the fleet that trusts the forger's clients.
fn deceived_server(authority: &CertificateAuthority, forger: &Forger) -> ServerConfig {
    let clients = forger.bundle();
    let identity = server_of(authority);
    tls_at(now()).server(&identity, &clients, &domain(), Admission::CertifiedOrNew).unwrap()
}

#[test]
fn agent_and_coordinator_meet_with_a_provider_each() {
    let authority = authority();
    let identity = client_of(&authority, agent("host-1"));
    let config = agent_tls_at(now()).client(&identity).unwrap();
    let met = meet(config, server(&authority, Admission::Certified), &server_name()).succeeded();
    assert_eq!(met.server.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(met.server.alpn_protocol(), Some(b"h2".as_slice()));
    assert_eq!(met.client.alpn_protocol(), Some(b"h2".as_slice()));
    let peer = peer_of_connection(&met.server, &domain()).unwrap();
    assert_eq!(peer.as_ref(), Some(identity.peer()));
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
}

#[test]
fn every_role_is_recognised_by_name_and_address() {
    let authority = authority();
    let server = Arc::new(server(&authority, Admission::Certified));
    for role in [Role::Agent, Role::Service, Role::Operator, Role::Viewer] {
        let identity = client_of(&authority, PeerIdentity::new(role, "x").unwrap());
        let config = tls_at(now()).client(&identity).unwrap();
        let address = "192.0.2.7".try_into().unwrap();
        let met = meet(config, Arc::clone(&server), &address).succeeded();
        let peer = peer_of_connection(&met.server, &domain()).unwrap().unwrap();
        assert_eq!(peer.identity.role(), role);
    }
}

#[test]
fn sessions_are_never_resumed() {
    let authority = authority();
    let identity = client_of(&authority, agent("host-1"));
    let server = Arc::new(server(&authority, Admission::Certified));
    // This client would resume.
    let bundle = authority.bundle().unwrap();
    let eager = Arc::new(raw_client(&bundle, identity.chain().to_vec(), identity.key()));
    for _round in 0..3 {
        let met = meet(Arc::clone(&eager), Arc::clone(&server), &server_name()).succeeded();
        assert_eq!(met.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(met.client.tls13_tickets_received(), 0);
    }
    // And against a server that hands out tickets, our client does not.
    let mut generous = ServerConfig::clone(&server);
    generous.send_tls13_tickets = 2;
    generous.session_storage = rustls::server::ServerSessionMemoryCache::new(16);
    let (generous, ours) =
        (Arc::new(generous), Arc::new(agent_tls_at(now()).client(&identity).unwrap()));
    for _round in 0..2 {
        let met = meet(Arc::clone(&ours), Arc::clone(&generous), &server_name()).succeeded();
        assert_eq!(met.client.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn client_of_another_authority_is_refused() {
    let (ours, theirs) = (authority(), authority());
    let stranger = client_of(&theirs, agent("host-1"));
    let key = stranger.key();
    let client = raw_client(&ours.bundle().unwrap(), stranger.chain().to_vec(), key);
    for admission in [Admission::Certified, Admission::CertifiedOrNew] {
        meet(client.clone(), server(&ours, admission), &server_name())
            .refused_by_server("UnknownIssuer");
    }
}

#[test]
fn dates_of_the_client_are_checked() {
    let authority = authority();
    let identity = client_of(&authority, agent("host-1"));
    let clients = authority.bundle().unwrap();
    let at = |time| {
        let identity = server_of(&authority);
        tls_at(time).server(&identity, &clients, &domain(), Admission::CertifiedOrNew).unwrap()
    };
    let client = || agent_tls_at(now()).client(&identity).unwrap();
    let second = Duration::from_secs(1);
    let peer = identity.peer();
    meet(client(), at(peer.not_after), &server_name()).succeeded();
    meet(client(), at(peer.not_after + second), &server_name()).refused_by_server("Expired");
    meet(client(), at(peer.not_before), &server_name()).succeeded();
    meet(client(), at(peer.not_before - second), &server_name()).refused_by_server("NotValidYet");
}

#[test]
fn dates_of_the_server_are_checked() {
    let authority = authority();
    let identity = client_of(&authority, agent("host-1"));
    let met_at = |time, pinned| {
        let tls = agent_tls_at(time);
        let config = if pinned {
            tls.enrolment_client(authority.spki_pin()).unwrap()
        } else {
            tls.client(&identity).unwrap()
        };
        meet(config, server(&authority, Admission::CertifiedOrNew), &server_name())
    };
    for pinned in [false, true] {
        met_at(now(), pinned).succeeded();
        met_at(now() + 40 * DAY, pinned).refused_by_client("Expired");
        met_at(now() - 2 * DAY, pinned).refused_by_client("NotValidYet");
    }
}

#[test]
fn without_a_certificate_only_enrolment_is_reached() {
    let authority = authority();
    let newcomer = agent_tls_at(now()).enrolment_client(authority.spki_pin()).unwrap();
    let strict = server(&authority, Admission::Certified);
    meet(newcomer.clone(), strict, &server_name()).refused_by_server("NoCertificatesPresented");
    let open = server(&authority, Admission::CertifiedOrNew);
    let met = meet(newcomer, open, &server_name()).succeeded();
    assert_eq!(peer_of_connection(&met.server, &domain()), Ok(None));
}

#[test]
fn server_certificate_is_no_client() {
    let authority = authority();
    let stolen = server_of(&authority);
    let client = raw_client(&authority.bundle().unwrap(), stolen.chain().to_vec(), stolen.key());
    meet(client, server(&authority, Admission::CertifiedOrNew), &server_name())
        .refused_by_server("InvalidPurpose");
}

#[test]
fn certificate_that_no_peer_should_have_is_refused_in_the_handshake() {
    let authority = authority();
    let good = "spiffe://fleet.test/agent/host-1";
    let changes: [(&str, Change); 6] = [
        ("UriCount { found: 2 }", |p| {
            p.subject_alt_names.push(uri("spiffe://fleet.test/operator/eve"));
        }),
        ("Foreign", |p| p.subject_alt_names = vec![uri("spiffe://other.test/agent/host-1")]),
        ("Role", |p| p.subject_alt_names = vec![uri("spiffe://fleet.test/root/host-1")]),
        ("NotClient", |p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth)),
        ("NotClient", |p| p.extended_key_usages.clear()),
        ("OtherNames", |p| p.subject_alt_names.push(dns("fleet.test"))),
    ];
    for (reason, change) in changes {
        let forger = Forger::new();
        let server = deceived_server(&authority, &forger);
        let (key, certificate) = forger.client(|_good| {});
        let client = raw_client(&authority.bundle().unwrap(), vec![certificate], &key);
        let met = meet(client, server.clone(), &server_name()).succeeded();
        let peer = peer_of_connection(&met.server, &domain()).unwrap().unwrap();
        assert_eq!(peer.identity.spiffe_id(&domain()), good);

        let (key, certificate) = forger.client(change);
        let client = raw_client(&authority.bundle().unwrap(), vec![certificate], &key);
        meet(client, server, &server_name()).refused_by_server(reason);
    }
}

/// A server that shows anything.
fn impostor(chain: Vec<CertificateDer<'static>>, key: &claw_identity::HostKey) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(provider::aws_lc_rs())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key.private_key_der())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

#[test]
fn agent_cannot_pose_as_the_coordinator() {
    let authority = authority();
    let identity = client_of(&authority, agent("host-1"));
    let root = authority.bundle().unwrap().roots()[0].clone();
    let evil = client_of(&authority, agent("coordinator.fleet.test"));
    let chain = vec![evil.chain()[0].clone(), root];
    let tls = agent_tls_at(now());
    meet(tls.client(&identity).unwrap(), impostor(chain.clone(), evil.key()), &server_name())
        .refused_by_client("InvalidPurpose");
    let pinned = tls.enrolment_client(authority.spki_pin()).unwrap();
    meet(pinned, impostor(chain, evil.key()), &server_name()).refused_by_client("InvalidPurpose");
}

#[test]
fn server_certificate_must_be_for_servers_only() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let forger = Forger::new();
    let pin = forger.bundle().pins()[0];
    let cases = [
        (vec![ClientAuth], "InvalidPurpose"),
        (vec![ServerAuth, ClientAuth], "NotServer"),
        (vec![], "NotServer"),
    ];
    for (usages, reason) in cases {
        let (key, leaf) = forger.client(|p| {
            p.subject_alt_names = vec![dns(crate::support::SERVER)];
            p.extended_key_usages = usages;
        });
        let (client_key, client_leaf) = forger.client(|_good| {});
        let identity =
            ClientIdentity::new(Arc::new(client_key), vec![client_leaf], forger.bundle()).unwrap();
        let chain = vec![leaf, forger.root.clone()];
        let tls = agent_tls_at(now());
        meet(tls.client(&identity).unwrap(), impostor(chain.clone(), &key), &server_name())
            .refused_by_client(reason);
        meet(tls.enrolment_client(pin).unwrap(), impostor(chain, &key), &server_name())
            .refused_by_client(reason);
    }
}

#[test]
fn server_of_another_authority_or_name_is_refused() {
    let (ours, theirs) = (authority(), authority());
    let identity = client_of(&ours, agent("host-1"));
    let config = || agent_tls_at(now()).client(&identity).unwrap();
    meet(config(), server(&theirs, Admission::CertifiedOrNew), &server_name())
        .refused_by_client("UnknownIssuer");
    let elsewhere = "other.fleet.test".try_into().unwrap();
    meet(config(), server(&ours, Admission::Certified), &elsewhere)
        .refused_by_client("NotValidForName");
    let pinned = agent_tls_at(now()).enrolment_client(ours.spki_pin()).unwrap();
    meet(pinned, server(&ours, Admission::CertifiedOrNew), &elsewhere)
        .refused_by_client("NotValidForName");
}

#[test]
fn wrong_pin_keeps_the_secret() {
    let (ours, theirs) = (authority(), authority());
    let pinned = || agent_tls_at(now()).enrolment_client(ours.spki_pin()).unwrap();
    meet(pinned(), server(&ours, Admission::CertifiedOrNew), &server_name()).succeeded();
    meet(pinned(), server(&theirs, Admission::CertifiedOrNew), &server_name())
        .refused_by_client("PinNotFound");
}

#[test]
fn root_must_be_presented_and_must_have_signed() {
    let ours = authority();
    let root = ours.bundle().unwrap().roots()[0].clone();
    let pinned = || agent_tls_at(now()).enrolment_client(ours.spki_pin()).unwrap();
    let good = server_of(&ours);
    let alone = impostor(vec![good.chain()[0].clone()], good.key());
    meet(pinned(), alone, &server_name()).refused_by_client("PinNotFound");

    // The real root shown behind a server certificate of the attacker's own.
    let theirs = authority();
    let evil: ServerIdentity = server_of(&theirs);
    let chain = vec![evil.chain()[0].clone(), evil.chain()[1].clone(), root.clone()];
    meet(pinned(), impostor(chain, evil.key()), &server_name()).refused_by_client("UnknownIssuer");

    // A certificate that the attacker made around the pinned public key, named like its own root.
    let forger = Forger::new();
    let (_rest, parsed) = X509Certificate::from_der(&root).unwrap();
    let spki = parsed.public_key().raw;
    assert_eq!(SpkiPin::of_spki(spki), ours.spki_pin());
    let around = forger.around(spki, CertificateParams::default().distinguished_name);
    let (key, leaf) = forger.client(|p| {
        p.subject_alt_names = vec![dns(crate::support::SERVER)];
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let chain = vec![leaf, around, forger.root.clone()];
    meet(pinned(), impostor(chain, &key), &server_name()).refused_by_client("BadSignature");

    // A leaf whose key is pinned is no authority.
    let pinned_leaf = agent_tls_at(now()).enrolment_client(good.key().pin()).unwrap();
    let chain = vec![good.chain()[0].clone(), good.chain()[0].clone(), root];
    meet(pinned_leaf, impostor(chain, good.key()), &server_name()).refused_by_client("PinNotFound");
}

#[test]
fn tls_1_2_is_refused_on_both_sides() {
    let authority = authority();
    let identity = client_of(&authority, agent("host-1"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(authority.bundle().unwrap().roots().iter().cloned());
    let old_client = rustls::ClientConfig::builder_with_provider(provider::ring())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().private_key_der())
        .unwrap();
    meet(old_client, server(&authority, Admission::Certified), &server_name())
        .refused_by_server("PeerIncompatible");

    let good = server_of(&authority);
    let old_server = || {
        ServerConfig::builder_with_provider(provider::aws_lc_rs())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(good.chain().to_vec(), good.key().private_key_der())
            .unwrap()
    };
    let tls = agent_tls_at(now());
    meet(tls.client(&identity).unwrap(), old_server(), &server_name())
        .refused_by_server("PeerIncompatible");
    meet(tls.enrolment_client(authority.spki_pin()).unwrap(), old_server(), &server_name())
        .refused_by_server("PeerIncompatible");
}

#[test]
fn both_generations_meet_during_a_rotation() {
    let (old, new) = (authority(), authority());
    let both = old.bundle().unwrap().with(&new.bundle().unwrap());
    let (old_client, new_client) = (client_of(&old, agent("a")), client_of(&new, agent("b")));
    for server in [server_of(&old), server_of(&new)] {
        let config = Arc::new(
            tls_at(now()).server(&server, &both, &domain(), Admission::Certified).unwrap(),
        );
        for (client, authority) in [(&old_client, &old), (&new_client, &new)] {
            let client = agent_tls_at(now()).client(&client.with_bundle(both.clone())).unwrap();
            let met = meet(client, Arc::clone(&config), &server_name()).succeeded();
            let peer = peer_of_connection(&met.server, &domain()).unwrap().unwrap();
            assert_eq!(peer.issuer_key_id, *authority.key_id());
        }
    }
}
