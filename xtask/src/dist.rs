//! `cargo xtask dist`: the .deb packages of the agent, the coordinator and clawctl.
//!
//! Builds each program with the profile that it is shipped with and packs it with cargo-deb as
//! `[package.metadata.deb]` of its crate says. clawctl writes its own man page and completions; those
//! of the daemons are written by hand, so that the agent carries no generator, and must name every
//! option that the program has. Packages are reproducible: times come from git, paths of this machine
//! are not in them. What has not changed is not packed again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use claw_lab::requirements::{self, Requirement};
use claw_lab::{command, progress};

use crate::cargo::{cargo, output, root, run as run_command, target, tool};

/// Checked on Debian 12 with rustc 1.95.
const CARGO_DEB: &str = "3.8.0";

/// Where the packages are.
#[derive(Debug, Clone)]
pub(crate) struct DistOutput {
    /// The agent.
    pub(crate) clawd_deb: PathBuf,
    /// The coordinator.
    pub(crate) coordinator_deb: PathBuf,
    /// The command line.
    pub(crate) clawctl_deb: PathBuf,
}

/// One package, of a crate, program and package of the same name.
#[derive(Debug, Clone, Copy)]
struct Package {
    name: &'static str,
    /// Cargo's profile.
    profile: &'static str,
    documents: Documents,
}

/// Where man page and completions come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Documents {
    /// The program's own `--generate`.
    Generated,
    /// `packaging/<name>`.
    Written,
}

/// Built for size: it lives on the customer's memory.
const CLAWD: Package = Package { name: "clawd", profile: "agent", documents: Documents::Written };
const COORDINATOR: Package =
    Package { name: "claw-coordinator", profile: "release", documents: Documents::Written };
const CLAWCTL: Package =
    Package { name: "clawctl", profile: "release", documents: Documents::Generated };

/// Builds the packages and prints what they are.
pub(crate) fn run() -> Result<DistOutput> {
    requirements::ensure(&[Requirement::Packaging], &*progress::terminal())?;
    let _alone = alone()?;
    build(&[CLAWD])?;
    // Together, so that what they share is compiled once.
    build(&[COORDINATOR, CLAWCTL])?;
    let packages = [CLAWD, COORDINATOR, CLAWCTL];
    let paths = packages.map(Package::pack);
    let [clawd_deb, coordinator_deb, clawctl_deb] = paths;
    let built = DistOutput {
        clawd_deb: clawd_deb?,
        coordinator_deb: coordinator_deb?,
        clawctl_deb: clawctl_deb?,
    };
    print_table(&[
        (CLAWD, &built.clawd_deb),
        (COORDINATOR, &built.coordinator_deb),
        (CLAWCTL, &built.clawctl_deb),
    ])?;
    Ok(built)
}

/// Two at once would take each other's half-made packages away. Waits as long as the other builds; cargo
/// says so in the same way.
fn alone() -> Result<File> {
    fs::create_dir_all(target())?;
    let path = target().join("dist.lock");
    let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(lock)
}

fn build(packages: &[Package]) -> Result<()> {
    let profile = packages.first().context("nothing to build")?.profile;
    let mut build = cargo(&["build", "--quiet", "--locked", "--profile", profile]);
    for package in packages {
        build.args(["--package", package.name]);
    }
    // Panic messages name source files of dependencies; those of the workspace are relative anyway.
    let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(&format!(" --remap-path-prefix={}=/cargo", cargo_home()?.display()));
    build.env("RUSTFLAGS", flags.trim());
    run_command(build)
}

impl Package {
    fn program(self) -> PathBuf {
        target().join(self.profile).join(self.name)
    }

    /// The package, made anew only when something in it is newer.
    fn pack(self) -> Result<PathBuf> {
        let directory = target().join("dist");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let package = directory.join(self.file_name()?);
        if let Ok(packed) = modified(&package)
            && packed > self.newest_input()?
        {
            return Ok(package);
        }
        match self.documents {
            Documents::Generated => self.generate()?,
            Documents::Written => self.check_written()?,
        }
        // A package that is there is whole.
        let unfinished = directory.join(format!("unfinished-{}.deb", self.name));
        let mut pack = command(tool("cargo-deb", CARGO_DEB)?);
        pack.current_dir(root())
            .args(["--quiet", "--no-build", "--no-strip", "--locked"])
            .args(["--package", self.name, "--profile", self.profile, "--output"])
            .arg(&unfinished)
            .env("CARGO_TARGET_DIR", target())
            .env("SOURCE_DATE_EPOCH", source_date_epoch());
        eprintln!("packing {}", package.display());
        output(pack)?;
        fs::rename(&unfinished, &package)
            .with_context(|| format!("cannot make {}", package.display()))?;
        Ok(package)
    }

    /// As Debian names packages; the revision is cargo-deb's default.
    fn file_name(self) -> Result<String> {
        let mut query = command("dpkg");
        query.arg("--print-architecture");
        let architecture = output(query)?;
        Ok(format!("{}_{}-1_{}.deb", self.name, env!("CARGO_PKG_VERSION"), architecture.trim()))
    }

    /// Man page and completions, where the assets of the crate's Cargo.toml look for them.
    fn generate(self) -> Result<()> {
        let directory = target().join(self.profile).join("generated");
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let files = [
            ("man", format!("{}.1", self.name)),
            ("bash", format!("{}.bash", self.name)),
            ("zsh", format!("{}.zsh", self.name)),
            ("fish", format!("{}.fish", self.name)),
        ];
        for (what, name) in files {
            let mut generate = command(self.program());
            generate.args(["--generate", what]);
            let text = output(generate)?;
            if text.trim().is_empty() {
                bail!("{} --generate {what} printed nothing", self.name);
            }
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            if what == "man" {
                // cargo-deb compresses manuals of the source tree only (Debian Policy 12.1).
                let mut compress = command("gzip");
                compress.args(["--best", "--no-name", "--force"]).arg(&path);
                output(compress)?;
            }
        }
        Ok(())
    }

    /// Fails when a document that is written by hand lacks an option of the program.
    fn check_written(self) -> Result<()> {
        let packaging = root().join("packaging").join(self.name);
        let mut documents = vec![packaging.join(format!("{}.8", self.name))];
        for shell in ["bash", "zsh", "fish"] {
            documents.push(packaging.join("completions").join(format!("{}.{shell}", self.name)));
        }
        let options = options(&self.program(), &[])?;
        for document in documents {
            let text = fs::read_to_string(&document)
                .with_context(|| format!("cannot read {}", document.display()))?;
            // roff's hyphen, and fish's way to write a long option.
            let text = text.replace("\\-", "-").replace(" -l ", " --");
            let lacks = |option: &&String| !text.contains(option.as_str());
            let missing: Vec<&String> = options.iter().filter(lacks).collect();
            if !missing.is_empty() {
                bail!("{} does not mention {missing:?} of {}", document.display(), self.name);
            }
        }
        Ok(())
    }

    fn newest_input(self) -> Result<SystemTime> {
        let crate_manifest = root().join("crates").join(self.name).join("Cargo.toml");
        let inputs =
            [self.program(), crate_manifest, root().join("packaging"), root().join("systemd")];
        let mut newest = SystemTime::UNIX_EPOCH;
        for input in inputs {
            newest = newest.max(newest_below(&input)?);
        }
        Ok(newest)
    }
}

/// Long options and names of subcommands, from the help texts of a program and all its subcommands.
fn options(program: &Path, subcommand: &[&str]) -> Result<BTreeSet<String>> {
    let mut help = command(program);
    help.args(subcommand).arg("--help");
    let help = output(help)?;
    let mut found = long_options(&help);
    for name in subcommands(&help) {
        found.extend(options(program, &[subcommand, &[name]].concat())?);
        found.insert(name.to_owned());
    }
    Ok(found)
}

/// What stands at the beginning of a line of clap's help: `-h, --help` or `--config <FILE>`.
fn long_options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let option = |line: &str| {
        let word = line.split([' ', ',', '=']).find(|word| word.starts_with("--"))?;
        Some(word.to_owned())
    };
    lines.filter_map(option).collect()
}

/// The names below `Commands:`, without clap's own `help`.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| line.starts_with("  "));
    // Continued lines are indented further.
    let names = names.filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help")
}

fn newest_below(path: &Path) -> Result<SystemTime> {
    let mut newest = modified(path)?;
    if path.is_dir() {
        let entries =
            fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        for entry in entries {
            newest = newest.max(newest_below(&entry?.path())?);
        }
    }
    Ok(newest)
}

fn modified(path: &Path) -> Result<SystemTime> {
    File::open(path)
        .and_then(|file| file.metadata()?.modified())
        .with_context(|| format!("cannot look at {}", path.display()))
}

/// The time of the last commit; a source archive without git gets a fixed one.
fn source_date_epoch() -> String {
    let mut log = command("git");
    log.current_dir(root()).args(["log", "-1", "--format=%ct"]);
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(chosen) => chosen,
        Err(_) => output(log).map_or_else(|_| "1".to_owned(), |time| time.trim().to_owned()),
    }
}

/// Where cargo keeps the sources of dependencies (The Cargo Book, "Cargo Home").
fn cargo_home() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("HOME is not set")
}

fn print_table(packages: &[(Package, &PathBuf)]) -> Result<()> {
    println!("{:<18}{:>12}{:>12}  path", "package", "program", "package");
    for (package, path) in packages {
        let program = mebibytes(&package.program())?;
        println!("{:<18}{program:>12}{:>12}  {}", package.name, mebibytes(path)?, path.display());
    }
    Ok(())
}

fn mebibytes(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let hundredths = bytes.len() * 100 / (1 << 20);
    Ok(format!("{}.{:02} MiB", hundredths / 100, hundredths % 100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_options_and_subcommands() {
        let help = "\
The agent: does --what it should

Usage: clawd [OPTIONS] [COMMAND]

Commands:
  join  Give this host its identity
        in a fleet
  help  Print this message

Options:
      --config <FILE>  Configuration file [default: x]
  -h, --help           Print help
";
        let options: Vec<String> = long_options(help).into_iter().collect();
        assert_eq!(options, ["--config", "--help"]);
        assert_eq!(subcommands(help).collect::<Vec<_>>(), ["join"]);
    }

    #[test]
    fn sizes_are_rounded_down() {
        let directory = std::env::temp_dir().join(format!("claw-dist-{}", std::process::id()));
        fs::write(&directory, vec![0_u8; 1024 * 1024 + 512 * 1024]).unwrap();
        assert_eq!(mebibytes(&directory).unwrap(), "1.50 MiB");
        fs::remove_file(directory).unwrap();
    }

    #[test]
    fn newest_looks_into_directories() {
        let packaging = root().join("packaging");
        let newest = newest_below(&packaging).unwrap();
        assert!(newest >= modified(&packaging.join("copyright")).unwrap());
        assert!(newest_below(&packaging.join("absent")).is_err());
    }
}
