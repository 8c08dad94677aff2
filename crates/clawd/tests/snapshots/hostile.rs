//! Hosts and people that send what nobody should.

use std::process::{Command, Stdio};

use claw_core::stamp::Digest;
use clawd::ports::{Parcel, Pipe, Snapshots as _, SnapshotsError, Transfers as _};

use crate::ground::{Ground, files_below, run, silent};

/// What a sender says first.
const HELLO: &str = "{\"Hello\":{\"version\":1}}\n";

/// A repository that is received from somebody who says this.
async fn received(ground: &Ground, said: &[u8]) -> SnapshotsError {
    let other = Ground::new();
    other.write("file", "content");
    other.take("one").await.unwrap();
    let keys = other.worker.keys(&other.instance).await.unwrap().unwrap();
    let (mut here, there) = Pipe::pair();
    let sending = async {
        for piece in said.chunks(40_000) {
            if here.give(Parcel::Piece(piece.to_vec())).await.is_err() {
                return;
            }
        }
        while let Ok(Some(_answer)) = here.next().await {}
    };
    let receiving = ground.worker.receive(&ground.instance, &keys, there, &silent);
    let (received, ()) = tokio::join!(receiving, sending);
    received.unwrap_err()
}

fn write(kind: &str, id: &str, content: &[u8]) -> Vec<u8> {
    let size = content.len();
    let line = format!("{{\"Write\":{{\"kind\":\"{kind}\",\"id\":\"{id}\",\"size\":{size}}}}}\n");
    [line.as_bytes(), content].concat()
}

#[test]
fn a_sender_that_lies_is_refused_and_leaves_nothing() {
    let id = Digest::of(b"honest").to_string();
    let hello = HELLO.as_bytes().to_vec();
    let prepared = [HELLO, "\"Prepare\"\n"].concat().into_bytes();
    let then = |begin: &[u8], rest: &[u8]| [begin, rest].concat();
    let sized = |size: u64| {
        let line = format!("{{\"Write\":{{\"kind\":\"Pack\",\"id\":\"{id}\",\"size\":{size}}}}}\n");
        line.into_bytes()
    };
    let cases = [
        ("garbage", b"no question\n".to_vec(), "not understood"),
        ("another version", b"{\"Hello\":{\"version\":2}}\n".to_vec(), "version 2"),
        ("no greeting", b"\"Prepare\"\n".to_vec(), "does not say who it is"),
        ("a line without end", vec![b'x'; 100_000], "says too much"),
        ("nothing at all", then(&hello, b"\"Finish\"\n"), "sent no repository"),
        ("other content", then(&prepared, &write("Pack", &id, b"lie")), "not what was sent"),
        ("a path for a name", then(&prepared, &write("Pack", "../../../etc/passwd", b"x")), "64"),
        ("an unknown kind", then(&prepared, &write("Shadow", &id, b"x")), "not understood"),
        ("a file of 4 GB", then(&prepared, &sized(4_000_000_000)), "may be"),
        ("a file of 2^40 bytes", then(&prepared, &sized(1 << 40)), "not understood"),
        ("another configuration", then(&prepared, &write("Config", "", b"{}")), "no key of"),
        (
            "the same again",
            then(&prepared, &[write("Key", &id, b"honest"), write("Key", &id, b"honest")].concat()),
            "sent again",
        ),
    ];
    run(async {
        let ground = Ground::new();
        for (what, said, expected) in cases {
            let refused = received(&ground, &said).await;
            let chained = std::error::Error::source(&refused).map(ToString::to_string);
            let text = format!("{refused}: {}", chained.unwrap_or_default());
            assert!(text.contains(expected), "{what}: {text}");
            assert!(!matches!(refused, SnapshotsError::Worker { .. }), "{what}: {text}");
            assert_eq!(ground.worker.keys(&ground.instance).await.unwrap(), None, "{what}");
            assert_eq!(files_below(&ground.data.join("repo")).len(), 0, "{what}");
        }
    });
}

/// An archive that a program makes that nobody should have written.
#[expect(clippy::disallowed_methods, reason = "a fixture has no deadline to keep")]
fn archive(program: &str) -> Vec<u8> {
    let python = std::env::var_os("CLAW_TEST_PYTHON").unwrap();
    let script = format!(
        "import io, sys, tarfile\n\
         def add(name, content=b'', **more):\n\
         \x20   entry = tarfile.TarInfo(name)\n\
         \x20   entry.size = len(content)\n\
         \x20   for key, value in more.items(): setattr(entry, key, value)\n\
         \x20   archive.addfile(entry, io.BytesIO(content))\n\
         archive = tarfile.open(fileobj=sys.stdout.buffer, mode='w|gz')\n\
         {program}\n\
         archive.close()\n"
    );
    let mut command = Command::new(python);
    let output = command.args(["-c", &script]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn archives_that_lead_elsewhere_are_refused_and_leave_nothing() {
    let cases = [
        ("add('a/payload/posix/../../../../evil', b'x')", "no path"),
        ("add('/etc/evil', b'x')", ""),
        (
            "add('a/payload/posix/x', type=tarfile.SYMTYPE, linkname='/etc')\nadd('a/payload/posix/x/evil', b'x')",
            "link",
        ),
        ("add('a/payload/posix/tty', type=tarfile.CHRTYPE, devmajor=5)", "special"),
        ("add('a/payload/posix/su', b'x', mode=0o4755)", "set-user-ID"),
        ("add('a/payload/posix/hard', type=tarfile.LNKTYPE, linkname='/etc/passwd')", ""),
    ];
    run(async {
        let ground = Ground::new();
        ground.write("live", "in use");
        ground.take("before").await.unwrap();
        for (program, expected) in cases {
            let archive = archive(program);
            let (mut here, there) = Pipe::pair();
            let sending = async {
                _ = here.give(Parcel::Piece(archive)).await;
                _ = here.give(Parcel::End).await;
                here.next().await
            };
            let order = ground.order("imported");
            let importing = ground.worker.import(&order, there, &silent);
            let (refused, heard) = tokio::join!(importing, sending);
            let refused = refused.unwrap_err();
            assert!(matches!(refused, SnapshotsError::Failed { .. }), "{program}: {refused:?}");
            assert!(refused.to_string().contains(expected), "{program}: {refused}");
            let heard = heard.unwrap_err().to_string();
            assert!(heard.contains("importing an archive"), "{program}: {heard}");
            assert_eq!(files_below(&ground.data.join("instances")), [ground.live().join("live")]);
        }
        assert_eq!(ground.names().await, ["before"]);
        ground.assert_sound().await;
    });
}
