//! Lab hosts: whole Debian systems with systemd as PID 1, booted in namespaces of this machine,
//! on a network of their own that the machine itself is no part of.
//!
//! Start at [`Lab::start`] (a network), then [`Lab::boot`] (a host on it). [`Cache`] holds what is
//! costly to make; [`images`] makes container images without any Docker on the machine;
//! [`requirements`] says what the machine lacks.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use claw_lab::{Cache, HostOptions, Lab, Network, progress};
//! let cache = Cache::open(progress::terminal())?;
//! let lab = Lab::start("example", &cache)?;
//! let host = lab.boot(HostOptions::named("h1"))?;
//! host.wait_until_active("docker.service", std::time::Duration::from_secs(30))?;
//! println!("{}", host.exec_ok(&["docker", "version"])?);
//! let http = lab.connect(Network::Client, (host.address(), 22).into())?;
//! # drop(http); Ok(()) }
//! ```
//!
//! What it deliberately does not do: nothing here knows the product. It never adds an interface, a
//! route, a firewall rule or a mount to the machine's own namespaces, and nothing that it starts
//! outlives the process that started it, however that process ends.

mod boot;
mod cgroup;
mod deadline;
mod docker_data;
mod guest;
mod netns;
mod rootfs;
mod run;

pub mod artifacts;
pub mod cache;
pub mod forward;
pub mod host;
pub mod images;
pub mod lab;
pub mod process;
pub mod progress;
pub mod requirements;
pub mod vm;

pub use cache::{Cache, Suite};
pub use deadline::wait_for;
pub use forward::Forward;
pub use host::{Cut, HostOptions, LabHost, StopCause};
pub use images::Image;
pub use lab::{Lab, Network};
pub use netns::Netns;
pub use process::{Output, Process, command};
pub use vm::{Vm, VmOptions};
