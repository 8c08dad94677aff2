//! Writing and reading the `.env` file of a gateway's state directory.
//!
//! The file carries secrets, so neither errors nor debug output of this module ever hold a value. It
//! does not decide where the file lies nor who may read it.
//!
//! OpenClaw reads it with the npm package `dotenv` 17.4.2 (`parse`, no expansion, so `$` is plain). That
//! format has no escape for quotes: a value is put between quotes that it does not contain. A quoted
//! value that ends in a backslash would swallow the lines after it, and `\n` between double quotes becomes
//! a newline. [`render`] avoids all of these, and refuses what cannot be written at all.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::config::is_variable_name;

/// The largest file that OpenClaw reads; it skips a larger one with a warning only. Source:
/// `MAX_DOTENV_FILE_BYTES` in openclaw 2026.9.6.
pub const MAX_BYTES: usize = 1 << 20;

/// Why a variable cannot be put in a `.env` file. Values are never part of it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EnvFault {
    /// A name that OpenClaw would not let a configuration refer to.
    #[error("variable {name:?}: a name is made of A-Z, 0-9 and _ and does not start with a digit")]
    Name {
        /// The name.
        name: String,
    },
    /// No environment can hold a NUL.
    #[error("variable {name}: the value holds a NUL character")]
    Nul {
        /// The name.
        name: String,
    },
    /// The format has no way to write this value.
    #[error(
        "variable {name}: the value mixes quotes, line breaks or backslashes in a way that a .env \
         file cannot express"
    )]
    Inexpressible {
        /// The name.
        name: String,
    },
    /// OpenClaw would skip the whole file.
    #[error("the variables together are {size} bytes, more than the {MAX_BYTES} that are read")]
    TooLarge {
        /// Size of the file in bytes.
        size: usize,
    },
}

/// The text of a `.env` file from which OpenClaw reads exactly `variables`, ordered by name.
///
/// # Errors
/// Every variable that cannot be written, and a file too large to be read.
pub fn render(variables: &BTreeMap<String, String>) -> Result<String, Vec<EnvFault>> {
    let mut text = String::new();
    let mut faults = Vec::new();
    for (name, value) in variables {
        match quote(name, value) {
            Ok(quoted) => {
                text.extend([name, "=", quoted.as_str(), "\n"]);
            }
            Err(fault) => faults.push(fault),
        }
    }
    if text.len() > MAX_BYTES {
        faults.push(EnvFault::TooLarge { size: text.len() });
    }
    if faults.is_empty() { Ok(text) } else { Err(faults) }
}

/// The variables in the text of a `.env` file, as OpenClaw would read them.
///
/// Covers what [`render`] writes and what people write by hand: comments, `export`, blank lines, quotes
/// of three kinds, values over several lines between quotes. Lines it cannot make sense of are skipped,
/// as OpenClaw does; the last of equal names counts.
#[must_use]
pub fn parse(text: &str) -> BTreeMap<String, String> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut variables = BTreeMap::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        rest = after;
        let Some((name, value)) = assignment(line) else { continue };
        let (value, tail) = match quoted(value, after) {
            Some((value, tail)) => (value, tail),
            None => (bare(value), after),
        };
        rest = tail;
        variables.insert(name.to_owned(), value);
    }
    variables
}

fn quote(name: &str, value: &str) -> Result<String, EnvFault> {
    if !is_variable_name(name) {
        return Err(EnvFault::Name { name: name.to_owned() });
    }
    if value.contains('\0') {
        return Err(EnvFault::Nul { name: name.to_owned() });
    }
    let closes = !value.ends_with('\\');
    let literal = |mark: char| closes && !value.contains([mark, '\r']);
    if literal('\'') {
        Ok(format!("'{value}'"))
    } else if closes && !value.contains('"') && !value.contains("\\n") && !value.contains("\\r") {
        Ok(format!("\"{}\"", value.replace('\r', "\\r")))
    } else if literal('`') {
        Ok(format!("`{value}`"))
    } else if stands_bare(value) {
        Ok(value.to_owned())
    } else {
        Err(EnvFault::Inexpressible { name: name.to_owned() })
    }
}

/// Whether a value needs no quotes: one line, no comment, no quote in front, no blank at either end.
fn stands_bare(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'#')
        && value.trim() == value
        && !value.is_empty()
        && !value.starts_with(['\'', '"', '`'])
}

/// Splits `export NAME = value` or `NAME: value` into name and value.
fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start();
    let line = match line.strip_prefix("export") {
        Some(tail) if tail.starts_with(char::is_whitespace) => tail.trim_start(),
        _ => line,
    };
    let in_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let (name, tail) = line.split_at_checked(line.find(|c| !in_name(c))?)?;
    let value = match tail.trim_start().strip_prefix('=') {
        Some(value) => value,
        None => tail.strip_prefix(':').filter(|value| value.starts_with(char::is_whitespace))?,
    };
    (!name.is_empty()).then_some((name, value.trim_start()))
}

/// Reads a quoted value that starts in `line` and may go on in `after`. Nothing but a comment may
/// follow the closing quote on its line. Returns the value and the text after that line.
fn quoted<'a>(line: &'a str, after: &'a str) -> Option<(String, &'a str)> {
    let mark = line.chars().next().filter(|mark| ['\'', '"', '`'].contains(mark))?;
    let mut value = String::new();
    let mut part = line.strip_prefix(mark)?;
    let mut rest = after;
    loop {
        if let Some((inside, tail)) = split_at_quote(part, mark) {
            value.push_str(inside);
            let tail = tail.trim_start();
            if !tail.is_empty() && !tail.starts_with('#') {
                return None;
            }
            let value = match mark {
                '"' => expand(&value),
                _ => value,
            };
            return Some((value, rest));
        }
        if rest.is_empty() {
            return None;
        }
        value.push_str(part);
        value.push('\n');
        (part, rest) = rest.split_once('\n').unwrap_or((rest, ""));
    }
}

/// Splits at the first `mark` that has no backslash before it.
fn split_at_quote(part: &str, mark: char) -> Option<(&str, &str)> {
    part.match_indices(mark).find_map(|(at, _)| {
        let (inside, tail) = part.split_at_checked(at)?;
        (!inside.ends_with('\\')).then(|| (inside, tail.strip_prefix(mark).unwrap_or(tail)))
    })
}

/// A value that is not properly quoted: up to a comment, and without a pair of quotes around it all.
fn bare(value: &str) -> String {
    let value = value.split_once('#').map_or(value, |(value, _)| value).trim();
    let within = |mark: char| value.strip_prefix(mark)?.strip_suffix(mark);
    if let Some(inside) = within('"') {
        return expand(inside);
    }
    within('\'').or_else(|| within('`')).unwrap_or(value).to_owned()
}

/// Between double quotes, `\n` and `\r` stand for the characters they name.
fn expand(value: &str) -> String {
    value.replace("\\n", "\n").replace("\\r", "\r")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("A".to_owned(), value.to_owned())])
    }

    // Each line was read back by dotenv 17.4.2 as the value it stands for.
    #[test]
    fn each_kind_of_value_gets_quotes_that_hold_it() {
        let cases = [
            ("", "A=''\n"),
            ("plain", "A='plain'\n"),
            ("${X} # no comment", "A='${X} # no comment'\n"),
            ("two\nlines", "A='two\nlines'\n"),
            ("it's", "A=\"it's\"\n"),
            ("dos\r\n", "A=\"dos\\r\n\"\n"),
            ("'\"", "A=`'\"`\n"),
            ("it's\\new", "A=`it's\\new`\n"),
            ("a'\"`$b", "A=a'\"`$b\n"),
            ("C:\\dir\\", "A=C:\\dir\\\n"),
        ];
        for (value, expected) in cases {
            assert_eq!(render(&one(value)).unwrap(), expected, "{value:?}");
            assert_eq!(parse(expected), one(value), "{value:?}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_refused_without_its_value() {
        let variables = BTreeMap::from([
            ("1A".to_owned(), "s3cret".to_owned()),
            ("B".to_owned(), "s3cret\0".to_owned()),
            ("C".to_owned(), "'\"`s3cret\n".to_owned()),
            ("D".to_owned(), "#s3cret\\".to_owned()),
            ("OK".to_owned(), "s3cret".to_owned()),
            ("lower".to_owned(), "s3cret".to_owned()),
        ]);
        let faults = render(&variables).unwrap_err();
        let texts: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            faults,
            [
                EnvFault::Name { name: "1A".to_owned() },
                EnvFault::Nul { name: "B".to_owned() },
                EnvFault::Inexpressible { name: "C".to_owned() },
                EnvFault::Inexpressible { name: "D".to_owned() },
                EnvFault::Name { name: "lower".to_owned() },
            ]
        );
        assert!(!texts.concat().contains("s3cret"), "{texts:?}");
    }

    #[test]
    fn a_file_that_would_be_skipped_is_refused() {
        let faults = render(&one(&"x".repeat(MAX_BYTES))).unwrap_err();
        assert_eq!(faults, [EnvFault::TooLarge { size: MAX_BYTES + 5 }]);
    }

    #[test]
    fn files_written_by_hand_are_read() {
        let text = "# comment\r\n\r\nexport A = one two # tail\nB='x' # tail\nnonsense\nC=\nD=\"a\\nb\"\nG: yaml\nH='a'b'\nI=\"\\n\"b\"\nE='open\nF=1";
        let expected = [
            ("A", "one two"),
            ("B", "x"),
            ("C", ""),
            ("D", "a\nb"),
            ("E", "'open"),
            ("F", "1"),
            ("G", "yaml"),
            ("H", "a'b"),
            ("I", "\n\"b"),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(parse(text), BTreeMap::from(expected));
    }

    fn variables() -> impl Strategy<Value = BTreeMap<String, String>> {
        let value = prop_oneof![any::<String>(), "[a'\"`\\\\nr$#={} \n\r\t]{0,12}", "[ -~]{0,40}",];
        prop::collection::btree_map("[A-Z_][A-Z0-9_]{0,8}", value, 0..6)
    }

    proptest! {
        #[test]
        fn whatever_is_written_reads_back(variables in variables()) {
            if let Ok(text) = render(&variables) {
                prop_assert_eq!(parse(&text), variables);
            }
        }

        #[test]
        fn ordinary_secrets_can_always_be_written(value in "[A-Za-z0-9+/=_.:@$#!?&*()\\[\\]{}|~^%,;<> -]{0,80}") {
            prop_assert!(render(&one(&value)).is_ok());
        }

        #[test]
        fn any_text_can_be_parsed(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
