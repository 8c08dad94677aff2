//! `${NAME}` in configuration values.
//!
//! OpenClaw replaces `${NAME}` in strings by the variable `NAME` when it loads its configuration. Names
//! match `[A-Z_][A-Z0-9_]*`; anything else between the braces is plain text. `$${NAME}` writes a literal
//! `${NAME}`. Keys are never replaced. This module finds references; it resolves none.
//!
//! Source: `src/config/env-substitution.ts` as bundled in openclaw 2026.9.6.

use serde_json::{Map, Value};

/// One `${NAME}` in a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvReference {
    /// Where the value is, written as in [`ConfigFault::path`](super::ConfigFault::path).
    pub path: String,
    /// The variable's name.
    pub name: String,
}

/// All references below `document`, in document order.
pub(super) fn all(document: &Map<String, Value>) -> Vec<EnvReference> {
    let mut found = Vec::new();
    for (key, value) in document {
        visit(value, key, &mut found);
    }
    found
}

/// Whether `text` holds at least one reference.
pub(super) fn present(text: &str) -> bool {
    names(text).next().is_some()
}

/// `name` below `path`, for messages.
pub(super) fn key_path(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn visit(value: &Value, path: &str, found: &mut Vec<EnvReference>) {
    match value {
        Value::String(text) => found.extend(
            names(text).map(|name| EnvReference { path: path.to_owned(), name: name.to_owned() }),
        ),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                visit(item, &format!("{path}[{index}]"), found);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                visit(item, &key_path(path, key), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The names referred to in `text`, from left to right.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let (_, after) = rest.split_once('$')?;
            if let Some((_, tail)) = after.strip_prefix('$').and_then(braced) {
                rest = tail;
            } else if let Some((name, tail)) = braced(after) {
                rest = tail;
                return Some(name);
            } else {
                rest = after;
            }
        }
    })
}

/// Splits `{NAME}tail` into name and tail.
fn braced(text: &str) -> Option<(&str, &str)> {
    let (name, tail) = text.strip_prefix('{')?.split_once('}')?;
    is_name(name).then_some((name, tail))
}

/// Whether `name` matches `[A-Z_][A-Z0-9_]*`.
pub(crate) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_uppercase() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(names(text).collect::<Vec<_>>(), expected, "in {text:?}");
    }

    // Cases from running openclaw's own substitution.
    #[test]
    fn names_are_found_as_openclaw_finds_them() {
        check("${A}", &["A"]);
        check("x${A_1}y${_B}", &["A_1", "_B"]);
        check("$${A}", &[]);
        check("$$${A}", &[]);
        check("$${A}${B}", &["B"]);
        check("$${a}${B}", &["B"]);
        check("${a} ${1A} ${} ${A", &[]);
        check("${A${B}", &["B"]);
        check("$A $ {B}", &[]);
        check("${Ä}", &[]);
    }
}
