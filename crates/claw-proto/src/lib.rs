//! claw-proto
