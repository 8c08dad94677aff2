//! Man page and completions from the command line's own definition.

use std::io::{self, Write};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{Cli, Generate};

/// The file that is installed as an example shows every field once.
const EXAMPLE: &str = include_str!("../../../../packaging/clawctl/examples/fleet.yaml");

pub(super) fn write(what: Generate, out: &mut dyn Write) -> io::Result<()> {
    match what {
        Generate::Man => man(out),
        Generate::Bash => completions(Shell::Bash, out),
        Generate::Zsh => completions(Shell::Zsh, out),
        Generate::Fish => completions(Shell::Fish, out),
    }
}

pub(super) fn completions(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // clap_complete panics where it cannot write.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "clawctl", &mut text);
    out.write_all(&text)
}

/// One page: the command itself, then every subcommand in a section of its own.
fn man(mut out: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).section("1").render(&mut out)?;
    writeln!(out, ".SH COMMANDS")?;
    for subcommand in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        subcommand_section(subcommand, &format!("clawctl {}", subcommand.get_name()), out)?;
    }
    writeln!(out, ".SH FILES\nWhat \\fBapply\\fR and \\fBdelete\\fR read:\n.PP\n.nf")?;
    for line in EXAMPLE.lines() {
        writeln!(out, "{}", roff(line))?;
    }
    writeln!(out, ".fi")
}

fn subcommand_section(command: &clap::Command, path: &str, out: &mut dyn Write) -> io::Result<()> {
    let nested: Vec<_> = command.get_subcommands().filter(|sub| sub.get_name() != "help").collect();
    if nested.is_empty() {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let mut arguments = String::new();
        for argument in command.get_arguments().filter(|argument| is_own(argument)) {
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            arguments.push_str(&format!(
                ".RS\n.TP\n{}\n{}\n.RE\n",
                roff(&argument.to_string()),
                roff(&help)
            ));
        }
        write!(out, ".TP\n\\fB{}\\fR\n{}\n{arguments}", roff(path), roff(&about))?;
    }
    for sub in nested {
        subcommand_section(sub, &format!("{path} {}", sub.get_name()), out)?;
    }
    Ok(())
}

fn is_own(argument: &clap::Arg) -> bool {
    !argument.is_global_set() && !argument.is_hide_set() && argument.get_id() != "help"
}

/// Text as roff takes it literally (groff_char(7)).
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-").replace('\n', " ");
    if escaped.starts_with(['.', '\'']) { format!("\\&{escaped}") } else { escaped }
}
