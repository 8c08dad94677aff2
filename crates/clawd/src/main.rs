//! clawd
fn main() {}
