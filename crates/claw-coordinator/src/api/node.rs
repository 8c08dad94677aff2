//! `claw.node.v1.NodeService`.

use std::sync::{Arc, Mutex, PoisonError};

use claw_identity::Peer;
use claw_proto::node::v1::node_service_server::NodeService;
use claw_proto::node::v1::{self as node};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::caller_of;
use super::transfer::Carrying;
use crate::auth::Caller;
use crate::fleet::Fleet;
use crate::limits::{Bucket, Rate, jittered};
use crate::refusal::Refusal;
use crate::session::{Outlet, Session, Terms, outlet};

/// The service.
#[derive(Debug, Clone)]
pub struct NodeApi {
    fleet: Fleet,
    terms: Terms,
    admission: Arc<Mutex<Bucket>>,
}

impl NodeApi {
    /// Serves this fleet; lets sessions begin at this rate.
    #[must_use]
    pub fn new(fleet: Fleet, terms: Terms, admission: Rate) -> Self {
        Self { fleet, terms, admission: Arc::new(Mutex::new(Bucket::new(admission))) }
    }
}

#[tonic::async_trait]
impl NodeService for NodeApi {
    type SessionStream = Outlet;
    type TransferStream = ReceiverStream<Result<node::TransferResponse, Status>>;

    async fn transfer(
        &self,
        request: Request<Streaming<node::TransferRequest>>,
    ) -> Result<Response<Self::TransferStream>, Status> {
        let caller = caller_of(&request)?;
        let peer = peer_of(&caller)?;
        let (outbound, stream) = mpsc::channel(1);
        let transfers = self.fleet.transfers.clone();
        let carrying = Carrying { transfers, caller, peer, inbound: request.into_inner() };
        tokio::spawn(carrying.run(outbound));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn session(
        &self,
        request: Request<Streaming<node::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = caller_of(&request)?;
        let peer = peer_of(&caller)?;
        let admitted = self.admission.lock().unwrap_or_else(PoisonError::into_inner).take();
        admitted.map_err(|wait| Refusal::Unavailable {
            description: "too many hosts connect at once".to_owned(),
            retry: jittered(wait.max(std::time::Duration::from_secs(1))),
        })?;
        let (outbound, stream) = outlet();
        let session = Session {
            fleet: self.fleet.clone(),
            terms: self.terms,
            caller,
            peer,
            inbound: request.into_inner(),
            outbound,
        };
        tokio::spawn(session.run());
        Ok(Response::new(stream))
    }
}

fn peer_of(caller: &Caller) -> Result<Peer, Refusal> {
    caller.peer.clone().ok_or_else(|| Refusal::damaged("request", "it has no certificate"))
}
