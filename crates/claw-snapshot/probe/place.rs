//! Where a repository lies, from an argument.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use claw_snapshot::{
    Access, DEBIAN_CA_FILE, DirectoryStorage, S3Addressing, S3Patience, S3Secret, S3Settings,
    S3Storage, Storage,
};

use crate::Failure;

pub(crate) fn storage(place: &str) -> Result<Arc<dyn Storage>, Failure> {
    match place.strip_prefix("s3:") {
        Some(place) => Ok(Arc::new(S3Storage::open(&settings(place)?, Access::Exclusive)?)),
        None => Ok(Arc::new(DirectoryStorage::open(Path::new(place), Access::Exclusive)?)),
    }
}

/// `SCHEME://HOST/BUCKET/PREFIX`.
fn settings(place: &str) -> Result<S3Settings, Failure> {
    let wrong = || format!("{place} is not of the form ENDPOINT/BUCKET/PREFIX");
    let (scheme, rest) = place.split_once("://").ok_or_else(wrong)?;
    let (host, rest) = rest.split_once('/').ok_or_else(wrong)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let secret = |name: &str| {
        let value = std::env::var(name).map_err(|_| format!("{name} is not set"));
        value.map(|value| S3Secret::new(&value))
    };
    Ok(S3Settings {
        endpoint: format!("{scheme}://{host}"),
        region: std::env::var("AWS_DEFAULT_REGION").unwrap_or_else(|_| "us-east-1".to_owned()),
        bucket: bucket.to_owned(),
        prefix: prefix.to_owned(),
        addressing: S3Addressing::Path,
        access_key: secret("AWS_ACCESS_KEY_ID")?,
        secret_key: secret("AWS_SECRET_ACCESS_KEY")?,
        ca_file: PathBuf::from(DEBIAN_CA_FILE),
        bandwidth: None,
        patience: S3Patience::default(),
    })
}
