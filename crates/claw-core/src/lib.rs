//! claw-core
