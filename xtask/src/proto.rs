//! Lints the protocol: comments on everything, names as buf's `STANDARD` category wants them.
//!
//! The rules are those of buf (COMMENT_*, RPC_REQUEST_STANDARD_NAME, RPC_RESPONSE_STANDARD_NAME,
//! RPC_REQUEST_RESPONSE_UNIQUE, SERVICE_SUFFIX, ENUM_ZERO_VALUE_SUFFIX, ENUM_VALUE_PREFIX,
//! FIELD_LOWER_SNAKE_CASE, PACKAGE_VERSION_SUFFIX, PACKAGE_DIRECTORY_MATCH), checked on the compiled
//! descriptors.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto};

use crate::cargo::root;

const FILES: [&str; 6] = [
    "claw/node/v1/node.proto",
    "claw/node/v1/firewall.proto",
    "claw/node/v1/backup.proto",
    "claw/fleet/v1/fleet.proto",
    "claw/fleet/v1/instance.proto",
    "claw/fleet/v1/snapshot.proto",
];

/// Every rpc's comment must say who may call it; one of these words does.
const CALLERS: [&str; 2] = ["Who may call", "Roles:"];

/// Lints the files of `proto/`.
pub(crate) fn run() -> Result<()> {
    let mut compiler = protox::Compiler::new([root().join("proto")])?;
    compiler.include_source_info(true).include_imports(false);
    let set =
        compiler.open_files(FILES).context("the protocol does not compile")?.file_descriptor_set();
    let mut faults = Vec::new();
    for file in &set.file {
        lint(file, &mut faults);
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    let methods: usize = set.file.iter().flat_map(|f| &f.service).map(|s| s.method.len()).sum();
    println!("proto: {} files, {methods} methods", set.file.len());
    Ok(())
}

fn lint(file: &FileDescriptorProto, faults: &mut Vec<String>) {
    let comments = comments(file);
    let mut fault = |what: String| faults.push(format!("{}: {what}", file.name()));
    let package = file.package();
    if !package.ends_with(".v1") {
        fault(format!("package {package} has no version"));
    }
    if !file.name().starts_with(&package.replace('.', "/")) {
        fault(format!("package {package} does not match the directory"));
    }
    let mut used = BTreeSet::new();
    for (index, service) in file.service.iter().enumerate() {
        let path = [6, position(index)];
        commented(&comments, &path, service.name(), &mut fault);
        if !service.name().ends_with("Service") {
            fault(format!("service {} must end in Service", service.name()));
        }
        for (number, method) in service.method.iter().enumerate() {
            let name = method.name();
            let path = [6, position(index), 2, position(number)];
            commented(&comments, &path, name, &mut fault);
            let comment = comments.get(path.as_slice()).map_or("", String::as_str);
            if !CALLERS.iter().any(|word| comment.contains(word)) {
                fault(format!("the comment of {name} must say who may call it"));
            }
            for (kind, expected) in
                [(method.input_type(), "Request"), (method.output_type(), "Response")]
            {
                if kind != format!(".{package}.{name}{expected}") {
                    fault(format!("{name} must use {name}{expected}, uses {kind}"));
                }
                if !used.insert(kind.to_owned()) {
                    fault(format!("{kind} is used by two methods"));
                }
            }
        }
    }
    for (index, message) in file.message_type.iter().enumerate() {
        lint_message(message, &[4, position(index)], &comments, &mut fault);
    }
    for (index, kind) in file.enum_type.iter().enumerate() {
        lint_enum(kind, &[5, position(index)], &comments, &mut fault);
    }
}

fn lint_message(
    message: &DescriptorProto,
    path: &[i32],
    comments: &BTreeMap<Vec<i32>, String>,
    fault: &mut impl FnMut(String),
) {
    commented(comments, path, message.name(), fault);
    for (index, field) in message.field.iter().enumerate() {
        let path = [path, &[2, position(index)]].concat();
        let name = format!("{}.{}", message.name(), field.name());
        commented(comments, &path, &name, fault);
        let snake = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if !field.name().chars().all(snake) {
            fault(format!("{name} must be lower_snake_case"));
        }
    }
}

fn lint_enum(
    kind: &EnumDescriptorProto,
    path: &[i32],
    comments: &BTreeMap<Vec<i32>, String>,
    fault: &mut impl FnMut(String),
) {
    commented(comments, path, kind.name(), fault);
    let prefix = upper_snake(kind.name());
    for (index, value) in kind.value.iter().enumerate() {
        commented(comments, &[path, &[2, position(index)]].concat(), value.name(), fault);
        if !value.name().starts_with(&format!("{prefix}_")) {
            fault(format!("{} must start with {prefix}_", value.name()));
        }
        if value.number() == 0 && !value.name().ends_with("_UNSPECIFIED") {
            fault(format!("{} is zero and must end in _UNSPECIFIED", value.name()));
        }
    }
}

fn commented(
    comments: &BTreeMap<Vec<i32>, String>,
    path: &[i32],
    name: &str,
    fault: &mut impl FnMut(String),
) {
    if comments.get(path).is_none_or(|comment| comment.trim().is_empty()) {
        fault(format!("{name} has no comment"));
    }
}

/// Path of an element (descriptor.proto, `SourceCodeInfo.Location.path`) → its leading comment.
fn comments(file: &FileDescriptorProto) -> BTreeMap<Vec<i32>, String> {
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    locations.map(|place| (place.path.clone(), place.leading_comments().to_owned())).collect()
}

fn position(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn upper_snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_uppercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_passes() {
        run().expect("no faults");
    }

    #[test]
    fn faults_are_found() {
        let file = FileDescriptorProto {
            name: Some("x/y.proto".to_owned()),
            package: Some("claw.x".to_owned()),
            enum_type: vec![EnumDescriptorProto {
                name: Some("RunState".to_owned()),
                value: vec![prost_types::EnumValueDescriptorProto {
                    name: Some("UP".to_owned()),
                    number: Some(0),
                    options: None,
                }],
                ..Default::default()
            }],
            ..Default::default()
        };
        let mut faults = Vec::new();
        lint(&file, &mut faults);
        let expected = [
            "x/y.proto: package claw.x has no version",
            "x/y.proto: package claw.x does not match the directory",
            "x/y.proto: RunState has no comment",
            "x/y.proto: UP has no comment",
            "x/y.proto: UP must start with RUN_STATE_",
            "x/y.proto: UP is zero and must end in _UNSPECIFIED",
        ];
        assert_eq!(faults, expected);
    }
}
