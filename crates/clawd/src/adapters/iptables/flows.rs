//! Connections, as conntrack(8) prints and deletes them.
//!
//! `conntrack -L` prints one connection on a line:
//! `tcp      6 431999 ESTABLISHED src=10.201.1.2 dst=203.0.113.9 sport=40000 dport=443 src=… [ASSURED] mark=0 use=1`.
//! The first address pair is that of who began it.

use std::net::IpAddr;

use claw_core::firewall::{Family, Flow, Protocol};

/// Arguments that list the connections that an address began.
pub(super) fn list(source: &str, family: Family) -> [&str; 6] {
    ["conntrack", "-L", "-f", name(family), "--orig-src", source]
}

/// Arguments that end one connection.
pub(super) fn delete(flow: &Flow) -> Vec<String> {
    let family = name(Family::of(flow.source));
    let argv = ["conntrack", "-D", "-f", family, "-p", protocol(flow.protocol)].map(str::to_owned);
    let rest = [
        ("--orig-src", flow.source.to_string()),
        ("--orig-dst", flow.destination.to_string()),
        ("--orig-port-src", flow.source_port.to_string()),
        ("--orig-port-dst", flow.port.to_string()),
    ];
    let rest = rest.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
    argv.into_iter().chain(rest).collect()
}

/// Connections in what `conntrack -L` printed; other protocols than TCP and UDP are left out.
pub(super) fn parse(text: &str) -> Vec<Flow> {
    text.lines().filter_map(flow).collect()
}

fn flow(line: &str) -> Option<Flow> {
    let protocol = match line.split_ascii_whitespace().next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let value = |key: &str| {
        line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    };
    let address = |key| -> Option<IpAddr> { value(key)?.parse().ok() };
    Some(Flow {
        protocol,
        source: address("src")?,
        source_port: value("sport")?.parse().ok()?,
        destination: address("dst")?,
        port: value("dport")?.parse().ok()?,
    })
}

const fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    }
}

const fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_read_as_they_are_printed() {
        let text = "tcp      6 431999 ESTABLISHED src=10.201.1.2 dst=203.0.113.9 sport=40000 dport=443 \
            src=203.0.113.9 dst=198.51.100.2 sport=443 dport=40000 [ASSURED] mark=0 use=1\n\
            udp      17 29 src=2001:db8::2 dst=2001:db8::9 sport=5 dport=53 [UNREPLIED] src=2001:db8::9 \
            dst=2001:db8::2 sport=53 dport=5 mark=0 use=1\n\
            icmp     1 29 src=10.201.1.2 dst=203.0.113.9 type=8 code=0 id=7 src=203.0.113.9 dst=10.201.1.2 \
            type=0 code=0 id=7 mark=0 use=1\n";
        let shown: Vec<String> = parse(text).iter().map(|flow| delete(flow).join(" ")).collect();
        assert_eq!(
            shown,
            [
                "conntrack -D -f ipv4 -p tcp --orig-src 10.201.1.2 --orig-dst 203.0.113.9 \
                 --orig-port-src 40000 --orig-port-dst 443",
                "conntrack -D -f ipv6 -p udp --orig-src 2001:db8::2 --orig-dst 2001:db8::9 \
                 --orig-port-src 5 --orig-port-dst 53",
            ]
        );
    }
}
