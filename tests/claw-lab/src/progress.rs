//! How long parts are shown: spinners on a terminal, plain lines elsewhere, or nothing.

use std::fmt::Debug;
use std::io::{IsTerminal, Write, stderr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::deadline::Deadline;

/// Where the lab reports what it is doing. Calls are few and may come from any thread.
pub trait Progress: Debug + Send + Sync {
    /// A part began, perhaps within another one.
    fn begin(&self, what: &str);
    /// Something noteworthy within the part, such as a line of output of the tool that does it.
    fn detail(&self, line: &str);
    /// How far the part is, in bytes.
    fn advance(&self, done: u64, total: u64);
    /// The part that began last is over.
    fn end(&self);
}

/// Shows nothing.
#[must_use]
pub fn silent() -> Arc<dyn Progress> {
    Arc::new(Silent)
}

/// Spinners and bars on stderr; a plain line at the end of each part where that is no terminal.
#[must_use]
pub fn terminal() -> Arc<dyn Progress> {
    Arc::new(Terminal { parts: Mutex::default() })
}

#[derive(Debug)]
struct Silent;

#[derive(Debug)]
struct Terminal {
    parts: Mutex<Vec<Part>>,
}

#[derive(Debug)]
struct Part {
    what: String,
    bar: Option<ProgressBar>,
    since: Deadline,
}

impl Progress for Silent {
    fn begin(&self, _: &str) {}
    fn detail(&self, _: &str) {}
    fn advance(&self, _: u64, _: u64) {}
    fn end(&self) {}
}

impl Terminal {
    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Terminal {
    fn begin(&self, what: &str) {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let since = Deadline::after(Duration::MAX);
        self.parts().push(Part { what: what.to_owned(), bar, since });
    }

    fn detail(&self, line: &str) {
        if let Some(Part { what, bar: Some(bar), since: _ }) = self.parts().last() {
            let short: String = line.chars().take(60).collect();
            bar.set_message(format!("{what}: {short}"));
        }
    }

    fn advance(&self, done: u64, total: u64) {
        if let Some(Part { what: _, bar: Some(bar), since: _ }) = self.parts().last() {
            if bar.length() != Some(total) {
                bar.set_length(total);
                let template = "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
            }
            bar.set_position(done);
        }
    }

    fn end(&self) {
        let Some(Part { what, bar, since }) = self.parts().pop() else { return };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        // Progress is a courtesy: a closed stderr is no fault.
        let _ = writeln!(stderr(), "{what} ({:.1} s)", since.elapsed().as_secs_f32());
    }
}
