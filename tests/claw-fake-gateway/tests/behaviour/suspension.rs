//! Pairing and suspension, as the product's own client sees them.

use std::net::SocketAddr;

use openclaw::device::Device;
use openclaw::probe::{ProbeAnswer, ProbePath, Target};
use openclaw::rpc::{Login, Prepared, Rpc, RpcError};

use crate::gateway::{Home, PATIENCE, body};

fn device() -> Device {
    Device::from_pkcs8(&Device::generate().unwrap()).unwrap()
}

async fn connect(address: SocketAddr, device: &Device, token: &str) -> Result<Rpc, RpcError> {
    let login = Login { token, device, display_name: "a test" };
    Rpc::connect(&Target::new(address), &login, PATIENCE).await
}

async fn request_of(address: SocketAddr, device: &Device) -> String {
    match connect(address, device, "t0ken").await {
        Err(RpcError::NotPaired { request_id }) => request_id,
        other => panic!("it is not known: {other:?}"),
    }
}

/// Has a device approved, as somebody within the container does.
async fn pair(home: &Home, address: SocketAddr, device: &Device) -> Rpc {
    let request = request_of(address, device).await;
    let mut approval = home.command(&["openclaw", "devices", "approve", &request, "--json"], &[]);
    assert_eq!(approval.exit(), 0, "{}", approval.log());
    assert!(approval.printed().contains(device.id()));
    connect(address, device, "t0ken").await.unwrap()
}

async fn probe(address: SocketAddr, path: ProbePath) -> ProbeAnswer {
    Target::new(address).probe(path, PATIENCE).await.unwrap()
}

async fn ready(rpc: &mut Rpc, request: &str) -> String {
    match rpc.suspend_prepare(request, PATIENCE).await.unwrap() {
        Prepared::Ready(suspension) => suspension.id,
        Prepared::Busy(work) => panic!("nothing is under way but {work}"),
    }
}

#[tokio::test]
async fn a_device_is_paired_by_approving_exactly_its_request() {
    let home = Home::configured();
    let mut gateway = home.start(&[]);
    let address = gateway.ready();
    let (device, other) = (device(), device());
    let request = request_of(address, &device).await;
    assert_eq!(request_of(address, &device).await, request, "one request per device");
    assert_ne!(request_of(address, &other).await, request);
    let mut nothing = home.command(&["devices", "approve", "nonsense", "--json"], &[]);
    assert_eq!(nothing.exit(), 1);
    let mut rpc = pair(&home, address, &device).await;
    rpc.health(PATIENCE).await.unwrap();
    request_of(address, &other).await;
    let wrong = connect(address, &device, "another token").await;
    assert!(matches!(wrong, Err(RpcError::Refused { .. })), "{wrong:?}");
}

#[tokio::test]
async fn a_suspended_gateway_refuses_calls_and_serves_connections() {
    let home = Home::configured();
    let mut gateway = home.start(&[("CONTROL", "1")]);
    let address = gateway.ready();
    let device = device();
    let mut rpc = pair(&home, address, &device).await;
    let id = ready(&mut rpc, "r").await;
    assert_eq!(probe(address, ProbePath::Startup).await, ProbeAnswer::Draining);
    assert!(!probe(address, ProbePath::Ready).await.is_good());
    assert_eq!(probe(address, ProbePath::Live).await, ProbeAnswer::Live);
    assert!(body(address, "/").contains("OpenClaw"), "pages are served");
    let refused = rpc.health(PATIENCE).await.unwrap_err();
    assert!(
        matches!(&refused, RpcError::Refused { code, .. } if code == "UNAVAILABLE"),
        "{refused}"
    );
    // Over another connection: the same request is the same suspension, another one is refused.
    let mut again = connect(address, &device, "t0ken").await.unwrap();
    assert_eq!(ready(&mut again, "r").await, id);
    let conflict = again.suspend_prepare("another", PATIENCE).await.unwrap_err();
    assert!(matches!(&conflict, RpcError::Refused { code, .. } if code == "UNAVAILABLE"));
    let wrong = again.suspend_resume("another", PATIENCE).await.unwrap_err();
    assert!(matches!(&wrong, RpcError::Refused { code, .. } if code == "INVALID_REQUEST"));
    assert!(again.suspend_resume(&id, PATIENCE).await.unwrap());
    assert!(!rpc.suspend_resume(&id, PATIENCE).await.unwrap());
    rpc.health(PATIENCE).await.unwrap();
    assert_eq!(probe(address, ProbePath::Startup).await, ProbeAnswer::Started);
}

#[tokio::test]
async fn a_lease_ends_a_suspension_and_work_prevents_it() {
    let home = Home::configured();
    let device = device();
    let mut gateway = home.start(&[("SUSPEND_MS", "300")]);
    let address = gateway.ready();
    let mut rpc = pair(&home, address, &device).await;
    ready(&mut rpc, "r").await;
    while probe(address, ProbePath::Startup).await != ProbeAnswer::Started {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    drop(gateway);
    // The state keeps its devices.
    let mut gateway = home.start(&[("BUSY", "1")]);
    let mut rpc = connect(gateway.ready(), &device, "t0ken").await.unwrap();
    let busy = Prepared::Busy("1 active run".to_owned());
    assert_eq!(rpc.suspend_prepare("r", PATIENCE).await.unwrap(), busy);
    rpc.health(PATIENCE).await.unwrap();
}
