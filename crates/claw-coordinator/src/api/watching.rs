//! `WatchInstances`: what there is, then what changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use claw_core::name::{HostName, InstanceName};
use claw_proto::convert::name::{instance_resource, parse_host_name, parse_instance_name};
use claw_proto::convert::violation::Violations;
use claw_proto::fleet::v1::{self as fleet, WatchKind};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::instances::with_hosts;
use crate::auth::{Caller, Closing};
use crate::fleet::Fleet;
use crate::limits::jittered;
use crate::page::Page;
use crate::refusal::Refusal;
use crate::status::unavailable;
use crate::store::{hosts, instances};
use crate::watch::Watcher;

/// Most names in one request.
const MAX_NAMES: usize = 100;
/// Instances that are read at once.
const BATCH: usize = 200;
/// Messages that wait for a slow client; what changes meanwhile is coalesced.
const QUEUE: usize = 16;
/// When to come back after a shutdown or when there are too many watchers.
const RETRY: Duration = Duration::from_secs(2);

type Outbound = mpsc::Sender<Result<fleet::WatchInstancesResponse, Status>>;
type Stream = ReceiverStream<Result<fleet::WatchInstancesResponse, Status>>;

/// One watch under way.
struct Watching {
    fleet: Fleet,
    watcher: Arc<Watcher>,
    host: Option<HostName>,
    outbound: Outbound,
    /// What the client has been told of, with the uid.
    known: BTreeMap<InstanceName, String>,
}

/// Why a watch stops before its client does.
enum Stop {
    ClientGone,
    With(Status),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::With(refusal.into())
    }
}

/// Checks the request and begins.
pub(super) async fn start(
    fleet: &Fleet,
    caller: &Caller,
    request: &fleet::WatchInstancesRequest,
) -> Result<Stream, Refusal> {
    let (names, host) = parse(request)?;
    if let Some(names) = &names {
        let names = names.clone();
        fleet
            .store
            .read_long(move |connection, _keys| {
                names.iter().try_for_each(|name| instances::load(connection, name).map(|_row| ()))
            })
            .await?;
    }
    // Before the first read, so that no change falls between.
    let watcher = fleet.hub.subscribe(names).ok_or_else(|| Refusal::Unavailable {
        description: "too many watches".to_owned(),
        retry: jittered(RETRY),
    })?;
    let (outbound, stream) = mpsc::channel(QUEUE);
    let watching = Watching {
        fleet: fleet.clone(),
        watcher,
        host,
        outbound: outbound.clone(),
        known: BTreeMap::new(),
    };
    let mut closing = caller.closing.clone();
    tokio::spawn(async move {
        let status = tokio::select! {
            stop = watching.run() => match stop {
                Stop::ClientGone => return,
                Stop::With(status) => status,
            },
            // An error means that the connection is gone already.
            _closing = closing.wait_for(|closing| *closing != Closing::No) => {
                unavailable("the connection is about to end; watch again", jittered(RETRY))
            }
            () = outbound.closed() => return,
        };
        // The client may be gone.
        let _heard = outbound.send_timeout(Err(status), RETRY).await;
    });
    Ok(ReceiverStream::new(stream))
}

fn parse(
    request: &fleet::WatchInstancesRequest,
) -> Result<(Option<BTreeSet<InstanceName>>, Option<HostName>), Refusal> {
    let mut violations = Violations::default();
    if request.names.len() > MAX_NAMES {
        let text = format!("must have at most {MAX_NAMES} entries, has {}", request.names.len());
        violations.push("names", text);
    }
    let mut names = BTreeSet::new();
    for (index, name) in request.names.iter().take(MAX_NAMES).enumerate() {
        match parse_instance_name(&format!("names[{index}]"), name) {
            Ok(name) => {
                names.insert(name);
            }
            Err(violation) => violations.0.push(violation),
        }
    }
    let host = if request.host.is_empty() {
        None
    } else {
        parse_host_name("host", &request.host)
            .map_err(|violation| violations.0.push(violation))
            .ok()
    };
    violations.into_result()?;
    Ok(((!names.is_empty()).then_some(names), host))
}

impl Watching {
    async fn run(mut self) -> Stop {
        match self.watch().await {
            Ok(never) => match never {},
            Err(stop) => stop,
        }
    }

    async fn watch(&mut self) -> Result<std::convert::Infallible, Stop> {
        self.send_current().await?;
        self.send(WatchKind::Synced, None).await?;
        loop {
            let names: Vec<InstanceName> = self.watcher.next().await.into_iter().collect();
            for chunk in names.chunks(BATCH) {
                self.send_changed(chunk.to_vec()).await?;
            }
        }
    }

    /// Everything that exists, page by page.
    async fn send_current(&mut self) -> Result<(), Stop> {
        let mut after = None;
        loop {
            let page = Page::of_size(BATCH, after.take());
            let host = self.host.clone();
            let rows = self
                .fleet
                .store
                .read_long(move |connection, _keys| {
                    let (rows, next) = instances::list(connection, host.as_ref(), &page)?;
                    Ok((with_hosts(connection, rows)?, !next.is_empty()))
                })
                .await;
            let (rows, more) = rows?;
            after = rows.last().map(|(row, _host)| row.name.to_string());
            for (row, host) in rows {
                if !self.watcher.wants(&row.name) {
                    continue;
                }
                let now = self.fleet.clock.now();
                let instance = crate::view::instance(&row, &host, &self.fleet.registry, now);
                self.known.insert(row.name, row.uid);
                self.send(WatchKind::Current, Some(instance)).await?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    async fn send_changed(&mut self, names: Vec<InstanceName>) -> Result<(), Stop> {
        let found = self
            .fleet
            .store
            .read_long(move |connection, _keys| {
                let mut found = Vec::with_capacity(names.len());
                for name in names {
                    let row = instances::find(connection, &name)?;
                    let host = match &row {
                        Some(row) => Some(hosts::load(connection, &row.host)?),
                        None => None,
                    };
                    found.push((name, row.zip(host)));
                }
                Ok(found)
            })
            .await?;
        for (name, found) in found {
            let found = found
                .filter(|(row, _host)| self.host.as_ref().is_none_or(|host| *host == row.host));
            let uid = found.as_ref().map(|(row, _host)| &row.uid);
            if let Some(known) = self.known.get(&name).cloned()
                && uid != Some(&known)
            {
                self.known.remove(&name);
                let gone = fleet::Instance {
                    name: instance_resource(&name),
                    uid: known,
                    ..fleet::Instance::default()
                };
                self.send(WatchKind::Deleted, Some(gone)).await?;
            }
            if let Some((row, host)) = found {
                let now = self.fleet.clock.now();
                let instance = crate::view::instance(&row, &host, &self.fleet.registry, now);
                self.known.insert(row.name, row.uid);
                self.send(WatchKind::Changed, Some(instance)).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, kind: WatchKind, instance: Option<fleet::Instance>) -> Result<(), Stop> {
        let message = fleet::WatchInstancesResponse { kind: kind.into(), instance };
        self.outbound.send(Ok(message)).await.map_err(|_gone| Stop::ClientGone)
    }
}
