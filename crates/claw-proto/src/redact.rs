//! `Debug` of messages that hold secrets: names and sizes, never values.

use std::fmt;

use crate::{fleet, node};

impl fmt::Debug for node::v1::EnrolRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("token_id", &self.token_id)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for node::v1::DesiredState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DesiredState")
            .field("stamp", &self.stamp)
            .field("bytes", &self.host_state.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for node::v1::InstanceAssignment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceAssignment")
            .field("name", &self.name)
            .field("image", &self.image)
            .field("secrets", &self.secrets.keys())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for node::v1::RepositoryEscrow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepositoryEscrow").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl fmt::Debug for node::v1::OffsiteStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OffsiteStorage")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for fleet::v1::InstanceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceSpec")
            .field("image", &self.image)
            .field("tier", &self.tier)
            .field("secrets", &self.secrets.keys())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for fleet::v1::FetchGatewayTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchGatewayTokenResponse").finish_non_exhaustive()
    }
}

impl fmt::Debug for fleet::v1::FetchRecoveryPasswordResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchRecoveryPasswordResponse").finish_non_exhaustive()
    }
}

impl fmt::Debug for fleet::v1::CreateJoinTokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateJoinTokenResponse")
            .field("join_token", &self.join_token)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "hunter2-hunter2";

    #[test]
    fn no_secret_in_debug() {
        let secrets = std::collections::BTreeMap::from([("K".to_owned(), SECRET.to_owned())]);
        let spec = fleet::v1::InstanceSpec { secrets: secrets.clone(), ..Default::default() };
        let instance = fleet::v1::Instance { spec: Some(spec), ..Default::default() };
        let assignment = node::v1::InstanceAssignment { secrets, ..Default::default() };
        let state = node::v1::HostState { instances: vec![assignment], ..Default::default() };
        let bytes = crate::encode(&state);
        let desired = node::v1::DesiredState { stamp: None, host_state: bytes.into() };
        let enrol = node::v1::EnrolRequest {
            token_secret: SECRET.as_bytes().to_vec(),
            ..Default::default()
        };
        let fetched = fleet::v1::FetchGatewayTokenResponse { token: SECRET.to_owned() };
        let made =
            fleet::v1::CreateJoinTokenResponse { token: SECRET.to_owned(), join_token: None };
        let recovery =
            fleet::v1::FetchRecoveryPasswordResponse { recovery_password: SECRET.to_owned() };
        let escrow = node::v1::RepositoryEscrow {
            instance: "demo".to_owned(),
            secret: SECRET.to_owned(),
            recovery: SECRET.to_owned(),
        };
        let shown = format!(
            "{instance:?}{state:?}{desired:?}{enrol:?}{fetched:?}{made:?}{recovery:?}{escrow:?}"
        );
        assert!(!shown.contains(SECRET), "{shown}");
        assert!(!shown.contains(&format!("{:?}", SECRET.as_bytes().split_at(4).0)), "{shown}");
        assert!(shown.contains('K'), "the names are shown: {shown}");
    }
}
