//! Counters of refused traffic that survive the replacement of rules, and bursts in them.
