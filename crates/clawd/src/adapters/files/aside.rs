//! Everything of an instance, moved out of the way in one piece.
//!
//! The parts are gathered in a directory that has no time in its name yet, the data last; that directory
//! is then renamed. Whoever is killed in between leaves it behind, and the next call goes on with it.

use std::io;
use std::path::Path;

use claw_core::name::InstanceName;
use claw_core::time::Timestamp;

use super::dir::Dir;
use super::{error, gone_is_fine, present};
use crate::ports::FilesError;

/// Moves data, repository and keys of an instance to `<data>/removed/<instance>.<milliseconds>`.
pub(super) fn set_aside(
    data: &Path,
    instance: &InstanceName,
    at: Timestamp,
) -> Result<(), FilesError> {
    let removed = data.join("removed");
    let target = removed.join(format!("{instance}.{}", at.millis()));
    move_all(data, &removed, &target, instance)
        .map_err(|source| error("moving data to", &target, source))
}

fn move_all(data: &Path, removed: &Path, target: &Path, instance: &InstanceName) -> io::Result<()> {
    let (instances, repositories) = (data.join("instances"), data.join("repo"));
    let parts = [
        (repositories.join(instance.as_str()), "repo"),
        (repositories.join(format!("{instance}.keys")), "keys"),
        (instances.join(instance.as_str()), "data"),
    ];
    // No instance's name begins with a dot.
    let gathering = removed.join(format!(".{instance}"));
    let anything = parts.iter().any(|(path, _)| path.symlink_metadata().is_ok());
    if !anything && gathering.symlink_metadata().is_err() {
        return Ok(());
    }
    let gathered = Dir::make_private(&gathering)?;
    for (path, part) in &parts {
        std::fs::rename(path, gathering.join(part)).or_else(gone_is_fine)?;
    }
    gathered.sync()?;
    for left in [&repositories, &instances] {
        present(Dir::open(left))?.map_or(Ok(()), |dir| dir.sync())?;
    }
    std::fs::rename(&gathering, target)?;
    Dir::open(removed)?.sync()
}
