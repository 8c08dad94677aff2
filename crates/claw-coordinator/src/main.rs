//! claw-coordinator
fn main() {}
