//! Python's gRPC client, driven line by line: it knows nothing but the server's reflection.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail};
use claw_lab::command;
use serde_json::{Value, json};

use crate::Fleet;

/// The client; see its own description of the protocol. As text: a path would be that of the clone that built
/// this.
const CLIENT: &str = include_str!("../python/client.py");

/// A running client with one connection. Dropping it ends it.
#[derive(Debug)]
pub struct ThirdParty {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl ThirdParty {
    /// Starts a client of the fleet's coordinator with the given identity directory.
    ///
    /// # Errors
    /// When Python cannot be started.
    pub fn start(python: &Path, fleet: &Fleet, identity: &Path) -> Result<Self> {
        let mut client = command(python);
        client.args(["-c", CLIENT]).arg(fleet.endpoint().to_string()).arg(identity);
        client.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = client.spawn().context("cannot start Python")?;
        let requests = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, requests, answers })
    }

    /// Sends a line and returns the answer, errors of the server included.
    ///
    /// # Errors
    /// When the client ended.
    pub fn ask(&mut self, line: &Value) -> Result<Value> {
        writeln!(self.requests, "{line}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        serde_json::from_str(&answer).with_context(|| format!("the client said {answer:?}"))
    }

    /// Calls a method that must succeed; returns the response and when it was sent, in seconds since
    /// the Unix epoch.
    ///
    /// # Errors
    /// With the server's error.
    pub fn call(&mut self, method: &str, request: &Value) -> Result<(f64, Value)> {
        let answer = self.ask(&json!({ "method": method, "request": request }))?;
        if answer.get("error").is_some() {
            bail!("{method}: {}", answer["error"]);
        }
        let sent = answer["sent"].as_f64().context("no time")?;
        Ok((sent, answer["response"].clone()))
    }
}

impl Drop for ThirdParty {
    fn drop(&mut self) {
        // It ends by itself when stdin closes; it may hang in a call.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
