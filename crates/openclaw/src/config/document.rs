//! Reading JSON5 text into a bounded tree.
//!
//! OpenClaw reads its configuration with the npm package `json5` 2.2.3. Two things are stricter here:
//! size and depth are bounded, since the text comes from a tenant, and numbers that JSON cannot write
//! (`NaN`, `Infinity`) are refused, since the document is written out again as JSON.

use std::fmt;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::ConfigFault;

/// The largest accepted text, in bytes: 1 MiB. Ours; a large real configuration has some 50 KiB.
pub const MAX_BYTES: usize = 1 << 20;

/// The deepest accepted nesting. Ours; the deepest path of OpenClaw's own schema has about 15 levels.
pub const MAX_DEPTH: usize = 64;

/// Reads `text`, which must be an object.
pub(super) fn read(text: &str) -> Result<Map<String, Value>, ConfigFault> {
    let root = |message: String| ConfigFault::new("<root>", message);
    if text.len() > MAX_BYTES {
        return Err(root(format!("larger than {MAX_BYTES} bytes")));
    }
    match json5::from_str::<Document>(text) {
        Ok(Document(Value::Object(map))) => Ok(map),
        Ok(Document(other)) => Err(root(format!("expected an object, found {}", kind_of(&other)))),
        Err(error) => Err(root(format!("not JSON5: {}", describe(&error)))),
    }
}

/// "a string", "a list"… for messages.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The parser counts lines and columns from zero; people and OpenClaw count from one. At the end of
/// the text it reports the place where the outermost value began, which helps nobody.
fn describe(error: &json5::Error) -> String {
    let what = match error.code() {
        Some(code) => code.to_string(),
        None => return error.to_string(),
    };
    match error.position() {
        Some(at) if !what.starts_with("EOF") => {
            format!("{what} at {}:{}", at.line + 1, at.column + 1)
        }
        _ => what,
    }
}

struct Document(Value);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Tree { depth: 0 }.deserialize(deserializer).map(Self)
    }
}

/// A value `depth` levels below the root.
#[derive(Clone, Copy)]
struct Tree {
    depth: usize,
}

impl Tree {
    fn child<E: de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            return Err(E::custom(format_args!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Tree {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON5 value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let child = self.child()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(child)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let child = self.child()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            map.insert(key, entries.next_value_seed(child)?);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 48, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_json_prints_reads_back(value in tree()) {
            let text = json!({ "root": value }).to_string();
            prop_assert_eq!(read(&text).unwrap().remove("root"), Some(value));
        }

        #[test]
        fn no_text_makes_it_fail_otherwise_than_by_a_fault(text in "[\\[\\]{}:,'\"\\\\a0-9.eN+/* \n-]{0,60}") {
            if let Err(fault) = read(&text) {
                prop_assert_eq!(fault.path, "<root>");
            }
        }
    }

    #[test]
    fn json5_forms_are_read() {
        let text = "{ // comment\n unquoted: 'single', hex: 0xff, lead: .5, trail: [1, 2,], }";
        assert_eq!(
            Value::Object(read(text).unwrap()),
            json!({ "unquoted": "single", "hex": 255, "lead": 0.5, "trail": [1, 2] })
        );
    }

    #[test]
    fn depth_is_counted_at_its_bound() {
        let nest = |levels: usize| format!("{{a:{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(read(&nest(MAX_DEPTH - 1)).is_ok());
        let fault = read(&nest(MAX_DEPTH)).unwrap_err();
        assert!(fault.message.contains("nested deeper than 64 levels"), "{fault}");
    }

    #[test]
    fn numbers_that_json_cannot_write_are_refused() {
        for text in ["{a: NaN}", "{a: Infinity}", "{a: -Infinity}"] {
            let fault = read(text).unwrap_err();
            assert!(fault.message.contains("not finite"), "{text}: {fault}");
        }
    }

    #[test]
    fn a_huge_text_is_refused_unread() {
        let fault = read(&" ".repeat(MAX_BYTES + 1)).unwrap_err();
        assert_eq!(fault.message, "larger than 1048576 bytes");
    }

    #[test]
    fn the_place_of_a_mistake_counts_from_one() {
        assert_eq!(read("{\n  a 1 }").unwrap_err().message, "not JSON5: expected colon at 2:5");
    }
}
