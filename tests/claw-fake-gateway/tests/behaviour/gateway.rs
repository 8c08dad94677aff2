//! One running fake gateway.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No test waits longer for anything. Generous: the machine can be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration with which a gateway starts.
pub(crate) const CONFIG: &str =
    "{ gateway: { mode: 'local', auth: { token: '${OPENCLAW_GATEWAY_TOKEN}' } } }";

/// A state directory before a gateway runs in it.
pub(crate) struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    /// With [`CONFIG`] and a token.
    pub(crate) fn configured() -> Self {
        let home = Self::empty();
        home.write("openclaw.json", CONFIG);
        home.write(".env", "OPENCLAW_GATEWAY_TOKEN='t0ken'\n");
        home
    }

    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    /// Starts a gateway with these switches.
    pub(crate) fn start(&self, switches: &[(&str, &str)]) -> Gateway {
        self.command(&["gateway", "--port", "0", "--bind", "loopback"], switches)
    }

    pub(crate) fn command(&self, words: &[&str], switches: &[(&str, &str)]) -> Gateway {
        #[expect(clippy::disallowed_methods, reason = "this is the helper that starts the binary")]
        let mut command = Command::new(env!("CARGO_BIN_EXE_claw-fake-gateway"));
        command.args(words).env_clear().env("OPENCLAW_STATE_DIR", self.path());
        for (name, value) in switches {
            command.env(format!("CLAW_FAKE_{name}"), value);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Gateway { child, log, seen: Vec::new() }
    }
}

/// A running process. Killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    log: Receiver<String>,
    seen: Vec<String>,
}

impl Gateway {
    /// Waits until a log line holds `text`, and returns that line.
    #[track_caller]
    pub(crate) fn wait_for_log(&mut self, text: &str) -> String {
        loop {
            match self.log.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(error) => panic!("no {text:?} in the log ({error}): {:#?}", self.seen),
            }
        }
    }

    /// Waits until it accepts connections.
    #[track_caller]
    pub(crate) fn listening(&mut self) -> SocketAddr {
        let line = self.wait_for_log("listening on ");
        let (_, address) = line.split_once("listening on ").unwrap();
        address.split('"').next().unwrap().parse().unwrap()
    }

    /// Waits until it is started.
    #[track_caller]
    pub(crate) fn ready(&mut self) -> SocketAddr {
        let address = self.listening();
        self.wait_for_log("gateway ready");
        address
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Waits for the end: the exit code, or minus the signal.
    #[track_caller]
    pub(crate) fn exit(&mut self) -> i32 {
        // The log closes when the process ends.
        while let Ok(line) = self.log.recv_timeout(PATIENCE) {
            self.seen.push(line);
        }
        let status: ExitStatus = match self.child.try_wait().unwrap() {
            Some(status) => status,
            None => self.child.wait().unwrap(),
        };
        status.code().or_else(|| status.signal().map(|signal| -signal)).unwrap()
    }

    /// Everything that was logged until now.
    pub(crate) fn log(&self) -> String {
        self.seen.join("\n")
    }

    /// Everything it printed, after its end.
    pub(crate) fn printed(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends one request and reads the whole answer.
pub(crate) fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// GET; the answer whole.
pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
}

/// GET; the body alone.
pub(crate) fn body(address: SocketAddr, path: &str) -> String {
    let answer = get(address, path);
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}
