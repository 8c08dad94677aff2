//! The program itself: init, issue, configuration, serving, SIGTERM; reflection and health.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use claw_identity::{ClientIdentity, HostKey, Role};
use claw_proto::fleet::v1::{self as fleet};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use tonic_reflection::pb::v1alpha;

use crate::fixture::{Clients, Fleet, client_tls, connect, soon};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_claw-coordinator"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn output(arguments: &[&str]) -> (i32, String, String) {
    let output = soon(program().args(arguments).output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn load(directory: &Path) -> ClientIdentity {
    let key = HostKey::load(&directory.join("key.pem")).unwrap();
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    ClientIdentity::from_pem(Arc::new(key), &read("cert.pem"), &read("ca.pem")).unwrap()
}

/// What systemd would hear next.
async fn notification(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = soon(socket.recv(&mut buffer)).await.unwrap();
    String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
}

#[tokio::test]
async fn from_nothing_to_serving_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data").display().to_string();
    let out = directory.path().join("alice").display().to_string();
    let init = ["init", "--data-dir", &data, "--name", "localhost", "--operator", "alice"];
    let init: Vec<&str> = init.into_iter().chain(["--out", &out]).collect();
    let (code, said, complained) = output(&init).await;
    assert_eq!((code, complained.as_str()), (0, ""));
    assert!(said.contains("operator/alice"), "{said}");
    let (code, _said, complained) = output(&init).await;
    assert_eq!(code, 1);
    assert!(complained.contains("holds a fleet already; nothing was changed"), "{complained}");

    let viewer = directory.path().join("eve").display().to_string();
    let issue = ["issue", "--data-dir", &data, "--role", "viewer", "--name", "eve"];
    let issue: Vec<&str> = issue.into_iter().chain(["--out", &viewer, "--days", "1"]).collect();
    assert_eq!(output(&issue).await.0, 0);
    let eve = load(Path::new(&viewer));
    assert_eq!(eve.peer().identity.role(), Role::Viewer);

    let config = directory.path().join("coordinator.toml");
    std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata_dir = \"{data}\"\n")).unwrap();
    let notified = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    let mut serving = program()
        .arg("--config")
        .arg(&config)
        .env("NOTIFY_SOCKET", directory.path().join("notify"))
        .env("WATCHDOG_USEC", "200000")
        .spawn()
        .unwrap();
    assert_eq!(notification(&notified).await, "READY=1");
    assert_eq!(notification(&notified).await, "WATCHDOG=1");
    let mut lines = BufReader::new(serving.stderr.take().unwrap()).lines();
    let address = soon(async {
        loop {
            let line = lines.next_line().await.unwrap().expect("it serves");
            if let Some((_, address)) = line.split_once("address=") {
                return address.parse().unwrap();
            }
        }
    })
    .await;
    let alice = load(Path::new(&out));
    let mut operator = Clients::new(connect(address, client_tls(&alice)).await.unwrap());
    operator.create_host("a").await.unwrap();
    let entries = operator.audit("").await;
    assert_eq!(entries.len(), 3, "issue twice, create once: {entries:?}");

    let pid = serving.id().unwrap().to_string();
    soon(Command::new("kill").args(["-TERM", &pid]).status()).await.unwrap();
    while notification(&notified).await != "STOPPING=1" {}
    let ended = soon(serving.wait()).await.unwrap();
    assert!(ended.success(), "{ended:?}");
}

#[tokio::test]
async fn the_configuration_is_checked_and_printed() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("coordinator.toml");
    let path = config.display().to_string();
    std::fs::write(&config, "listen = \"nowhere\"\nworkers = 0\n").unwrap();
    let (code, _said, complained) = output(&["--config", &path, "--check-config"]).await;
    assert_eq!(code, 1);
    assert!(complained.contains("\n  listen: ") && complained.contains("\n  workers: "));
    std::fs::write(&config, "workers = 3\n").unwrap();
    let (code, said, _complained) = output(&["--config", &path, "--check-config"]).await;
    assert_eq!((code, said), (0, format!("{path} is good\n")));
    let (code, said, _complained) = output(&["--config", &path, "--print-config"]).await;
    assert_eq!(code, 0);
    assert!(said.contains("workers = 3\n") && said.contains("[tiers.pro]"), "{said}");

    let (code, _said, complained) = output(&["--config", "/nowhere"]).await;
    assert_eq!(code, 1);
    assert!(complained.contains("cannot read /nowhere"), "{complained}");
    assert_eq!(output(&["--nonsense"]).await.0, 2);
    let agent = ["issue", "--role", "agent", "--name", "a", "--out", "x"];
    let (code, _said, complained) = output(&agent).await;
    assert_eq!(code, 2);
    assert!(complained.contains("join token"), "{complained}");
}

#[tokio::test]
async fn without_a_fleet_it_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("coordinator.toml");
    let data = directory.path().display();
    std::fs::write(&config, format!("data_dir = \"{data}\"\n")).unwrap();
    let (code, _said, complained) = output(&["--config", &config.display().to_string()]).await;
    assert_eq!(code, 1);
    assert!(complained.contains("hint: make a fleet first: claw-coordinator init"), "{complained}");
}

#[tokio::test]
async fn reflection_describes_everything_in_both_versions() {
    let fleet = Fleet::start().await;
    let channel = fleet.channel(Role::Viewer, "eve").await;
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap();
    let answer: ServerReflectionResponse =
        soon(answers.into_inner().message()).await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["claw.fleet.v1.InstanceService", "claw.node.v1.NodeService"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let ask = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol(
                "claw.fleet.v1.InstanceService".to_owned(),
            ),
        ),
    };
    let mut client =
        v1alpha::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap();
    let answer = soon(answers.into_inner().message()).await.unwrap().unwrap();
    assert!(
        matches!(
            answer.message_response,
            Some(v1alpha::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
        ),
        "{answer:?}"
    );
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let check = tonic_health::pb::HealthCheckRequest::default();
    let answer = health.check(check).await.unwrap().into_inner();
    assert_eq!(answer.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
}

#[tokio::test]
async fn a_new_server_certificate_is_taken_without_a_restart() {
    let fleet = Fleet::start().await;
    let serial = async || {
        let config = client_tls(&fleet.identity(Role::Operator, "alice"));
        let stream = crate::fixture::handshake(fleet.address(), config).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    let mut operator = fleet.operator().await;
    let first = serial().await;
    // As if it had been issued 31 days ago.
    let server = fleet.config.data_dir.join("server");
    let issued = std::fs::read_dir(&server).unwrap().next().unwrap().unwrap().file_name();
    let millis: i64 = issued.to_str().unwrap().parse().unwrap();
    let earlier = format!("{:016}", millis - 31 * 24 * 3600 * 1000);
    std::fs::rename(server.join(issued), server.join(earlier)).unwrap();
    fleet.coordinator.reload().await;
    assert_ne!(serial().await, first);
    operator.hosts.list_hosts(fleet::ListHostsRequest::default()).await.unwrap();
}
