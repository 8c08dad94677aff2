//! The coordinator from outside: real mTLS over loopback, a real store in a temporary directory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod api;
mod attacks;
mod changes;
mod cli;
mod enrolment;
mod firewall;
mod fixture;
mod hostile_bytes;
mod migration;
mod moving_host;
mod offsite;
mod restart;
mod rollback;
mod secrecy;
mod sessions;
mod snapshots;
mod transfers;
mod watching;
