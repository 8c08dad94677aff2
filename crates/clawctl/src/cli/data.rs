//! Snapshots, rollback and recovery on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot now, whether the instance is up or down.
    Create {
        /// The instance.
        instance: String,
        /// Name of the new snapshot: a DNS label [default: requested- and the time].
        name: Option<String>,
        /// Wait until it is held.
        #[arg(long)]
        wait: bool,
    },
    /// List an instance's snapshots, newest first, and say how its repository stands.
    List {
        /// The instance; of a deleted one the last of that name.
        instance: String,
        /// The uid of one that was deleted within 30 days.
        #[arg(long)]
        uid: Option<String>,
    },
    /// Show one snapshot.
    Get {
        /// The instance; of a deleted one the last of that name.
        instance: String,
        /// The snapshot.
        name: String,
        /// The uid of one that was deleted within 30 days.
        #[arg(long)]
        uid: Option<String>,
    },
    /// Forget a snapshot.
    Delete {
        /// The instance.
        instance: String,
        /// The snapshot.
        name: String,
    },
    /// Verify an instance's repository: indexes, trees and the presence of everything.
    Verify {
        /// The instance.
        instance: String,
        /// Read all data as well; takes as long as a restore.
        #[arg(long)]
        data: bool,
        /// Wait for the verdict.
        #[arg(long)]
        wait: bool,
    },
    /// Write a snapshot to a file: tar.zst with a manifest and checksums, not encrypted.
    Export {
        /// The instance.
        instance: String,
        /// The snapshot.
        name: String,
        /// The file; - is standard output [default: instances-INSTANCE-snapshots-NAME.tar.zst].
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Make a snapshot of an archive: one that was exported, or OpenClaw's own backup. The data in use stays.
    Import {
        /// The instance.
        instance: String,
        /// The file.
        file: PathBuf,
        /// Name of the new snapshot: a DNS label [default: import- and the time].
        #[arg(long)]
        name: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["to_snapshot", "to_revision"])))]
pub(crate) struct RollbackArgs {
    /// The instance.
    pub(crate) name: String,
    /// Bring back data, spec and image of this snapshot; what is there now is held as one.
    #[arg(long, visible_alias = "snapshot", value_name = "SNAPSHOT")]
    pub(crate) to_snapshot: Option<String>,
    /// Bring back the spec of this revision; the data stays.
    #[arg(long, visible_alias = "revision", value_name = "REVISION")]
    pub(crate) to_revision: Option<u64>,
    /// With --to-snapshot: read it off-site, straight; also where the host's own is damaged.
    #[arg(long, conflicts_with = "to_revision")]
    pub(crate) from_offsite: bool,
    /// Show what it would do, and change nothing.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Wait until it is in force; fail when it was undone.
    #[arg(long, conflicts_with = "plan")]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecoveryArgs {
    /// The instance; of a deleted one the last of that name.
    pub(crate) name: String,
    /// The uid of one that was deleted within 30 days.
    #[arg(long)]
    pub(crate) uid: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::Cli;

    #[test]
    fn a_rollback_has_one_target() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop);
        for wrong in [
            "clawctl rollback demo",
            "clawctl rollback demo --to-snapshot a --to-revision 3",
            "clawctl rollback demo --to-revision latest",
            "clawctl rollback demo --to-snapshot a --plan --wait",
            "clawctl rollback --to-snapshot a",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for right in [
            "clawctl rollback demo --to-snapshot a --wait",
            "clawctl instance rollback demo --to-revision 3 --plan",
            "clawctl rollback demo --snapshot a --timeout 1h",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn snapshots_are_named_after_their_instance() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop);
        for wrong in [
            "clawctl snapshot",
            "clawctl snapshot create",
            "clawctl snapshot get demo",
            "clawctl snapshot delete demo",
            "clawctl snapshot list demo --data",
            "clawctl plan",
            "clawctl plan demo",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for right in [
            "clawctl snapshot create demo",
            "clawctl snapshot create demo before-summer --wait",
            "clawctl snapshot verify demo --data --wait -o json",
            "clawctl recovery-password demo --uid u-1",
            "clawctl plan -f a.yaml -f b.yaml",
        ] {
            assert!(parse(right).is_ok(), "{right}");
        }
    }
}
