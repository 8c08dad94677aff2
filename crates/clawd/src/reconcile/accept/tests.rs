use claw_core::name::{DomainName, EnvName, ImageRef, Origin};
use claw_core::spec::{HealthPolicy, Resources, RunState, WebPolicy};
use claw_core::stamp::Epoch;
use claw_core::unit::{CpuMillis, MIB, Memory, PidsLimit};
use claw_proto::convert::session::encode_host_state;

use super::*;

fn name(text: &str) -> InstanceName {
    InstanceName::parse(text).unwrap()
}

fn spec() -> InstanceSpec {
    let secret = |text: &str| Secret::new(text.to_owned());
    InstanceSpec {
        image: ImageRef::parse("registry.example/gateway:1").unwrap(),
        resources: Resources {
            memory: Memory::from_bytes(1024 * MIB).unwrap(),
            cpu: CpuMillis::from_millis(1000).unwrap(),
            pids: PidsLimit::from_count(512).unwrap(),
        },
        run: RunState::Running,
        restarts: 0,
        rebuilds: 0,
        env: BTreeMap::from([(EnvName::parse("MODEL").unwrap(), "m".to_owned())]),
        secrets: BTreeMap::from([
            (EnvName::parse(GATEWAY_TOKEN).unwrap(), secret("t")),
            (EnvName::parse("KEY").unwrap(), secret("it's")),
        ]),
        config: "{ agents: { defaults: { model: '${MODEL}' } }, models: { key: '${KEY}' } }"
            .to_owned(),
        files: BTreeMap::from([(
            StatePath::parse("workspace/IDENTITY.md").unwrap(),
            "me".to_owned(),
        )]),
        web: WebPolicy {
            hostnames: [DomainName::parse("a.example").unwrap()].into(),
            allowed_origins: [Origin::parse("https://a.example").unwrap()].into(),
        },
        network: claw_core::firewall::NetworkPolicy::default(),
        health: HealthPolicy::default(),
        stop_grace: std::time::Duration::from_secs(30),
        backup: claw_core::backup::BackupPolicy::default(),
        update: claw_core::spec::UpdatePolicy::default(),
        restore: None,
    }
}

fn judged(
    state: &HostState,
    slots: &[(&str, u8)],
    found: &[(&str, u8)],
) -> Result<Accepted, Refused> {
    let map = |pairs: &[(&str, u8)]| -> BTreeMap<InstanceName, Slot> {
        pairs.iter().map(|(n, slot)| (name(n), Slot::new(*slot).unwrap())).collect()
    };
    let (slots, found) = (map(slots), map(found));
    let (surroundings, settings) = (Surroundings::default(), Settings::default());
    let held = Held {
        stamp: None,
        slots: &slots,
        found: &found,
        surroundings: &surroundings,
        settings: &settings,
    };
    let bytes = encode_host_state(state);
    let digest = Digest::of(&bytes);
    let stamp = Stamp { epoch: Epoch(1), generation: Generation(1), digest };
    match judge_offer(&held, &stamp, &bytes)? {
        Verdict::Take(accepted) => Ok(*accepted),
        Verdict::Known => panic!("nothing is known"),
    }
}

fn state(names: &[&str]) -> HostState {
    let instances = names.iter().map(|n| (name(n), spec())).collect();
    HostState { instances, ..HostState::default() }
}

#[test]
fn what_is_delivered_is_complete() {
    let accepted = judged(&state(&["a"]), &[], &[]).unwrap();
    let Target::Present { delivery, .. } = &accepted.targets[&name("a")].target else {
        panic!("it is wanted")
    };
    let files: Vec<&str> = delivery.files.keys().map(StatePath::as_str).collect();
    assert_eq!(files, ["openclaw.json", "workspace/IDENTITY.md"]);
    let config = &delivery.files[&StatePath::parse(CONFIG_FILE).unwrap()];
    for part in
        ["\"10.201.1.1/32\"", "\"https://a.example\"", "${OPENCLAW_GATEWAY_TOKEN}", "${MODEL}"]
    {
        assert!(config.contains(part), "{part} in {config}");
    }
    assert_eq!(delivery.secrets.reveal(), "KEY=\"it's\"\nOPENCLAW_GATEWAY_TOKEN='t'\n");
}

#[test]
fn slots_are_kept_adopted_and_otherwise_the_lowest_free() {
    let accepted =
        judged(&state(&["a", "b", "c", "d"]), &[("b", 0)], &[("c", 5), ("x", 1)]).unwrap();
    let added: Vec<(String, u8)> =
        accepted.added.iter().map(|(n, slot)| (n.to_string(), slot.number())).collect();
    assert_eq!(added, [("a".to_owned(), 2), ("c".to_owned(), 5), ("d".to_owned(), 3)]);
    assert_eq!(accepted.targets[&name("b")].network.bridge(), "claw-i0");
}

#[test]
fn removals_are_carried_out_once_and_told_for_ever() {
    let mut next = state(&["a"]);
    next.confirm_removal = [name("b"), name("gone")].into();
    let accepted = judged(&next, &[("a", 0), ("b", 1)], &[]).unwrap();
    assert_eq!(accepted.targets[&name("b")].target, Target::Removed);
    assert_eq!(accepted.gone, [name("gone")].into());
}

#[test]
fn every_fault_of_every_instance_is_said() {
    let mut next = state(&["a", "b", "c"]);
    let a = next.instances.get_mut(&name("a")).unwrap();
    a.secrets.clear();
    a.config = "{ nope: 1 }".to_owned();
    let b = next.instances.get_mut(&name("b")).unwrap();
    b.secrets.insert(EnvName::parse("BAD").unwrap(), Secret::new("'\"`s3cret\n".to_owned()));
    b.config = "{ models: { key: '${NOBODY}' } }".to_owned();
    let refused = judged(&next, &[], &[]).unwrap_err().to_string();
    let expected = "a: the secret OPENCLAW_GATEWAY_TOKEN is missing: the gateway would invent one, \
         openclaw.json: nope: unknown key; b: openclaw.json: models.key: nothing supplies the variable \
         NOBODY, variable BAD: the value mixes quotes, line breaks or backslashes in a way that a .env \
         file cannot express";
    assert_eq!(refused, expected);
}
