//! A client's identity on disk, across crashes.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use claw_identity::{
    CertificateAuthority, ClientIdentity, HostKey, IdentityDir, IdentityDirError, IssueRequest,
    KeyError, PrivateFileError, Subject,
};

use crate::support::{DAY, agent, authority, client_of, now};

/// What a crash leaves in a directory.
type Crash = fn(&Path);

/// The certificate for the pending key, as an enrolment or renewal ends.
fn certified(authority: &CertificateAuthority, key: HostKey) -> ClientIdentity {
    let request = IssueRequest {
        subject: Subject::Client(agent("host-1")),
        not_before: now(),
        lifetime: DAY,
    };
    let csr = key.csr().unwrap();
    let issued = authority.issue_from_csr(&csr, &request, &mut rand::rng()).unwrap();
    ClientIdentity::from_pem(Arc::new(key), &issued.to_pem(), &authority.root_pem()).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn enrolment_then_renewal() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("identity");
    let authority = authority();
    let dir = IdentityDir::open(&path).unwrap();
    assert!(dir.load().unwrap().is_none());
    let pending = dir.pending_key().unwrap();
    // The same key after a restart: a lost reply can be asked for again.
    assert_eq!(IdentityDir::open(&path).unwrap().pending_key().unwrap().pin(), pending.pin());

    let first = certified(&authority, pending);
    dir.install(&first).unwrap();
    let loaded = dir.load().unwrap().unwrap();
    assert_eq!(loaded.peer(), first.peer());
    assert_eq!(loaded.key().pin(), first.key().pin());
    assert_eq!(loaded.bundle(), first.bundle());
    assert_eq!(loaded.trust_domain(), authority.trust_domain());
    assert_eq!(names(&path), ["current", "gen-1"]);
    assert_eq!((mode(&path), mode(&path.join("gen-1"))), (0o700, 0o700));
    assert_eq!(mode(&path.join("current/key.pem")), 0o600);

    let second = certified(&authority, dir.pending_key().unwrap());
    assert_ne!(second.key().pin(), first.key().pin());
    assert_eq!(dir.load().unwrap().unwrap().peer(), first.peer());
    dir.install(&second).unwrap();
    assert_eq!(dir.load().unwrap().unwrap().peer(), second.peer());
    assert_eq!(names(&path), ["current", "gen-2"]);

    // A rotated authority: same pair, more to trust.
    let next = crate::support::authority().bundle().unwrap();
    dir.install(&second.with_bundle(second.bundle().clone().with(&next))).unwrap();
    let loaded = dir.load().unwrap().unwrap();
    assert_eq!(loaded.bundle().roots().len(), 2);
    assert_eq!(loaded.peer(), second.peer());
}

/// Every state that a crash inside `install` can leave: the old pair or the new one, and the next
/// renewal works and tidies up.
#[test]
fn crash_leaves_a_matching_pair() {
    let authority = authority();
    let crash_points: [(&str, Crash); 6] = [
        ("empty generation", |path| fs::create_dir(path.join("gen-2")).unwrap()),
        ("key only", |path| {
            fs::create_dir(path.join("gen-2")).unwrap();
            HostKey::generate().unwrap().save(&path.join("gen-2/key.pem")).unwrap();
        }),
        ("complete but not current", |path| copy_generation(path)),
        ("link not renamed", |path| {
            copy_generation(path);
            symlink("gen-2", path.join(".current.next")).unwrap();
        }),
        ("renamed, pending key and old generation left", |path| {
            copy_generation(path);
            fs::remove_file(path.join("current")).unwrap();
            symlink("gen-2", path.join("current")).unwrap();
            fs::copy(path.join("gen-2/key.pem"), path.join("pending-key.pem")).unwrap();
        }),
        ("old generation half removed", |path| {
            copy_generation(path);
            fs::remove_file(path.join("current")).unwrap();
            symlink("gen-2", path.join("current")).unwrap();
            fs::remove_file(path.join("gen-1/cert.pem")).unwrap();
        }),
    ];
    for (point, crash) in crash_points {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("identity");
        let dir = IdentityDir::open(&path).unwrap();
        let before = certified(&authority, dir.pending_key().unwrap());
        dir.install(&before).unwrap();
        crash(&path);

        let dir = IdentityDir::open(&path).unwrap();
        let loaded = dir.load().unwrap_or_else(|error| panic!("{point}: {error}")).unwrap();
        assert_eq!(loaded.peer(), before.peer(), "{point}");
        let key = dir.pending_key().unwrap();
        assert_ne!(key.pin(), before.key().pin(), "{point}: a key is never renewed with itself");
        let after = certified(&authority, key);
        dir.install(&after).unwrap();
        assert_eq!(dir.load().unwrap().unwrap().peer(), after.peer(), "{point}");
        assert_eq!(names(&path).len(), 2, "{point}: {:?}", names(&path));
    }
}

fn copy_generation(path: &Path) {
    fs::create_dir(path.join("gen-2")).unwrap();
    fs::set_permissions(path.join("gen-2"), fs::Permissions::from_mode(0o700)).unwrap();
    for file in ["key.pem", "cert.pem", "ca.pem"] {
        fs::copy(path.join("gen-1").join(file), path.join("gen-2").join(file)).unwrap();
    }
}

#[test]
fn certificate_of_another_key_is_refused() {
    let authority = authority();
    let mine = client_of(&authority, agent("host-1"));
    let other = Arc::new(HostKey::generate().unwrap());
    let mixed = ClientIdentity::new(other, mine.chain().to_vec(), mine.bundle().clone());
    assert!(matches!(mixed, Err(IdentityDirError::Mismatch)));

    let parent = tempfile::tempdir().unwrap();
    let dir = IdentityDir::open(parent.path().join("identity")).unwrap();
    dir.install(&mine).unwrap();
    let key = dir.path().join("current/key.pem");
    fs::remove_file(&key).unwrap();
    HostKey::generate().unwrap().save(&key).unwrap();
    assert!(matches!(dir.load(), Err(IdentityDirError::Mismatch)));
}

#[test]
fn loose_files_and_directories_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("identity");
    let dir = IdentityDir::open(&path).unwrap();
    dir.install(&client_of(&authority(), agent("host-1"))).unwrap();
    let key = path.join("current/key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(
        dir.load(),
        Err(IdentityDirError::Key(KeyError::File(PrivateFileError::Loose { mode: 0o644, .. })))
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
    assert!(matches!(
        IdentityDir::open(&path),
        Err(IdentityDirError::File(PrivateFileError::Loose { mode: 0o750, .. }))
    ));
}

#[test]
fn renewal_is_due_at_a_third_of_the_life_and_spread() {
    let identity = client_of(&authority(), agent("host-1"));
    let start = identity.peer().not_before;
    let mut rng = rand::rng();
    let due: Vec<_> =
        (0..500).map(|_host| identity.renew_at(&mut rng).duration_since(start).unwrap()).collect();
    let third = 7 * DAY / 3;
    let (earliest, latest) = (due.iter().min().unwrap(), due.iter().max().unwrap());
    assert!(*earliest >= third * 9 / 10 && *latest <= third * 11 / 10);
    assert!(*latest - *earliest > third / 10, "all hosts would renew together");
    assert_eq!(identity.expires(), start + 7 * DAY);
}
