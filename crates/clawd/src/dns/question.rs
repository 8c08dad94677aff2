//! A container's message: one question that can be forwarded, or the reply that it gets at once.
//!
//! What it deliberately does not do: know policies. Refused whatever the policy: everything but one
//! question of class IN, and questions for more than one kind of record (ANY, RFC 8482) or whole zones.

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::answer::Answer;

/// Largest message that is read, in bytes.
pub const MAX_QUESTION: usize = 4096;
/// Largest UDP message that is sent: what passes everywhere unfragmented (DNS flag day 2020).
pub const MAX_UDP: u16 = 1232;
/// Bytes of a UDP message that every client takes (RFC 1035, section 4.2.1).
const MIN_UDP: u16 = 512;
/// Most additional records of a question: OPT, and room for one of the future.
const MAX_ADDITIONALS: u16 = 2;
/// How long a client remembers a refusal, in seconds: a changed policy should show soon (RFC 2308).
const REFUSAL_TTL: u32 = 5;
/// Extended errors (RFC 8914, section 4): "Blocked" and "Network Error".
const EDE: u16 = 15;

/// How a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// By UDP: the reply may have to be truncated.
    Udp,
    /// By TCP.
    Tcp,
}

/// What a message turned out to be.
#[derive(Debug)]
pub enum Received {
    /// A question that can be forwarded.
    Question(Question),
    /// A message that is answered without asking anybody.
    Reply(Vec<u8>),
    /// Nothing that deserves an answer: garbage, or somebody else's reply.
    Nothing,
}

/// Why a question is refused, as the client is told where it understands extended errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The name is not on the instance's list.
    NotListed,
    /// The name leads to an address that is private, or closed otherwise.
    ClosedAddress,
}

impl Refusal {
    const fn text(self) -> &'static str {
        match self {
            Self::NotListed => "not on the allowlist of this instance",
            Self::ClosedAddress => "leads to a private or closed address",
        }
    }
}

/// A question of a container.
#[derive(Debug, Clone)]
pub struct Question {
    id: u16,
    query: Query,
    recursion_desired: bool,
    /// Bytes that the client takes by UDP; `None`: it does not know EDNS.
    edns: Option<u16>,
}

impl Question {
    /// What is asked.
    #[must_use]
    pub const fn query(&self) -> &Query {
        &self.query
    }

    /// NXDOMAIN, with a reason and a short life.
    #[must_use]
    pub fn refuse(&self, refusal: Refusal) -> Vec<u8> {
        let mut message = self.response(ResponseCode::NXDomain);
        if let Some(edns) = &mut message.edns {
            let code = 15_u16.to_be_bytes();
            let payload = code.iter().chain(refusal.text().as_bytes()).copied().collect();
            edns.options_mut().insert(EdnsOption::Unknown(EDE, payload));
        }
        let name = self.query.name().clone();
        let nobody = Name::root();
        let soa = SOA::new(nobody.clone(), nobody, 1, 0, 0, 0, REFUSAL_TTL);
        message.authorities.push(Record::from_rdata(name, REFUSAL_TTL, RData::SOA(soa)));
        encode(&message)
    }

    /// SERVFAIL: there is no answer now.
    #[must_use]
    pub fn fail(&self) -> Vec<u8> {
        encode(&self.response(ResponseCode::ServFail))
    }

    /// The answer, truncated if it is too large for how the question came.
    #[must_use]
    pub fn answer(&self, answer: &Answer, transport: Transport) -> Vec<u8> {
        let mut message = self.response(answer.code());
        answer.write(self.query.name(), &mut message);
        let bytes = encode(&message);
        let limit = match transport {
            Transport::Udp => usize::from(self.edns.unwrap_or(MIN_UDP).clamp(MIN_UDP, MAX_UDP)),
            Transport::Tcp => usize::from(u16::MAX),
        };
        if bytes.len() <= limit { bytes } else { encode(&message.truncate()) }
    }

    fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.queries.push(self.query.clone());
        message.edns = self.edns.map(|_size| own_edns());
        message
    }
}

/// Reads a container's message.
#[must_use]
pub fn read(bytes: &[u8]) -> Received {
    let Ok(header) = Header::read(&mut BinDecoder::new(bytes)) else { return Received::Nothing };
    if header.metadata.message_type == MessageType::Response {
        return Received::Nothing;
    }
    let reply = |code| {
        let mut message = Message::error_msg(header.metadata.id, header.metadata.op_code, code);
        message.metadata.recursion_desired = header.metadata.recursion_desired;
        message.metadata.recursion_available = true;
        Received::Reply(encode(&message))
    };
    if header.metadata.op_code != OpCode::Query {
        return reply(ResponseCode::NotImp);
    }
    // Before decoding: what the counts say is allocated.
    let counts = header.counts;
    let sane = counts.queries == 1
        && counts.answers == 0
        && counts.authorities == 0
        && counts.additionals <= MAX_ADDITIONALS;
    if !sane {
        return reply(ResponseCode::FormErr);
    }
    let Ok(mut message) = Message::from_vec(bytes) else { return reply(ResponseCode::FormErr) };
    let Some(query) = message.queries.pop() else { return reply(ResponseCode::FormErr) };
    let question = Question {
        id: header.metadata.id,
        query,
        recursion_desired: header.metadata.recursion_desired,
        edns: message.edns.as_ref().map(Edns::max_payload),
    };
    if message.edns.is_some_and(|edns| edns.version() > 0) {
        return Received::Reply(encode(&question.response(ResponseCode::BADVERS)));
    }
    if question.query.query_class() != DNSClass::IN || is_refused(question.query.query_type()) {
        return Received::Reply(encode(&question.response(ResponseCode::Refused)));
    }
    Received::Question(question)
}

/// Types 128 to 255 are no data but questions of other kinds (RFC 6895, section 3.1): transfers, ANY,
/// keys. OPT and records of signatures cannot be asked for either.
fn is_refused(kind: RecordType) -> bool {
    let number = u16::from(kind);
    (128..=255).contains(&number) || matches!(kind, RecordType::OPT | RecordType::ZERO)
}

/// What we say about ourselves in replies.
fn own_edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP);
    edns
}

/// Nothing that was decoded fails to encode; an empty message would be dropped by its reader.
fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    fn message(kind: RecordType) -> Message {
        let mut message = Message::query();
        message.queries.push(Query::query(Name::from_str("a.example.").unwrap(), kind));
        message
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: Option<ResponseCode>) {
        let code = match read(bytes) {
            Received::Reply(reply) => Some(Message::from_vec(&reply).unwrap().response_code),
            Received::Question(_) => Some(ResponseCode::NoError),
            Received::Nothing => None,
        };
        // As numbers: 16 has two names.
        assert_eq!(code.map(u16::from), expected.map(u16::from));
    }

    #[test]
    fn only_plain_questions_are_forwarded() {
        let plain = message(RecordType::A);
        check(&plain.to_vec().unwrap(), Some(ResponseCode::NoError));
        check(&message(RecordType::Unknown(65_280)).to_vec().unwrap(), Some(ResponseCode::NoError));
        for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::OPT] {
            check(&message(kind).to_vec().unwrap(), Some(ResponseCode::Refused));
        }
        let mut chaos = plain.clone();
        chaos.queries[0].set_query_class(DNSClass::CH);
        check(&chaos.to_vec().unwrap(), Some(ResponseCode::Refused));
        let mut two = plain.clone();
        two.queries.push(two.queries[0].clone());
        check(&two.to_vec().unwrap(), Some(ResponseCode::FormErr));
        let mut update = plain.clone();
        update.metadata.op_code = OpCode::Update;
        check(&update.to_vec().unwrap(), Some(ResponseCode::NotImp));
        let mut new_edns = plain.clone();
        new_edns.set_edns(Edns::new()).edns.as_mut().unwrap().set_version(1);
        check(&new_edns.to_vec().unwrap(), Some(ResponseCode::BADVERS));
        let mut reply = plain;
        reply.metadata.message_type = MessageType::Response;
        check(&reply.to_vec().unwrap(), None);
    }

    #[test]
    fn garbage_gets_no_more_than_a_form_error() {
        check(b"", None);
        check(b"short", None);
        check(&[0; 12], Some(ResponseCode::FormErr));
        let bytes = message(RecordType::A).to_vec().unwrap();
        check(bytes.get(..bytes.len() - 1).unwrap(), Some(ResponseCode::FormErr));
        // Counts that promise 65 535 records of nothing.
        let mut lying = bytes;
        lying[4..12].fill(0xff);
        check(&lying, Some(ResponseCode::FormErr));
    }

    #[test]
    fn refusals_say_why_and_are_forgotten_soon() {
        let mut asked = message(RecordType::A);
        asked.set_edns(own_edns());
        let Received::Question(question) = read(&asked.to_vec().unwrap()) else {
            panic!("is a question")
        };
        let reply = Message::from_vec(&question.refuse(Refusal::NotListed)).unwrap();
        assert_eq!((reply.id, reply.response_code), (asked.id, ResponseCode::NXDomain));
        assert_eq!(reply.authorities[0].ttl, REFUSAL_TTL);
        let option = reply.edns.unwrap().option(EDE.into()).cloned();
        let expected = [&[0, 15], "not on the allowlist of this instance".as_bytes()].concat();
        assert_eq!(option, Some(EdnsOption::Unknown(EDE, expected)));
    }
}
