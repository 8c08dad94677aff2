//! Durable changes per second: the coordinator's whole path of a change (validation, comparison, row, revision,
//! audit, stamp of the host, group commit), beside SQLite with one transaction for each write.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use claw_store::rusqlite::{Connection, named_params};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::each;
use crate::figures::{Figures, number, quantile};
use crate::inside::{Hands, Inside};

/// Callers at a time.
const CLIENTS: [usize; 3] = [1, 16, 256];
/// Rounds, baseline and store in turn.
const ROUNDS: u32 = 3;
/// Bytes of what the baseline writes.
const BYTES: usize = 2048;

/// Measures, and prints the figures.
pub(crate) async fn run(dir: &Path, seconds: u64) -> Result<()> {
    let dir = tempfile::tempdir_in(dir)?;
    let inside = Inside::make(&dir.path().join("data")).await?;
    let hands = inside.hands();
    let most = CLIENTS.into_iter().max().unwrap_or(1);
    make(&hands, most).await?;
    let plain = Plain::create(&dir.path().join("plain.db"), most)?;
    let time = Duration::from_secs(seconds) / ROUNDS;
    let (mut baseline, mut stored) = (Vec::new(), [(); CLIENTS.len()].map(|()| Vec::new()));
    for _round in 0..ROUNDS {
        baseline.push(plain.rate(time)?);
        for (clients, rates) in CLIENTS.into_iter().zip(&mut stored) {
            rates.push(rate(&hands, clients, time).await?);
        }
    }
    let mut figures = Figures::default();
    figures.note("plain_per_s", quantile(&baseline, 0.5));
    for (clients, rates) in CLIENTS.into_iter().zip(&stored) {
        figures.note(&format!("clients_{clients}_per_s"), quantile(rates, 0.5));
    }
    drop(hands);
    inside.close().await;
    figures.print()
}

async fn make(hands: &Hands, count: usize) -> Result<()> {
    let hands = hands.clone();
    let made = each(count, count, move |number| {
        let hands = hands.clone();
        async move {
            hands.create_host(number).await?;
            hands.create_instance(number, number).await
        }
    });
    made.await.map(drop)
}

/// Changes per second of so many callers, each with an instance of its own.
async fn rate(hands: &Hands, clients: usize, time: Duration) -> Result<f64> {
    // Each change is another one than the one before.
    static TURN: AtomicUsize = AtomicUsize::new(1);
    let done = Arc::new(AtomicUsize::new(0));
    let begun = Instant::now();
    let mut callers = JoinSet::new();
    for client in 0..clients {
        let (hands, done) = (hands.clone(), Arc::clone(&done));
        callers.spawn(async move {
            while begun.elapsed() < time {
                hands.change(client, TURN.fetch_add(1, Ordering::Relaxed)).await?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(number(done.load(Ordering::Relaxed)) / begun.elapsed().as_secs_f64())
}

/// The baseline: WAL, `synchronous=FULL`, compare-and-set of a row and an audit row, then COMMIT.
struct Plain {
    connection: Connection,
    rows: usize,
}

impl Plain {
    fn create(path: &Path, rows: usize) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(
            "CREATE TABLE item (id INTEGER PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL) STRICT;
             CREATE TABLE audit (id INTEGER PRIMARY KEY, item INTEGER NOT NULL, text TEXT NOT NULL) STRICT;",
        )?;
        let plain = Self { connection, rows };
        for row in 0..rows {
            let sql = "INSERT INTO item VALUES (?1, 0, x'00')";
            plain.connection.execute(sql, [i64::try_from(row)?])?;
        }
        Ok(plain)
    }

    fn rate(&self, time: Duration) -> Result<f64> {
        let (begun, mut done) = (Instant::now(), 0_usize);
        let mut value = vec![7_u8; BYTES];
        while begun.elapsed() < time {
            if let Some(first) = value.first_mut() {
                *first = first.wrapping_add(1);
            }
            self.write(i64::try_from(done % self.rows)?, &value)?;
            done += 1;
        }
        Ok(number(done) / begun.elapsed().as_secs_f64())
    }

    fn write(&self, row: i64, value: &[u8]) -> Result<()> {
        let transaction = self.connection.unchecked_transaction()?;
        let revision: i64 = transaction
            .prepare_cached("SELECT revision FROM item WHERE id = ?1")?
            .query_row([row], |found| found.get(0))?;
        transaction
            .prepare_cached(
                "UPDATE item SET revision = revision + 1, value = :value
                 WHERE id = :row AND revision = :revision",
            )?
            .execute(named_params! { ":row": row, ":revision": revision, ":value": value })?;
        transaction
            .prepare_cached("INSERT INTO audit (item, text) VALUES (?1, 'changed value')")?
            .execute([row])?;
        transaction.commit().context("cannot commit")
    }
}
