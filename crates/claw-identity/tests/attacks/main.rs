//! What holders of keys, certificates and tokens may and may not achieve.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its fixtures too")]

mod authority;
mod handshake;
mod identity_dir;
mod peer;
mod support;
