//! The reverse proxy: one nginx virtual host for each instance.
//!
//! What it is for: a change is rendered, tested by nginx apart from the running configuration, put
//! in place atomically, loaded by the running nginx, and seen to be loaded: the virtual host itself
//! says which version of it answers. If any of that fails, the previous files are put back.
//!
//! What it deliberately does not do: own nginx (the operator's other sites live in it), terminate
//! TLS, decide which instance is published. Where to start: [`Nginx`]; text is made in `render`,
//! changes are carried out in `publisher`, `probe` asks the running nginx.

mod probe;
mod publisher;
mod render;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use claw_core::name::InstanceName;
use claw_core::plan::VirtualHost;
use tokio::sync::{mpsc, oneshot};

use crate::ports::{Proxy, ProxyError};
use publisher::{Change, Failure, Publisher, Request};
use render::Site;

/// Requests that may wait for the publisher; more than a host has instances.
const QUEUE: usize = 256;

/// For 100 ms after a reload the old workers answer, too (`ngx_master_process_cycle` in nginx 1.22); an
/// older answer counts only if it stays for longer.
const ATTEMPTS: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(20);

/// Where nginx is and what it listens on.
#[derive(Debug, Clone)]
pub struct NginxSettings {
    /// Addresses of the virtual hosts, see [`every_address`].
    pub listen: Vec<SocketAddr>,
    /// Directory of the virtual hosts; nginx's configuration includes `*.conf` of it.
    pub hosts: PathBuf,
    /// Directory of log files.
    pub logs: PathBuf,
    /// Directory for tests of configurations; the agent's own.
    pub work: PathBuf,
    /// nginx's pid file.
    pub pid_file: PathBuf,
    /// The program, to test configurations with.
    pub program: String,
    /// Command that starts nginx if it is not running.
    pub start: Vec<String>,
}

impl NginxSettings {
    /// nginx as Debian and Ubuntu package it.
    #[must_use]
    pub fn debian(listen: Vec<SocketAddr>) -> Self {
        Self {
            listen,
            hosts: PathBuf::from("/etc/nginx/claw.d"),
            logs: PathBuf::from("/var/log/nginx"),
            work: PathBuf::from("/run/clawd/nginx"),
            pid_file: PathBuf::from("/run/nginx.pid"),
            program: "nginx".to_owned(),
            start: ["systemctl", "start", "nginx.service"].map(str::to_owned).to_vec(),
        }
    }

    fn site(&self) -> Site<'_> {
        Site { listen: &self.listen, logs: &self.logs }
    }

    fn probe_address(&self) -> SocketAddr {
        let any =
            |address: &&SocketAddr| address.ip().is_unspecified() || address.ip().is_loopback();
        let address = self.listen.iter().find(any).or_else(|| self.listen.first());
        let Some(address) = address else { return (Ipv4Addr::LOCALHOST, 0).into() };
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        (ip, address.port()).into()
    }
}

/// Every address of the host with this port, without IPv6 where the kernel has none: nginx would
/// refuse its whole configuration for it.
#[must_use]
pub fn every_address(port: u16) -> Vec<SocketAddr> {
    let mut listen = vec![(Ipv4Addr::UNSPECIFIED, port).into()];
    if Path::new("/proc/net/if_inet6").exists() {
        listen.push((Ipv6Addr::UNSPECIFIED, port).into());
    }
    listen
}

/// Publishes instances through nginx.
#[derive(Debug, Clone)]
pub struct Nginx {
    settings: Arc<NginxSettings>,
    requests: mpsc::Sender<Request>,
}

impl Nginx {
    /// Starts the one task that changes nginx; it ends when the last clone is dropped.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use]
    pub fn start(settings: NginxSettings) -> Self {
        let settings = Arc::new(settings);
        let (requests, received) = mpsc::channel(QUEUE);
        tokio::spawn(Publisher::new(Arc::clone(&settings)).run(received));
        Self { settings, requests }
    }

    async fn request(&self, instance: &InstanceName, change: Change) -> Result<(), ProxyError> {
        let (done, outcome) = oneshot::channel();
        let request = Request { instance: instance.clone(), change, done };
        let sent = self.requests.send(request).await.is_ok();
        let outcome = if sent { outcome.await.ok() } else { None };
        let outcome = outcome.unwrap_or_else(|| Err(Failure::stopped()));
        outcome.map_err(|failure| failure.of(instance))
    }
}

impl Proxy for Nginx {
    async fn is_current(&self, host: &VirtualHost) -> Result<bool, ProxyError> {
        let site = self.settings.site();
        let rendered = site.virtual_host(host);
        let is = |file: &str, text: &str| {
            std::fs::read(self.settings.hosts.join(file))
                .is_ok_and(|found| found == text.as_bytes())
        };
        if !is(&render::file_name(&host.instance), &rendered.text)
            || !is(render::DEFAULT_FILE, &site.default_server())
        {
            return Ok(false);
        }
        let name = render::probe_name(&host.instance);
        for _attempt in 0..ATTEMPTS {
            match probe::loaded_digest(self.settings.probe_address(), &name).await {
                Ok(digest) if digest == Some(rendered.digest) => return Ok(true),
                Ok(_older) => tokio::time::sleep(ATTEMPT_PAUSE).await,
                Err(_silent) => break,
            }
        }
        Ok(false)
    }

    async fn publish(&self, host: &VirtualHost) -> Result<(), ProxyError> {
        let rendered = self.settings.site().virtual_host(host);
        self.request(&host.instance, Change::Put(rendered)).await
    }

    async fn unpublish(&self, instance: &InstanceName) -> Result<(), ProxyError> {
        self.request(instance, Change::Remove).await
    }

    fn listen(&self) -> SocketAddr {
        self.settings.probe_address()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(listen: &[&str], expected: &str) {
        let listen = listen.iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(NginxSettings::debian(listen).probe_address().to_string(), expected);
    }

    #[test]
    fn probes_go_over_loopback_where_they_can() {
        check(&["0.0.0.0:8080", "[::]:8080"], "127.0.0.1:8080");
        check(&["203.0.113.1:80", "[::]:8080"], "[::1]:8080");
        check(&["203.0.113.1:80"], "203.0.113.1:80");
    }
}
