//! The commands that make a fleet and hand out credentials. They work on the data directory, with
//! or without a running coordinator.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use claw_core::tier::TierCatalogue;
use claw_identity::{
    AuthorityError, CertificateAuthority, HostKey, IssueError, IssueRequest, KeyError,
    PeerIdentity, Subject, TrustDomain,
};

use crate::clock::{Clock, timestamp};
use crate::server::AUTHORITY;
use crate::server_certificate::{ServerCertificateError, ServerCertificates, parse_name};
use crate::store::audit::{self, Entry};
use crate::store::certificates::{self, CertificateRow};
use crate::store::{DATABASE, Store, StoreError};

/// Valid from this long ago, for callers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(300);

/// A new fleet.
#[derive(Debug, Clone)]
pub struct Init {
    /// Where its data goes; made when absent.
    pub data_dir: PathBuf,
    /// DNS names and addresses of the coordinator.
    pub names: Vec<String>,
    /// Stands in every certificate of the fleet.
    pub trust_domain: TrustDomain,
}

/// Credentials of a person or service.
#[derive(Debug, Clone)]
pub struct Issue {
    /// The fleet's data.
    pub data_dir: PathBuf,
    /// For whom.
    pub identity: PeerIdentity,
    /// Where `key.pem`, `cert.pem` and `ca.pem` go; made when absent.
    pub out: PathBuf,
    /// How long the certificate lives.
    pub lifetime: Duration,
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A fleet exists already.
    #[error("{} holds a fleet already; nothing was changed", path.display())]
    Exists {
        /// The data directory.
        path: PathBuf,
    },
    /// No names.
    #[error("the coordinator needs at least one name\nhint: --name coordinator.example.net")]
    NoNames,
    /// A file or directory.
    #[error("cannot write {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The authority.
    #[error("cannot use the authority")]
    Authority(#[from] AuthorityError),
    /// The server's certificate.
    #[error("cannot make the server certificate")]
    Certificate(#[from] ServerCertificateError),
    /// The store.
    #[error("cannot use the store")]
    Store(#[from] StoreError),
    /// A key.
    #[error("cannot make the key")]
    Key(#[from] KeyError),
    /// A certificate.
    #[error("cannot issue the certificate")]
    Issue(#[from] IssueError),
    /// The tiers, which these commands do not look at.
    #[error("cannot use the default tiers")]
    Tiers(#[from] claw_core::unit::OutOfRange),
}

/// Makes authority, seal key, database and server certificate.
///
/// # Errors
/// [`InitError`]; an interrupted init can be repeated.
pub fn init(request: &Init, clock: &Clock) -> Result<(), InitError> {
    if request.names.is_empty() {
        return Err(InitError::NoNames);
    }
    request.names.iter().try_for_each(|name| parse_name(name).map(|_name| ()))?;
    let data_dir = &request.data_dir;
    if data_dir.join(DATABASE).exists() {
        return Err(InitError::Exists { path: data_dir.clone() });
    }
    private_directory(data_dir)?;
    let directory = data_dir.join(AUTHORITY);
    let authority = if directory.exists() {
        CertificateAuthority::load(&directory)?
    } else {
        let not_before = clock.system_time() - BACKDATE;
        let domain = request.trust_domain.clone();
        let authority = CertificateAuthority::create(domain, not_before, &mut rand::rng())?;
        authority.save(&directory)?;
        authority
    };
    let names = &request.names;
    ServerCertificates { data_dir, authority: &authority, names, clock }.config()?;
    // Last: its presence says that the fleet is complete.
    Store::create(data_dir, names, clock.now())?;
    own_like_parent(data_dir)
}

/// Makes a key and a certificate, recorded and audited.
///
/// # Errors
/// [`InitError`]; existing files are not replaced.
pub async fn issue(request: &Issue, clock: &Clock) -> Result<(), InitError> {
    let store = Store::open(&request.data_dir, TierCatalogue::standard()?)?;
    let authority = CertificateAuthority::load(&request.data_dir.join(AUTHORITY))?;
    private_directory(&request.out)?;
    let key = HostKey::generate()?;
    let now = clock.now();
    let issued = authority.issue_from_csr(
        &key.csr()?,
        &IssueRequest {
            subject: Subject::Client(request.identity.clone()),
            not_before: clock.system_time() - BACKDATE,
            lifetime: request.lifetime + BACKDATE,
        },
        &mut rand::rng(),
    )?;
    key.save(&request.out.join("key.pem"))?;
    write_new(&request.out.join("cert.pem"), &issued.to_pem())?;
    write_new(&request.out.join("ca.pem"), &authority.root_pem())?;
    let row = CertificateRow {
        pem: issued.to_pem(),
        identity: request.identity.clone(),
        pin: key.pin().into(),
        issued: now,
        not_after: timestamp(issued.not_after),
        serial: issued.serial,
    };
    let entry = local_entry(
        "issue",
        format!("certificates/{}", row.serial),
        format!("certificate issued for {}", row.identity),
    );
    let recorded = store.write(move |connection, _keys| {
        certificates::insert(connection, &row)?;
        audit::append(connection, now, &entry)
    });
    recorded.await.map_err(StoreError::from)?;
    Ok(())
}

/// Denylists every certificate of a person or service; a running coordinator notices within
/// seconds. Returns how many there were.
///
/// # Errors
/// [`InitError`]
pub async fn deny(
    data_dir: &Path,
    identity: PeerIdentity,
    clock: &Clock,
) -> Result<usize, InitError> {
    let store = Store::open(data_dir, TierCatalogue::standard()?)?;
    let now = clock.now();
    let denied = store.write(move |connection, _keys| {
        let denied = certificates::deny_all(connection, &identity, now, "denied by command")?;
        let summary = format!("denylisted {} certificates of {identity}", denied.len());
        let entry = local_entry("deny", format!("certificates of {identity}"), summary);
        audit::append(connection, now, &entry)?;
        Ok(denied.len())
    });
    Ok(denied.await.map_err(StoreError::from)?)
}

fn local_entry(command: &str, resource: String, summary: String) -> Entry {
    Entry {
        principal: "local".to_owned(),
        source: String::new(),
        method: format!("claw-coordinator {command}"),
        resource,
        summary,
    }
}

fn private_directory(path: &Path) -> Result<(), InitError> {
    fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(path)
        .map_err(|source| InitError::File { path: path.to_owned(), source })
}

fn write_new(path: &Path, text: &str) -> Result<(), InitError> {
    use std::io::Write as _;
    let failed = |source| InitError::File { path: path.to_owned(), source };
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Run by root on a directory of the service's user, files must be that user's.
fn own_like_parent(directory: &Path) -> Result<(), InitError> {
    let failed = |source| InitError::File { path: directory.to_owned(), source };
    let owner = fs::metadata(directory).map_err(failed)?;
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let found = entry.metadata().map_err(failed)?;
            if (found.uid(), found.gid()) != (owner.uid(), owner.gid()) {
                chown(entry.path(), Some(owner.uid()), Some(owner.gid())).map_err(failed)?;
            }
            if found.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(())
}
