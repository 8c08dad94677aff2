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
        let unusable = |error| UplinkError::Identity(Box::new(error));
        let directory = IdentityDir::open(joined::identity_dir(&self.data)).map_err(unusable)?;
        let identity = directory.load().map_err(unusable)?;
        let (Some(coordinator), Some(identity)) = (coordinator, identity) else {
            return Err(UplinkError::NotJoined);
        };
        let config = Tls::new(provider::ring()).client(&identity);
        let config = config.map_err(|error| UplinkError::Identity(Box::new(error)))?;
        let channel = dial(&coordinator, config).await;
        channel.map(drop).map_err(|error| UplinkError::Connect(Box::new(error)))
    }
}
