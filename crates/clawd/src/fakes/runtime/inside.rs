//! Programs within containers: there is one, which approves what a gateway was asked.

use std::net::IpAddr;
use std::time::Duration;

use claw_core::observed::ContainerState;

use super::{FakeRuntime, refused};
use crate::ports::{Inside, Ran, RuntimeError};

impl FakeRuntime {
    /// Whether a request was approved.
    #[must_use]
    pub fn has_approved(&self, request: &str) -> bool {
        self.state.borrow().approved.contains(request)
    }

    /// Whether a container runs there; one that was planted is everywhere.
    pub(in crate::fakes) fn listens_at(&self, address: IpAddr) -> bool {
        let state = self.state.borrow();
        state.containers.iter().any(|(name, container)| {
            let there = state.plans.get(name).is_none_or(|(plan, _)| plan.address == address);
            there && matches!(container.state, ContainerState::Running { .. })
        })
    }
}

impl Inside for FakeRuntime {
    async fn run_inside(
        &self,
        container: &str,
        argv: &[&str],
        _deadline: Duration,
    ) -> Result<Ran, RuntimeError> {
        const DOING: &str = "running a program within a container";
        let call = self.mishaps.effect("run-inside");
        let runs = self.state.borrow().containers.values().any(|found| {
            found.id == container && matches!(found.state, ContainerState::Running { .. })
        });
        if !runs || !call.may_begin().await {
            return Err(refused(DOING));
        }
        let ran = match argv {
            ["openclaw", "devices", "approve", request, "--json"] => {
                self.state.borrow_mut().approved.insert((*request).to_owned());
                Ran { status: 0, output: "{}".to_owned() }
            }
            [program, ..] => Ran { status: 126, output: format!("no {program} here") },
            [] => return Err(refused(DOING)),
        };
        if call.may_end().await { Ok(ran) } else { Err(refused(DOING)) }
    }
}
