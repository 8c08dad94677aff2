//! What a person sees while something takes its time: a line for each change, and on a terminal one bar
//! that fills up.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use crate::table::printable;
use crate::view::operation::OperationView;
use crate::view::size;
use crate::watch::{self, Change};

/// Cells of a bar.
const CELLS: u32 = 20;

/// Most characters of a line that is drawn again and again: one that the terminal breaks cannot be.
const WIDTH: usize = 79;

/// Goes to the beginning of the line and clears it (ECMA-48, EL).
const CLEAR: &str = "\r\u{1b}[K";

/// Where the lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// To a terminal: an operation is one line, drawn again.
    Terminal,
    /// To a file or a pipe: a line for each tenth of an operation.
    Plain,
}

/// Shows instances on their way.
#[derive(Debug)]
pub(crate) struct Meter {
    style: Style,
    /// Whether a bar is on the present line.
    drawn: bool,
    /// What was shown last of each instance: text and tenths.
    shown: BTreeMap<String, (String, Option<u32>)>,
}

impl Meter {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, drawn: false, shown: BTreeMap::new() }
    }

    /// Shows a change, `since` after the beginning.
    pub(crate) fn show(
        &mut self,
        change: &Change,
        since: Duration,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let operation = change.operation();
        match operation {
            Some(operation) if self.style == Style::Terminal => {
                self.drawn = true;
                write!(out, "{CLEAR}{}", bar(change, operation, since))?;
                out.flush()
            }
            _ => {
                let tenths = operation.and_then(|operation| operation.permille).map(|p| p / 100);
                let now = (change.kind.to_owned() + &watch::described(&change.instance), tenths);
                let name = change.instance.name.clone();
                let known = self.shown.insert(name, now.clone());
                if self.style == Style::Plain && known.as_ref() == Some(&now) {
                    return Ok(());
                }
                self.end(out)?;
                writeln!(out, "{}", line(change, since))
            }
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::take(&mut self.drawn) {
            write!(out, "{CLEAR}")?;
            out.flush()?;
        }
        Ok(())
    }
}

/// `+  3.2s  demo  starting: …`.
fn line(change: &Change, since: Duration) -> String {
    let mut what = match change.kind {
        "deleted" => "gone".to_owned(),
        _ => watch::described(&change.instance),
    };
    if let Some(permille) = change.operation().and_then(|operation| operation.permille) {
        what.push_str(&format!(", {}%", permille / 10));
    }
    printable(&format!("{}{what}", begin(change, since)))
}

/// `+  3.2s  demo  [#####---------------]  25%  update: copying the data`.
fn bar(change: &Change, operation: &OperationView, since: Duration) -> String {
    let (begin, what) = (begin(change, since), operation.what());
    let text = match operation.permille {
        Some(permille) => {
            let full = permille * CELLS / 1000;
            let cell = |cell| if cell < full { '#' } else { '-' };
            let cells: String = (0..CELLS).map(cell).collect();
            format!("{begin}[{cells}] {:3}%  {what}", permille / 10)
        }
        None => format!("{begin}{what}"),
    };
    fitted(&printable(&text))
}

fn begin(change: &Change, since: Duration) -> String {
    format!("+{:6.1}s  {}  ", since.as_secs_f64(), change.instance.name)
}

/// How much of a file went through.
#[derive(Debug)]
pub(crate) struct Amount {
    style: Style,
    doing: &'static str,
    done: u64,
    expected: u64,
    /// What was shown last.
    shown: String,
}

impl Amount {
    /// `doing` is such as "exporting".
    pub(crate) fn new(style: Style, doing: &'static str) -> Self {
        Self { style, doing, done: 0, expected: 0, shown: String::new() }
    }

    /// About so many bytes will come.
    pub(crate) fn expects(&mut self, bytes: u64) {
        self.expected = bytes;
    }

    /// So many bytes have come.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// More came; only a terminal shows it.
    pub(crate) fn add(&mut self, bytes: usize, out: &mut dyn Write) -> io::Result<()> {
        self.done = self.done.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let text = format!("{} {} of about {}", self.doing, size(self.done), size(self.expected));
        if self.style == Style::Plain || text == self.shown {
            return Ok(());
        }
        write!(out, "{CLEAR}{}", fitted(&text))?;
        self.shown = text;
        out.flush()
    }

    /// Takes the line away.
    pub(crate) fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if std::mem::take(&mut self.shown).is_empty() {
            return Ok(());
        }
        write!(out, "{CLEAR}")?;
        out.flush()
    }
}

fn fitted(text: &str) -> String {
    if text.chars().count() <= WIDTH {
        return text.to_owned();
    }
    text.chars().take(WIDTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use claw_proto::fleet::v1 as fleet;
    use claw_proto::node::v1 as node;

    use super::*;
    use crate::view::instance::InstanceView;

    fn change(kind: &'static str, operation: Option<(&str, Option<u32>)>) -> Change {
        let operation = operation.map(|(stage, permille)| node::OperationReport {
            kind: "update".to_owned(),
            stage: stage.to_owned(),
            permille,
            since: None,
        });
        let instance = InstanceView::from(fleet::Instance {
            name: "instances/demo".to_owned(),
            status: Some(fleet::InstanceStatus {
                phase: 5,
                current: true,
                host_state: 2,
                report: Some(node::InstanceReport { operation, ..Default::default() }),
                ..fleet::InstanceStatus::default()
            }),
            ..fleet::Instance::default()
        });
        Change { kind, instance }
    }

    #[track_caller]
    fn check(style: Style, changes: &[Change], expected: &str) {
        let (mut meter, mut out) = (Meter::new(style), Vec::new());
        for (second, change) in (1..).zip(changes) {
            meter.show(change, Duration::from_secs(second), &mut out).unwrap();
        }
        meter.end(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn lines_of_progress() {
        let instance = InstanceView::from(fleet::Instance {
            name: "instances/demo".to_owned(),
            status: Some(fleet::InstanceStatus {
                phase: 4,
                message: "waits\nfor /startupz".to_owned(),
                current: true,
                host_state: 2,
                ..fleet::InstanceStatus::default()
            }),
            ..fleet::Instance::default()
        });
        let change = Change { kind: "changed", instance };
        assert_eq!(
            line(&change, Duration::from_millis(3210)),
            "+   3.2s  demo  starting: waits?for /startupz"
        );
    }

    #[test]
    fn a_file_gets_a_line_for_each_tenth() {
        let copying = |permille| change("changed", Some(("copying the data", Some(permille))));
        check(
            Style::Plain,
            &[
                change("current", None),
                change("changed", Some(("pulling the image", None))),
                copying(10),
                copying(50),
                copying(101),
                copying(1000),
                change("changed", None),
                change("deleted", None),
            ],
            "\
+   1.0s  demo  running
+   2.0s  demo  running (update: pulling the image)
+   3.0s  demo  running (update: copying the data), 1%
+   5.0s  demo  running (update: copying the data), 10%
+   6.0s  demo  running (update: copying the data), 100%
+   7.0s  demo  running
+   8.0s  demo  gone
",
        );
    }

    #[test]
    fn a_terminal_gets_one_line_that_is_drawn_again() {
        check(
            Style::Terminal,
            &[
                change("current", None),
                change("changed", Some(("pulling the image", None))),
                change("changed", Some(("copying the data", Some(250)))),
                change("changed", None),
                change("changed", Some(("copying the data", Some(1000)))),
            ],
            "\
+   1.0s  demo  running
\r\u{1b}[K+   2.0s  demo  update: pulling the image\
\r\u{1b}[K+   3.0s  demo  [#####---------------]  25%  update: copying the data\
\r\u{1b}[K+   4.0s  demo  running
\r\u{1b}[K+   5.0s  demo  [####################] 100%  update: copying the data\r\u{1b}[K",
        );
    }

    #[test]
    fn a_bar_never_breaks_and_is_never_obeyed() {
        let stage = format!("\u{1b}[2J{}", "x".repeat(200));
        let long = change("changed", Some((&stage, Some(999))));
        let text = bar(&long, long.operation().unwrap(), Duration::from_secs(1));
        assert_eq!(text.chars().count(), WIDTH);
        assert!(text.ends_with('…') && text.contains("?[2J") && text.contains(" 99%"), "{text}");
    }
}
