//! A fleet in a lab: a coordinator, hosts that run the product from its packages, an operator.
//!
//! What it is for: tests, demo and benches all stand on [`Fleet`]. What it does not do: know the
//! product from inside. It uses what users use: packages, units, `clawd join`, `clawctl`.
//!
//! Start at [`Fleet::start`]; the tests themselves are in `tests/`.

pub mod docker;
pub mod fleet;
pub mod http;
pub mod programs;
pub mod third_party;

pub use docker::Docker;
pub use fleet::{Fleet, Instance};
pub use programs::Programs;
pub use third_party::ThirdParty;
