//! Versions of the fake gateway: images of one binary, each of which behaves in one way.
//!
//! Versions of state are those of `/__fake/state-version`: every "2" migrates what a "1" wrote, so a "1"
//! refuses it from then on, and going back means taking the data back.

use std::path::Path;

use anyhow::Result;
use claw_lab::{Cache, Image, images};

use crate::programs::{self, FAKE_GATEWAY};

/// One version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The image's tag, and what `/__fake/build` answers.
    pub tag: &'static str,
    /// Its switches but `BUILD`: name without `CLAW_FAKE_`, value.
    pub switches: &'static [(&'static str, &'static str)],
}

/// Too old for the state that [`V1`] writes: exits with 78.
pub const V0: Version = Version { tag: "v0", switches: &[("STATE_VERSION", "17")] };
/// What runs before an update.
pub const V1: Version = Version { tag: "v1", switches: &[("STATE_VERSION", "18")] };
/// As [`V1`], under another digest: an update that changes nothing.
pub const V1_AGAIN: Version = Version { tag: "v1-again", switches: &[("STATE_VERSION", "18")] };
/// Migrates at its start, and is good.
pub const V2: Version = Version { tag: "v2", switches: &[("STATE_VERSION", "19")] };
/// Takes three seconds to start.
pub const V2_SLOW: Version = Version {
    tag: "v2-slow",
    switches: &[("STATE_VERSION", "19"), ("START_MS", "1500"), ("STARTING_MS", "1500")],
};
/// Exits with 78 until `doctor` has migrated the state.
pub const V2_DOCTOR: Version =
    Version { tag: "v2-doctor", switches: &[("STATE_VERSION", "19"), ("NEEDS_DOCTOR", "1")] };
/// Crashes as soon as it has said that it is ready.
pub const V2_CRASH: Version = Version {
    tag: "v2-crash",
    switches: &[("STATE_VERSION", "19"), ("EXIT_AFTER_MS", "300"), ("EXIT_CODE", "3")],
};
/// Accepts connections and never answers.
pub const V2_HANG: Version =
    Version { tag: "v2-hang", switches: &[("STATE_VERSION", "19"), ("HANG", "1")] };
/// Takes memory until it is killed.
pub const V2_OOM: Version =
    Version { tag: "v2-oom", switches: &[("STATE_VERSION", "19"), ("EAT_MEMORY_MB", "2048")] };
/// Exits with 78 whatever `doctor` does.
pub const V2_78: Version = Version {
    tag: "v2-78",
    switches: &[("STATE_VERSION", "19"), ("CRASH_BEFORE_READY", "1"), ("EXIT_CODE", "78")],
};
/// Asks for `doctor`, which then fails half way.
pub const V2_BROKEN: Version = Version {
    tag: "v2-broken",
    switches: &[("STATE_VERSION", "19"), ("NEEDS_DOCTOR", "1"), ("MIGRATION_FAILS", "1")],
};

/// Every version to which an update must fail.
pub const BAD: [Version; 6] = [V0, V2_CRASH, V2_HANG, V2_OOM, V2_78, V2_BROKEN];

impl Version {
    /// Its image.
    ///
    /// # Errors
    /// When the tests were not started by `cargo xtask test`, or the image cannot be made.
    pub fn image(&self, cache: &Cache) -> Result<Image> {
        self.image_of(cache, &programs::variable(FAKE_GATEWAY)?)
    }

    /// Its image, of this binary.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn image_of(&self, cache: &Cache, binary: &Path) -> Result<Image> {
        let mut switches = vec![("BUILD", self.tag)];
        switches.extend(self.switches);
        images::fake_gateway_with(cache, binary, self.tag, &switches)
    }

    /// Its image's name.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("claw/fake-gateway:{}", self.tag)
    }
}
