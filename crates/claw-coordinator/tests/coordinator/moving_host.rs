//! Agents that act by themselves: they hold what they are told to, and take part in moves.

use std::collections::BTreeMap;

use claw_identity::ClientIdentity;
use claw_proto::node::v1 as node;
use claw_proto::node::v1::command::Command;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::transfer_request::Message as Piece;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fixture::{Agent, Fleet, IMAGE, hello, report, soon};
use crate::snapshots::{listed, status};
use crate::transfers::TransferEnd;

/// How a host of the test behaves; it may be changed while it runs.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// Takes part in transfers and fetches; otherwise refuses them in these words.
    pub(crate) refuses: Option<&'static str>,
    /// Reports what it holds paused, with a snapshot.
    pub(crate) pauses: bool,
    /// What it says of an instance that it is to bring up.
    pub(crate) starts: Starts,
    /// Takes a repository from off-site.
    pub(crate) fetches: bool,
    /// Removes what it is told to.
    pub(crate) removes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Starts {
    Well,
    Never,
    Refused,
}

impl Default for Manner {
    fn default() -> Self {
        Self { refuses: None, pauses: true, starts: Starts::Well, fetches: true, removes: true }
    }
}

/// A host whose agent acts by itself.
pub(crate) struct Host {
    pub(crate) identity: ClientIdentity,
    pub(crate) name: &'static str,
    pub(crate) manner: watch::Sender<Manner>,
    pub(crate) seen: watch::Receiver<Seen>,
    pub(crate) task: JoinHandle<()>,
}

/// What reached an agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) state: node::HostState,
    pub(crate) generation: u64,
    pub(crate) commands: Vec<Command>,
    /// Bytes that came through transfers.
    pub(crate) received: usize,
}

impl Host {
    pub(crate) fn change(&self, change: impl FnOnce(&mut Manner)) {
        self.manner.send_modify(change);
    }

    pub(crate) async fn until(&self, what: impl FnMut(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.clone();
        soon(seen.wait_for(what)).await.unwrap().clone()
    }

    pub(crate) fn has(&self, instance: &str) -> Option<node::InstanceAssignment> {
        let state = &self.seen.borrow().state;
        state.instances.iter().find(|wanted| wanted.name == instance).cloned()
    }

    pub(crate) fn leave(&self) {
        self.task.abort();
    }
}

pub(crate) async fn join(fleet: &Fleet, name: &'static str) -> Host {
    let identity = fleet.join(name).await;
    start(fleet, name, identity, Manner::default()).await
}

pub(crate) async fn start(
    fleet: &Fleet,
    name: &'static str,
    identity: ClientIdentity,
    manner: Manner,
) -> Host {
    let agent = Agent::connect(fleet, &identity, hello(name, "boot-1")).await;
    let (manner, manners) = watch::channel(manner);
    let (seeing, seen) = watch::channel(Seen::default());
    let channel = fleet.channel_as(&identity).await;
    let acting = Acting { agent, channel, manners, seeing, held: BTreeMap::new() };
    let task = tokio::spawn(acting.run());
    Host { identity, name, manner, seen, task }
}

struct Acting {
    agent: Agent,
    channel: tonic::transport::Channel,
    manners: watch::Receiver<Manner>,
    seeing: watch::Sender<Seen>,
    /// Reports of what it holds, by name.
    held: BTreeMap<String, node::InstanceReport>,
}

impl Acting {
    async fn run(mut self) {
        let mut stamp = None;
        loop {
            let manners = self.manners.clone();
            let mut changed = manners.clone();
            tokio::select! {
                message = self.agent.next_for_ever() => match message {
                    Some(Down::DesiredState(desired)) => {
                        let state: node::HostState =
                            claw_proto::decode(&desired.host_state).unwrap();
                        let generation = desired.stamp.as_ref().unwrap().generation;
                        stamp = desired.stamp;
                        self.seeing.send_modify(|seen| {
                            seen.state = state;
                            seen.generation = generation;
                        });
                        self.act(stamp.as_ref()).await;
                    }
                    Some(Down::Command(command)) => self.obey(command).await,
                    Some(_) => {}
                    None => return,
                },
                _changed = changed.changed() => {
                    self.manners.borrow_and_update();
                    self.act(stamp.as_ref()).await;
                }
            }
        }
    }

    /// Says how everything stands that it is to hold.
    async fn act(&mut self, stamp: Option<&node::Stamp>) {
        let Some(stamp) = stamp else { return };
        let manner = self.manners.borrow().clone();
        let (state, generation) = {
            let seen = self.seeing.borrow();
            (seen.state.clone(), seen.generation)
        };
        for wanted in &state.instances {
            let is_new = wanted.restore.is_some() && !self.held.contains_key(&wanted.name);
            let report = told(wanted, generation, &manner);
            if is_new && manner.starts == Starts::Well {
                let snapshots = vec![listed("pause-1", 50, 3, IMAGE)];
                self.agent.send(status(&wanted.name, snapshots)).await;
            }
            if wanted.paused && manner.pauses {
                let rest = node::SnapshotInfo {
                    cause: node::SnapshotCause::Pause.into(),
                    ..listed("pause-1", 50, generation, IMAGE)
                };
                let all = vec![listed("nightly", 1, 2, IMAGE), rest];
                self.agent.send(status(&wanted.name, all)).await;
            }
            self.held.insert(wanted.name.clone(), report);
        }
        for name in &state.confirm_removal {
            let gone = if manner.removes { node::Phase::Removed } else { node::Phase::Removing };
            self.held.insert(name.clone(), report(name, generation, gone));
        }
        let kept = |name: &String| {
            state.instances.iter().any(|wanted| wanted.name == *name)
                || state.confirm_removal.contains(name)
        };
        self.held.retain(|name, _report| kept(name));
        self.agent.settle(stamp, self.held.values().cloned().collect()).await;
    }

    async fn obey(&self, command: node::Command) {
        let manner = self.manners.borrow().clone();
        let error = match (&command.command, manner.refuses) {
            (_, Some(refuses)) => refuses.to_owned(),
            _ => String::new(),
        };
        let accepted = error.is_empty();
        let result = node::CommandResult { id: command.id, error, payload: None };
        self.agent.send(Up::CommandResult(result)).await;
        let command = command.command.unwrap();
        if accepted {
            match &command {
                Command::SendRepository(send) => self.carry(&send.transfer, 3),
                Command::ReceiveRepository(receive) => self.carry(&receive.transfer, 0),
                Command::FetchRepository(fetch) if manner.fetches => {
                    let all = vec![listed("nightly", 1, 2, IMAGE)];
                    self.agent.send(status(&fetch.instance, all)).await;
                }
                _ => {}
            }
        }
        self.seeing.send_modify(|seen| seen.commands.push(command));
    }

    /// Its end of a transfer: sends some pieces, takes what comes.
    fn carry(&self, transfer: &str, pieces: usize) {
        let (channel, transfer) = (self.channel.clone(), transfer.to_owned());
        let seeing = self.seeing.clone();
        tokio::spawn(async move {
            let mut end = TransferEnd::open(channel, &transfer).await.unwrap();
            for _piece in 0..pieces {
                end.send(Piece::Piece(vec![7; 1000])).await;
            }
            if pieces > 0 {
                end.end("").await;
            }
            if let Ok(all) = end.drain().await {
                seeing.send_modify(|seen| seen.received += all.len());
                if pieces == 0 {
                    end.end("").await;
                }
                // Whoever goes before its last word was read takes it along.
                let _ended = end.next().await;
            }
        });
    }
}

fn told(
    wanted: &node::InstanceAssignment,
    generation: u64,
    manner: &Manner,
) -> node::InstanceReport {
    let active = node::Deployment { image: IMAGE.to_owned(), data_generation: 1 };
    let up = |phase| node::InstanceReport {
        active: Some(active.clone()),
        ..report(&wanted.name, generation, phase)
    };
    let brought = wanted.restore.is_some();
    match (brought, manner.starts) {
        (true, Starts::Never) => report(&wanted.name, generation, node::Phase::Starting),
        (true, Starts::Refused) => node::InstanceReport {
            refused: Some(node::RefusedTarget {
                image: IMAGE.to_owned(),
                restore: wanted.restore.as_ref().unwrap().number,
                problem: "the gateway exited with 1".to_owned(),
                ..Default::default()
            }),
            ..report(&wanted.name, generation, node::Phase::Failed)
        },
        _ if wanted.paused && manner.pauses => up(node::Phase::Paused),
        _ if wanted.paused => up(node::Phase::Applying),
        _ if wanted.running => up(node::Phase::Running),
        _ => up(node::Phase::Stopped),
    }
}

/// The host again, after its agent or the coordinator was restarted.
pub(crate) async fn rejoin(fleet: &Fleet, host: &Host, manner: Manner) -> Host {
    start(fleet, host.name, host.identity.clone(), manner).await
}
