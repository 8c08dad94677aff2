//! `clawd join`: gives this host its identity.
//!
//! The host makes its key (mode 0600) and dials the coordinator; the handshake fails unless the server
//! proves to be of the authority whose pin is in the token, so the token's secret is only ever sent to
//! that. A lost answer is asked for again with the same key: run the command once more.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use claw_core::name::HostName;
use claw_identity::{
    ClientIdentity, HostKey, IdentityDir, IdentityDirError, JoinToken, KeyError, Role, Tls,
};
use claw_proto::node::v1::EnrolRequest;
use claw_proto::node::v1::enrolment_service_client::EnrolmentServiceClient;
use tonic::{Code, Status};

use crate::joined;
use crate::session::address::Address;
use crate::session::dial::{DialError, dial};

/// The coordinator may take this long.
const ANSWER: Duration = Duration::from_secs(30);

/// What joining needs.
#[derive(Debug)]
pub struct JoinRequest {
    /// Where the coordinator is.
    pub coordinator: Address,
    /// The one-time token.
    pub token: JoinToken,
    /// The host's name in the fleet.
    pub host: HostName,
    /// The agent's data directory.
    pub data_dir: PathBuf,
}

/// Why the host did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The data directory cannot be made.
    #[error("cannot make {}; hint: run as root", path.display())]
    DataDir {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The identity cannot be kept.
    #[error("cannot keep the host's identity")]
    Identity(#[from] IdentityDirError),
    /// No key could be made.
    #[error("cannot make the host's key")]
    Key(#[from] KeyError),
    /// No connection; the token was not sent.
    #[error("cannot connect; the token was not sent")]
    Dial(#[from] DialError),
    /// TLS cannot be set up; the token was not sent.
    #[error("cannot set up tls")]
    Tls(#[from] claw_identity::TlsError),
    /// The coordinator refused the token.
    #[error(
        "the coordinator refuses the token for host {host}: {message}; hint: tokens work once, for one \
         host, for a limited time; make a new one"
    )]
    Refused {
        /// The host's name.
        host: HostName,
        /// What the coordinator said.
        message: String,
    },
    /// Too many attempts.
    #[error("too many attempts to join: {message}; hint: wait a minute and run the command again")]
    TooMany {
        /// What the coordinator said.
        message: String,
    },
    /// Anything else; it may have worked, and the same command finds out.
    #[error(
        "no answer to the enrolment; hint: run the same command again, it picks up where this one stopped"
    )]
    Lost(#[source] Box<Status>),
    /// The certificate is not what was asked for.
    #[error("the coordinator answered with a certificate for {got}, wanted {wanted}")]
    Stranger {
        /// Whose it is.
        got: String,
        /// Whose it should be.
        wanted: String,
    },
    /// The returned authorities are not the pinned ones.
    #[error("the coordinator answered with another authority than the token names")]
    OtherAuthority,
    /// The coordinator's address cannot be recorded.
    #[error("cannot record the coordinator's address")]
    Record(#[source] io::Error),
}

/// Joins the fleet; a host that has an identity already gets a new one in its place.
///
/// # Errors
/// [`JoinError`]; the identity that the host had is unchanged then.
pub async fn join(tls: &Tls, request: &JoinRequest) -> Result<ClientIdentity, JoinError> {
    make_data_dir(&request.data_dir)?;
    let directory = IdentityDir::open(joined::identity_dir(&request.data_dir))?;
    let key = directory.pending_key()?;
    let config = tls.enrolment_client(request.token.pin())?;
    let channel = dial(&request.coordinator, config).await?;
    let mut client = EnrolmentServiceClient::new(channel);
    let enrol = enrol_request(request, &key)?;
    let answer = match tokio::time::timeout(ANSWER, client.enrol(enrol)).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(refusal(&directory, request, status)),
        Err(_elapsed) => {
            let status = Status::deadline_exceeded("the coordinator did not answer");
            return Err(JoinError::Lost(Box::new(status)));
        }
    };
    let identity = ClientIdentity::from_pem(
        Arc::new(key),
        &answer.certificate_chain_pem,
        &answer.ca_bundle_pem,
    )?;
    check(request, &identity)?;
    joined::record(&request.data_dir, &request.coordinator).map_err(JoinError::Record)?;
    directory.install(&identity)?;
    Ok(identity)
}

fn make_data_dir(path: &Path) -> Result<(), JoinError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| JoinError::DataDir { path: path.to_owned(), source })
}

fn enrol_request(request: &JoinRequest, key: &HostKey) -> Result<EnrolRequest, JoinError> {
    Ok(EnrolRequest {
        token_id: request.token.id().to_string(),
        token_secret: secret_of(&request.token),
        csr_der: key.csr()?.der().to_vec(),
        host: request.host.to_string(),
    })
}

/// The secret's bytes. The token was parsed, so its third part is base64url.
fn secret_of(token: &JoinToken) -> Vec<u8> {
    let text = token.reveal();
    let secret = text.split('.').nth(2).unwrap_or_default();
    URL_SAFE_NO_PAD.decode(secret).unwrap_or_default()
}

fn refusal(directory: &IdentityDir, request: &JoinRequest, status: Status) -> JoinError {
    let message = status.message().to_owned();
    match status.code() {
        Code::Unauthenticated | Code::InvalidArgument | Code::PermissionDenied => {
            // Another token comes with another key; a failure to remove it changes nothing.
            let _removed = directory.discard_pending_key();
            JoinError::Refused { host: request.host.clone(), message }
        }
        Code::ResourceExhausted => JoinError::TooMany { message },
        _ => JoinError::Lost(Box::new(status)),
    }
}

fn check(request: &JoinRequest, identity: &ClientIdentity) -> Result<(), JoinError> {
    let got = &identity.peer().identity;
    if got.role() != Role::Agent || got.name() != request.host.as_str() {
        let wanted = format!("{}/{}", Role::Agent, request.host);
        return Err(JoinError::Stranger { got: got.to_string(), wanted });
    }
    if !identity.bundle().contains(&request.token.pin()) {
        return Err(JoinError::OtherAuthority);
    }
    Ok(())
}
