//! A clock that stands still until a test moves it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use claw_core::time::Timestamp;

use crate::ports::Clock;

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;

/// A clock that stands still until a test moves it.
#[derive(Debug, Clone)]
pub struct FakeClock {
    state: Rc<RefCell<State>>,
}

#[derive(Debug)]
struct State {
    now: Timestamp,
    random: u64,
    next: u64,
    sleepers: BTreeMap<u64, (Timestamp, Waker)>,
}

impl Default for FakeClock {
    fn default() -> Self {
        let now = Timestamp::from_millis(START);
        let state = State { now, random: 0, next: 0, sleepers: BTreeMap::new() };
        Self { state: Rc::new(RefCell::new(state)) }
    }
}

impl FakeClock {
    /// Moves on, and wakes who has slept long enough.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.borrow_mut();
        state.now = state.now.after(by);
        let now = state.now;
        let wakers: Vec<Waker> = state
            .sleepers
            .values()
            .filter(|(until, _)| *until <= now)
            .map(|(_, waker)| waker.clone())
            .collect();
        drop(state);
        wakers.iter().for_each(Waker::wake_by_ref);
    }

    /// Time until the first sleeper wakes; `None` when nobody sleeps.
    #[must_use]
    pub fn until_next(&self) -> Option<Duration> {
        let state = self.state.borrow();
        let first = state.sleepers.values().map(|(until, _)| *until).min()?;
        Some(first.since(state.now))
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        self.state.borrow().now
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        let until = state.now.after(duration);
        Sleep { state: Rc::clone(&self.state), key: state.next, until }
    }

    fn random(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        // Knuth's multiplier (MMIX): good enough to spread, the same in every run.
        state.random = state.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.random
    }
}

struct Sleep {
    state: Rc<RefCell<State>>,
    key: u64,
    until: Timestamp,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if state.now >= self.until {
            state.sleepers.remove(&self.key);
            return Poll::Ready(());
        }
        state.sleepers.insert(self.key, (self.until, context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.state.borrow_mut().sleepers.remove(&self.key);
    }
}
