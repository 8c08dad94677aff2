//! Snapshots by child processes of this very program, as it is built for tests: what the agent gets when
//! everything goes well, and when the process, the agent, the disk or the repository does not.
//!
//! Where to start: [`ground::Ground`], which stands for a host; the contract that the fake is held to as well
//! is in [`contract`]. Memory is measured in [`memory`], databases that are being written in [`databases`].
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod carry;
mod contract;
mod damage;
mod databases;
mod ground;
mod hostile;
mod keys;
mod memory;
mod processes;
mod room;
mod s3;
