//! Observe → plan → execute → report, for every instance and without end.
//!
//! [`host::HostLoop`] owns the instances: it takes desired states, passes on what Docker says and
//! feeds the watchdog. Each instance has a loop of its own ([`instance`]); they progress independently. One
//! more, [`backups`], takes snapshots of all of them, one, [`images`], removes what none of them needs, and
//! one, [`reclaim`], asks for the data of paused instances when the disk is full.
//! Nothing but [`execute`], [`prepare`] (for a change of version) and [`trial`], and, for the host as a whole,
//! [`firewall`], [`backups`] and [`images`], changes the machine.
//!
//! What it does not do: talk to the coordinator. Offers come in through a mailbox in which only the
//! newest counts; reports go to the board.
//!
//! Where to start: [`host::HostLoop::run`], then [`instance`].

pub mod accept;
mod backups;
pub mod deadline;
pub mod execute;
mod exits;
mod firewall;
mod freeze;
mod health;
pub mod host;
mod images;
mod instance;
pub mod observe;
mod prepare;
mod reclaim;
mod trial;
mod wake;

pub use backups::{BackupRequest, BackupWork, Errand, Extent, Fetch, Passage};
pub use host::{HostLoop, Inbox, Offer, Request};
pub use trial::TrialFailure;
pub use wake::{Bell, Cause};
