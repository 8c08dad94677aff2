//! Certificates that an authority should never have signed.

use claw_identity::{IdentityError, Role, peer_identity};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustls::pki_types::CertificateDer;

use crate::support::{Forger, agent, authority, client_of, dns, domain, now, uri};

#[track_caller]
fn check(change: impl FnOnce(&mut CertificateParams), expected: &str) {
    let (_key, certificate) = Forger::new().client(change);
    let outcome = peer_identity(&certificate, &domain());
    let text = outcome.map_or_else(|error| format!("{error:?}"), |peer| peer.identity.to_string());
    assert!(text.contains(expected), "{text} is not {expected}");
}

#[test]
fn good_certificate_names_its_peer() {
    let authority = authority();
    let identity = client_of(&authority, agent("host-1"));
    let peer = peer_identity(&identity.chain()[0], &domain()).unwrap();
    assert_eq!(peer, *identity.peer());
    assert_eq!(peer.identity.role(), Role::Agent);
    assert_eq!(peer.identity.name(), "host-1");
    assert_eq!(peer.issuer_key_id, *authority.key_id());
    assert!(peer.not_before < now() && now() < peer.not_after);
    check(|_good| {}, "agent/host-1");
}

#[test]
fn alternative_names_must_be_one_uri_of_ours() {
    let one = |text: &str| vec![uri(text)];
    let good = "spiffe://fleet.test/agent/host-1";
    check(|p| p.subject_alt_names = vec![], "UriCount { found: 0 }");
    check(
        |p| p.subject_alt_names = vec![uri(good), uri("spiffe://fleet.test/operator/eve")],
        "UriCount { found: 2 }",
    );
    check(|p| p.subject_alt_names = vec![uri(good), uri(good)], "UriCount { found: 2 }");
    check(|p| p.subject_alt_names = vec![uri(good), dns("fleet.test")], "OtherNames");
    check(|p| p.subject_alt_names = vec![dns("fleet.test")], "UriCount { found: 0 }");
    check(
        |p| p.subject_alt_names = vec![uri(good), SanType::IpAddress([192, 0, 2, 1].into())],
        "OtherNames",
    );
    check(|p| p.subject_alt_names = one("spiffe://other.test/agent/host-1"), "Foreign");
    check(|p| p.subject_alt_names = one("spiffe://fleet.test.evil/agent/host-1"), "Foreign");
    check(|p| p.subject_alt_names = one("spiffe://fleet.test/root/host-1"), "Role");
    check(|p| p.subject_alt_names = one("spiffe://fleet.test/agent/../operator"), "NotSpiffe");
    check(|p| p.subject_alt_names = one("spiffe://fleet.test/agent/HOST"), "Name");
    check(|p| p.subject_alt_names = one("https://fleet.test/agent/host-1"), "NotSpiffe");
}

#[test]
fn usage_must_be_client_authentication_only() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
    for usages in [
        vec![],
        vec![ServerAuth],
        vec![ClientAuth, ServerAuth],
        vec![ClientAuth, Any],
        vec![ClientAuth, CodeSigning],
        vec![ClientAuth, ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 99_999])],
    ] {
        check(move |p| p.extended_key_usages = usages, "NotClient");
    }
    check(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "Authority");
    check(|p| p.use_authority_key_identifier_extension = false, "Unnamed");
}

#[test]
fn damaged_certificates_are_refused_without_panic() {
    let (_key, good) = Forger::new().client(|_good| {});
    for length in 0..good.len() {
        let cut = CertificateDer::from_slice(&good[..length]);
        assert_eq!(peer_identity(&cut, &domain()), Err(IdentityError::Malformed));
    }
    let mut longer = good.to_vec();
    longer.push(0);
    assert_eq!(peer_identity(&longer.into(), &domain()), Err(IdentityError::Malformed));
    for index in 0..good.len() {
        let mut changed = good.to_vec();
        changed[index] ^= 0x55;
        // Any answer is right that is no panic: the signature is judged elsewhere.
        let _answer = peer_identity(&changed.into(), &domain());
    }
}
