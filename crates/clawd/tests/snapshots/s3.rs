//! An S3-compatible storage beside the tests: moto_server, which checks signatures.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use claw_core::offsite::{BucketAddressing, OffsiteStorage};
use claw_core::spec::Secret;
use clawd::ports::OffsitePlace;

/// The server's own program, of the engine's tests.
const SCRIPT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../claw-snapshot/tests/support/s3_server.py");

/// A storage with one bucket. Ends when dropped.
pub(crate) struct Moto {
    child: Child,
    storage: OffsiteStorage,
}

impl Moto {
    #[expect(clippy::disallowed_methods, reason = "the server runs beside the test")]
    pub(crate) fn start() -> Self {
        let python = std::env::var_os("CLAW_TEST_PYTHON").unwrap_or_else(|| {
            panic!(
                "CLAW_TEST_PYTHON must name a Python that has the package moto[server]; \
                 hint: cargo xtask test sets it"
            )
        });
        let mut child = Command::new(python)
            .arg(Path::new(SCRIPT))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let [endpoint, access_key, secret_key] = words.as_slice() else {
            panic!("moto[server] did not start; hint: is it installed?")
        };
        Self { storage: offsite(endpoint, access_key, secret_key), child }
    }

    pub(crate) fn storage(&self) -> OffsiteStorage {
        self.storage.clone()
    }

    pub(crate) fn place(&self, path: &str) -> OffsitePlace {
        OffsitePlace { storage: self.storage(), path: path.to_owned() }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A bucket somewhere.
pub(crate) fn offsite(endpoint: &str, access_key: &str, secret_key: &str) -> OffsiteStorage {
    OffsiteStorage {
        endpoint: endpoint.to_owned(),
        region: "us-east-1".to_owned(),
        bucket: "snapshots".to_owned(),
        prefix: String::new(),
        addressing: BucketAddressing::Path,
        access_key: Secret::new(access_key.to_owned()),
        secret_key: Secret::new(secret_key.to_owned()),
        bandwidth: None,
    }
}
