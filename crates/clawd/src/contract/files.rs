//! The contract of [`Files`].

use std::collections::{BTreeMap, BTreeSet};

use claw_core::data::DataGeneration;
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
    let first = DataGeneration::FIRST;
    let view = async |paths: &BTreeSet<StatePath>| {
        done("looking succeeds", files.view(instance, first, paths).await)
    };
    let nothing = FilesView::default();
    same("there is nothing of an unknown instance", &view(&both).await?, &nothing)?;

    let text = BTreeMap::from([(config.clone(), "{}".to_owned()), (identity, "me".to_owned())]);
    for rule in ["files are delivered", "delivering again does no harm"] {
        done(rule, files.deliver(instance, first, &text).await)?;
        let present = FilesView { data_present: true, files_present: true, secrets: None };
        same(rule, &view(&both).await?, &present)?;
    }
    let other = BTreeSet::from([config, path("other")?]);
    let found = view(&other).await?;
    holds("one absent file is noticed", found.data_present && !found.files_present, found)?;

    second_generation(files, instance, &both, &text).await?;

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
        let second = done(rule, files.view(instance, first.next(), &both).await)?;
        same("every generation is set aside", &second, &nothing)?;
    }
    let mounts = files.mounts(instance, first);
    same("places do not move", &files.mounts(instance, first), &mounts)?;
    let other = files.mounts(instance, first.next());
    let apart = other.data != mounts.data && other.secrets == mounts.secrets;
    holds("generations have their own data and the same secrets", apart, (mounts, other))
}

/// A second generation beside the first, with its own files.
async fn second_generation(
    files: &impl Files,
    instance: &InstanceName,
    both: &BTreeSet<StatePath>,
    text: &BTreeMap<StatePath, String>,
) -> Result<(), Breach> {
    let second = DataGeneration::FIRST.next();
    let rule = "another generation has nothing of the first";
    let found = done(rule, files.view(instance, second, both).await)?;
    same(rule, &found, &FilesView::default())?;
    let rule = "files are delivered to another generation";
    done(rule, files.deliver(instance, second, text).await)?;
    let found = done(rule, files.view(instance, second, both).await)?;
    same(rule, &(found.data_present, found.files_present), &(true, true))
}

fn path(text: &str) -> Result<StatePath, Breach> {
    done("the path is valid", StatePath::parse(text))
}
