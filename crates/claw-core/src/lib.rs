//! The fleet's decisions as pure values and functions.
//!
//! What it is for: names, specs, stamps and policies that every other crate speaks in, and the
//! one function that matters on a host, [`plan::plan`]: what must be done to make an instance true.
//!
//! What it deliberately does not do: I/O, clocks, randomness, serialisation, logging. Time and
//! random numbers are passed in; every function is total and deterministic.
//!
//! Where to start: [`spec::InstanceSpec`] is what a customer's gateway should be,
//! [`observed::ObservedInstance`] what it is, [`plan::plan`] the way from one to the other.

pub mod address;
pub mod backoff;
pub mod backup;
pub mod cutover;
pub mod data;
pub mod event;
pub mod firewall;
pub mod host;
pub mod images;
pub mod migration;
pub mod name;
pub mod observed;
pub mod offsite;
pub mod plan;
pub mod reclaim;
pub mod report;
pub mod restart;
pub mod spec;
pub mod stamp;
pub mod tier;
pub mod time;
pub mod unit;
