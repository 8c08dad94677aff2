//! What the tests of the firewall stand on can fail: a gap of milliseconds is seen, each verdict is told.

use std::time::Duration;

use anyhow::{Context, Result};
use claw_lab::{Cache, HostOptions, Lab, LabHost, Network, progress};
use claw_tests::barrage::{Barrage, Pace, Target};
use claw_tests::dial::Verdict;
use claw_tests::ground::{self, Ground, HOST_PORTS, HOST_UDP_PORT};
use claw_tests::probe::Probe;

/// IPv6 takes a second or two before it sends the first packet (duplicate address detection).
const PATIENCE: Duration = Duration::from_secs(4);

#[test]
fn a_gap_of_milliseconds_is_seen_and_verdicts_are_told_apart() -> Result<()> {
    let cache = Cache::open(progress::terminal())?;
    let lab = Lab::start("probes", &cache)?;
    let host = lab.boot(HostOptions::named("h1"))?;
    host.wait_until_active("ssh.service", Duration::from_secs(60))?;
    let ground = Ground::start(&lab)?;
    ground.plant(&lab, &host)?;
    verdicts(&lab, &host, &ground)?;
    names(&lab, &ground)?;
    let port = HOST_PORTS[1];
    let rule = |verb: &'static str| -> Result<()> {
        let port = port.to_string();
        let rule = ["iptables", "-w", verb, "INPUT", "-p", "tcp", "--dport", &port, "-j", "DROP"];
        host.exec_ok(&rule).map(drop)
    };
    rule("-A")?;
    let target = || vec![Target::new("closed", (host.address(), port))];
    let barrage = Barrage::start(lab.netns(Network::Client), target(), Pace::CLOSED)?;
    std::thread::sleep(Duration::from_secs(1));
    let quiet = barrage.stop()?;
    assert_eq!(quiet.opened, [], "{}", quiet.summary());
    assert_eq!(quiet.unsent, 0);
    assert!(quiet.rate() > 1000.0, "{}", quiet.summary());

    let barrage = Barrage::start(lab.netns(Network::Client), target(), Pace::CLOSED)?;
    host.exec_ok(&[
        "sh",
        "-c",
        &format!(
            "iptables -w -D INPUT -p tcp --dport {port} -j DROP; \
         iptables -w -A INPUT -p tcp --dport {port} -j DROP"
        ),
    ])?;
    let gap = barrage.stop()?;
    println!("{}, over {:?}", gap.summary(), gap.open_for());
    assert!(!gap.opened.is_empty(), "a gap between two commands was not seen");
    assert!(!gap.closed.is_empty(), "{}", gap.summary());
    Ok(())
}

fn verdicts(lab: &Lab, host: &LabHost, ground: &Ground) -> Result<()> {
    let from_client = |probe: Probe| {
        lab.within(Network::Client, || probe.run(ground.servers(), PATIENCE))?
            .with_context(|| probe.to_string())
    };
    let dropped = |probe: &Probe| {
        let soon = Duration::from_millis(300);
        lab.within(Network::Client, || probe.run(ground.servers(), soon))?
    };
    let (v4, v6) = (host.address(), host.address_v6());
    assert_eq!(from_client(Probe::tcp((v4, 22)))?, Verdict::Open);
    assert_eq!(from_client(Probe::tcp((v6, HOST_PORTS[0])))?, Verdict::Open);
    assert_eq!(from_client(Probe::udp((v4, HOST_UDP_PORT)))?, Verdict::Open);
    assert_eq!(from_client(Probe::udp((v6, HOST_UDP_PORT)))?, Verdict::Open);
    assert_eq!(from_client(Probe::tcp((v4, 1)))?, Verdict::Refused);
    assert_eq!(from_client(Probe::udp((v4, 1)))?, Verdict::Refused);
    for (family, reject) in
        [("iptables", "icmp-admin-prohibited"), ("ip6tables", "icmp6-adm-prohibited")]
    {
        let input = |rule: &[&str]| host.exec_ok(&[&[family, "-w", "-A", "INPUT"], rule].concat());
        input(&["-p", "tcp", "--dport", "2", "-j", "REJECT", "--reject-with", reject])?;
        input(&["-p", "udp", "--dport", "2", "-j", "REJECT", "--reject-with", reject])?;
        input(&["-p", "tcp", "--dport", "3", "-j", "DROP"])?;
    }
    for address in [v4.into(), std::net::IpAddr::from(v6)] {
        assert_eq!(from_client(Probe::tcp((address, 2)))?, Verdict::Rejected, "{address}");
        assert_eq!(from_client(Probe::udp((address, 2)))?, Verdict::Rejected, "{address}");
        assert_eq!(dropped(&Probe::tcp((address, 3)))?, Verdict::TimedOut, "{address}");
    }
    Ok(())
}

fn names(lab: &Lab, ground: &Ground) -> Result<()> {
    let ask = |name: &str| {
        let probe = Probe::name((ground::UPSTREAM, 53), name);
        lab.within(Network::Client, || probe.run(ground.servers(), PATIENCE))?
    };
    assert_eq!(ask("alias.listed.example")?, Verdict::Open);
    assert_eq!(ask("nowhere.example")?, Verdict::Refused);
    assert_eq!(ground.names().asked("nowhere.example"), 1);
    Ok(())
}
