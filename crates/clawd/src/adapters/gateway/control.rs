//! Asking a gateway to do something, over its RPC.
//!
//! One connection per purpose, none between: a gateway that is only looked at costs none.

use std::time::Duration;

use openclaw::device::Device;
use openclaw::probe::Target;
use openclaw::rpc::{Login, Prepared, Resuming, Rpc, RpcError};

use super::{OpenClaw, PROBE_CLIENT, identity};
use crate::logging::chain;
use crate::ports::{Acquaintance, Control, ControlError, GatewayAccess};

/// Deadline of an introduction, at a moment when nobody waits: 55 ms the first time (measured), seconds on
/// a busy machine.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// Deadline of each step while a snapshot waits. A login takes 3 to 25 ms, a suspension 2 to 6 (measured); a
/// gateway that is slower than this is at work.
const STEP: Duration = Duration::from_secs(1);

/// Always the same: an agent that has died finds the suspension that it began.
const REQUEST: &str = "clawd";

/// What people read in the gateway's list of devices.
const DISPLAY_NAME: &str = "clawd (the agent of this gateway's host)";

/// A gateway's suspension, and the connection over which it was begun.
#[derive(Debug)]
pub struct Suspended {
    rpc: Rpc,
    device: Device,
    gateway: GatewayAccess,
    id: String,
    resuming: Option<Resuming>,
}

impl Control for OpenClaw {
    type Suspended = Suspended;

    async fn introduce(&self, gateway: &GatewayAccess) -> Result<Acquaintance, ControlError> {
        let device = self.device().await?;
        match connect(gateway, &device, INTRODUCTION).await {
            Ok(_known) => Ok(Acquaintance::Known),
            Err(RpcError::NotPaired { request_id }) => Ok(Acquaintance::Asked(request_id)),
            Err(error) => Err(failed(error)),
        }
    }

    async fn suspend(&self, gateway: &GatewayAccess) -> Result<Suspended, ControlError> {
        let device = self.device().await?;
        let mut rpc = connect(gateway, &device, STEP).await.map_err(failed)?;
        match rpc.suspend_prepare(REQUEST, STEP).await {
            Ok(Prepared::Ready(suspension)) => {
                let (gateway, id) = (gateway.clone(), suspension.id);
                Ok(Suspended { rpc, device, gateway, id, resuming: None })
            }
            Ok(Prepared::Busy(work)) => Err(ControlError::Busy(work)),
            Err(error @ RpcError::Refused { .. }) => Err(failed(error)),
            // The answer is lost, its effect may not be.
            Err(error) => {
                drop(rpc);
                if let Err(error) = take_back(gateway, &device).await {
                    tracing::debug!(
                        error = chain(&error),
                        "a gateway may be suspended until its lease ends"
                    );
                }
                Err(failed(error))
            }
        }
    }

    async fn let_go(&self, suspended: &mut Suspended) -> Result<(), ControlError> {
        let sent = suspended.rpc.send_resume(&suspended.id, STEP).await;
        suspended.resuming = Some(sent.map_err(failed)?);
        Ok(())
    }

    async fn resumed(&self, mut suspended: Suspended) -> Result<(), ControlError> {
        let answer = match suspended.resuming {
            Some(resuming) => suspended.rpc.resumed(resuming, STEP).await,
            None => suspended.rpc.suspend_resume(&suspended.id, STEP).await,
        };
        let Err(first) = answer else { return Ok(()) };
        tracing::debug!(error = chain(&first), "asking a gateway to resume again");
        let mut rpc = connect(&suspended.gateway, &suspended.device, STEP).await.map_err(failed)?;
        rpc.suspend_resume(&suspended.id, STEP).await.map(drop).map_err(failed)
    }
}

impl OpenClaw {
    async fn device(&self) -> Result<Device, ControlError> {
        let data = self.data.clone();
        let loaded = tokio::task::spawn_blocking(move || identity::load_or_make(&data)).await;
        match loaded {
            Ok(Ok(device)) => Ok(device),
            Ok(Err(error)) => Err(ControlError::Identity(Box::new(error))),
            Err(panicked) => Err(ControlError::Identity(Box::new(panicked))),
        }
    }
}

/// Ends a suspension of which the id is not known: asked for again, it is told.
async fn take_back(gateway: &GatewayAccess, device: &Device) -> Result<(), RpcError> {
    let mut rpc = connect(gateway, device, STEP).await?;
    match rpc.suspend_prepare(REQUEST, STEP / 2).await? {
        Prepared::Ready(suspension) => rpc.suspend_resume(&suspension.id, STEP / 2).await.map(drop),
        Prepared::Busy(_) => Ok(()),
    }
}

async fn connect(
    gateway: &GatewayAccess,
    device: &Device,
    deadline: Duration,
) -> Result<Rpc, RpcError> {
    let login = Login { token: gateway.token.reveal(), device, display_name: DISPLAY_NAME };
    let target = Target::new(gateway.address).forwarded_for(PROBE_CLIENT);
    Rpc::connect(&target, &login, deadline).await
}

fn failed(error: RpcError) -> ControlError {
    ControlError::Failed(Box::new(error))
}
