//! All ports of one machine together, so that code is generic over one thing.

use crate::ports::{
    Clock, Control, Files, Firewall, Gateway, Host, Inside, LoginLog, Offsite, Proxy, Resolver,
    Runtime, Snapshots, Traffic, Transfers, Trials, Uplink, Volumes,
};

/// A machine: the real one, or a fake one in tests.
pub trait Machine: 'static {
    /// Containers, images, networks, trials, programs within containers.
    type Runtime: Runtime + Trials + Inside;
    /// Data, delivered files, secrets.
    type Files: Files;
    /// The reverse proxy.
    type Proxy: Proxy;
    /// Gateways in their containers.
    type Gateway: Gateway + Control;
    /// The host itself.
    type Host: Host;
    /// Time and randomness.
    type Clock: Clock;
    /// The packet filter.
    type Firewall: Firewall + Traffic;
    /// The log of logins.
    type LoginLog: LoginLog;
    /// The forwarder of names.
    type Resolver: Resolver;
    /// The way to the coordinator.
    type Uplink: Uplink;
    /// Data directories.
    type Volumes: Volumes;
    /// Snapshots of them, and how they leave the host.
    type Snapshots: Snapshots + Offsite + Transfers;

    /// Containers, images, networks.
    fn runtime(&self) -> &Self::Runtime;
    /// Data, delivered files, secrets.
    fn files(&self) -> &Self::Files;
    /// The reverse proxy.
    fn proxy(&self) -> &Self::Proxy;
    /// Gateways in their containers.
    fn gateway(&self) -> &Self::Gateway;
    /// The host itself.
    fn host(&self) -> &Self::Host;
    /// Time and randomness.
    fn clock(&self) -> &Self::Clock;
    /// The packet filter.
    fn firewall(&self) -> &Self::Firewall;
    /// The log of logins.
    fn login_log(&self) -> &Self::LoginLog;
    /// The forwarder of names.
    fn resolver(&self) -> &Self::Resolver;
    /// The way to the coordinator.
    fn uplink(&self) -> &Self::Uplink;
    /// Data directories.
    fn volumes(&self) -> &Self::Volumes;
    /// Snapshots of them.
    fn snapshots(&self) -> &Self::Snapshots;
}

/// A machine put together from its ports.
#[derive(Debug)]
pub struct Ports<R, F, P, G, H, C, W, L, D, U, V, S> {
    /// Containers, images, networks.
    pub runtime: R,
    /// Data, delivered files, secrets.
    pub files: F,
    /// The reverse proxy.
    pub proxy: P,
    /// Gateways in their containers.
    pub gateway: G,
    /// The host itself.
    pub host: H,
    /// Time and randomness.
    pub clock: C,
    /// The packet filter.
    pub firewall: W,
    /// The log of logins.
    pub login_log: L,
    /// The forwarder of names.
    pub resolver: D,
    /// The way to the coordinator.
    pub uplink: U,
    /// Data directories.
    pub volumes: V,
    /// Snapshots of them.
    pub snapshots: S,
}

impl<R, F, P, G, H, C, W, L, D, U, V, S> Machine for Ports<R, F, P, G, H, C, W, L, D, U, V, S>
where
    R: Runtime + Trials + Inside + 'static,
    F: Files + 'static,
    P: Proxy + 'static,
    G: Gateway + Control + 'static,
    H: Host + 'static,
    C: Clock + 'static,
    W: Firewall + Traffic + 'static,
    L: LoginLog + 'static,
    D: Resolver + 'static,
    U: Uplink + 'static,
    V: Volumes + 'static,
    S: Snapshots + Offsite + Transfers + 'static,
{
    type Runtime = R;
    type Files = F;
    type Proxy = P;
    type Gateway = G;
    type Host = H;
    type Clock = C;
    type Firewall = W;
    type LoginLog = L;
    type Resolver = D;
    type Uplink = U;
    type Volumes = V;
    type Snapshots = S;

    fn runtime(&self) -> &R {
        &self.runtime
    }

    fn files(&self) -> &F {
        &self.files
    }

    fn proxy(&self) -> &P {
        &self.proxy
    }

    fn gateway(&self) -> &G {
        &self.gateway
    }

    fn host(&self) -> &H {
        &self.host
    }

    fn clock(&self) -> &C {
        &self.clock
    }

    fn firewall(&self) -> &W {
        &self.firewall
    }

    fn login_log(&self) -> &L {
        &self.login_log
    }

    fn resolver(&self) -> &D {
        &self.resolver
    }

    fn uplink(&self) -> &U {
        &self.uplink
    }

    fn volumes(&self) -> &V {
        &self.volumes
    }

    fn snapshots(&self) -> &S {
        &self.snapshots
    }
}
