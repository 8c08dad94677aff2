//! What a host needs to know about an OpenClaw gateway from the outside.
//!
//! Three independent parts: [`probe`] asks a running gateway how it is, [`config`] holds the rules of
//! `openclaw.json` (what the gateway would refuse, which variables it needs, which keys the operator
//! enforces) and [`env_file`] writes the `.env` file that carries secrets into it.
//!
//! It does not decide anything: when to probe, what to do with an answer and which configuration an
//! instance should have is the business of the callers. It does not speak the WebSocket RPC.
//!
//! All rules were taken from the published npm package `openclaw` 2026.9.6 and checked against it.
//! Start with [`config::render()`] and [`probe::Target`].

pub mod config;
pub mod env_file;

#[cfg(feature = "client")]
pub mod probe;
