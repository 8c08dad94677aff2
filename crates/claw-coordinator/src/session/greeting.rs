//! The beginning of a session: Hello is checked, the registry asked, Welcome made.

use claw_core::event::Severity;
use claw_core::report::Hello;
use claw_core::time::Timestamp;
use claw_proto::convert::session::hello_from_wire;
use claw_proto::convert::{duration_to_wire, timestamp_to_wire};
use claw_proto::node::v1 as node;
use claw_proto::node::v1::session_request::Message;
use tonic::Status;

use super::{Session, Terms, too_large};
use crate::fleet::Fleet;
use crate::fleet::enrolment::unknown_host;
use crate::fleet::removal::Evidence;
use crate::refusal::{Precondition, Refusal};
use crate::registry::Opened;
use crate::store::audit::{self, Entry};
use crate::store::events::{self, OwnEvent};
use crate::store::hosts::{self, HostRow};
use crate::store::{instances, migrations};

/// The first message, checked against the certificate.
pub(super) async fn receive(session: &mut Session) -> Result<Hello, Status> {
    let deadline = session.terms.hello_deadline;
    let first = tokio::time::timeout(deadline, session.inbound.message())
        .await
        .map_err(|_elapsed| {
            Status::deadline_exceeded(format!("no Hello within {} s", deadline.as_secs()))
        })?
        .map_err(too_large)?;
    let Some(node::SessionRequest { message: Some(Message::Hello(hello)) }) = first else {
        return Err(Refusal::field("hello", "must be the first message").into());
    };
    let hello = hello_from_wire(&hello).map_err(|v| Refusal::Invalid(v.below("hello")))?;
    let identity = &session.peer.identity;
    if hello.host.as_str() != identity.name() {
        let refusal = Refusal::Denied {
            reason: "HOST_MISMATCH",
            description: format!("the certificate is {identity}'s, Hello says {}", hello.host),
        };
        return Err(refusal.into());
    }
    if hello.protocol_version != claw_proto::PROTOCOL_VERSION {
        let description = format!(
            "the agent speaks version {} of the protocol, the coordinator {}",
            hello.protocol_version,
            claw_proto::PROTOCOL_VERSION
        );
        let subject = format!("hosts/{}", hello.host);
        let reason = Precondition::ProtocolVersion;
        return Err(Refusal::precondition(reason, subject, description).into());
    }
    Ok(hello)
}

/// Lets the session in, unless the host is unknown or a clone.
pub(super) async fn open(fleet: &Fleet, hello: &Hello) -> Result<Opened, Refusal> {
    let host = fleet.store.read(|connection, _keys| hosts::find(connection, &hello.host))?;
    if host.is_none() {
        return Err(unknown_host(&hello.host));
    }
    let cloned = match fleet.registry.open(hello, fleet.clock.now()) {
        Ok(opened) => return Ok(opened),
        Err(cloned) => cloned,
    };
    if cloned.is_new {
        tracing::error!(host = %hello.host, "{}", cloned.message);
        report_clone(fleet, hello, cloned.message.clone()).await?;
    }
    let subject = format!("hosts/{}", hello.host);
    Err(Refusal::precondition(Precondition::HostCloned, subject, cloned.message))
}

async fn report_clone(fleet: &Fleet, hello: &Hello, message: String) -> Result<(), Refusal> {
    let (host, now) = (hello.host.clone(), fleet.clock.now());
    fleet
        .store
        .write(move |connection, _keys| {
            let entry = Entry {
                principal: format!("agent/{host}"),
                source: String::new(),
                method: "claw.node.v1.NodeService/Session".to_owned(),
                resource: format!("hosts/{host}"),
                summary: message.clone(),
            };
            audit::append(connection, now, &entry)?;
            let event = OwnEvent { kind: "clone_alarm", severity: Severity::Error, message };
            events::append_own(connection, &host, now, &event)
        })
        .await
}

/// Brings the store in line with what the agent has; returns the first event that is wanted.
///
/// An agent that comes back as it went costs one read.
pub(super) async fn prepare(fleet: &Fleet, hello: &Hello) -> Result<u64, Refusal> {
    let (row, is_removing) = fleet.store.read(|connection, _keys| {
        let row = hosts::load(connection, &hello.host)?;
        let is_removing = instances::has_deleted(connection, &hello.host)?
            || !migrations::departed(connection, &hello.host)?.is_empty();
        Ok((row, is_removing))
    })?;
    if let Some(persisted) = hello.persisted.as_ref().filter(|stamp| **stamp != row.stamp) {
        fleet.outrank(&hello.host, persisted).await?;
    }
    if is_removing {
        let evidence = Evidence::Inventory(hello.inventory.clone());
        fleet.settle_removals(&hello.host, hello.persisted, evidence).await?;
    }
    resume_event(fleet, hello, &row).await
}

/// Where events go on. Writes only when the agent's journal is another one, or has lost some.
async fn resume_event(fleet: &Fleet, hello: &Hello, row: &HostRow) -> Result<u64, Refusal> {
    let wanted = row.next_event;
    let is_new_journal = hello.next_event < wanted;
    if !is_new_journal && hello.oldest_event <= wanted {
        return Ok(wanted);
    }
    let next = hello.oldest_event.max(1);
    let event = if is_new_journal {
        let message = format!("the journal of events begins anew at {next}, not at {wanted}");
        OwnEvent { kind: "events_restarted", severity: Severity::Warning, message }
    } else {
        events::lost(wanted, next)
    };
    let (host, now) = (hello.host.clone(), fleet.clock.now());
    let stream = if is_new_journal { row.event_stream.saturating_add(1) } else { row.event_stream };
    fleet
        .store
        .write(move |connection, _keys| {
            hosts::set_events(connection, &host, stream, next)?;
            events::append_own(connection, &host, now, &event)
        })
        .await?;
    Ok(next)
}

pub(super) fn welcome(id: &str, terms: &Terms, now: Timestamp, resume: u64) -> node::Welcome {
    node::Welcome {
        session: id.to_owned(),
        heartbeat_interval: Some(duration_to_wire(terms.heartbeat_interval)),
        server_time: Some(timestamp_to_wire(now)),
        resume_event: resume,
    }
}
