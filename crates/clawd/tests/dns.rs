//! `clawd dns` over real sockets: what containers are told, and what the packet filter knows by then.

// `cfg(test)` says to clippy what it is.
#[cfg(test)]
mod forwarder;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use claw_core::address::{AddressPool, Slot};
use claw_core::firewall::{Cidr, DnsPolicy, DnsRules, Mode};
use clawd::adapters::dns_forwarder::DnsForwarder;
use clawd::dns::kernel_sets::KernelSets;
use clawd::dns::listen::Place;
use clawd::ports::Resolver;
use forwarder::{
    Forwarder, Over, PATIENCE, Reaction, Upstream, address, addresses, alias, eventually, exchange,
    only, overwrite, question, question_with_edns, receive, test, until,
};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use tokio::io::AsyncReadExt;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout};

const LISTED: &str = "api.listed.example.";

async fn constant(addresses: &'static [&'static str]) -> Upstream {
    Upstream::start(move |query, _over| {
        Reaction::Records(addresses.iter().map(|text| address(query, 300, text)).collect())
    })
    .await
}

fn enforced(forwarder: &Forwarder, names: &[(&str, &[u16])]) -> DnsRules {
    forwarder.rules(0, only(Mode::Enforced, names))
}

#[tokio::test]
async fn every_answer_of_a_rotating_name_is_in_the_sets_before_it_is_told() {
    test(async {
        let turn = Rc::new(Cell::new(0_u8));
        let turns = Rc::clone(&turn);
        let upstream = Upstream::start(move |query, _over| {
            turns.set(turns.get() + 1);
            let last = |of: u8| format!("198.51.100.{}", turns.get().wrapping_mul(of));
            Reaction::Records(vec![address(query, 0, &last(1)), address(query, 0, &last(3))])
        })
        .await;
        let forwarder = Forwarder::start(1, &[upstream.address]);
        let rules = enforced(&forwarder, &[("*.listed.example", &[443])]);
        forwarder.publish(&[("demo", rules)]).await;
        let container = forwarder.container(0);
        for count in 1..=100 {
            let answer = container.ask(LISTED).await;
            let told = addresses(&answer);
            assert_eq!((answer.response_code, told.len()), (ResponseCode::NoError, 2));
            for address in told {
                for protocol in ["tcp", "udp"] {
                    let entry = format!("{address},{protocol}:443");
                    let timeout = forwarder.sets.timeout("claw-i0-nameports4", &entry);
                    assert_eq!(timeout, Some(120), "{entry} of answer {count}");
                }
            }
        }
        assert_eq!(turn.get(), 100);
    })
    .await;
}

#[tokio::test]
async fn names_off_the_list_do_not_exist_and_are_told_to_the_agent() {
    test(async {
        let upstream = constant(&["198.51.100.1"]).await;
        let forwarder = Forwarder::start(2, &[upstream.address]);
        let rules = enforced(&forwarder, &[("*.listed.example", &[]), ("exact.example", &[])]);
        forwarder.publish(&[("demo", rules)]).await;
        let container = forwarder.container(0);
        for name in
            ["listed.example.", "other.example.", "exact.example.evil.net.", "a.exact.example."]
        {
            let answer = container.ask(name).await;
            assert_eq!(answer.response_code, ResponseCode::NXDomain, "{name}");
            assert!(answer.authorities[0].ttl <= 5, "a change should show soon");
        }
        assert_eq!(upstream.asked.get(), 0, "nobody hears of what is refused");
        for name in ["Api.LISTED.Example.", "a.b.listed.example.", "EXACT.example."] {
            let answer = container.ask(name).await;
            assert_eq!(addresses(&answer), ["198.51.100.1"], "{name}");
            assert_eq!(answer.answers[0].name.to_ascii(), name, "as the client wrote it");
        }
        assert_eq!(forwarder.sets.entries(), ["claw-i0-names4 198.51.100.1"]);
        let seen = until(async || {
            let seen = forwarder.counters("demo").await;
            (seen.queries == 7).then_some(seen)
        })
        .await;
        assert_eq!((seen.refused, seen.rebinding, seen.failed), (4, 0, 0));
        let outside: Vec<&str> = seen.outside.iter().map(|(name, _)| name.as_str()).collect();
        let expected =
            ["listed.example", "other.example", "exact.example.evil.net", "a.exact.example"];
        assert_eq!(outside, expected);
    })
    .await;
}

#[tokio::test]
async fn an_alias_leads_where_the_asked_name_may_go() {
    test(async {
        let upstream = Upstream::start(|query, _over| {
            let mut far = query.clone();
            far.set_name(hickory_proto::rr::Name::from_ascii("cdn.elsewhere.example.").unwrap());
            Reaction::Records(vec![
                alias(query, "cdn.elsewhere.example."),
                address(&far, 20, "198.51.100.7"),
                address(&far, 20, "2001:db8::7"),
            ])
        })
        .await;
        let forwarder = Forwarder::start(3, &[upstream.address]);
        forwarder.publish(&[("demo", enforced(&forwarder, &[("api.listed.example", &[])]))]).await;
        let container = forwarder.container(0);
        let answer = container.ask(LISTED).await;
        assert_eq!((answer.answers.len(), addresses(&answer)), (2, vec!["198.51.100.7".into()]));
        assert_eq!(forwarder.sets.timeout("claw-i0-names4", "198.51.100.7"), Some(120));
        let refused = container.ask("cdn.elsewhere.example.").await;
        assert_eq!(refused.response_code, ResponseCode::NXDomain);
        // Over IPv6 just the same, whether the container has it or not.
        let answer = container.question(&question(LISTED, RecordType::AAAA)).await;
        assert_eq!(addresses(&answer), ["2001:db8::7"]);
        assert_eq!(forwarder.sets.timeout("claw-i0-names6", "2001:db8::7"), Some(120));
    })
    .await;
}

#[tokio::test]
async fn what_the_client_is_told_ends_before_the_way_does() {
    test(async {
        let upstream = Upstream::start(|query, _over| {
            let first = query.name().iter().next().unwrap().to_ascii_lowercase();
            let ttl = std::str::from_utf8(&first).unwrap().trim_start_matches('t').parse().unwrap();
            Reaction::Records(vec![address(query, ttl, "198.51.100.1")])
        })
        .await;
        let forwarder = Forwarder::start(4, &[upstream.address]);
        forwarder.publish(&[("demo", enforced(&forwarder, &[("*.example.net", &[])]))]).await;
        for (ttl, told, timeout) in [(0, 0, 120), (90, 90, 150), (4_000_000, 86_400, 86_460)] {
            let answer = forwarder.container(0).ask(&format!("t{ttl}.example.net.")).await;
            assert_eq!(answer.answers[0].ttl, told);
            let stays = forwarder.sets.timeout("claw-i0-names4", "198.51.100.1");
            assert_eq!(stays, Some(timeout), "{ttl}");
        }
    })
    .await;
}

#[tokio::test]
async fn names_that_lead_inside_are_refused_in_every_mode() {
    test(async {
        let upstream = Upstream::start(|query, _over| {
            let inside = match query.query_type() {
                RecordType::AAAA => "::ffff:127.0.0.1",
                _ if query.name().to_ascii().to_ascii_lowercase().starts_with("meta") => {
                    "169.254.169.254"
                }
                _ => "10.9.8.7",
            };
            Reaction::Records(vec![address(query, 60, "198.51.100.1"), address(query, 60, inside)])
        })
        .await;
        let forwarder = Forwarder::start(5, &[upstream.address]);
        let listed: &[(&str, &[u16])] = &[("*.listed.example", &[])];
        let mut lifted = forwarder.rules(3, only(Mode::Enforced, listed));
        lifted.networks = BTreeSet::from([
            Cidr::parse("10.0.0.0/8").unwrap(),
            Cidr::parse("169.254.0.0/16").unwrap(),
        ]);
        forwarder
            .publish(&[
                ("enforced", enforced(&forwarder, listed)),
                ("observed", forwarder.rules(1, only(Mode::Observed, listed))),
                ("open", forwarder.rules(2, None)),
                ("lifted", lifted),
            ])
            .await;
        for slot in 0..=2 {
            let container = forwarder.container(slot);
            for name in ["meta.listed.example.", LISTED] {
                let answer = container.ask(name).await;
                assert_eq!(answer.response_code, ResponseCode::NXDomain, "slot {slot}, {name}");
            }
            let answer = container.question(&question(LISTED, RecordType::AAAA)).await;
            assert_eq!(answer.response_code, ResponseCode::NXDomain, "slot {slot}, mapped");
        }
        assert_eq!(forwarder.sets.entries(), Vec::<String>::new());
        let container = forwarder.container(3);
        assert_eq!(addresses(&container.ask(LISTED).await), ["198.51.100.1", "10.9.8.7"]);
        let answer = container.ask("meta.listed.example.").await;
        assert_eq!(answer.response_code, ResponseCode::NXDomain, "metadata is never lifted");
        for name in ["enforced", "observed", "open"] {
            until(async || (forwarder.counters(name).await.rebinding == 3).then_some(())).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_list_that_is_only_tried_refuses_nothing_and_tells_everything() {
    test(async {
        let upstream = constant(&["198.51.100.1"]).await;
        let forwarder = Forwarder::start(6, &[upstream.address]);
        let listed = only(Mode::Observed, &[("*.listed.example", &[443])]);
        let rules = forwarder.rules(0, listed);
        forwarder.publish(&[("demo", rules), ("open", forwarder.rules(1, None))]).await;
        let container = forwarder.container(0);
        assert_eq!(addresses(&container.ask("other.example.").await), ["198.51.100.1"]);
        assert_eq!(forwarder.sets.entries(), Vec::<String>::new());
        assert_eq!(addresses(&container.ask(LISTED).await), ["198.51.100.1"]);
        assert_eq!(forwarder.sets.entries().len(), 2);
        // The list is tried, not held: sets that fail do not matter.
        forwarder.sets.break_down();
        assert_eq!(addresses(&container.ask(LISTED).await), ["198.51.100.1"]);
        assert_eq!(addresses(&forwarder.container(1).ask("other.example.").await).len(), 1);
        let seen = until(async || {
            let seen = forwarder.counters("demo").await;
            (seen.queries == 3).then_some(seen)
        })
        .await;
        let address = BTreeSet::from([IpAddr::from([198, 51, 100, 1])]);
        assert_eq!(seen.outside, [("other.example".to_owned(), address)]);
        assert_eq!(forwarder.counters("open").await.outside, []);
    })
    .await;
}

#[tokio::test]
async fn large_answers_come_by_tcp_on_both_sides() {
    test(async {
        let upstream = Upstream::start(|query, over| match over {
            Over::Udp => Reaction::Truncated,
            Over::Tcp => {
                let many = (1..=60).map(|last| address(query, 60, &format!("198.51.100.{last}")));
                Reaction::Records(many.collect())
            }
        })
        .await;
        let forwarder = Forwarder::start(7, &[upstream.address]);
        forwarder.publish(&[("demo", enforced(&forwarder, &[("*.listed.example", &[])]))]).await;
        let container = forwarder.container(0);
        let answer = container.ask(LISTED).await;
        assert!(answer.truncation && answer.answers.is_empty(), "512 bytes without EDNS");
        let answer = container.question(&question_with_edns(LISTED, 4096)).await;
        assert!(!answer.truncation, "60 addresses fit into 1232 bytes");
        assert_eq!(addresses(&answer).len(), 60);
        assert_eq!(addresses(&container.ask_by_tcp(LISTED).await).len(), 60);
        assert_eq!(forwarder.sets.entries().len(), 60);
        assert_eq!(upstream.asked.get(), 2, "once by UDP, once by TCP, then from memory");
    })
    .await;
}

#[tokio::test]
async fn a_changed_policy_takes_back_what_it_no_longer_allows_and_drops_no_socket() {
    test(async {
        let upstream = constant(&["198.51.100.1"]).await;
        let forwarder = Forwarder::start(8, &[upstream.address]);
        let wide: &[(&str, &[u16])] =
            &[("*.listed.example", &[443, 80]), ("*.wild.example", &[8443])];
        forwarder.publish(&[("demo", enforced(&forwarder, wide))]).await;
        let container = forwarder.container(0);
        let mut stream = container.stream().await.unwrap();
        exchange(&mut stream, LISTED).await;
        exchange(&mut stream, "a.wild.example.").await;
        assert_eq!(forwarder.sets.entries().len(), 6);
        let tight = enforced(&forwarder, &[("*.listed.example", &[443])]);
        let other = forwarder.rules(1, None);
        forwarder.publish(&[("demo", tight), ("other", other.clone())]).await;
        let left =
            ["claw-i0-nameports4 198.51.100.1,tcp:443", "claw-i0-nameports4 198.51.100.1,udp:443"];
        assert_eq!(forwarder.sets.entries(), left);
        let refused = exchange(&mut stream, "a.wild.example.").await;
        assert_eq!(refused.response_code, ResponseCode::NXDomain);
        assert_eq!(addresses(&exchange(&mut stream, LISTED).await).len(), 1);
        assert_eq!(addresses(&forwarder.container(1).ask("any.example.").await).len(), 1);
        // An instance that is gone is not answered, and its address is free for the next.
        forwarder.publish(&[("next", forwarder.rules(0, None)), ("other", other)]).await;
        assert_eq!(
            timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap_err().kind(),
            std::io::ErrorKind::UnexpectedEof
        );
        assert_eq!(addresses(&container.ask("any.example.").await).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_bad_file_leaves_the_policy_in_force() {
    test(async {
        let upstream = constant(&["198.51.100.1"]).await;
        let forwarder = Forwarder::start(9, &[upstream.address]);
        let rules = enforced(&forwarder, &[("*.listed.example", &[])]);
        forwarder.publish(&[("demo", rules.clone())]).await;
        let good = std::fs::read_to_string(forwarder.policy_file()).unwrap();
        let container = forwarder.container(0);
        for bad in ["", "{", "{\"version\":1}", "{\"version\":99,\"instances\":{}}"] {
            overwrite(&forwarder.policy_file(), bad);
            assert_eq!(addresses(&container.ask(LISTED).await).len(), 1, "{bad}");
            let refused = container.ask("other.example.").await;
            assert_eq!(refused.response_code, ResponseCode::NXDomain, "{bad}");
        }
        std::fs::remove_file(forwarder.policy_file()).unwrap();
        assert_eq!(addresses(&container.ask(LISTED).await).len(), 1);
        overwrite(&forwarder.policy_file(), &good.replace("listed", "renamed"));
        until(async || {
            let answer = container.ask("api.renamed.example.").await;
            (answer.response_code == ResponseCode::NoError).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn sets_that_fail_hold_the_answer_back_and_flushed_ones_are_filled_again() {
    test(async {
        let upstream = constant(&["198.51.100.1"]).await;
        let forwarder = Forwarder::start(10, &[upstream.address]);
        // What was there before is nobody's.
        forwarder.sets.put("claw-i0-names4", "203.0.113.66");
        forwarder.publish(&[("demo", enforced(&forwarder, &[("*.listed.example", &[])]))]).await;
        assert_eq!(forwarder.sets.entries(), Vec::<String>::new());
        let container = forwarder.container(0);
        forwarder.sets.break_down();
        assert_eq!(container.ask(LISTED).await.response_code, ResponseCode::ServFail);
        forwarder.sets.repair();
        let expected = ["claw-i0-names4 198.51.100.1"];
        assert_eq!(addresses(&container.ask(LISTED).await).len(), 1);
        assert_eq!(forwarder.sets.entries(), expected);
        forwarder.sets.flush();
        assert_eq!(addresses(&container.ask(LISTED).await).len(), 1);
        assert_eq!(forwarder.sets.entries(), expected);
        // A forwarder that starts anew begins with empty sets, and with its policy.
        let forwarder = forwarder.restart(10, &[upstream.address]).await;
        eventually(|| forwarder.sets.entries().is_empty()).await;
        assert_eq!(addresses(&container.ask(LISTED).await).len(), 1);
        assert_eq!(forwarder.sets.entries(), expected);
    })
    .await;
}

#[tokio::test]
async fn a_dead_upstream_costs_less_than_five_seconds_and_another_helps() {
    test(async {
        let silent = Upstream::start(|_query, _over| Reaction::Silence).await;
        let failing = Upstream::start(|_query, _over| Reaction::Code(ResponseCode::ServFail)).await;
        let good = constant(&["198.51.100.1"]).await;
        let dead: SocketAddr = ([127, 11, 255, 1], 1).into();
        let forwarder = Forwarder::start(11, &[silent.address]);
        forwarder.publish(&[("demo", forwarder.rules(0, None))]).await;
        let start = Instant::now();
        let answer = forwarder.container(0).ask("a.example.").await;
        assert_eq!(answer.response_code, ResponseCode::ServFail);
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        until(async || (forwarder.counters("demo").await.failed == 1).then_some(())).await;

        let forwarder =
            Forwarder::start(12, &[silent.address, dead, failing.address, good.address]);
        forwarder.publish(&[("demo", forwarder.rules(0, None))]).await;
        let container = forwarder.container(0);
        assert_eq!(addresses(&container.ask("a.example.").await), ["198.51.100.1"]);
        // Those that did not answer are asked last from then on.
        let before = silent.asked.get();
        assert_eq!(addresses(&container.ask("b.example.").await), ["198.51.100.1"]);
        assert_eq!(silent.asked.get(), before);
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_one_instance_is_bounded_and_disturbs_no_other() {
    test(async {
        let upstream = Upstream::start(|query, _over| {
            if query.name().to_ascii().to_ascii_lowercase().ends_with("slow.example.") {
                return Reaction::Silence;
            }
            Reaction::Records(vec![address(query, 60, "198.51.100.1")])
        })
        .await;
        let forwarder = Forwarder::start(13, &[upstream.address]);
        let (loud, calm) = (forwarder.rules(0, None), forwarder.rules(1, None));
        forwarder.publish(&[("loud", loud), ("calm", calm)]).await;
        let socket = forwarder.container(0).socket().await;
        for count in 0..2000 {
            let asked = question(&format!("n{count}.slow.example."), RecordType::A);
            socket.send(&asked.to_vec().unwrap()).await.unwrap();
        }
        let answer = forwarder.container(1).ask("a.example.").await;
        assert_eq!(addresses(&answer), ["198.51.100.1"]);
        // 64 at a time, and nothing has come to an end yet.
        eventually(|| upstream.asked.get() == 65).await;
        let reply = receive(&socket).await;
        assert_eq!(reply.response_code, ResponseCode::ServFail);
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(forwarder.container(0).stream().await.unwrap());
        }
        let served = streams.first_mut().unwrap();
        assert_eq!(addresses(&exchange(served, "a.example.").await), ["198.51.100.1"]);
        assert_eq!(addresses(&forwarder.container(1).ask("b.example.").await).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn strangers_get_no_answer() {
    test(async {
        let upstream = constant(&["198.51.100.1"]).await;
        let forwarder = Forwarder::start(14, &[upstream.address]);
        let rules = [("demo", forwarder.rules(0, None)), ("other", forwarder.rules(1, None))];
        forwarder.publish(&rules).await;
        let mut stranger = forwarder.container(0);
        stranger.from = forwarder.container(1).from;
        let socket = stranger.socket().await;
        socket.send(&question("a.example.", RecordType::A).to_vec().unwrap()).await.unwrap();
        let mut stream = stranger.stream().await.unwrap();
        let closed = timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(closed.kind(), std::io::ErrorKind::UnexpectedEof);
        // The one who is asked next answers in order.
        assert_eq!(addresses(&forwarder.container(0).ask("b.example.").await).len(), 1);
        assert_eq!(upstream.asked.get(), 1);
        assert_eq!(
            socket.try_recv(&mut [0; 16]).unwrap_err().kind(),
            std::io::ErrorKind::WouldBlock
        );
    })
    .await;
}

#[tokio::test]
async fn only_plain_questions_are_passed_on() {
    test(async {
        let upstream = constant(&["198.51.100.1"]).await;
        let forwarder = Forwarder::start(15, &[upstream.address]);
        forwarder.publish(&[("demo", forwarder.rules(0, None))]).await;
        let container = forwarder.container(0);
        for kind in [RecordType::ANY, RecordType::AXFR] {
            let answer = container.question(&question(LISTED, kind)).await;
            assert_eq!(answer.response_code, ResponseCode::Refused);
        }
        let socket: UdpSocket = container.socket().await;
        for garbage in [&[][..], &[0; 5], &[0xff; 4096]] {
            socket.send(garbage).await.unwrap();
        }
        assert_eq!(addresses(&container.ask(LISTED).await).len(), 1);
        assert_eq!(upstream.asked.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_agent_finds_nothing_while_the_forwarder_is_down() {
    test(async {
        let forwarder = Forwarder::start(16, &[]);
        forwarder.publish(&[("demo", forwarder.rules(0, None))]).await;
        assert_eq!(forwarder.agent.counters().await.unwrap().len(), 1);
        let agent = forwarder.agent.clone();
        let place = forwarder.container(0).server;
        let dir = forwarder.dir.path().to_owned();
        drop(forwarder);
        until(async || agent.counters().await.unwrap().is_empty().then_some(())).await;
        eventually(|| std::net::UdpSocket::bind(place).is_ok()).await;
        assert!(!dir.exists(), "the test leaves nothing behind");
    })
    .await;
}

/// The kernel's own sets, and a bridge that comes after its socket, in a network namespace of this thread.
#[test]
fn a_late_bridge_and_the_kernels_own_sets() {
    let body = async || {
        let run = async |line: &str| {
            let argv: Vec<&str> = line.split(' ').collect();
            clawd::adapters::command::run(&argv, PATIENCE).await.unwrap()
        };
        run("ip link set lo up").await;
        run("ipset create claw-i0-names4 hash:ip timeout 300").await;
        run("ipset create claw-i0-nameports4 hash:ip,port timeout 300").await;
        run("ipset create claw-i0-nameports6 hash:ip,port family inet6 timeout 300").await;
        run("ipset add claw-i0-names4 203.0.113.66").await;
        let upstream = Upstream::start(|query, _over| match query.query_type() {
            RecordType::AAAA => Reaction::Records(vec![address(query, 60, "2001:db8::1")]),
            _ => Reaction::Records(vec![address(query, 60, "198.51.100.1")]),
        })
        .await;
        let dir = tempfile::tempdir().unwrap();
        let sets = KernelSets::open().unwrap();
        let _running = forwarder::run(dir.path(), &[upstream.address], Place::bridge, sets);
        let agent = DnsForwarder::new(dir.path(), dir.path());
        let network = AddressPool::STANDARD.network(Slot::new(0).unwrap());
        let rules = |names: &[(&str, &[u16])]| {
            let only = only(Mode::Enforced, names);
            let rules = DnsRules { network, only, networks: BTreeSet::new() };
            DnsPolicy { instances: [(forwarder::instance("demo"), rules)].into() }
        };
        agent
            .publish(&rules(&[("*.listed.example", &[443]), ("every.example", &[])]))
            .await
            .unwrap();
        until(async || (agent.counters().await.unwrap().len() == 1).then_some(())).await;
        assert!(!run("ipset save").await.contains("203.0.113.66"), "what nobody knows of is gone");

        run("ip link add claw-i0 type bridge").await;
        run("ip addr add 10.201.1.1/24 dev claw-i0").await;
        run("ip addr add 10.201.1.2/24 dev claw-i0").await;
        run("ip link set claw-i0 up").await;
        let server = (network.gateway(), 53).into();
        let container = forwarder::Container { server, from: network.container() };
        assert_eq!(addresses(&container.ask(LISTED).await), ["198.51.100.1"]);
        let answer = container.question(&question(LISTED, RecordType::AAAA)).await;
        assert_eq!(addresses(&answer), ["2001:db8::1"]);
        assert_eq!(addresses(&container.ask_by_tcp("every.example.").await), ["198.51.100.1"]);
        let saved = run("ipset save").await;
        for line in [
            "add claw-i0-names4 198.51.100.1 timeout 1",
            "add claw-i0-nameports4 198.51.100.1,tcp:443 timeout 1",
            "add claw-i0-nameports4 198.51.100.1,udp:443 timeout 1",
            "add claw-i0-nameports6 2001:db8::1,tcp:443 timeout 1",
            "add claw-i0-nameports6 2001:db8::1,udp:443 timeout 1",
        ] {
            // 120 seconds, or a moment less.
            assert!(saved.contains(line), "{line}\n{saved}");
        }
        // The set for addresses over IPv6 on every port does not exist: the answer is held back.
        let answer = container.question(&question("every.example.", RecordType::AAAA)).await;
        assert_eq!(answer.response_code, ResponseCode::ServFail);

        agent.publish(&rules(&[("every.example", &[])])).await.unwrap();
        until(async || (!run("ipset save").await.contains("443")).then_some(())).await;
        assert!(run("ipset save").await.contains("add claw-i0-names4 198.51.100.1"));
        run("ipset destroy claw-i0-names4").await;
        assert_eq!(container.ask("every.example.").await.response_code, ResponseCode::ServFail);
        run("ipset create claw-i0-names4 hash:ip maxelem 1 bucketsize 2 hashsize 64 timeout 300")
            .await;
        assert_eq!(addresses(&container.ask("every.example.").await), ["198.51.100.1"]);
    };
    let thread = std::thread::spawn(move || {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("did not run: no network namespace can be made: {error}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(body()));
    });
    thread.join().unwrap();
}
