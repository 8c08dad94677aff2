//! A coordinator, its hosts and an operator, in a lab.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use claw_lab::{Forward, HostOptions, Lab, LabHost, Network, Output, Process, command};
use serde_json::Value;

use crate::http::{self, Answer};
use crate::instance::Instance;
use crate::programs::{PATIENCE, Programs};

/// Where the coordinator listens in the lab.
pub const COORDINATOR: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 7443);

/// Where a host's reverse proxy listens.
pub const WEB_PORT: u16 = 8080;

/// A running coordinator with an operator's identity.
#[derive(Debug)]
pub struct Fleet {
    coordinator: Mutex<Option<Arc<Process>>>,
    forward: Forward,
    programs: Programs,
    coordinator_program: PathBuf,
    clawctl_program: PathBuf,
    dir: PathBuf,
    // Last: the network goes when nothing uses it any more.
    lab: Lab,
}

impl Fleet {
    /// Creates the fleet's authority, starts the coordinator in the lab's internet and waits until it
    /// answers. `local` is where the machine reaches it (port 0: any).
    ///
    /// # Errors
    /// When a program does not do what it should within its deadline.
    pub fn start(lab: Lab, programs: Programs, local: SocketAddr) -> Result<Self> {
        Self::start_with(lab, programs, local, "")
    }

    /// Like [`Self::start`], with more lines for the coordinator's configuration file.
    ///
    /// # Errors
    /// As for `start`.
    pub fn start_with(
        lab: Lab,
        programs: Programs,
        local: SocketAddr,
        settings: &str,
    ) -> Result<Self> {
        let dir = lab.dir().join("fleet");
        std::fs::create_dir_all(&dir)?;
        let unpacked = dir.join("programs");
        let coordinator_program =
            Programs::unpack(&programs.coordinator_deb, "claw-coordinator", &unpacked)?;
        let clawctl_program = Programs::unpack(&programs.clawctl_deb, "clawctl", &unpacked)?;
        let forward = lab.forward(local, Network::Internet, COORDINATOR)?;
        let fleet = Self {
            coordinator: Mutex::default(),
            forward,
            programs,
            coordinator_program,
            clawctl_program,
            dir,
            lab,
        };
        fleet.initialise(settings)?;
        fleet.start_coordinator()?;
        Ok(fleet)
    }

    fn initialise(&self, settings: &str) -> Result<()> {
        let config = format!(
            "listen = \"{COORDINATOR}\"\ndata_dir = \"{}\"\n{settings}",
            self.dir.join("coordinator").display()
        );
        std::fs::write(self.config(), config)?;
        let mut init = command(&self.coordinator_program);
        init.args(["init", "--data-dir"]).arg(self.coordinator_data());
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
    pub fn coordinator(&self) -> Result<Arc<Process>> {
        self.process().clone().context("the coordinator is not running")
    }

    /// What the coordinator has logged, all of its lives.
    #[must_use]
    pub fn coordinator_log(&self) -> String {
        let log = std::fs::read(self.lab.dir().join("coordinator.log"));
        String::from_utf8_lossy(&log.unwrap_or_default()).into_owned()
    }

    /// Starts the coordinator and waits until it answers.
    ///
    /// # Errors
    /// With its log, when it does not answer within a minute.
    pub fn start_coordinator(&self) -> Result<()> {
        let mut program = command(&self.coordinator_program);
        program.arg("--config").arg(self.config());
        let process = self.lab.spawn(Network::Internet, "coordinator", program)?;
        *self.process() = Some(Arc::new(process));
        self.until(PATIENCE, "the coordinator to answer", |fleet| {
            let running = fleet.coordinator()?.is_running();
            ensure!(running, "it ended:\n{}", fleet.coordinator_log());
            Ok(fleet.clawctl(&["host", "list", "-o", "json"])?.success().then_some(()))
        })
    }

    /// kill -9 of the coordinator.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill_coordinator(&self) -> Result<()> {
        let process = self.process().take().context("the coordinator is not running")?;
        process.kill().map(|_| ())
    }

    fn process(&self) -> MutexGuard<'_, Option<Arc<Process>>> {
        self.coordinator.lock().unwrap_or_else(PoisonError::into_inner)
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
        let host = self.prepare(options)?;
        self.join(&host)?;
        Ok(host)
    }

    /// Boots a host and installs the agent's package; it has not joined yet.
    ///
    /// # Errors
    /// When a step does not succeed within its deadline.
    pub fn prepare(&self, options: HostOptions) -> Result<LabHost> {
        let host = self.lab.boot(options)?;
        host.wait_until_active("docker.service", PATIENCE)?;
        // systemd gives hardened units a /proc of their own, which hides the lab's boot id.
        let boot_id = "/run/lab-boot-id:/proc/sys/kernel/random/boot_id";
        let drop_in = format!("[Service]\nBindReadOnlyPaths={boot_id}\n");
        let place = "/etc/systemd/system/clawd.service.d/lab.conf";
        host.write_file(place, 0o644, drop_in.as_bytes())?;
        host.install_deb(std::slice::from_ref(&self.programs.clawd_deb))?;
        Ok(host)
    }

    /// Registers a host, joins it with a one-time token and waits until it is online.
    ///
    /// # Errors
    /// When a step does not succeed within its deadline.
    pub fn join(&self, host: &LabHost) -> Result<()> {
        self.clawctl_ok(&["host", "create", host.name()])?;
        let joined = self.join_with(host, &self.token(host.name())?)?;
        ensure!(joined.success(), "clawd join: {}{}", joined.stdout, joined.stderr);
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        self.until_online(host)
    }

    /// Runs `clawd join` on a host with a token.
    ///
    /// # Errors
    /// When it cannot be run; that it fails is no error.
    pub fn join_with(&self, host: &LabHost, token: &str) -> Result<Output> {
        let coordinator = COORDINATOR.to_string();
        let name = host.name();
        let join = ["clawd", "join", "--coordinator", &coordinator, "--host-name", name];
        let argv = [&join[..], &["--token-file", "-"]].concat();
        host.exec_with(&argv, token.as_bytes(), PATIENCE)
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
        let waited = self.until_host(host, "online", PATIENCE);
        waited.map(|_| ()).with_context(|| host.journal("clawd.service").unwrap_or_default())
    }

    /// Waits until a host is in a state such as `offline`; returns the host.
    ///
    /// # Errors
    /// With the host as it is, when the deadline passes.
    pub fn until_host(&self, host: &LabHost, state: &str, deadline: Duration) -> Result<Value> {
        self.until(deadline, &format!("host {} to be {state}", host.name()), |fleet| {
            let found = fleet.json(&["host", "get", host.name()])?;
            if found["status"]["state"] == state { Ok(Some(found)) } else { bail!("it is {found}") }
        })
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

    /// Waits until an instance's gateway answers a customer through the reverse proxy, started.
    ///
    /// # Errors
    /// With the last answer, when a minute passes.
    pub fn until_serving(&self, host: &LabHost, name: &str) -> Result<()> {
        self.until(PATIENCE, &format!("{name} to serve"), |fleet| {
            let answer = fleet.browse(host, name, "/startupz")?;
            if answer.status == 200 { Ok(Some(())) } else { bail!("{answer:?}") }
        })
    }

    /// Asks a fake gateway that was started with `CLAW_FAKE_CONTROL` to do something, such as
    /// `crash?code=3`; returns what it says.
    ///
    /// # Errors
    /// When it refuses.
    pub fn control(&self, host: &LabHost, name: &str, what: &str) -> Result<String> {
        let answer = self.browse(host, name, &format!("/__fake/{what}"))?;
        ensure!(answer.status == 200, "{what}: {answer:?}");
        Ok(answer.body)
    }

    /// Like [`Self::control`], for what may end a gateway before it has answered: what came of it is to
    /// be looked at.
    pub fn strike(&self, host: &LabHost, name: &str, what: &str) {
        let _ = self.browse(host, name, &format!("/__fake/{what}"));
    }

    /// What happened on a host, oldest first.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn events(&self, host: &LabHost) -> Result<Vec<Value>> {
        let events = self.json(&["host", "events", host.name()])?;
        events.as_array().cloned().with_context(|| format!("no list: {events}"))
    }

    /// Waits for an event of a kind, about an instance ("" is the host), and returns the newest.
    ///
    /// # Errors
    /// With all events, when a minute passes.
    pub fn until_event(&self, host: &LabHost, instance: &str, kind: &str) -> Result<Value> {
        self.until(PATIENCE, &format!("the event {kind} of {instance:?}"), |fleet| {
            let events = fleet.events(host)?;
            let about = |event: &Value| event["instance"].as_str().unwrap_or_default() == instance;
            let found = events.iter().rev().find(|event| event["kind"] == kind && about(event));
            if let Some(found) = found { Ok(Some(found.clone())) } else { bail!("{events:#?}") }
        })
    }

    /// The token of an instance's gateway.
    ///
    /// # Errors
    /// When the coordinator refuses.
    pub fn gateway_token(&self, name: &str) -> Result<String> {
        let answer = self.json(&["gateway-token", name])?;
        answer["token"].as_str().map(str::to_owned).context("no token")
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
