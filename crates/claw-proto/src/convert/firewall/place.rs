//! Where the entries of a policy's lists stood in the message that it came from.
//!
//! A policy holds sorted sets, and what did not parse is missing from its lists. A fault that is found in
//! the policy must name the entry as the caller wrote it.

use std::collections::BTreeMap;

/// For each list of a policy, the places of its entries in the message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Places(BTreeMap<String, Vec<usize>>);

impl Places {
    /// Notes where the entries of the list at `field`, in the policy's order, stood.
    pub(super) fn note(&mut self, field: String, places: Vec<usize>) {
        self.0.insert(field, places);
    }

    /// A field of the policy, such as `extra[0].sources[2]`, as a field of the message.
    pub(super) fn in_message(&self, field: &str) -> String {
        let (mut shown, mut seen) = (String::new(), String::new());
        for part in field.split_inclusive(']') {
            match indexed(part) {
                Some((list, index)) => {
                    let places = self.0.get(&format!("{seen}{list}"));
                    let place = places.and_then(|places| places.get(index)).unwrap_or(&index);
                    shown.push_str(&format!("{list}[{place}]"));
                }
                None => shown.push_str(part),
            }
            seen.push_str(part);
        }
        shown
    }
}

/// `.sources` and 2 of `.sources[2]`.
fn indexed(part: &str) -> Option<(&str, usize)> {
    let (list, rest) = part.split_once('[')?;
    Some((list, rest.strip_suffix(']')?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_those_of_the_message() {
        let mut places = Places::default();
        places.note("extra".to_owned(), vec![1, 4]);
        places.note("extra[1].sources".to_owned(), vec![7]);
        assert_eq!(places.in_message("extra[1].sources[0]"), "extra[4].sources[7]");
        assert_eq!(places.in_message("extra[0].port"), "extra[1].port");
        assert_eq!(places.in_message("blocked[3]"), "blocked[3]", "nothing is known of it");
        assert_eq!(places.in_message("ssh.ports"), "ssh.ports");
    }
}
