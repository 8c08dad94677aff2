//! S3 storages for tests: a real server in memory, and one that answers as it is told.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use claw_snapshot::{
    Access, DEBIAN_CA_FILE, S3Addressing, S3Patience, S3Secret, S3Settings, S3Storage, Storage,
};

/// A `moto_server` that checks signatures. Ends when dropped.
pub(crate) struct Moto {
    child: Child,
    pub(crate) endpoint: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
    pub(crate) ca_file: PathBuf,
}

impl Moto {
    pub(crate) fn start() -> Self {
        Self::with(&[], Path::new(DEBIAN_CA_FILE))
    }

    /// With TLS; `certificate` is its own authority.
    pub(crate) fn start_tls(certificate: &Path, key: &Path) -> Self {
        Self::with(&[certificate, key], certificate)
    }

    #[expect(clippy::disallowed_methods, reason = "the server runs beside the test")]
    fn with(arguments: &[&Path], ca_file: &Path) -> Self {
        let python = std::env::var_os("CLAW_TEST_PYTHON").unwrap_or_else(|| {
            panic!(
                "CLAW_TEST_PYTHON must name a Python that has the package moto[server]; \
                 hint: cargo xtask test sets it"
            )
        });
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/s3_server.py");
        let mut child = Command::new(&python)
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|fault| panic!("cannot run {}: {fault}", python.display()));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        let [endpoint, access_key, secret_key] = words.as_slice() else {
            panic!("{} did not start moto[server]; hint: is it installed?", python.display())
        };
        Self {
            endpoint: (*endpoint).to_owned(),
            access_key: (*access_key).to_owned(),
            secret_key: (*secret_key).to_owned(),
            ca_file: ca_file.to_owned(),
            child,
        }
    }

    pub(crate) fn settings(&self) -> S3Settings {
        S3Settings {
            access_key: S3Secret::new(&self.access_key),
            secret_key: S3Secret::new(&self.secret_key),
            ca_file: self.ca_file.clone(),
            ..settings(&self.endpoint)
        }
    }

    pub(crate) fn storage(&self, access: Access) -> Arc<dyn Storage> {
        Arc::new(S3Storage::open(&self.settings(), access).unwrap())
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Settings that nobody accepts, with little patience.
pub(crate) fn settings(endpoint: &str) -> S3Settings {
    S3Settings {
        endpoint: endpoint.to_owned(),
        region: "us-east-1".to_owned(),
        bucket: "snapshots".to_owned(),
        prefix: "hosts/one".to_owned(),
        addressing: S3Addressing::Path,
        access_key: S3Secret::new("key"),
        secret_key: S3Secret::new("secret"),
        ca_file: PathBuf::from(DEBIAN_CA_FILE),
        bandwidth: None,
        patience: S3Patience {
            connect: Duration::from_secs(5),
            stall: Duration::from_secs(5),
            transfer: Duration::from_secs(20),
            retries: 3,
            pause: Duration::from_millis(1),
        },
    }
}

/// Answers connections with these bytes, in turn, then with none. Gives the requests' heads.
pub(crate) struct Scripted {
    pub(crate) endpoint: String,
    thread: thread::JoinHandle<Vec<String>>,
}

impl Scripted {
    pub(crate) fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let thread = thread::spawn(move || {
            let mut heads = Vec::new();
            for answer in answers {
                let (mut connection, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(connection.try_clone().unwrap());
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
                }
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                let length: u64 = length.map_or(0, |length| length.parse().unwrap());
                let mut body = Vec::new();
                reader.take(length).read_to_end(&mut body).unwrap();
                heads.push(head);
                // The other side may have gone already.
                _ = connection.write_all(&answer);
            }
            heads
        });
        Self { endpoint, thread }
    }

    /// The heads of the requests, once every answer was asked for.
    pub(crate) fn requests(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

/// A whole answer.
pub(crate) fn answer(status: &str, headers: &[&str], body: &str) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("connection: close\r\n\r\n");
    text.push_str(body);
    text.into_bytes()
}

pub(crate) fn refusal(status: &str, code: &str) -> Vec<u8> {
    answer(status, &[], &format!("<Error><Code>{code}</Code></Error>"))
}
