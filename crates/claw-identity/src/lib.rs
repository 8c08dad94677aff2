//! claw-identity
