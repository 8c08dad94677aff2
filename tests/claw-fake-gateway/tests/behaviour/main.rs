//! The fake gateway as a process: what a container runtime, a prober and a proxy see of it.
//!
//! Every test starts the binary on a port of its own on loopback with a state directory of its own, and
//! waits for states, not for time.

#[cfg(test)]
mod gateway;
#[cfg(test)]
mod life;
#[cfg(test)]
mod probes;
#[cfg(test)]
mod suspension;
#[cfg(test)]
mod websocket;
