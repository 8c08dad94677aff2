//! What the agent stands on fails at the worst moments: Docker and the processes of snapshots are killed, the disk
//! is full, the power is cut and what was not made durable is lost. And what a repository keeps over years.
//!
//! Each file boots a host or two and does all of its cases there. Where to start: [`ground`].

mod dockerd;
mod ground;
mod power;
mod retention;
mod room;
mod workers;
