//! Observe → plan → execute → report, for every instance and without end.
//!
//! [`host::HostLoop`] owns the instances: it takes desired states, passes on what Docker says and
//! feeds the watchdog. Each instance has a loop of its own ([`instance`]); they progress independently.
//! Nothing but [`execute`] and, for the host as a whole, [`firewall`] changes the machine.
//!
//! What it does not do: talk to the coordinator. Offers come in through a mailbox in which only the
//! newest counts; reports go to the board.
//!
//! Where to start: [`host::HostLoop::run`], then [`instance`].

pub mod accept;
pub mod deadline;
pub mod execute;
mod exits;
mod firewall;
mod health;
pub mod host;
mod instance;
pub mod observe;
mod wake;

pub use host::{HostLoop, Inbox, Offer, Request};
