//! What is taken from an upstream's reply: the chain of aliases that begins at the question, its records,
//! and for a negative answer the authority that says how long it holds.
//!
//! What it deliberately does not do: pass on anything else. Records that were not asked for, additional
//! records and authorities could carry addresses past the policy, and nobody needs them.
//!
//! Where to start: [`Answer::distil`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use super::grants::MAX_LIFE;

/// Most aliases that are followed; resolvers stop between 8 and 17.
const MAX_ALIASES: usize = 16;
/// Most records of an answer; more are left out, and what is left is still true.
const MAX_RECORDS: usize = 64;
/// Longest life of a negative answer (RFC 2308 allows hours; a new name should show soon).
const MAX_NEGATIVE_TTL: u32 = 60;

/// An answer, free of what was not asked for. All of its records have the same TTL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    code: ResponseCode,
    records: Vec<Record>,
    authority: Option<Record>,
    ttl: u32,
}

impl Answer {
    /// Takes what answers the question; `None` if the reply does not say whether the name exists.
    #[must_use]
    pub fn distil(query: &Query, reply: Message) -> Option<Self> {
        let code = reply.metadata.response_code;
        if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return None;
        }
        let mut records = chain(query, reply.answers);
        let authority = reply.authorities.into_iter().find_map(start_of_authority);
        let lives = records.iter().map(|record| record.ttl);
        let answered = records.iter().any(|record| record.record_type() == query.query_type());
        let ttl = if answered {
            lives.min()
        } else {
            authority.as_ref().map(|record| record.ttl).into_iter().chain(lives).min()
        };
        let longest = u32::try_from(MAX_LIFE.as_secs()).unwrap_or(u32::MAX);
        let ttl = ttl.unwrap_or(0).min(longest);
        for record in &mut records {
            record.ttl = ttl;
        }
        let authority = authority.filter(|_soa| !answered);
        let authority = authority.map(|mut record| {
            record.ttl = ttl;
            record
        });
        Some(Self { code, records, authority, ttl })
    }

    /// Whether the name exists.
    #[must_use]
    pub const fn code(&self) -> ResponseCode {
        self.code
    }

    /// How long the answer holds.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl.into())
    }

    /// Every address to which the answer leads, hints of service bindings included (RFC 9460).
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.records.iter().flat_map(addresses_of).collect()
    }

    /// The same answer some time later.
    #[must_use]
    pub fn aged(mut self, age: Duration) -> Self {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        self.ttl = self.ttl.saturating_sub(age);
        for record in self.records.iter_mut().chain(&mut self.authority) {
            record.ttl = self.ttl;
        }
        self
    }

    /// Puts the answer into a message; records of the question's name get it as the client wrote it.
    pub fn write(&self, asked: &Name, message: &mut Message) {
        message.metadata.response_code = self.code;
        for record in &self.records {
            let mut record = record.clone();
            if record.name == *asked {
                record.name = asked.clone();
            }
            message.answers.push(record);
        }
        message.authorities.extend(self.authority.clone());
    }
}

/// The records of the question's type and class that belong to its name, or to a name that aliases make
/// of it, in order. Types are compared on the wire's terms: CNAME is both a type and a step.
fn chain(query: &Query, records: Vec<Record>) -> Vec<Record> {
    let kind = query.query_type();
    let mut rest: Vec<Record> = records
        .into_iter()
        .filter(|record| record.dns_class == DNSClass::IN)
        .filter(|record| {
            matches!(record.record_type(), RecordType::CNAME) || record.record_type() == kind
        })
        .collect();
    let mut taken = Vec::new();
    let mut name = query.name().clone();
    for _alias in 0..=MAX_ALIASES {
        let here = |record: &mut Record| record.name == name;
        let found: Vec<Record> = rest.extract_if(.., here).collect();
        let next = found.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if kind != RecordType::CNAME => Some(target.0.clone()),
            _ => None,
        });
        taken.extend(found);
        match next {
            Some(target) => name = target,
            None => break,
        }
    }
    taken.truncate(MAX_RECORDS);
    taken
}

/// A start of authority, with the time for which the absence of a name holds as its TTL (RFC 2308,
/// section 5).
fn start_of_authority(mut record: Record) -> Option<Record> {
    let RData::SOA(soa) = &record.data else { return None };
    record.ttl = record.ttl.min(soa.minimum).min(MAX_NEGATIVE_TTL);
    Some(record)
}

fn addresses_of(record: &Record) -> Vec<IpAddr> {
    let bindings = match &record.data {
        RData::A(address) => return vec![IpAddr::V4(address.0)],
        RData::AAAA(address) => return vec![IpAddr::V6(address.0)],
        RData::HTTPS(https) => &https.0.svc_params,
        RData::SVCB(svcb) => &svcb.svc_params,
        _ => return Vec::new(),
    };
    let hints = |value: &SvcParamValue| -> Vec<IpAddr> {
        match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|a| IpAddr::V4(a.0)).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|a| IpAddr::V6(a.0)).collect(),
            _ => Vec::new(),
        }
    };
    bindings.iter().flat_map(|(_key, value)| hints(value)).collect()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey};
    use hickory_proto::rr::rdata::{A, CNAME, HTTPS, NS, SOA, SVCB};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, last: u8) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A::new(192, 0, 2, last)))
    }

    fn alias(owner: &str, target: &str) -> Record {
        Record::from_rdata(name(owner), 30, RData::CNAME(CNAME(name(target))))
    }

    fn distil(kind: RecordType, answers: Vec<Record>, authorities: Vec<Record>) -> Answer {
        let query = Query::query(name("A.example."), kind);
        let mut reply = Message::response(1, hickory_proto::op::OpCode::Query);
        (reply.answers, reply.authorities) = (answers, authorities);
        Answer::distil(&query, reply).unwrap()
    }

    #[track_caller]
    fn check(answers: Vec<Record>, expected: &[u8], ttl: u64) {
        let answer = distil(RecordType::A, answers, vec![]);
        let expected = expected.iter().map(|&last| IpAddr::from([192, 0, 2, last])).collect();
        assert_eq!(answer.addresses(), expected);
        assert_eq!(answer.ttl(), Duration::from_secs(ttl));
    }

    #[test]
    fn aliases_lead_to_addresses_and_strangers_do_not() {
        check(vec![a("a.example.", 60, 1), a("a.EXAMPLE.", 50, 2)], &[1, 2], 50);
        let chain = || vec![a("c.other.", 60, 1), alias("a.example.", "b.example.")];
        check([chain(), vec![alias("b.example.", "C.other.")]].concat(), &[1], 30);
        // The alias in between is missing.
        check(chain(), &[], 30);
        check(vec![a("a.example.", 60, 1), a("b.example.", 1, 2)], &[1], 60);
        // A circle ends.
        check(vec![alias("a.example.", "b.example."), alias("b.example.", "a.example.")], &[], 30);
        check(vec![a("a.example.", u32::MAX, 1)], &[1], 86_400);
        let many = (0..100).map(|last| a("a.example.", 60, last)).collect();
        assert_eq!(distil(RecordType::A, many, vec![]).addresses().len(), MAX_RECORDS);
    }

    #[test]
    fn other_types_and_sections_are_dropped() {
        let ns = Record::from_rdata(name("a.example."), 5, RData::NS(NS(name("ns.example."))));
        let answer = distil(RecordType::AAAA, vec![a("a.example.", 60, 1), ns.clone()], vec![ns]);
        assert!(answer.records.is_empty() && answer.authority.is_none());
    }

    #[test]
    fn negative_answers_hold_as_long_as_their_authority_says() {
        let soa = SOA::new(name("ns.example."), name("h.example."), 1, 0, 0, 0, 20);
        let soa = Record::from_rdata(name("example."), 900, RData::SOA(soa));
        let answer = distil(RecordType::A, vec![], vec![soa.clone()]);
        assert_eq!(answer.ttl(), Duration::from_secs(20));
        assert_eq!(answer.clone().aged(Duration::from_secs(15)).ttl, 5);
        assert_eq!(answer.authority.unwrap().ttl, 20);
        let answer = distil(RecordType::A, vec![a("a.example.", 60, 1)], vec![soa]);
        assert_eq!((answer.ttl, answer.authority), (60, None));
    }

    #[test]
    fn hints_of_service_bindings_are_addresses() {
        let hint = SvcParamValue::Ipv4Hint(IpHint(vec![A::new(10, 0, 0, 1)]));
        let svcb = SVCB::new(1, Name::root(), vec![(SvcParamKey::Ipv4Hint, hint)]);
        let record = Record::from_rdata(name("a.example."), 60, RData::HTTPS(HTTPS(svcb)));
        let answer = distil(RecordType::HTTPS, vec![record], vec![]);
        assert_eq!(answer.addresses(), BTreeSet::from([IpAddr::from([10, 0, 0, 1])]));
    }

    #[test]
    fn the_client_sees_the_name_as_it_wrote_it() {
        let mut message = Message::query();
        distil(RecordType::A, vec![a("a.example.", 60, 1)], vec![])
            .write(&name("a.ExAmPlE."), &mut message);
        assert_eq!(message.answers[0].name.to_string(), "a.ExAmPlE.");
    }
}
