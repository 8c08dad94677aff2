//! Conversions between wire and core. Decoding names every wrong field; encoding cannot fail.

mod api_spec;
pub mod backup;
pub mod firewall;
pub mod mask;
pub mod name;
pub mod session;
pub mod spec;
mod time;
pub mod violation;

pub use time::{duration_to_wire, timestamp_from_wire, timestamp_to_wire};
