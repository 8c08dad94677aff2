//! Gateways that are asked: each knows this host once its request was approved within its container.

use std::net::SocketAddr;

use super::FakeGateway;
use crate::fakes::mishap::Told;
use crate::ports::{Acquaintance, Control, ControlError, GatewayAccess};

/// A suspension.
#[derive(Debug)]
pub struct FakeSuspended {
    address: SocketAddr,
    let_go: bool,
}

impl FakeGateway {
    /// Gateways that are suspended.
    #[must_use]
    pub fn suspended(&self) -> Vec<SocketAddr> {
        self.suspended.borrow().iter().copied().collect()
    }

    /// What a host that is not known is told to get approved.
    fn request(gateway: &GatewayAccess) -> String {
        format!("request-of-{}", gateway.address.ip()).replace(['.', ':'], "-")
    }

    fn knows(&self, gateway: &GatewayAccess) -> bool {
        self.runtime.has_approved(&Self::request(gateway))
    }

    async fn effect<T>(&self, name: &str, work: impl FnOnce() -> T) -> Result<T, ControlError> {
        let call = self.runtime.mishaps().effect(name);
        if !call.may_begin().await {
            return Err(failed());
        }
        let done = work();
        if call.may_end().await { Ok(done) } else { Err(failed()) }
    }
}

fn failed() -> ControlError {
    ControlError::Failed(Box::new(Told))
}

impl Control for FakeGateway {
    type Suspended = FakeSuspended;

    async fn introduce(&self, gateway: &GatewayAccess) -> Result<Acquaintance, ControlError> {
        if !self.runtime.mishaps().look("introduce").may_begin().await {
            return Err(failed());
        }
        if !self.runtime.listens_at(gateway.address.ip()) {
            return Err(failed());
        }
        if self.knows(gateway) {
            return Ok(Acquaintance::Known);
        }
        Ok(Acquaintance::Asked(Self::request(gateway)))
    }

    async fn suspend(&self, gateway: &GatewayAccess) -> Result<FakeSuspended, ControlError> {
        let address = gateway.address;
        if !self.knows(gateway) {
            return Err(failed());
        }
        self.effect("suspend", || self.suspended.borrow_mut().insert(address)).await?;
        Ok(FakeSuspended { address, let_go: false })
    }

    async fn let_go(&self, suspended: &mut FakeSuspended) -> Result<(), ControlError> {
        self.effect("let-go", || suspended.let_go = true).await
    }

    async fn resumed(&self, suspended: FakeSuspended) -> Result<(), ControlError> {
        let name = if suspended.let_go { "resumed" } else { "resume" };
        self.effect(name, || self.suspended.borrow_mut().remove(&suspended.address)).await?;
        Ok(())
    }
}
