//! All ports of one machine together, so that code is generic over one thing.

use crate::ports::{Clock, Files, Gateway, Host, Proxy, Runtime};

/// A machine: the real one, or a fake one in tests.
pub trait Machine: 'static {
    /// Containers, images, networks.
    type Runtime: Runtime;
    /// Data, delivered files, secrets.
    type Files: Files;
    /// The reverse proxy.
    type Proxy: Proxy;
    /// Gateways in their containers.
    type Gateway: Gateway;
    /// The host itself.
    type Host: Host;
    /// Time and randomness.
    type Clock: Clock;

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
}

/// A machine put together from its ports.
#[derive(Debug)]
pub struct Ports<R, F, P, G, H, C> {
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
}

impl<R, F, P, G, H, C> Machine for Ports<R, F, P, G, H, C>
where
    R: Runtime + 'static,
    F: Files + 'static,
    P: Proxy + 'static,
    G: Gateway + 'static,
    H: Host + 'static,
    C: Clock + 'static,
{
    type Runtime = R;
    type Files = F;
    type Proxy = P;
    type Gateway = G;
    type Host = H;
    type Clock = C;

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
}
