//! What a host needs to know about an OpenClaw gateway from the outside.
//!
//! Four parts: [`probe`] asks a running gateway how it is, [`rpc`] asks it to do something, as a [`device`] that
//! it knows, [`config`] holds the rules of `openclaw.json` (what the gateway would refuse, which variables it
//! needs, which keys the operator enforces) and [`env_file`] writes the `.env` file that carries secrets into
//! it.
//!
//! It does not decide anything: when to probe, what to do with an answer and which configuration an
//! instance should have is the business of the callers.
//!
//! All rules were taken from the published npm package `openclaw` 2026.9.6 and checked against it.
//! Start with [`config::render()`], [`probe::Target`] and [`rpc::Rpc::connect`].

pub mod config;
pub mod env_file;

#[cfg(feature = "device")]
pub mod device;
#[cfg(feature = "client")]
pub mod probe;
#[cfg(feature = "client")]
pub mod rpc;
