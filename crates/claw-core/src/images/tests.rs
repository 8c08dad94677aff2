//! Decisions as text, and what holds for every scene.

use proptest::prelude::*;

use super::*;
use crate::cutover::{Cutover, Deployment, Replaced, Stage};
use crate::data::DataGeneration;

const HOUR: Duration = Duration::from_secs(3600);

fn image(text: &str) -> ImageRef {
    ImageRef::parse(text).expect("valid")
}

fn instance(text: &str) -> InstanceName {
    InstanceName::parse(text).expect("valid")
}

fn at(hours: u32) -> Timestamp {
    Timestamp::from_millis(0).after(HOUR * hours)
}

fn snapshot(text: &str) -> Need {
    Need::Snapshot(SnapshotName::parse(text).expect("valid"))
}

/// A host with its memory.
#[derive(Debug, Clone)]
struct Ground {
    named: BTreeMap<ImageRef, Named>,
    present: BTreeMap<ImageRef, HostImage>,
    claims: BTreeSet<Claim>,
    unknown: BTreeSet<InstanceName>,
    room: Room,
}

impl Ground {
    /// References with the content that each leads to, `used` ones marked with `!`.
    fn new(present: &[(&str, &str)]) -> Self {
        let host = |(name, id): &(&str, &str)| {
            let used = id.ends_with('!');
            let id = id.trim_end_matches('!').to_owned();
            (image(name), HostImage { id, bytes: 7, used })
        };
        Self {
            named: BTreeMap::new(),
            present: present.iter().map(host).collect(),
            claims: BTreeSet::new(),
            unknown: BTreeSet::new(),
            room: Room::Enough,
        }
    }

    fn claim(&mut self, of: &str, name: &str, need: Need) -> &mut Self {
        self.claims.insert(Claim { image: image(name), instance: instance(of), need });
        self
    }

    fn scene(&self) -> Scene<'_> {
        let Self { named, present, claims, unknown, room } = self;
        Scene { named, present, claims, unknown, room: *room }
    }

    fn decide(&self, now: Timestamp) -> Decision {
        decide(&self.scene(), now)
    }

    /// Decides, remembers, and compares with what is expected.
    #[track_caller]
    fn check(&mut self, hours: u32, expected: &str) {
        let decision = self.decide(at(hours));
        let lines = decision.verdicts.iter().map(|(image, verdict)| format!("{image} {verdict}"));
        assert_eq!(lines.collect::<Vec<_>>().join("\n"), expected);
        self.named = decision.named;
    }
}

#[test]
fn an_image_goes_a_day_after_it_was_last_needed() {
    let mut ground = Ground::new(&[("a:1", "x"), ("a:2", "y")]);
    ground.claim("demo", "a:1", Need::Wanted);
    ground.check(0, "a:1 stays for demo: its spec wants it");
    ground.claims.clear();
    ground.claim("demo", "a:2", Need::Wanted);
    ground.check(5, "a:1 stays until 104400000ms\na:2 stays for demo: its spec wants it");
    ground.check(28, "a:1 stays until 104400000ms\na:2 stays for demo: its spec wants it");
    assert_eq!(ground.decide(at(28)).wake_at(), Some(at(29)));
    ground.check(29, "a:1 goes, unneeded since 18000000ms\na:2 stays for demo: its spec wants it");
    ground.present.remove(&image("a:1"));
    ground.check(29, "a:2 stays for demo: its spec wants it");
    assert_eq!(ground.named.len(), 1, "what is gone is forgotten");
}

#[test]
fn whoever_needs_it_again_begins_the_day_anew() {
    let mut ground = Ground::new(&[("a:1", "x")]);
    ground.claim("demo", "a:1", Need::Wanted);
    ground.check(0, "a:1 stays for demo: its spec wants it");
    ground.claims.clear();
    ground.check(1, "a:1 stays until 90000000ms");
    ground.claim("demo", "a:1", Need::Change);
    ground.check(20, "a:1 stays for demo: a change to it is under way");
    ground.claims.clear();
    ground.check(26, "a:1 stays until 180000000ms");
}

#[test]
fn without_room_it_goes_at_once() {
    let mut ground = Ground::new(&[("a:1", "x"), ("a:2", "y"), ("a:3", "z!")]);
    ground.named.extend(["a:1", "a:3"].map(|name| (image(name), Named::default())));
    ground.claim("demo", "a:2", Need::Confirmed);
    ground.room = Room::Low;
    ground.check(
        0,
        "a:1 goes, unneeded since 0ms\n\
         a:2 stays for demo: it is the version that works\n\
         a:3 stays: a container was made from it",
    );
}

#[test]
fn strangers_and_ids_are_nobodys() {
    let id = format!("sha256:{}", "0".repeat(64));
    let mut ground = Ground::new(&[("theirs:1", "x"), (&id, "y"), ("a:1", "z")]);
    ground.room = Room::Low;
    ground.check(0, "");
    ground.claim("demo", &id, Need::Wanted).claim("demo", "a:1", snapshot("monday"));
    ground.check(1, "");
    assert_eq!(ground.named, BTreeMap::new(), "what only a snapshot names may be somebody else's");
}

#[test]
fn another_name_of_needed_content_stays() {
    let mut ground = Ground::new(&[("a:1", "x"), ("a:latest", "x")]);
    ground.named.insert(image("a:latest"), Named { unneeded_since: Some(at(0)) });
    ground.claim("demo", "a:1", snapshot("monday"));
    ground.room = Room::Low;
    ground.check(99, "a:latest stays for demo: snapshot monday needs it");
}

#[test]
fn nothing_goes_while_somebody_is_not_known() {
    let mut ground = Ground::new(&[("a:1", "x"), ("a:2", "y")]);
    ground.named.insert(image("a:1"), Named { unneeded_since: Some(at(0)) });
    ground.named.insert(image("a:2"), Named::default());
    ground.unknown.insert(instance("demo"));
    ground.room = Room::Low;
    ground.check(
        99,
        "a:1 stays: what demo needs is not known\na:2 stays: what demo needs is not known",
    );
    ground.room = Room::Enough;
    ground.unknown.clear();
    // What was unneeded before still is; what was not begins its day now.
    ground.check(99, "a:1 goes, unneeded since 0ms\na:2 stays until 442800000ms");
}

#[test]
fn a_clock_that_was_ahead_keeps_nothing() {
    let mut ground = Ground::new(&[("a:1", "x")]);
    ground.named.insert(image("a:1"), Named { unneeded_since: Some(at(900_000)) });
    ground.check(1, "a:1 stays until 90000000ms");
    ground.check(25, "a:1 goes, unneeded since 3600000ms");
}

#[test]
fn every_version_that_can_run_is_claimed() {
    let mut record = Record {
        active: Some(Deployment { image: image("a:1"), data: DataGeneration::FIRST }),
        cutover: Some(Cutover {
            image: image("a:3"),
            restore: None,
            data: DataGeneration::FIRST.next(),
            asked: (0, 0),
            begun: at(1),
            stage: Stage::Preparing,
        }),
        ..Record::default()
    };
    let text = |record: &Record| {
        let claims = claims(&instance("demo"), None, record, None);
        let lines = claims.iter().map(|claim| format!("{} {}", claim.image, claim.need));
        lines.collect::<Vec<_>>().join("\n")
    };
    let expected = "a:1 it is the version that works\na:3 a change to it is under way";
    assert_eq!(text(&record), expected);
    record.cutover = None;
    record.replaced = Some(Replaced { data: DataGeneration::FIRST, since: at(0), until: at(1) });
    assert_eq!(text(&record), "a:1 it is the version that works");
}

const NAMES: [&str; 6] = ["a:1", "a:2", "a:3", "b:1", "b:2", "c:1"];

fn any_need() -> impl Strategy<Value = Need> {
    prop_oneof![
        Just(Need::Wanted),
        Just(Need::Confirmed),
        Just(Need::Replaced),
        Just(Need::Change),
        Just(snapshot("monday")),
    ]
}

prop_compose! {
    fn any_ground()(
        present in proptest::collection::btree_map(0..NAMES.len(), (0..4_u8, any::<bool>()), 0..6),
        named in proptest::collection::btree_map(0..NAMES.len(), proptest::option::of(0..60_u32), 0..6),
        claims in proptest::collection::vec((0..NAMES.len(), any_need()), 0..5),
        unsure in proptest::bool::weighted(0.2),
        low in any::<bool>(),
    ) -> Ground {
        let used: BTreeSet<u8> = present.values().filter(|(_, used)| *used).map(|(id, _)| *id).collect();
        let mut ground = Ground::new(&[]);
        ground.present = present.iter().map(|(index, (id, _))| {
            let found = HostImage { id: id.to_string(), bytes: 1, used: used.contains(id) };
            (image(NAMES[*index]), found)
        }).collect();
        ground.named = named.into_iter().map(|(index, since)| {
            (image(NAMES[index]), Named { unneeded_since: since.map(at) })
        }).collect();
        for (index, need) in claims {
            ground.claim("demo", NAMES[index], need);
        }
        ground.unknown.extend(unsure.then(|| instance("other")));
        ground.room = if low { Room::Low } else { Room::Enough };
        ground
    }
}

proptest! {
    #[test]
    fn what_goes_is_ours_and_nobody_needs_it(ground in any_ground(), hours in 0..90_u32) {
        let decision = ground.decide(at(hours));
        let content = |name: &ImageRef| ground.present.get(name).map(|found| found.id.clone());
        for gone in decision.removals() {
            prop_assert!(ground.unknown.is_empty());
            prop_assert!(ground.named.contains_key(gone));
            prop_assert!(!ground.present[gone].used);
            let claimed = ground.claims.iter().any(|claim| content(&claim.image) == content(gone));
            prop_assert!(!claimed, "{gone} is claimed");
            let since = ground.named[gone].unneeded_since.unwrap_or_else(|| at(hours));
            prop_assert!(ground.room == Room::Low || at(hours) >= since.after(GRACE));
        }
        for name in decision.verdicts.keys() {
            prop_assert!(ground.present.contains_key(name));
        }
    }

    #[test]
    fn once_carried_out_nothing_is_left_to_do(mut ground in any_ground(), hours in 0..90_u32) {
        let decision = ground.decide(at(hours));
        let gone: Vec<_> = decision.removals().cloned().collect();
        ground.named = decision.named;
        ground.present.retain(|name, _| !gone.contains(name));
        let again = ground.decide(at(hours));
        prop_assert_eq!(again.removals().next(), None);
        for name in &gone {
            prop_assert!(!again.named.contains_key(name), "{} is remembered for nothing", name);
        }
    }

    #[test]
    fn what_is_unneeded_goes_in_the_end(mut ground in any_ground(), hours in 0..90_u32) {
        ground.unknown.clear();
        let decision = ground.decide(at(hours));
        ground.named = decision.named.clone();
        let Some(wake) = decision.wake_at() else { return Ok(()) };
        prop_assert!(wake > at(hours));
        prop_assert!(ground.decide(wake).removals().next().is_some());
    }
}
