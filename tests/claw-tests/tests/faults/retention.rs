//! A repository with snapshots of more than a year is thinned out by the agent as its policy says. What is to
//! stay is said by restic, which knows the same rules.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use claw_tests::backup::short_name;
use claw_tests::fleet::until;
use claw_tests::versions::V1;
use claw_tests::{Restic, Tenant};
use serde_json::{Value, json};

use crate::ground::{RECOVERY, SOON, start};

/// The policy of an instance that says nothing about it.
const POLICY: [&str; 8] =
    ["--keep-last", "3", "--keep-daily", "7", "--keep-weekly", "4", "--keep-monthly", "3"];
/// Hours before now at which scheduled snapshots were taken.
const SCHEDULED: [u32; 20] = [
    5, 8, 26, 31, 50, 75, 99, 122, 150, 190, 240, 300, 420, 540, 700, 1000, 1500, 2400, 4000, 9000,
];
/// Others, and whether their cause holds them still.
const OTHERS: [(&str, u32, bool); 5] = [
    ("pause", 27, true),
    ("pause", 220, false),
    ("update", 28, true),
    ("update", 121, false),
    ("requested", 9500, true),
];

#[test]
fn a_year_of_snapshots_is_thinned_out_by_the_policy() -> Result<()> {
    let rig = start("retention", 2048, &[V1])?;
    let (fleet, host) = (rig.fleet(), rig.host());
    let mut demo = Tenant::new(&rig, "demo", V1);
    demo.instance.more.insert("backup".into(), json!({ "every": "0s", "drillEvery": "0s" }));
    rig.step("an instance serves, and has a snapshot", || {
        demo.deploy()?;
        fleet.take_snapshot("demo", "asked-for", SOON).map(drop)
    })?;
    let restic = Restic::of(fleet, host, "demo")?;
    let mut held = BTreeSet::from(["asked-for".to_owned()]);
    rig.step("it is given those of more than a year, with restic", || {
        host.exec_ok(&["systemctl", "stop", "clawd.service"])?;
        // One before the instance's own would be of another instance of that name.
        let first = restic.snapshots()?;
        let generation = first.first().and_then(|first| tag_of(first, "generation:"));
        let generation = generation.context("no generation")?;
        let dir = fleet.lab().dir().join("data");
        fs::create_dir_all(&dir)?;
        let scheduled = SCHEDULED.iter().map(|hours| ("scheduled", *hours, false));
        for (cause, hours, is_held) in scheduled.chain(OTHERS) {
            let name = format!("{cause}-{hours}");
            fs::write(dir.join("file"), &name)?;
            let time = host.exec_ok(&["date", "-d", &format!("{hours} hours ago"), "+%F %T"])?;
            let tags = format!(
                "name:{name},cause:{cause},image:{},generation:{generation}",
                V1.reference()
            );
            let path = dir.to_string_lossy();
            restic.run(&[
                "backup",
                &path,
                "--host",
                "demo",
                "--time",
                time.trim(),
                "--tag",
                &tags,
            ])?;
            held.extend(is_held.then_some(name));
        }
        Ok(())
    })?;
    let expected = rig.step("restic says what the policy keeps", || {
        let dry = ["forget", "--dry-run", "--json", "--group-by", ""];
        let said: Value = serde_json::from_str(&restic.run(&[&dry[..], &POLICY].concat())?)?;
        let kept = said[0]["keep"].as_array().context("nothing is kept")?;
        let mut names: BTreeSet<String> = kept.iter().filter_map(name_of).collect();
        names.extend(held);
        rig.note(&format!("  {} of {}", names.len(), SCHEDULED.len() + OTHERS.len() + 1));
        Ok(names)
    })?;
    rig.step("the agent keeps that and what causes hold, and nothing else", || {
        host.exec_ok(&["systemctl", "start", "clawd.service"])?;
        fleet.until_online(host)?;
        let names = || -> Result<BTreeSet<String>> {
            Ok(restic.snapshots()?.iter().filter_map(name_of).collect())
        };
        until(RECOVERY, "the others to be forgotten", || {
            Ok((names()?.len() <= expected.len()).then_some(()))
        })?;
        assert_eq!(names()?, expected);
        fleet.until(RECOVERY, "the list to say so", |fleet| {
            let listed = fleet.snapshots("demo")?;
            let listed: BTreeSet<_> = listed.iter().map(|s| short_name(s).to_owned()).collect();
            if listed == expected { Ok(Some(())) } else { bail!("it lists {listed:?}") }
        })
    })?;
    rig.step("the repository is whole, and takes another one", || {
        fleet.take_snapshot("demo", "another", SOON)?;
        let checked = restic.run(&["check", "--read-data"])?;
        ensure!(checked.contains("no errors were found"), "{checked}");
        demo.assert_serves(V1)
    })
}

/// The name that a snapshot of ours has, from restic's list.
fn name_of(snapshot: &Value) -> Option<String> {
    tag_of(snapshot, "name:")
}

fn tag_of(snapshot: &Value, prefix: &str) -> Option<String> {
    let tags = snapshot["tags"].as_array()?;
    let found = tags.iter().find_map(|tag| tag.as_str()?.strip_prefix(prefix))?;
    Some(found.to_owned())
}
