//! The contract of [`Files`].

use std::collections::{BTreeMap, BTreeSet};

use claw_core::name::{InstanceName, StatePath};
use claw_core::spec::Secret;
use claw_core::stamp::Digest;
use claw_core::time::Timestamp;

use super::{Breach, done, holds, same};
use crate::ports::{Files, FilesView};

/// The contract of [`Files`], on an instance that it knows nothing of. It ends with the data set
/// aside.
///
/// # Errors
/// The first rule that is broken.
pub async fn files(files: &impl Files, instance: &InstanceName) -> Result<(), Breach> {
    let config = path("openclaw.json")?;
    let identity = path("workspace/IDENTITY.md")?;
    let both = BTreeSet::from([config.clone(), identity.clone()]);
    let view = async |paths: &BTreeSet<StatePath>| {
        done("looking succeeds", files.view(instance, paths).await)
    };
    let nothing = FilesView::default();
    same("there is nothing of an unknown instance", &view(&both).await?, &nothing)?;

    let text = BTreeMap::from([(config.clone(), "{}".to_owned()), (identity, "me".to_owned())]);
    for rule in ["files are delivered", "delivering again does no harm"] {
        done(rule, files.deliver(instance, &text).await)?;
        let present = FilesView { data_present: true, files_present: true, secrets: None };
        same(rule, &view(&both).await?, &present)?;
    }
    let other = BTreeSet::from([config, path("other")?]);
    let found = view(&other).await?;
    holds("one absent file is noticed", found.data_present && !found.files_present, found)?;

    for text in ["A='1'\n", "A='2'\n"] {
        let secret = Secret::new(text.to_owned());
        done("secrets are written", files.write_secrets(instance, &secret).await)?;
        let digest = Some(Digest::of(text.as_bytes()));
        same("the digest is that of the secrets", &view(&both).await?.secrets, &digest)?;
    }
    for rule in ["secrets are removed", "removing secrets that are gone is success"] {
        done(rule, files.remove_secrets(instance).await)?;
        same(rule, &view(&both).await?.secrets, &None)?;
    }
    for rule in ["data is set aside", "setting aside what is gone is success"] {
        done(rule, files.set_aside(instance, Timestamp::from_millis(1)).await)?;
        same(rule, &view(&both).await?, &nothing)?;
    }
    same("places do not move", &files.mounts(instance), &files.mounts(instance))
}

fn path(text: &str) -> Result<StatePath, Breach> {
    done("the path is valid", StatePath::parse(text))
}
