//! Odd texts for the parsers of a policy, and odd policies for its check, each held against a second, plainer
//! implementation.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::firewall::{CidrError, DomainPattern, Egress, Family, Mode};
use crate::name::NameError;

/// Texts near a valid one: some characters of it replaced, dropped, doubled, or others put in.
fn mutated(valid: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let odd = prop_oneof![
        4 => prop::sample::select("0123456789abcdefxABCDEF.:/*-+%_[]".chars().collect::<Vec<_>>()),
        // Digits, letters and dots of other scripts, blanks, what ends a C string or a line.
        2 => prop::sample::select("\u{0661}\u{ff11}\u{0430}\u{3002}\u{200b}\u{00e9} \0\n\r\t\"'\\,;".chars().collect::<Vec<_>>()),
        1 => any::<char>(),
    ];
    let change = (0_u8..4, any::<prop::sample::Index>(), odd);
    (valid, prop::collection::vec(change, 0..4)).prop_map(|(valid, changes)| {
        let mut text: Vec<char> = valid.chars().collect();
        for (kind, at, odd) in changes {
            let at = at.index(text.len() + 1);
            match kind {
                0 => text.insert(at, odd),
                _ if at == text.len() => text.push(odd),
                1 => drop(text.remove(at)),
                2 => text.splice(at..=at, [odd]).for_each(drop),
                _ => {
                    let tail: Vec<char> = text.iter().skip(at).copied().collect();
                    text.extend(tail);
                }
            }
        }
        text.into_iter().collect()
    })
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        // Many zeros, and IPv4 within IPv6.
        (any::<u16>(), any::<u16>()).prop_map(|(a, b)| IpAddr::V6([a, 0, 0, 0, 0, 0, 0, b].into())),
        any::<u32>().prop_map(|bits| IpAddr::V6(std::net::Ipv4Addr::from(bits).to_ipv6_mapped())),
    ]
}

fn any_block() -> impl Strategy<Value = Cidr> {
    (any_address(), any::<u8>()).prop_map(|(address, prefix)| Cidr::containing(address, prefix))
}

/// Few blocks, so that they meet.
fn near_block() -> impl Strategy<Value = Cidr> {
    let v4 = (0_u32..64, 24_u8..=32).prop_map(|(low, prefix)| {
        Cidr::containing(IpAddr::V4((0xc000_0200 + 4 * low).into()), prefix)
    });
    let v6 = (0_u128..8, 120_u8..=128).prop_map(|(low, prefix)| {
        Cidr::containing(IpAddr::V6(((0x2001_0db8 << 96) + 16 * low).into()), prefix)
    });
    prop_oneof![v4, v6]
}

fn block_text() -> impl Strategy<Value = String> {
    let address = any_address().prop_map(|address| address.to_string());
    let loose = (any_address(), any::<u8>()).prop_map(|(a, prefix)| format!("{a}/{prefix}"));
    prop_oneof![address, loose, any_block().prop_map(|block| block.to_string())]
}

fn domain_text() -> impl Strategy<Value = String> {
    let label = prop_oneof![
        8 => "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?",
        1 => (60_usize..70).prop_map(|length| "a".repeat(length)),
    ];
    let labels = prop_oneof![8 => 1_usize..5, 1 => 30_usize..60];
    let labels = labels.prop_flat_map(move |count| prop::collection::vec(label.clone(), count));
    let prefix = prop::sample::select(vec!["", "*.", "*.*.", "*", "."]);
    (prefix, labels).prop_map(|(prefix, labels)| format!("{prefix}{}", labels.join(".")))
}

fn interface_text() -> impl Strategy<Value = String> {
    let known =
        prop::sample::select(vec!["tailscale0", "wg0", "eth0.100", "lo", "claw-i0", "br-lan", "."]);
    prop_oneof![known.prop_map(str::to_owned), "[a-zA-Z0-9._-]{0,18}"]
}

/// The bits of an address, first one first.
fn bits(address: IpAddr) -> Vec<bool> {
    let octets: Vec<u8> = match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    };
    let bit = |octet: u8, at: u8| octet & (0x80 >> at) != 0;
    octets.iter().flat_map(|octet| (0..8).map(move |at| bit(*octet, at))).collect()
}

/// Whether a text is a block, read as plainly as can be.
fn is_block(text: &str) -> bool {
    let mut parts = text.split('/');
    let Some(Ok(address)) = parts.next().map(str::parse::<IpAddr>) else { return false };
    let bits = bits(address);
    let prefix = match (parts.next(), parts.next()) {
        (None, _) => bits.len(),
        (Some(digits), None) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            // At most three digits, leading zeros included.
            match digits.parse::<usize>() {
                Ok(prefix) if prefix <= bits.len() && digits.len() <= 3 => prefix,
                _ => return false,
            }
        }
        _ => return false,
    };
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    !mapped && bits.iter().skip(prefix).all(|bit| !bit)
}

fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        let sound = |(at, c): (usize, char)| {
            let inner = at > 0 && at + 1 < label.len();
            c.is_ascii_lowercase() || c.is_ascii_digit() || (c == '-' && inner)
        };
        (1..=63).contains(&label.len()) && label.char_indices().all(sound)
    };
    let labels: Vec<&str> = text.split('.').collect();
    labels.len() >= 2
        && text.len() <= 253
        && labels.iter().all(|text| label(text))
        && text.parse::<IpAddr>().is_err()
}

fn check_block(text: &str) -> Result<(), TestCaseError> {
    let parsed = Cidr::parse(text);
    prop_assert_eq!(parsed.is_ok(), is_block(text), "{:?}", text);
    match parsed {
        Ok(block) => {
            prop_assert_eq!(Cidr::parse(&block.to_string()), Ok(block));
            prop_assert!(block.contains(block.address()));
            prop_assert!(block.prefix() <= block.family().bits());
        }
        Err(error) => {
            if let CidrError::HostBits { network, .. } = &error {
                prop_assert_eq!(Cidr::parse(&network.to_string()), Ok(*network), "the hint holds");
            }
            let told = error.to_string();
            prop_assert!(told.chars().count() < 2_000 && !told.contains(['\n', '\0']), "{}", told);
        }
    }
    Ok(())
}

fn check_domain(text: &str) -> Result<(), TestCaseError> {
    let parsed = DomainPattern::parse(text);
    let name = text.strip_prefix("*.").unwrap_or(text);
    prop_assert_eq!(parsed.is_ok(), is_domain(name), "{:?}", text);
    match parsed {
        Ok(pattern) => {
            prop_assert_eq!(pattern.to_string(), text, "nothing is changed on the way");
            let below = format!("a.{name}");
            let wildcard = text.starts_with('*');
            prop_assert_eq!(pattern.matches(name), !wildcard);
            prop_assert_eq!(pattern.matches(&below), wildcard);
            for beside in [format!("a{name}"), format!("{name}.zz")] {
                prop_assert!(!pattern.matches(&beside), "{}", beside);
            }
        }
        Err(error) => check_told(&error)?,
    }
    Ok(())
}

fn check_interface(text: &str) -> Result<(), TestCaseError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let sound = (1..=15).contains(&text.len())
        && text.chars().all(allowed)
        && !text.starts_with('-')
        && !text.starts_with("claw-")
        && !matches!(text, "lo" | "." | "..");
    let parsed = InterfaceName::parse(text);
    prop_assert_eq!(parsed.is_ok(), sound, "{:?}", text);
    match parsed {
        Ok(name) => prop_assert_eq!(name.to_string(), text),
        Err(error) => check_told(&error)?,
    }
    Ok(())
}

/// An error repeats a text of any length and content: bounded, on one line.
fn check_told(error: &NameError) -> Result<(), TestCaseError> {
    let told = error.to_string();
    prop_assert!(told.chars().count() < 2_000 && !told.contains(['\n', '\0']), "{}", told);
    Ok(())
}

fn any_ports() -> impl Strategy<Value = BTreeSet<Port>> {
    let port = prop::sample::select(vec![22_u16, 25, 53, 80, 443]);
    prop::collection::btree_set(port.prop_map(|number| Port::new(number).expect("not 0")), 0..3)
}

fn any_list() -> impl Strategy<Value = Allowlist> {
    let network = (near_block(), any_ports());
    let networks = prop::collection::vec(network, 0..24);
    let label = prop::sample::select(vec!["a", "b", "*"]);
    let parent = prop::sample::select(vec!["example.com", "a.example.com", "b.a.example.com"]);
    let name = (label, parent, any_ports());
    let names = prop::collection::vec(name, 0..12);
    (networks, names).prop_map(|(networks, names)| Allowlist {
        networks: networks
            .into_iter()
            .map(|(network, ports)| AllowedNetwork { network, ports })
            .collect(),
        names: names
            .into_iter()
            .map(|(label, parent, ports)| AllowedName {
                pattern: DomainPattern::parse(&format!("{label}.{parent}")).expect("valid"),
                ports,
            })
            .collect(),
        mode: Mode::Enforced,
    })
}

/// Fields of faults of some kind, sorted.
fn fields(faults: &[PolicyFault], wanted: impl Fn(&Problem) -> bool) -> Vec<String> {
    let mut fields: Vec<String> = faults
        .iter()
        .filter(|fault| wanted(&fault.problem))
        .map(|fault| fault.field.clone())
        .collect();
    fields.sort();
    fields
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn any_text_is_a_block_or_refused(text in any::<String>(), near in mutated(block_text())) {
        check_block(&text)?;
        check_block(&near)?;
    }

    #[test]
    fn any_text_is_a_domain_or_refused(text in any::<String>(), near in mutated(domain_text())) {
        check_domain(&text)?;
        check_domain(&near)?;
    }

    #[test]
    fn any_text_is_an_interface_or_refused(text in any::<String>(), near in mutated(interface_text())) {
        check_interface(&text)?;
        check_interface(&near)?;
    }

    #[test]
    fn blocks_hold_what_begins_with_their_bits(block in any_block(), near in near_block(), address in any_address()) {
        for (block, address) in [(block, address), (near, address), (block, near.address())] {
            let same = bits(block.address()).iter().zip(bits(address)).take(block.prefix().into()).all(|(a, b)| *a == b);
            prop_assert_eq!(block.contains(address), same && block.family() == Family::of(address));
        }
        prop_assert!(Cidr::containing(address, near.prefix()).contains(address));
        prop_assert_eq!(Cidr::parse(&block.to_string()).is_ok(), is_block(&block.to_string()));
    }

    #[test]
    fn every_overlap_of_sources_is_found(blocked in prop::collection::btree_set(near_block(), 0..24)) {
        let policy = HostPolicy { blocked: blocked.clone(), ..HostPolicy::default() };
        let mut expected: Vec<String> = blocked
            .iter()
            .enumerate()
            .filter(|(_, inner)| blocked.iter().any(|outer| outer != *inner && is_within(**inner, *outer)))
            .map(|(index, _)| format!("blocked[{index}]"))
            .collect();
        expected.sort();
        let found = fields(&host(&policy), |problem| matches!(problem, Problem::Overlap { .. }));
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn every_needless_entry_of_a_list_is_found(list in any_list()) {
        let egress = Egress { denied_ports: BTreeSet::new(), reach: Reach::Allowlist(list.clone()) };
        let faults = network(&NetworkPolicy { egress, ..NetworkPolicy::default() });
        let Allowlist { networks, names, mode: _ } = &list;
        // The first of several of a kind counts, others of its network or name do not.
        let first = |at: usize| !networks.iter().take(at).any(|other| other.network == networks[at].network);
        let twice = (0..networks.len()).filter(|at| !first(*at));
        let needless = (0..networks.len()).filter(|at| {
            first(*at) && (0..networks.len()).any(|other| {
                first(other)
                    && networks[other].network != networks[*at].network
                    && is_within(networks[*at].network, networks[other].network)
                    && ports_cover(&networks[other].ports, &networks[*at].ports)
            })
        });
        let named = |at: usize| format!("egress.allowlist.networks[{at}].network");
        let mut expected: Vec<String> = twice.map(named).collect();
        expected.sort();
        prop_assert_eq!(fields(&faults, |p| matches!(p, Problem::NetworkTwice { .. })), expected);
        let mut expected: Vec<String> = needless.map(named).collect();
        expected.sort();
        prop_assert_eq!(fields(&faults, |p| matches!(p, Problem::Overlap { .. })), expected);

        let texts: Vec<String> = names.iter().map(|one| one.pattern.to_string()).collect();
        let covered = (0..names.len()).filter(|at| {
            (0..names.len()).any(|other| {
                // A name below whatever the entry means is meant by the wildcard exactly if the entry is.
                let probe = texts[*at].replace('*', "zzz");
                !texts[..other].contains(&texts[other])
                    && texts[other] != texts[*at]
                    && names[other].pattern.matches(&probe)
                    && ports_cover(&names[other].ports, &names[*at].ports)
            })
        });
        let mut expected: Vec<String> =
            covered.map(|at| format!("egress.allowlist.names[{at}].pattern")).collect();
        expected.sort();
        prop_assert_eq!(fields(&faults, |p| matches!(p, Problem::NameCovered { .. })), expected);
    }

    #[test]
    fn no_policy_is_too_odd(
        sources in prop::collection::btree_set(any_block(), 0..8),
        extra in prop::collection::vec((any::<bool>(), 1_u16.., any_block()), 0..40),
        times in (any::<u32>(), any::<u64>(), any::<u64>()),
        lists in prop::collection::vec((any_block(), any_ports()), 0..8),
        pool in (any::<u8>(), any::<u8>()),
    ) {
        let extra = extra.into_iter().map(|(tcp, port, source)| ExtraPort {
            protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
            port: Port::new(port).expect("not 0"),
            access: Access { sources: [source].into(), interfaces: BTreeSet::new() },
        });
        let (failures, window, ban) = times;
        let access = Access { sources: sources.clone(), interfaces: BTreeSet::new() };
        let policy = HostPolicy {
            ssh: SshPolicy {
                ports: BTreeSet::new(),
                access: access.clone(),
                brute_force: BruteForce {
                    failures,
                    window: Duration::from_millis(window),
                    ban: Duration::from_secs(ban),
                },
            },
            web: WebAccess::Reachable(access),
            extra: extra.collect(),
            blocked: sources.clone(),
        };
        let networks = lists.into_iter().map(|(network, ports)| AllowedNetwork { network, ports });
        let list = Allowlist { networks: networks.collect(), names: Vec::new(), mode: Mode::Observed };
        let egress = Egress { reach: Reach::Allowlist(list), ..Egress::default() };
        let of_instance = NetworkPolicy { egress, web_sources: sources };
        let effective_policy = Effective {
            host: policy.clone(),
            ssh_ports: BTreeSet::new(),
            web_ports: BTreeSet::new(),
            pool: crate::address::AddressPool::new(pool.0, pool.1)
                .unwrap_or(crate::address::AddressPool::STANDARD),
            instances: BTreeMap::new(),
        };
        let locked_out = effective(&effective_policy, &Surroundings::default());
        prop_assert!(!locked_out.is_empty(), "without a port of ssh nobody gets in");
        for fault in host(&policy).iter().chain(&network(&of_instance)).chain(&locked_out) {
            prop_assert!(!fault.field.is_empty() && !fault.to_string().contains('\n'), "{}", fault);
        }
    }
}
