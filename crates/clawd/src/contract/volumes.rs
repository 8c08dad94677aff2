//! The contract of [`Volumes`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use claw_core::data::DataGeneration;
use claw_core::name::{InstanceName, StatePath};

use super::{Breach, done, holds, same};
use crate::ports::{Copied, Files, JobProgress, VolumeError, Volumes, Writers};

/// How long it may take until a copy counts as settled. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(20);

/// The contract of [`Volumes`], on an instance that it knows nothing of; `files` makes its data. It ends as
/// it began.
///
/// # Errors
/// The first rule that is broken.
pub async fn volumes(
    volumes: &impl Volumes,
    files: &impl Files,
    instance: &InstanceName,
) -> Result<(), Breach> {
    let first = DataGeneration::FIRST;
    let suite = Suite { volumes, files, instance, first, second: first.next() };
    suite.nothing().await?;
    suite.measured().await?;
    suite.copied().await?;
    suite.copied_again().await?;
    suite.removed().await
}

struct Suite<'a, V, F> {
    volumes: &'a V,
    files: &'a F,
    instance: &'a InstanceName,
    first: DataGeneration,
    second: DataGeneration,
}

impl<V: Volumes, F: Files> Suite<'_, V, F> {
    async fn are_there(
        &self,
        rule: &'static str,
        expected: &[DataGeneration],
    ) -> Result<(), Breach> {
        let found = done("listing succeeds", self.volumes.generations(self.instance).await)?;
        same(rule, &found, &expected.iter().copied().collect::<BTreeSet<_>>())
    }

    async fn copy(&self, rule: &'static str, writers: Writers) -> Result<Copied, Breach> {
        let seen = RefCell::new(Vec::new());
        let progress = |at: JobProgress| seen.borrow_mut().push(at.done_bytes);
        let (from, into) = (self.first, self.second);
        let copied = self.volumes.copy(self.instance, from, into, writers, &progress).await;
        let copied = done(rule, copied)?;
        let seen = seen.into_inner();
        holds("a copy says how far it is", !seen.is_empty(), &seen)?;
        holds("a copy never goes back", seen.is_sorted(), &seen)?;
        Ok(copied)
    }

    async fn deliver(&self, files: &[(&str, &str)]) -> Result<(), Breach> {
        let mut text = BTreeMap::new();
        for (path, content) in files {
            let path = done("the path is valid", StatePath::parse(path))?;
            text.insert(path, (*content).to_owned());
        }
        done("data is made", self.files.deliver(self.instance, self.first, &text).await)
    }

    /// Whether the copy has all of these files.
    async fn has(&self, paths: &[&str]) -> Result<bool, Breach> {
        let mut wanted = BTreeSet::new();
        for path in paths {
            wanted.insert(done("the path is valid", StatePath::parse(path))?);
        }
        let view = self.files.view(self.instance, self.second, &wanted).await;
        Ok(done("looking succeeds", view)?.files_present)
    }

    async fn nothing(&self) -> Result<(), Breach> {
        self.are_there("an unknown instance has no data", &[]).await?;
        let found =
            done("measuring succeeds", self.volumes.measure(self.instance, self.first).await)?;
        same("what is absent has no size", &(found.bytes, found.entries), &(0, 0))?;
        let room = found.free_bytes <= found.total_bytes && found.total_bytes > 0;
        holds("there is room for what is absent", room, found)?;
        for writers in [Writers::Somebody, Writers::Nobody] {
            let copy = self.volumes.copy(self.instance, self.first, self.second, writers, &|_| {});
            let copied = copy.await;
            let absent = matches!(copied, Err(VolumeError::Absent(_)));
            holds("what is absent is not copied", absent, copied)?;
        }
        self.are_there("and nothing came into being", &[]).await
    }

    async fn measured(&self) -> Result<(), Breach> {
        self.deliver(&[("openclaw.json", "{}"), ("workspace/notes.md", "one")]).await?;
        self.are_there("data that was delivered is there", &[self.first]).await?;
        let found =
            done("measuring succeeds", self.volumes.measure(self.instance, self.first).await)?;
        holds("it has a size", found.bytes > 0 && found.entries >= 2, found)
    }

    async fn copied(&self) -> Result<(), Breach> {
        for rule in ["data in use is copied", "and again"] {
            self.copy(rule, Writers::Somebody).await?;
            self.are_there("a copy of data in use is not complete", &[self.first]).await?;
        }
        let both = ["openclaw.json", "workspace/notes.md"];
        holds("it can be tried all the same", self.has(&both).await?, "a file is missing")?;
        self.copy("data that is held still is copied", Writers::Held).await?;
        self.are_there("a copy of data that is held is not complete", &[self.first]).await?;
        self.copy("data at rest is copied", Writers::Nobody).await?;
        self.are_there("a copy of data at rest is complete", &[self.first, self.second]).await?;
        holds("the copy has everything", self.has(&both).await?, "a file is missing")
    }

    async fn copied_again(&self) -> Result<(), Breach> {
        let settled = async {
            loop {
                let copied = self.copy("copying again succeeds", Writers::Nobody).await?;
                if copied.files == 0 {
                    return Ok(copied);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let rule = "a copy that is the same is left alone";
        let settled = tokio::time::timeout(PATIENCE, settled).await;
        let copied =
            settled.map_err(|_late| Breach::new(rule, "it is written again and again"))??;
        same(rule, &copied.bytes, &0)?;
        self.deliver(&[("workspace/notes.md", "two"), ("tmp/scratch", "x")]).await?;
        let copied = self.copy("what has changed is copied", Writers::Nobody).await?;
        same("and nothing else is", &copied.files, &1)?;
        let scratch = self.has(&["tmp/scratch"]).await?;
        holds("what is in tmp is left out", !scratch, "it was copied")?;
        self.are_there("the copy stays complete", &[self.first, self.second]).await
    }

    async fn removed(&self) -> Result<(), Breach> {
        self.copy("it becomes incomplete once more", Writers::Somebody).await?;
        for rule in ["a half-made copy is removed", "removing what is gone is success"] {
            done(rule, self.volumes.remove(self.instance, self.second).await)?;
            self.are_there(rule, &[self.first]).await?;
            holds(rule, !self.has(&["openclaw.json"]).await?, "a file is left")?;
        }
        self.copy("data at rest is copied", Writers::Nobody).await?;
        for data in [self.second, self.first] {
            done("data is removed", self.volumes.remove(self.instance, data).await)?;
        }
        self.are_there("nothing is left", &[]).await
    }
}
