//! The way to the coordinator: a connection of its own, made like a session's and closed at once.

use std::path::PathBuf;

use claw_identity::{IdentityDir, Tls, provider};

use crate::joined;
use crate::ports::{Uplink, UplinkError};
use crate::session::address::Address;
use crate::session::dial::dial;

/// The way to the coordinator.
#[derive(Debug)]
pub struct CoordinatorUplink {
    configured: Option<Address>,
    data: PathBuf,
}

impl CoordinatorUplink {
    /// `configured` wins over what `clawd join` recorded below `data`.
    #[must_use]
    pub const fn new(configured: Option<Address>, data: PathBuf) -> Self {
        Self { configured, data }
    }
}

impl Uplink for CoordinatorUplink {
    async fn prove(&self) -> Result<(), UplinkError> {
        let coordinator = self.configured.clone().or_else(|| joined::coordinator(&self.data));
        let directory = IdentityDir::open(joined::identity_dir(&self.data));
        let identity = directory.ok().and_then(|directory| directory.load().ok().flatten());
        let (Some(coordinator), Some(identity)) = (coordinator, identity) else {
            return Err(UplinkError::NoIdentity);
        };
        let connect = |error| UplinkError::Connect(error);
        let config = Tls::new(provider::ring()).client(&identity);
        let config = config.map_err(|error| connect(Box::new(error)))?;
        let channel = dial(&coordinator, config).await;
        channel.map(drop).map_err(|error| connect(Box::new(error)))
    }
}
