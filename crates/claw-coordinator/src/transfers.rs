//! Transfers: archives and repositories on their way between two ends, past the coordinator's disk.
//!
//! An end is an agent, known by its certificate, or a call of the API. The coordinator passes pieces on, a few
//! at a time, each way, and tells both ends why a transfer was broken off. Everything is in memory: a restart
//! ends every transfer, and whoever wanted it begins a new one.
//!
//! What it does not do: look into pieces. Start at [`Transfers::to_caller`] and [`Transfers::between`]; an
//! agent comes in by [`Transfers::take`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use claw_core::name::HostName;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::refusal::Refusal;
use crate::store::random_id;

/// Most bytes of one piece; see `node.proto`.
pub const MAX_PIECE: usize = 64 * 1024;
/// Pieces that wait for each end.
const WAITING: usize = 4;
/// Most transfers at once: each takes a MiB at most, buffers of HTTP/2 included.
const MAX_OPEN: usize = 32;
/// Most transfers of one host at once. A connection takes 256 KiB at once and a stream 64 KiB of them
/// ([`crate::connection`]): the session that shares it must never wait for transfers that stand still.
const MAX_OF_HOST: usize = 3;
/// Time for both ends to come.
const COME_WITHIN: Duration = Duration::from_secs(60);
/// Nothing moved for this long: it never will.
const SILENCE: Duration = Duration::from_secs(600);

/// All transfers.
#[derive(Debug, Clone, Default)]
pub struct Transfers {
    table: Arc<Mutex<Table>>,
}

/// A transfer was broken off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// An end is gone without its last word.
    #[error("the other end went away")]
    Gone,
    /// An end gave up.
    #[error("the other end gave up: {0}")]
    GaveUp(String),
    /// An end did not come.
    #[error("the other end did not come within {} s", COME_WITHIN.as_secs())]
    NotCome,
    /// Nothing moved.
    #[error("nothing moved for {} s", SILENCE.as_secs())]
    Silent,
    /// The coordinator ends.
    #[error("the coordinator is shutting down")]
    Closing,
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        let description = cause.to_string();
        match cause {
            Cause::Gone | Cause::GaveUp(_) => Self::BrokenOff { description },
            Cause::NotCome | Cause::Closing => {
                Self::Unavailable { description, retry: Duration::from_secs(5) }
            }
            Cause::Silent => Self::TooLate { description },
        }
    }
}

/// One end of a transfer.
#[derive(Debug)]
pub struct End {
    /// What goes away from it.
    pub sending: Sending,
    /// What comes to it.
    pub receiving: Receiving,
}

/// What goes away from an end. Dropped before [`Sending::finish`], it breaks the transfer off.
#[derive(Debug)]
pub struct Sending {
    wire: Arc<Wire>,
    side: Side,
    out: Option<mpsc::Sender<Vec<u8>>>,
}

/// What comes to an end.
#[derive(Debug)]
pub struct Receiving {
    wire: Arc<Wire>,
    side: Side,
    inward: mpsc::Receiver<Vec<u8>>,
}

/// A transfer as whoever began it sees it.
#[derive(Debug)]
pub struct Begun {
    /// What its ends call it.
    pub id: String,
    wire: Arc<Wire>,
}

#[derive(Debug, Default)]
struct Table {
    is_closed: bool,
    open: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    hosts: Vec<HostName>,
    /// Ends whose agents have not come yet.
    awaited: Vec<(HostName, End)>,
    wire: Arc<Wire>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    First,
    Second,
}

/// What both ends share.
#[derive(Debug)]
struct Wire {
    state: watch::Sender<State>,
    moved: Mutex<Instant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct State {
    broken: Option<Cause>,
    come: Both,
    /// Has sent everything.
    ended: Both,
    /// Has got everything, or wants no more.
    drained: Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Both {
    first: bool,
    second: bool,
}

impl Transfers {
    /// Begins a transfer between an agent and a call of the API, whose end is here already.
    ///
    /// # Errors
    /// [`Refusal::Exhausted`] when there are too many, [`Refusal::Unavailable`] on shutdown.
    pub fn to_caller(&self, host: &HostName) -> Result<(Begun, End), Refusal> {
        let (wire, here, there) = Wire::ends();
        wire.come(Side::First);
        let begun = self.open(wire, vec![(host.clone(), there)])?;
        Ok((begun, here))
    }

    /// Begins a transfer between two agents.
    ///
    /// # Errors
    /// As [`Transfers::to_caller`].
    pub fn between(&self, hosts: [&HostName; 2]) -> Result<Begun, Refusal> {
        let (wire, first, second) = Wire::ends();
        let [one, other] = hosts;
        self.open(wire, vec![(one.clone(), first), (other.clone(), second)])
    }

    /// The end of a transfer that this host was told of; each is given once.
    #[must_use]
    pub fn take(&self, id: &str, host: &HostName) -> Option<End> {
        let mut table = self.lock();
        let awaited = &mut table.open.get_mut(id)?.awaited;
        let index = awaited.iter().position(|(of, _end)| of == host)?;
        let (_host, end) = awaited.swap_remove(index);
        end.sending.wire.come(end.sending.side);
        Some(end)
    }

    /// Ends all transfers, for a shutdown.
    pub fn close(&self) {
        let mut table = self.lock();
        table.is_closed = true;
        for entry in table.open.values() {
            entry.wire.break_off(Cause::Closing);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.lock().open.len()
    }

    fn open(&self, wire: Arc<Wire>, awaited: Vec<(HostName, End)>) -> Result<Begun, Refusal> {
        let mut table = self.lock();
        if table.is_closed {
            return Err(Cause::Closing.into());
        }
        let hosts: Vec<HostName> = awaited.iter().map(|(host, _end)| host.clone()).collect();
        table.has_room(&hosts)?;
        let id = random_id();
        let entry = Entry { hosts, awaited, wire: Arc::clone(&wire) };
        table.open.insert(id.clone(), entry);
        drop(table);
        tokio::spawn(guard(Arc::downgrade(&self.table), id.clone(), Arc::clone(&wire)));
        Ok(Begun { id, wire })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn has_room(&self, hosts: &[HostName]) -> Result<(), Refusal> {
        let too_many =
            |description| Err(Refusal::Exhausted { description, retry: Duration::from_secs(30) });
        if self.open.len() >= MAX_OPEN {
            return too_many(format!("{MAX_OPEN} transfers are under way already"));
        }
        for host in hosts {
            let of_host = self.open.values().filter(|entry| entry.hosts.contains(host));
            if of_host.count() >= MAX_OF_HOST {
                return too_many(format!("hosts/{host} has {MAX_OF_HOST} transfers already"));
            }
        }
        Ok(())
    }
}

impl Begun {
    /// Waits until both ends have sent and got everything.
    ///
    /// # Errors
    /// Why it was broken off.
    pub async fn outcome(&self) -> Result<(), Cause> {
        let mut states = self.wire.state.subscribe();
        let done = states.wait_for(|state| state.broken.is_some() || state.is_complete()).await;
        // The sender lives as long as we do.
        done.map_err(|_closed| Cause::Gone)?.broken.clone().map_or(Ok(()), Err)
    }

    /// Breaks it off.
    pub fn break_off(&self, cause: Cause) {
        self.wire.break_off(cause);
    }
}

impl Sending {
    /// Sends a piece; waits while the other end is behind. A piece without bytes only says that this end is
    /// alive. Cancel-safe: a piece is given whole or not at all.
    ///
    /// # Errors
    /// Why the transfer was broken off.
    pub async fn give(&self, piece: Vec<u8>) -> Result<(), Cause> {
        self.wire.touch();
        let Some(out) = self.out.as_ref().filter(|_out| !piece.is_empty()) else { return Ok(()) };
        tokio::select! {
            biased;
            cause = self.wire.broken() => Err(cause),
            sent = out.send(piece) => match sent {
                Ok(()) => {
                    self.wire.touch();
                    Ok(())
                }
                Err(_taken_no_more) => Err(self.wire.break_off(Cause::Gone)),
            },
        }
    }

    /// Everything was sent.
    pub fn finish(&mut self) {
        if self.out.take().is_some() {
            self.wire.change(|state| state.ended.set(self.side));
        }
    }

    /// Gives up, for this reason.
    pub fn give_up(&self, why: String) {
        self.wire.break_off(Cause::GaveUp(why));
    }

    /// Waits until the transfer is broken off.
    pub async fn broken(&self) -> Cause {
        self.wire.broken().await
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.out.is_some() {
            self.wire.break_off(Cause::Gone);
        }
    }
}

impl Receiving {
    /// The next piece; none when the other end has sent everything. Cancel-safe.
    ///
    /// # Errors
    /// Why the transfer was broken off.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Cause> {
        tokio::select! {
            biased;
            cause = self.wire.broken() => Err(cause),
            piece = self.inward.recv() => {
                self.wire.touch();
                if piece.is_none() {
                    if let Some(cause) = self.wire.cause() {
                        return Err(cause);
                    }
                    self.wire.change(|state| state.drained.set(self.side));
                }
                Ok(piece)
            }
        }
    }

    /// Waits until the transfer is broken off.
    pub async fn broken(&self) -> Cause {
        self.wire.broken().await
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.wire.change(|state| state.drained.set(self.side));
    }
}

impl Wire {
    fn ends() -> (Arc<Self>, End, End) {
        let wire = Arc::new(Self {
            state: watch::Sender::new(State::default()),
            moved: Mutex::new(Instant::now()),
        });
        let (to_second, from_first) = mpsc::channel(WAITING);
        let (to_first, from_second) = mpsc::channel(WAITING);
        let end = |side, out, inward| End {
            sending: Sending { wire: Arc::clone(&wire), side, out: Some(out) },
            receiving: Receiving { wire: Arc::clone(&wire), side, inward },
        };
        let first = end(Side::First, to_second, from_second);
        let second = end(Side::Second, to_first, from_first);
        (wire, first, second)
    }

    fn come(&self, side: Side) {
        self.touch();
        self.change(|state| state.come.set(side));
    }

    /// Breaks the transfer off, unless it is already; returns why it is.
    fn break_off(&self, cause: Cause) -> Cause {
        let mut why = cause;
        self.change(|state| why = state.broken.get_or_insert_with(|| why.clone()).clone());
        why
    }

    fn cause(&self) -> Option<Cause> {
        self.state.borrow().broken.clone()
    }

    async fn broken(&self) -> Cause {
        let mut states = self.state.subscribe();
        let broken = states.wait_for(|state| state.broken.is_some()).await;
        // The sender lives as long as we do.
        broken.ok().and_then(|state| state.broken.clone()).unwrap_or(Cause::Gone)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
    }

    fn touch(&self) {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn moved(&self) -> Instant {
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_complete(&self) -> bool {
        self.ended.all() && self.drained.all()
    }
}

impl Both {
    fn set(&mut self, side: Side) {
        match side {
            Side::First => self.first = true,
            Side::Second => self.second = true,
        }
    }

    fn all(self) -> bool {
        self.first && self.second
    }
}

/// Watches one transfer to its end, and gives its place free.
async fn guard(table: Weak<Mutex<Table>>, id: String, wire: Arc<Wire>) {
    let begun = Instant::now();
    let mut states = wire.state.subscribe();
    loop {
        let state = states.borrow_and_update().clone();
        if state.broken.is_some() || state.is_complete() {
            break;
        }
        let (deadline, cause) = if state.come.all() {
            (wire.moved() + SILENCE, Cause::Silent)
        } else {
            (begun + COME_WITHIN, Cause::NotCome)
        };
        if Instant::now() >= deadline {
            wire.break_off(cause);
            break;
        }
        tokio::select! {
            // Never an error: the sender is ours.
            _changed = states.changed() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
    let Some(table) = table.upgrade() else { return };
    let entry = table.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&id);
    // Ends that nobody took go with it.
    drop(entry);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    async fn gone(transfers: &Transfers) {
        while transfers.open_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_pass_both_ways_and_the_end_is_told() {
        let transfers = Transfers::default();
        let begun = transfers.between([&host("a"), &host("b")]).unwrap();
        let mut a = transfers.take(&begun.id, &host("a")).unwrap();
        let mut b = transfers.take(&begun.id, &host("b")).unwrap();
        assert!(transfers.take(&begun.id, &host("a")).is_none(), "once");
        a.sending.give(vec![1]).await.unwrap();
        b.sending.give(vec![2]).await.unwrap();
        b.sending.give(Vec::new()).await.unwrap();
        a.sending.finish();
        b.sending.finish();
        assert_eq!(b.receiving.next().await, Ok(Some(vec![1])));
        assert_eq!(b.receiving.next().await, Ok(None));
        assert_eq!(a.receiving.next().await, Ok(Some(vec![2])));
        assert_eq!(a.receiving.next().await, Ok(None));
        assert_eq!(begun.outcome().await, Ok(()));
        drop((a, b));
        assert_eq!(begun.outcome().await, Ok(()));
        gone(&transfers).await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_hosts_that_were_named_may_take_it() {
        let transfers = Transfers::default();
        let (begun, _end) = transfers.to_caller(&host("a")).unwrap();
        assert!(transfers.take(&begun.id, &host("b")).is_none());
        assert!(transfers.take("other", &host("a")).is_none());
        assert!(transfers.take(&begun.id, &host("a")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_waits_for_whoever_reads() {
        let transfers = Transfers::default();
        let (begun, mut caller) = transfers.to_caller(&host("a")).unwrap();
        let agent = transfers.take(&begun.id, &host("a")).unwrap();
        for piece in 0..4 {
            agent.sending.give(vec![piece]).await.unwrap();
        }
        let fifth = tokio::time::timeout(Duration::from_secs(60), agent.sending.give(vec![4]));
        assert!(fifth.await.is_err(), "no more than a few wait");
        assert_eq!(caller.receiving.next().await, Ok(Some(vec![0])));
        agent.sending.give(vec![4]).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn both_ends_hear_why_it_was_broken_off() {
        let transfers = Transfers::default();
        let (begun, mut caller) = transfers.to_caller(&host("a")).unwrap();
        let agent = transfers.take(&begun.id, &host("a")).unwrap();
        agent.sending.give(vec![1]).await.unwrap();
        agent.sending.give_up("the disk is full".to_owned());
        let cause = Cause::GaveUp("the disk is full".to_owned());
        assert_eq!(caller.receiving.next().await, Err(cause.clone()));
        assert_eq!(begun.outcome().await, Err(cause));
        gone(&transfers).await;

        let (begun, caller) = transfers.to_caller(&host("a")).unwrap();
        let mut agent = transfers.take(&begun.id, &host("a")).unwrap();
        drop(caller);
        assert_eq!(agent.receiving.next().await, Err(Cause::Gone));
        assert_eq!(agent.sending.give(vec![1]).await, Err(Cause::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let transfers = Transfers::default();
        let (begun, mut caller) = transfers.to_caller(&host("a")).unwrap();
        let started = Instant::now();
        assert_eq!(caller.receiving.next().await, Err(Cause::NotCome));
        assert_eq!(started.elapsed(), COME_WITHIN);
        assert!(transfers.take(&begun.id, &host("a")).is_none(), "too late");

        let (begun, mut caller) = transfers.to_caller(&host("a")).unwrap();
        let agent = transfers.take(&begun.id, &host("a")).unwrap();
        tokio::time::sleep(SILENCE - Duration::from_secs(1)).await;
        agent.sending.give(Vec::new()).await.unwrap();
        let alive = Instant::now();
        assert_eq!(caller.receiving.next().await, Err(Cause::Silent));
        assert_eq!(alive.elapsed(), SILENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn there_are_few_at_once() {
        let transfers = Transfers::default();
        let kept: Vec<_> =
            (0..MAX_OF_HOST).map(|_| transfers.to_caller(&host("a")).unwrap()).collect();
        let refused = transfers.between([&host("b"), &host("a")]).unwrap_err();
        assert!(matches!(refused, Refusal::Exhausted { .. }), "{refused:?}");
        let others: Vec<_> = (MAX_OF_HOST..MAX_OPEN)
            .map(|number| transfers.to_caller(&host(&format!("h{number}"))).unwrap())
            .collect();
        assert!(matches!(transfers.to_caller(&host("z")), Err(Refusal::Exhausted { .. })));
        drop((kept, others));
        gone(&transfers).await;
        assert!(transfers.to_caller(&host("z")).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_them() {
        let transfers = Transfers::default();
        let (_begun, mut caller) = transfers.to_caller(&host("a")).unwrap();
        transfers.close();
        assert_eq!(caller.receiving.next().await, Err(Cause::Closing));
        assert!(matches!(transfers.to_caller(&host("a")), Err(Refusal::Unavailable { .. })));
    }
}
