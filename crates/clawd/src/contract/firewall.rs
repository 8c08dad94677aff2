//! The contracts of [`Firewall`] and [`Traffic`].

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use claw_core::firewall::{Flow, Protocol, Ruleset};

use super::{Breach, done, holds, same};
use crate::ports::{Firewall, Traffic};

/// Longer than a suite takes: no watchdog may come in between.
const PATIENCE: Duration = Duration::from_secs(120);

/// The contract of [`Firewall`], on two rulesets that differ, neither of which is in force. It ends with
/// the second one in force and last good.
///
/// # Errors
/// The first rule that is broken.
pub async fn firewall(
    firewall: &impl Firewall,
    first: &Ruleset,
    second: &Ruleset,
) -> Result<(), Breach> {
    let is_in_force = async |rules: &Ruleset| {
        let said = done("reading back succeeds", firewall.deviations(rules).await)?;
        Ok::<_, Breach>(said.is_empty())
    };
    let found = done("looking around succeeds", firewall.surroundings().await)?;
    holds("the backend has a version", !found.backend.is_empty(), &found)?;
    let reverted = done("reverting with nothing armed is success", firewall.revert().await)?;
    same("nothing was armed", &reverted, &false)?;
    holds("rules are not committed unarmed", firewall.commit(first).await.is_err(), ())?;

    done("good rules are found good", firewall.validate(first).await)?;
    holds("trying rules leaves them apart", !is_in_force(first).await?, ())?;

    done("arming succeeds", firewall.arm(PATIENCE).await)?;
    let found = done("applying succeeds", firewall.apply(first).await)?;
    holds("what differed is told", !found.is_empty(), ())?;
    holds("applied rules are in force", is_in_force(first).await?, ())?;
    holds("others are not", !is_in_force(second).await?, ())?;
    let found = done("applying again does no harm", firewall.apply(first).await)?;
    same("nothing differs any more", &found, &Vec::new())?;
    done("committing succeeds", firewall.commit(first).await)?;
    same("nothing is armed any more", &done("asking again", firewall.revert().await)?, &false)?;
    holds("committed rules stay in force", is_in_force(first).await?, ())?;

    done("arming over rules succeeds", firewall.arm(PATIENCE).await)?;
    done("replacing succeeds", firewall.apply(second).await)?;
    holds("the new rules are in force", is_in_force(second).await?, ())?;
    done("arming again succeeds", firewall.arm(PATIENCE).await)?;
    same("reverting does something", &done("reverting", firewall.revert().await)?, &true)?;
    let rule = "reverting goes back to what the first arming found: nothing after it was proven";
    holds(rule, is_in_force(first).await?, ())?;
    same("reverting disarms", &done("reverting again", firewall.revert().await)?, &false)?;

    done("arming once more", firewall.arm(PATIENCE).await)?;
    done("applying once more", firewall.apply(second).await)?;
    done("committing once more", firewall.commit(second).await)?;
    holds("the last rules are in force", is_in_force(second).await?, ())
}

/// The contract of [`Traffic`].
///
/// # Errors
/// The first rule that is broken.
pub async fn traffic(traffic: &impl Traffic) -> Result<(), Breach> {
    done("counters can be read", traffic.counters().await)?;
    let entries =
        done("a set that is not there is no error", traffic.entries("claw-nowhere").await)?;
    same("it holds nothing", &entries, &Vec::new())?;
    let nobody = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));
    let flows = done("connections can be read", traffic.flows(nobody).await)?;
    same("who did nothing has none", &flows, &Vec::new())?;
    let gone = Flow {
        protocol: Protocol::Tcp,
        source: nobody,
        source_port: 40_000,
        destination: nobody,
        port: 443,
    };
    done("ending a connection that is gone is success", traffic.cut(&[gone]).await)
}
