//! Archives: what is exported comes back, other programs read it, and nothing that an archive says
//! does harm.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use claw_snapshot::{
    ArchiveOrigin, AttachmentName, ExportError, FileId, FileKind, OpenClawAsset, Owner,
    RestoreError, SnapshotId, Source, Stillness, UnpackError, UnpackLimits, Unpacked, Watcher,
    unpack,
};
use flate2::Compression;
use flate2::write::GzEncoder;
use support::{Fixture, LATER, describe, noise, request, run};
use tar::{Builder, EntryType, Header};

const LIMITS: UnpackLimits = UnpackLimits { entries: 1000, bytes: 100_000_000, owner: Owner::Kept };

/// A snapshot of everything that an archive can carry.
fn exported() -> (Fixture, SnapshotId, Vec<u8>) {
    let fixture = Fixture::with_repository();
    fixture.write("plain", "x");
    fixture.write("empty", "");
    fixture.write("large", noise(1, 3_000_000));
    fixture.write("zeros", vec![0; 1_000_000]);
    fixture.write("odd\nname\\", "odd");
    fixture.write(&format!("{}/{}/file", "long".repeat(30), "name".repeat(30)), "far away");
    let at = |name: &str| fixture.source().join(name);
    symlink("plain", at("link")).unwrap();
    symlink("../plain", at(&"long".repeat(30)).join("up")).unwrap();
    symlink("nowhere".repeat(30), at("dangling")).unwrap();
    fs::hard_link(at("large"), at("same")).unwrap();
    fs::create_dir(at("bare")).unwrap();
    fs::set_permissions(at("bare"), PermissionsExt::from_mode(0o1700)).unwrap();
    fs::set_permissions(at("plain"), PermissionsExt::from_mode(0o751)).unwrap();
    chown(at("plain"), Some(1000), Some(3_000_000)).unwrap();
    let times = FileTimes::new().set_accessed(UNIX_EPOCH);
    for (name, time) in [
        ("plain", UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789)),
        ("empty", UNIX_EPOCH - Duration::from_millis(1500)),
        ("large", UNIX_EPOCH + Duration::from_secs(1_600_000_000)),
    ] {
        File::open(at(name)).unwrap().set_times(times.set_modified(time)).unwrap();
    }
    let name = |text| AttachmentName::parse(text).unwrap();
    let attachments = BTreeMap::from([
        (name("spec"), noise(5, 300_000)),
        (name("digest"), b"sha256:aa".to_vec()),
    ]);
    let source = Source { attachments, ..Source::openclaw(&fixture.source()) };
    let repository = fixture.open();
    let taken = repository.snapshot(&request(LATER), &source, Watcher::none()).unwrap();
    let id = taken.snapshot.id;
    let mut archive = Vec::new();
    let exported = repository.export(id, &mut archive, &Watcher::none()).unwrap();
    assert_eq!(exported.written, u64::try_from(archive.len()).unwrap());
    assert_eq!(exported.manifest.snapshot, id);
    assert_eq!(Some(exported.manifest.files), taken.snapshot.files.map(|files| files - 2));
    (fixture, id, archive)
}

/// Refused, without a trace.
#[track_caller]
fn refused(archive: impl Read) -> UnpackError {
    refused_within(archive, LIMITS)
}

#[track_caller]
fn refused_within(archive: impl Read, limits: UnpackLimits) -> UnpackError {
    let around = tempfile::tempdir().unwrap();
    fs::write(around.path().join("witness"), "untouched").unwrap();
    fs::create_dir(around.path().join("outside")).unwrap();
    let before = describe(around.path());
    let modified = fs::metadata(around.path()).unwrap().modified().unwrap();
    let fault = unpack(archive, &around.path().join("into"), limits).unwrap_err();
    // Making and removing a directory changes the time of the one around it.
    File::open(around.path()).unwrap().set_modified(modified).unwrap();
    assert_eq!(describe(around.path()), before, "{fault:?}");
    fault
}

#[test]
fn what_is_exported_is_unpacked_and_other_programs_read_it() {
    let (fixture, id, archive) = exported();
    let into = fixture.path("into");
    let unpacked = unpack(archive.as_slice(), &into, LIMITS).unwrap();
    assert_eq!(unpacked.data, into.join("data"));
    assert_eq!(describe(&unpacked.data), describe(&fixture.source()));
    let zeros = fs::metadata(into.join("data/zeros")).unwrap();
    assert!(zeros.blocks() * 512 < 200_000, "{}", zeros.blocks());
    let ArchiveOrigin::Claw(manifest) = unpacked.origin else { panic!("{unpacked:?}") };
    assert_eq!((manifest.snapshot, manifest.host.as_str()), (id, "shop"));
    assert_eq!(manifest.time.millis(), LATER);
    assert_eq!(fs::read(into.join("meta/spec")).unwrap(), noise(5, 300_000));
    assert_eq!(unpacked.files, manifest.files + 2);
    let exists = unpack(archive.as_slice(), &into, LIMITS).unwrap_err();
    assert!(matches!(exists, UnpackError::Exists(_)), "{exists:?}");
    assert_eq!(describe(&into.join("data")), describe(&fixture.source()));

    let file = fixture.path("archive.tar.zst");
    fs::write(&file, &archive).unwrap();
    let other = fixture.path("other");
    fs::create_dir(&other).unwrap();
    let script = "zstd -dc \"$FILE\" | tar -x --numeric-owner && \
                  sha256sum --check --strict --quiet checksums.sha256";
    let script = format!("cd \"$OTHER\" && {script}");
    let environment = [("FILE", file.to_str().unwrap()), ("OTHER", other.to_str().unwrap())];
    let output = run("sh", &["-c", &script], &environment);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(describe(&other.join("data")), describe(&fixture.source()));
    let listed = run("sh", &["-c", "zstd -dc \"$FILE\" | tar -t"], &environment);
    let names = String::from_utf8(listed.stdout).unwrap();
    assert!(names.starts_with("manifest.json\nmeta/\n"), "{names}");
    assert!(names.ends_with("\nchecksums.sha256\n"), "{names}");
}

#[test]
fn owners_are_given_when_asked() {
    let (fixture, _, archive) = exported();
    let into = fixture.path("into");
    let owner = Owner::Given { user: 1234, group: 4321 };
    let unpacked = unpack(archive.as_slice(), &into, UnpackLimits { owner, ..LIMITS }).unwrap();
    let mut stack = vec![unpacked.data];
    let mut seen = 0;
    while let Some(path) = stack.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321), "{path:?}");
        seen += 1;
        if metadata.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    assert_eq!(seen, unpacked.files - 2 + unpacked.directories - 1);
}

#[test]
fn limits_hold() {
    let (_fixture, _, archive) = exported();
    let limits = UnpackLimits { bytes: 3_500_000, ..LIMITS };
    let fault = refused_within(archive.as_slice(), limits);
    assert_eq!(fault.to_string(), "it has more than 3500000 bytes");
    let limits = UnpackLimits { entries: 10, ..LIMITS };
    let fault = refused_within(archive.as_slice(), limits);
    assert_eq!(fault.to_string(), "it has more than 10 entries");
}

#[test]
fn a_damaged_or_cut_off_archive_is_refused() {
    let (_fixture, _, archive) = exported();
    let step = archive.len() / 40;
    for length in (0..archive.len()).step_by(step).chain([archive.len() - 1]) {
        refused(&archive[..length]);
    }
    // Not in the first bytes: some of their bits mean nothing.
    for place in (16..archive.len()).step_by(step).chain([archive.len() - 1]) {
        let mut damaged = archive.clone();
        damaged[place] ^= 0x10;
        refused(damaged.as_slice());
    }
    let plain = zstd::decode_all(archive.as_slice()).unwrap();
    let fault = refused(plain.as_slice());
    assert!(matches!(fault, UnpackError::NoArchive), "{fault:?}");
    // Whole by its compression, and not by its content.
    for length in (512..plain.len()).step_by(plain.len() / 40) {
        let cut = zstd::encode_all(&plain[..length], 1).unwrap();
        let fault = refused(cut.as_slice());
        assert!(matches!(fault, UnpackError::CutOff | UnpackError::Manifest(_)), "{fault:?}");
    }
    let at = plain.windows(8).position(|part| part == b"far away").unwrap();
    let mut altered = plain.clone();
    altered[at] = b'F';
    let fault = refused(zstd::encode_all(altered.as_slice(), 1).unwrap().as_slice());
    let UnpackError::Checksum(path) = fault else { panic!("{fault:?}") };
    assert!(path.ends_with("file"), "{path:?}");
    let mut longer = plain;
    longer.extend_from_slice(b"more");
    let fault = refused(zstd::encode_all(longer.as_slice(), 1).unwrap().as_slice());
    assert!(matches!(fault, UnpackError::Malformed(_)), "{fault:?}");
}

#[test]
fn a_snapshot_that_is_not_whole_is_not_exported() {
    let fixture = Fixture::with_repository();
    fixture.write("file", noise(1, 2_000_000));
    let repository = fixture.open();
    let moving = Source { stillness: Stillness::Moving, ..Source::openclaw(&fixture.source()) };
    let rough = repository.snapshot(&request(LATER), &moving, Watcher::none()).unwrap();
    let mut archive = Vec::new();
    let fault = repository.export(rough.snapshot.id, &mut archive, &Watcher::none()).unwrap_err();
    assert!(matches!(fault, ExportError::Snapshot(RestoreError::Rough(_))), "{fault:?}");
    let id = fixture.snapshot(&repository, LATER + 1);
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(buffer.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let fault = repository.export(id, Full(1_000_000), &Watcher::none()).unwrap_err();
    assert!(matches!(fault, ExportError::Write(_)), "{fault:?}");
    drop(repository);
    let storage = fixture.storage();
    let packs = storage.list(FileKind::Pack).unwrap();
    let (data, _) = packs.into_iter().max_by_key(|(_, size)| *size).unwrap();
    storage.remove(FileKind::Pack, data).unwrap();
    drop(storage);
    let fault = fixture.open().export(id, &mut archive, &Watcher::none()).unwrap_err();
    let is_missing = matches!(fault, ExportError::Snapshot(RestoreError::PackMissing { .. }));
    assert!(is_missing, "{fault:?}");
    assert!(archive.is_empty());
}

/// An entry of a hostile archive.
fn entry(kind: EntryType, path: &str, target: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(u64::try_from(content.len()).unwrap());
    for (field, text) in [(0..100, path), (157..257, target)] {
        header.as_mut_bytes()[field][..text.len()].copy_from_slice(text.as_bytes());
    }
    header.set_cksum();
    let padding = vec![0; (512 - content.len() % 512) % 512];
    [header.as_bytes(), content, &padding].concat()
}

fn file(path: &str, content: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, path, "", 0o644, content)
}

const MANIFEST: &str = r#"{"format":"claw-archive","version":1,"snapshot":"SNAPSHOT",
    "time":"2026-01-01T00:00:00Z","host":"shop","tags":[],"files":FILES,"bytes":0,
    "attachments":[]}"#;

/// An archive of ours with these entries below its data, in good form otherwise.
fn ours(entries: &[Vec<u8>], files: &[(&str, &[u8])]) -> Vec<u8> {
    let all = entries.iter().filter(|entry| !matches!(entry[156], b'5' | b'x' | b'L')).count();
    let manifest = MANIFEST.replace("SNAPSHOT", &"0".repeat(64)).replace("FILES", &all.to_string());
    let manifest = manifest.as_bytes();
    let mut sums = format!("{}  manifest.json\n", FileId::of(manifest));
    for (path, content) in files {
        sums.push_str(&format!("{}  {path}\n", FileId::of(content)));
    }
    let data = entry(EntryType::Directory, "data/", "", 0o700, b"");
    let parts = [
        file("manifest.json", manifest),
        data,
        entries.concat(),
        file("checksums.sha256", sums.as_bytes()),
        vec![0; 1024],
    ];
    zstd::encode_all(parts.concat().as_slice(), 1).unwrap()
}

/// An archive as OpenClaw makes it, with these entries in its payload.
fn theirs(entries: &[Vec<u8>]) -> Vec<u8> {
    let manifest = r#"{"schemaVersion":1,"archiveRoot":"b","assets":[
        {"kind":"state","sourcePath":"/s","archivePath":"b/payload/posix/s"}]}"#;
    let state = entry(EntryType::Directory, "b/payload/posix/s/", "", 0o755, b"");
    let parts = [state, entries.concat(), file("b/manifest.json", manifest.as_bytes())];
    gzip(&[parts.concat(), vec![0; 1024]].concat())
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Both kinds with the same entries, whose paths begin with `@`.
#[track_caller]
fn check(entries: &[(EntryType, &str, &str, u32)], expected: impl Fn(&UnpackError) -> bool) {
    let below = |root: &str| -> Vec<_> {
        entries
            .iter()
            .map(|(kind, path, target, mode)| {
                let [path, target] = [path, target].map(|text| text.replace('@', root));
                entry(*kind, &path, &target, *mode, b"")
            })
            .collect()
    };
    for fault in [
        refused(ours(&below("data"), &[]).as_slice()),
        refused(theirs(&below("b/payload/posix/s")).as_slice()),
    ] {
        assert!(expected(&fault), "{fault:?}");
    }
}

#[test]
fn good_archives_made_by_hand_are_unpacked() {
    // Else the refusals below would prove nothing.
    let fixture = Fixture::new();
    let content: &[u8] = b"hello";
    let entries = |root: &str| {
        let root = |path: &str| path.replace('@', root);
        vec![
            file(&root("@/a/b"), content),
            entry(EntryType::Link, &root("@/c"), &root("@/a/b"), 0o644, b""),
            entry(EntryType::Symlink, &root("@/a/d"), "../c", 0o777, b""),
            entry(EntryType::Directory, &root("@/a/"), "", 0o2750, b""),
        ]
    };
    let (one, other) = (fixture.path("one"), fixture.path("other"));
    let archive = ours(&entries("data"), &[("data/a/b", content)]);
    unpack(archive.as_slice(), &one, LIMITS).unwrap();
    let unpacked =
        unpack(theirs(&entries("b/payload/posix/s")).as_slice(), &other, LIMITS).unwrap();
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
    assert!(matches!(unpacked.origin, ArchiveOrigin::OpenClaw(_)));
    for into in [one, other] {
        assert_eq!(fs::read(into.join("data/c")).unwrap(), content);
        assert_eq!(fs::read_link(into.join("data/a/d")).unwrap(), Path::new("../c"));
        assert_eq!(fs::metadata(into.join("data/a")).unwrap().mode() & 0o7777, 0o2750);
        assert_eq!(fs::metadata(into.join("data/c")).unwrap().nlink(), 2);
    }
}

#[test]
fn paths_that_lead_out_are_refused() {
    for path in
        ["@/../../../../../outside/x", "/outside/x", "../outside/x", "@//x", "@/./x", "@/..", ""]
    {
        check(&[(EntryType::Regular, path, "", 0o644)], |fault| {
            matches!(fault, UnpackError::Path(_))
        });
        check(&[(EntryType::Directory, path, "", 0o755)], |fault| {
            matches!(fault, UnpackError::Path(_))
        });
    }
    for path in ["elsewhere", "elsewhere/x", "datax"] {
        check(&[(EntryType::Regular, path, "", 0o644)], |fault| {
            matches!(fault, UnpackError::Unexpected(_))
        });
    }
}

#[test]
fn links_that_lead_out_are_refused() {
    for target in ["/etc/passwd", "../x", "a/../../x", "x/../y", "../../../../../../outside"] {
        check(&[(EntryType::Symlink, "@/link", target, 0o777)], |fault| {
            matches!(fault, UnpackError::LinkOut { .. })
        });
    }
    // Deeper, one step up is inside and two are not.
    check(&[(EntryType::Symlink, "@/a/link", "../../x", 0o777)], |fault| {
        matches!(fault, UnpackError::LinkOut { .. })
    });
    for target in ["/etc/passwd", "@/../../x", "@/absent", "@", "elsewhere", "@/a/.."] {
        check(&[(EntryType::Link, "@/link", target, 0o644)], |fault| {
            matches!(fault, UnpackError::HardLink { .. } | UnpackError::Path(_))
        });
    }
    // Another name of a link would be one too; and files behind one are not in the archive.
    for target in ["@/link", "@/link/witness"] {
        let link = (EntryType::Symlink, "@/link", "../../../../witness", 0o777);
        check(&[link, (EntryType::Link, "@/hard", target, 0o644)], |fault| {
            matches!(fault, UnpackError::HardLink { .. })
        });
    }
}

#[test]
fn nothing_is_made_behind_a_link() {
    for target in ["../../../../outside", "/", "a", "."] {
        let link = (EntryType::Symlink, "@/link", target, 0o777);
        for kind in [EntryType::Regular, EntryType::Directory, EntryType::Symlink] {
            check(&[link, (kind, "@/link/x", "y", 0o644)], |fault| {
                matches!(fault, UnpackError::BehindLink(_))
            });
        }
        check(&[link, (EntryType::Directory, "@/link", "", 0o755)], |fault| {
            matches!(fault, UnpackError::BehindLink(_))
        });
        check(&[link, (EntryType::Regular, "@/link", "", 0o644)], |fault| {
            matches!(fault, UnpackError::Duplicate(_))
        });
    }
}

#[test]
fn special_files_and_borrowed_rights_are_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        check(&[(kind, "@/special", "", 0o644)], |fault| matches!(fault, UnpackError::Special(_)));
    }
    for kind in [EntryType::GNUSparse, EntryType::new(b'Z')] {
        check(&[(kind, "@/strange", "", 0o644)], |fault| {
            matches!(fault, UnpackError::Malformed(_))
        });
    }
    for (kind, mode) in
        [(EntryType::Regular, 0o4755), (EntryType::Regular, 0o2755), (EntryType::Directory, 0o4755)]
    {
        check(&[(kind, "@/x", "", mode)], |fault| matches!(fault, UnpackError::SetId(_)));
    }
}

#[test]
fn nothing_is_there_twice() {
    let (file, directory) = (EntryType::Regular, EntryType::Directory);
    for (first, second) in [
        ((file, "@/x"), (file, "@/x")),
        ((directory, "@/x/"), (directory, "@/x")),
        ((file, "@/x"), (directory, "@/x")),
        ((directory, "@/x"), (file, "@/x")),
        ((file, "@/x"), (file, "@/x/y")),
        ((file, "@/x"), (EntryType::Symlink, "@/x")),
    ] {
        let [first, second] = [first, second].map(|(kind, path)| (kind, path, "y", 0o644));
        check(&[first, second], |fault| matches!(fault, UnpackError::Duplicate(_)));
    }
}

#[test]
fn archives_that_never_end_are_refused() {
    // A long name of a gigabyte, which nobody reads.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_path("x").unwrap();
    header.set_cksum();
    let zeros = io::repeat(b'a').take(1 << 20);
    let fault = refused_stream(header.as_bytes().chain(zeros));
    assert!(matches!(fault, UnpackError::Malformed(_)), "{fault:?}");
    // Extended headers of nothing, for ever.
    let extension = entry(EntryType::XHeader, "x", "", 0o644, b"11 path=ab\n");
    let fault = refused(gzip(&extension.repeat(100)).as_slice());
    assert!(matches!(fault, UnpackError::Malformed(_)), "{fault:?}");
    // Nothing but nothing.
    let root = entry(EntryType::Directory, "b/", "", 0o755, b"");
    let fault = refused(gzip(&root.repeat(2000)).as_slice());
    assert!(matches!(fault, UnpackError::TooManyEntries(_)), "{fault:?}");
    // A file that says that it is larger than everything.
    let mut header = Header::new_gnu();
    header.set_path("b/payload/posix/s/x").unwrap();
    header.set_mode(0o644);
    header.set_size(u64::MAX / 2);
    header.set_cksum();
    let fault = refused(gzip(header.as_bytes()).as_slice());
    assert!(matches!(fault, UnpackError::TooManyBytes(_)), "{fault:?}");
    let mut damaged = header.as_bytes().to_vec();
    damaged[0] = b'c';
    let fault = refused(gzip(&damaged).as_slice());
    assert!(matches!(fault, UnpackError::Malformed(_)), "{fault:?}");
    for archive in [&b""[..], b"x", b"not an archive at all", &[0x1f, 0x8b], &[0; 2048]] {
        refused(archive);
    }
}

#[track_caller]
fn refused_stream(content: impl Read) -> UnpackError {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let mut content = content;
    io::copy(&mut content, &mut encoder).unwrap();
    refused(encoder.finish().unwrap().as_slice())
}

#[test]
fn what_openclaw_itself_made_is_unpacked() {
    let archive: &[u8] = include_bytes!("data/openclaw-2026.9.6.tar.gz");
    let fixture = Fixture::new();
    let into = fixture.path("into");
    let owner = Owner::Given { user: 1000, group: 1000 };
    let unpacked = unpack(archive, &into, UnpackLimits { owner, ..LIMITS }).unwrap();
    let Unpacked { data, files, directories, origin, .. } = unpacked;
    let ArchiveOrigin::OpenClaw(backup) = origin else { panic!("{origin:?}") };
    assert_eq!((files, directories), (6, 10));
    assert_eq!(backup.version, "2026.9.6");
    assert_eq!(backup.state, PathBuf::from("/home/node/.openclaw"));
    let workspace = OpenClawAsset {
        kind: "workspace".to_owned(),
        source: PathBuf::from("/home/node/other"),
        path: into.join("beside/0"),
    };
    assert_eq!(backup.beside, [workspace]);
    assert_eq!(fs::read_to_string(into.join("beside/0/notes.md")).unwrap(), "outside\n");
    assert_eq!(fs::read_to_string(data.join("workspace/today.md")).unwrap(), "# Memory\n");
    let configuration = fs::metadata(data.join("openclaw.json")).unwrap();
    assert_eq!((configuration.mode() & 0o7777, configuration.uid()), (0o600, 1000));
    let far = data.join("media").join("long".repeat(30)).join("name".repeat(30)).join("file");
    assert_eq!(fs::read_to_string(far).unwrap(), "long\n");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 2);
    for length in (0..archive.len()).step_by(37) {
        refused(&archive[..length]);
    }
    for place in (10..archive.len()).step_by(37) {
        let mut damaged = archive.to_vec();
        damaged[place] ^= 1;
        refused(damaged.as_slice());
    }
}

#[test]
fn manifests_of_openclaw_that_say_what_cannot_be_are_refused() {
    let state = || entry(EntryType::Directory, "b/payload/posix/s/", "", 0o755, b"");
    let link = || entry(EntryType::Symlink, "b/payload/posix/l", "/", 0o777, b"");
    let stray = || file("b/payload/posix/stray", b"");
    let asset = |kind: &str, path: &str| {
        format!(r#"{{"kind":"{kind}","sourcePath":"/s","archivePath":"{path}"}}"#)
    };
    let good = asset("state", "b/payload/posix/s");
    let manifest = |root: &str, version: u8, assets: &str| {
        let text =
            format!(r#"{{"schemaVersion":{version},"archiveRoot":"{root}","assets":[{assets}]}}"#);
        file("b/manifest.json", text.as_bytes())
    };
    let pair = |one: &str, other: &str| format!("{one},{other}");
    let bad = [
        vec![state(), manifest("c", 1, &good)],
        vec![state(), manifest("b", 2, &good)],
        vec![state(), manifest("b", 1, "")],
        vec![state(), manifest("b", 1, &pair(&good, &good))],
        vec![state(), manifest("b", 1, &asset("state", "b/payload"))],
        vec![state(), manifest("b", 1, &asset("state", "c/payload/posix/s"))],
        vec![state(), manifest("b", 1, &asset("state", "b/payload/posix/s/../../../.."))],
        vec![state(), manifest("b", 1, &asset("state", "b/payload/posix/absent"))],
        vec![link(), manifest("b", 1, &asset("state", "b/payload/posix/l"))],
        vec![link(), manifest("b", 1, &asset("state", "b/payload/posix/l/etc"))],
        vec![
            state(),
            link(),
            manifest("b", 1, &pair(&good, &asset("x", "b/payload/posix/l/etc/hosts"))),
        ],
        vec![state(), stray(), manifest("b", 1, &asset("state", "b/payload/posix/stray"))],
        vec![state(), stray(), manifest("b", 1, &good)],
        vec![state(), manifest("b", 1, &good), manifest("b", 1, &good)],
        vec![state(), file("b/manifest.json", b"{")],
        vec![state()],
    ];
    for (number, entries) in bad.into_iter().enumerate() {
        let archive = gzip(&[entries.concat(), vec![0; 1024]].concat());
        let fault = refused(archive.as_slice());
        let expected = matches!(
            fault,
            UnpackError::Manifest(_)
                | UnpackError::Path(_)
                | UnpackError::Unexpected(_)
                | UnpackError::Duplicate(_)
        );
        assert!(expected, "{number}: {fault:?}");
    }
}

#[test]
fn what_tar_itself_writes_is_read() {
    // Long names and times in the form that the library writes, through its own checks.
    let mut tar = Builder::new(Vec::new());
    let long = format!("b/payload/posix/s/{}", "n".repeat(200));
    let mut header = Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o640);
    tar.append_pax_extensions([("mtime", b"12.5".as_slice())]).unwrap();
    tar.append_data(&mut header, &long, &b"hi"[..]).unwrap();
    let entries = tar.into_inner().unwrap();
    let entries = &entries[..entries.len() - 1024];
    let fixture = Fixture::new();
    let into = fixture.path("into");
    let unpacked = unpack(theirs(&[entries.to_vec()]).as_slice(), &into, LIMITS).unwrap();
    let metadata = fs::metadata(unpacked.data.join("n".repeat(200))).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec(), metadata.len()), (12, 500_000_000, 2));
}
