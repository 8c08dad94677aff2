//! Answers of upstreams while they hold, bounded in bytes. Each instance has its own: nobody can tell
//! from the time of an answer what another customer looks up, or push the other's answers out.
//!
//! What it deliberately does not do: keep answers beyond their time (RFC 8767), or refresh them early.

use std::collections::HashMap;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query};
use tokio::time::Instant;

use super::answer::Answer;

/// Accounted for each answer besides its bytes: the key, its name, and the map's own, a third of which is
/// empty.
const OVERHEAD: usize = 400;
/// Larger answers are not kept.
const MAX_BYTES: usize = 4096;

#[derive(Debug)]
struct Kept {
    /// As a message: an eighth of what the decoded records take.
    bytes: Box<[u8]>,
    since: Instant,
    until: Instant,
}

/// Answers that still hold.
#[derive(Debug)]
pub struct Cache {
    kept: HashMap<Query, Kept>,
    size: usize,
    budget: usize,
}

impl Cache {
    /// An empty cache of at most `budget` bytes.
    #[must_use]
    pub fn new(budget: usize) -> Self {
        Self { kept: HashMap::new(), size: 0, budget }
    }

    /// Takes at most so many bytes from now on.
    pub fn bound(&mut self, budget: usize) {
        self.budget = budget;
        if self.size > budget {
            self.kept = HashMap::new();
            self.size = 0;
        }
    }

    /// Bytes that it is accounted for.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// The answer to a question, aged; `None` if there is none that holds for another second.
    #[must_use]
    pub fn find(&self, query: &Query, now: Instant) -> Option<Answer> {
        let kept = self.kept.get(&key(query))?;
        if kept.until < now + Duration::from_secs(1) {
            return None;
        }
        let answer = Answer::distil(query, Message::from_vec(&kept.bytes).ok()?)?;
        Some(answer.aged(now.duration_since(kept.since)))
    }

    /// Keeps an answer as long as it holds.
    pub fn keep(&mut self, query: &Query, answer: &Answer, now: Instant) {
        let mut message = Message::response(0, OpCode::Query);
        answer.write(query.name(), &mut message);
        let Ok(bytes) = message.to_vec() else { return };
        if answer.ttl() < Duration::from_secs(1) || bytes.len() > MAX_BYTES {
            return;
        }
        self.remove(&key(query));
        let size = cost(&bytes);
        if self.size + size > self.budget {
            self.make_room(size, now);
        }
        self.size += size;
        let kept = Kept { bytes: bytes.into(), since: now, until: now + answer.ttl() };
        self.kept.insert(key(query), kept);
    }

    /// Drops what no longer holds; if that does not give enough room, everything. Rare, and cheaper than
    /// keeping an order for it.
    fn make_room(&mut self, size: usize, now: Instant) {
        self.kept.retain(|_query, kept| kept.until > now);
        self.size = self.kept.values().map(|kept| cost(&kept.bytes)).sum();
        if self.size + size > self.budget {
            self.kept = HashMap::new();
            self.size = 0;
        }
    }

    fn remove(&mut self, key: &Query) {
        if let Some(kept) = self.kept.remove(key) {
            self.size -= cost(&kept.bytes);
        }
    }
}

const fn cost(bytes: &[u8]) -> usize {
    bytes.len() + OVERHEAD
}

/// Names are compared without regard to case.
fn key(query: &Query) -> Query {
    Query::query(query.name().to_lowercase(), query.query_type())
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    use super::*;

    fn query(name: &str) -> Query {
        Query::query(Name::from_str(name).unwrap(), RecordType::A)
    }

    fn answer(query: &Query, ttl: u32) -> Answer {
        let mut reply = Message::response(1, OpCode::Query);
        let data = RData::A(A::new(192, 0, 2, 1));
        reply.answers.push(Record::from_rdata(query.name().clone(), ttl, data));
        Answer::distil(query, reply).unwrap()
    }

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn answers_age_and_end() {
        let (mut cache, start) = (Cache::new(10_000), Instant::now());
        let asked = query("a.example.");
        cache.keep(&asked, &answer(&asked, 30), start);
        let found = cache.find(&query("A.EXAMPLE."), start + seconds(10)).unwrap();
        assert_eq!((found.ttl(), found.addresses().len()), (seconds(20), 1));
        assert_eq!(cache.find(&asked, start + seconds(30)), None);
        assert_eq!(cache.find(&query("b.example."), start), None);
        cache.keep(&query("c.example."), &answer(&query("c.example."), 0), start);
        assert_eq!(cache.find(&query("c.example."), start), None);
    }

    #[test]
    fn its_size_is_bounded() {
        let (mut cache, start) = (Cache::new(10_000), Instant::now());
        for number in 0..1000 {
            let asked = query(&format!("n{number}.example."));
            cache.keep(&asked, &answer(&asked, 30), start);
            assert!(cache.size() <= 10_000);
            assert!(cache.find(&asked, start).is_some());
        }
        let (mut cache, asked) = (Cache::new(10_000), query("again.example."));
        cache.keep(&asked, &answer(&asked, 30), start);
        let once = cache.size();
        cache.keep(&asked, &answer(&asked, 30), start);
        assert_eq!(cache.size(), once, "the same question counts once");
        cache.bound(0);
        assert_eq!((cache.size(), cache.find(&asked, start)), (0, None));
    }
}
