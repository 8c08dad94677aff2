//! Storages off-site and moves between hosts on the command line.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use crate::file::quantity;

#[derive(Debug, Subcommand)]
pub(crate) enum OffsiteCommand {
    /// Copy the host's repositories of snapshots to an S3-compatible storage from now on.
    Set(Box<OffsiteArgs>),
    /// Copy them nowhere; what was copied stays where it is.
    Clear {
        /// The host.
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(group(
    clap::ArgGroup::new("secret").required(true).args(["secret_key_file", "secret_key_env"])
))]
pub(crate) struct OffsiteArgs {
    /// The host.
    pub(crate) name: String,
    /// Such as `https://s3.example.com`, with a port if it is no usual one.
    #[arg(long)]
    pub(crate) url: String,
    /// As the storage calls it.
    #[arg(long, default_value = "us-east-1")]
    pub(crate) region: String,
    /// An existing bucket.
    #[arg(long)]
    pub(crate) bucket: String,
    /// The directory in the bucket; the host writes below PREFIX/HOST only.
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,
    /// How the bucket is named in a request.
    #[arg(long, value_enum, default_value_t = Addressing::Path)]
    pub(crate) addressing: Addressing,
    /// The name of the key.
    #[arg(long, value_name = "ID")]
    pub(crate) access_key: String,
    /// The key, from a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_key_file: Option<PathBuf>,
    /// The key, from a variable of this process's environment.
    #[arg(long, value_name = "VARIABLE")]
    pub(crate) secret_key_env: Option<String>,
    /// How much is sent and received together in a second, such as 8MiB; without it all there is.
    #[arg(long, value_name = "SIZE", value_parser = quantity::Bytes::parse)]
    pub(crate) bandwidth: Option<quantity::Bytes>,
}

/// How a bucket is named in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Addressing {
    /// <https://HOST/BUCKET>: self-hosted storages.
    Path,
    /// <https://BUCKET.HOST>: Amazon.
    Host,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// The instance.
    pub(crate) name: String,
    /// The host that it moves to.
    pub(crate) host: String,
    /// Take the data from the copy off-site: its host is gone.
    #[arg(long)]
    pub(crate) from_offsite: bool,
    /// With --from-offsite: start with this snapshot, and not with the newest one there.
    #[arg(long, value_name = "SNAPSHOT", requires = "from_offsite")]
    pub(crate) snapshot: Option<String>,
    /// Show what it would do, and change nothing.
    #[arg(long)]
    pub(crate) plan: bool,
    /// Wait until it has moved; fail when everything went back.
    #[arg(long, conflicts_with = "plan")]
    pub(crate) wait: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::Cli;

    #[test]
    fn a_storage_needs_its_key_and_the_key_is_no_argument() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop);
        let set = "clawctl host offsite set vps1 --url https://s3 --bucket b --access-key K";
        assert!(parse(set).is_err());
        assert!(parse(&format!("{set} --secret-key hush")).is_err());
        assert!(parse(&format!("{set} --secret-key-file k --secret-key-env K")).is_err());
        assert!(parse(&format!("{set} --secret-key-env K --bandwidth 8MiB")).is_ok());
        assert!(parse("clawctl host offsite clear vps1").is_ok());
    }

    #[test]
    fn a_snapshot_to_move_with_is_one_off_site() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop);
        assert!(parse("clawctl migrate demo").is_err());
        assert!(parse("clawctl migrate demo vps2 --snapshot a").is_err());
        assert!(parse("clawctl migrate demo vps2 --plan --wait").is_err());
        assert!(parse("clawctl migrate demo vps2 --wait").is_ok());
        assert!(parse("clawctl migrate demo vps2 --from-offsite --snapshot a").is_ok());
        assert!(parse("clawctl cancel-migration demo").is_ok());
    }
}
