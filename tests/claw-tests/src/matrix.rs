//! A list of what must come through and what must not, tried all at once, as a table.
//!
//! A check that says "closed" proves nothing by itself: the same probes are run once more without the
//! firewall ([`Check::control`]), where each must come through.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::dial::Verdict;
use crate::ground::Places;
use crate::probe::Probe;
use crate::servers::Servers;

/// How long a probe that should come through is waited for: packets get lost on a busy machine.
const PATIENT: Duration = Duration::from_secs(5);
/// How long one that should not.
const IMPATIENT: Duration = Duration::from_millis(600);
/// Probes under way at once.
const AT_ONCE: usize = 24;

/// One thing to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// From where: a key of [`Places`].
    pub from: &'static str,
    /// What it stands for.
    pub what: String,
    /// What is tried.
    pub probe: Probe,
    /// Whether it must come through.
    pub wanted: Wanted,
    /// What shows that it could, without the firewall; the probe itself unless it is another.
    pub control: Option<Probe>,
}

/// What a check wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It comes through.
    Open,
    /// It does not.
    Closed,
}

/// What came of a list.
#[derive(Debug)]
pub struct Outcome {
    /// The table.
    pub table: String,
    /// Checks that went wrong, in words.
    pub faults: Vec<String>,
}

impl Check {
    /// Must come through.
    #[must_use]
    pub fn open(from: &'static str, what: &str, probe: Probe) -> Self {
        Self { from, what: what.to_owned(), probe, wanted: Wanted::Open, control: None }
    }

    /// Must not.
    #[must_use]
    pub fn closed(from: &'static str, what: &str, probe: Probe) -> Self {
        Self { wanted: Wanted::Closed, ..Self::open(from, what, probe) }
    }

    /// With another probe that shows that it could.
    #[must_use]
    pub fn shown_by(mut self, control: Probe) -> Self {
        self.control = Some(control);
        self
    }
}

/// Tries every check with the firewall.
///
/// # Errors
/// When a probe could not even be tried.
pub fn with_firewall(places: &Places, servers: &Servers, checks: &[Check]) -> Result<Vec<Verdict>> {
    let probes: Vec<_> = checks
        .iter()
        .map(|check| match check.wanted {
            Wanted::Open => (check, &check.probe, PATIENT),
            Wanted::Closed => (check, &check.probe, IMPATIENT),
        })
        .collect();
    all(places, servers, &probes)
}

/// Tries every check that should be closed, without the firewall.
///
/// # Errors
/// When a probe could not even be tried.
pub fn without(places: &Places, servers: &Servers, checks: &[Check]) -> Result<Vec<Verdict>> {
    let probes: Vec<_> = checks
        .iter()
        .filter(|check| check.wanted == Wanted::Closed)
        .map(|check| (check, check.control.as_ref().unwrap_or(&check.probe), PATIENT))
        .collect();
    all(places, servers, &probes)
}

/// Puts both runs side by side.
#[must_use]
pub fn judge(title: &str, checks: &[Check], held: &[Verdict], control: &[Verdict]) -> Outcome {
    let mut table = format!("{title}\n");
    let mut faults = Vec::new();
    let mut control = control.iter();
    for (number, (check, verdict)) in (1..).zip(checks.iter().zip(held)) {
        let wanted = match check.wanted {
            Wanted::Open => "open",
            Wanted::Closed => "closed",
        };
        let shown = (check.wanted == Wanted::Closed).then(|| control.next().copied()).flatten();
        let line = format!(
            "{number:3}  {:9}  {:52}  {:52}  {wanted:6}  {verdict:8}  {}",
            check.from,
            check.what,
            check.probe.to_string(),
            shown.map_or_else(String::new, |shown| shown.to_string())
        );
        let _ = writeln!(table, "{}", line.trim_end());
        if verdict.is_open() != (check.wanted == Wanted::Open) {
            faults.push(format!("wanted {wanted}, was {verdict}: {}", line.trim()));
        }
        if shown.is_some_and(|shown| !shown.is_open()) {
            faults.push(format!("proves nothing, closed without a firewall too: {}", line.trim()));
        }
    }
    Outcome { table, faults }
}

fn all(
    places: &Places,
    servers: &Servers,
    probes: &[(&Check, &Probe, Duration)],
) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::with_capacity(probes.len());
    for some in probes.chunks(AT_ONCE) {
        let tried: Vec<Result<Verdict>> = std::thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .map(|(check, probe, patience)| {
                    scope.spawn(|| {
                        let place = places.get(check.from).context("no such place")?;
                        place.within(|| probe.run(servers, *patience))?
                    })
                })
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join());
            joined.map(|tried| tried.map_err(|_| anyhow!("a probe panicked"))?).collect()
        });
        for (verdict, (check, ..)) in tried.into_iter().zip(some) {
            let about = || format!("{}, {}", check.from, check.what);
            verdicts.push(verdict.with_context(about)?);
        }
    }
    Ok(verdicts)
}
