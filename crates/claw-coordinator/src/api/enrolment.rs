//! `claw.node.v1.EnrolmentService`.

use std::sync::Arc;

use claw_proto::node::v1::enrolment_service_server::EnrolmentService;
use claw_proto::node::v1::{self as node};
use tonic::{Request, Response, Status};

use super::caller_of;
use crate::fleet::Fleet;
use crate::fleet::enrolment::Enrolment;
use crate::limits::{PerSource, Rate, Source};
use crate::refusal::Refusal;

/// Failed attempts that one source may make: ten, then one every six seconds. Guessing 256 bits this
/// way is hopeless anyway; the bound keeps the noise down.
const FAILURES: Rate = Rate { per_second: 1.0 / 6.0, burst: 10.0 };

/// The service.
#[derive(Debug, Clone)]
pub struct EnrolmentApi {
    fleet: Fleet,
    failures: Arc<PerSource>,
}

impl EnrolmentApi {
    /// Serves this fleet.
    #[must_use]
    pub fn new(fleet: Fleet) -> Self {
        Self { fleet, failures: Arc::new(PerSource::new(FAILURES)) }
    }
}

#[tonic::async_trait]
impl EnrolmentService for EnrolmentApi {
    async fn enrol(
        &self,
        request: Request<node::EnrolRequest>,
    ) -> Result<Response<node::EnrolResponse>, Status> {
        let caller = caller_of(&request)?;
        let source = Source::from(caller.source.ip());
        self.failures.check(source).map_err(|retry| Refusal::Exhausted {
            description: "too many failed attempts from this address".to_owned(),
            retry,
        })?;
        let request = request.into_inner();
        let enrolment = Enrolment {
            token_id: request.token_id,
            token_secret: request.token_secret,
            csr_der: request.csr_der,
            host: request.host,
            source: caller.source.ip().to_string(),
        };
        let certified = self.fleet.enrol(enrolment).await.inspect_err(|refusal| {
            if matches!(refusal, Refusal::Unauthenticated { .. } | Refusal::Invalid(_)) {
                self.failures.note(source);
            }
        })?;
        Ok(Response::new(node::EnrolResponse {
            certificate_chain_pem: certified.chain_pem,
            ca_bundle_pem: certified.bundle_pem,
            host: certified.host.to_string(),
        }))
    }

    async fn renew(
        &self,
        request: Request<node::RenewRequest>,
    ) -> Result<Response<node::RenewResponse>, Status> {
        let caller = caller_of(&request)?;
        let peer = caller
            .peer
            .as_ref()
            .ok_or_else(|| Refusal::damaged("request", "it has no certificate"))?;
        let source = caller.source.ip().to_string();
        let certified = self.fleet.renew(peer, &request.get_ref().csr_der, &source).await?;
        Ok(Response::new(node::RenewResponse {
            certificate_chain_pem: certified.chain_pem,
            ca_bundle_pem: certified.bundle_pem,
        }))
    }
}
