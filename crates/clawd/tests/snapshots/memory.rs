//! What the process takes, with as many files as a large instance has, under its limit.

use std::collections::BTreeSet;
use std::fs;

use clawd::adapters::snapshots::{Launcher, MEMORY_BYTES};
use clawd::ports::{
    Offsite as _, Pipe, Snapshots as _, SnapshotsError, Surplus, Transfers as _, VerifyDepth,
};

use crate::ground::{Ground, Heard, Holding, generation, noise, run, silent, snapshot};
use crate::s3::Moto;

const FILES: u64 = 20_000;

#[test]
fn twenty_thousand_files_fit() {
    run(async {
        let ground = Ground::new();
        for directory in 0..200 {
            let path = ground.live().join(format!("agents/main/sessions/{directory}"));
            fs::create_dir_all(&path).unwrap();
            for file in 0..FILES / 200 {
                let content = noise(directory * 1000 + file, 400);
                fs::write(path.join(format!("{file}.jsonl")), content).unwrap();
            }
        }
        for number in 0..2 {
            ground.write(&format!("large-{number}"), noise(number, 8_000_000));
        }
        let mut peaks = Vec::new();
        let mut note = |doing| peaks.push((doing, ground.worker.last_cost()));
        let heard = Heard::default();
        let first = ground
            .worker
            .take(&ground.order("one"), None::<&Holding<'_>>, &|said| heard.hear(said))
            .await
            .unwrap();
        note("first");
        assert!(first.files > FILES && first.bytes >= 24_000_000, "{first:?}");
        let said = heard.all();
        assert!(said.windows(2).all(|two| two[0].done_bytes <= two[1].done_bytes), "{said:?}");
        assert!(said.last().is_none_or(|last| last.total_bytes >= 24_000_000), "{said:?}");
        let writing = Holding::doing(|| ground.write("agents/main/sessions/7/7.jsonl", "changed"));
        ground.take_up("two", &writing).await.unwrap();
        note("up");
        ground.restore("two", 2).await.unwrap();
        note("restore");
        let restored = ground.generation(2).join("agents/main/sessions/7/7.jsonl");
        assert_eq!(fs::read(restored).unwrap(), b"changed");
        let depth = VerifyDepth::Data { part: 0, parts: 1 };
        let found = ground.worker.verify(&ground.instance, depth, &silent).await.unwrap();
        note("verify");
        assert_eq!(found.damage, Vec::<String>::new());
        let unwanted = BTreeSet::from([first.id]);
        ground.worker.forget(&ground.instance, &unwanted, &silent).await.unwrap();
        note("forget");
        for (doing, cost) in peaks {
            let (peak, held) = (cost.peak_bytes >> 20, cost.held);
            println!("{doing}: {peak} MiB, held for {held:?}, {} copied", cost.copied_files);
            assert!(cost.peak_bytes > 0 && cost.peak_bytes < MEMORY_BYTES, "{doing}: {peak} MiB");
        }
    });
}

#[test]
fn twenty_thousand_files_leave_the_host_and_come_to_another() {
    let moto = Moto::start();
    run(async {
        let [home, away, third] = [(); 3].map(|()| Ground::new());
        for directory in 0..200 {
            let path = home.live().join(format!("agents/main/sessions/{directory}"));
            fs::create_dir_all(&path).unwrap();
            for file in 0..FILES / 200 {
                let content = noise(directory * 1000 + file, 400);
                fs::write(path.join(format!("{file}.jsonl")), content).unwrap();
            }
        }
        for number in 0..2 {
            home.write(&format!("large-{number}"), noise(number, 8_000_000));
        }
        home.take("one").await.unwrap();
        let place = moto.place("hosts/home/demo/1");
        let mut peaks = Vec::new();
        let mut note = |doing, ground: &Ground| peaks.push((doing, ground.worker.last_cost()));
        let (name, keys) = (snapshot("one"), home.worker.keys(&home.instance).await.unwrap());
        let (home_port, away_port, keys) = (&home.worker, &away.worker, keys.unwrap());
        home_port.copy_out(&home.instance, &place, Surplus::Kept, &silent).await.unwrap();
        note("copy out", &home);
        away_port.copy_in(&away.instance, &place, &keys, &silent).await.unwrap();
        note("copy in", &away);
        let into = generation(2);
        away_port.restore_from(&away.instance, &place, &name, into, &silent).await.unwrap();
        note("restore from", &away);
        away_port.discard(&away.instance).await.unwrap();
        let (here, there) = Pipe::pair();
        let (sent, received) = tokio::join!(
            home_port.send(&home.instance, here, &silent),
            away_port.receive(&away.instance, &keys, there, &silent),
        );
        sent.unwrap();
        received.unwrap();
        note("send", &home);
        note("receive", &away);
        let (order, (here, there)) = (third.order("imported"), Pipe::pair());
        let (exported, imported) = tokio::join!(
            away_port.export(&away.instance, &name, here, &silent),
            third.worker.import(&order, there, &silent),
        );
        exported.unwrap();
        assert!(imported.unwrap().files > FILES);
        note("export", &away);
        note("import", &third);
        for (doing, cost) in peaks {
            let peak = cost.peak_bytes >> 20;
            println!("{doing}: {peak} MiB");
            assert!(cost.peak_bytes > 0 && cost.peak_bytes < MEMORY_BYTES, "{doing}: {peak} MiB");
        }
    });
}

#[test]
fn a_job_that_needs_too_much_fails_and_says_so() {
    run(async {
        let ground = Ground::with(|settings| {
            let Launcher::Direct(direct) = &mut settings.launcher else { unreachable!() };
            direct.memory_bytes = 16 << 20;
        });
        for number in 0..8 {
            ground.write(&format!("large-{number}"), noise(number, 4_000_000));
        }
        let refused = ground.take("one").await.unwrap_err();
        assert!(matches!(refused, SnapshotsError::Worker { .. }), "{refused:?}");
        assert!(refused.to_string().contains("more memory than it may have"), "{refused}");
        let usual = Ground::at(&ground.data, |_| ());
        usual.take("one").await.unwrap();
        usual.assert_sound().await;
    });
}
