//! A coordinator, its hosts and an operator, in a lab.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Forward, HostOptions, Lab, LabHost, Network, Output, Process, command};
use serde_json::Value;

use crate::http::{self, Answer};
use crate::programs::{PATIENCE, Programs};

/// Where the coordinator listens in the lab.
pub const COORDINATOR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 7443);

/// Where a host's reverse proxy listens.
pub const WEB_PORT: u16 = 8080;

/// A running coordinator with an operator's identity.
#[derive(Debug)]
pub struct Fleet {
    coordinator: Option<Process>,
    forward: Forward,
    programs: Programs,
    coordinator_program: PathBuf,
    clawctl_program: PathBuf,
    dir: PathBuf,
    // Last: the network goes when nothing uses it any more.
    lab: Lab,
}

/// What an instance should be, as far as tests care.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// Its host.
    pub host: String,
    /// Its image.
    pub image: String,
    /// Memory limit in MiB.
    pub memory_mib: u64,
    /// CPU limit in thousandths of a core.
    pub cpu_millis: u64,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Its `openclaw.json`.
    pub config: String,
    /// How long it must stay healthy, in seconds.
    pub min_healthy_s: u64,
    /// From start to health, in seconds.
    pub startup_deadline_s: u64,
    /// Silence after which it counts as hung, in seconds.
    pub hang_deadline_s: u64,
    /// From SIGTERM to SIGKILL, in seconds.
    pub stop_grace_s: u64,
}

impl Instance {
    /// A small instance that starts fast.
    #[must_use]
    pub fn new(name: &str, host: &LabHost, image: &str) -> Self {
        Self {
            name: name.to_owned(),
            host: host.name().to_owned(),
            image: image.to_owned(),
            memory_mib: 256,
            cpu_millis: 1000,
            env: Vec::new(),
            config: "{}".to_owned(),
            min_healthy_s: 0,
            startup_deadline_s: 60,
            hang_deadline_s: 30,
            stop_grace_s: 10,
        }
    }

    /// With one more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// The file that `clawctl apply` takes.
    #[must_use]
    pub fn document(&self) -> String {
        let env: serde_json::Map<String, Value> =
            self.env.iter().map(|(k, v)| (k.clone(), Value::from(v.clone()))).collect();
        let document = serde_json::json!({
            "kind": "Instance",
            "name": self.name,
            "host": self.host,
            "spec": {
                "image": self.image,
                "resources": {
                    "memory": format!("{}MiB", self.memory_mib),
                    "cpu": format!("{}m", self.cpu_millis),
                    "pids": 256,
                },
                "env": env,
                "config": self.config,
                "health": {
                    "startupDeadline": format!("{}s", self.startup_deadline_s),
                    "minHealthy": format!("{}s", self.min_healthy_s),
                    "hangDeadline": format!("{}s", self.hang_deadline_s),
                },
                "stopGrace": format!("{}s", self.stop_grace_s),
            },
        });
        document.to_string()
    }
}

impl Fleet {
    /// Creates the fleet's authority, starts the coordinator in the lab's internet and waits until it
    /// answers. `local` is where the machine reaches it (port 0: any).
    ///
    /// # Errors
    /// When a program does not do what it should within its deadline.
    pub fn start(lab: Lab, programs: Programs, local: SocketAddr) -> Result<Self> {
        let dir = lab.dir().join("fleet");
        std::fs::create_dir_all(&dir)?;
        let unpacked = dir.join("programs");
        let coordinator_program =
            Programs::unpack(&programs.coordinator_deb, "claw-coordinator", &unpacked)?;
        let clawctl_program = Programs::unpack(&programs.clawctl_deb, "clawctl", &unpacked)?;
        let forward = lab.forward(local, Network::Internet, COORDINATOR)?;
        let mut fleet = Self {
            coordinator: None,
            forward,
            programs,
            coordinator_program,
            clawctl_program,
            dir,
            lab,
        };
        fleet.initialise()?;
        fleet.start_coordinator()?;
        Ok(fleet)
    }

    fn initialise(&self) -> Result<()> {
        let config = format!(
            "listen = \"{COORDINATOR}\"\ndata_dir = \"{}\"\n",
            self.dir.join("coordinator").display()
        );
        std::fs::write(self.config(), config)?;
        let mut init = command(&self.coordinator_program);
        init.arg("--config").arg(self.config()).arg("init");
        for name in ["198.51.100.1", "127.0.0.1", "localhost"] {
            init.args(["--name", name]);
        }
        init.args(["--operator", "admin", "--out"]).arg(self.identity());
        succeed(&mut init).map(|_| ())
    }

    fn config(&self) -> PathBuf {
        self.dir.join("coordinator.toml")
    }

    /// The directory of the operator's key and certificate.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.dir.join("operator")
    }

    /// The directory of the coordinator's data.
    #[must_use]
    pub fn coordinator_data(&self) -> PathBuf {
        self.dir.join("coordinator")
    }

    /// Where the machine reaches the coordinator.
    #[must_use]
    pub fn endpoint(&self) -> SocketAddr {
        self.forward.local()
    }

    /// The lab that it all runs in.
    #[must_use]
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The coordinator's program, for `issue` and such.
    #[must_use]
    pub fn coordinator_program(&self) -> &Path {
        &self.coordinator_program
    }

    /// The coordinator's configuration file.
    #[must_use]
    pub fn coordinator_config(&self) -> PathBuf {
        self.config()
    }

    /// The coordinator's process.
    ///
    /// # Errors
    /// When it was killed.
    pub fn coordinator(&self) -> Result<&Process> {
        self.coordinator.as_ref().context("the coordinator is not running")
    }

    /// Starts the coordinator and waits until it answers.
    ///
    /// # Errors
    /// With its log, when it does not answer within a minute.
    pub fn start_coordinator(&mut self) -> Result<()> {
        let mut program = command(&self.coordinator_program);
        program.arg("--config").arg(self.config());
        let process = self.lab.spawn(Network::Internet, "coordinator", program)?;
        self.coordinator = Some(process);
        self.until(PATIENCE, "the coordinator to answer", |fleet| {
            ensure!(fleet.coordinator()?.is_running(), "it ended:\n{}", fleet.coordinator()?.log());
            Ok(fleet.clawctl(&["host", "list", "-o", "json"])?.success().then_some(()))
        })
    }

    /// kill -9 of the coordinator.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        let process = self.coordinator.take().context("the coordinator is not running")?;
        process.kill().map(|_| ())
    }

    /// A clawctl command as the operator; say what it should do.
    #[must_use]
    pub fn clawctl_command(&self) -> std::process::Command {
        let mut clawctl = command(&self.clawctl_program);
        clawctl.env("CLAWCTL_ENDPOINT", self.endpoint().to_string());
        clawctl.env("CLAWCTL_IDENTITY", self.identity());
        clawctl
    }

    /// Runs clawctl as the operator.
    ///
    /// # Errors
    /// When it cannot be started; an exit status other than 0 is no error.
    pub fn clawctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut clawctl = self.clawctl_command();
        output(clawctl.args(arguments))
    }

    /// Runs clawctl, which must succeed, and returns what it printed.
    ///
    /// # Errors
    /// With what it said, when it fails.
    pub fn clawctl_ok(&self, arguments: &[&str]) -> Result<String> {
        let mut clawctl = self.clawctl_command();
        succeed(clawctl.args(arguments))
    }

    /// Runs clawctl with `-o json`.
    ///
    /// # Errors
    /// As [`Self::clawctl_ok`], and when it prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.clawctl_ok(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Boots a host, installs the agent's package and joins it.
    ///
    /// # Errors
    /// When a step does not succeed within its deadline.
    pub fn host(&self, options: HostOptions) -> Result<LabHost> {
        let host = self.lab.boot(options)?;
        host.wait_until_active("docker.service", PATIENCE)?;
        host.install_deb(std::slice::from_ref(&self.programs.clawd_deb))?;
        self.join(&host)?;
        Ok(host)
    }

    /// Registers a host, joins it with a one-time token and waits until it is online.
    ///
    /// # Errors
    /// When a step does not succeed within its deadline.
    pub fn join(&self, host: &LabHost) -> Result<()> {
        self.clawctl_ok(&["host", "create", host.name()])?;
        let token = self.token(host.name())?;
        let coordinator = COORDINATOR.to_string();
        let join = [
            "clawd",
            "join",
            "--coordinator",
            &coordinator,
            "--host-name",
            host.name(),
            "--token-file",
            "-",
        ];
        let joined = host.exec_with(&join, token.as_bytes(), PATIENCE)?;
        ensure!(joined.success(), "clawd join: {}{}", joined.stdout, joined.stderr);
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        self.until_online(host)
    }

    /// A new join token for a host.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn token(&self, host: &str) -> Result<String> {
        let made = self.json(&["token", "create", host])?;
        made["token"].as_str().map(str::to_owned).with_context(|| format!("no token in {made}"))
    }

    /// Waits until a host is online.
    ///
    /// # Errors
    /// With its last state and journal, when a minute passes.
    pub fn until_online(&self, host: &LabHost) -> Result<()> {
        let waited = self.until(PATIENCE, "the host to be online", |fleet| {
            let state = fleet.json(&["host", "get", host.name()])?;
            Ok((state["status"]["state"] == "online").then_some(()))
        });
        waited.with_context(|| host.journal("clawd.service").unwrap_or_default())
    }

    /// Creates or updates an instance.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn apply(&self, instance: &Instance) -> Result<()> {
        let file = self.dir.join(format!("{}.json", instance.name));
        std::fs::write(&file, instance.document())?;
        self.clawctl_ok(&["apply", "-f", &file.to_string_lossy()]).map(|_| ())
    }

    /// An instance as the coordinator has it.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn instance(&self, name: &str) -> Result<Value> {
        self.json(&["get", name])
    }

    /// Waits until an instance's present spec is in a phase; returns the instance.
    ///
    /// # Errors
    /// With the instance as it is, when the deadline passes.
    pub fn until_phase(&self, name: &str, phase: &str, deadline: Duration) -> Result<Value> {
        self.until(deadline, &format!("{name} to be {phase}"), |fleet| {
            let instance = fleet.instance(name)?;
            let status = &instance["status"];
            let there = status["phase"] == phase && status["current"] == true;
            if there { Ok(Some(instance)) } else { bail!("it is {status}") }
        })
    }

    /// Looks until `look` finds something; it is asked again every 50 ms. An error of the last look
    /// is the cause when the deadline passes.
    ///
    /// # Errors
    /// When the deadline passes.
    pub fn until<T>(
        &self,
        deadline: Duration,
        what: &str,
        mut look: impl FnMut(&Self) -> Result<Option<T>>,
    ) -> Result<T> {
        until(deadline, what, || look(self))
    }

    /// GETs a path through a host's reverse proxy, as a customer's browser would.
    ///
    /// # Errors
    /// When nothing answers.
    pub fn browse(&self, host: &LabHost, name: &str, path: &str) -> Result<Answer> {
        let stream = self.lab.connect(Network::Client, (host.address(), WEB_PORT).into())?;
        http::get(stream, &format!("{name}.claw.localhost"), path)
    }
}

/// Looks until `look` finds something; it is asked again every 50 ms.
///
/// # Errors
/// When the deadline passes; the cause is the last look's error.
#[expect(clippy::disallowed_methods, reason = "tests wait on real time")]
pub fn until<T>(
    deadline: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = std::time::Instant::now();
    loop {
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => anyhow::anyhow!("not yet"),
            Err(error) => error,
        };
        if start.elapsed() > deadline {
            return Err(last.context(format!("waited {} s for {what}", deadline.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn output(command: &mut std::process::Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    Ok(Output {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn succeed(command: &mut std::process::Command) -> Result<String> {
    let output = output(command)?;
    ensure!(output.success(), "{command:?}: status {}\n{}", output.status, output.stderr);
    Ok(output.stdout)
}
