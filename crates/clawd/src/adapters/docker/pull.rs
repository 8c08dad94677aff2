//! Images: whether they are present, and fetching them.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::CreateImageInfo;
use bollard::query_parameters as query;
use claw_core::name::ImageRef;
use futures_util::StreamExt;

use super::{LOOK, absent_is_none, failure, within};
use crate::ports::{PullProgress, RuntimeError};

/// A pull that says nothing for this long has failed.
const SILENCE: Duration = Duration::from_secs(60);

/// Whether an image is present; none asked about is none present.
pub(super) async fn is_present(
    client: &bollard::Docker,
    image: Option<&ImageRef>,
) -> Result<bool, RuntimeError> {
    let Some(image) = image else { return Ok(false) };
    let doing = "inspecting an image";
    let inspected = within(doing, LOOK, client.inspect_image(image.as_str())).await?;
    Ok(absent_is_none(doing, inspected)?.is_some())
}

/// Pulls an image; ends when it is present.
pub(super) async fn pull(
    client: &bollard::Docker,
    image: &ImageRef,
    progress: &dyn Fn(PullProgress),
) -> Result<(), RuntimeError> {
    if is_present(client, Some(image)).await? {
        return Ok(());
    }
    let options = query::CreateImageOptionsBuilder::new().from_image(&whole(image)).build();
    let mut steps = pin!(client.create_image(Some(options), None, None));
    let mut layers = Layers::default();
    while let Some(step) = within_silence(steps.next()).await? {
        let step = step.map_err(|error| image_failure(image, error))?;
        if layers.take(step) {
            progress(layers.progress());
        }
    }
    if is_present(client, Some(image)).await? {
        return Ok(());
    }
    Err(RuntimeError::Image { image: image.clone(), source: Box::new(StillAbsent) })
}

/// Docker said that all went well, and the image is not there.
#[derive(Debug, thiserror::Error)]
#[error("the pull ended and the image is still absent")]
struct StillAbsent;

/// Without a tag or digest Docker would pull every tag there is.
fn whole(image: &ImageRef) -> String {
    let text = image.as_str();
    let last = text.rsplit('/').next().unwrap_or(text);
    if last.contains([':', '@']) { text.to_owned() } else { format!("{text}:latest") }
}

async fn within_silence<T>(step: impl Future<Output = T>) -> Result<T, RuntimeError> {
    let timeout = RuntimeError::Timeout { doing: "pulling an image", after: SILENCE };
    tokio::time::timeout(SILENCE, step).await.map_err(|_silent| timeout)
}

/// What the registry or the daemon says of the image, unless the daemon is gone.
fn image_failure(image: &ImageRef, error: Error) -> RuntimeError {
    match failure("pulling an image", error) {
        RuntimeError::Refused { source, .. } => {
            RuntimeError::Image { image: image.clone(), source }
        }
        other => other,
    }
}

/// Progress of each layer.
#[derive(Debug, Default)]
struct Layers(BTreeMap<String, PullProgress>);

impl Layers {
    /// Takes one message in; whether it changed anything.
    fn take(&mut self, step: CreateImageInfo) -> bool {
        let (Some(layer), Some(status)) = (step.id, step.status) else { return false };
        let detail = step.progress_detail;
        let number = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
        let current = detail.as_ref().and_then(|detail| number(detail.current));
        let total = detail.as_ref().and_then(|detail| number(detail.total));
        let known = self.0.get(&layer).copied().unwrap_or_default();
        let new = match status.as_str() {
            "Downloading" => PullProgress {
                current_bytes: current.unwrap_or(known.current_bytes),
                total_bytes: total.unwrap_or(known.total_bytes),
            },
            "Download complete" | "Pull complete" => {
                PullProgress { current_bytes: known.total_bytes, ..known }
            }
            _ => return false,
        };
        self.0.insert(layer, new) != Some(new)
    }

    fn progress(&self) -> PullProgress {
        self.0.values().fold(PullProgress::default(), |sum, layer| PullProgress {
            current_bytes: sum.current_bytes.saturating_add(layer.current_bytes),
            total_bytes: sum.total_bytes.saturating_add(layer.total_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    fn step(id: &str, status: &str, bytes: Option<(i64, i64)>) -> CreateImageInfo {
        let detail = bytes
            .map(|(current, total)| ProgressDetail { current: Some(current), total: Some(total) });
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: detail,
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn layers_add_up() {
        let mut layers = Layers::default();
        assert!(!layers.take(step("latest", "Pulling from library/x", None)));
        assert!(layers.take(step("a", "Downloading", Some((10, 100)))));
        assert!(layers.take(step("b", "Downloading", Some((5, 50)))));
        assert_eq!(layers.progress(), PullProgress { current_bytes: 15, total_bytes: 150 });
        assert!(!layers.take(step("b", "Downloading", Some((5, 50)))), "nothing new");
        assert!(layers.take(step("a", "Download complete", None)));
        assert!(!layers.take(step("a", "Extracting", Some((1, 100)))), "extracting is no download");
        assert_eq!(layers.progress(), PullProgress { current_bytes: 105, total_bytes: 150 });
    }

    #[test]
    fn a_reference_without_a_tag_is_the_latest() {
        let whole = |text: &str| whole(&ImageRef::parse(text).unwrap());
        assert_eq!(whole("nginx"), "nginx:latest");
        assert_eq!(whole("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(whole("localhost:5000/a/b:1"), "localhost:5000/a/b:1");
    }
}
