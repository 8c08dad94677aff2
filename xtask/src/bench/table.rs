//! Samples, and how they are printed: median, spread, goal.

use std::fmt::Write as _;

/// Samples of one quantity in milliseconds or as ratios.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// The value below which `share` of the samples lie; 0.5 is the median.
    pub(super) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (share * last_index(&sorted)).round();
        // Between 0 and the last index by construction.
        sorted
            .iter()
            .zip(0_u32..)
            .find(|(_, i)| f64::from(*i) >= index)
            .map_or(f64::NAN, |(s, _)| *s)
    }
}

fn last_index(samples: &[f64]) -> f64 {
    u32::try_from(samples.len().saturating_sub(1)).map_or(0.0, f64::from)
}

/// A table with a title, printed as Markdown.
#[derive(Debug)]
pub(super) struct Table {
    text: String,
}

impl Table {
    pub(super) fn new(title: &str, columns: &[&str]) -> Self {
        let rule = columns.iter().map(|_| "---").collect::<Vec<_>>().join(" | ");
        let text = format!("\n## {title}\n\n| {} |\n| {rule} |\n", columns.join(" | "));
        Self { text }
    }

    /// A row; it is shown at once too, because the next may take minutes.
    pub(super) fn row(&mut self, cells: &[String]) {
        eprintln!("{}", cells.join("  "));
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
    }

    /// A row of samples: name, median, 10 % and 90 % quantile, goal.
    pub(super) fn samples(&mut self, name: &str, samples: &Samples, goal: &str) {
        let [low, median, high] = [0.1, 0.5, 0.9].map(|share| samples.quantile(share));
        let cells =
            [name, &format!("{median:.2}"), &format!("{low:.2}"), &format!("{high:.2}"), goal];
        self.row(&cells.map(ToOwned::to_owned));
    }

    pub(super) fn print(&self) {
        println!("{}", self.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let mut samples = Samples::default();
        for sample in [5.0, 1.0, 3.0, 2.0, 4.0] {
            samples.push(sample);
        }
        let found = [0.0, 0.5, 1.0].map(|share| samples.quantile(share));
        assert_eq!(found.map(f64::to_bits), [1.0, 3.0, 5.0].map(f64::to_bits));
    }
}
