//! What was measured, by name, and samples on their way to a figure.

use std::io::Write as _;

use anyhow::Result;
use serde_json::{Map, Value};

/// Figures of one run.
#[derive(Debug, Default)]
pub(crate) struct Figures(Map<String, Value>);

impl Figures {
    /// Notes a figure, and shows it on stderr: the next may take minutes.
    pub(crate) fn note(&mut self, name: &str, value: f64) {
        progress(&format!("{name}: {value:.3}"));
        self.0.insert(name.to_owned(), Value::from(value));
    }

    /// Prints all as one line of JSON.
    pub(crate) fn print(self) -> Result<()> {
        writeln!(std::io::stdout(), "{}", Value::Object(self.0))?;
        Ok(())
    }
}

/// Says what is going on.
pub(crate) fn progress(text: &str) {
    // Nobody may be reading.
    let _written = writeln!(std::io::stderr(), "  {text}");
}

/// A count as a number to calculate with.
pub(crate) fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

/// The value below which `share` of the samples lie; 0.5 is the median.
pub(crate) fn quantile(samples: &[f64], share: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wanted = share * number(sorted.len().saturating_sub(1));
    let found = sorted.iter().enumerate().find(|(index, _)| number(*index) + 0.5 > wanted);
    found.map_or(f64::NAN, |(_, sample)| *sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        let samples: Vec<f64> = (1..=101).map(f64::from).rev().collect();
        let found = [0.0, 0.5, 0.99, 1.0].map(|share| quantile(&samples, share));
        assert_eq!(found.map(f64::to_bits), [1.0, 51.0, 100.0, 101.0].map(f64::to_bits));
        assert!(quantile(&[], 0.5).is_nan());
    }
}
