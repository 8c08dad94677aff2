//! The demo: a coordinator, a lab host with our packages, a real OpenClaw behind nginx.
//!
//! One process, the *supervisor*, owns everything; when it ends, however it ends, the kernel ends the
//! rest (see `claw_lab`). In the foreground the supervisor is the command itself; with `--detach` it
//! is a copy of it in a session of its own. [`record`] is how `status` and `down` find it.

mod record;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use claw_lab::progress::Progress;
use claw_lab::{
    Cache, HostOptions, Image, Lab, LabHost, Network, command, images, progress, requirements,
};
use claw_tests::fleet::{WEB_PORT, until};
use claw_tests::{Fleet, Programs, http};
use nix::sys::signal::{SigSet, Signal};

use crate::cargo;
use crate::dist;
use record::Record;

/// The instance and its host.
const NAME: &str = "demo";
const HOST: &str = "host1";

/// Preferred ports on 127.0.0.1; another one is taken where they are not free.
const API_PORT: u16 = 7443;

/// OpenClaw needs 7–15 s on an idle machine and 50 s were seen on an overloaded one.
const START: Duration = Duration::from_secs(180);

/// What to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Return once it serves; `demo down` ends it.
    #[arg(long)]
    detach: bool,
    /// This process is the detached one.
    #[arg(long, hide = true)]
    supervise: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Says whether a demo runs, and how to reach it.
    Status,
    /// Ends it and removes what it left.
    Down,
}

/// Runs the demo, or asks after it.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match arguments.command {
        Some(Command::Status) => return status(),
        Some(Command::Down) => return down(),
        None => {}
    }
    requirements::require_root(
        "run the demo: it boots a Debian in namespaces of its own (mounts, control groups, network) \
         and installs missing packages through apt",
    )?;
    if let Some(running) = Record::of_live()?
        && !(arguments.supervise && running.is_own())
    {
        bail!("a demo runs already (pid {})\nhint: cargo xtask demo down", running.pid);
    }
    if arguments.detach { detach() } else { supervise() }
}

fn status() -> Result<()> {
    match Record::of_live()? {
        Some(record) => println!("running, pid {}\n\n{}", record.pid, record.banner),
        None => println!("no demo runs; hint: cargo xtask demo"),
    }
    Ok(())
}

fn down() -> Result<()> {
    let Some(record) = Record::of_live()? else {
        Record::remove()?;
        println!("no demo runs");
        return Ok(());
    };
    record.end(Duration::from_secs(30))?;
    Record::remove()?;
    println!("the demo is down");
    Ok(())
}

/// Starts the supervisor in a session of its own and shows its log until it serves.
fn detach() -> Result<()> {
    let log_path = Record::log_path();
    std::fs::create_dir_all(cargo::cache())?;
    let log = std::fs::File::create(&log_path)?;
    let mut supervisor = command(std::env::current_exe()?);
    supervisor.args(["demo", "--supervise"]).current_dir(cargo::root());
    supervisor.stdin(std::process::Stdio::null()).stdout(log.try_clone()?).stderr(log);
    supervisor.process_group(0);
    let mut child = supervisor.spawn().context("cannot start the supervisor")?;
    let mut shown = 0;
    let show = |shown: &mut usize| {
        let text = std::fs::read_to_string(&log_path).unwrap_or_default();
        print!("{}", text.get(*shown..).unwrap_or_default());
        *shown = text.len();
        let _ = std::io::stdout().flush();
    };
    until(Duration::from_secs(3600), "the demo to serve", || {
        show(&mut shown);
        if let Some(ended) = child.try_wait()? {
            return Ok(Some(Err(anyhow::anyhow!(
                "the demo ended: {ended}; see {}",
                log_path.display()
            ))));
        }
        let ready = Record::of_live()?.is_some_and(|record| !record.banner.is_empty());
        Ok(ready.then_some(Ok(())))
    })??;
    show(&mut shown);
    println!("It stays up; end it with: cargo xtask demo down");
    Ok(())
}

/// Brings everything up, waits for a signal, and takes everything down.
fn supervise() -> Result<()> {
    Record::claim()?;
    let progress = progress::terminal();
    let outcome = serve(&progress);
    Record::remove()?;
    outcome
}

fn serve(progress: &Arc<dyn Progress>) -> Result<()> {
    let cache = Cache::open(Arc::clone(progress))?;
    requirements::ensure(&requirements::ALL, cache.progress())?;
    let packages = dist::run()?;
    let programs = Programs {
        clawd_deb: packages.clawd_deb,
        coordinator_deb: packages.coordinator_deb,
        clawctl_deb: packages.clawctl_deb,
    };
    let image = images::openclaw(&cache)?;
    let lab = Lab::start("demo", &cache)?;
    let fleet = part(progress, "starting the coordinator", || {
        Fleet::start(lab, programs, loopback(API_PORT))
    })?;
    let host = part(progress, "booting a host, installing clawd, joining it", || {
        fleet.host(HostOptions::named(HOST).with_image(&image))
    })?;
    let web = fleet.lab().forward(
        loopback(WEB_PORT),
        Network::Client,
        SocketAddr::new(host.address().into(), WEB_PORT),
    )?;
    create(&fleet, &image, web.local().port())?;
    part(progress, "waiting for OpenClaw to be healthy", || until_running(&fleet, progress))?;
    let title = part(progress, "fetching its web page through nginx", || page(web.local()))?;
    let banner = banner(&fleet, &host, web.local(), &title);
    println!("\n{banner}\n\nCtrl-C ends it.");
    Record::publish(&banner)?;
    wait_for_signal()?;
    println!("\ntaking everything down");
    drop((web, host, fleet));
    Ok(())
}

fn part<T>(
    progress: &Arc<dyn Progress>,
    what: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    progress.begin(what);
    let outcome = work().with_context(|| what.to_owned());
    progress.end();
    outcome
}

/// The preferred port if it is free, else any.
fn loopback(port: u16) -> SocketAddr {
    let preferred = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match std::net::TcpListener::bind(preferred) {
        Ok(_) => preferred,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

fn document(image: &Image, web_port: u16) -> String {
    let document = serde_json::json!({
        "kind": "Instance",
        "name": NAME,
        "host": HOST,
        "spec": {
            "image": image.reference,
            "tier": "balanced",
            "config": "{ agents: { defaults: { workspace: '/home/node/.openclaw/workspace' } } }",
            "identity": "# Demo\n\nYou are the demo of a hosting platform.\n",
            "allowedOrigins": [format!("http://{NAME}.claw.localhost:{web_port}")],
            "health": { "minHealthy": "1s" },
        },
    });
    document.to_string()
}

fn create(fleet: &Fleet, image: &Image, web_port: u16) -> Result<()> {
    let file = fleet.lab().dir().join("demo.json");
    std::fs::write(&file, document(image, web_port))?;
    fleet.clawctl_ok(&["apply", "-f", &file.to_string_lossy()]).map(|_| ())
}

fn until_running(fleet: &Fleet, progress: &Arc<dyn Progress>) -> Result<()> {
    let mut shown = String::new();
    fleet.until(START, "OpenClaw to be running", |fleet| {
        let instance = fleet.instance(NAME)?;
        let status = &instance["status"];
        let phase = status["phase"].as_str().unwrap_or_default().to_owned();
        if phase != shown {
            progress.detail(&phase);
            shown.clone_from(&phase);
        }
        if phase == "running" { Ok(Some(())) } else { bail!("it is {status}") }
    })
}

/// The title of the page that a browser would get.
fn page(web: SocketAddr) -> Result<String> {
    let stream = std::net::TcpStream::connect_timeout(&web, Duration::from_secs(5))?;
    let answer = http::get(stream, &format!("{NAME}.claw.localhost"), "/")?;
    let title = answer
        .body
        .split_once("<title>")
        .and_then(|(_, rest)| rest.split_once("</title>"))
        .map(|(title, _)| title.to_owned());
    match (answer.status, title) {
        (200, Some(title)) => Ok(title),
        (status, _) => bail!("the web page answers {status}:\n{}", answer.body),
    }
}

fn banner(fleet: &Fleet, host: &LabHost, web: SocketAddr, title: &str) -> String {
    let endpoint = fleet.endpoint();
    let identity = fleet.identity();
    let identity = identity.display();
    let clawctl = fleet.clawctl_command();
    let clawctl = Path::new(clawctl.get_program()).display();
    let clawctl = format!("{clawctl} --endpoint {endpoint} --identity {identity}");
    let grpcurl = format!(
        "grpcurl -cacert {identity}/ca.pem -cert {identity}/cert.pem -key {identity}/key.pem"
    );
    format!(
        "OpenClaw serves ({title:?}, host {host} at {address}):

  http://{NAME}.claw.localhost:{port}/
  curl http://{NAME}.claw.localhost:{port}/healthz

  {clawctl} list
  {clawctl} host list
  {clawctl} get {NAME}
  {clawctl} watch {NAME}
  {clawctl} restart {NAME} --wait
  {clawctl} gateway-token {NAME}

  {grpcurl} {endpoint} list
  {grpcurl} -d '{{\"name\":\"instances/{NAME}\"}}' {endpoint} claw.fleet.v1.InstanceService/GetInstance",
        host = host.name(),
        address = host.address(),
        port = web.port(),
    )
}

/// Blocks until somebody wants it to end: SIGINT, SIGTERM or SIGHUP.
fn wait_for_signal() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    signals.wait()?;
    Ok(())
}

/// Where the record and the log of a detached demo lie.
fn place(name: &str) -> PathBuf {
    cargo::cache().join(name)
}
