//! The allowlist that would have let through what was seen.
