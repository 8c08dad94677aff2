//! The answer to a submitted job: awaited or waited for, without any runtime.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Why a submitted job left nothing behind.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WriteError<E> {
    /// The queue was full; the job never ran. Try again later, with back-off.
    #[error("write queue is full: {capacity} jobs wait")]
    Busy {
        /// The bound of the queue.
        capacity: usize,
    },
    /// The job itself returned an error; its own writes were rolled back.
    #[error(transparent)]
    Job(E),
    /// The transaction around the job could not begin, or could not be committed (disk full,
    /// input/output error); every job of the batch was rolled back and got the same error.
    #[error("cannot commit")]
    Commit(#[source] Arc<rusqlite::Error>),
    /// The job panicked; its writes were rolled back.
    #[error("job panicked while writing")]
    Panicked,
    /// The writer stopped before the job ran.
    #[error("writer has stopped")]
    Stopped,
}

/// The outcome of a job that is on its way.
///
/// A [`Future`] of `Result<T, WriteError<E>>`; blocking code calls [`Pending::wait`]. `Ok` means
/// committed and fsynced. Dropping it does not cancel the job: it is committed all the same, and
/// only its answer is lost.
#[must_use = "the write is durable only once this has resolved"]
pub struct Pending<T, E> {
    slot: Arc<Slot<T, E>>,
}

impl<T, E> Pending<T, E> {
    /// Blocks until the job has been committed or has failed.
    ///
    /// Never call it inside a job: the writing thread would wait for itself.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub fn wait(self) -> Result<T, WriteError<E>> {
        let mut state = self.slot.lock();
        loop {
            if let Some(outcome) = state.outcome.take() {
                return outcome;
            }
            state = self.slot.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// An answer that is already known.
    pub(crate) fn resolved(outcome: Result<T, WriteError<E>>) -> Self {
        let (completer, pending) = channel();
        completer.complete(outcome);
        pending
    }
}

impl<T, E> Future for Pending<T, E> {
    type Output = Result<T, WriteError<E>>;

    /// After it has been ready once, it stays pending.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.slot.lock();
        if let Some(outcome) = state.outcome.take() {
            return Poll::Ready(outcome);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            None => state.waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl<T, E> fmt::Debug for Pending<T, E> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// The other end: dropped without an answer, it answers [`WriteError::Stopped`].
pub(crate) struct Completer<T, E> {
    slot: Option<Arc<Slot<T, E>>>,
}

impl<T, E> Completer<T, E> {
    pub(crate) fn complete(mut self, outcome: Result<T, WriteError<E>>) {
        if let Some(slot) = self.slot.take() {
            slot.fill(outcome);
        }
    }
}

impl<T, E> Drop for Completer<T, E> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.fill(Err(WriteError::Stopped));
        }
    }
}

pub(crate) fn channel<T, E>() -> (Completer<T, E>, Pending<T, E>) {
    let slot = Arc::new(Slot {
        state: Mutex::new(State { outcome: None, waker: None }),
        done: Condvar::new(),
    });
    (Completer { slot: Some(Arc::clone(&slot)) }, Pending { slot })
}

struct Slot<T, E> {
    state: Mutex<State<T, E>>,
    done: Condvar,
}

struct State<T, E> {
    outcome: Option<Result<T, WriteError<E>>>,
    waker: Option<Waker>,
}

impl<T, E> Slot<T, E> {
    fn lock(&self) -> MutexGuard<'_, State<T, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, outcome: Result<T, WriteError<E>>) {
        let waker = {
            let mut state = self.lock();
            state.outcome = Some(outcome);
            state.waker.take()
        };
        self.done.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
