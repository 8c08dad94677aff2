//! A fleet in a lab: a coordinator, hosts that run the product from its packages, an operator.
//!
//! What it is for: tests, demo and benches all stand on [`Fleet`]. What it does not do: know the
//! product from inside. It uses what users use: packages, units, `clawd join`, `clawctl`; only
//! [`journal`] looks into a file of the agent, to hit the moments that tests are about.
//!
//! Start at [`Fleet::start`], and for tests at [`Rig::start`]; the tests themselves are in `tests/`.

pub mod backup;
pub mod barrage;
pub mod clock;
pub mod dial;
pub mod docker;
pub mod field;
pub mod firewall;
pub mod fleet;
pub mod ground;
pub mod http;
pub mod instance;
pub mod journal;
pub mod ledger;
pub mod matrix;
pub mod names;
pub mod object_store;
pub mod probe;
pub mod programs;
pub mod pulse;
pub mod restic;
pub mod rig;
pub mod servers;
pub mod steps;
pub mod strike;
pub mod tenant;
pub mod third_party;
pub mod traffic;
pub mod unit;
pub mod versions;
pub mod websocket;

pub use docker::Docker;
pub use fleet::Fleet;
pub use instance::Instance;
pub use object_store::ObjectStore;
pub use programs::Programs;
pub use pulse::Pulse;
pub use restic::Restic;
pub use rig::Rig;
pub use tenant::Tenant;
pub use third_party::ThirdParty;
pub use unit::UnitProcess;
pub use websocket::WebSocket;
