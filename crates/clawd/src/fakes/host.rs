//! The host itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use claw_core::report::{HostResources, Usage};
use claw_core::unit::MIB;

use crate::ports::Host;

/// The first process of every running container.
pub(super) const GATEWAY_PID: u32 = 42;

/// A host with 4 cores and 8 GiB.
#[derive(Debug, Clone)]
pub struct FakeHost {
    boot_id: Rc<RefCell<String>>,
    used: Rc<Cell<u64>>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self {
            boot_id: Rc::new(RefCell::new("boot-1".to_owned())),
            used: Rc::new(Cell::new(600 * MIB)),
        }
    }
}

impl FakeHost {
    /// Boots again.
    pub fn boot(&self, boot_id: &str) {
        boot_id.clone_into(&mut self.boot_id.borrow_mut());
    }

    /// Every gateway uses so many bytes of memory, of 1 GiB.
    pub fn use_memory(&self, bytes: u64) {
        self.used.set(bytes);
    }
}

impl Host for FakeHost {
    fn boot_id(&self) -> String {
        self.boot_id.borrow().clone()
    }

    fn kernel_version(&self) -> String {
        "6.1.0-fake".to_owned()
    }

    fn resources(&self) -> HostResources {
        HostResources {
            memory_total_bytes: 8192 * MIB,
            memory_available_bytes: 4096 * MIB,
            cpu_count: 4,
            ..HostResources::default()
        }
    }

    fn usage(&self, pid: u32) -> Option<Usage> {
        (pid == GATEWAY_PID).then(|| Usage {
            memory_bytes: self.used.get(),
            memory_limit_bytes: 1024 * MIB,
            pids: 3,
            ..Usage::default()
        })
    }
}
