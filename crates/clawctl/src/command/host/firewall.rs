//! `host firewall`: what a host's firewall does right now, asked of its agent.

use std::collections::BTreeMap;

use claw_proto::fleet::v1 as fleet;
use serde::Serialize;

use super::{Session, client};
use crate::cli::{FirewallArgs, Format};
use crate::command::instance;
use crate::connection::{Connection, Repeat};
use crate::failure::CommandError;
use crate::file::network::NetworkDocument;
use crate::output::OutputError;
use crate::table::printable;
use crate::view::firewall::FirewallView;
use crate::view::id;

pub(super) async fn run(
    arguments: &FirewallArgs,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let host = id(&arguments.name);
    let mut view = FirewallView::new(host, fetch(&session.connection, host).await?);
    if let Some(name) = &arguments.proposal {
        return propose(&view, id(name), session);
    }
    if arguments.rules && session.output.format == Format::Table {
        return rules(&view, session);
    }
    let instances = instance::all(&session.connection, Some(host)).await?;
    let blocked = instances.into_iter().filter_map(|one| Some((one.name, one.status.blocked?)));
    view.join(&mut blocked.collect::<BTreeMap<_, _>>());
    if session.output.format != Format::Table {
        return Ok(session.output.value(&view, &format!("hosts/{host}"))?);
    }
    write!(session.output.out, "{}", view.table())?;
    if !view.instances.is_empty() {
        write!(session.output.out, "\n{}", view.instance_table())?;
    }
    Ok(())
}

/// The rules as they are; what a terminal would obey is shown as `?`.
fn rules(view: &FirewallView, session: &mut Session<'_>) -> Result<(), CommandError> {
    for (family, rules) in [("IPv4", &view.rules_v4), ("IPv6", &view.rules_v6)] {
        writeln!(session.output.out, "# {family}")?;
        for line in rules.lines() {
            writeln!(session.output.out, "{}", printable(line))?;
        }
    }
    for omitted in &view.omitted {
        session.remark(&format!("left out because it is too large: {}", printable(omitted)))?;
    }
    Ok(())
}

/// As it stands in a file; JSON on demand.
fn propose(
    view: &FirewallView,
    instance: &str,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    #[derive(Serialize)]
    struct Part {
        spec: Spec,
    }
    #[derive(Serialize)]
    struct Spec {
        network: NetworkDocument,
    }
    let network = view.proposal(instance).ok_or_else(|| CommandError::NoProposal {
        instance: instance.to_owned(),
        host: view.host.clone(),
    })?;
    let part = Part { spec: Spec { network } };
    let text = serde_yaml_ng::to_string(&part).map_err(OutputError::from)?;
    Ok(session.output.value(&part, text.trim_end())?)
}

async fn fetch(
    connection: &Connection,
    host: &str,
) -> Result<fleet::HostFirewallView, CommandError> {
    let request = fleet::GetHostFirewallRequest { name: format!("hosts/{host}") };
    let doing = format!("get the firewall of hosts/{host}");
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).get_host_firewall(request).await
        })
        .await?;
    answer.firewall.ok_or(CommandError::Answer { missing: "firewall" })
}
