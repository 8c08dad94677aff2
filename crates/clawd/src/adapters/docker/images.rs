//! Images that are on the host: what references lead to, and removing them.
//!
//! Names are Docker's to understand (`nginx` is `docker.io/library/nginx:latest`), so it is asked about each
//! reference instead of being asked for a list. A reference is removed as it was given: other names of the
//! same content, and what others share with it, stay. Nothing is ever forced.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bollard::query_parameters as query;
use claw_core::images::HostImage;
use claw_core::name::ImageRef;

use super::{LOOK, absent_is_none, list_containers, within};
use crate::ports::RuntimeError;

/// Deadline of a removal: some ten thousand files on a slow disk.
const REMOVE: Duration = Duration::from_secs(300);

/// What references lead to.
pub(super) async fn of(
    client: &bollard::Docker,
    references: &BTreeSet<ImageRef>,
) -> Result<BTreeMap<ImageRef, HostImage>, RuntimeError> {
    let mut found = BTreeMap::new();
    for reference in references {
        if let Some((id, bytes)) = inspect(client, reference).await? {
            found.insert(reference.clone(), HostImage { id, bytes, used: false });
        }
    }
    if found.is_empty() {
        return Ok(found);
    }
    let containers = list_containers(client, &[]).await?;
    let used: BTreeSet<String> = containers.into_iter().filter_map(|c| c.image_id).collect();
    for image in found.values_mut() {
        image.used = used.contains(&image.id);
    }
    Ok(found)
}

/// Removes a reference; the bytes of what is gone with it.
pub(super) async fn remove(
    client: &bollard::Docker,
    reference: &ImageRef,
) -> Result<u64, RuntimeError> {
    let Some((id, bytes)) = inspect(client, reference).await? else { return Ok(0) };
    let doing = "removing an image";
    let options = query::RemoveImageOptionsBuilder::new().force(false).noprune(false).build();
    let removed = client.remove_image(reference.as_str(), Some(options), None);
    let removed = within(doing, REMOVE, removed).await?;
    let Some(items) = absent_is_none(doing, removed)? else { return Ok(0) };
    let gone = items.into_iter().any(|item| item.deleted.as_deref() == Some(id.as_str()));
    Ok(if gone { bytes } else { 0 })
}

async fn inspect(
    client: &bollard::Docker,
    reference: &ImageRef,
) -> Result<Option<(String, u64)>, RuntimeError> {
    let doing = "inspecting an image";
    let inspected = within(doing, LOOK, client.inspect_image(reference.as_str())).await?;
    let Some(found) = absent_is_none(doing, inspected)? else { return Ok(None) };
    let bytes = found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
    match found.id {
        Some(id) => Ok(Some((id, bytes))),
        None => Err(RuntimeError::Refused { doing, source: Box::new(NoId) }),
    }
}

/// Docker knows the image and does not say its id.
#[derive(Debug, thiserror::Error)]
#[error("the image has no id")]
struct NoId;
