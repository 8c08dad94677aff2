//! claw-store
