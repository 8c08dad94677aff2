//! An instance's own bridge network.

use std::collections::HashMap;

use bollard::models::{Ipam, IpamConfig, Network, NetworkCreateRequest};
use bollard::query_parameters as query;
use claw_core::address::InstanceNetwork;
use claw_core::name::InstanceName;
use claw_core::observed::ObservedNetwork;
use claw_core::plan::network_name;

use super::{CHANGE, INSTANCE_LABEL, LOOK, absent_is_none, failure, label_is, within};
use crate::ports::RuntimeError;

/// Names the bridge interface, so that the firewall can match `claw-+` before it exists.
const BRIDGE_OPTION: &str = "com.docker.network.bridge.name";

/// Whether containers of one bridge may talk to each other. Ours has one container; should there
/// ever be a second, it is a mistake.
const ICC_OPTION: &str = "com.docker.network.bridge.enable_icc";

/// Whether Docker gives packets that leave the bridge the host's own address.
const MASQUERADE_OPTION: &str = "com.docker.network.bridge.enable_ip_masquerade";

/// Lists networks that have all of the labels.
pub(super) async fn list(
    client: &bollard::Docker,
    labels: &[String],
) -> Result<Vec<Network>, RuntimeError> {
    filtered(client, HashMap::from([("label", labels.to_vec())])).await
}

/// The instance's network.
pub(super) async fn of(
    client: &bollard::Docker,
    instance: &InstanceName,
) -> Result<Option<ObservedNetwork>, RuntimeError> {
    let mut found = list(client, &label_is(instance)).await?;
    // Several would differ in their ids only; any of them is removed first, then the next.
    found.sort_by(|a, b| a.created.cmp(&b.created));
    Ok(found.pop().and_then(observed))
}

/// Makes the instance's network unless it is there.
pub(super) async fn create(
    client: &bollard::Docker,
    instance: &InstanceName,
    wanted: &InstanceNetwork,
) -> Result<(), RuntimeError> {
    let name = network_name(instance);
    // Docker before 25 makes a second network of the same name without a word. The filter matches
    // parts of names.
    let named = filtered(client, HashMap::from([("name", vec![name.clone()])])).await?;
    if let Some(found) = named.into_iter().find(|found| found.name.as_deref() == Some(&name)) {
        let label = found.labels.as_ref().and_then(|labels| labels.get(INSTANCE_LABEL));
        if label.map(String::as_str) != Some(instance.as_str()) {
            return Err(RuntimeError::Stranger { name });
        }
        if is_as_wanted(&found, wanted) {
            return Ok(());
        }
    }
    let doing = "creating a network";
    let created = client.create_network(create_request(instance, wanted));
    within(doing, CHANGE, created).await?.map(drop).map_err(|error| failure(doing, error))
}

/// Removes a network; gone is success.
pub(super) async fn remove(client: &bollard::Docker, id: &str) -> Result<(), RuntimeError> {
    let doing = "removing a network";
    let removed = within(doing, CHANGE, client.remove_network(id)).await?;
    absent_is_none(doing, removed).map(drop)
}

async fn filtered(
    client: &bollard::Docker,
    filters: HashMap<&str, Vec<String>>,
) -> Result<Vec<Network>, RuntimeError> {
    let doing = "listing networks";
    let options = query::ListNetworksOptionsBuilder::new().filters(&filters).build();
    let listed = within(doing, LOOK, client.list_networks(Some(options))).await?;
    listed.map_err(|error| failure(doing, error))
}

fn create_request(instance: &InstanceName, wanted: &InstanceNetwork) -> NetworkCreateRequest {
    let labels = HashMap::from([(INSTANCE_LABEL.to_owned(), instance.to_string())]);
    let options = bridge_options(wanted);
    NetworkCreateRequest {
        options: Some(options.into()),
        labels: Some(labels),
        ..bridge_request(network_name(instance), wanted)
    }
}

/// A network without labels, from which Docker leads nothing out.
pub(super) fn isolated_request(name: String, wanted: &InstanceNetwork) -> NetworkCreateRequest {
    let mut options = HashMap::from(bridge_options(wanted));
    options.insert(MASQUERADE_OPTION.to_owned(), "false".to_owned());
    NetworkCreateRequest { options: Some(options), ..bridge_request(name, wanted) }
}

fn bridge_request(name: String, wanted: &InstanceNetwork) -> NetworkCreateRequest {
    let config = IpamConfig {
        subnet: Some(wanted.subnet()),
        gateway: Some(wanted.gateway().to_string()),
        ..IpamConfig::default()
    };
    NetworkCreateRequest {
        name,
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
        enable_ipv6: Some(false),
        ..NetworkCreateRequest::default()
    }
}

fn bridge_options(wanted: &InstanceNetwork) -> [(String, String); 2] {
    [(BRIDGE_OPTION, wanted.bridge()), (ICC_OPTION, "false".to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
}

fn is_as_wanted(found: &Network, wanted: &InstanceNetwork) -> bool {
    let gateway = ipam(found).and_then(|config| config.gateway.as_deref());
    observed(found.clone())
        .is_some_and(|found| found.subnet == wanted.subnet() && found.bridge == wanted.bridge())
        && gateway == Some(wanted.gateway().to_string().as_str())
}

fn ipam(network: &Network) -> Option<&IpamConfig> {
    network.ipam.as_ref()?.config.as_ref()?.first()
}

fn observed(network: Network) -> Option<ObservedNetwork> {
    let subnet = ipam(&network).and_then(|config| config.subnet.clone()).unwrap_or_default();
    let bridge = network.options.and_then(|mut options| options.remove(BRIDGE_OPTION));
    Some(ObservedNetwork { id: network.id?, subnet, bridge: bridge.unwrap_or_default() })
}
