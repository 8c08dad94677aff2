//! The agent: makes a host's desired state true, and keeps it true.
//!
//! What it is for: it takes the host's whole desired state from the coordinator, persists it, and
//! reconciles every instance with it: observe → plan ([`claw_core::plan`]) → execute → report. With
//! no coordinator it works from its journal.
//!
//! What it deliberately does not do: invent a desired state, touch containers that are not ours,
//! publish ports, delete data.
//!
//! # Where to start
//!
//! [`ports`] says what the agent needs from the machine, [`reconcile`] what it does with it,
//! [`session`] how it talks to the coordinator, [`journal`] what it must not forget, [`roster`] what its loops
//! know of each other. Programs of their own in the same binary: [`dns`] and [`firewall`].

pub mod adapters;
pub mod agent;
pub mod cli;
pub mod config;
#[cfg(feature = "testing")]
pub mod contract;
pub mod dns;
#[cfg(feature = "testing")]
pub mod fakes;
pub mod firewall;
pub mod join;
pub mod joined;
pub mod journal;
pub mod logging;
pub mod machine;
pub mod ports;
pub mod reconcile;
pub mod report;
pub mod roster;
pub mod run;
pub mod session;
pub mod snap_worker;
