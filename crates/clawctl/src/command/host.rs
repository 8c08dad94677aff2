//! Hosts: list, get, create, delete, cordon, uncordon, revoke, firewall, events; and what `apply` does
//! to them.

mod firewall;
mod offsite;

use std::collections::BTreeMap;

use claw_proto::fleet::v1 as fleet;
use claw_proto::fleet::v1::host_service_client::HostServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use super::apply::Outcome;
use super::{Mode, Session};
use crate::cli::{Format, HostCommand};
use crate::clock;
use crate::connection::{Connection, MAX_ANSWER, PAGE_SIZE, Repeat};
use crate::failure::CommandError;
use crate::file::HostDocument;
use crate::file::firewall::FirewallDocument;
use crate::view::event::EventView;
use crate::view::host::HostView;
use crate::view::{Resource as _, id};
pub(super) use offsite::{NewStorage, set as set_offsite};

/// Whether instances may be placed on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cordon {
    Set,
    Lifted,
}

pub(super) async fn run(
    command: HostCommand,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    match command {
        HostCommand::List => list(session).await,
        HostCommand::Get { name } => {
            let host = get(&session.connection, id(&name)).await?;
            Ok(session.output.one(&HostView::from(host))?)
        }
        HostCommand::Create { name, labels, cordoned } => {
            let labels: BTreeMap<String, String> = labels.into_iter().collect();
            let host = fleet::Host { labels, cordoned, ..fleet::Host::default() };
            let host = create(&session.connection, id(&name), host, Mode::Commit).await?;
            answer(host, "created", session)
        }
        HostCommand::Delete { name } => {
            let name = id(&name);
            delete(&session.connection, name).await?;
            let resource = format!("hosts/{name}");
            let text = match session.output.format {
                Format::Name => resource.clone(),
                _ => format!("{resource} deleted"),
            };
            let value = BTreeMap::from([("resource", resource.as_str()), ("outcome", "deleted")]);
            Ok(session.output.value(&value, &text)?)
        }
        HostCommand::Cordon { name } => cordon(id(&name), Cordon::Set, session).await,
        HostCommand::Uncordon { name } => cordon(id(&name), Cordon::Lifted, session).await,
        HostCommand::Revoke { name } => revoke(id(&name), session).await,
        HostCommand::Firewall(arguments) => firewall::run(&arguments, session).await,
        // Taken by `Prepared::new`.
        HostCommand::Offsite(_) => Ok(()),
        HostCommand::Events { name, instance } => {
            events(id(&name), instance.as_deref(), session).await
        }
    }
}

/// Creates the host or changes what the document decides.
pub(super) async fn apply(
    connection: &Connection,
    document: &HostDocument,
    mode: Mode,
) -> Result<Outcome, CommandError> {
    let name = id(&document.name);
    let before = match get(connection, name).await {
        Ok(before) => before,
        Err(CommandError::Call(error)) if error.code == Code::NotFound => {
            let host = fleet::Host {
                labels: document.labels.clone().unwrap_or_default(),
                cordoned: document.cordoned.unwrap_or_default(),
                firewall: document.firewall.as_ref().map(FirewallDocument::to_wire),
                ..fleet::Host::default()
            };
            create(connection, name, host, mode).await?;
            return Ok(Outcome::Created);
        }
        Err(error) => return Err(error),
    };
    let labels = document.labels.clone().unwrap_or_else(|| before.labels.clone());
    let cordoned = document.cordoned.unwrap_or(before.cordoned);
    let firewall = document.firewall.as_ref().map(FirewallDocument::to_wire);
    let same_firewall = firewall
        .as_ref()
        .is_none_or(|wanted| *wanted == before.firewall.clone().unwrap_or_default());
    if labels == before.labels && cordoned == before.cordoned && same_firewall {
        return Ok(Outcome::Unchanged);
    }
    let host = fleet::Host {
        name: before.name,
        etag: before.etag,
        labels,
        cordoned,
        firewall,
        ..fleet::Host::default()
    };
    let paths: &[&str] = match document.firewall {
        Some(_) => &["labels", "cordoned", "firewall"],
        None => &["labels", "cordoned"],
    };
    update(connection, host, paths, mode).await?;
    Ok(Outcome::Updated)
}

pub(super) async fn delete(connection: &Connection, name: &str) -> Result<(), CommandError> {
    let request = fleet::DeleteHostRequest {
        name: format!("hosts/{name}"),
        request_id: clock::request_id(),
        ..fleet::DeleteHostRequest::default()
    };
    connection
        .call(
            &format!("delete hosts/{name}"),
            Repeat::Harmless,
            request,
            async |channel, request| client(channel).delete_host(request).await,
        )
        .await?;
    Ok(())
}

fn client(channel: Channel) -> HostServiceClient<Channel> {
    HostServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

async fn get(connection: &Connection, name: &str) -> Result<fleet::Host, CommandError> {
    let request = fleet::GetHostRequest { name: format!("hosts/{name}") };
    let answer = connection
        .call(&format!("get hosts/{name}"), Repeat::Harmless, request, async |channel, request| {
            client(channel).get_host(request).await
        })
        .await?;
    answer.host.ok_or(CommandError::Answer { missing: "host" })
}

async fn create(
    connection: &Connection,
    name: &str,
    host: fleet::Host,
    mode: Mode,
) -> Result<fleet::Host, CommandError> {
    let request = fleet::CreateHostRequest {
        host_id: name.to_owned(),
        host: Some(host),
        validate_only: mode == Mode::Check,
        request_id: clock::request_id(),
    };
    let answer = connection
        .call(
            &format!("create hosts/{name}"),
            Repeat::Harmless,
            request,
            async |channel, request| client(channel).create_host(request).await,
        )
        .await?;
    answer.host.ok_or(CommandError::Answer { missing: "host" })
}

async fn update(
    connection: &Connection,
    host: fleet::Host,
    paths: &[&str],
    mode: Mode,
) -> Result<fleet::Host, CommandError> {
    let doing = format!("update {}", host.name);
    let mut request = fleet::UpdateHostRequest {
        host: Some(host),
        validate_only: mode == Mode::Check,
        request_id: clock::request_id(),
        ..fleet::UpdateHostRequest::default()
    };
    request.update_mask.get_or_insert_default().paths =
        paths.iter().map(ToString::to_string).collect();
    let answer = connection
        .call(&doing, Repeat::Harmless, request, async |channel, request| {
            client(channel).update_host(request).await
        })
        .await?;
    answer.host.ok_or(CommandError::Answer { missing: "host" })
}

async fn cordon(name: &str, cordon: Cordon, session: &mut Session<'_>) -> Result<(), CommandError> {
    let host = fleet::Host {
        name: format!("hosts/{name}"),
        cordoned: cordon == Cordon::Set,
        ..fleet::Host::default()
    };
    let host = update(&session.connection, host, &["cordoned"], Mode::Commit).await?;
    answer(host, if cordon == Cordon::Set { "cordoned" } else { "uncordoned" }, session)
}

async fn revoke(name: &str, session: &mut Session<'_>) -> Result<(), CommandError> {
    let request = fleet::RevokeHostRequest {
        name: format!("hosts/{name}"),
        request_id: clock::request_id(),
        ..fleet::RevokeHostRequest::default()
    };
    let revoked = session
        .connection
        .call(
            &format!("revoke hosts/{name}"),
            Repeat::Harmless,
            request,
            async |channel, request| client(channel).revoke_host(request).await,
        )
        .await?;
    let host = revoked.host.ok_or(CommandError::Answer { missing: "host" })?;
    answer(host, "revoked", session)
}

async fn list(session: &mut Session<'_>) -> Result<(), CommandError> {
    let mut hosts: Vec<HostView> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = fleet::ListHostsRequest { page_size: PAGE_SIZE, page_token };
        let page = session
            .connection
            .call("list hosts", Repeat::Harmless, request, async |channel, request| {
                client(channel).list_hosts(request).await
            })
            .await?;
        hosts.extend(page.hosts.into_iter().map(HostView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(session.output.list(&hosts)?);
        }
    }
}

async fn events(
    name: &str,
    instance: Option<&str>,
    session: &mut Session<'_>,
) -> Result<(), CommandError> {
    let instance = instance.map(|name| format!("instances/{}", id(name))).unwrap_or_default();
    let mut events: Vec<EventView> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = fleet::ListHostEventsRequest {
            host: format!("hosts/{name}"),
            instance: instance.clone(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let doing = format!("list events of hosts/{name}");
        let page = session
            .connection
            .call(&doing, Repeat::Harmless, request, async |channel, request| {
                client(channel).list_host_events(request).await
            })
            .await?;
        events.extend(page.events.into_iter().map(EventView::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(session.output.list(&events)?);
        }
    }
}

fn answer(host: fleet::Host, done: &str, session: &mut Session<'_>) -> Result<(), CommandError> {
    let host = HostView::from(host);
    let text = match session.output.format {
        Format::Name => host.resource(),
        _ => format!("{} {done}", host.resource()),
    };
    Ok(session.output.value(&host, &text)?)
}
