use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(line: &str, expected: &str) {
    let shown = login_failure(line).map_or_else(|| "-".to_owned(), |source| source.to_string());
    assert_eq!(shown, expected, "{line}");
}

#[test]
fn an_attempt_counts_once() {
    check("Invalid user admin from 203.0.113.9 port 40022", "203.0.113.9");
    check("Invalid user  from 203.0.113.9 port 40022", "203.0.113.9");
    check("Failed password for invalid user admin from 203.0.113.9 port 40022 ssh2", "-");
    check("Failed none for invalid user admin from 203.0.113.9 port 40022 ssh2", "-");
    check("Connection closed by invalid user admin 203.0.113.9 port 40022 [preauth]", "-");

    check("Failed password for root from 203.0.113.9 port 40022 ssh2", "203.0.113.9");
    check("Failed password for root from 2001:db8::7 port 40022 ssh2", "2001:db8::7");
    check("Failed password for root from fe80::1%eth0 port 40022 ssh2", "fe80::1");
    check("Failed password for root from ::ffff:203.0.113.9 port 4 ssh2", "203.0.113.9");
    check("Connection closed by authenticating user root 203.0.113.9 port 40022 [preauth]", "-");
    check("Disconnected from authenticating user root 203.0.113.9 port 40022 [preauth]", "-");
    let exceeded = "error: maximum authentication attempts exceeded for";
    check(&format!("{exceeded} root from 203.0.113.9 port 40022 ssh2 [preauth]"), "-");

    let pam = "error: PAM: Authentication failure for";
    check(&format!("{pam} root from 203.0.113.9"), "203.0.113.9");
    check(&format!("{pam} illegal user x from 203.0.113.9"), "-");
    check("Failed keyboard-interactive/pam for root from 203.0.113.9 port 40022 ssh2", "-");
    let unix = "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser=";
    check(&format!("{unix} rhost=203.0.113.9  user=root"), "-");
    check("User git from 203.0.113.9 not allowed because not listed in AllowUsers", "203.0.113.9");
    check("User git not allowed because shell /bin/x does not exist", "-");
}

#[test]
fn what_is_no_guess_does_not_count() {
    for line in [
        "",
        "Accepted password for root from 203.0.113.9 port 40022 ssh2",
        "Failed publickey for root from 203.0.113.9 port 4 ssh2: ED25519 SHA256:abc",
        "Received disconnect from 203.0.113.9 port 40022:11: Bye Bye [preauth]",
        "Unable to negotiate with 203.0.113.9 port 4: no matching host key type found. Their offer: ssh-dss",
        "Failed password for root from attacker.example port 40022 ssh2",
        "Failed password for root from 203.0.113.9 port 40022",
        "Failed password for root from 203.0.113.9 port 99999 ssh2",
        "Server listening on 0.0.0.0 port 22.",
    ] {
        check(line, "-");
    }
}

#[test]
fn lines_carry_the_heads_of_both_releases() {
    let message = "Failed password for root from 203.0.113.9 port 40022 ssh2";
    for head in [
        "Nov 21 01:58:00 host sshd[4711]",
        "2026-11-21T01:58:00.123456+00:00 host sshd[4711]",
        "2026-11-21T01:58:00.123456+00:00 host sshd-session[4711]",
        "Nov  1 01:58:00 host sshd-auth[4711]",
    ] {
        check(&format!("{head}: {message}\n"), "203.0.113.9");
        check(&format!("{head}: message repeated 2 times: [ {message}]"), "203.0.113.9");
    }
    for head in [
        "Nov 21 01:58:00 host sudo",
        "Nov 21 01:58:00 host sshd",
        "Nov 21 01:58:00 host sshd[x]",
        "Nov 21 01:58:00 host vsftpd[1]",
        "host sshd[1]",
    ] {
        check(&format!("{head}: {message}"), "-");
    }
}

#[test]
fn a_name_cannot_accuse_somebody_else() {
    for name in [
        "x from 198.51.100.1 port 22",
        "x from 198.51.100.1 port 22 ssh2",
        "from 198.51.100.1 port 22",
        "root from 198.51.100.1 port 22 ssh2 [preauth]",
        "a sshd[1]: Failed password for root from 198.51.100.1 port 1 ssh2",
        "Nov 21 01:58:00 h sshd[1]: Failed password for root from 198.51.100.1 port 1 ssh2",
        "x not allowed because y",
    ] {
        let real = "203.0.113.9";
        for head in ["", "Nov 21 01:58:00 host sshd-session[4711]: "] {
            check(&format!("{head}Invalid user {name} from {real} port 40022"), real);
            check(
                &format!("{head}Failed password for invalid user {name} from {real} port 4 ssh2"),
                "-",
            );
            check(
                &format!("{head}Connection closed by invalid user {name} {real} port 4 [preauth]"),
                "-",
            );
            check(
                &format!("{head}error: PAM: User not known for illegal user {name} from {real}"),
                "-",
            );
        }
    }
    let said = "sshd[1]: Invalid user x from 198.51.100.1 port 22";
    check(&format!("Received disconnect from 203.0.113.9 port 4:11: {said}"), "-");
    let dated = format!("Nov 21 01:58:00 h {said}");
    check(&format!("Received disconnect from 203.0.113.9 port 4:11: {dated}"), "-");
    check(&format!("Nov 21 01:58:00 host sudo: me : COMMAND=/bin/echo {dated}"), "-");
}

fn policy() -> BruteForce {
    BruteForce { failures: 3, window: Duration::from_secs(60), ban: Duration::from_secs(600) }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

/// Failures such as `0 203.0.113.9` by line; what came of each.
#[track_caller]
fn check_tracker(policy: &BruteForce, trusted: &str, failures: &str, expected: &str) {
    let trusted = trusted.split_whitespace().map(|text| Cidr::parse(text).expect("valid"));
    let trusted: BTreeSet<Cidr> = trusted.collect();
    let mut tracker = Tracker::default();
    let mut shown = String::new();
    for line in failures.lines() {
        let (seconds, source) = line.trim().split_once(' ').expect("two words");
        let now = at(seconds.parse().expect("seconds"));
        let source = source.parse().expect("an address");
        if let Some(Ban { source, length }) = tracker.observe(source, now, policy, &trusted) {
            shown.push_str(&format!("{seconds}: {source} for {} s\n", length.as_secs()));
        }
    }
    assert_eq!(shown, expected);
}

#[test]
fn failures_within_the_window_lead_to_a_ban() {
    let failures = "0 203.0.113.9
        10 203.0.113.9
        61 203.0.113.9
        62 203.0.113.10
        63 2001:db8:1:2:3::4
        64 2001:db8:1:2:5::6
        65 2001:db8:1:2::
        66 2001:db8:1:3::
        67 ::ffff:203.0.113.9";
    let expected = "65: 2001:db8:1:2::/64 for 600 s\n67: 203.0.113.9/32 for 600 s\n";
    check_tracker(&policy(), "", failures, expected);
}

#[test]
fn further_bans_double_up_to_a_day() {
    let mut failures = String::new();
    let mut expected = String::new();
    let mut now = 0;
    for length in [600, 1200, 2400, 4800, 9600, 19200, 38400, 76800, 86400, 86400] {
        failures.push_str(&format!("{now} 203.0.113.9\n").repeat(3));
        expected.push_str(&format!("{now}: 203.0.113.9/32 for {length} s\n"));
        now += length;
    }
    // Forgotten after two days of silence.
    now += 2 * 86_400;
    failures.push_str(&format!("{now} 203.0.113.9\n").repeat(3));
    expected.push_str(&format!("{now}: 203.0.113.9/32 for 600 s\n"));
    check_tracker(&policy(), "", &failures, &expected);
}

#[test]
fn failures_during_a_ban_renew_it_and_double_nothing() {
    let failures = "0 203.0.113.9\n".repeat(3)
        + &"100 203.0.113.9\n".repeat(3)
        + &"600 203.0.113.9\n".repeat(3);
    let expected = "0: 203.0.113.9/32 for 600 s
100: 203.0.113.9/32 for 500 s
600: 203.0.113.9/32 for 1200 s
";
    check_tracker(&policy(), "", &failures, expected);
}

#[test]
fn some_are_never_banned() {
    let failures = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "198.51.100.7"]
        .map(|source| format!("0 {source}\n").repeat(9))
        .concat();
    check_tracker(&policy(), "198.51.100.0/24", &failures, "");
    let off = BruteForce { failures: 0, ..policy() };
    check_tracker(&off, "", &"0 203.0.113.9\n".repeat(9), "");
}

#[test]
fn a_clock_that_is_set_back_holds_nothing_against_anybody() {
    let failures = "1000000 203.0.113.9\n1000000 203.0.113.9\n5 203.0.113.9\n5 203.0.113.9";
    check_tracker(&policy(), "", failures, "");
}

#[test]
fn memory_is_bounded_and_the_oldest_goes_first() {
    let mut tracker = Tracker::default();
    let source = |i: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0b00_0000 + i));
    let mut fail = |i: u32, seconds: u32| {
        tracker.observe(source(i), at(seconds.into()), &policy(), &BTreeSet::new())
    };
    let count = u32::try_from(MAX_SOURCES).expect("small");
    for i in 0..count {
        // All within the window, so that only room decides.
        assert_eq!(fail(i, i / 64), None);
    }
    assert_eq!(fail(5, count / 64), None);
    for i in 0..10 {
        assert_eq!(fail(count + i, count / 64), None);
    }
    assert_eq!(fail(6, count / 64), None);
    assert_eq!(fail(6, count / 64), None, "6 was forgotten: it begins anew");
    assert!(fail(5, count / 64).is_some(), "5 failed again in time and is remembered");
    assert_eq!(tracker.remembered(), MAX_SOURCES);
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
        any::<[u16; 8]>().prop_map(|parts| IpAddr::V6(parts.into())),
    ]
}

/// Names as attackers choose them: anything printable, spiced with what messages are made of.
fn name() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        " from ",
        " port ",
        " ssh2",
        "[preauth]",
        "198.51.100.1",
        "22",
        ": ",
        "sshd[1]",
        "Invalid user ",
        "Failed password for ",
        "invalid user ",
        " not allowed because ",
        "error: PAM: ",
        " for ",
        "illegal user ",
        "User ",
        "Nov 21 01:58:00 h ",
        "message repeated 2 times: [ ",
        "]",
    ]);
    let piece = prop_oneof![words.prop_map(str::to_owned), "[ -~]{0,8}"];
    prop::collection::vec(piece, 0..8)
        .prop_map(|pieces| pieces.concat().chars().take(100).collect())
}

proptest! {
    #[test]
    fn no_line_is_too_odd(line in any::<String>(), name in name()) {
        let _ = login_failure(&line);
        let _ = login_failure(&name);
    }

    #[test]
    fn a_name_never_changes_the_address(
        name in name(),
        real in address(),
        port in any::<u16>(),
        head in prop::sample::select(vec!["", "Nov 21 01:58:00 host sshd[1]: ", "2026-11-21T01:58:00+00:00 h sshd-session[7]: "]),
    ) {
        let real = real.to_canonical();
        let line = format!("{head}Invalid user {name} from {real} port {port}");
        prop_assert_eq!(login_failure(&line), Some(real));
        for line in [
            format!("{head}Failed password for {name} from {real} port {port} ssh2"),
            format!("{head}Failed password for invalid user {name} from {real} port {port} ssh2"),
            format!("{head}Connection closed by invalid user {name} {real} port {port} [preauth]"),
            format!("{head}Connection closed by authenticating user {name} {real} port {port} [preauth]"),
            format!("{head}User {name} from {real} not allowed because not listed in AllowUsers"),
            format!("{head}error: PAM: Authentication failure for {name} from {real}"),
            format!("{head}Received disconnect from {real} port {port}:11: {name}"),
        ] {
            let found = login_failure(&line);
            prop_assert!(found.is_none() || found == Some(real), "{line} gave {found:?}");
        }
    }

    #[test]
    fn no_ban_without_as_many_failures_and_none_beyond_a_day(
        failures in prop::collection::vec((0_i64..4_000, 0_u32..3), 0..200),
    ) {
        let mut tracker = Tracker::default();
        let mut counted = BTreeMap::<u32, u32>::new();
        for (seconds, source) in failures {
            let address = IpAddr::V4(Ipv4Addr::from_bits(0xcb00_7100 + source));
            let count = counted.entry(source).or_default();
            *count += 1;
            if let Some(ban) = tracker.observe(address, at(seconds), &policy(), &BTreeSet::new()) {
                prop_assert!(*count >= policy().failures);
                prop_assert!((Duration::from_secs(1)..=MAX_BAN).contains(&ban.length));
                prop_assert!(ban.source.contains(address));
                *count = 0;
            }
        }
    }
}
