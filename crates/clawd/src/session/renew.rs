//! Renewing the host's certificate on a live connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use claw_core::event::{EventKind, Severity};
use claw_core::time::Timestamp;
use claw_identity::{ClientIdentity, IdentityDir, IdentityDirError, KeyError};
use claw_proto::node::v1::RenewRequest;
use claw_proto::node::v1::enrolment_service_client::EnrolmentServiceClient;
use tonic::transport::Channel;

use crate::agent::Agent;
use crate::logging::chain;
use crate::machine::Machine;
use crate::ports::Clock as _;

/// The coordinator may take this long.
const ANSWER: Duration = Duration::from_secs(30);
/// After a renewal failed; spread by as much again.
const RETRY: Duration = Duration::from_secs(60);

/// Why a certificate was not renewed; the present one stays in use.
#[derive(Debug, thiserror::Error)]
pub(super) enum RenewError {
    #[error("cannot use the identity directory")]
    Directory(#[from] IdentityDirError),
    #[error("cannot make a certificate request")]
    Key(#[from] KeyError),
    #[error("the coordinator refused")]
    Refused(#[source] Box<tonic::Status>),
    #[error("the coordinator did not answer within {} s", ANSWER.as_secs())]
    Silent,
    #[error("the new certificate is for {got}, this host is {own}")]
    Stranger { got: String, own: String },
}

/// Renews in time, again and again, until dropped. Each new identity is on disk, whole, before it counts;
/// the live session goes on with the old one, the next connection uses the new one.
pub(super) async fn keep<M: Machine>(
    agent: &Agent<M>,
    directory: &IdentityDir,
    identity: &ClientIdentity,
    channel: Channel,
) {
    let clock = agent.machine.clock();
    let mut at = millis(identity.renew_at(&mut rand::rng()));
    let mut current = identity.clone();
    loop {
        // A wall clock that steps is met by looking again at least every hour.
        let pause = at.since(clock.now());
        if !pause.is_zero() {
            clock.sleep(pause.min(Duration::from_secs(3600))).await;
            continue;
        }
        match renew(directory, &current, channel.clone()).await {
            Ok(renewed) => {
                agent.event(
                    None,
                    EventKind::CertificateRenewed,
                    Severity::Info,
                    format!(
                        "certificate {} follows {}",
                        renewed.peer().serial,
                        current.peer().serial
                    ),
                );
                // With a clock that is days ahead of the coordinator's, the new one is due at once as well.
                let earliest = clock.now().after(RETRY);
                at = millis(renewed.renew_at(&mut rand::rng())).max(earliest);
                current = renewed;
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "certificate not renewed");
                let spread = clock.random() % u64::try_from(RETRY.as_millis()).unwrap_or(1).max(1);
                at = clock.now().after(RETRY).after(Duration::from_millis(spread));
            }
        }
    }
}

async fn renew(
    directory: &IdentityDir,
    current: &ClientIdentity,
    channel: Channel,
) -> Result<ClientIdentity, RenewError> {
    let key = directory.pending_key()?;
    let request = RenewRequest { csr_der: key.csr()?.der().to_vec() };
    let mut client = EnrolmentServiceClient::new(channel);
    let answer = tokio::time::timeout(ANSWER, client.renew(request))
        .await
        .map_err(|_elapsed| RenewError::Silent)?
        .map_err(|status| RenewError::Refused(Box::new(status)))?
        .into_inner();
    let renewed = ClientIdentity::from_pem(
        Arc::new(key),
        &answer.certificate_chain_pem,
        &answer.ca_bundle_pem,
    )?;
    if renewed.peer().identity != current.peer().identity {
        return Err(RenewError::Stranger {
            got: renewed.peer().identity.to_string(),
            own: current.peer().identity.to_string(),
        });
    }
    directory.install(&renewed)?;
    Ok(renewed)
}

/// A point in time in our own type.
pub(super) fn millis(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
