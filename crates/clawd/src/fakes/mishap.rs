//! What goes wrong, and when.

use std::cell::RefCell;
use std::rc::Rc;

/// How a call goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It fails and has done nothing.
    FailsBefore,
    /// It has done everything and fails all the same.
    FailsAfter,
    /// It never ends and has done nothing.
    HangsBefore,
    /// It has done everything and never ends.
    HangsAfter,
}

impl Mishap {
    /// Every way.
    pub const ALL: [Self; 4] =
        [Self::FailsBefore, Self::FailsAfter, Self::HangsBefore, Self::HangsAfter];
}

/// What goes wrong on a machine. Counts the calls that change it.
#[derive(Debug, Clone, Default)]
pub struct Mishaps {
    state: Rc<RefCell<State>>,
}

#[derive(Debug, Default)]
struct State {
    effects: Vec<String>,
    nth: Option<(usize, Mishap)>,
    named: Vec<(String, u32, Mishap)>,
}

/// A call that may go wrong.
#[derive(Debug)]
#[must_use]
pub(super) struct Call(Option<Mishap>);

impl Mishaps {
    /// The `n`-th effect from now on (0 is the next) goes wrong, once.
    pub fn nth_effect(&self, n: usize, mishap: Mishap) {
        let mut state = self.state.borrow_mut();
        let count = state.effects.len();
        state.nth = Some((count + n, mishap));
    }

    /// The next `times` calls of this name go wrong.
    pub fn named(&self, call: &str, times: u32, mishap: Mishap) {
        self.state.borrow_mut().named.push((call.to_owned(), times, mishap));
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        let mut state = self.state.borrow_mut();
        state.nth = None;
        state.named.clear();
    }

    /// The effects so far, in order, those that went wrong included.
    #[must_use]
    pub fn effects(&self) -> Vec<String> {
        self.state.borrow().effects.clone()
    }

    /// Whether the effect that was to go wrong has been reached.
    #[must_use]
    pub fn reached(&self) -> bool {
        self.state.borrow().nth.is_none()
    }

    /// A call that changes the machine.
    pub(super) fn effect(&self, name: &str) -> Call {
        let mut state = self.state.borrow_mut();
        let index = state.effects.len();
        state.effects.push(name.to_owned());
        let nth = state.nth.take_if(|(n, _)| *n == index).map(|(_, mishap)| mishap);
        drop(state);
        Call(nth.or_else(|| self.take_named(name)))
    }

    /// A call that only looks.
    pub(super) fn look(&self, name: &str) -> Call {
        Call(self.take_named(name))
    }

    fn take_named(&self, name: &str) -> Option<Mishap> {
        let mut state = self.state.borrow_mut();
        let entry = state.named.iter_mut().find(|(call, times, _)| call == name && *times > 0)?;
        entry.1 -= 1;
        Some(entry.2)
    }
}

impl Call {
    /// Before the effect: false when it fails.
    pub(super) async fn may_begin(&self) -> bool {
        match self.0 {
            Some(Mishap::FailsBefore) => false,
            Some(Mishap::HangsBefore) => std::future::pending().await,
            _ => true,
        }
    }

    /// After the effect: false when it fails.
    pub(super) async fn may_end(self) -> bool {
        match self.0 {
            Some(Mishap::FailsAfter) => false,
            Some(Mishap::HangsAfter) => std::future::pending().await,
            _ => true,
        }
    }
}

/// The cause of every failure of a fake.
#[derive(Debug, thiserror::Error)]
#[error("told to fail")]
pub(super) struct Told;
