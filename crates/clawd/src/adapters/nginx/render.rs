//! nginx's configuration as text. Pure.
//!
//! Every name and address comes from a type that is valid by construction, so nothing needs to be
//! quoted. Sources of the directives: nginx.org/en/docs, modules core, proxy, map, log, rewrite.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use claw_core::name::InstanceName;
use claw_core::plan::VirtualHost;
use claw_core::stamp::Digest;

/// What all virtual hosts share, exactly as the package installs it.
const SHARED: &str = include_str!("../../../../../packaging/clawd/nginx-claw.conf");

/// The line of [`SHARED`] that includes the rest.
const INCLUDE: &str = "include /etc/nginx/claw.d/*.conf;";

/// File of the server for unknown names; no instance's name starts with a digit.
pub(super) const DEFAULT_FILE: &str = "00-default.conf";

/// Where a virtual host tells requests from this host which of its versions is loaded.
pub(super) const DIGEST_PATH: &str = "/.claw/vhost";

/// An instance's file.
pub(super) fn file_name(instance: &InstanceName) -> String {
    format!("{instance}.conf")
}

/// A name that belongs to one instance only, whatever else it is called, and that no browser asks
/// for: `invalid` is reserved (RFC 6761).
pub(super) fn probe_name(instance: &InstanceName) -> String {
    format!("{instance}.clawd.invalid")
}

/// A rendered file with the digest that it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) digest: Digest,
}

/// What is the same for all virtual hosts of one proxy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) listen: &'a [SocketAddr],
    pub(super) logs: &'a Path,
}

impl Site<'_> {
    /// The virtual host of an instance.
    pub(super) fn virtual_host(self, host: &VirtualHost) -> Rendered {
        let digest = Digest::of(self.server(host, "").as_bytes());
        Rendered { text: self.server(host, &digest.to_string()), digest }
    }

    /// The server for names that no instance has.
    pub(super) fn default_server(self) -> String {
        let listen = self.listen(" default_server");
        format!(
            "\
# Made by clawd for unknown names; changes are overwritten.
server {{
{listen}    server_name \"\";
    server_tokens off;
    access_log off;
    default_type text/plain;
    return 404 \"no instance is served under this name\\n\";
}}
"
        )
    }

    fn server(self, host: &VirtualHost, digest: &str) -> String {
        let instance = &host.instance;
        let listen = self.listen("");
        let names = host.hostnames.join(" ");
        let probe_name = probe_name(instance);
        let logs = self.logs.display();
        let upstream = host.upstream;
        let access = access(host);
        format!(
            "\
# Made by clawd for the instance {instance}; changes are overwritten.
# Content: sha256:{digest}
server {{
{listen}    server_name {names} {probe_name};
    server_tokens off;
    access_log {logs}/claw.access.log claw;
    # Only crit: messages of level error quote whole requests, tokens in them included.
    error_log {logs}/claw.error.log crit;
    client_max_body_size 64m;

    location / {{
{access}        proxy_pass http://{upstream};
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $claw_connection;
        # Set, not appended: what a client claims about its origin is dropped.
        proxy_set_header X-Forwarded-For $claw_client;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Real-IP $claw_client;
        proxy_set_header Forwarded \"\";
        proxy_connect_timeout 3s;
        # WebSockets are silent for long; streams must not wait for a buffer.
        proxy_read_timeout 1h;
        proxy_send_timeout 1h;
        proxy_buffering off;
        proxy_request_buffering off;
        proxy_next_upstream off;
        error_page 502 504 = @unavailable;
    }}

    location @unavailable {{
        default_type text/plain;
        add_header Retry-After 5 always;
        return 503 \"the gateway is starting or stopped; try again in a moment\\n\";
    }}

    location = {DIGEST_PATH} {{
        access_log off;
        default_type text/plain;
        if ($claw_client != 192.0.2.1) {{
            return 404;
        }}
        return 200 \"{digest}\";
    }}
}}
"
        )
    }

    fn listen(self, suffix: &str) -> String {
        let mut text = String::new();
        for address in self.listen {
            let _infallible = writeln!(text, "    listen {address}{suffix};");
        }
        text
    }
}

/// A whole configuration that includes `*.conf` of `candidates` and nothing of the machine's own:
/// to test what would be added. Nothing in it points at a directory that the running nginx uses,
/// because `nginx -t` makes directories and gives them to its own user.
pub(super) fn test_configuration(work: &Path, candidates: &Path) -> String {
    let work = work.display();
    let include = format!("include {}/*.conf;", candidates.display());
    let shared = SHARED.replace(INCLUDE, &include);
    format!(
        "\
pid {work}/test.pid;
error_log stderr;
events {{}}
http {{
access_log off;
client_body_temp_path {work}/temporary;
proxy_temp_path {work}/temporary;
fastcgi_temp_path {work}/temporary;
uwsgi_temp_path {work}/temporary;
scgi_temp_path {work}/temporary;
{shared}}}
"
    )
}

/// Who is served (module access). The host itself always is: its probes, and an operator's SSH tunnel.
fn access(host: &VirtualHost) -> String {
    if host.sources.is_empty() {
        return String::new();
    }
    let mut text = "        allow 127.0.0.0/8;\n        allow ::1;\n".to_owned();
    for source in &host.sources {
        let _infallible = writeln!(text, "        allow {source};");
    }
    text.push_str("        deny all;\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTEN: [SocketAddr; 1] =
        [SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 8080))];

    fn site() -> Site<'static> {
        Site { listen: &LISTEN, logs: Path::new("/var/log/nginx") }
    }

    fn host() -> VirtualHost {
        VirtualHost {
            sources: std::collections::BTreeSet::new(),
            instance: InstanceName::parse("demo").unwrap(),
            hostnames: vec!["a.example".to_owned(), "demo.claw.localhost".to_owned()],
            upstream: ([10, 201, 1, 2], 18789).into(),
        }
    }

    #[test]
    fn a_virtual_host_is_rendered() {
        assert_eq!(site().virtual_host(&host()).text, include_str!("golden/demo.conf"));
    }

    #[test]
    fn unknown_names_are_rendered() {
        let listen = [([0, 0, 0, 0], 8080).into(), "[::]:8080".parse().unwrap()];
        let site = Site { listen: &listen, ..site() };
        assert_eq!(site.default_server(), include_str!("golden/00-default.conf"));
    }

    #[test]
    fn the_digest_follows_the_content() {
        let rendered = site().virtual_host(&host());
        assert_eq!(rendered.text.matches(&rendered.digest.to_string()).count(), 2);
        assert_eq!(site().virtual_host(&host()), rendered);
        let moved = VirtualHost { upstream: ([10, 201, 2, 2], 18789).into(), ..host() };
        assert_ne!(site().virtual_host(&moved).digest, rendered.digest);
    }

    #[test]
    fn the_test_configuration_touches_nothing_of_the_machine() {
        let text = test_configuration(Path::new("/w"), Path::new("/w/candidates"));
        assert!(text.contains("include /w/candidates/*.conf;"), "{text}");
        assert!(
            !text.contains("/etc/")
                || text.lines().all(|l| l.starts_with('#') || !l.contains("/etc/"))
        );
        assert_eq!(SHARED.matches(INCLUDE).count(), 1, "the shipped file includes the rest once");
    }
}
