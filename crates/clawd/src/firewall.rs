//! The firewall's one-shot programs, run by units of their own, without the agent.
//!
//! | program | unit | does |
//! | --- | --- | --- |
//! | `clawd firewall-boot` | `clawd-firewall.service` | closes the host before the network is up and Docker starts |
//! | `clawd firewall-check` | `clawd-firewall-check.service` | tries rules in a network namespace of its own |
//! | `clawd firewall-revert` | `clawd-firewall-revert.service` | the watchdog: puts back what was in force |
//!
//! What they deliberately do not do: read the journal, talk to anybody, decide on a policy. Where to start:
//! [`boot`]; the work itself is [`crate::adapters::iptables`]'s.

use std::collections::{BTreeMap, BTreeSet};

use claw_core::firewall::render::{self, BRIDGES, INPUT, PREROUTING, SSH};
use claw_core::firewall::{Effective, HostPolicy, Port, Ruleset};
use sd_notify::NotifyState;

use crate::adapters::iptables::{Iptables, WatchdogOutcome};
use crate::adapters::nginx::every_address;
use crate::config::Config;
use crate::logging::chain;
use crate::ports::FirewallError;

/// The port that customers reach unless the configuration says otherwise.
pub const WEB_PORT: u16 = 8080;

/// Why a host did not get its firewall at boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A program or a file failed.
    #[error("the firewall cannot be put in force")]
    Firewall(#[from] FirewallError),
    /// The kernel made something else of the rules.
    #[error("the rules are not in force as they were made: {}", .0.join("; "))]
    Differs(Vec<String>),
}

/// Puts the last good rules in force; without any, or if they cannot be put in force, those of the
/// default policy, with every instance closed.
///
/// Whatever half of it fails, SSH stays open: every table's rules decide it before anything else.
///
/// # Errors
/// [`BootError`]: not even the default policy could be put in force. Docker must not start then.
pub async fn boot(config: &Config) -> Result<(), BootError> {
    let firewall = iptables(config);
    let ssh_ports = firewall.ssh_ports().await;
    match firewall.last_good().await {
        Ok(Some(rules)) => match put_in_force(&firewall, &with_ssh(rules, &ssh_ports)).await {
            Ok(()) => {
                tracing::info!("the last good rules are in force");
                return Ok(());
            }
            Err(error) => tracing::error!(
                error = chain(&error),
                "the last good rules cannot be put in force; everything but SSH and the web is closed"
            ),
        },
        Ok(None) => tracing::info!("there are no last good rules; instances are closed"),
        Err(error) => tracing::error!(
            error = chain(&error),
            "the last good rules cannot be read; everything but SSH and the web is closed"
        ),
    }
    put_in_force(&firewall, &default_rules(config, ssh_ports)).await
}

/// Tries the rules that the agent has written down, in this network namespace.
///
/// # Errors
/// [`FirewallError::Invalid`] when they are refused.
pub async fn check(config: &Config) -> Result<(), FirewallError> {
    iptables(config).check_candidate().await
}

/// Waits as long as the agent's patience lasts, then puts back what was in force before.
///
/// # Errors
/// [`FirewallError`]; the service manager tries again.
pub async fn revert(config: &Config) -> Result<(), FirewallError> {
    let ready = || {
        // Without a service manager nobody waits for it.
        let _told = sd_notify::notify(&[NotifyState::Ready]);
    };
    match iptables(config).watch(ready).await? {
        WatchdogOutcome::NothingArmed => tracing::info!("nothing is to be put back"),
        WatchdogOutcome::PutBack => {
            tracing::warn!(
                "nobody said that the new rules are good: the old ones are in force again"
            );
        }
    }
    Ok(())
}

/// Ports of the reverse proxy that are reached from outside the host.
#[must_use]
pub fn web_ports(config: &Config) -> BTreeSet<Port> {
    let listen = config.proxy_listen.clone().unwrap_or_else(|| every_address(WEB_PORT));
    let outside = listen.iter().filter(|address| !address.ip().is_loopback());
    outside.filter_map(|address| Port::new(address.port())).collect()
}

fn iptables(config: &Config) -> Iptables {
    Iptables::new(&config.data_dir, &config.run_dir)
}

async fn put_in_force(firewall: &Iptables, rules: &Ruleset) -> Result<(), BootError> {
    let said = firewall.boot(rules).await?;
    if said.is_empty() { Ok(()) } else { Err(BootError::Differs(said)) }
}

/// The default policy, without instances: bridges of instances reach nothing.
fn default_rules(config: &Config, ssh_ports: BTreeSet<Port>) -> Ruleset {
    render::render(&Effective {
        host: HostPolicy::default(),
        ssh_ports,
        web_ports: web_ports(config),
        pool: config.pool,
        instances: BTreeMap::new(),
    })
}

/// Opens sshd's ports, on SSH's conditions, if sshd was moved so that the rules open none of them. The agent
/// puts the rules right when it starts; an agent that does not start must not lock operators out.
fn with_ssh(mut rules: Ruleset, ports: &BTreeSet<Port>) -> Ruleset {
    let rule = |port: &Port, verdict: &str| {
        format!("! -i {BRIDGES} -p tcp -m tcp --dport {port} {verdict}")
    };
    let judged = format!("-g {SSH}");
    let chains = |rules: &Ruleset| {
        let tables = rules.families.iter().flat_map(|family| &family.tables);
        tables.flat_map(|table| table.chains.clone()).collect::<Vec<_>>()
    };
    let open = |port: &Port| {
        chains(&rules).iter().any(|c| c.name == INPUT && c.rules.contains(&rule(port, &judged)))
    };
    if ports.iter().any(open) {
        return rules;
    }
    let tables = rules.families.iter_mut().flat_map(|family| &mut family.tables);
    for chain in tables.flat_map(|table| &mut table.chains) {
        let verdict = match chain.name.as_str() {
            INPUT => judged.as_str(),
            PREROUTING => "-j RETURN",
            _ => continue,
        };
        chain.rules.splice(0..0, ports.iter().map(|port| rule(port, verdict)));
    }
    rules
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn ports(numbers: &[u16]) -> BTreeSet<Port> {
        numbers.iter().copied().filter_map(Port::new).collect()
    }

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("clawd.toml")).unwrap()
    }

    #[test]
    fn the_web_is_what_nginx_listens_on_outside() {
        assert_eq!(web_ports(&config("")), ports(&[8080]));
        let text = "proxy.listen = ['127.0.0.1:81', '0.0.0.0:82', '[::1]:83', '[::]:84']";
        assert_eq!(web_ports(&config(text)), ports(&[82, 84]));
    }

    #[test]
    fn a_moved_sshd_is_reached_after_a_boot() {
        let good = default_rules(&config(""), ports(&[22]));
        assert_eq!(with_ssh(good.clone(), &ports(&[22, 2222])), good, "one way in is enough");
        let moved = with_ssh(good.clone(), &ports(&[2222]));
        for (family, before) in moved.families.iter().zip(&good.families) {
            let text = family.record_text();
            let judged = "-A CLAW-IN ! -i claw-+ -p tcp -m tcp --dport 2222 -g CLAW-SSH\n";
            assert_eq!(text.matches(judged).count(), 2, "{text}");
            let past = "-A CLAW-PRE ! -i claw-+ -p tcp -m tcp --dport 2222 -j RETURN\n";
            assert_eq!(text.matches(past).count(), 1, "{text}");
            assert_eq!(text.lines().count(), before.record_text().lines().count() + 3);
        }
    }
}
