//! Gateways in their containers.

mod control;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;

use claw_core::name::{ImageRef, InstanceName};
use claw_core::plan::VirtualHost;

use super::FakeRuntime;
use crate::ports::{Gateway, GatewayAnswer};

pub use control::FakeSuspended;

/// Answers "started" as soon as the container runs, unless told otherwise for the instance or its image.
#[derive(Debug, Clone)]
pub struct FakeGateway {
    runtime: FakeRuntime,
    answers: Rc<RefCell<BTreeMap<InstanceName, Told>>>,
    images: Rc<RefCell<BTreeMap<ImageRef, GatewayAnswer>>>,
    looks: Rc<RefCell<u64>>,
    suspended: Rc<RefCell<BTreeSet<SocketAddr>>>,
}

#[derive(Debug, Clone)]
enum Told {
    Answer(GatewayAnswer),
    Hang,
}

impl FakeGateway {
    pub(super) fn new(runtime: FakeRuntime) -> Self {
        Self {
            runtime,
            answers: Rc::default(),
            images: Rc::default(),
            looks: Rc::default(),
            suspended: Rc::default(),
        }
    }

    /// Answers this from now on, while the container runs.
    pub fn answer(&self, name: &InstanceName, answer: GatewayAnswer) {
        self.answers.borrow_mut().insert(name.clone(), Told::Answer(answer));
    }

    /// Every container of an image, trials included, answers this from now on; none: it answers well.
    pub fn answer_image(&self, image: &ImageRef, answer: Option<GatewayAnswer>) {
        let mut images = self.images.borrow_mut();
        match answer {
            Some(answer) => images.insert(image.clone(), answer),
            None => images.remove(image),
        };
    }

    /// Does not answer at all from now on.
    pub fn hang(&self, name: &InstanceName) {
        self.answers.borrow_mut().insert(name.clone(), Told::Hang);
    }

    /// Answers well again.
    pub fn recover(&self, name: &InstanceName) {
        self.answers.borrow_mut().remove(name);
    }

    /// How often somebody has looked.
    #[must_use]
    pub fn looks(&self) -> u64 {
        *self.looks.borrow()
    }
}

impl FakeGateway {
    fn of_image(&self, image: Option<ImageRef>) -> GatewayAnswer {
        let told = image.and_then(|image| self.images.borrow().get(&image).cloned());
        told.unwrap_or(GatewayAnswer::Started { ready: true })
    }
}

impl Gateway for FakeGateway {
    async fn look(&self, host: &VirtualHost) -> GatewayAnswer {
        *self.looks.borrow_mut() += 1;
        if !self.runtime.is_running(&host.instance) {
            return GatewayAnswer::Failing("nothing listens".to_owned());
        }
        let told = self.answers.borrow().get(&host.instance).cloned();
        match told {
            None => self.of_image(self.runtime.image(&host.instance)),
            Some(Told::Answer(answer)) => answer,
            // The port's own bound of 5 s, without the wait.
            Some(Told::Hang) => GatewayAnswer::Failing("no answer within 5 s".to_owned()),
        }
    }

    async fn look_directly(&self, gateway: SocketAddr) -> GatewayAnswer {
        match self.runtime.listening(gateway.ip()) {
            Some(image) => self.of_image(Some(image)),
            None => GatewayAnswer::Failing("nothing listens".to_owned()),
        }
    }
}
