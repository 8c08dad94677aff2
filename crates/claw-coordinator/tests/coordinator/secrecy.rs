//! Secrets pass through the coordinator and leave no trace in its log, whatever the level.

use std::io;
use std::sync::{Arc, Mutex};

use claw_proto::fleet::v1::{self as fleet};
use claw_proto::node::v1::enrolment_service_client::EnrolmentServiceClient;
use tracing_subscriber::fmt::MakeWriter;

use crate::fixture::{Agent, Fleet, create_request, enrol_request, hello};

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn no_secret_is_logged() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let fleet = Fleet::start().await;
    let identity = fleet.join("a").await;
    let mut operator = fleet.operator().await;
    let join_token = operator.join_token("a").await.unwrap();
    let mut request = create_request("demo", "a");
    let spec = request.instance.as_mut().unwrap().spec.as_mut().unwrap();
    spec.secrets.insert("KEY".to_owned(), "hunter2-hunter2".to_owned());
    operator.instances.create_instance(request.clone()).await.unwrap();
    operator.instances.create_instance(request).await.unwrap_err();
    let fetch = fleet::FetchGatewayTokenRequest { name: "instances/demo".to_owned() };
    let token = operator.instances.fetch_gateway_token(fetch).await.unwrap().into_inner().token;
    let mut agent = Agent::connect(&fleet, &identity, hello("a", "boot-1")).await;
    let (_stamp, state) = agent.desired().await;
    assert_eq!(state.instances[0].secrets["KEY"], "hunter2-hunter2");
    // A refused enrolment is the one that an implementation is tempted to log.
    let key = claw_identity::HostKey::generate().unwrap();
    let mut wrong = enrol_request(&join_token, "a", &key);
    let secret = wrong.token_secret.clone();
    wrong.host = "b".to_owned();
    let mut enrolment = EnrolmentServiceClient::new(fleet.stranger().await);
    enrolment.enrol(wrong).await.unwrap_err();
    fleet.coordinator.shutdown().await;

    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(log.contains("a host connected"), "the log is there");
    let text = join_token.split('.').nth(2).unwrap();
    let bytes = format!("{:?}", &secret[..8]);
    for secret in ["hunter2", &token, text, bytes.trim_end_matches(']')] {
        assert!(!log.contains(secret), "{secret} was logged");
    }
}
