//! S3 as a storage: a repository in a real server, which checks signatures, and the troubles of a
//! network, from a server that answers as it is told.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;
#[path = "support/s3.rs"]
mod support_s3;

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use claw_snapshot::{
    Access, Credential, Extent, FileId, FileKind, OpenError, Repository, S3Fault, S3Patience,
    S3Secret, S3Settings, S3Storage, Source, Storage, StorageError, Subtree, Watcher,
};
use support::{Fixture, LATER, describe, noise, recovery, request, run, secret};
use support_s3::{Moto, Scripted, answer, refusal, settings};

fn fault(result: Result<impl std::fmt::Debug, StorageError>) -> S3Fault {
    let fault = result.unwrap_err();
    fault.s3_fault().unwrap_or_else(|| panic!("{fault:?}")).clone()
}

fn storage(settings: &S3Settings) -> S3Storage {
    S3Storage::open(settings, Access::Exclusive).unwrap()
}

#[test]
fn a_repository_lives_in_a_bucket_and_restic_reads_it() {
    let moto = Moto::start();
    let fixture = Fixture::new();
    fixture.write("state/db", noise(1, 6_000_000));
    fixture.write("notes", "hello\n".repeat(1000));
    let storage = moto.storage(Access::Exclusive);
    storage.prepare().unwrap();
    let absent = Repository::open(Arc::clone(&storage), &Credential::Secret(secret()));
    assert!(matches!(absent, Err(OpenError::Absent { .. })), "{absent:?}");
    let repository =
        Repository::create(Arc::clone(&storage), &secret(), &recovery(), &mut rand::rng()).unwrap();
    let source = Source::openclaw(&fixture.source());
    let taken = repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap();
    drop(repository);

    let shared = moto.storage(Access::Shared);
    let repository = Repository::open(shared, &Credential::Recovery(recovery())).unwrap();
    assert!(repository.verify(Extent::Everything).unwrap().is_sound());
    let into = fixture.path("out");
    let id = taken.snapshot.id;
    repository.restore(id, &Subtree::data(), &into, &Watcher::none()).unwrap();
    assert_eq!(describe(&into), describe(&fixture.source()));
    repository.forget(&[id].into()).unwrap_err();
    assert_eq!(repository.snapshots().unwrap().len(), 1);

    let place = format!("s3:{}/snapshots/hosts/one", moto.endpoint);
    assert_eq!(repository.location(), place);
    let environment = [
        ("RESTIC_PASSWORD", recovery().expose().to_owned()),
        ("RESTIC_REPOSITORY", place),
        ("AWS_ACCESS_KEY_ID", moto.access_key.clone()),
        ("AWS_SECRET_ACCESS_KEY", moto.secret_key.clone()),
        ("NO_PROXY", "127.0.0.1".to_owned()),
    ];
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let arguments = ["--no-cache", "--no-lock", "check", "--read-data"];
    let output = run("restic", &arguments, &environment);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no errors were found"), "{text}{errors}");
}

#[test]
fn the_contract_of_a_storage() {
    let moto = Moto::start();
    let storage = moto.storage(Access::Exclusive);
    let parts = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from_static(b"two")];
    let id = FileId::of(b"onetwo");
    for kind in FileKind::MANY {
        assert_eq!(storage.list(kind).unwrap(), []);
        storage.write(kind, id, &parts).unwrap();
        storage.write(kind, id, &parts).unwrap();
        assert_eq!(storage.read(kind, id).unwrap(), "onetwo");
        assert_eq!(storage.read_range(kind, id, 2..4).unwrap(), "et");
        assert_eq!(storage.read_range(kind, id, 2..2).unwrap(), "");
        assert!(matches!(fault(storage.read_range(kind, id, 4..9)), S3Fault::Short));
        assert!(matches!(fault(storage.read_range(kind, id, 9..12)), S3Fault::Short));
        assert_eq!(storage.list(kind).unwrap(), [(id, 6)]);
        assert_eq!(storage.list(FileKind::Config).unwrap(), []);
        storage.remove(kind, id).unwrap();
        storage.remove(kind, id).unwrap();
        assert_eq!(storage.list(kind).unwrap(), []);
        let absent = storage.read(kind, id).unwrap_err();
        assert_eq!(absent.source.kind(), std::io::ErrorKind::NotFound);
    }
    storage.write(FileKind::Config, id, &parts).unwrap();
    assert_eq!(storage.list(FileKind::Config).unwrap().len(), 1);
    let shared = moto.storage(Access::Shared);
    assert!(matches!(fault(shared.write(FileKind::Key, id, &parts)), S3Fault::ReadOnly));
    assert!(matches!(fault(shared.remove(FileKind::Config, id)), S3Fault::ReadOnly));
    // Neither below another prefix, nor beside one whose name begins alike.
    for prefix in ["hosts", "hosts/one/data", "hosts/on", ""] {
        let other = S3Settings { prefix: prefix.to_owned(), ..moto.settings() };
        let other = S3Storage::open(&other, Access::Shared).unwrap();
        for kind in FileKind::MANY {
            assert_eq!(other.list(kind).unwrap(), [], "{prefix}");
        }
    }
}

#[test]
fn what_keeps_it_from_working_is_said() {
    let moto = Moto::start();
    let refused = |settings: &S3Settings| fault(storage(settings).prepare());
    let good = moto.settings();
    let wrong = S3Settings { secret_key: S3Secret::new("wrong"), ..good.clone() };
    assert!(matches!(refused(&wrong), S3Fault::Credentials { .. }), "{:?}", refused(&wrong));
    let unknown = S3Settings { access_key: S3Secret::new("AKIANOBODY"), ..good.clone() };
    assert!(matches!(refused(&unknown), S3Fault::Credentials { .. }), "{:?}", refused(&unknown));
    let nowhere = S3Settings { bucket: "nowhere".to_owned(), ..good.clone() };
    assert_eq!(refused(&nowhere).to_string(), "there is no bucket nowhere");
    for kind in [FileKind::Config, FileKind::Snapshot] {
        let listed = fault(storage(&nowhere).list(kind));
        assert!(matches!(listed, S3Fault::NoBucket(_)), "{listed:?}");
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = S3Settings { endpoint: format!("http://127.0.0.1:{port}"), ..good.clone() };
    assert!(matches!(refused(&gone), S3Fault::Unreachable { .. }), "{:?}", refused(&gone));
    let unnamed = S3Settings { endpoint: "http://nobody.invalid".to_owned(), ..good };
    assert!(matches!(refused(&unnamed), S3Fault::Unreachable { .. }), "{:?}", refused(&unnamed));
}

#[test]
fn a_listing_has_every_page() {
    let moto = Moto::start();
    let storage = moto.storage(Access::Exclusive);
    let content = Bytes::from_static(b"x");
    let ids: BTreeSet<_> = (0..1003_u32).map(|number| FileId::of(&number.to_le_bytes())).collect();
    let all: Vec<_> = ids.iter().collect();
    std::thread::scope(|scope| {
        for some in all.chunks(600) {
            let (storage, content) = (&storage, &content);
            scope.spawn(move || {
                for id in some {
                    storage.write(FileKind::Pack, **id, std::slice::from_ref(content)).unwrap();
                }
            });
        }
    });
    let listed = storage.list(FileKind::Pack).unwrap();
    assert_eq!(listed.len(), ids.len());
    assert_eq!(listed.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>(), ids);
}

#[test]
fn tls_trusts_the_given_authority_and_no_other() {
    let fixture = Fixture::new();
    let make = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) =
            (fixture.path(&format!("{name}.pem")), fixture.path(&format!("{name}.key")));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    };
    let (certificate, key) = make("own");
    let (other, _) = make("other");
    let moto = Moto::start_tls(&certificate, &key);
    assert!(moto.endpoint.starts_with("https://"));
    let trusting = moto.storage(Access::Exclusive);
    let id = FileId::of(b"x");
    trusting.write(FileKind::Pack, id, &[Bytes::from_static(b"x")]).unwrap();
    assert_eq!(trusting.read(FileKind::Pack, id).unwrap(), "x");
    let strict = S3Settings { ca_file: other, ..moto.settings() };
    let refused = fault(storage(&strict).read(FileKind::Pack, id));
    assert!(matches!(refused, S3Fault::Untrusted { .. }), "{refused:?}");
    let refused = S3Storage::open(&S3Settings { ca_file: key, ..moto.settings() }, Access::Shared);
    assert!(refused.is_err());
}

#[test]
fn trouble_that_passes_is_waited_out() {
    let trouble = || {
        vec![
            refusal("500 Internal Server Error", "InternalError"),
            refusal("503 Slow Down", "SlowDown"),
            answer("429 Too Many Requests", &[], ""),
        ]
    };
    let id = FileId::of(b"x");
    let server = Scripted::start([trouble(), vec![answer("200 OK", &[], "x")]].concat());
    let read = storage(&settings(&server.endpoint)).read(FileKind::Key, id).unwrap();
    assert_eq!(read, "x");
    assert_eq!(server.requests().len(), 4);

    let stored = answer("200 OK", &["etag: \"9dd4e461268c8034f5c8564e155c67a6\""], "");
    let server = Scripted::start([trouble(), vec![stored]].concat());
    let parts = [Bytes::from_static(b"x")];
    storage(&settings(&server.endpoint)).write(FileKind::Key, id, &parts).unwrap();
    let requests = server.requests();
    for request in &requests {
        assert!(request.starts_with(&format!("PUT /snapshots/hosts/one/keys/{id} ")), "{request}");
        assert!(request.contains("content-md5: ndTkYSaMgDT1yFZOFVxnpg==\r\n"), "{request}");
    }

    // One try more than there are.
    let server = Scripted::start([trouble(), trouble()].concat()[..4].to_vec());
    let refused = fault(storage(&settings(&server.endpoint)).read(FileKind::Key, id));
    assert!(matches!(refused, S3Fault::Refused { status: 500, .. }), "{refused:?}");
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn what_does_not_pass_is_asked_once() {
    let id = FileId::of(b"x");
    for (status, code, expected) in [
        ("403 Forbidden", "AccessDenied", "the credentials do not allow this (AccessDenied)"),
        (
            "403 Forbidden",
            "RequestTimeTooSkewed",
            "the clock of this host or of the storage is wrong",
        ),
        ("507 Insufficient Storage", "QuotaExceeded", "the storage is full (QuotaExceeded)"),
        (
            "301 Moved Permanently",
            "PermanentRedirect",
            "the storage answered 301 PermanentRedirect",
        ),
        ("400 Bad Request", "a b\nc", "the storage answered 400 "),
    ] {
        let server = Scripted::start(vec![refusal(status, code)]);
        let refused = fault(storage(&settings(&server.endpoint)).read(FileKind::Key, id));
        assert_eq!(refused.to_string(), expected);
        assert_eq!(server.requests().len(), 1);
    }
}

#[test]
fn half_an_answer_is_none() {
    let cut = |mut answer: Vec<u8>| {
        answer.truncate(answer.len() - 1);
        answer
    };
    let id = FileId::of(b"x");
    let half = || cut(answer("200 OK", &[], "xyz"));
    let server = Scripted::start(vec![half(), half(), half(), answer("200 OK", &[], "xyz")]);
    assert_eq!(storage(&settings(&server.endpoint)).read(FileKind::Key, id).unwrap(), "xyz");
    assert_eq!(server.requests().len(), 4);
    let server = Scripted::start(vec![half(), half(), half(), half()]);
    let refused = fault(storage(&settings(&server.endpoint)).read(FileKind::Key, id));
    assert!(matches!(refused, S3Fault::Broken { .. }), "{refused:?}");
    server.requests();

    // Without a length, the end of a listing is known by its form alone.
    let list = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
    let unmeasured = |body: &str| format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes();
    let server = Scripted::start(vec![unmeasured(list)]);
    assert_eq!(storage(&settings(&server.endpoint)).list(FileKind::Snapshot).unwrap(), []);
    server.requests();
    let server = Scripted::start(vec![cut(unmeasured(list))]);
    let refused = fault(storage(&settings(&server.endpoint)).list(FileKind::Snapshot));
    assert!(matches!(refused, S3Fault::Answer(_)), "{refused:?}");
    server.requests();

    // The second page never comes.
    let first = format!(
        "<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>hosts/one/keys/{id}</Key>\
         <Size>1</Size></Contents><NextContinuationToken>a b</NextContinuationToken>\
         </ListBucketResult>"
    );
    let gone = || refusal("500 Internal Server Error", "InternalError");
    let server =
        Scripted::start(vec![answer("200 OK", &[], &first), gone(), gone(), gone(), gone()]);
    let refused = fault(storage(&settings(&server.endpoint)).list(FileKind::Key));
    assert!(matches!(refused, S3Fault::Refused { .. }), "{refused:?}");
    assert!(server.requests()[1].contains("continuation-token=a%20b&"));
    // Or is the first one again.
    let again = || answer("200 OK", &[], &first);
    let server = Scripted::start(vec![again(), again()]);
    let refused = fault(storage(&settings(&server.endpoint)).list(FileKind::Key));
    assert!(matches!(refused, S3Fault::Answer(_)), "{refused:?}");
    server.requests();
}

#[test]
fn what_was_stored_is_compared() {
    let id = FileId::of(b"x");
    let wrong = || answer("200 OK", &["etag: \"00000000000000000000000000000000\""], "");
    let parts = [Bytes::from_static(b"x")];
    let server = Scripted::start(vec![wrong(), wrong(), wrong(), wrong()]);
    let refused = fault(storage(&settings(&server.endpoint)).write(FileKind::Key, id, &parts));
    assert!(matches!(refused, S3Fault::Altered), "{refused:?}");
    server.requests();
    // A part that is no part.
    let server = Scripted::start(vec![answer("200 OK", &[], "xyz")]);
    let refused = fault(storage(&settings(&server.endpoint)).read_range(FileKind::Key, id, 0..1));
    assert!(matches!(refused, S3Fault::Answer(_)), "{refused:?}");
    server.requests();
}

#[test]
#[expect(clippy::disallowed_methods, reason = "waiting is what is tested")]
fn nobody_is_waited_for_endlessly() {
    // Accepts connections by itself and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let patience = S3Patience {
        stall: Duration::from_millis(200),
        retries: 1,
        ..settings(&endpoint).patience
    };
    let settings = S3Settings { patience, ..settings(&endpoint) };
    let begun = Instant::now();
    let refused = fault(storage(&settings).read(FileKind::Key, FileId::of(b"x")));
    assert!(matches!(refused, S3Fault::TimedOut { .. }), "{refused:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "time is what is limited")]
fn no_more_is_sent_than_allowed() {
    let bandwidth = NonZeroU64::new(1_000_000);
    let content = noise(1, 500_000);
    let server = Scripted::start(vec![answer("200 OK", &[], "")]);
    let limited = S3Settings { bandwidth, ..settings(&server.endpoint) };
    let begun = Instant::now();
    let parts = [Bytes::from(content)];
    storage(&limited).write(FileKind::Pack, FileId::of(b"x"), &parts).unwrap();
    let elapsed = begun.elapsed();
    assert!(elapsed >= Duration::from_millis(500), "{elapsed:?}");
    server.requests();
}
