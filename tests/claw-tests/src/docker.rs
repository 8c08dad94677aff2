//! A host's Docker API, raw: the baseline of the benches and the eyes of the tests.
//!
//! Requests are HTTP/1.0 over the daemon's socket, reached through the host's `/proc/PID/root`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{LabHost, Netns};
use serde_json::Value;

use crate::ground::sandbox;

/// Docker of one host.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
    pid: i32,
}

/// What the daemon says by itself.
#[derive(Debug)]
pub struct Events(BufReader<UnixStream>);

impl Docker {
    /// Docker of a host that is on.
    ///
    /// # Errors
    /// When it is off.
    pub fn of(host: &LabHost) -> Result<Self> {
        let pid = host.pid().context("the host is off")?;
        Ok(Self { socket: format!("/proc/{pid}/root/run/docker.sock").into(), pid })
    }

    fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket).context("cannot reach docker")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let body = body.map(ToString::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        Ok(stream)
    }

    /// A request that must succeed; returns the answer's JSON, `null` if there is none.
    ///
    /// # Errors
    /// With what the daemon said.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut text = String::new();
        self.send(method, path, body)?.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        let status: u16 = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        ensure!((200..400).contains(&status), "{method} {path}: {status} {body}");
        if body.trim().is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(body)?) }
    }

    /// Everything about a container.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn inspect(&self, container: &str) -> Result<Value> {
        self.request("GET", &format!("/containers/{container}/json"), None)
    }

    /// A container's address on a network.
    ///
    /// # Errors
    /// When it does not run or is not on that network.
    pub fn address(&self, container: &str, network: &str) -> Result<Ipv4Addr> {
        let found = self.inspect(container)?;
        let text = found["NetworkSettings"]["Networks"][network]["IPAddress"].as_str();
        text.context("no address")?.parse().context("no address")
    }

    /// The bridge of a network.
    ///
    /// # Errors
    /// When there is no such network, or its bridge was not given a name.
    pub fn bridge(&self, network: &str) -> Result<String> {
        let found = self.request("GET", &format!("/networks/{network}"), None)?;
        let name = found["Options"]["com.docker.network.bridge.name"].as_str();
        name.map(str::to_owned).context("its bridge has no name")
    }

    /// The network namespace of a container's present run.
    ///
    /// # Errors
    /// When it does not run.
    pub fn netns(&self, container: &str) -> Result<Netns> {
        let found = self.inspect(container)?;
        let key = found["NetworkSettings"]["SandboxKey"].as_str().filter(|key| !key.is_empty());
        sandbox(self.pid, key.context("it does not run")?)
    }

    /// All containers, stopped ones too.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn containers(&self) -> Result<Vec<Value>> {
        let all = self.request("GET", "/containers/json?all=true", None)?;
        all.as_array().cloned().context("no list")
    }

    /// Containers of an instance, by their label.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn containers_of(&self, instance: &str) -> Result<Vec<Value>> {
        let all = self.containers()?;
        let ours = |c: &Value| c["Labels"]["dev.claw.instance"] == instance;
        Ok(all.into_iter().filter(ours).collect())
    }

    /// Networks of an instance, by their label.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn networks_of(&self, instance: &str) -> Result<Vec<Value>> {
        let all = self.request("GET", "/networks", None)?;
        let all = all.as_array().cloned().context("no list")?;
        let ours = |n: &Value| n["Labels"]["dev.claw.instance"] == instance;
        Ok(all.into_iter().filter(ours).collect())
    }

    /// Containers and networks of an instance's trials, by their label.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn trials_of(&self, instance: &str) -> Result<Vec<Value>> {
        let networks = self.request("GET", "/networks", None)?;
        let networks = networks.as_array().cloned().context("no list")?;
        let ours = |thing: &Value| thing["Labels"]["dev.claw.trial"] == instance;
        Ok(self.containers()?.into_iter().chain(networks).filter(ours).collect())
    }

    /// Whether an image is there under this name.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn has_image(&self, name: &str) -> Result<bool> {
        let all = self.request("GET", "/images/json", None)?;
        let tags =
            all.as_array().context("no list")?.iter().filter_map(|i| i["RepoTags"].as_array());
        Ok(tags.flatten().any(|tag| tag == name))
    }

    /// Kills a container (SIGKILL).
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&self, container: &str) -> Result<()> {
        self.request("POST", &format!("/containers/{container}/kill?signal=KILL"), None).map(|_| ())
    }

    /// Container events from now on.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn events(&self) -> Result<Events> {
        self.events_of("container")
    }

    /// Events of one kind of thing (`container`, `network`) from now on.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn events_of(&self, kind: &str) -> Result<Events> {
        let filter = format!("%7B%22type%22%3A%5B%22{kind}%22%5D%7D"); // {"type":["container"]}
        let stream = self.send("GET", &format!("/events?filters={filter}"), None)?;
        let mut events = Events(BufReader::new(stream));
        let mut line = String::new();
        while events.0.read_line(&mut line)? > 2 {
            line.clear();
        }
        Ok(events)
    }

    /// Connects from within the host's network, as nginx and the agent do.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn connect(&self, target: SocketAddr) -> Result<TcpStream> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.pid))?;
        std::thread::scope(|scope| {
            let connected = scope.spawn(|| -> Result<TcpStream> {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
                Ok(TcpStream::connect_timeout(&target, Duration::from_secs(1))?)
            });
            connected.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?
        })
    }
}

impl Events {
    /// Waits for an event of a container or network by its name, 60 s at most, and returns it.
    ///
    /// # Errors
    /// When the daemon goes away or says nothing for 60 s.
    pub fn until(&mut self, name: &str, action: &str) -> Result<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.0.read_line(&mut line)? == 0 {
                bail!("docker closed its events before {action} of {name}");
            }
            let event: Value = serde_json::from_str(&line)?;
            if event["Action"] == action && event["Actor"]["Attributes"]["name"] == name {
                return Ok(event);
            }
        }
    }
}
