//! What the authority signs, and for whom; how it is kept.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use claw_identity::{
    AuthorityError, BundleError, CaBundle, CertificateAuthority, Csr, HostKey, IssueError,
    IssueRequest, KeyError, PrivateFileError, SpkiPin, Subject, peer_identity,
};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::support::{DAY, agent, authority, client_of, dns, domain, now, server_name, uri};

fn request(subject: Subject) -> IssueRequest {
    IssueRequest { subject, not_before: now(), lifetime: CertificateAuthority::AGENT_LIFETIME }
}

#[test]
fn only_the_key_of_a_request_counts() {
    let greedy_key = HostKey::generate().unwrap();
    let mut greedy = CertificateParams::default();
    greedy.distinguished_name.push(DnType::CommonName, "operator/eve");
    greedy.subject_alt_names = vec![uri("spiffe://fleet.test/operator/eve"), dns("evil.test")];
    greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    greedy.custom_extensions =
        vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999], vec![5, 0])];
    let csr = Csr::from_der(greedy.serialize_request(&greedy_key).unwrap().der()).unwrap();
    assert_eq!(csr.pin(), greedy_key.pin());

    let authority = authority();
    let wanted = request(Subject::Client(agent("host-1")));
    let issued = authority.issue_from_csr(&csr, &wanted, &mut rand::rng()).unwrap();
    let peer = peer_identity(&issued.certificate, &domain()).unwrap();
    assert_eq!(peer.identity, agent("host-1"));
    assert_eq!(peer.serial, issued.serial);
    assert_eq!((peer.not_before, peer.not_after), (issued.not_before, issued.not_after));

    let (_rest, certificate) = X509Certificate::from_der(&issued.certificate).unwrap();
    assert_eq!(SpkiPin::of_spki(certificate.public_key().raw), greedy_key.pin());
    assert!(!certificate.is_ca());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    assert_eq!(certificate.subject().to_string(), "CN=agent/host-1");
    let text = String::from_utf8_lossy(&issued.certificate).into_owned();
    assert!(!text.contains("eve") && !text.contains("evil"));
    // Basic constraints, both key usages, names, both key identifiers: nothing else.
    assert!(certificate.extensions().len() <= 6, "{:?}", certificate.extensions());
}

#[test]
fn agents_live_seven_days_and_serials_never_repeat() {
    let authority = authority();
    let mut serials = BTreeSet::new();
    for number in 0..20 {
        let identity = client_of(&authority, agent(&format!("host-{number}")));
        let life = identity.peer().not_after.duration_since(identity.peer().not_before);
        assert_eq!(life.unwrap(), 7 * DAY);
        assert!(serials.insert(identity.peer().serial.clone()));
    }
}

#[test]
fn impossible_requests_are_refused() {
    let authority = authority();
    let csr = HostKey::generate().unwrap().csr().unwrap();
    let rng = &mut rand::rng();
    let mut wanted = request(Subject::Client(agent("host-1")));
    wanted.lifetime = 3650 * DAY;
    let outlives = authority.issue_from_csr(&csr, &wanted, rng);
    assert!(matches!(outlives, Err(IssueError::OutlivesAuthority)));
    for lifetime in [Duration::ZERO, Duration::from_millis(999), Duration::MAX] {
        wanted.lifetime = lifetime;
        let impossible = authority.issue_from_csr(&csr, &wanted, rng);
        assert!(matches!(impossible, Err(IssueError::Lifetime)), "{lifetime:?}");
    }
    let nameless = authority.issue_from_csr(&csr, &request(Subject::Server(vec![])), rng);
    assert!(matches!(nameless, Err(IssueError::NoNames)));
}

#[test]
fn authority_comes_back_from_its_directory() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("ca");
    let made = authority();
    made.save(&directory).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(directory.clone()), 0o700);
    assert_eq!(mode(directory.join("root-key.pem")), 0o600);

    let loaded = CertificateAuthority::load(&directory).unwrap();
    assert_eq!(loaded.spki_pin(), made.spki_pin());
    assert_eq!(loaded.root_pem(), made.root_pem());
    assert_eq!(loaded.trust_domain(), &domain());
    assert_eq!(loaded.key_id(), made.key_id());
    assert_eq!(loaded.not_after(), now() - DAY + 3650 * DAY);
    assert!(loaded.bundle().unwrap().contains(&made.spki_pin()));
    // What one signs, the other's bundle trusts.
    assert_eq!(client_of(&loaded, agent("a")).peer().issuer_key_id, *made.key_id());

    let again = made.save(&directory);
    assert!(matches!(
        again,
        Err(AuthorityError::Key(KeyError::File(PrivateFileError::Exists { .. })))
    ));
}

#[test]
fn loose_or_foreign_key_files_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("ca");
    authority().save(&directory).unwrap();
    let key = directory.join("root-key.pem");
    for mode in [0o640, 0o604, 0o666] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        assert!(matches!(
            CertificateAuthority::load(&directory),
            Err(AuthorityError::Key(KeyError::File(PrivateFileError::Loose { .. })))
        ));
    }
    fs::remove_file(&key).unwrap();
    HostKey::generate().unwrap().save(&key).unwrap();
    assert!(matches!(CertificateAuthority::load(&directory), Err(AuthorityError::Mismatch)));
}

#[test]
fn bundles_hold_authorities_only() {
    let (old, new) = (authority(), authority());
    let leaf = client_of(&old, agent("host-1")).chain()[0].clone();
    assert!(matches!(CaBundle::new(vec![leaf]), Err(BundleError::NotAuthority { position: 1 })));
    assert!(matches!(CaBundle::new(vec![]), Err(BundleError::Pem(_))));
    assert!(matches!(CaBundle::from_pem("no certificate"), Err(BundleError::Pem(_))));

    let both = old.bundle().unwrap().with(&new.bundle().unwrap()).with(&old.bundle().unwrap());
    assert_eq!(both.pins(), [old.spki_pin(), new.spki_pin()]);
    assert_eq!(CaBundle::from_pem(&both.to_pem()).unwrap(), both);
    let server = old.issue_server(vec![server_name()], now(), DAY, &mut rand::rng()).unwrap();
    assert_eq!(server.chain().len(), 2);
}
