//! Conversions between wire and core.

pub mod session;
pub mod spec;
pub mod violation;
