//! Join tokens, certificates and roles, over the real thing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use claw_identity::{
    CertificateAuthority, ClientIdentity, HostKey, IdentityDir, IssueRequest, PeerIdentity, Role,
    Subject,
};
use claw_lab::{HostOptions, LabHost, Output, command};
use claw_tests::fleet::{COORDINATOR, until};
use claw_tests::programs::PATIENCE;
use claw_tests::unit::outside;
use claw_tests::{Instance, Rig};

/// Where the agent keeps its identity.
const IDENTITY: &str = "/var/lib/clawd/identity";

#[test]
fn tokens_certificates_and_roles_hold_against_everyone() -> Result<()> {
    let mut rig = Rig::start("identity")?;
    let second = rig.step("a second host is installed and has not joined", || {
        rig.fleet().prepare(HostOptions::named("h2"))
    })?;
    rig.add(second);
    let [first, second] = rig.hosts() else { bail!("two hosts") };
    tokens(&rig, second)?;
    roles(&rig, first)?;
    let fleet = rig.fleet();
    rig.step("an instance serves on the first host", || {
        fleet.apply(&Instance::new("demo", first, &rig.image().reference))?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        fleet.until_serving(first, "demo")
    })?;
    certificates(&rig, first)?;
    rig.step("a cloned disk raises an alarm and does not get in", || {
        second.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        let [from, to] = [first, second].map(|host| outside(host, "/var/lib/clawd"));
        replace(&from?, &to?)?;
        second.exec_ok(&["systemctl", "start", "clawd.service"])?;
        let found = fleet.until(PATIENCE, "the alarm", |fleet| {
            let found = fleet.json(&["host", "get", "h1"])?;
            Ok(found["status"]["cloneAlarm"].is_string().then_some(found))
        })?;
        assert_eq!(found["status"]["state"], "online", "the first host was thrown out: {found}");
        fleet.until_event(first, "", "clone_alarm")?;
        fleet.until_serving(first, "demo")
    })
}

fn tokens(rig: &Rig, host: &LabHost) -> Result<()> {
    let fleet = rig.fleet();
    fleet.clawctl_ok(&["host", "create", "h2"])?;
    let token = fleet.token("h2")?;
    rig.step("a token with another pin: the secret is not sent, the token stays good", || {
        let (rest, pin) = token.rsplit_once('.').context("a token has a pin")?;
        let other: String = pin.chars().map(|c| if c == 'a' { 'b' } else { 'a' }).take(1).collect();
        let other = format!("{rest}.{other}{}", pin.get(1..).unwrap_or_default());
        refused(&fleet.join_with(host, &other)?, "not sent")?;
        let unused = fleet.json(&["token", "list"])?;
        let mine = claw_tests::rig::list(&unused)?.iter().find(|found| found["host"] == "h2");
        let mine = mine.context("no token")?;
        assert!(mine["useTime"].is_null(), "it was used: {mine}");
        Ok(())
    })?;
    rig.step("a token is bound to its host", || {
        let foreign = fleet.token("h1")?;
        refused(&fleet.join_with(host, &foreign)?, "bound to another host")
    })?;
    rig.step("a forged secret, and no token at all", || {
        let parts: Vec<&str> = token.split('.').collect();
        let [version, id, secret, pin] = parts[..] else { bail!("a token has four parts") };
        let forged: String = secret.chars().rev().collect();
        refused(&fleet.join_with(host, &format!("{version}.{id}.{forged}.{pin}"))?, "")?;
        refused(&fleet.join_with(host, "clw1.nonsense")?, "token")
    })?;
    rig.step("the token joins the host; the key is the host's own, for root only", || {
        let joined = fleet.join_with(host, &token)?;
        ensure!(joined.success(), "{joined:?}");
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        fleet.until_online(host)?;
        let key = format!("{IDENTITY}/current/key.pem");
        assert_eq!(host.exec_ok(&["stat", "-c", "%U %a", &key])?, "root 600");
        assert_eq!(host.exec_ok(&["stat", "-c", "%U %a", IDENTITY])?, "root 700");
        Ok(())
    })?;
    rig.step("the same token again is refused, and that is told", || {
        refused(&fleet.join_with(host, &token)?, "refuses the token")?;
        fleet.until_event(host, "", "enrolment_refused")?;
        fleet.until_online(host)
    })?;
    rig.step("a revoked host is out at once, and back with a new token only", || {
        fleet.clawctl_ok(&["host", "revoke", "h2"])?;
        let revoked = fleet.until_host(host, "revoked", Duration::from_secs(5))?;
        assert_eq!(revoked["status"]["state"], "revoked");
        until(PATIENCE, "the agent to be told", || {
            let journal = host.journal("clawd.service")?;
            Ok(journal.contains("not connected to the coordinator").then_some(()))
        })?;
        host.exec_ok(&["systemctl", "restart", "clawd.service"])?;
        until(PATIENCE, "the agent to be refused again", || {
            let status =
                host.exec_ok(&["systemctl", "show", "--property=StatusText", "clawd.service"])?;
            if status.contains("not connected") { Ok(Some(())) } else { bail!("{status}") }
        })?;
        fleet.until_host(host, "revoked", Duration::from_secs(5))?;
        let joined = fleet.join_with(host, &fleet.token("h2")?)?;
        ensure!(joined.success(), "{joined:?}");
        host.exec_ok(&["systemctl", "restart", "clawd.service"])?;
        fleet.until_online(host)
    })
}

fn roles(rig: &Rig, host: &LabHost) -> Result<()> {
    let fleet = rig.fleet();
    let issue = |role: &str| -> Result<std::path::PathBuf> {
        let out = fleet.lab().dir().join(role);
        let mut issue = command(fleet.coordinator_program());
        issue.args(["issue", "--role", role, "--name", "somebody", "--data-dir"]);
        let issued = issue.arg(fleet.coordinator_data()).arg("--out").arg(&out).output()?;
        ensure!(issued.status.success(), "{}", String::from_utf8_lossy(&issued.stderr));
        Ok(out)
    };
    let call = |identity: &Path, arguments: &[&str]| -> Result<Output> {
        let mut clawctl = fleet.clawctl_command();
        let output = clawctl.env("CLAWCTL_IDENTITY", identity).args(arguments).output()?;
        Ok(Output {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    };
    rig.step("a viewer reads and changes nothing", || {
        let viewer = issue("viewer")?;
        ensure!(call(&viewer, &["host", "list"])?.success());
        refused(&call(&viewer, &["host", "create", "x"])?, "viewer")?;
        refused(&call(&viewer, &["token", "create", "h1"])?, "viewer")?;
        let mut deny = command(fleet.coordinator_program());
        deny.args(["deny", "--role", "viewer", "--name", "somebody", "--data-dir"]);
        let denied = deny.arg(fleet.coordinator_data()).output()?;
        ensure!(denied.status.success(), "{}", String::from_utf8_lossy(&denied.stderr));
        until(PATIENCE, "the viewer to be denied", || {
            Ok((!call(&viewer, &["host", "list"])?.success()).then_some(()))
        })
    })?;
    rig.step("a service changes instances, and revokes no host", || {
        let service = issue("service")?;
        ensure!(call(&service, &["list"])?.success());
        refused(&call(&service, &["host", "revoke", "h1"])?, "service")?;
        refused(&call(&service, &["audit"])?, "service")
    })?;
    rig.step("an agent's certificate is of no use at the API", || {
        let agent = outside(host, &format!("{IDENTITY}/current"))?;
        refused(&call(&agent, &["host", "list"])?, "agent")?;
        refused(&call(&agent, &["list"])?, "agent")
    })?;
    rig.step("no certificate, and TLS 1.2", || {
        let url = format!("https://{COORDINATOR}/claw.fleet.v1.HostService/ListHosts");
        let grpc = ["-H", "content-type: application/grpc", "--data-binary", "@/dev/null", &url];
        let plain =
            ["curl", "-sS", "-k", "--http2", "--max-time", "10", "-D", "-", "-o", "/dev/null"];
        let anonymous = host.exec_ok(&[&plain[..], &grpc].concat())?;
        assert!(anonymous.contains("grpc-status: 16"), "{anonymous}");
        let old = ["curl", "-sS", "-k", "--tls-max", "1.2", "--max-time", "10", &url];
        let old = host.exec(&old)?;
        assert_eq!(old.status, 35, "a handshake with TLS 1.2: {old:?}");
        Ok(())
    })
}

fn certificates(rig: &Rig, host: &LabHost) -> Result<()> {
    let fleet = rig.fleet();
    let connects = || {
        let log = fleet.coordinator_log();
        log.lines().filter(|line| line.contains("a host connected") && line.contains("h1")).count()
    };
    rig.step("a certificate past a third of its life is renewed within the session", || {
        host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        let lent = lend(rig, host, Duration::from_secs(100), Duration::from_secs(110))?;
        let before = connects();
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        fleet.until_event(host, "", "certificate_renewed")?;
        let renewed = identity(host)?;
        assert_ne!(renewed.peer().serial, lent.peer().serial);
        assert!(renewed.expires() > lent.expires() + Duration::from_secs(3600));
        fleet.until_online(host)?;
        assert_eq!(connects(), before + 1, "the session was dropped for it");
        Ok(())
    })?;
    rig.step("the connection of the old certificate ends with it; the new one takes over", || {
        let before = connects();
        until(PATIENCE, "the next connection", || Ok((connects() > before).then_some(())))?;
        fleet.until_online(host)?;
        fleet.until_serving(host, "demo")
    })?;
    rig.step("an expired certificate: the host says what to do, its instances serve", || {
        host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        lend(rig, host, Duration::from_secs(100), Duration::from_secs(90))?;
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        until(PATIENCE, "the hint", || {
            let status =
                host.exec_ok(&["systemctl", "show", "--property=StatusText", "clawd.service"])?;
            let told = status.contains("expired") && status.contains("clawd join");
            if told { Ok(Some(())) } else { bail!("{status}") }
        })?;
        fleet.until_host(host, "offline", PATIENCE)?;
        fleet.until_serving(host, "demo")
    })?;
    rig.step("a new token brings it back, with its instances as they were", || {
        let before = rig.docker()?.inspect("claw-demo")?["State"]["StartedAt"].clone();
        let joined = fleet.join_with(host, &fleet.token("h1")?)?;
        ensure!(joined.success(), "{joined:?}");
        fleet.until_online(host)?;
        fleet.until_phase("demo", "running", PATIENCE)?;
        assert_eq!(rig.docker()?.inspect("claw-demo")?["State"]["StartedAt"], before);
        Ok(())
    })
}

/// Gives a host a certificate that began `ago` and lives for `life`, as only the fleet's authority can.
#[expect(clippy::disallowed_methods, reason = "certificates are compared with the wall clock")]
fn lend(rig: &Rig, host: &LabHost, ago: Duration, life: Duration) -> Result<ClientIdentity> {
    let authority = CertificateAuthority::load(&rig.fleet().coordinator_data().join("ca"))?;
    let key = HostKey::load(&outside(host, &format!("{IDENTITY}/current/key.pem"))?)?;
    let request = IssueRequest {
        subject: Subject::Client(PeerIdentity::new(Role::Agent, host.name())?),
        not_before: SystemTime::now() - ago,
        lifetime: life,
    };
    let issued = authority.issue_from_csr(&key.csr()?, &request, &mut rand::rng())?;
    let lent = ClientIdentity::from_pem(Arc::new(key), &issued.to_pem(), &authority.root_pem())?;
    IdentityDir::open(outside(host, IDENTITY)?)?.install(&lent)?;
    Ok(lent)
}

fn identity(host: &LabHost) -> Result<ClientIdentity> {
    IdentityDir::open(outside(host, IDENTITY)?)?.load()?.context("no identity")
}

/// Replaces a directory by a copy of another, as a cloned disk does.
fn replace(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(to)? {
        let path = entry?.path();
        if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
    }
    let mut copy = command("cp");
    let copied = copy.arg("--archive").arg(from.join(".")).arg(to).output()?;
    ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    Ok(())
}

/// It failed, and said why.
fn refused(output: &Output, why: &str) -> Result<()> {
    ensure!(!output.success(), "it was taken: {output:?}");
    ensure!(output.stderr.contains(why), "{why:?} is not said: {output:?}");
    Ok(())
}
