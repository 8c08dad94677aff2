//! The adapters against the real things, held to the contracts of their ports.
//!
//! What needs Docker and nginx runs on a lab host only: this very program is copied there and run
//! with `CLAW_LAB_HOST=1` and `CLAW_LAB_IMAGE=<image of the fake gateway>`. Anywhere else those tests
//! say that they did not run; they never touch the Docker or nginx of a developer's machine.

// `cfg(test)` says to clippy what it is.
#[cfg(test)]
mod firewall_adapter;
#[cfg(test)]
#[path = "snapshots/ground.rs"]
#[expect(dead_code, reason = "more of it is for the tests without a service manager")]
mod ground;
#[cfg(test)]
mod lab;
#[cfg(test)]
#[path = "snapshots/systemd.rs"]
mod snapshot_units;

use std::time::Duration;

use claw_core::address::{AddressPool, Slot};
use claw_core::name::{ImageRef, InstanceName};
use claw_core::observed::{ContainerState, ObservedContainer};
use claw_core::plan::VirtualHost;
use claw_core::spec::Secret;
use claw_core::unit::{MIB, Memory};
use clawd::adapters::clock::SystemClock;
use clawd::adapters::files::{FilesSettings, GATEWAY_OWNER, InstanceFiles, Owner, SecretsMedium};
use clawd::adapters::host::Machine;
use clawd::adapters::volumes::DirectoryVolumes;
use clawd::contract::{self, ControlSubject, RuntimeSubject, TrialsSubject};
use clawd::ports::{
    Control, Files, Gateway, GatewayAccess, GatewayAnswer, Host, Proxy, ProxyError, Runtime,
    RuntimeChange, RuntimeError, RuntimeEvent, Trial, Trials,
};
use lab::{LabHost, Subject, eventually, request};

#[tokio::test]
async fn clock() {
    contract::clock(&SystemClock).await.unwrap();
}

#[test]
fn host() {
    contract::host(&Machine::new("/".into())).unwrap();
}

#[tokio::test]
async fn files() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let own = std::fs::metadata(dir.path()).unwrap();
    let settings = FilesSettings {
        data: dir.path().join("data"),
        secrets: dir.path().join("secrets"),
        medium: SecretsMedium::Any,
        owner: Owner { uid: own.uid(), gid: own.gid() },
    };
    contract::files(&InstanceFiles::new(settings), &lab::name("demo")).await.unwrap();
}

#[tokio::test]
async fn files_of_containers_on_a_lab_host() {
    let Some(lab) = LabHost::here("files").await else { return };
    contract::files(&lab.files, &lab::name("demo")).await.unwrap();
}

#[tokio::test]
async fn volumes() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let own = std::fs::metadata(dir.path()).unwrap();
    let owner = Owner { uid: own.uid(), gid: own.gid() };
    let settings = FilesSettings {
        data: dir.path().join("data"),
        secrets: dir.path().join("secrets"),
        medium: SecretsMedium::Any,
        owner,
    };
    let volumes = DirectoryVolumes::new(settings.data.clone(), owner);
    let files = InstanceFiles::new(settings);
    contract::volumes(&volumes, &files, &lab::name("demo")).await.unwrap();
}

#[tokio::test]
async fn volumes_of_containers_on_a_lab_host() {
    let Some(lab) = LabHost::here("volumes").await else { return };
    let volumes = DirectoryVolumes::new("/var/lib/claw-contract".into(), GATEWAY_OWNER);
    contract::volumes(&volumes, &lab.files, &lab::name("copied")).await.unwrap();
}

#[tokio::test]
async fn trials_in_docker() {
    let Some(lab) = LabHost::here("trials").await else { return };
    let Subject { plan, mounts, .. } = lab.subject("tried", 109).await;
    let absent_image = ImageRef::parse("localhost:1/nowhere:none").unwrap();
    let network = Some(AddressPool::STANDARD.trial());
    let gateway = Trial { container: plan, mounts, network, command: None };
    let command = Some(vec!["openclaw".to_owned(), "doctor".to_owned(), "--fix".to_owned()]);
    let command = Trial { network: None, command, ..gateway.clone() };
    let subject = TrialsSubject { gateway, port: 18789, command, absent_image };
    let openclaw = lab.openclaw();
    contract::trials(&lab.docker, &openclaw, &subject).await.unwrap();
}

/// Nothing gets out of a trial, whatever our firewall says: Docker drops what would take another way than
/// to the host.
#[tokio::test]
async fn a_trial_reaches_nobody_and_is_limited() {
    let Some(lab) = LabHost::here("trial").await else { return };
    let Subject { instance, plan, mounts, .. } = lab.subject("cut-off", 110).await;
    let network = Some(AddressPool::STANDARD.trial());
    let trial = Trial { container: plan, mounts, network, command: None };
    lab.docker.start_trial(&trial).await.unwrap();
    let format = "{{.HostConfig.CpuShares}} {{.HostConfig.Memory}} {{.Config.Hostname}} \
                  {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.RestartPolicy.Name}}";
    let container = "claw-trial.cut-off";
    let told = lab::run(&["docker", "inspect", "--format", format, container]).await;
    let words: Vec<&str> = told.split_whitespace().collect();
    let limit = (128 * MIB).to_string();
    assert_eq!(words, ["128", limit.as_str(), "cut-off", "true", "no"], "{told}");
    assert!(std::path::Path::new("/sys/class/net/claw-i254").exists());
    let filter = lab::run(&["iptables-save", "-t", "filter"]).await;
    assert!(filter.contains("! -d 10.201.255.0/24 -i claw-i254 -j DROP"), "{filter}");
    let nat = lab::run(&["iptables-save", "-t", "nat"]).await;
    assert!(!nat.contains("-s 10.201.255.0/24"), "{nat}");
    lab.docker.remove_trial(&instance).await.unwrap();
    assert!(!std::path::Path::new("/sys/class/net/claw-i254").exists());
}

#[tokio::test]
async fn docker() {
    let Some(lab) = LabHost::here("docker").await else { return };
    let Subject { network, plan, mounts, .. } = lab.subject("contract", 100).await;
    let absent_image = ImageRef::parse("localhost:1/nowhere:none").unwrap();
    let import = "tar -c /etc/hostname /etc/passwd | docker import - claw/spare:1";
    lab::run(&["sh", "-c", import]).await;
    lab::run(&["docker", "tag", "claw/spare:1", "claw/spare:2"]).await;
    let spare = ["claw/spare:1", "claw/spare:2"].map(|name| ImageRef::parse(name).unwrap());
    let subject = RuntimeSubject { network, plan, mounts, absent_image, spare };
    contract::runtime(&lab.docker, &subject).await.unwrap();
}

#[tokio::test]
async fn docker_leaves_strangers_alone() {
    let Some(lab) = LabHost::here("strangers").await else { return };
    let subject = lab.subject("stranger", 101).await;
    let name = subject.plan.name.as_str();
    lab::run(&["docker", "network", "create", name]).await;
    lab::run(&["docker", "create", "--name", name, lab.image.as_str()]).await;
    let stranger = |result: Result<(), RuntimeError>| {
        assert!(matches!(result, Err(RuntimeError::Stranger { .. })), "{result:?}");
    };
    stranger(lab.change(&subject, RuntimeChange::CreateNetwork(&subject.network)).await);
    let create = RuntimeChange::CreateContainer(&subject.plan, &subject.mounts);
    stranger(lab.change(&subject, create).await);
    stranger(lab.change(&subject, RuntimeChange::Start).await);
    let view = lab.docker.view(&subject.instance, None).await.unwrap();
    assert_eq!((view.container, view.network), (None, None), "found by label only");
    lab::run(&["docker", "rm", name]).await;
    lab::run(&["docker", "network", "rm", name]).await;
}

#[tokio::test]
async fn a_mount_that_is_missing_is_refused() {
    let Some(lab) = LabHost::here("mounts").await else { return };
    let subject = lab.subject("mounts", 102).await;
    lab.create(&subject).await;
    lab.files.remove_secrets(&subject.instance).await.unwrap();
    let started = lab.change(&subject, RuntimeChange::Start).await;
    assert!(matches!(started, Err(RuntimeError::Refused { .. })), "{started:?}");
    assert!(!subject.mounts.secrets.exists(), "docker made nothing in its place");
    lab.clean(&subject).await;
}

#[tokio::test]
async fn containers_are_hardened() {
    let Some(lab) = LabHost::here("hardening").await else { return };
    let subject = lab.subject("hardened", 103).await;
    lab.create(&subject).await;
    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    let ContainerState::Running { pid, .. } = lab.container(&subject).await.state else {
        panic!("it runs")
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let is = |line: &str| assert!(status.lines().any(|l| l == line), "{line}: {status}");
    is("Uid:\t1000\t1000\t1000\t1000");
    is("CapBnd:\t0000000000000000");
    is("CapEff:\t0000000000000000");
    is("NoNewPrivs:\t1");
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let options = |target: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(target));
        line.and_then(|line| line.split(' ').nth(5)).unwrap_or_default().to_owned()
    };
    assert!(options("/").starts_with("ro,"), "{mounts}");
    assert!(options("/home/node/.openclaw/.env").starts_with("ro,"), "{mounts}");
    let tmp = options("/tmp");
    assert!(["nosuid", "nodev", "noexec"].iter().all(|o| tmp.contains(o)), "{tmp}");
    let told = lab::run(&["docker", "inspect", &subject.plan.name]).await;
    assert!(!told.contains(lab::TOKEN), "a secret shows in docker inspect");
    assert!(!told.contains("HostPort"), "a port is published");
    let bridge = format!("/sys/class/net/{}", subject.network.bridge());
    assert!(std::path::Path::new(&bridge).exists(), "{bridge}");
    lab.clean(&subject).await;
}

#[tokio::test]
async fn an_end_for_want_of_memory_is_told_from_a_kill() {
    let Some(lab) = LabHost::here("memory").await else { return };
    let mut subject = lab.subject("memory", 104).await;
    subject.plan.resources.memory = Memory::from_bytes(32 * MIB).unwrap();
    subject.plan.env.insert("CLAW_FAKE_EAT_MEMORY_MB".to_owned(), "200".to_owned());
    let mut events = lab.docker.events();
    lab.create(&subject).await;
    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    let ended = |container: ObservedContainer| match container.state {
        ContainerState::Exited(exit) if exit.oom => Some(exit),
        _ => None,
    };
    let exit = eventually("it is killed for want of memory", async || {
        // As the agent does: look when something is told.
        let _told = tokio::time::timeout(Duration::from_millis(200), events.recv()).await;
        ended(lab.container(&subject).await)
    });
    assert_eq!(exit.await.code, 137);
    lab.clean(&subject).await;

    let subject = lab.subject("killed", 105).await;
    lab.create(&subject).await;
    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    lab::run(&["docker", "kill", &subject.plan.name]).await;
    let killed = eventually("it is killed", async || match lab.container(&subject).await.state {
        ContainerState::Exited(exit) => Some(exit),
        _ => None,
    });
    let killed = killed.await;
    assert_eq!((killed.code, killed.oom), (137, false));
    lab.clean(&subject).await;
}

#[tokio::test]
async fn usage_is_read_from_the_cgroup() {
    let Some(lab) = LabHost::here("usage").await else { return };
    let mut subject = lab.subject("usage", 106).await;
    subject.plan.env.insert("CLAW_FAKE_EAT_MEMORY_MB".to_owned(), "40".to_owned());
    lab.create(&subject).await;
    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    let ContainerState::Running { pid, .. } = lab.container(&subject).await.state else {
        panic!("it runs")
    };
    let host = Machine::new("/var/lib".into());
    let usage = eventually("its memory shows", async || {
        host.usage(pid).filter(|usage| usage.memory_bytes > 40 * MIB)
    });
    let usage = usage.await;
    assert!(usage.memory_bytes < 60 * MIB, "{usage:?}");
    assert_eq!(usage.memory_limit_bytes, subject.plan.resources.memory.bytes());
    assert!(usage.pids > 0 && usage.cpu_usage_us > 0, "{usage:?}");
    assert_eq!(usage.oom_kills, 0);
    lab.clean(&subject).await;
    assert_eq!(host.usage(pid), None);
}

#[tokio::test]
async fn a_restart_of_docker_is_told() {
    let Some(lab) = LabHost::here("restart").await else { return };
    let subject = lab.subject("restart", 107).await;
    lab.create(&subject).await;
    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    let mut events = lab.docker.events();
    assert_eq!(lab::next(&mut events).await, RuntimeEvent::Connected);
    lab::run(&["systemctl", "restart", "docker.service"]).await;
    let lost = lab::next(&mut events).await;
    let lost = match lost {
        // Docker ends containers on its way down.
        RuntimeEvent::Changed(_) => lab::next(&mut events).await,
        other => other,
    };
    assert!(matches!(lost, RuntimeEvent::Lost(_)), "{lost:?}");
    while lab::next(&mut events).await != RuntimeEvent::Connected {}
    let found = lab.container(&subject).await;
    assert!(matches!(found.state, ContainerState::Exited(_)), "docker restarts nothing: {found:?}");
    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    while lab::next(&mut events).await != RuntimeEvent::Changed(subject.instance.clone()) {}
    lab.clean(&subject).await;
}

#[tokio::test]
async fn a_docker_that_hangs_is_noticed() {
    let Some(lab) = LabHost::here("hang").await else { return };
    let mut events = lab.docker.events();
    assert_eq!(lab::next(&mut events).await, RuntimeEvent::Connected);
    let pid =
        lab::run(&["systemctl", "show", "--property=MainPID", "--value", "docker.service"]).await;
    lab::run(&["kill", "-STOP", pid.trim()]).await;
    let version = lab.docker.version().await;
    let lost = lab::next(&mut events).await;
    lab::run(&["kill", "-CONT", pid.trim()]).await;
    assert!(matches!(version, Err(RuntimeError::Timeout { .. })), "{version:?}");
    assert!(matches!(lost, RuntimeEvent::Lost(_)), "{lost:?}");
    while lab::next(&mut events).await != RuntimeEvent::Connected {}
}

#[tokio::test]
async fn nginx() {
    let Some(lab) = LabHost::here("nginx").await else { return };
    let host = |name: &str, last: u8| VirtualHost {
        sources: std::collections::BTreeSet::new(),
        instance: lab::name(name),
        hostnames: vec![format!("{name}.example"), format!("{name}.claw.localhost")],
        upstream: ([10, 201, 200, last], 18789).into(),
    };
    contract::proxy(&lab.nginx, &host("one", 2), &host("two", 3)).await.unwrap();
}

#[tokio::test]
async fn nginx_is_started_and_its_faults_are_told() {
    let Some(lab) = LabHost::here("faults").await else { return };
    let host = VirtualHost {
        sources: std::collections::BTreeSet::new(),
        instance: lab::name("fault"),
        hostnames: vec!["fault.claw.localhost".to_owned()],
        upstream: ([10, 201, 200, 2], 18789).into(),
    };
    lab::run(&["systemctl", "stop", "nginx.service"]).await;
    assert!(!lab.nginx.is_current(&host).await.unwrap(), "a stopped nginx serves nothing");
    lab.nginx.publish(&host).await.unwrap();
    assert!(lab.nginx.is_current(&host).await.unwrap());

    let broken = "/etc/nginx/conf.d/broken.conf";
    std::fs::write(broken, "nonsense on;\n").unwrap();
    let moved = VirtualHost { upstream: ([10, 201, 200, 3], 18789).into(), ..host.clone() };
    let refused = lab.nginx.publish(&moved).await;
    let Err(ProxyError::Refused { output }) = refused else { panic!("{refused:?}") };
    assert!(output.contains("unknown directive \"nonsense\""), "{output}");
    assert!(lab.nginx.is_current(&host).await.unwrap(), "the old one is back in place");
    std::fs::remove_file(broken).unwrap();
    lab.nginx.publish(&moved).await.unwrap();
    lab.nginx.unpublish(&host.instance).await.unwrap();

    lab::run(&["systemctl", "stop", "nginx.service"]).await;
    lab.nginx.unpublish(&host.instance).await.unwrap();
    lab::run(&["systemctl", "start", "nginx.service"]).await;
}

#[tokio::test]
async fn a_gateway_gets_to_know_this_host_and_is_suspended() {
    let Some(lab) = LabHost::here("control").await else { return };
    let subject = lab.subject("control", 111).await;
    lab.create(&subject).await;
    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    let gateway = lab.openclaw();
    let access = GatewayAccess {
        address: subject.virtual_host().upstream,
        token: Secret::new(lab::TOKEN.to_owned()),
    };
    eventually("it has started", async || gateway.introduce(&access).await.ok()).await;
    let wrong = GatewayAccess { token: Secret::new("another".to_owned()), ..access.clone() };
    assert!(gateway.introduce(&wrong).await.is_err(), "another token opens nothing");
    let container = lab.container(&subject).await.id;
    let absent = ([127, 0, 0, 1], 1).into();
    let control = ControlSubject { gateway: access, container, absent };
    contract::control(&gateway, &lab.docker, &control).await.unwrap();
    lab.clean(&subject).await;
}

#[tokio::test]
async fn a_gateway_is_seen_directly_and_through_nginx() {
    let Some(lab) = LabHost::here("gateway").await else { return };
    let subject = lab.subject("gateway", 108).await;
    let host = subject.virtual_host();
    let gateway = lab.openclaw();
    lab.create(&subject).await;
    lab.nginx.publish(&host).await.unwrap();
    assert!(matches!(gateway.look(&host).await, GatewayAnswer::Failing(_)));
    let (status, body) = request(&host.hostnames[0], "/startupz").await;
    assert_eq!((status, body.starts_with("the gateway is starting")), (503, true), "{body}");

    lab.change(&subject, RuntimeChange::Start).await.unwrap();
    eventually("it has started", async || match gateway.look(&host).await {
        GatewayAnswer::Started { ready } => Some(ready),
        _ => None,
    })
    .await;
    let absent = VirtualHost {
        sources: std::collections::BTreeSet::new(),
        instance: lab::name("absent"),
        upstream: ([127, 0, 0, 1], 1).into(),
        ..host.clone()
    };
    contract::gateway(&gateway, &host, &absent).await.unwrap();
    let through = openclaw::probe::Target::new(lab.nginx.listen()).host(&host.hostnames[0]);
    through.probe_websocket_upgrade("/", Duration::from_secs(5)).await.unwrap();
    let (status, body) = request("nobody.example", "/startupz").await;
    assert_eq!((status, body.as_str()), (404, "no instance is served under this name\n"));

    lab.nginx.unpublish(&subject.instance).await.unwrap();
    eventually("nginx does not know it any more", async || match gateway.look(&host).await {
        GatewayAnswer::ProxyFailing(cause) => Some(cause),
        _ => None,
    })
    .await;
    lab.clean(&subject).await;
}

#[tokio::test]
async fn many_virtual_hosts_are_published_at_once() {
    let Some(lab) = LabHost::here("many").await else { return };
    let hosts: Vec<VirtualHost> = (0..40)
        .map(|n| VirtualHost {
            sources: std::collections::BTreeSet::new(),
            instance: InstanceName::parse(&format!("many-{n}")).unwrap(),
            hostnames: vec![format!("many-{n}.{}.example", "long".repeat(15))],
            upstream: (AddressPool::STANDARD.network(Slot::new(n).unwrap()).container(), 18789)
                .into(),
        })
        .collect();
    let published = hosts.iter().map(|host| lab.nginx.publish(host));
    for published in futures_util::future::join_all(published).await {
        published.unwrap();
    }
    for host in &hosts {
        assert!(lab.nginx.is_current(host).await.unwrap(), "{host:?}");
    }
    let removed = hosts.iter().map(|host| lab.nginx.unpublish(&host.instance));
    for removed in futures_util::future::join_all(removed).await {
        removed.unwrap();
    }
}
