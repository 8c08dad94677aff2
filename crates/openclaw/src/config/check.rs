//! Comparing a document with the shapes that OpenClaw accepts.
//!
//! It collects every fault and never repeats a value, which can be a secret.

use serde_json::{Map, Value};

use super::ConfigFault;
use super::document::kind_of;
use super::reference::{key_path, present};
use super::shape::{DOCUMENT, Object, Shape};

/// Every fault of `document`, in no particular order.
pub(super) fn document(document: &Map<String, Value>) -> Vec<ConfigFault> {
    let mut faults = Vec::new();
    object(document, &DOCUMENT, "", &mut faults);
    for (key, value) in document {
        includes(value, key, &mut faults);
    }
    if document.contains_key(INCLUDE) {
        faults.retain(|fault| fault.path != INCLUDE);
        faults.push(include_fault(INCLUDE.to_owned()));
    }
    faults
}

/// OpenClaw reads another file where it finds this key.
const INCLUDE: &str = "$include";

fn include_fault(path: String) -> ConfigFault {
    ConfigFault::new(path, "includes are not supported: deliver one whole document")
}

fn includes(value: &Value, path: &str, faults: &mut Vec<ConfigFault>) {
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                includes(item, &format!("{path}[{index}]"), faults);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                let path = key_path(path, key);
                if key == INCLUDE {
                    faults.retain(|fault| fault.path != path);
                    faults.push(include_fault(path));
                } else {
                    includes(item, &path, faults);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn object(map: &Map<String, Value>, shape: &Object, path: &str, faults: &mut Vec<ConfigFault>) {
    for (key, value) in map {
        let path = key_path(path, key);
        match shape.keys.iter().find(|(name, _)| name == key) {
            Some((_, shape)) => check(value, shape, &path, faults),
            None if shape.closed => faults.push(ConfigFault::new(path, "unknown key")),
            None => {}
        }
    }
    for name in shape.required {
        if !map.contains_key(*name) {
            faults.push(ConfigFault::new(key_path(path, name), "required"));
        }
    }
}

fn check(value: &Value, shape: &Shape, path: &str, faults: &mut Vec<ConfigFault>) {
    match (shape, value) {
        (Shape::Object(shape), Value::Object(map)) => object(map, shape, path, faults),
        (Shape::Map(item), Value::Object(map)) => {
            for (key, value) in map {
                check(value, item, &key_path(path, key), faults);
            }
        }
        (Shape::List(item), Value::Array(values)) => {
            for (index, value) in values.iter().enumerate() {
                check(value, item, &format!("{path}[{index}]"), faults);
            }
        }
        (Shape::Either(shapes), _) if fits(value, shape) => {
            if let Some(shape) = shapes.iter().find(|shape| fits(value, shape)) {
                check(value, shape, path, faults);
            }
        }
        _ if fits(value, shape) => {}
        _ => faults.push(ConfigFault::new(path, mismatch(value, shape))),
    }
}

/// Whether `value` itself fits, contents of lists and objects aside.
fn fits(value: &Value, shape: &Shape) -> bool {
    match shape {
        Shape::AnyObject | Shape::Map(_) | Shape::Object(_) => value.is_object(),
        Shape::AnyList | Shape::List(_) => value.is_array(),
        Shape::Bool => value.is_boolean(),
        Shape::False => value == &Value::Bool(false),
        Shape::Int(low, high) => {
            whole(value).is_some_and(|number| (*low..=*high).contains(&number))
        }
        Shape::Number => value.is_number(),
        Shape::Text => value.is_string(),
        Shape::NonEmptyText => value.as_str().is_some_and(|text| !text.is_empty()),
        Shape::OneOf(allowed) => {
            value.as_str().is_some_and(|text| allowed.contains(&text) || present(text))
        }
        Shape::Either(shapes) => shapes.iter().any(|shape| fits(value, shape)),
    }
}

/// The whole number that `value` is; `1.0` is one, as in JavaScript.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|number| number.fract() == 0.0)?;
        format!("{number:.0}").parse().ok()
    })
}

fn mismatch(value: &Value, shape: &Shape) -> String {
    match shape {
        Shape::OneOf(_) => format!("expected {}", expectation(shape)),
        Shape::Int(..) if value.is_number() => format!("expected {}", expectation(shape)),
        Shape::NonEmptyText if value.is_string() => {
            "expected a string that is not empty".to_owned()
        }
        _ => format!("expected {}, found {}", expectation(shape), kind_of(value)),
    }
}

fn expectation(shape: &Shape) -> String {
    match shape {
        Shape::AnyObject | Shape::Map(_) | Shape::Object(_) => "an object".to_owned(),
        Shape::AnyList | Shape::List(_) => "a list".to_owned(),
        Shape::Bool => "a boolean".to_owned(),
        Shape::False => "false".to_owned(),
        Shape::Int(low, high) => format!("a whole number from {low} to {high}"),
        Shape::Number => "a number".to_owned(),
        Shape::Text | Shape::NonEmptyText => "a string".to_owned(),
        Shape::OneOf(allowed) => format!("one of {}", allowed.join(", ")),
        Shape::Either(shapes) => shapes.iter().map(expectation).collect::<Vec<_>>().join(" or "),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_text(value: &Value, expected: &[&str]) {
        let mut found: Vec<_> =
            document(value.as_object().unwrap()).iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn bounds_and_required_keys() {
        check_text(
            &json!({ "gateway": {
                "port": 70000,
                "portals": { "ingress": {} },
                "controlUi": { "environment": { "label": "", "color": "red" } },
                "terminal": { "detachedSessionTimeoutSeconds": 1.5 },
            } }),
            &[
                "gateway.controlUi.environment.label: expected a string that is not empty",
                "gateway.port: expected a whole number from 1 to 65535",
                "gateway.portals.ingress.domain: required",
                "gateway.portals.ingress.port: required",
                "gateway.terminal.detachedSessionTimeoutSeconds: \
                 expected a whole number from 0 to 9007199254740991",
            ],
        );
    }

    #[test]
    fn lists_and_maps_are_looked_into() {
        check_text(
            &json!({ "gateway": {
                "trustedProxies": ["a", 1],
                "auth": { "identityScopes": { "me": ["operator.read", "root"] } },
                "nodes": { "pairing": { "sshVerify": { "user": "x", "port": 1 } } },
                "remote": { "token": 1, "password": { "source": "env", "id": "" } },
                "roles": { "default": "x", "definitions": { "x": { "agents": "*" } } },
            } }),
            &[
                "gateway.auth.identityScopes.me[1]: expected one of operator.admin, operator.read, \
                 operator.write, operator.sessions.read, operator.sessions.write, \
                 operator.approvals, operator.questions, operator.pairing, operator.talk, \
                 operator.talk.secrets",
                "gateway.nodes.pairing.sshVerify.port: unknown key",
                "gateway.remote.password.id: expected a string that is not empty",
                "gateway.remote.password.provider: required",
                "gateway.remote.token: expected a string or an object, found a number",
                "gateway.roles.definitions.x.scopes: required",
                "gateway.roles.definitions.x.sessions: required",
                "gateway.trustedProxies[1]: expected a string, found a number",
            ],
        );
    }

    #[test]
    fn a_root_include_is_named_once() {
        check_text(
            &json!({ "$include": "./x.json", "gateway": { "$include": "./y.json" } }),
            &[
                "$include: includes are not supported: deliver one whole document",
                "gateway.$include: includes are not supported: deliver one whole document",
            ],
        );
    }
}
