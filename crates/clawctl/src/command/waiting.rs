//! Waiting for what an agent does: the way there goes to the error stream, so that answers stay clean.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use claw_core::backoff::{Backoff, Bounds};

use super::{DEFAULT_PATIENCE, Session};
use crate::cli::Format;
use crate::clock;
use crate::connection::Connection;
use crate::failure::CommandError;
use crate::meter::{Meter, Style};
use crate::output::OutputError;
use crate::watch::goal::Goal;
use crate::watch::{self, Change, WatchError};

/// Between questions about something that no watch tells.
const ASK_AGAIN: Bounds =
    Bounds { floor: Duration::from_millis(100), ceiling: Duration::from_secs(1) };

/// Operations of an instance while it was watched.
#[derive(Debug, Clone, Default)]
pub(super) struct Glimpse {
    /// Kinds that were ever under way.
    pub(super) seen: BTreeSet<String>,
    /// The kind that is.
    pub(super) now: Option<String>,
}

/// The way of instances, for a person.
struct Way<'a> {
    /// None for programs.
    meter: Option<Meter>,
    err: &'a mut dyn Write,
}

impl Session<'_> {
    /// Waits for instances.
    pub(super) async fn wait(&mut self, names: &[String], goal: Goal) -> Result<(), CommandError> {
        let scope = watch::scope_of(names, None);
        let patience = Some(self.patience.unwrap_or(DEFAULT_PATIENCE));
        let mut way = Way::new(self.output.format, self.style, &mut *self.err);
        let mut show = |change: &Change, since| way.show(change, since);
        let followed =
            watch::follow(&self.connection, &scope, Some(goal), patience, &mut show).await;
        way.end()?;
        Ok(followed?)
    }

    /// Asks again and again until there is an answer, and shows the instance's way meanwhile. `wanted`
    /// completes "not … within 10m".
    pub(super) async fn ask_until<T>(
        &mut self,
        instance: &str,
        wanted: &'static str,
        mut ask: impl AsyncFnMut(&Connection, &Glimpse) -> Result<Option<T>, CommandError>,
    ) -> Result<T, CommandError> {
        let patience = self.patience.unwrap_or(DEFAULT_PATIENCE);
        let scope = watch::scope_of(&[instance.to_owned()], None);
        let glimpse = RefCell::new(Glimpse::default());
        let mut way = Way::new(self.output.format, self.style, &mut *self.err);
        let mut show = |change: &Change, since| {
            glimpse.borrow_mut().note(change);
            way.show(change, since)
        };
        let followed = watch::follow(&self.connection, &scope, None, Some(patience), &mut show);
        let asked = async {
            let mut backoff = Backoff::new(ASK_AGAIN);
            loop {
                let seen = glimpse.borrow().clone();
                if let Some(answer) = ask(&self.connection, &seen).await? {
                    return Ok(answer);
                }
                tokio::time::sleep(backoff.next_delay(clock::random())).await;
            }
        };
        let outcome = tokio::select! {
            answer = asked => answer,
            // Without a goal it ends when time is up.
            ended = followed => Err(ended.err().map_or_else(
                || glimpse.borrow().timeout(instance, wanted, patience),
                CommandError::from,
            )),
        };
        way.end()?;
        outcome
    }
}

impl Glimpse {
    fn note(&mut self, change: &Change) {
        self.now = change.operation().map(|operation| operation.kind.clone());
        self.seen.extend(self.now.clone());
    }

    fn timeout(&self, instance: &str, wanted: &'static str, after: Duration) -> CommandError {
        let pending = match &self.now {
            Some(operation) => format!("{operation} of instances/{instance} is under way"),
            None => format!("nothing is under way on instances/{instance}"),
        };
        WatchError::Timeout { wanted, after, pending }.into()
    }
}

impl<'a> Way<'a> {
    fn new(format: Format, style: Style, err: &'a mut dyn Write) -> Self {
        Self { meter: (format == Format::Table).then(|| Meter::new(style)), err }
    }

    fn show(&mut self, change: &Change, since: Duration) -> Result<(), WatchError> {
        match &mut self.meter {
            Some(meter) => Ok(meter.show(change, since, self.err).map_err(OutputError::from)?),
            None => Ok(()),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.meter.as_mut().map_or(Ok(()), |meter| meter.end(self.err))
    }
}
