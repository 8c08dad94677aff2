//! A coordinator that holds many instances: how long it takes to start, and what a page of a list costs at the
//! beginning, in the middle and at the end.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use claw_proto::fleet::v1::{self as fleet};
use tokio::time::Instant;

use crate::api::{Api, each};
use crate::figures::{Figures, number, progress, quantile};
use crate::inside::Inside;
use crate::process::Usage;
use crate::site::Site;

/// Instances of one host.
const PER_HOST: usize = 10;
/// Hosts that are made at a time: so many that commits are shared.
const AT_ONCE: usize = 512;
/// Starts that are measured.
const STARTS: usize = 5;
/// Rows of a page that are asked for; one holds at most 1 MiB.
const PAGE: i32 = 200;

/// Measures, and prints the figures.
pub(crate) async fn run(program: &Path, dir: &Path, count: usize) -> Result<()> {
    let dir = tempfile::tempdir_in(dir)?;
    let mut site = Site::make(program, dir.path()).await?;
    let mut figures = Figures::default();
    fill(&site, count, &mut figures).await?;
    let mut starts = Vec::new();
    for start in 0..STARTS {
        starts.push(site.start().await?.as_secs_f64());
        if start + 1 < STARTS {
            site.stop().await?;
        }
    }
    figures.note("start_s", quantile(&starts, 0.5));
    figures.note("start_slowest_s", quantile(&starts, 1.0));
    let usage = Usage::of(site.pid()?)?;
    figures.note("start_rss_mib", usage.rss_kib / 1024.0);
    figures.note("start_cpu_s", usage.cpu);
    let size = std::fs::metadata(site.data_dir().join(claw_coordinator::store::DATABASE))?.len();
    figures.note("database_mib", number(usize::try_from(size)?) / 1024.0 / 1024.0);
    let api = Api::connect(site.address(), &site.operator()).await?;
    let pages = list(&api, "").await?;
    let rows: usize = pages.iter().map(|(rows, _)| rows).sum();
    ensure!(rows == count, "{rows} of {count} instances are listed");
    let times: Vec<f64> = pages.iter().map(|(_, ms)| *ms).collect();
    let tenth = (times.len() / 10).max(1);
    figures.note("page_rows", number(rows) / number(pages.len()));
    figures.note("page_first_ms", quantile(times.get(..tenth).unwrap_or(&times), 0.5));
    figures.note("page_ms", quantile(&times, 0.5));
    let last = times.get(times.len() - tenth..).unwrap_or(&times);
    figures.note("page_last_ms", quantile(last, 0.5));
    let host = list(&api, &format!("hosts/h{}", count / PER_HOST - 1)).await?;
    figures.note("page_of_host_ms", host.first().map_or(f64::NAN, |(_, ms)| *ms));
    site.stop().await?;
    figures.print()
}

/// Hosts and instances through the coordinator's own functions.
async fn fill(site: &Site, count: usize, figures: &mut Figures) -> Result<()> {
    progress(&format!("making {count} instances"));
    let inside = Inside::open(&site.data_dir()).await?;
    let (hands, begun) = (inside.hands(), Instant::now());
    let made = each(count / PER_HOST, AT_ONCE, move |host| {
        let hands = hands.clone();
        async move {
            hands.create_host(host).await?;
            for instance in 0..PER_HOST {
                hands.create_instance(host * PER_HOST + instance, host).await?;
            }
            Ok(())
        }
    });
    made.await?;
    figures.note("created_per_s", number(count) / begun.elapsed().as_secs_f64());
    inside.close().await;
    Ok(())
}

/// Every page: its rows, and milliseconds.
async fn list(api: &Api, host: &str) -> Result<Vec<(usize, f64)>> {
    let (mut client, mut pages, mut page_token) = (api.instances(0), Vec::new(), String::new());
    loop {
        let request =
            fleet::ListInstancesRequest { host: host.to_owned(), page_size: PAGE, page_token };
        let begun = Instant::now();
        let page = client.list_instances(request).await.context("a page")?.into_inner();
        pages.push((page.instances.len(), begun.elapsed().as_secs_f64() * 1e3));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(pages);
        }
    }
}
