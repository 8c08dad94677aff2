//! What comes through the firewall and what does not: every pair of places, both families, real
//! connections, on both releases of Debian. Then the firewall is taken away, and everything comes
//! through.

use anyhow::{Result, ensure};
use claw_lab::{HostOptions, LabHost, Network, Suite};
use claw_tests::ground::{
    CONTAINER_PORT, DOH, ELSEWHERE, ELSEWHERE_V6, FOREIGN_DNS, FOREIGN_DNS_V6, Ground, HOST_PORTS,
    HOST_UDP_PORT, Inside, LISTED, METADATA, Places, UPSTREAM,
};
use claw_tests::matrix::{self, Check};
use claw_tests::probe::{Probe, Transport};
use claw_tests::programs::PATIENCE;
use claw_tests::{Instance, Rig, rig};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where somebody else's container is published on the host's loopback.
const PUBLISHED: u16 = 7070;
/// SMTP and IRC: denied unless a policy says otherwise.
const DENIED: [u16; 7] = [25, 465, 587, 2525, 194, 6667, 6697];

#[test]
fn what_must_be_closed_is_closed_and_the_rest_is_open() -> Result<()> {
    let hosts = [
        HostOptions::named("h12").with_suite(Suite::Bookworm),
        HostOptions::named("h13").with_suite(Suite::Trixie),
    ];
    let rig = Rig::with("matrix", rig::QUICK, &hosts)?;
    let ground = Ground::start(rig.fleet().lab())?;
    for host in rig.hosts() {
        rig.step(&format!("{}: three instances", host.name()), || populate(&rig, host))?;
        let (places, checks) = rig.step("places and checks", || prepare(&rig, &ground, host))?;
        let held = rig.step(&format!("{} checks with the firewall", checks.len()), || {
            matrix::with_firewall(&places, ground.servers(), &checks)
        })?;
        let control = rig.step("those that were closed, without", || {
            take_away(host)?;
            matrix::without(&places, ground.servers(), &checks)
        })?;
        let docker = host.exec_ok(&["docker", "version", "-f", "{{.Server.Version}}"])?;
        let title = format!("{} (Docker {docker})", host.name());
        let outcome = matrix::judge(&title, &checks, &held, &control);
        rig.note(&outcome.table);
        rig.step("no fault", || {
            ensure!(checks.len() > 61, "only {} checks", checks.len());
            ensure!(outcome.faults.is_empty(), "{}", outcome.faults.join("\n"));
            Ok(())
        })?;
    }
    Ok(())
}

fn name(host: &LabHost, role: &str) -> String {
    format!("{role}-{}", host.name())
}

/// Two instances with the default policy, one with a list.
fn populate(rig: &Rig, host: &LabHost) -> Result<()> {
    let (fleet, image) = (rig.fleet(), &rig.image().reference);
    for role in ["a", "b"] {
        fleet.apply(&Instance::new(&name(host, role), host, image))?;
    }
    let list = json!({
        "egress": { "allowlist": {
            "networks": [{ "network": format!("{LISTED}/32"), "ports": [443] }],
            "names": [
                { "pattern": "*.listed.example", "ports": [443] },
                "*.wild.example",
            ],
        } },
    });
    fleet.apply(&Instance::new(&name(host, "listed"), host, image).with("network", list))?;
    for role in ["a", "b", "listed"] {
        fleet.until_phase(&name(host, role), "running", PATIENCE)?;
        fleet.until_serving(host, &name(host, role))?;
    }
    let published = format!("127.0.0.1:{PUBLISHED}:18789");
    let stranger = ["docker", "run", "--detach", "--env", "OPENCLAW_GATEWAY_TOKEN=s", "--publish"];
    let gateway = ["gateway", "--allow-unconfigured", "--bind", "lan"];
    host.exec_ok(&[&stranger[..], &[published.as_str(), image], &gateway].concat())?;
    Ok(())
}

fn prepare(rig: &Rig, ground: &Ground, host: &LabHost) -> Result<(Places, Vec<Check>)> {
    let lab = rig.fleet().lab();
    ground.plant(lab, host)?;
    let inside = |role: &str| -> Result<Inside> {
        let inside = Inside::of(host, &name(host, role))?;
        ground.give_v6(host, &inside)?;
        ground.plant_inside(&inside)?;
        Ok(inside)
    };
    let (a, b, listed) = (inside("a")?, inside("b")?, inside("listed")?);
    // A source that is another instance's, one that is nobody's.
    a.netns
        .ip(&format!("addr add {}/32 dev lo\naddr add 203.0.113.99/32 dev lo\n", spoofed(&b)))?;
    let places = Places::from([
        ("client", lab.netns(Network::Client).clone()),
        ("neighbour", ground.neighbour().clone()),
        ("host", host.netns()?),
        ("a", a.netns.clone()),
        ("listed", listed.netns.clone()),
    ]);
    let checks = [
        inbound(host, &a),
        to_internet(),
        to_metadata(),
        to_host(host, &a, &b),
        to_others(host, &b),
        names(&a),
        from_list(&listed),
        spoofing(&b),
        answers(host, &a),
    ];
    Ok((places, checks.concat()))
}

/// An address within another instance's subnet.
fn spoofed(b: &Inside) -> Ipv4Addr {
    let [first, second, third, _] = b.address.octets();
    Ipv4Addr::new(first, second, third, 77)
}

/// From a customer's machine and from a neighbour on the link.
fn inbound(host: &LabHost, a: &Inside) -> Vec<Check> {
    let mut checks = Vec::new();
    let addresses: [IpAddr; 2] = [host.address().into(), host.address_v6().into()];
    for from in ["client", "neighbour"] {
        for address in addresses {
            checks.push(Check::open(from, "SSH", Probe::tcp((address, 22))));
            for port in HOST_PORTS {
                let what = "a port of the host";
                checks.push(Check::closed(from, what, Probe::tcp((address, port))));
            }
            let datagram = Probe::udp((address, HOST_UDP_PORT));
            checks.push(Check::closed(from, "a port of the host", datagram));
        }
        // nginx listens on IPv4.
        checks.push(Check::open(from, "the web port", Probe::tcp((host.address(), 8080))));
        let gateway = Probe::tcp((a.address, 18789));
        checks.push(Check::closed(from, "an instance's gateway, routed", gateway));
        for address in [IpAddr::from(a.address), a.address_v6.into()] {
            let (tcp, udp) =
                (Probe::tcp((address, CONTAINER_PORT)), Probe::udp((address, CONTAINER_PORT)));
            checks.push(Check::closed(from, "a port of an instance, routed", tcp));
            checks.push(Check::closed(from, "a port of an instance, routed", udp));
        }
    }
    let loopback = Probe::tcp((Ipv4Addr::LOCALHOST, PUBLISHED));
    checks.push(Check::closed("neighbour", "what Docker publishes on the loopback", loopback));
    checks
}

/// From an instance without a list.
fn to_internet() -> Vec<Check> {
    let mut checks = Vec::new();
    for address in [IpAddr::from(ELSEWHERE), ELSEWHERE_V6.into()] {
        for port in DENIED {
            checks.push(Check::closed("a", "a denied port", Probe::tcp((address, port))));
        }
        for port in [25, 6667] {
            checks.push(Check::closed("a", "a denied port", Probe::udp((address, port))));
        }
        for port in [22, 80, 443, 993, 8443] {
            checks.push(Check::open("a", "an allowed port", Probe::tcp((address, port))));
        }
        for port in [123, 443] {
            checks.push(Check::open("a", "an allowed port", Probe::udp((address, port))));
        }
    }
    checks
}

fn to_metadata() -> Vec<Check> {
    let mut checks = Vec::new();
    for address in METADATA.iter().filter_map(|ip| ip.parse::<IpAddr>().ok()) {
        for from in ["a", "listed"] {
            checks.push(Check::closed(from, "cloud metadata", Probe::tcp((address, 80))));
        }
    }
    checks
}

/// From an instance to its host, by every address that the host has.
fn to_host(host: &LabHost, a: &Inside, b: &Inside) -> Vec<Check> {
    let mut checks = Vec::new();
    let addresses: [(&str, IpAddr); 6] = [
        ("the host by its bridge", a.gateway.into()),
        ("the host by its bridge", a.gateway_v6.into()),
        ("the host by its address", host.address().into()),
        ("the host by its address", host.address_v6().into()),
        ("the host by Docker's bridge", Ipv4Addr::new(172, 17, 0, 1).into()),
        ("the host by another's bridge", b.gateway.into()),
    ];
    for (what, address) in addresses {
        for port in [22, HOST_PORTS[1]] {
            checks.push(Check::closed("a", what, Probe::tcp((address, port))));
        }
    }
    for address in [a.gateway, host.address()] {
        let what = "the host's reverse proxy";
        checks.push(Check::closed("a", what, Probe::tcp((address, 8080))));
    }
    for address in [IpAddr::from(host.address()), host.address_v6().into()] {
        let datagram = Probe::udp((address, HOST_UDP_PORT));
        checks.push(Check::closed("a", "the host by its address", datagram));
    }
    checks
}

/// From an instance to another one, directly and through the host's proxy.
fn to_others(host: &LabHost, b: &Inside) -> Vec<Check> {
    let mut checks = vec![
        Check::closed("a", "another's gateway", Probe::tcp((b.address, 18789))),
        Check::closed("listed", "another's gateway", Probe::tcp((b.address, 18789))),
    ];
    for address in [IpAddr::from(b.address), b.address_v6.into()] {
        let (tcp, udp) =
            (Probe::tcp((address, CONTAINER_PORT)), Probe::udp((address, CONTAINER_PORT)));
        checks.push(Check::closed("a", "another instance", tcp));
        checks.push(Check::closed("a", "another instance", udp));
    }
    let proxy = Probe::tcp((host.address(), 8080));
    checks.push(Check::closed("listed", "another, through the host's proxy", proxy));
    checks
}

/// Names are asked of the bridge, and of nobody else.
fn names(a: &Inside) -> Vec<Check> {
    const NAME: &str = "api.listed.example";
    let ask = |server: SocketAddr, over| Probe::Name { server, name: NAME.to_owned(), over };
    let mut checks = Vec::new();
    for over in [Transport::Udp, Transport::Tcp] {
        checks.push(Check::open("a", "names, of the bridge", ask(a.dns(), over)));
        let foreign: [(&str, IpAddr); 3] = [
            ("names, of the host's upstream", UPSTREAM.into()),
            ("names, of a stranger", FOREIGN_DNS.into()),
            ("names, of a stranger", FOREIGN_DNS_V6.into()),
        ];
        for (what, server) in foreign {
            checks.push(Check::closed("a", what, ask((server, 53).into(), over)));
        }
    }
    for address in [IpAddr::from(ELSEWHERE), ELSEWHERE_V6.into()] {
        checks.push(Check::closed("a", "DNS over TLS", Probe::tcp((address, 853))));
        checks.push(Check::closed("a", "DNS over QUIC", Probe::udp((address, 853))));
    }
    let rebinding = ["rebind-metadata", "rebind-loopback", "rebind-private"];
    for name in rebinding.map(|name| format!("{name}.listed.example")) {
        let told = Probe::name((FOREIGN_DNS, 53), &name);
        let check = Check::closed("a", "a name that leads inside", Probe::name(a.dns(), &name));
        checks.push(check.shown_by(told));
    }
    checks
}

/// From an instance with a list.
fn from_list(listed: &Inside) -> Vec<Check> {
    let closed = |what: &str, probe| Check::closed("listed", what, probe);
    let told = |name: &str| Probe::name((FOREIGN_DNS, 53), name);
    let mut checks = vec![
        Check::open("listed", "an address on the list", Probe::tcp((LISTED, 443))),
        Check::open("listed", "an address on the list, QUIC", Probe::udp((LISTED, 443))),
        closed("another port of it", Probe::tcp((LISTED, 80))),
        closed("a denied port of it", Probe::tcp((LISTED, 25))),
        closed("an address that is on no list", Probe::tcp((ELSEWHERE, 443))),
        closed("an address that is on no list, QUIC", Probe::udp((ELSEWHERE, 443))),
        closed("an IPv6 address, no list has any", Probe::tcp((ELSEWHERE_V6, 443))),
        closed("an IPv6 address, no list has any", Probe::udp((ELSEWHERE_V6, 443))),
        closed("DNS over HTTPS off the list", Probe::tcp((DOH, 443))),
        closed("a stranger's DNS", told("api.listed.example")),
    ];
    for name in ["api.listed.example", "alias.listed.example", "deep.below.wild.example"] {
        checks.push(Check::open("listed", "a name on the list", Probe::name(listed.dns(), name)));
    }
    for (what, name) in [
        ("a name that is on no list", "other.example"),
        ("a name on the list that leads inside", "rebind-metadata.listed.example"),
        ("a name on the list that leads inside", "rebind-private.listed.example"),
    ] {
        checks.push(closed(what, Probe::name(listed.dns(), name)).shown_by(told(name)));
    }
    checks
}

/// With a source that is not one's own.
fn spoofing(b: &Inside) -> Vec<Check> {
    let sources = [spoofed(b), Ipv4Addr::new(203, 0, 113, 99)];
    let probe =
        |ip: Ipv4Addr| Probe::Udp { to: (ELSEWHERE, 443).into(), from: Some((ip, 0).into()) };
    sources.map(|ip| Check::closed("a", "a spoofed source", probe(ip))).to_vec()
}

/// Answers pass, whatever their ports are called.
fn answers(host: &LabHost, a: &Inside) -> Vec<Check> {
    let from = |port: u16| Some((Ipv4Addr::UNSPECIFIED, port).into());
    let outward = Probe::Tcp { to: (ELSEWHERE, 443).into(), from: from(6667) };
    let inward = Probe::Tcp { to: (a.address, 18789).into(), from: from(6697) };
    let web = Probe::Tcp { to: (host.address(), 8080).into(), from: from(25) };
    vec![
        Check::open("a", "an answer to a denied port's number", outward),
        Check::open("host", "an answer to a denied port's number", inward),
        Check::open("client", "an answer to a denied port's number", web),
        Check::open("host", "the host to the internet", Probe::tcp((ELSEWHERE, 25))),
        Check::open("host", "the host to the internet, IPv6", Probe::tcp((ELSEWHERE_V6, 25))),
        Check::open("host", "the host to an instance", Probe::tcp((a.address, 18789))),
    ]
}

/// The agent and every rule: what is left is what Docker translates, and a host that forwards.
fn take_away(host: &LabHost) -> Result<()> {
    host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
    for program in ["iptables", "ip6tables"] {
        for table in ["raw", "security", "filter"] {
            host.exec_ok(&[program, "-w", "-t", table, "-F"])?;
        }
        for chain in ["INPUT", "FORWARD"] {
            host.exec_ok(&[program, "-w", "-P", chain, "ACCEPT"])?;
        }
    }
    Ok(())
}
