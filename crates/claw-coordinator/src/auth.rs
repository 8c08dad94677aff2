//! Who may call what: one table, and nothing that is not in it.
//!
//! Identity comes from the certificate of the connection and from nowhere else. What a role may
//! call is [`METHODS`]; a test compares it with the descriptors and with the comments of the proto
//! files.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::LazyLock;

use claw_identity::{Peer, Role};
use tokio::sync::watch;

use crate::refusal::Refusal;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Caller {
    /// From the certificate; `None` when there is none.
    pub peer: Option<Peer>,
    /// The caller's address.
    pub source: SocketAddr,
    /// Whether the connection is about to end.
    pub closing: watch::Receiver<Closing>,
}

/// Whether a connection is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// It is not.
    No,
    /// It is old enough, or its certificate ends.
    Aged,
    /// The certificate was denylisted.
    Denied,
    /// The coordinator shuts down.
    Draining,
}

impl Caller {
    /// As it stands in audit entries, such as `operator/alice`.
    #[must_use]
    pub fn principal(&self) -> String {
        self.peer.as_ref().map_or_else(|| "anonymous".to_owned(), |peer| peer.identity.to_string())
    }
}

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Anybody, without a certificate too.
    Anybody,
    /// Whoever has a certificate with one of these roles.
    Roles(&'static [Role]),
}

/// How long a method may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One answer, within [`crate::connection::Lifetimes::call`].
    Unary,
    /// For as long as the connection lives.
    Stream,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// `package.Service/Method`.
    pub name: &'static str,
    /// Who may call it.
    pub who: Who,
    /// How long it may take.
    pub kind: Kind,
}

const ALL: Who = Who::Roles(&[Role::Agent, Role::Service, Role::Operator, Role::Viewer]);
const AGENT: Who = Who::Roles(&[Role::Agent]);
const READ: Who = Who::Roles(&[Role::Viewer, Role::Operator, Role::Service]);
const WRITE: Who = Who::Roles(&[Role::Operator, Role::Service]);
const AUDIT: Who = Who::Roles(&[Role::Operator, Role::Viewer]);
const OPERATOR: Who = Who::Roles(&[Role::Operator]);

const fn unary(name: &'static str, who: Who) -> Method {
    Method { name, who, kind: Kind::Unary }
}

const fn stream(name: &'static str, who: Who) -> Method {
    Method { name, who, kind: Kind::Stream }
}

/// Every method that can be called at all.
pub const METHODS: &[Method] = &[
    unary("claw.node.v1.EnrolmentService/Enrol", Who::Anybody),
    unary("claw.node.v1.EnrolmentService/Renew", AGENT),
    stream("claw.node.v1.NodeService/Session", AGENT),
    stream("claw.node.v1.NodeService/Transfer", AGENT),
    unary("claw.fleet.v1.HostService/CreateHost", WRITE),
    unary("claw.fleet.v1.HostService/GetHost", READ),
    unary("claw.fleet.v1.HostService/ListHosts", READ),
    unary("claw.fleet.v1.HostService/UpdateHost", WRITE),
    unary("claw.fleet.v1.HostService/DeleteHost", OPERATOR),
    unary("claw.fleet.v1.HostService/RevokeHost", OPERATOR),
    unary("claw.fleet.v1.HostService/ListHostEvents", READ),
    unary("claw.fleet.v1.HostService/GetHostFirewall", READ),
    unary("claw.fleet.v1.HostService/SetHostOffsite", OPERATOR),
    unary("claw.fleet.v1.InstanceService/CreateInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/GetInstance", READ),
    unary("claw.fleet.v1.InstanceService/ListInstances", READ),
    unary("claw.fleet.v1.InstanceService/UpdateInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/DeleteInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/StartInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/StopInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/PauseInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/ResumeInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/RestartInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/RebuildInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/RollbackInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/MigrateInstance", WRITE),
    unary("claw.fleet.v1.InstanceService/CancelMigration", WRITE),
    unary("claw.fleet.v1.InstanceService/ListInstanceRevisions", READ),
    unary("claw.fleet.v1.InstanceService/PlanInstance", READ),
    stream("claw.fleet.v1.InstanceService/WatchInstances", READ),
    unary("claw.fleet.v1.InstanceService/FetchGatewayToken", WRITE),
    unary("claw.fleet.v1.InstanceService/FetchRecoveryPassword", OPERATOR),
    unary("claw.fleet.v1.SnapshotService/CreateSnapshot", WRITE),
    unary("claw.fleet.v1.SnapshotService/GetSnapshot", READ),
    unary("claw.fleet.v1.SnapshotService/ListSnapshots", READ),
    unary("claw.fleet.v1.SnapshotService/DeleteSnapshot", WRITE),
    unary("claw.fleet.v1.SnapshotService/VerifySnapshots", WRITE),
    stream("claw.fleet.v1.SnapshotService/ExportSnapshot", WRITE),
    stream("claw.fleet.v1.SnapshotService/ImportSnapshot", WRITE),
    unary("claw.fleet.v1.JoinTokenService/CreateJoinToken", WRITE),
    unary("claw.fleet.v1.JoinTokenService/ListJoinTokens", READ),
    unary("claw.fleet.v1.JoinTokenService/DeleteJoinToken", WRITE),
    unary("claw.fleet.v1.AuditService/ListAuditEntries", AUDIT),
    unary("grpc.health.v1.Health/Check", ALL),
    stream("grpc.health.v1.Health/Watch", ALL),
    stream("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ALL),
    stream("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ALL),
];

static TABLE: LazyLock<BTreeMap<&'static str, &'static Method>> =
    LazyLock::new(|| METHODS.iter().map(|method| (method.name, method)).collect());

/// Decides about a call; `None` when the caller may know that there is no such method.
///
/// # Errors
/// [`Refusal::Unauthenticated`], [`Refusal::Denied`]
pub fn authorise(caller: &Caller, method: &str) -> Result<Option<&'static Method>, Refusal> {
    let found = TABLE.get(method).copied();
    if found.is_some_and(|found| found.who == Who::Anybody) {
        return Ok(found);
    }
    let Some(peer) = &caller.peer else {
        return Err(Refusal::Unauthenticated {
            reason: "NO_CERTIFICATE",
            description: "a client certificate of this fleet is needed: hosts join with a token \
                          (clawd join), people and services get theirs from an operator \
                          (claw-coordinator issue)"
                .to_owned(),
        });
    };
    if *caller.closing.borrow() == Closing::Denied {
        return Err(denied());
    }
    let Some(method) = found else { return Ok(None) };
    let role = peer.identity.role();
    match method.who {
        Who::Anybody => Ok(Some(method)),
        Who::Roles(roles) if roles.contains(&role) => Ok(Some(method)),
        Who::Roles(roles) => {
            let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
            Err(Refusal::Denied {
                reason: "ROLE",
                description: format!(
                    "{} may not call {}; it is for the roles {}",
                    peer.identity,
                    method.name,
                    roles.join(", ")
                ),
            })
        }
    }
}

/// What a denylisted peer hears.
#[must_use]
pub fn denied() -> Refusal {
    Refusal::Denied {
        reason: "CERTIFICATE_REVOKED",
        description: "this certificate is denylisted; a host needs a new join token, a person or \
                      service a new certificate"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use prost::Message as _;

    use super::*;

    /// `package.Service/Method` of every method of both protos, with whether it streams.
    fn described() -> BTreeMap<String, Kind> {
        let set = prost_types::FileDescriptorSet::decode(claw_proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut methods = BTreeMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                    let kind = if method.client_streaming() || method.server_streaming() {
                        Kind::Stream
                    } else {
                        Kind::Unary
                    };
                    methods.insert(name, kind);
                }
            }
        }
        methods
    }

    #[test]
    fn every_method_is_in_the_table_and_nothing_else() {
        let described = described();
        assert!(described.len() > 20, "{described:?}");
        let ours: BTreeMap<String, Kind> = METHODS
            .iter()
            .filter(|method| method.name.starts_with("claw."))
            .map(|method| (method.name.to_owned(), method.kind))
            .collect();
        assert_eq!(ours, described);
        assert_eq!(TABLE.len(), METHODS.len(), "a method stands twice");
    }

    /// "Roles: a, b." in the comment above each rpc of the fleet's API.
    #[test]
    fn the_table_says_what_the_proto_says() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto/claw/fleet/v1");
        let files = ["fleet.proto", "instance.proto", "snapshot.proto"];
        let texts = files.map(|file| std::fs::read_to_string(dir.join(file)).unwrap());
        let text = texts.join("\n");
        let (mut service, mut comment, mut checked) = (String::new(), String::new(), 0);
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("// ") {
                comment = format!("{comment} {rest}");
                continue;
            }
            if let Some(rest) = line.strip_prefix("service ") {
                service = rest.trim_end_matches(" {").to_owned();
            }
            if let Some(rest) = line.strip_prefix("rpc ") {
                let method = rest.split('(').next().unwrap();
                let name = format!("claw.fleet.v1.{service}/{method}");
                let Who::Roles(roles) = TABLE[name.as_str()].who else { panic!("{name}") };
                let (_, said) = comment.split_once("Roles: ").unwrap_or_else(|| panic!("{name}"));
                let (said, _) = said.split_once('.').unwrap();
                let said: BTreeSet<&str> = said.split(", ").collect();
                assert_eq!(said, roles.iter().map(|role| role.as_str()).collect(), "{name}");
                checked += 1;
            }
            comment.clear();
        }
        assert_eq!(checked, 39);
    }

    #[test]
    fn the_table_as_text() {
        let letter = |role: Role| match role {
            Role::Agent => 'a',
            Role::Service => 's',
            Role::Operator => 'o',
            Role::Viewer => 'v',
        };
        let mut lines = Vec::new();
        for method in METHODS {
            let who = match method.who {
                Who::Anybody => "anybody".to_owned(),
                Who::Roles(roles) => roles.iter().map(|role| letter(*role)).collect(),
            };
            lines.push(format!("{who:7} {}", method.name));
        }
        let expected = "\
anybody claw.node.v1.EnrolmentService/Enrol
a       claw.node.v1.EnrolmentService/Renew
a       claw.node.v1.NodeService/Session
a       claw.node.v1.NodeService/Transfer
os      claw.fleet.v1.HostService/CreateHost
vos     claw.fleet.v1.HostService/GetHost
vos     claw.fleet.v1.HostService/ListHosts
os      claw.fleet.v1.HostService/UpdateHost
o       claw.fleet.v1.HostService/DeleteHost
o       claw.fleet.v1.HostService/RevokeHost
vos     claw.fleet.v1.HostService/ListHostEvents
vos     claw.fleet.v1.HostService/GetHostFirewall
o       claw.fleet.v1.HostService/SetHostOffsite
os      claw.fleet.v1.InstanceService/CreateInstance
vos     claw.fleet.v1.InstanceService/GetInstance
vos     claw.fleet.v1.InstanceService/ListInstances
os      claw.fleet.v1.InstanceService/UpdateInstance
os      claw.fleet.v1.InstanceService/DeleteInstance
os      claw.fleet.v1.InstanceService/StartInstance
os      claw.fleet.v1.InstanceService/StopInstance
os      claw.fleet.v1.InstanceService/PauseInstance
os      claw.fleet.v1.InstanceService/ResumeInstance
os      claw.fleet.v1.InstanceService/RestartInstance
os      claw.fleet.v1.InstanceService/RebuildInstance
os      claw.fleet.v1.InstanceService/RollbackInstance
os      claw.fleet.v1.InstanceService/MigrateInstance
os      claw.fleet.v1.InstanceService/CancelMigration
vos     claw.fleet.v1.InstanceService/ListInstanceRevisions
vos     claw.fleet.v1.InstanceService/PlanInstance
vos     claw.fleet.v1.InstanceService/WatchInstances
os      claw.fleet.v1.InstanceService/FetchGatewayToken
o       claw.fleet.v1.InstanceService/FetchRecoveryPassword
os      claw.fleet.v1.SnapshotService/CreateSnapshot
vos     claw.fleet.v1.SnapshotService/GetSnapshot
vos     claw.fleet.v1.SnapshotService/ListSnapshots
os      claw.fleet.v1.SnapshotService/DeleteSnapshot
os      claw.fleet.v1.SnapshotService/VerifySnapshots
os      claw.fleet.v1.SnapshotService/ExportSnapshot
os      claw.fleet.v1.SnapshotService/ImportSnapshot
os      claw.fleet.v1.JoinTokenService/CreateJoinToken
vos     claw.fleet.v1.JoinTokenService/ListJoinTokens
os      claw.fleet.v1.JoinTokenService/DeleteJoinToken
ov      claw.fleet.v1.AuditService/ListAuditEntries
asov    grpc.health.v1.Health/Check
asov    grpc.health.v1.Health/Watch
asov    grpc.reflection.v1.ServerReflection/ServerReflectionInfo
asov    grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";
        assert_eq!(lines.join("\n"), expected);
    }
}
