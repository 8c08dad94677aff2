//! Fake gateway.
fn main() {}
