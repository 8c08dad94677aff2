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
    Command, DesiredState, EventAck, GoAway, Observe, SessionResponse, command,
};
use clawd::join::{JoinError, JoinRequest, join};
use clawd::joined;
use coordinator::{Coordinator, until};
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
