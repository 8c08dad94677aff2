//! Repositories and snapshots on their way, and what becomes of them when the way breaks.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use claw_core::backup::SnapshotCause;
use claw_core::offsite::OffsiteStorage;
use clawd::ports::{
    Carried, Offsite as _, OffsitePlace, Parcel, Pipe, Snapshots as _, SnapshotsError, Surplus,
    Transfers as _,
};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::ground::{
    Ground, children, files_below, generation, is_alive, noise, run, signal, silent, snapshot,
    until,
};
use crate::s3::{Moto, offsite};

/// An archive that OpenClaw made, of the engine's tests.
const OF_OPENCLAW: &[u8] = include_bytes!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../claw-snapshot/tests/data/openclaw-2026.9.6.tar.gz"
));

/// A host with one snapshot of so many megabytes.
async fn filled(megabytes: u64) -> Ground {
    let ground = Ground::new();
    for number in 0..megabytes {
        ground.write(&format!("agents/{number}"), noise(number, 1_000_000));
    }
    ground.take("first").await.unwrap();
    ground
}

async fn copy_out(ground: &Ground, place: &OffsitePlace) -> Result<Carried, SnapshotsError> {
    ground.worker.copy_out(&ground.instance, place, Surplus::Kept, &silent).await
}

/// Sends a repository from one host to another.
async fn send(
    home: &Ground,
    away: &Ground,
) -> (Result<Carried, SnapshotsError>, Result<(), SnapshotsError>) {
    let keys = home.worker.keys(&home.instance).await.unwrap().unwrap();
    let (here, there) = Pipe::pair();
    tokio::join!(
        home.worker.send(&home.instance, here, &silent),
        away.worker.receive(&away.instance, &keys, there, &silent),
    )
}

/// Processes of jobs; the storage's is none.
fn jobs() -> Vec<Pid> {
    let mut found = children(std::process::id());
    found.retain(|child| {
        let line = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.contains("snap-worker")
    });
    found
}

fn packs(ground: &Ground) -> usize {
    files_below(&ground.repository().join("data")).len()
}

/// A way to a server that breaks after so many bytes.
struct Way {
    endpoint: String,
    left: Arc<AtomicI64>,
}

impl Way {
    fn to(storage: &OffsiteStorage, bytes: i64) -> Self {
        let server = storage.endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let left = Arc::new(AtomicI64::new(bytes));
        let allowed = Arc::clone(&left);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(&server) else { continue };
                let (client_too, far_too) = (client.try_clone().unwrap(), far.try_clone().unwrap());
                let allowed = Arc::clone(&allowed);
                thread::spawn(move || pass(client, far, &allowed));
                thread::spawn(move || pass(far_too, client_too, &AtomicI64::new(i64::MAX)));
            }
        });
        Self { endpoint, left }
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, left: &AtomicI64) {
    let mut part = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut part) {
        let bytes = i64::try_from(count).unwrap();
        if left.fetch_sub(bytes, Ordering::Relaxed) < bytes || to.write_all(&part[..count]).is_err()
        {
            break;
        }
    }
    _ = from.shutdown(Shutdown::Both);
    _ = to.shutdown(Shutdown::Both);
}

#[test]
fn a_copy_whose_way_breaks_goes_on_where_it_stopped() {
    let moto = Moto::start();
    run(async {
        let home = filled(24).await;
        let way = Way::to(&moto.storage(), 13_000_000);
        let endpoint = way.endpoint.clone();
        let broken = OffsitePlace {
            storage: OffsiteStorage { endpoint, ..moto.storage() },
            ..moto.place("hosts/home/demo/1")
        };
        let refused = copy_out(&home, &broken).await.unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("broke") || said.contains("cannot be reached"), "{said}");
        way.left.store(i64::MAX, Ordering::Relaxed);
        let rest = copy_out(&home, &broken).await.unwrap();
        let all = u64::try_from(files_below(&home.repository().join("data")).len()).unwrap();
        assert!(rest.files > 0 && rest.files < all, "{rest:?} of {all}");
        let away = Ground::new();
        let keys = home.worker.keys(&home.instance).await.unwrap().unwrap();
        let place = moto.place("hosts/home/demo/1");
        away.worker.copy_in(&away.instance, &place, &keys, &silent).await.unwrap();
        assert_eq!(away.names().await, ["first"]);
        away.assert_sound().await;
    });
}

#[test]
fn keys_of_a_storage_are_seen_by_nobody_and_a_dropped_job_ends() {
    // Takes connections, answers none.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    run(async {
        let home = filled(1).await;
        let storage = offsite(&endpoint, "AKIDNAMEDHERE", "HUSHHUSHHUSH");
        let place = OffsitePlace { storage, path: "one".to_owned() };
        let looking = async {
            until("the job has a process", || !jobs().is_empty()).await;
            let job = jobs()[0];
            until("it knows the key", || {
                listener.set_nonblocking(true).is_ok() && listener.accept().is_ok()
            })
            .await;
            for file in ["cmdline", "environ"] {
                let seen = fs::read(format!("/proc/{job}/{file}")).unwrap();
                let seen = String::from_utf8_lossy(&seen).into_owned();
                assert!(
                    !seen.contains("AKIDNAMEDHERE") && !seen.contains("HUSH"),
                    "{file}: {seen}"
                );
            }
            job
        };
        let job = tokio::select! {
            copied = copy_out(&home, &place) => panic!("{copied:?}"),
            job = looking => job,
        };
        until("the dropped job ends", || !is_alive(job)).await;
        home.take("second").await.unwrap();
    });
}

#[test]
fn a_sender_that_dies_is_heard_and_the_next_goes_on() {
    run(async {
        let (home, away) = (filled(40).await, Ground::new());
        // Both processes die, then the sender's agent gives up, then nobody does.
        let killing = async {
            until("a part has come", || packs(&away) >= 2).await;
            for job in jobs() {
                signal(job, Signal::SIGKILL);
            }
            std::future::pending::<()>().await;
        };
        let (sent, received) = tokio::select! {
            both = send(&home, &away) => both,
            () = killing => unreachable!(),
        };
        sent.unwrap_err();
        received.unwrap_err();
        let came = packs(&away);
        assert!(came >= 2);
        let keys = home.worker.keys(&home.instance).await.unwrap().unwrap();
        let (here, there) = Pipe::pair();
        let receiving = away.worker.receive(&away.instance, &keys, there, &silent);
        let leaving = async {
            tokio::select! {
                sent = home.worker.send(&home.instance, here, &silent) => panic!("{sent:?}"),
                () = until("more has come", || packs(&away) > came) => {}
            }
        };
        let (received, ()) = tokio::join!(receiving, leaving);
        let said = received.unwrap_err();
        assert!(matches!(said, SnapshotsError::Pipe { .. }), "{said:?}");
        let came = u64::try_from(packs(&away)).unwrap();
        let all = u64::try_from(packs(&home)).unwrap();
        let (sent, received) = send(&home, &away).await;
        received.unwrap();
        let sent = sent.unwrap();
        assert!(sent.files < all + 4 && sent.files + came >= all, "{sent:?}, {came} of {all}");
        assert_eq!(away.names().await, ["first"]);
        away.assert_sound().await;
        away.restore("first", 2).await.unwrap();
        home.write("agents/0", "changed");
        home.take("second").await.unwrap();
        let (more, received) = send(&home, &away).await;
        received.unwrap();
        let more = more.unwrap();
        assert!(more.files <= 4 && more.bytes < 2_000_000, "{more:?}");
        assert_eq!(away.names().await, ["first", "second"]);
        away.assert_sound().await;
    });
}

#[test]
fn a_receiver_without_room_says_so_to_both() {
    run(async {
        let home = filled(2).await;
        let away = Ground::with(|settings| settings.reserve_bytes = 1 << 50);
        let (sent, received) = send(&home, &away).await;
        let received = received.unwrap_err();
        assert!(matches!(received, SnapshotsError::Full { .. }), "{received:?}");
        let sent = sent.unwrap_err();
        let SnapshotsError::Pipe { source, .. } = &sent else { panic!("{sent:?}") };
        assert!(source.to_string().contains("no room"), "{source}");
        assert_eq!(away.worker.keys(&away.instance).await.unwrap(), None);
        assert_eq!(files_below(&away.data.join("repo")), Vec::<std::path::PathBuf>::new());
        let order = away.order("imported");
        let refused = import(&away, &order, OF_OPENCLAW).await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Full { .. }), "{refused:?}");
    });
}

/// Imports an archive that somebody sends.
async fn import(
    ground: &Ground,
    order: &clawd::ports::SnapshotOrder,
    archive: &[u8],
) -> Result<claw_core::backup::SnapshotInfo, SnapshotsError> {
    let (mut here, there) = Pipe::pair();
    let sending = async {
        for piece in archive.chunks(10_000) {
            if here.give(Parcel::Piece(piece.to_vec())).await.is_err() {
                return;
            }
        }
        _ = here.give(Parcel::End).await;
        while let Ok(Some(_piece)) = here.next().await {}
    };
    let (imported, ()) = tokio::join!(ground.worker.import(order, there, &silent), sending);
    imported
}

/// Everything that a snapshot keeps of a directory.
fn describe(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let seen = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let content = if seen.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else if seen.is_file() {
            format!("{:?}", claw_core::stamp::Digest::of(&fs::read(&path).unwrap()))
        } else {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            String::new()
        };
        let (mode, owner) = (seen.mode(), (seen.uid(), seen.gid()));
        let time = (seen.mtime(), seen.mtime_nsec());
        let links = if seen.is_dir() { 0 } else { seen.nlink() };
        found.push(format!("{name} {mode:o} {owner:?} {time:?} {links} {content}"));
    }
    found.sort();
    found
}

#[test]
fn an_archive_brings_the_same_tree_to_another_host() {
    run(async {
        let (home, away) = (filled(3).await, Ground::new());
        home.write("agents/main/a.jsonl", "a");
        fs::hard_link(home.live().join("agents/0"), home.live().join("agents/0b")).unwrap();
        symlink("main/a.jsonl", home.live().join("agents/link")).unwrap();
        let private = home.live().join("agents/main/a.jsonl");
        fs::set_permissions(private, fs::Permissions::from_mode(0o600)).unwrap();
        let mut paths = vec![home.live()];
        while let Some(path) = paths.pop() {
            std::os::unix::fs::lchown(&path, Some(1000), Some(1000)).unwrap();
            if path.is_dir() && !path.is_symlink() {
                paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        home.take("second").await.unwrap();
        let mut order = away.order("imported");
        order.cause = SnapshotCause::Import;
        let (second, (here, there)) = (snapshot("second"), Pipe::pair());
        let (exported, imported) = tokio::join!(
            home.worker.export(&home.instance, &second, here, &silent),
            away.worker.import(&order, there, &silent),
        );
        exported.unwrap();
        assert_eq!(imported.unwrap().cause, SnapshotCause::Import);
        away.restore("imported", 1).await.unwrap();
        let (ours, theirs) = (describe(&home.live()), describe(&away.live()));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(ours.len(), theirs.len());
        away.assert_sound().await;
    });
}

#[test]
fn an_archive_of_openclaw_becomes_a_snapshot_of_the_gateways_user() {
    run(async {
        let ground = Ground::new();
        let info = import(&ground, &ground.order("imported"), OF_OPENCLAW).await.unwrap();
        assert!(info.files > 0 && info.bytes > 0, "{info:?}");
        ground.restore("imported", 1).await.unwrap();
        let seen = fs::metadata(ground.live().join("openclaw.json")).unwrap();
        assert_eq!((seen.uid(), seen.gid()), (1000, 1000));
        assert_eq!(ground.names().await, ["imported"]);
        assert!(!ground.home().join("import.partial").exists());
    });
}

#[test]
fn an_import_that_is_killed_leaves_nothing() {
    run(async {
        let (home, away) = (filled(12).await, Ground::new());
        away.write("live", "in use");
        away.take("before").await.unwrap();
        let place = away.home().join("import.partial");
        let (here, mut there) = Pipe::pair();
        let (mut to, inward) = Pipe::pair();
        let first = snapshot("first");
        let exporting = home.worker.export(&home.instance, &first, here, &silent);
        let order = away.order("imported");
        let importing = away.worker.import(&order, inward, &silent);
        // A part of the archive, and no more.
        let relaying = async {
            for _ in 0..60 {
                let piece = there.next().await.unwrap().unwrap();
                to.give(Parcel::Piece(piece)).await.unwrap();
            }
            until("something is unpacked", || !files_below(&place).is_empty()).await;
            let importer = jobs().into_iter().find(|job| {
                let files = fs::read_dir(format!("/proc/{job}/fd")).unwrap().flatten();
                let mut open = files.filter_map(|file| fs::read_link(file.path()).ok());
                open.any(|file| file.starts_with(&away.data))
            });
            signal(importer.unwrap(), Signal::SIGKILL);
            drop((there, to));
        };
        let (exported, imported, ()) = tokio::join!(exporting, importing, relaying);
        let exported = exported.unwrap_err();
        assert!(matches!(exported, SnapshotsError::Pipe { .. }), "{exported:?}");
        let imported = imported.unwrap_err();
        assert!(matches!(imported, SnapshotsError::Worker { .. }), "{imported:?}");
        away.take("after").await.unwrap();
        assert!(!place.exists());
        assert_eq!(away.names().await, ["before", "after"]);
        assert_eq!(files_below(&away.home()), [away.live().join("live")]);
        away.assert_sound().await;
    });
}

#[test]
fn a_copy_that_is_killed_leaves_no_half_and_a_restore_from_it_nothing() {
    let moto = Moto::start();
    run(async {
        let home = filled(30).await;
        let place = moto.place("hosts/home/demo/1");
        let copied = copy_out(&home, &place).await.unwrap();
        let into = home.generation(2);
        let partial = into.with_extension("partial");
        let killing = async {
            until("something is restored", || !files_below(&partial).is_empty()).await;
            signal(jobs()[0], Signal::SIGKILL);
            std::future::pending::<()>().await;
        };
        let name = snapshot("first");
        let port = &home.worker;
        let refused = tokio::select! {
            restored = port.restore_from(&home.instance, &place, &name, generation(2), &silent) => {
                restored.unwrap_err()
            }
            () = killing => unreachable!(),
        };
        assert!(matches!(refused, SnapshotsError::Worker { .. }), "{refused:?}");
        assert!(!into.exists());
        // The repository here is gone altogether.
        fs::remove_dir_all(home.repository()).unwrap();
        port.restore_from(&home.instance, &place, &name, generation(2), &silent).await.unwrap();
        assert_eq!(describe(&into), describe(&home.live()));
        assert!(!partial.exists());
        let keys = port.keys(&home.instance).await.unwrap().unwrap();
        let killing = async {
            until("a part has come", || packs(&home) >= 1).await;
            signal(jobs()[0], Signal::SIGKILL);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            fetched = port.copy_in(&home.instance, &place, &keys, &silent) => fetched.unwrap_err(),
            () = killing => unreachable!(),
        };
        let rest = port.copy_in(&home.instance, &place, &keys, &silent).await.unwrap();
        assert!(rest.files > 0 && rest.files < copied.files, "{rest:?} of {copied:?}");
        assert_eq!(home.names().await, ["first"]);
        home.assert_sound().await;
    });
}

#[test]
fn an_export_ends_with_its_taker() {
    run(async {
        let home = filled(8).await;
        let (here, mut there) = Pipe::pair();
        let name = snapshot("first");
        let exporting = home.worker.export(&home.instance, &name, here, &silent);
        let leaving = async {
            there.next().await.unwrap().unwrap();
            drop(there);
        };
        let (exported, ()) = tokio::join!(exporting, leaving);
        let refused = exported.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Pipe { .. }), "{refused:?}");
        until("its process ends", || jobs().is_empty()).await;
        home.take("second").await.unwrap();
    });
}

#[test]
fn a_storage_that_goes_away_is_no_damage() {
    let moto = Moto::start();
    run(async {
        let home = filled(12).await;
        let place = moto.place("hosts/home/demo/1");
        copy_out(&home, &place).await.unwrap();
        let way = Way::to(&moto.storage(), 20_000);
        let endpoint = way.endpoint.clone();
        let broken =
            OffsitePlace { storage: OffsiteStorage { endpoint, ..moto.storage() }, ..place };
        let (name, into) = (snapshot("first"), generation(2));
        let port = &home.worker;
        let refused = port.restore_from(&home.instance, &broken, &name, into, &silent).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Failed { .. }), "{refused:?}");
        assert!(!home.generation(2).exists());
    });
}
