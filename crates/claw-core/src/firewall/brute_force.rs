//! Sources that fail to log in again and again, and for how long each is banned.
