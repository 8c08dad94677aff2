//! A name server of the lab's internet: answers as it is told, and remembers what it was asked.
//!
//! Just enough of RFC 1035 for one question of type A or AAAA in class IN, over UDP and TCP; everything
//! else gets "not implemented". Answers to names that it does not know are NXDOMAIN.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
/// Codes of answers (RFC 1035, 4.1.1).
const OK: u8 = 0;
const NAME_ERROR: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// All of these addresses, each time.
    Addresses(Vec<IpAddr>),
    /// One of these addresses of each family at a time, in turn.
    Rotating(Vec<IpAddr>),
    /// Another name.
    Alias(String),
}

/// Names and what they lead to.
#[derive(Debug, Default)]
pub struct Names {
    zone: Mutex<BTreeMap<String, Entry>>,
    asked: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    ttl: u32,
    /// Answers given so far.
    given: usize,
}

/// One question.
struct Question<'a> {
    id: &'a [u8],
    /// The question as it came, to be repeated in the answer.
    section: &'a [u8],
    name: String,
    kind: u16,
}

impl Names {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what a name (lower case, no final dot) leads to, for so many seconds.
    pub fn set(&self, name: &str, ttl: u32, record: Record) {
        lock(&self.zone).insert(name.to_owned(), Entry { record, ttl, given: 0 });
    }

    /// How often a name was asked for.
    #[must_use]
    pub fn asked(&self, name: &str) -> usize {
        lock(&self.asked).iter().filter(|asked| *asked == name).count()
    }

    /// The answer to a message; none to what is no question.
    #[must_use]
    pub fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let question = Question::parse(message)?;
        lock(&self.asked).push(question.name.clone());
        if ![A, AAAA].contains(&question.kind) {
            return Some(question.reply(NOT_IMPLEMENTED, &[]));
        }
        match self.records(&question.name, question.kind, 0) {
            Some(records) => Some(question.reply(OK, &records)),
            None => Some(question.reply(NAME_ERROR, &[])),
        }
    }

    /// Answers one connection, each message with its length before it (RFC 1035, 4.2.2).
    ///
    /// # Errors
    /// When it breaks off.
    pub fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut message)?;
            let answer = self.answer(&message).unwrap_or_default();
            let length = u16::try_from(answer.len()).unwrap_or(0);
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
        }
    }

    /// Encoded records for a name, those of its aliases with them; `None` when there is no such name.
    fn records(&self, name: &str, kind: u16, depth: u8) -> Option<Vec<Vec<u8>>> {
        let (record, ttl, turn) = {
            let mut zone = lock(&self.zone);
            let entry = zone.get_mut(name)?;
            entry.given += 1;
            (entry.record.clone(), entry.ttl, entry.given)
        };
        let of_kind = |all: &[IpAddr]| -> Vec<IpAddr> {
            all.iter().filter(|ip| ip.is_ipv4() == (kind == A)).copied().collect()
        };
        let encode = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => resource(name, A, ttl, &v4.octets()),
            IpAddr::V6(v6) => resource(name, AAAA, ttl, &v6.octets()),
        };
        Some(match record {
            Record::Addresses(all) => of_kind(&all).into_iter().map(encode).collect(),
            Record::Rotating(all) => {
                let all = of_kind(&all);
                let index = turn.checked_rem(all.len()).unwrap_or(0);
                all.get(index).copied().map(encode).into_iter().collect()
            }
            Record::Alias(target) => {
                let mut records = vec![resource(name, CNAME, ttl, &encoded(&target))];
                if depth < 8 {
                    records.extend(self.records(&target, kind, depth + 1).unwrap_or_default());
                }
                records
            }
        })
    }
}

impl<'a> Question<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let flags = *message.get(2)?;
        let questions = message.get(4..6)?;
        if flags & 0x80 != 0 || questions != [0, 1] {
            return None;
        }
        let (name, end) = name_at(message, 12)?;
        let kind = u16::from_be_bytes(message.get(end..end + 2)?.try_into().ok()?);
        Some(Self { id: message.get(..2)?, section: message.get(12..end + 4)?, name, kind })
    }

    fn reply(&self, code: u8, records: &[Vec<u8>]) -> Vec<u8> {
        let count = u16::try_from(records.len()).unwrap_or(u16::MAX).to_be_bytes();
        // A response, authoritative, recursion desired and available.
        let head = [self.id, &[0x85, 0x80 | code], &[0, 1], &count, &[0, 0, 0, 0]].concat();
        [head, self.section.to_vec(), records.concat()].concat()
    }
}

/// What a name server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The code: 0 good, 3 no such name.
    pub code: u8,
    /// Addresses in the answer, in their order.
    pub addresses: Vec<IpAddr>,
}

/// A question for a name's addresses of a family.
#[must_use]
pub fn question(name: &str, v6: bool, id: u16) -> Vec<u8> {
    let head = [&id.to_be_bytes()[..], &[1, 0], &[0, 1], &[0; 6]].concat();
    let kind = if v6 { AAAA } else { A };
    [head, encoded(name), kind.to_be_bytes().to_vec(), vec![0, 1]].concat()
}

/// Reads an answer to a question with this id.
#[must_use]
pub fn read(message: &[u8], id: u16) -> Option<Answer> {
    let word = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    if word(0)? != id || message.get(2)? & 0x80 == 0 {
        return None;
    }
    let mut at = 12;
    for _ in 0..word(4)? {
        at = name_at(message, at)?.1 + 4;
    }
    let mut addresses = Vec::new();
    for _ in 0..word(6)? {
        at = name_at(message, at)?.1;
        let (kind, length) = (word(at)?, usize::from(word(at + 8)?));
        let data = message.get(at + 10..at + 10 + length)?;
        match kind {
            A => addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
            AAAA => addresses.push(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
            _ => {}
        }
        at += 10 + length;
    }
    Some(Answer { code: message.get(3)? & 0x0f, addresses })
}

/// A name in a message, in lower case, and where it ends.
fn name_at(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut labels, mut end) = (Vec::new(), None);
    for _ in 0..64 {
        let length = *message.get(at)?;
        match length {
            0 => {
                return Some((labels.join("."), end.unwrap_or(at + 1)));
            }
            // A pointer (RFC 1035, 4.1.4).
            0xc0.. => {
                let low = *message.get(at + 1)?;
                end.get_or_insert(at + 2);
                at = usize::from(u16::from_be_bytes([length & 0x3f, low]));
            }
            _ => {
                let label = message.get(at + 1..at + 1 + usize::from(length))?;
                labels.push(String::from_utf8_lossy(label).to_lowercase());
                at += 1 + usize::from(length);
            }
        }
    }
    None
}

fn encoded(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap_or(63));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

fn resource(name: &str, kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(0);
    let mut bytes = encoded(name);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &Names, name: &str, expected: &str) {
        let reply = names.answer(&question(name, false, 7)).unwrap();
        let answer = read(&reply, 7).unwrap();
        let addresses: Vec<String> = answer.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(format!("{} {}", answer.code, addresses.join(" ")).trim(), expected);
    }

    #[test]
    fn answers_are_as_they_were_told() {
        let names = Names::new();
        let two: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap()).to_vec();
        names.set("both.example", 60, Record::Addresses(two.clone()));
        names.set("turn.example", 60, Record::Rotating(two));
        names.set("alias.example", 60, Record::Alias("both.example".to_owned()));
        check(&names, "Both.Example", "0 192.0.2.1 192.0.2.2");
        check(&names, "turn.example", "0 192.0.2.2");
        check(&names, "turn.example", "0 192.0.2.1");
        check(&names, "alias.example", "0 192.0.2.1 192.0.2.2");
        check(&names, "other.example", "3");
        assert_eq!(names.asked("turn.example"), 2);
    }
}
