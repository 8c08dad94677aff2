//! The session against a coordinator in this process: real TLS, real HTTP/2, a scripted server.

mod coordinator;
mod support;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use claw_core::event::EventKind;
use claw_identity::{IdentityDir, JoinToken, TokenId};
use claw_proto::convert::session::stamp_to_wire;
use claw_proto::node::v1::session_request::Message as Up;
use claw_proto::node::v1::session_response::Message as Down;
use claw_proto::node::v1::{
    BackupReport, Command, DesiredState, DiscardRepository, EventAck, ExportSnapshot,
    FetchRepository, GoAway, ImportArchive, Observe, ReceiveRepository, RepositoryEscrow,
    SendRepository, SessionResponse, TakeSnapshot, command,
};
use clawd::join::{JoinError, JoinRequest, join};
use clawd::joined;
use coordinator::transfer::{Heard, UNKNOWN};
use coordinator::{Coordinator, Host, Scripted, until};
use support::{name, offer, run, spec, state};

fn desired(generation: u64) -> SessionResponse {
    let offer = offer(1, generation, &state(&[("a", spec())]));
    let message =
        DesiredState { stamp: Some(stamp_to_wire(&offer.stamp)), host_state: offer.bytes };
    SessionResponse { message: Some(Down::DesiredState(message)) }
}

#[test]
fn a_state_is_acknowledged_carried_out_and_reported() {
    run(async {
        let coordinator = Coordinator::start().await;
        let host = coordinator.host("web-1");
        let mut session = coordinator.session().await;
        let hello = session.hello().await;
        assert_eq!((hello.host.as_str(), hello.protocol_version), ("web-1", 1));
        assert_eq!(hello.docker_version, "20.10.24-fake");
        session.welcome(1).await;
        session.send(desired(3)).await;
        let status = session.status(|status| status.persisted.is_some()).await;
        assert_eq!(status.persisted.unwrap().generation, 3);
        let running = i32::from(claw_proto::node::v1::Phase::Running);
        let status = session
            .status(|status| status.instances.iter().any(|report| report.phase == running))
            .await;
        assert_eq!(status.last_result_generation, 3);
        host.world.machine.runtime.end(&name("a"), 137, true);
        let oom = |status: &claw_proto::node::v1::Status| {
            status.instances.iter().any(|report| report.last_exit.is_some_and(|exit| exit.oom))
        };
        session.status(oom).await;
    });
}

#[test]
fn events_resume_without_gaps_after_a_reconnect() {
    run(async {
        let coordinator = Coordinator::start().await;
        let host = coordinator.host("web-1");
        let mut session = coordinator.session().await;
        session.hello().await;
        session.welcome(1).await;
        session.send(desired(1)).await;
        let mut seen = Vec::new();
        while !seen.iter().any(|(_, kind)| kind == "healthy") {
            if let Up::Events(batch) = session.message().await {
                seen.extend(batch.events.into_iter().map(|event| (event.sequence, event.kind)));
            }
        }
        let last = seen.last().unwrap().0;
        assert_eq!(
            seen.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(),
            (1..=last).collect::<Vec<_>>()
        );
        let ack = SessionResponse { message: Some(Down::EventAck(EventAck { sequence: last })) };
        session.send(ack).await;
        session.end().await;

        host.world.machine.runtime.end(&name("a"), 1, false);
        let mut session = coordinator.session().await;
        let hello = session.hello().await;
        assert!(hello.persisted.is_some() && hello.inventory == ["a"]);
        session.welcome(last + 1).await;
        loop {
            if let Up::Events(batch) = session.message().await {
                assert_eq!(batch.events.first().unwrap().sequence, last + 1);
                break;
            }
        }
    });
}

#[test]
fn commands_are_answered_and_heartbeats_come_at_the_interval_asked_for() {
    run(async {
        let coordinator = Coordinator::start().await;
        let _host = coordinator.host("web-1");
        let mut session = coordinator.session().await;
        session.hello().await;
        session.welcome(1).await;
        let observe = |id: &str, instance: &str| SessionResponse {
            message: Some(Down::Command(Command {
                id: id.to_owned(),
                deadline: None,
                command: Some(command::Command::Observe(Observe { instance: instance.to_owned() })),
            })),
        };
        session.send(observe("1", "")).await;
        session.send(observe("2", "nobody")).await;
        session.send(observe("3", "NOT A NAME")).await;
        let (mut answers, mut heartbeats) = (std::collections::BTreeMap::new(), 0);
        while answers.len() < 3 || heartbeats < 2 {
            match session.message().await {
                Up::CommandResult(result) => {
                    answers.insert(result.id, result.error);
                }
                Up::Heartbeat(heartbeat) => {
                    assert_eq!(heartbeat.resources.unwrap().cpu_count, 4);
                    heartbeats += 1;
                }
                _ => {}
            }
        }
        assert_eq!(answers["1"], "");
        assert!(answers["2"].contains("nobody"), "{answers:?}");
        assert!(answers["3"].contains("invalid"), "{answers:?}");
    });
}

#[test]
fn going_away_is_honoured_and_a_cut_is_survived() {
    run(async {
        let coordinator = Coordinator::start().await;
        let host = coordinator.host("web-1");
        let mut session = coordinator.session().await;
        session.hello().await;
        session.welcome(1).await;
        let before = host.clock_now();
        let away = GoAway {
            reason: "maintenance".to_owned(),
            retry_after: Some(Duration::from_secs(30).try_into().unwrap()),
        };
        session.send(SessionResponse { message: Some(Down::GoAway(away)) }).await;
        until("away", || host.said().contains("maintenance")).await;
        host.pass(Duration::from_secs(29));
        tokio::task::yield_now().await;
        assert!(host.said().contains("maintenance"));
        host.pass(Duration::from_secs(8));
        let mut session = coordinator.session().await;
        session.hello().await;
        let waited = host.clock_now().since(before);
        assert!(waited >= Duration::from_secs(30), "{waited:?}");
        session.welcome(1).await;
        session.send(desired(1)).await;
        session.status(|status| status.persisted.is_some()).await;
        drop(session);
        until("away", || {
            !host.said().contains("connected to the coordinator") || host.said().contains("not")
        })
        .await;
        host.pass(Duration::from_secs(2));
        let mut session = coordinator.session().await;
        assert!(session.hello().await.persisted.is_some());
    });
}

#[test]
fn an_expired_certificate_says_what_to_do_and_a_renewal_keeps_the_session() {
    run(async {
        let coordinator = Coordinator::start().await;
        let host = coordinator.host("web-1");
        let mut session = coordinator.session().await;
        session.hello().await;
        session.welcome(1).await;
        session.status(|_| true).await;
        // The wall clock of the agent reaches a third of the certificate's life.
        let directory =
            IdentityDir::open(joined::identity_dir(host.world.directory.path())).unwrap();
        let first = directory.load().unwrap().unwrap();
        host.jump_to_renewal(&first);
        until("renewed", || {
            let now = directory.load().unwrap().unwrap();
            now.peer().serial != first.peer().serial && now.key().pin() != first.key().pin()
        })
        .await;
        until("told", || host.running.count(EventKind::CertificateRenewed) == 1).await;
        session.send(desired(1)).await;
        session.status(|status| status.persisted.is_some()).await;
        drop(session);

        host.jump_past_expiry();
        until("said", || host.said().contains("clawd join")).await;
        assert!(host.world.machine.runtime.is_running(&name("a")), "and goes on working");
    });
}

#[test]
fn joining_sends_the_secret_only_to_the_pinned_authority() {
    run(async {
        let coordinator = Coordinator::start().await;
        let other = Coordinator::start().await;
        let data = tempfile::tempdir().unwrap();
        let token = |pinned: &Coordinator| {
            JoinToken::generate(TokenId::parse("t1").unwrap(), pinned.pin(), &mut rand::rng())
        };
        let request = |token: JoinToken| JoinRequest {
            coordinator: coordinator.address(),
            token,
            host: claw_core::name::HostName::parse("web-2").unwrap(),
            data_dir: data.path().join("clawd"),
        };
        let tls = coordinator::tls();
        let error = join(&tls, &request(token(&other))).await.unwrap_err();
        assert!(matches!(error, JoinError::Dial(_)), "{error:?}");
        assert!(clawd::logging::chain(&error).contains("not sent"), "{error}");
        assert_eq!(coordinator.enrolments(), 0, "the secret was not sent");

        coordinator.refuse_enrolments(true);
        let error = join(&tls, &request(token(&coordinator))).await.unwrap_err();
        assert!(matches!(error, JoinError::Refused { .. }), "{error:?}");
        assert!(error.to_string().contains("hint: "), "{error}");
        coordinator.refuse_enrolments(false);

        let identity = join(&tls, &request(token(&coordinator))).await.unwrap();
        assert_eq!(identity.peer().identity.name(), "web-2");
        assert!(identity.expires() > SystemTime::UNIX_EPOCH);
        let recorded = joined::coordinator(&data.path().join("clawd")).unwrap();
        assert_eq!(recorded, coordinator.address());
        let loaded = IdentityDir::open(joined::identity_dir(&data.path().join("clawd"))).unwrap();
        assert_eq!(loaded.load().unwrap().unwrap().peer().serial, identity.peer().serial);
        assert!(Arc::new(identity).bundle().contains(&coordinator.pin()));
    });
}

/// A host with an instance "a" that runs.
async fn serving(coordinator: &Coordinator) -> (Host, Talk) {
    let host = coordinator.host("web-1");
    let mut session = coordinator.session().await;
    session.hello().await;
    session.welcome(1).await;
    session.send(desired(1)).await;
    let running = i32::from(claw_proto::node::v1::Phase::Running);
    let runs = |status: &claw_proto::node::v1::Status| {
        status.instances.iter().any(|report| report.phase == running)
    };
    session.status(runs).await;
    // Its snapshots are known from here on.
    let talk = Talk { session, reports: std::collections::BTreeMap::new() };
    let looked = || host.running.agent.roster.held(&name("a")).snapshots.is_some();
    until("looked", looked).await;
    (host, talk)
}

/// A session, and the newest that it said of snapshots.
struct Talk {
    session: Scripted,
    reports: std::collections::BTreeMap<String, BackupReport>,
}

impl Talk {
    async fn message(&mut self) -> Up {
        let message = self.session.message().await;
        if let Up::BackupStatus(status) = &message {
            let report = status.report.clone().unwrap_or_default();
            self.reports.insert(status.instance.clone(), report);
        }
        message
    }

    /// Asks, and waits for the answer: empty when it was accepted.
    async fn command(&mut self, command: command::Command) -> String {
        let id = "1".to_owned();
        let command = Command { id, deadline: None, command: Some(command) };
        self.session.send(SessionResponse { message: Some(Down::Command(command)) }).await;
        loop {
            if let Up::CommandResult(result) = self.message().await {
                return result.error;
            }
        }
    }

    /// How the snapshots of an instance stand, once they fit.
    async fn listed(
        &mut self,
        instance: &str,
        fits: impl Fn(&BackupReport) -> bool,
    ) -> BackupReport {
        loop {
            if let Some(report) = self.reports.get(instance).filter(|report| fits(report)) {
                return report.clone();
            }
            self.message().await;
        }
    }

    async fn take(&mut self, snapshot: &str) {
        let take = TakeSnapshot { instance: "a".to_owned(), name: snapshot.to_owned() };
        assert_eq!(self.command(command::Command::TakeSnapshot(take)).await, "");
    }

    async fn taken(&mut self, snapshot: &str) {
        self.take(snapshot).await;
        let is_there =
            |report: &BackupReport| report.snapshots.iter().any(|known| known.name == snapshot);
        self.listed("a", is_there).await;
    }
}

fn export(snapshot: &str, transfer: &str) -> command::Command {
    let (name, transfer) = (snapshot.to_owned(), transfer.to_owned());
    command::Command::ExportSnapshot(ExportSnapshot { instance: "a".to_owned(), name, transfer })
}

fn import(snapshot: &str, transfer: &str) -> command::Command {
    let (name, transfer) = (snapshot.to_owned(), transfer.to_owned());
    command::Command::ImportArchive(ImportArchive { instance: "a".to_owned(), name, transfer })
}

#[test]
fn an_archive_goes_away_and_comes_back_through_transfers() {
    run(async {
        let coordinator = Coordinator::start().await;
        let (_host, mut session) = serving(&coordinator).await;
        session.taken("first").await;
        assert_eq!(session.command(export("first", "t-1")).await, "");
        let mut transfer = coordinator.transfer().await;
        assert_eq!(transfer.id, "t-1");
        let (archive, last) = transfer.hear_all().await;
        assert_eq!(last, Heard::End(String::new()));
        assert!(!archive.is_empty());

        assert_eq!(session.command(import("second", "t-2")).await, "");
        let mut transfer = coordinator.transfer().await;
        for piece in archive.chunks(100) {
            transfer.send(piece).await;
        }
        transfer.end("").await;
        assert_eq!(transfer.hear_all().await, (Vec::new(), Heard::End(String::new())));
        session.listed("a", |report| report.snapshots.len() == 2).await;
        assert_eq!(
            session.command(import("second", "t-3")).await,
            "there is a snapshot second already"
        );
    });
}

#[test]
fn both_ends_of_a_transfer_hear_why_it_broke() {
    run(async {
        let coordinator = Coordinator::start().await;
        let (host, mut session) = serving(&coordinator).await;
        session.taken("first").await;
        // The other end gave up, went away, or never was.
        assert_eq!(session.command(import("x", "t-1")).await, "");
        let mut transfer = coordinator.transfer().await;
        transfer.send(b"half of").await;
        transfer.end("the caller has gone").await;
        let (_, last) = transfer.hear_all().await;
        let Heard::End(why) = last else { panic!("{last:?}") };
        assert!(why.contains("the caller has gone"), "{why}");
        assert_eq!(session.command(import("y", "t-2")).await, "");
        let transfer = coordinator.transfer().await;
        transfer.fail(tonic::Status::aborted("the other end went away")).await;
        assert_eq!(session.command(import("z", UNKNOWN)).await, "");
        // This end failed.
        host.world.mishaps().named("export-snapshot", 1, clawd::fakes::Mishap::FailsBefore);
        assert_eq!(session.command(export("first", "t-3")).await, "");
        let mut transfer = coordinator.transfer().await;
        let (_, last) = transfer.hear_all().await;
        let Heard::End(why) = last else { panic!("{last:?}") };
        assert!(why.contains("told to fail"), "{why}");
        // And it goes on.
        session.taken("second").await;
    });
}

#[test]
fn a_transfer_in_which_nothing_moves_is_broken_off() {
    run(async {
        let coordinator = Coordinator::start().await;
        let (host, mut session) = serving(&coordinator).await;
        session.taken("first").await;
        assert_eq!(session.command(import("x", "t-1")).await, "");
        let mut transfer = coordinator.transfer().await;
        transfer.send(b"half of").await;
        host.pass(Duration::from_secs(599));
        session.take("waits").await;
        host.pass(Duration::from_secs(10));
        assert!(matches!(transfer.hear_all().await, (_, Heard::Gone | Heard::End(_))));
        session.taken("second").await;
    });
}

#[test]
fn a_transfer_outlives_its_session_and_an_agent_that_is_killed_breaks_it() {
    run(async {
        let coordinator = Coordinator::start().await;
        let (host, mut session) = serving(&coordinator).await;
        session.taken("first").await;
        assert_eq!(session.command(export("first", "t-1")).await, "");
        let (archive, _) = coordinator.transfer().await.hear_all().await;
        assert_eq!(session.command(import("second", "t-2")).await, "");
        let mut transfer = coordinator.transfer().await;
        let (half, rest) = archive.split_at(archive.len() / 2);
        transfer.send(half).await;
        session.session.end().await;
        let mut session = coordinator.session().await;
        session.hello().await;
        session.welcome(1).await;
        let mut session = Talk { session, reports: std::collections::BTreeMap::new() };
        transfer.send(rest).await;
        transfer.end("").await;
        assert_eq!(transfer.hear_all().await, (Vec::new(), Heard::End(String::new())));
        session.listed("a", |report| report.snapshots.len() == 2).await;

        assert_eq!(session.command(import("third", "t-3")).await, "");
        let mut transfer = coordinator.transfer().await;
        transfer.send(half).await;
        drop(session);
        host.kill().await;
        let gave_up = Heard::End("the agent gave it up".to_owned());
        let last = transfer.hear().await;
        assert!(last == Heard::Gone || last == gave_up, "{last:?}");
    });
}

#[test]
fn repositories_come_for_instances_that_are_not_here_yet() {
    run(async {
        let coordinator = Coordinator::start().await;
        let (_host, mut session) = serving(&coordinator).await;
        session.taken("first").await;
        let keys = |instance: &str| RepositoryEscrow {
            instance: instance.to_owned(),
            secret: "0".repeat(64),
            recovery: "recovery".to_owned(),
        };
        let receive = |instance: &str, keys: Option<RepositoryEscrow>| {
            let (instance, transfer) = (instance.to_owned(), "t-1".to_owned());
            command::Command::ReceiveRepository(ReceiveRepository { instance, transfer, keys })
        };
        let fetch = FetchRepository {
            instance: "b".to_owned(),
            storage: None,
            path: "fleet/web-9/b/0123456789abcdef".to_owned(),
            keys: Some(keys("b")),
        };
        let refused = [
            (receive("b", None), "the repository's keys are missing"),
            (receive("b", Some(keys("a"))), "the repository's keys are another instance's"),
            (
                receive("a", Some(keys("a"))),
                "instance a has a repository on this host, which stays",
            ),
            (command::Command::FetchRepository(fetch.clone()), "this host has no off-site storage"),
            (
                command::Command::DiscardRepository(DiscardRepository { instance: "a".to_owned() }),
                "instance a is on this host, and its repository stays",
            ),
            (export("first", ""), "the transfer's id is invalid"),
        ];
        for (refuse, why) in refused {
            assert_eq!(session.command(refuse).await, why);
        }
        let discard = DiscardRepository { instance: "b".to_owned() };
        let discard = command::Command::DiscardRepository(discard);
        assert_eq!(session.command(discard).await, "");

        // From one host to itself, under another name.
        let send = SendRepository { instance: "a".to_owned(), transfer: "t-2".to_owned() };
        assert_eq!(session.command(command::Command::SendRepository(send)).await, "");
        let mut from = coordinator.transfer().await;
        assert!(matches!(from.hear().await, Heard::Piece(_)));
        from.end("the other host is full").await;
        let (_, last) = from.hear_all().await;
        assert!(matches!(&last, Heard::End(why) if why.contains("full")), "{last:?}");

        // What fails is told of an instance that is not here.
        assert_eq!(session.command(receive("b", Some(keys("b")))).await, "");
        let to = coordinator.transfer().await;
        to.end("the other host is gone").await;
        let report = session.listed("b", |report| !report.problem.is_empty()).await;
        assert!(report.problem.contains("the other host is gone"), "{}", report.problem);
        assert_eq!(report.snapshots.len(), 0);
    });
}
