//! What is remembered of images, as a note in the journal.
//!
//! A name that cannot be read, of a newer agent's perhaps, is left out: its image stays on the host then.

use std::collections::BTreeMap;

use claw_core::images::Named;
use claw_core::name::ImageRef;
use claw_core::time::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Stored {
    /// By reference: since when nobody needs it.
    named: BTreeMap<String, Option<i64>>,
}

/// As the bytes of a note.
pub(super) fn encode(named: &BTreeMap<ImageRef, Named>) -> Vec<u8> {
    let stored = |(image, named): (&ImageRef, &Named)| {
        (image.to_string(), named.unneeded_since.map(Timestamp::millis))
    };
    let stored = Stored { named: named.iter().map(stored).collect() };
    // Numbers and texts: nothing that JSON cannot hold.
    serde_json::to_vec(&stored).unwrap_or_default()
}

/// From the bytes of a note.
///
/// # Errors
/// The bytes are no such note.
pub(super) fn decode(bytes: &[u8]) -> Result<BTreeMap<ImageRef, Named>, serde_json::Error> {
    let stored: Stored = serde_json::from_slice(bytes)?;
    let read = |(image, since): (String, Option<i64>)| {
        let unneeded_since = since.map(Timestamp::from_millis);
        Some((ImageRef::parse(&image).ok()?, Named { unneeded_since }))
    };
    Ok(stored.named.into_iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let image = |text: &str| ImageRef::parse(text).expect("valid");
        let since = Some(Timestamp::from_millis(5));
        let named = BTreeMap::from([
            (image("a:1"), Named::default()),
            (image("a:2"), Named { unneeded_since: since }),
        ]);
        assert_eq!(decode(&encode(&named)).expect("ours"), named);
        let newer = br#"{"colour":"red","named":{"A B":null,"a:1":null}}"#;
        assert_eq!(decode(newer).expect("newer").len(), 1);
        assert!(decode(b"nonsense").is_err());
    }
}
