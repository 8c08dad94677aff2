//! Archives and repositories that come and go, with the other end of every pipe in the tests' hands.

use std::cell::Cell;
use std::rc::Rc;

use claw_core::backup::SnapshotCause;
use claw_core::event::{EventKind, Severity};
use claw_core::name::InstanceName;

use super::super::errand::{Errand, Fetch, Passage};
use super::super::request::{BackupWork, Extent};
use super::world::{DAY, HOUR, Running, World, name, run, snapshot, storage};
use crate::fakes::{Mishap, Reach};
use crate::ports::{Parcel, Pipe, PipeError, RepositoryKeys, Snapshots as _};

/// A way in, and its other end.
fn way() -> (Passage, Pipe) {
    let (here, there) = Pipe::pair();
    (Passage::new(async { Ok(here) }), there)
}

/// A way that leads nowhere.
fn dead_end() -> Passage {
    Passage::new(async { Err(PipeError("there is no transfer".to_owned())) })
}

/// Everything that comes, and how it ends.
async fn read(pipe: &mut Pipe) -> (Vec<u8>, Result<(), PipeError>) {
    let mut all = Vec::new();
    loop {
        match pipe.next().await {
            Ok(Some(piece)) => all.extend(piece),
            Ok(None) => return (all, Ok(())),
            Err(error) => return (all, Err(error)),
        }
    }
}

async fn write(pipe: &mut Pipe, bytes: &[u8]) {
    for piece in bytes.chunks(1000) {
        pipe.give(Parcel::Piece(piece.to_vec())).await.expect("taken");
    }
    pipe.give(Parcel::End).await.expect("taken");
}

async fn ask(agent: &Running, instance: &str, errand: Errand) -> Result<(), String> {
    agent.ask(instance, BackupWork::Errand(errand)).await
}

/// A loop on which "a" runs and has a snapshot.
async fn with_one(world: &World) -> Running {
    let agent = world.start();
    agent.up("a");
    agent.until("the first", || agent.taken("a").len() == 1).await;
    agent.settle().await;
    agent
}

async fn keys(world: &World, instance: &str) -> RepositoryKeys {
    world.machine.snapshots.keys(&name(instance)).await.expect("read").expect("has some")
}

#[test]
fn an_archive_that_is_exported_can_be_imported() {
    run(async {
        let world = World::new();
        let agent = with_one(&world).await;
        let first = agent.taken("a").remove(0);
        let (passage, mut pipe) = way();
        assert_eq!(ask(&agent, "a", Errand::Export(first.clone(), passage)).await, Ok(()));
        let (archive, ended) = read(&mut pipe).await;
        assert_eq!(ended, Ok(()));
        assert!(!archive.is_empty());

        agent.up("b");
        agent.until("of b", || agent.taken("b").len() == 1).await;
        let (passage, mut pipe) = way();
        let import = Errand::Import(snapshot("brought"), passage);
        assert_eq!(ask(&agent, "b", import).await, Ok(()));
        write(&mut pipe, &archive).await;
        agent.until("listed", || agent.taken("b").contains(&snapshot("brought"))).await;
        agent.settle().await;
        let report = agent.report("b");
        let brought = report.snapshots.iter().find(|s| s.name == snapshot("brought"));
        assert_eq!(brought.map(|s| s.cause), Some(SnapshotCause::Import));
        let told = agent.event(EventKind::SnapshotTaken, Severity::Info);
        assert!(told.message.starts_with("snapshot brought was imported: "), "{}", told.message);
        let content = |of: &str, what| world.machine.snapshots.content(&name(of), what);
        assert_eq!(content("b", &snapshot("brought")), content("a", &first));
        assert_eq!(report.problem, "");
    });
}

#[test]
fn errands_are_refused_precisely() {
    run(async {
        let world = World::new();
        let agent = with_one(&world).await;
        agent.bare("bare");
        let looked = || agent.agent.roster.held(&name("bare")).snapshots.is_some();
        agent.until("looked", looked).await;
        let keys = keys(&world, "a").await;
        let first = agent.taken("a").remove(0);
        let x = || snapshot("x");
        let fetch = || Fetch { storage: None, path: "p".to_owned(), keys: keys.clone() };
        let cases = [
            ("nobody", Errand::Export(x(), dead_end()), "instance nobody is not on this host"),
            ("nobody", Errand::Import(x(), dead_end()), "instance nobody is not on this host"),
            ("nobody", Errand::Send(dead_end()), "instance nobody is not on this host"),
            ("a", Errand::Export(x(), dead_end()), "there is no snapshot x"),
            (
                "a",
                Errand::Import(first.clone(), dead_end()),
                &format!("there is a snapshot {first} already"),
            ),
            ("bare", Errand::Send(dead_end()), "instance bare has no snapshots that could be sent"),
            (
                "a",
                Errand::Receive(keys.clone(), dead_end()),
                "instance a has a repository on this host, which stays",
            ),
            (
                "a",
                Errand::Fetch(Box::new(fetch())),
                "instance a has a repository on this host, which stays",
            ),
            ("new", Errand::Fetch(Box::new(fetch())), "this host has no off-site storage"),
            ("a", Errand::Discard, "instance a is on this host, and its repository stays"),
        ];
        for (instance, errand, expected) in cases {
            let shown = format!("{errand:?}");
            let refused = ask(&agent, instance, errand).await;
            assert_eq!(refused, Err(expected.to_owned()), "{instance}: {shown}");
        }
        let effects = world.effects();
        assert!(effects.iter().all(|effect| !effect.contains("repository")), "{effects:?}");
    });
}

#[test]
fn the_other_end_hears_why_an_errand_failed_and_the_loop_goes_on() {
    run(async {
        let world = World::new();
        let agent = with_one(&world).await;
        let first = agent.taken("a").remove(0);
        world.machine.mishaps().named("export-snapshot", 1, Mishap::FailsBefore);
        let (passage, mut pipe) = way();
        assert_eq!(ask(&agent, "a", Errand::Export(first.clone(), passage)).await, Ok(()));
        let (_, ended) = read(&mut pipe).await;
        assert!(ended.expect_err("failed").0.contains("told to fail"));

        // There is no room for an archive.
        world.machine.volumes.set_room(1, 20 << 30);
        let (passage, mut pipe) = way();
        assert_eq!(ask(&agent, "a", Errand::Import(snapshot("x"), passage)).await, Ok(()));
        let (_, ended) = read(&mut pipe).await;
        assert!(ended.expect_err("failed").0.starts_with("no room: "));
        world.machine.volumes.set_room(20 << 30, 20 << 30);

        // The way cannot be opened.
        assert_eq!(ask(&agent, "a", Errand::Send(dead_end())).await, Ok(()));
        // The other end goes away.
        let (passage, pipe) = way();
        assert_eq!(ask(&agent, "a", Errand::Import(snapshot("y"), passage)).await, Ok(()));
        drop(pipe);
        agent.settle().await;
        let report = agent.report("a");
        assert_eq!((report.problem.as_str(), report.snapshots.len()), ("", 1), "{report:?}");
        agent.until("goes on", || agent.taken("a").len() == 2).await;
    });
}

#[test]
fn errands_wait_in_their_order_and_not_without_bound() {
    run(async {
        let world = World::new();
        let agent = with_one(&world).await;
        let first = agent.taken("a").remove(0);
        world.machine.mishaps().named("export-snapshot", 1, Mishap::HangsBefore);
        let opened = Rc::new(Cell::new(0));
        let counted = || {
            let opened = Rc::clone(&opened);
            Passage::new(async move {
                opened.set(opened.get() + 1);
                Err(PipeError("gone".to_owned()))
            })
        };
        let (passage, _pipe) = way();
        assert_eq!(ask(&agent, "a", Errand::Export(first.clone(), passage)).await, Ok(()));
        agent.until("stuck", || world.times("export-snapshot") == 1).await;
        for _ in 0..16 {
            assert_eq!(ask(&agent, "a", Errand::Export(first.clone(), counted())).await, Ok(()));
        }
        agent.settle().await;
        assert_eq!(opened.get(), 16, "the other ends do not wait for the errand before");
        let refused = ask(&agent, "a", Errand::Export(first, counted())).await;
        let full = "too many transfers of this host wait already; try again later";
        assert_eq!(refused, Err(full.to_owned()));
    });
}

#[test]
fn a_repository_moves_to_another_host_with_its_keys() {
    run(async {
        let (from, to) = (World::new(), World::new());
        let sender = with_one(&from).await;
        let keys = keys(&from, "a").await;
        let receiver = to.start();
        receiver.up("b");
        for round in 1..=2 {
            let (here, there) = Pipe::pair();
            let (here, there) =
                (Passage::new(async { Ok(here) }), Passage::new(async { Ok(there) }));
            let receive = Errand::Receive(keys.clone(), there);
            assert_eq!(ask(&receiver, "a", receive).await, Ok(()));
            assert_eq!(ask(&sender, "a", Errand::Send(here)).await, Ok(()));
            receiver.until("arrived", || receiver.taken("a") == sender.taken("a")).await;
            assert_eq!(receiver.report("a").problem, "");
            if round == 1 {
                sender.until("another", || sender.taken("a").len() == 2).await;
                sender.settle().await;
            }
        }
        // It was not used yet, and may go again.
        assert_eq!(ask(&receiver, "a", Errand::Discard).await, Ok(()));
        receiver.settle().await;
        assert_eq!(receiver.taken("a"), []);
        assert_eq!(to.machine.snapshots.keys(&name("a")).await.expect("read"), None);
    });
}

#[test]
fn the_instance_goes_on_where_its_repository_came_to() {
    run(async {
        let (from, to) = (World::new(), World::new());
        let sender = with_one(&from).await;
        let moved = keys(&from, "a").await;
        let receiver = to.start();
        let (here, there) = Pipe::pair();
        let (here, there) = (Passage::new(async { Ok(here) }), Passage::new(async { Ok(there) }));
        assert_eq!(ask(&receiver, "a", Errand::Receive(moved.clone(), there)).await, Ok(()));
        assert_eq!(ask(&sender, "a", Errand::Send(here)).await, Ok(()));
        receiver.until("arrived", || receiver.taken("a").len() == 1).await;
        receiver.up("a");
        receiver.until("another", || receiver.taken("a").len() == 2).await;
        receiver.settle().await;
        // What the coordinator holds already is what it is told.
        let told = receiver.agent.board.unescrowed().remove(&name("a"));
        assert_eq!(told, Some(moved));
        let refused = ask(&receiver, "a", Errand::Discard).await;
        assert!(refused.is_err());
    });
}

/// Copies "a" of one world to a bucket that both reach; with its path and keys.
async fn copied(from: &World, to: &World) -> Fetch {
    to.machine.snapshots.use_storage(&from.machine.snapshots.storage());
    from.offer("claws");
    let agent = from.start();
    agent.copy_to(Some("claws"));
    agent.up("a");
    agent.until("copied", || agent.is_offsite("a")).await;
    let path = agent.report("a").offsite.path;
    let keys = keys(from, "a").await;
    agent.kill().await;
    Fetch { storage: Some(storage("claws")), path, keys }
}

#[test]
fn a_repository_is_fetched_from_the_storage_of_a_host_that_is_gone() {
    run(async {
        let (gone, world) = (World::new(), World::new());
        let fetch = copied(&gone, &world).await;
        let agent = world.start();
        agent.up("b");
        let buckets = gone.machine.snapshots.storage();
        buckets.set_reach(Reach::None);
        assert_eq!(ask(&agent, "a", Errand::Fetch(Box::new(fetch.clone()))).await, Ok(()));
        agent.until("told", || agent.report("a").problem.contains("cannot be reached")).await;
        // Whoever asked asks again.
        buckets.set_reach(Reach::All);
        assert_eq!(ask(&agent, "a", Errand::Fetch(Box::new(fetch.clone()))).await, Ok(()));
        agent.until("arrived", || agent.taken("a").len() == 1).await;
        assert_eq!(agent.report("a").problem, "");
        assert_eq!(ask(&agent, "a", Errand::Fetch(Box::new(fetch.clone()))).await, Ok(()));
        agent.settle().await;
        agent.up("a");
        agent.until("looked", || agent.agent.roster.held(&name("a")).snapshots.is_some()).await;
        assert_eq!(agent.taken("a").len(), 1);
        agent.settle().await;
        assert_eq!(agent.agent.board.unescrowed().remove(&name("a")), Some(fetch.keys));
    });
}

#[test]
fn the_same_fetch_waits_once_and_is_broken_off_for_snapshots() {
    run(async {
        let (gone, world) = (World::new(), World::new());
        let fetch = copied(&gone, &world).await;
        let agent = with_one(&world).await;
        let mine: InstanceName = name("c");
        world.machine.mishaps().named("copy-in", 1, Mishap::HangsBefore);
        for _ in 0..20 {
            assert_eq!(ask(&agent, "c", Errand::Fetch(Box::new(fetch.clone()))).await, Ok(()));
        }
        agent.until("stuck", || world.times("copy-in") == 1).await;
        assert_eq!(ask(&agent, "c", Errand::Fetch(Box::new(fetch.clone()))).await, Ok(()));
        agent.down("a", Some(SnapshotCause::Pause));
        agent.settle().await;
        agent.settle().await;
        let taken = agent.taken("a");
        assert!(taken.iter().any(|one| one.as_str().starts_with("pause-")), "{taken:?}");
        agent.until("arrived", || agent.taken("c").len() == 1).await;
        agent.settle().await;
        assert_eq!(world.times("copy-in"), 2);
        let content = world.machine.snapshots.list(&mine).await.expect("listed");
        assert_eq!(content.snapshots.len(), 1);
    });
}

#[test]
fn what_may_wait_is_broken_off_for_an_errand() {
    run(async {
        let world = World::new();
        let agent = with_one(&world).await;
        world.machine.mishaps().named("verify-snapshots", 1, Mishap::HangsBefore);
        assert_eq!(agent.ask("a", BackupWork::Verify(Extent::Data)).await, Ok(()));
        agent.settle().await;
        let first = agent.taken("a").remove(0);
        let (passage, mut pipe) = way();
        assert_eq!(ask(&agent, "a", Errand::Export(first, passage)).await, Ok(()));
        let (archive, ended) = read(&mut pipe).await;
        assert!(!archive.is_empty() && ended.is_ok());
        agent.settle().await;
        assert!(agent.report("a").verified_at.is_some(), "it is done again");
    });
}

#[test]
fn a_repository_that_was_lost_comes_back_from_the_own_storage() {
    run(async {
        let world = World::new();
        world.offer("claws");
        let agent = world.start();
        agent.copy_to(Some("claws"));
        agent.up("a");
        agent.until("copied", || agent.is_offsite("a")).await;
        let (path, known) = (agent.report("a").offsite.path, keys(&world, "a").await);
        agent.kill().await;
        world.machine.snapshots.set_aside(&name("a"));
        // Nothing is taken meanwhile: that would be another repository.
        world.machine.mishaps().named("take-snapshot", 9, Mishap::FailsBefore);
        let agent = world.start();
        agent.copy_to(Some("claws"));
        agent.down("a", None);
        agent.until("looked", || agent.agent.roster.held(&name("a")).snapshots.is_some()).await;
        assert_eq!(agent.report("a").offsite.path, path, "it is known where the copy is");
        let fetch = Fetch { storage: None, path: path.clone(), keys: known };
        assert_eq!(ask(&agent, "a", Errand::Fetch(Box::new(fetch))).await, Ok(()));
        agent.until("back", || agent.taken("a").len() == 1).await;
        assert!(agent.is_offsite("a"), "and it is known to be there still");
        assert_eq!(agent.report("a").offsite.path, path);
    });
}

#[test]
fn an_agent_that_is_killed_in_an_errand_leaves_the_next_one_free() {
    for call in ["export-snapshot", "import-archive", "send-repository", "copy-in"] {
        run(async move {
            let (gone, world) = (World::new(), World::new());
            let fetch = copied(&gone, &world).await;
            let agent = with_one(&world).await;
            world.machine.mishaps().named(call, 1, Mishap::HangsBefore);
            let (passage, mut pipe) = way();
            let (instance, errand) = match call {
                "export-snapshot" => ("a", Errand::Export(agent.taken("a").remove(0), passage)),
                "import-archive" => ("a", Errand::Import(snapshot("x"), passage)),
                "send-repository" => ("a", Errand::Send(passage)),
                _ => {
                    drop(passage);
                    ("c", Errand::Fetch(Box::new(fetch.clone())))
                }
            };
            assert_eq!(ask(&agent, instance, errand).await, Ok(()));
            agent.until("stuck", || world.times(call) == 1).await;
            agent.kill().await;
            let (_, ended) = read(&mut pipe).await;
            assert_eq!(ended, Err(PipeError("the other end went away".to_owned())), "{call}");
            let agent = world.start();
            agent.up("a");
            agent.pass(2 * DAY + HOUR).await;
            assert!(agent.taken("a").len() >= 2, "{call}");
            assert_eq!(agent.report("a").problem, "", "{call}");
            assert_eq!(ask(&agent, "c", Errand::Fetch(Box::new(fetch))).await, Ok(()));
            agent.until("arrived", || agent.taken("c").len() == 1).await;
        });
    }
}
