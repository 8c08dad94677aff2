//! The reverse proxy.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use claw_core::name::InstanceName;
use claw_core::plan::VirtualHost;

use super::mishap::{Mishaps, Told};
use crate::ports::{Proxy, ProxyError};

/// Virtual hosts in memory.
#[derive(Debug, Clone)]
pub struct FakeProxy {
    hosts: Rc<RefCell<BTreeMap<InstanceName, VirtualHost>>>,
    mishaps: Mishaps,
}

impl FakeProxy {
    pub(super) fn new(mishaps: Mishaps) -> Self {
        Self { hosts: Rc::default(), mishaps }
    }

    /// Who is served.
    #[must_use]
    pub fn published(&self) -> Vec<InstanceName> {
        self.hosts.borrow().keys().cloned().collect()
    }

    /// Somebody deletes a virtual host by hand.
    pub fn lose(&self, name: &InstanceName) {
        self.hosts.borrow_mut().remove(name);
    }
}

fn failed() -> ProxyError {
    ProxyError::Command { doing: "reloading", source: Box::new(io::Error::other(Told)) }
}

impl Proxy for FakeProxy {
    async fn is_current(&self, host: &VirtualHost) -> Result<bool, ProxyError> {
        if !self.mishaps.look("is-current").may_begin().await {
            return Err(failed());
        }
        Ok(self.hosts.borrow().get(&host.instance) == Some(host))
    }

    async fn publish(&self, host: &VirtualHost) -> Result<(), ProxyError> {
        let call = self.mishaps.effect("publish");
        if !call.may_begin().await {
            return Err(failed());
        }
        self.hosts.borrow_mut().insert(host.instance.clone(), host.clone());
        if call.may_end().await { Ok(()) } else { Err(failed()) }
    }

    async fn unpublish(&self, instance: &InstanceName) -> Result<(), ProxyError> {
        let call = self.mishaps.effect("unpublish");
        if !call.may_begin().await {
            return Err(failed());
        }
        self.hosts.borrow_mut().remove(instance);
        if call.may_end().await { Ok(()) } else { Err(failed()) }
    }

    fn listen(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, 8080).into()
    }
}
