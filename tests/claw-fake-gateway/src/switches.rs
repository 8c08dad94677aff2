//! What the fake gateway does wrong, chosen by variables.
//!
//! Every variable is named `CLAW_FAKE_` and one of these; an unknown one or a value that is no number is
//! refused (exit 2), so that a misspelt switch cannot make a test pass.
//!
//! | variable | effect |
//! | --- | --- |
//! | `START_MS` | refuses connections for so long |
//! | `STARTING_MS` | then answers 503 `starting` for so long |
//! | `DRAIN_MS` | takes so long to end after SIGTERM |
//! | `EXIT_AFTER_MS`, `EXIT_CODE` | dies so long after it was ready (code: 1) |
//! | `CRASH_BEFORE_READY` | dies at the moment when it should be ready, with `EXIT_CODE` |
//! | `HANG` | accepts connections and never answers |
//! | `UNHEALTHY` | `/startupz` stays 503 `starting` |
//! | `NOT_READY` | `/readyz` stays 503 |
//! | `NEVER_LISTEN` | never accepts connections |
//! | `EAT_MEMORY_MB` | takes and touches so much memory once it is ready |
//! | `STATE_VERSION` | the version of the state that this build writes |
//! | `NEEDS_DOCTOR` | refuses older state with 78 until `doctor` has migrated it |
//! | `MIGRATION_FAILS` | a migration changes the state, then exits with 1 |
//! | `BUSY` | refuses to be suspended: something is always under way |
//! | `SUSPEND_MS` | a suspension that nobody resumes ends after so long (120 000) |
//! | `CONTROL` | offers the control endpoints under `/__fake/` |
//! | `WRITER_MS` | commits to a database without end, so long after each other; see [`crate::writer`] |
//! | `BUILD` | what `/__fake/build` answers: tells images of the same binary apart |

use std::time::Duration;

use thiserror::Error;

use crate::environment::Environment;
use crate::rpc;

/// The state version of a build that does not say otherwise: that of openclaw 2026.9.6.
const STATE_VERSION: u32 = 18;

/// All switches. The default does nothing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Switches {
    pub(crate) start: Duration,
    pub(crate) starting: Duration,
    pub(crate) drain: Duration,
    pub(crate) exit_after: Option<Duration>,
    pub(crate) exit_code: u8,
    pub(crate) crash_before_ready: bool,
    pub(crate) hang: bool,
    pub(crate) unhealthy: bool,
    pub(crate) not_ready: bool,
    pub(crate) never_listen: bool,
    pub(crate) eat_memory_mb: u32,
    pub(crate) state_version: u32,
    pub(crate) needs_doctor: bool,
    pub(crate) migration_fails: bool,
    pub(crate) control: bool,
    pub(crate) busy: bool,
    pub(crate) suspend: Duration,
    pub(crate) writer: Option<Duration>,
    pub(crate) build: String,
}

/// A switch that cannot be understood.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum SwitchError {
    #[error("there is no switch CLAW_FAKE_{name}")]
    Unknown { name: String },
    #[error("CLAW_FAKE_{name}: {value:?} is no number that fits")]
    Value { name: String, value: String },
}

impl Switches {
    /// Reads them from the variables.
    pub(crate) fn read(environment: &Environment) -> Result<Self, SwitchError> {
        let mut switches = Self::default();
        for (name, value) in environment.with_prefix("CLAW_FAKE_") {
            let fault = || SwitchError::Value { name: name.to_owned(), value: value.to_owned() };
            let number = || value.parse::<u32>().map_err(|_| fault());
            let millis = || number().map(|millis| Duration::from_millis(millis.into()));
            let flag = || match value {
                "1" => Ok(true),
                "0" | "" => Ok(false),
                _ => Err(fault()),
            };
            match name {
                "START_MS" => switches.start = millis()?,
                "STARTING_MS" => switches.starting = millis()?,
                "DRAIN_MS" => switches.drain = millis()?,
                "EXIT_AFTER_MS" => switches.exit_after = Some(millis()?),
                "EXIT_CODE" => switches.exit_code = value.parse().map_err(|_| fault())?,
                "CRASH_BEFORE_READY" => switches.crash_before_ready = flag()?,
                "HANG" => switches.hang = flag()?,
                "UNHEALTHY" => switches.unhealthy = flag()?,
                "NOT_READY" => switches.not_ready = flag()?,
                "NEVER_LISTEN" => switches.never_listen = flag()?,
                "EAT_MEMORY_MB" => switches.eat_memory_mb = number()?,
                "STATE_VERSION" => switches.state_version = number()?,
                "NEEDS_DOCTOR" => switches.needs_doctor = flag()?,
                "MIGRATION_FAILS" => switches.migration_fails = flag()?,
                "CONTROL" => switches.control = flag()?,
                "BUSY" => switches.busy = flag()?,
                "SUSPEND_MS" => switches.suspend = millis()?,
                "WRITER_MS" => switches.writer = Some(millis()?),
                "BUILD" => value.clone_into(&mut switches.build),
                _ => return Err(SwitchError::Unknown { name: name.to_owned() }),
            }
        }
        Ok(switches)
    }
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            start: Duration::ZERO,
            starting: Duration::ZERO,
            drain: Duration::ZERO,
            exit_after: None,
            exit_code: 1,
            crash_before_ready: false,
            hang: false,
            unhealthy: false,
            not_ready: false,
            never_listen: false,
            eat_memory_mb: 0,
            state_version: STATE_VERSION,
            needs_doctor: false,
            migration_fails: false,
            control: false,
            busy: false,
            suspend: rpc::LEASE,
            writer: None,
            build: String::new(),
        }
    }
}
