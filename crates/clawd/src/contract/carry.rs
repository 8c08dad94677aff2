//! The contract of `Offsite` and `Transfers`.

use std::collections::{BTreeMap, BTreeSet};

use claw_core::backup::{SnapshotCause, SnapshotInfo};
use claw_core::data::DataGeneration;
use claw_core::name::{SnapshotName, StatePath};
use claw_core::offsite::OffsiteStorage;
use claw_core::spec::Secret;

use super::snapshots::{STILL, SnapshotsSubject, content, generation, name, order, silent};
use super::{Breach, done, holds, same};
use crate::ports::{
    Carried, Offsite, OffsitePlace, Parcel, Pipe, RepositoryKeys, Snapshots, SnapshotsError,
    Surplus, Transfers,
};

/// What the suite needs: three hosts without a repository of the same instance, and a storage that they reach.
#[derive(Debug)]
pub struct CarryGround<'a, S> {
    /// Where the instance is.
    pub home: &'a S,
    /// Where it may go.
    pub away: &'a S,
    /// Where another instance of the same name is.
    pub stranger: &'a S,
    /// An existing bucket, and a key that opens it.
    pub storage: &'a OffsiteStorage,
}

/// The contract of [`Offsite`] and [`Transfers`].
///
/// # Errors
/// The first rule that is broken.
pub async fn carry<S>(ground: &CarryGround<'_, S>) -> Result<(), Breach>
where
    S: SnapshotsSubject,
    S::Snapshots: Offsite + Transfers,
{
    let suite = Suite { ground };
    suite.nothing_yet().await?;
    let first = suite.out().await?;
    suite.refused().await?;
    suite.inward(&first).await?;
    suite.sent(&first).await?;
    suite.adopted().await?;
    let second = suite.straight(&first).await?;
    suite.archives(&second).await?;
    suite.broken(&second).await
}

struct Suite<'a, S> {
    ground: &'a CarryGround<'a, S>,
}

impl<S> Suite<'_, S>
where
    S: SnapshotsSubject,
    S::Snapshots: Offsite + Transfers,
{
    fn place(&self) -> OffsitePlace {
        OffsitePlace { storage: self.ground.storage.clone(), path: "hosts/home/demo/1".to_owned() }
    }

    async fn keys(&self, subject: &S) -> Result<RepositoryKeys, Breach> {
        let keys = subject.snapshots().keys(subject.instance()).await;
        let keys = done("keys can be had", keys)?;
        keys.ok_or_else(|| Breach::new("a repository has keys", "none"))
    }

    /// No repository, no key, no mark of one.
    async fn empty(&self, rule: &'static str) -> Result<(), Breach> {
        let away = self.ground.away;
        same(rule, &done(rule, away.snapshots().keys(away.instance()).await)?, &None)
    }

    async fn copy_out(&self, surplus: Surplus) -> Result<Carried, Breach> {
        let home = self.ground.home;
        let rule = "a repository can be copied off-site";
        done(
            rule,
            home.snapshots().copy_out(home.instance(), &self.place(), surplus, &silent).await,
        )
    }

    async fn send_to(
        &self,
        receiver: &S,
        keys: &RepositoryKeys,
    ) -> (Result<Carried, SnapshotsError>, Result<(), SnapshotsError>) {
        let home = self.ground.home;
        let (here, there) = Pipe::pair();
        tokio::join!(
            home.snapshots().send(home.instance(), here, &silent),
            receiver.snapshots().receive(receiver.instance(), keys, there, &silent),
        )
    }

    async fn comes_back(
        &self,
        (subject, into): (&S, u32),
        (word, offsite): (&str, &SnapshotName),
        source: Option<&OffsitePlace>,
    ) -> Result<(), Breach> {
        let (port, instance) = (subject.snapshots(), subject.instance());
        let into = generation(into);
        let rule = "what was carried away comes back";
        done(
            rule,
            match source {
                None => port.restore(instance, offsite, into, &silent).await,
                Some(place) => port.restore_from(instance, place, offsite, into, &silent).await,
            },
        )?;
        same("it comes back as it was, without tmp/", &subject.data(into), &Some(kept(word)?))
    }

    async fn nothing_yet(&self) -> Result<(), Breach> {
        let home = self.ground.home;
        let (port, instance) = (home.snapshots(), home.instance());
        let refused = port.copy_out(instance, &self.place(), Surplus::Kept, &silent).await;
        holds("where there is no repository none is copied", refused.is_err(), refused)?;
        let rule = "removing what is absent is success";
        done(rule, port.discard(instance).await)?;
        let (sent, received) = self.send_to(self.ground.away, &made_up()).await;
        holds("where there is no repository none is sent", sent.is_err(), sent)?;
        let rule = "whoever waits for a repository hears that there is none";
        holds(rule, matches!(received, Err(SnapshotsError::Pipe { .. })), received)?;
        self.empty("what never came leaves nothing").await
    }

    async fn out(&self) -> Result<SnapshotInfo, Breach> {
        let home = self.ground.home;
        home.set_data(DataGeneration::FIRST, &content("one")?);
        let taken = home.snapshots().take(&order(home, "first")?, STILL, &silent).await;
        let taken = done("what exists can be taken", taken)?;
        let list = done("it is listed", home.snapshots().list(home.instance()).await)?;
        let digits = list.repository.bytes().filter(u8::is_ascii_hexdigit).count();
        holds("a repository has an id", digits == 16 && list.repository.len() == 16, &list)?;
        let copied = self.copy_out(Surplus::Kept).await?;
        holds("the first time everything is copied", copied.files > 0, copied)?;
        holds("what is copied has bytes", copied.bytes > 0, copied)?;
        let again = self.copy_out(Surplus::Removed).await?;
        same("what is there is not copied again", &again, &Carried::default())?;
        Ok(taken)
    }

    async fn refused(&self) -> Result<(), Breach> {
        let stranger = self.ground.stranger;
        let (port, instance) = (stranger.snapshots(), stranger.instance());
        stranger.set_data(DataGeneration::FIRST, &content("strange")?);
        let taken = port.take(&order(stranger, "first")?, STILL, &silent).await;
        done("what exists can be taken", taken)?;
        let rule = "a copy of another repository is not written to";
        let refused = port.copy_out(instance, &self.place(), Surplus::Removed, &silent).await;
        holds(rule, matches!(refused, Err(SnapshotsError::OtherRepository(_))), refused)?;
        let rule = "nor is a repository replaced by another";
        let keys = self.keys(self.ground.home).await?;
        let refused = port.copy_in(instance, &self.place(), &keys, &silent).await;
        holds(rule, matches!(refused, Err(SnapshotsError::OtherRepository(_))), refused)?;
        let rule = "nor by one that another host sends";
        let (sent, received) = self.send_to(stranger, &keys).await;
        holds(rule, matches!(received, Err(SnapshotsError::OtherRepository(_))), received)?;
        holds("and the sender hears it", matches!(sent, Err(SnapshotsError::Pipe { .. })), sent)?;
        self.unusable().await
    }

    /// What is wrong with a storage is said.
    async fn unusable(&self) -> Result<(), Breach> {
        let home = self.ground.home;
        let good = self.ground.storage;
        let wrong = Secret::new("WRONGKEY".to_owned());
        for (storage, said) in [
            (OffsiteStorage { access_key: wrong, ..good.clone() }, "refused the credentials"),
            (
                OffsiteStorage { bucket: "no-such-bucket".to_owned(), ..good.clone() },
                "there is no bucket no-such-bucket",
            ),
        ] {
            let place = OffsitePlace { storage, ..self.place() };
            let port = home.snapshots();
            let refused = port.copy_out(home.instance(), &place, Surplus::Kept, &silent).await;
            let rule = "what keeps a storage from being used is said";
            let told = refused.as_ref().is_err_and(|error| error.to_string().contains(said));
            holds(rule, told, refused)?;
        }
        Ok(())
    }

    async fn inward(&self, first: &SnapshotInfo) -> Result<(), Breach> {
        let CarryGround { home, away, stranger, .. } = *self.ground;
        let (port, instance, place) = (away.snapshots(), away.instance(), self.place());
        let strange = self.keys(stranger).await?;
        let refused = port.copy_in(instance, &place, &strange, &silent).await;
        let rule = "a repository that the keys do not open is not fetched";
        holds(rule, matches!(refused, Err(SnapshotsError::Failed { .. })), refused)?;
        self.empty(rule).await?;
        let keys = self.keys(home).await?;
        let absent = OffsitePlace { path: "hosts/nowhere".to_owned(), ..place.clone() };
        let refused = port.copy_in(instance, &absent, &keys, &silent).await;
        let rule = "where there is no copy none is fetched";
        holds(rule, refused.is_err(), refused)?;
        self.empty(rule).await?;
        let rule = "a copy can be fetched";
        let fetched = done(rule, port.copy_in(instance, &place, &keys, &silent).await)?;
        holds("everything is fetched the first time", fetched.files > 0, fetched)?;
        same("its keys come with it", &self.keys(away).await?, &keys)?;
        let again = done(rule, port.copy_in(instance, &place, &keys, &silent).await)?;
        same("what is there is not fetched again", &again, &Carried::default())?;
        self.comes_back((away, 2), ("one", &first.name), None).await?;
        let arrived = done("what came can be looked at", port.arrived(instance).await)?;
        same("it is what was copied", &arrived.snapshots, &vec![first.clone()])?;
        let rule = "what came and was not used can be removed";
        done(rule, port.discard(instance).await)?;
        self.empty(rule).await
    }

    async fn sent(&self, first: &SnapshotInfo) -> Result<(), Breach> {
        let CarryGround { home, away, stranger, .. } = *self.ground;
        let strange = self.keys(stranger).await?;
        let (sent, received) = self.send_to(away, &strange).await;
        let rule = "a repository that the keys do not open is not kept";
        holds(rule, matches!(received, Err(SnapshotsError::Failed { .. })), received)?;
        holds("and the sender hears it", matches!(sent, Err(SnapshotsError::Pipe { .. })), sent)?;
        self.empty(rule).await?;
        let keys = self.keys(home).await?;
        let rule = "a repository can be sent";
        let (sent, received) = self.send_to(away, &keys).await;
        done("a repository can be received", received)?;
        let sent = done(rule, sent)?;
        holds("everything is sent the first time", sent.files > 0 && sent.bytes > 0, sent)?;
        self.comes_back((away, 3), ("one", &first.name), None).await?;
        home.set_data(DataGeneration::FIRST, &content("two")?);
        let taken = home.snapshots().take(&order(home, "second")?, STILL, &silent).await;
        done("what exists can be taken", taken)?;
        let (more, received) = self.send_to(away, &keys).await;
        done("a repository can be completed", received)?;
        let more = done(rule, more)?;
        holds("what is new is sent", more.files > 0 && more.files <= sent.files, more)?;
        let (nothing, received) = self.send_to(away, &keys).await;
        done("nothing can be received", received)?;
        same("what is there is not sent again", &done(rule, nothing)?, &Carried::default())
    }

    async fn adopted(&self) -> Result<(), Breach> {
        let CarryGround { home, away, .. } = *self.ground;
        let (port, instance) = (away.snapshots(), away.instance());
        let ours = done("it is listed", home.snapshots().list(home.instance()).await)?;
        let theirs = done("it is listed", port.list(instance).await)?;
        same("what came is what was sent", &theirs.snapshots, &ours.snapshots)?;
        same("it is the same repository", &theirs.repository, &ours.repository)?;
        let rule = "what was listed is used, and stays";
        let refused = port.discard(instance).await;
        holds(rule, refused.is_err(), refused)?;
        same(rule, &done(rule, port.list(instance).await)?.snapshots, &ours.snapshots)?;
        self.comes_back((away, 4), ("two", &name("second")?), None).await
    }

    async fn straight(&self, first: &SnapshotInfo) -> Result<SnapshotName, Breach> {
        let CarryGround { home, away, .. } = *self.ground;
        let (place, second) = (self.place(), name("second")?);
        self.copy_out(Surplus::Kept).await?;
        self.comes_back((away, 5), ("two", &second), Some(&place)).await?;
        let unwanted = BTreeSet::from([first.id]);
        let forgotten = home.snapshots().forget(home.instance(), &unwanted, &silent).await;
        done("a snapshot can be forgotten", forgotten)?;
        let kept = self.copy_out(Surplus::Kept).await?;
        same("what the host has no more stays off-site", &kept.removed, &0)?;
        self.comes_back((away, 6), ("one", &first.name), Some(&place)).await?;
        let removed = self.copy_out(Surplus::Removed).await?;
        holds("until it shall go", removed.removed > 0, removed)?;
        let (port, instance) = (away.snapshots(), away.instance());
        let into = generation(7);
        let refused = port.restore_from(instance, &place, &first.name, into, &silent).await;
        let rule = "what is gone cannot be restored";
        holds(rule, matches!(refused, Err(SnapshotsError::NotFound(_))), refused)?;
        same("a restore that failed leaves nothing", &away.data(into), &None)?;
        home.damage(&second);
        let refused =
            home.snapshots().restore(home.instance(), &second, generation(8), &silent).await;
        let rule = "what is damaged is not restored";
        holds(rule, matches!(refused, Err(SnapshotsError::Damaged(_))), refused)?;
        self.comes_back((home, 8), ("two", &second), Some(&place)).await?;
        Ok(second)
    }

    async fn archives(&self, snapshot: &SnapshotName) -> Result<(), Breach> {
        let CarryGround { away, stranger, .. } = *self.ground;
        let imported = self.import_order()?;
        let (here, there) = Pipe::pair();
        let (exported, taken) = tokio::join!(
            away.snapshots().export(away.instance(), snapshot, here, &silent),
            stranger.snapshots().import(&imported, there, &silent),
        );
        done("a snapshot can be exported", exported)?;
        let taken = done("an archive can be imported", taken)?;
        same("it is imported as what it is", &taken.cause, &SnapshotCause::Import)?;
        self.comes_back((stranger, 2), ("two", &taken.name), None).await?;
        let rule = "what is in use is not touched by an import";
        let live = Some(content("strange")?);
        same(rule, &stranger.data(DataGeneration::FIRST), &live)?;
        let rule = "a name is imported once";
        let (here, there) = Pipe::pair();
        drop(there);
        let again = stranger.snapshots().import(&imported, here, &silent).await;
        same(rule, &done(rule, again)?, &taken)
    }

    async fn broken(&self, snapshot: &SnapshotName) -> Result<(), Breach> {
        let CarryGround { away, stranger, .. } = *self.ground;
        let (port, instance) = (stranger.snapshots(), stranger.instance());
        let before = done("it is listed", port.list(instance).await)?;
        let mut order = self.import_order()?;
        order.name = name("garbage")?;
        let garbage = Parcel::Piece(b"no archive at all\n".to_vec());
        for last in [Parcel::End, Parcel::GaveUp("it was not wanted".to_owned())] {
            let (mut here, there) = Pipe::pair();
            let sending = async {
                _ = here.give(garbage.clone()).await;
                _ = here.give(last).await;
                while let Ok(Some(_piece)) = here.next().await {}
            };
            let (refused, ()) = tokio::join!(port.import(&order, there, &silent), sending);
            holds("what is no archive is not imported", refused.is_err(), refused)?;
        }
        let after = done("it is listed", port.list(instance).await)?;
        same("what was not imported is not there", &after.snapshots, &before.snapshots)?;
        let (here, there) = Pipe::pair();
        drop(there);
        let refused = away.snapshots().export(away.instance(), snapshot, here, &silent).await;
        let rule = "what nobody takes is not exported";
        holds(rule, matches!(refused, Err(SnapshotsError::Pipe { .. })), refused)?;
        let (here, mut there) = Pipe::pair();
        let absent = name("absent")?;
        let hearing = async { there.next().await };
        let exporting = away.snapshots().export(away.instance(), &absent, here, &silent);
        let (refused, heard) = tokio::join!(exporting, hearing);
        let rule = "what was never taken cannot be exported";
        holds(rule, matches!(refused, Err(SnapshotsError::NotFound(_))), refused)?;
        holds("and who waits for it hears why", heard.is_err(), heard)
    }

    fn import_order(&self) -> Result<crate::ports::SnapshotOrder, Breach> {
        let mut order = order(self.ground.stranger, "imported")?;
        order.cause = SnapshotCause::Import;
        Ok(order)
    }
}

/// What a snapshot keeps.
fn kept(word: &str) -> Result<BTreeMap<StatePath, String>, Breach> {
    let mut kept = content(word)?;
    kept.retain(|path, _| !path.as_str().starts_with("tmp/"));
    Ok(kept)
}

/// Keys of no repository.
fn made_up() -> RepositoryKeys {
    RepositoryKeys {
        secret: Secret::new("5".repeat(64)),
        recovery: Secret::new("aaaa-bbbb-cccc-dddd-eeee-ffff-gggg-hhhh".to_owned()),
    }
}
