//! Holds the fleet's desired state, enrols hosts, serves the API.
//!
//! What it is for: one process that internal services and operators talk to, and that every host's
//! agent keeps a stream to. It stores what should be, pushes it, and shows what hosts say is.
//!
//! What it does not do: change a host. It decides nothing that an agent could decide alone, and an
//! agent needs it for nothing that it has already been told.
//!
//! Where to start: [`server::Coordinator`] puts everything together; [`fleet`] is what can be done,
//! [`store`] what survives, [`registry`] what is live, [`session`] the talk with one agent,
//! [`auth`] who may call what.
#![forbid(unsafe_code)]

pub mod api;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod connection;
pub mod denylist;
pub mod fleet;
pub mod init;
pub mod limits;
pub mod listener;
pub mod page;
pub mod refusal;
pub mod registry;
pub mod routes;
pub mod server;
pub mod server_certificate;
pub mod session;
pub mod status;
pub mod store;
pub mod transfers;
pub mod view;
pub mod watch;
