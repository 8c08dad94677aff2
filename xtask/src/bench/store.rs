//! Durable changes of desired state per second, beside SQLite with one transaction for each; and a coordinator
//! that holds 100 000 instances.

use anyhow::Result;

use super::fleet::Programs;
use super::table::Table;

pub(super) fn run() -> Result<()> {
    let programs = Programs::build()?;
    let figures = programs.measure(&["store", "--seconds", "15"], &["--dir"])?;
    let mut table = Table::new("store", &["changes/s", "measured", "goal"]);
    let rows = [
        ("SQLite FULL, one transaction each, 1 client", "plain_per_s", ""),
        ("coordinator, 1 client", "clients_1_per_s", "≥ 3 500"),
        ("coordinator, 16 clients", "clients_16_per_s", "≥ 10 000"),
        ("coordinator, 256 clients", "clients_256_per_s", "≥ 15 000"),
    ];
    for (label, name, goal) in rows {
        let figure = figures.get(name).copied().unwrap_or(f64::NAN);
        table.row(&[label.to_owned(), format!("{figure:.0}"), goal.to_owned()]);
    }
    let figures = programs.measure(&["instances"], &["--coordinator", "--dir"])?;
    let mut held = Table::new("100 000 instances", &["what", "measured", "goal"]);
    let rows = [
        ("start until it serves, s", "start_s", "≤ 2"),
        ("the slowest of five starts, s", "start_slowest_s", ""),
        ("RSS after the start, MiB", "start_rss_mib", ""),
        ("database, MiB", "database_mib", ""),
        ("page of 200, among the first tenth, ms", "page_first_ms", ""),
        ("page of 200, median, ms", "page_ms", "as the first"),
        ("page of 200, among the last tenth, ms", "page_last_ms", "as the first"),
        ("one host's instances, ms", "page_of_host_ms", ""),
    ];
    for (label, name, goal) in rows {
        let figure = figures.get(name).copied().unwrap_or(f64::NAN);
        held.row(&[label.to_owned(), format!("{figure:.2}"), goal.to_owned()]);
    }
    table.print();
    held.print();
    Ok(())
}
