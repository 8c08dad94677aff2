//! A coordinator as far as clawctl can see one: the API over mTLS on loopback, state in memory, and
//! whatever failures a test wants. It checks nothing; the real one is tested with clawctl in claw-tests.

mod data;
mod services;
mod tls;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use claw_proto::fleet::v1 as fleet;
use clawctl::Surroundings;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tonic::Status;

/// What the fake remembers and what it was told to do.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) hosts: BTreeMap<String, fleet::Host>,
    pub(crate) firewalls: BTreeMap<String, fleet::HostFirewallView>,
    pub(crate) instances: BTreeMap<String, fleet::Instance>,
    /// An instance is created only on a host that exists.
    pub(crate) hosts_matter: bool,
    /// Secrets by instance: answers hold names only.
    pub(crate) secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// Every call: the method and what matters of it.
    pub(crate) calls: Vec<String>,
    /// Request ids of mutations.
    pub(crate) request_ids: Vec<String>,
    /// Failures of the next calls.
    pub(crate) failures: VecDeque<Status>,
    /// What the next watches send; each stream ends after its messages.
    pub(crate) watches: VecDeque<Vec<fleet::WatchInstancesResponse>>,
    /// Streams stay open after their messages, as the real ones do.
    pub(crate) watches_stay: bool,
    /// What the next questions for a snapshot are answered; the last answer stays.
    pub(crate) snapshots: BTreeMap<String, VecDeque<fleet::Snapshot>>,
    /// What the next lists of snapshots are; the last one stays.
    pub(crate) listings: VecDeque<fleet::ListSnapshotsResponse>,
    /// Archives: by snapshot for exports, and what was imported. A piece that is an error ends the stream.
    pub(crate) archives: BTreeMap<String, Vec<Result<Vec<u8>, Status>>>,
    /// The storage that a host was given last.
    pub(crate) storage: Option<claw_proto::node::v1::OffsiteStorage>,
    /// What the next plans are.
    pub(crate) plans: VecDeque<fleet::InstancePlan>,
    revision: u64,
}

/// A running fake.
#[derive(Debug)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    endpoint: String,
    directory: tempfile::TempDir,
    server: AbortHandle,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: u8,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl State {
    /// Notes a call, and fails it if a test wants that.
    fn enter(&mut self, call: String, request_id: Option<&str>) -> Result<(), Status> {
        self.calls.push(call);
        self.request_ids.extend(request_id.map(str::to_owned));
        self.failures.pop_front().map_or(Ok(()), Err)
    }

    fn next_etag(&mut self) -> String {
        self.revision += 1;
        format!("etag-{}", self.revision)
    }
}

impl Fake {
    /// Starts it; `operator/alice` has an identity, and others have unusable ones: `expired`,
    /// `foreign` of another fleet, and `stranger`, who knows this fleet's authority.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let tls = tls::Material::new();
        tls.write_operator(&directory.path().join("alice"));
        tls.write_expired(&directory.path().join("expired"));
        let other_fleet = tls::Material::new();
        other_fleet.write_operator(&directory.path().join("foreign"));
        let stranger = directory.path().join("stranger");
        other_fleet.write_operator(&stranger);
        std::fs::copy(directory.path().join("alice/ca.pem"), stranger.join("ca.pem")).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let services = services::Services(Arc::clone(&state));
        let server = tokio::spawn(serve(listener, tls.acceptor(), services)).abort_handle();
        Self { state, endpoint, directory, server }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Calls since the last time.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Writes a file that a command may read.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn identity(&self, of: &str) -> PathBuf {
        self.directory.path().join(of)
    }

    /// Runs clawctl as alice; arguments are separated by spaces.
    pub(crate) async fn run(&self, line: &str) -> Outcome {
        self.run_with(line, "").await
    }

    /// The same with standard input.
    pub(crate) async fn run_with(&self, line: &str, stdin: &str) -> Outcome {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        clawctl(&self.endpoint, &self.identity("alice"), &words, stdin).await
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, services: services::Services) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, services) = (acceptor.clone(), services.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service =
                hyper::service::service_fn(move |request| services.clone().route(request));
            // A client that is done simply goes.
            let _ended = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(tls), service)
                .await;
        });
    }
}

/// Runs clawctl in this process.
pub(crate) async fn clawctl(
    endpoint: &str,
    identity: &Path,
    words: &[&str],
    stdin: &str,
) -> Outcome {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut input = stdin.as_bytes();
    let variable = |name: &str| (name == "FROM_ENVIRONMENT").then(|| "value-of-env".to_owned());
    let mut surroundings = Surroundings {
        stdin: &mut input,
        stdout: &mut stdout,
        stderr: &mut stderr,
        terminal: false,
        variable: &variable,
    };
    let fixed = ["clawctl", "--endpoint", endpoint, "--identity", identity.to_str().unwrap()];
    let arguments = fixed.iter().chain(words).map(OsString::from);
    let status = clawctl::status(arguments, &mut surroundings).await;
    Outcome {
        status,
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}
