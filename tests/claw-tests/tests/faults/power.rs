//! The power is cut, and everything that was not made durable is lost: ext4 is told to stop at once and to forget
//! what it has not written (`EXT4_IOC_SHUTDOWN` of ext4's ioctl.c with `EXT4_GOING_FLAGS_NOLOGFLUSH`), which is what
//! xfstests calls a power cut too. Then the host is killed, and boots on what is there.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use claw_tests::clock::now;
use claw_tests::fleet::until;
use claw_tests::programs::PATIENCE;
use claw_tests::pulse::{Heard, Outcome};
use claw_tests::strike;
use claw_tests::unit::outside;
use claw_tests::versions::{V1, V2_SLOW};
use claw_tests::{Restic, Rig, Tenant, journal};
use serde_json::json;

use crate::ground::{RECOVERY, SOON, at_stage, rows, start, until_over, until_rolled_back};

/// `_IOR('X', 125, __u32)` with 2, no log flush. Perl is part of every Debian.
const FORGET: &str = "sysopen(my $disk, '/var/lib/clawd', 0) or die $!; my $how = pack('L', 2); \
                      ioctl($disk, 0x8004587d, $how) or die $!";

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() -> Result<()> {
    let rig = start("power", 2048, &[V1, V2_SLOW])?;
    let (fleet, host) = (rig.fleet(), rig.host());
    for (number, stage) in (1..).zip(["preparing", "switching", "probing"]) {
        rig.step(&format!("cut while {stage} an update"), || {
            let name = format!("u{number}");
            let mut tenant = Tenant::new(&rig, &name, V1);
            tenant.instance.more.insert("update".into(), json!({ "rehearsal": "never" }));
            tenant.deploy()?;
            let pulse = tenant.pulse("p")?;
            let dark = cut(&rig, || at_stage(&rig, &name, stage), || tenant.ask_for(V2_SLOW))?;
            let now = until_over(&rig, &tenant, V2_SLOW)?;
            let heard = pulse.stop()?;
            ensure!(now == V2_SLOW, "a power cut is no fault of the version");
            tenant.assert_serves(V2_SLOW)?;
            tenant.assert_has(&outside_of(&dark, &heard))?;
            fleet.clawctl_ok(&["delete", &name, "--wait"]).map(drop)
        })?;
    }
    let demo = Tenant::new(&rig, "demo", V1);
    rig.step("cut as soon as there are keys for a first snapshot", || {
        demo.deploy()?;
        demo.write("a", "1")?;
        let keys = outside(host, "/var/lib/clawd/repo/demo.keys")?;
        let made = || strike::at("keys", || Ok(keys.exists()));
        cut(&rig, made, || fleet.clawctl_ok(&["snapshot", "create", "demo", "less"]).map(drop))?;
        fleet.until_snapshot("demo", "less", "ready", RECOVERY)?;
        demo.assert_serves(V1)?;
        Restic::of(fleet, host, "demo")?.run(&["check", "--read-data"]).map(drop)
    })?;
    rig.step("cut while packs are written", || {
        demo.write("b", "2")?;
        let packs = outside(host, "/var/lib/clawd/repo/demo/data")?;
        let before = strike::files_below(&packs);
        let written = || strike::at("a pack", || Ok(strike::files_below(&packs) > before));
        cut(&rig, written, || fleet.clawctl_ok(&["snapshot", "create", "demo", "more"]).map(drop))?;
        fleet.until_snapshot("demo", "more", "ready", RECOVERY)?;
        demo.assert_serves(V1)?;
        Restic::of(fleet, host, "demo")?.run(&["check", "--read-data"]).map(drop)
    })?;
    rig.step("cut while a rollback is switched to", || {
        let before = journal::record(host, "demo")?["restored"].clone();
        let ask = || fleet.clawctl_ok(&["rollback", "demo", "--snapshot", "less"]).map(drop);
        cut(&rig, || at_stage(&rig, "demo", "probing"), ask)?;
        ensure!(until_rolled_back(&rig, "demo", &before)?, "it was not done");
        demo.assert_serves(V1)?;
        ensure!(demo.keys()? == rows(&["a"]), "it has {:?}", demo.keys()?);
        fleet.take_snapshot("demo", "last", SOON)?;
        Restic::of(fleet, host, "demo")?.run(&["check", "--read-data"]).map(drop)
    })
}

/// Rows that were acknowledged, those excepted that the gateway was told of while the disk forgot: ext4 answers
/// an fsync(2) that is under way then with success.
fn outside_of(dark: &Range<Instant>, heard: &Heard) -> BTreeSet<String> {
    let sure = heard.beats().iter().filter(|beat| {
        let answered = matches!(beat.outcome, Outcome::Acked(_));
        answered && (beat.at + beat.took < dark.start || beat.at > dark.end)
    });
    sure.map(|beat| beat.key.clone()).collect()
}

/// Asks for something, and cuts the power at a moment of it; returns from when until when it was off, when the
/// host is back.
fn cut(
    rig: &Rig,
    moment: impl FnOnce() -> Result<()> + Send,
    ask: impl FnOnce() -> Result<()>,
) -> Result<Range<Instant>> {
    let host = rig.host();
    let dark = std::thread::scope(|scope| {
        let cutter = scope.spawn(move || -> Result<Range<Instant>> {
            moment()?;
            let begun = now();
            host.exec_ok(&["perl", "-e", FORGET]).context("ext4 cannot be told to forget")?;
            host.power_cut()?;
            Ok(begun..now())
        });
        ask()?;
        cutter.join().map_err(|_| anyhow::anyhow!("the cutter panicked"))?
    })?;
    rig.note("  cut");
    host.boot_again()?;
    until(PATIENCE, "the agent to be there", || {
        Ok(host.exec(&["systemctl", "is-active", "clawd.service"])?.success().then_some(()))
    })?;
    rig.fleet().until_online(host)?;
    Ok(dark)
}
