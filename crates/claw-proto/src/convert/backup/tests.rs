//! What goes over the wire comes back the same; what a peer may not say is named.

use claw_core::backup::{BackupReport, MAX_LISTED, SnapshotCause, SnapshotHealth, SnapshotInfo};
use claw_core::name::{ImageRef, InstanceName};
use claw_core::offsite::{BucketAddressing, OffsitePolicy, OffsiteReport, OffsiteStorage};
use claw_core::spec::{RestoreSource, Secret};
use claw_core::stamp::{Digest, Generation};
use claw_core::time::Timestamp;
use proptest::prelude::*;

use super::escrow::{Escrow, escrow_ack, escrow_ack_from_wire, escrow_from_wire, escrow_to_wire};
use super::*;

prop_compose! {
    fn retention_strategy()(
        last in 1..=Retention::MOST,
        hourly in 0..=Retention::MOST,
        daily in 0..=Retention::MOST,
        weekly in 0..=Retention::MOST,
        monthly in 0..=Retention::MOST,
    ) -> Retention {
        Retention { last, hourly, daily, weekly, monthly }
    }
}

fn seconds(least: Duration, most: Duration) -> impl Strategy<Value = Duration> {
    (least.as_secs()..=most.as_secs()).prop_map(Duration::from_secs)
}

prop_compose! {
    pub(in crate::convert) fn backup_policy()(
        every in prop::option::of(seconds(BackupPolicy::LEAST_EVERY, BackupPolicy::MOST_EVERY)),
        retention in retention_strategy(),
        drill_every in prop::option::of(
            seconds(BackupPolicy::LEAST_DRILL_EVERY, BackupPolicy::MOST_DRILL_EVERY)
        ),
        offsite in prop::sample::select(vec![
            OffsitePolicy::Auto,
            OffsitePolicy::Required,
            OffsitePolicy::Never,
        ]),
    ) -> BackupPolicy {
        BackupPolicy { every, retention, drill_every, offsite }
    }
}

prop_compose! {
    pub(in crate::convert) fn update_policy()(
        rehearsal in prop::sample::select(vec![Rehearsal::Auto, Rehearsal::Always, Rehearsal::Never]),
        keep_replaced in seconds(Duration::ZERO, UpdatePolicy::MOST_KEEP),
    ) -> UpdatePolicy {
        UpdatePolicy { rehearsal, keep_replaced }
    }
}

prop_compose! {
    pub(in crate::convert) fn restore_order()(
        number in 1_u64..,
        snapshot in "[a-z0-9]{1,63}",
        from in prop::sample::select(vec![RestoreSource::Host, RestoreSource::Offsite]),
    ) -> RestoreOrder {
        RestoreOrder { number, snapshot: SnapshotName::parse(&snapshot).expect("valid"), from }
    }
}

prop_compose! {
    pub(in crate::convert) fn offsite_storage()(
        endpoint in "https?://[a-z0-9.-]{1,30}(:[0-9]{1,4})?",
        region in "[a-z0-9-]{1,20}",
        bucket in "[a-z0-9]{3,63}",
        prefix in "([a-z0-9_-]{1,10}(/[a-z0-9]{1,10}){0,3})?",
        addressing in
            prop::sample::select(vec![BucketAddressing::Path, BucketAddressing::Host]),
        keys in ("[A-Z0-9]{1,20}", "[A-Za-z0-9+/]{1,40}"),
        bandwidth in any::<u64>(),
    ) -> OffsiteStorage {
        let (access_key, secret_key) = (Secret::new(keys.0), Secret::new(keys.1));
        let bandwidth = std::num::NonZeroU64::new(bandwidth);
        let place = (endpoint, region, bucket, prefix);
        let (endpoint, region, bucket, prefix) = place;
        OffsiteStorage {
            endpoint, region, bucket, prefix, addressing, access_key, secret_key, bandwidth,
        }
    }
}

fn snapshot(number: usize) -> SnapshotInfo {
    let (cause, _) = SnapshotCause::ALL[number % SnapshotCause::ALL.len()];
    SnapshotInfo {
        name: SnapshotName::parse(&format!("s-{number}")).expect("valid"),
        id: Digest::of(&number.to_be_bytes()),
        taken_at: Timestamp::from_millis(1_795_237_200_123),
        cause,
        image: ImageRef::parse("a:1").expect("valid"),
        generation: Generation(7),
        files: 1,
        bytes: 2,
        added_bytes: 3,
        health: if number == 1 { SnapshotHealth::Damaged } else { SnapshotHealth::Sound },
        offsite: number == 2,
    }
}

fn report(snapshots: usize) -> BackupReport {
    let at = Timestamp::from_millis(5);
    BackupReport {
        snapshots: (0..snapshots).map(snapshot).collect(),
        stored_bytes: 9,
        next_due: Some(at),
        overdue: true,
        problem: "no room".to_owned(),
        verified_at: None,
        drilled_at: Some(at),
        offsite: OffsiteReport {
            path: "fleet/vps1/a/0123456789abcdef".to_owned(),
            copied_at: Some(at),
            overdue: false,
            problem: "refused".to_owned(),
        },
    }
}

proptest! {
    #[test]
    fn policies_round_trip(
        backup in backup_policy(),
        update in update_policy(),
        restore in restore_order(),
    ) {
        prop_assert_eq!(backup_policy_from_wire(&backup_policy_to_wire(&backup)), Ok(backup));
        prop_assert_eq!(update_policy_from_wire(&update_policy_to_wire(&update)), Ok(update));
        prop_assert_eq!(restore_from_wire(&restore_to_wire(&restore)), Ok(restore));
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(status) = crate::decode::<node::BackupStatus>(&bytes) {
            let _ = backup_status_from_wire(&status);
        }
        if let Ok(escrow) = crate::decode::<node::RepositoryEscrow>(&bytes) {
            let _ = escrow_from_wire(&escrow);
        }
        if let Ok(policy) = crate::decode::<node::BackupPolicy>(&bytes) {
            let _ = backup_policy_from_wire(&policy);
        }
    }
}

#[test]
fn what_is_absent_is_the_default_and_zero_is_never() {
    let policy = backup_policy_from_wire(&node::BackupPolicy::default());
    assert_eq!(policy, Ok(BackupPolicy::default()));
    let policy = update_policy_from_wire(&node::UpdatePolicy::default());
    assert_eq!(policy, Ok(UpdatePolicy::default()));
    let never = node::BackupPolicy {
        every: Some(prost_types::Duration::default()),
        drill_every: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    let policy = backup_policy_from_wire(&never).expect("valid");
    assert_eq!((policy.every, policy.drill_every), (None, None));
}

#[track_caller]
fn check<T: std::fmt::Debug>(result: Result<T, Violations>, expected: &str) {
    let text = result.expect_err("faults").to_string().replace("; ", "\n");
    assert_eq!(text, expected);
}

#[test]
fn every_wrong_field_of_a_policy_is_named_at_once() {
    let wrong = node::BackupPolicy {
        every: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        retention: Some(node::Retention { daily: 1001, ..Default::default() }),
        drill_every: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        offsite: 9,
    };
    check(
        backup_policy_from_wire(&wrong),
        "every: must be 0 s or between 900 s and 2678400 s
retention.daily: must be at most 1000, is 1001
drill_every: must be a duration that is not negative and below 100 years
offsite: unknown value 9",
    );
    let nothing =
        node::BackupPolicy { retention: Some(node::Retention::default()), ..Default::default() };
    check(
        backup_policy_from_wire(&nothing),
        "retention: must keep some: one of the counts must be above 0",
    );
    let wrong = node::UpdatePolicy {
        rehearsal: 9,
        keep_replaced: Some(prost_types::Duration { seconds: 2_678_401, nanos: 0 }),
    };
    check(
        update_policy_from_wire(&wrong),
        "rehearsal: unknown value 9\nkeep_replaced: must be at most 2678400 s",
    );
    let wrong = node::RestoreOrder { number: 0, snapshot: "X".to_owned(), from: 9 };
    check(
        restore_from_wire(&wrong),
        "number: must be positive
from: unknown value 9
snapshot: must be lower-case letters, digits and hyphens, starting and ending with a letter or digit, got \"X\"",
    );
}

#[test]
fn statuses_round_trip_and_are_bounded() {
    let demo = InstanceName::parse("demo").expect("valid");
    let few = report(SnapshotCause::ALL.len());
    let wire = backup_status_to_wire(&demo, &few);
    assert_eq!(backup_status_from_wire(&wire), Ok((demo.clone(), few)));

    let many = report(MAX_LISTED + 1);
    let (_, cut) = backup_status_from_wire(&backup_status_to_wire(&demo, &many)).expect("cut");
    assert_eq!(cut.snapshots, many.snapshots[1..], "the newest are told");
    let mut wire = backup_status_to_wire(&demo, &many);
    let listed = &mut wire.report.as_mut().expect("given").snapshots;
    listed.push(listed[0].clone());
    check(
        backup_status_from_wire(&wire),
        "report.snapshots: must have at most 512 entries, has 513",
    );
}

#[test]
fn lies_about_snapshots_are_named() {
    let one = snapshot_to_wire(&snapshot(1));
    let lie = node::SnapshotInfo {
        name: "A".to_owned(),
        id: vec![1],
        taken_at: None,
        cause: 0,
        image: String::new(),
        health: 7,
        ..Default::default()
    };
    let report =
        node::BackupReport { snapshots: vec![one.clone(), one, lie], ..Default::default() };
    let status = node::BackupStatus { instance: "demo".to_owned(), report: Some(report) };
    let faults = backup_status_from_wire(&status).expect_err("lies");
    let fields: Vec<&str> = faults.0.iter().map(|fault| fault.field.as_str()).collect();
    let expected = [
        "report.snapshots[1].name",
        "report.snapshots[2].name",
        "report.snapshots[2].id",
        "report.snapshots[2].taken_at",
        "report.snapshots[2].cause",
        "report.snapshots[2].image",
        "report.snapshots[2].health",
    ];
    assert_eq!(fields, expected);
    check(
        backup_status_from_wire(&node::BackupStatus::default()),
        "instance: must not be empty\nreport: must be given",
    );
}

#[test]
fn an_escrow_comes_back_and_its_digest_says_which() {
    let escrow = Escrow {
        instance: InstanceName::parse("demo").expect("valid"),
        secret: Secret::new("0123".to_owned()),
        recovery: Secret::new("four words".to_owned()),
    };
    assert_eq!(escrow_from_wire(&escrow_to_wire(&escrow)), Ok(escrow.clone()));
    let acknowledged = escrow_ack_from_wire(&escrow_ack(&escrow)).expect("valid");
    assert_eq!(acknowledged, (escrow.instance.clone(), escrow.digest()));
    let other = Escrow { recovery: Secret::new("five".to_owned()), ..escrow.clone() };
    assert_ne!(other.digest(), escrow.digest());
    let lie = node::RepositoryEscrow {
        instance: "demo".to_owned(),
        secret: String::new(),
        recovery: "hunter2\n".to_owned(),
    };
    let faults = escrow_from_wire(&lie).expect_err("lies").to_string();
    assert!(faults.starts_with("secret: must have") && !faults.contains("hunter2"), "{faults}");
}

#[test]
fn a_storage_is_refused_with_every_fault_and_without_its_keys() {
    let wrong = node::OffsiteStorage {
        endpoint: "ftp://x".to_owned(),
        region: String::new(),
        bucket: "Up".to_owned(),
        prefix: "../up".to_owned(),
        addressing: 7,
        access_key: String::new(),
        secret_key: "two words".to_owned(),
        bandwidth: 0,
    };
    let faults = offsite_storage_from_wire(&wrong).expect_err("wrong").to_string();
    for field in
        ["endpoint", "region", "bucket", "prefix", "addressing", "access_key", "secret_key"]
    {
        assert!(faults.contains(field), "{field}: {faults}");
    }
    assert!(!faults.contains("two words"), "{faults}");
    assert!(!format!("{wrong:?}").contains("two words"));
}
