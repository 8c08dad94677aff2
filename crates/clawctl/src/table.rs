//! Tables for people: columns as wide as their widest cell, two spaces between them.

use std::fmt;

/// Rows below a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(ToString::to_string).collect()] }
    }

    /// Names and values below each other, without a header.
    pub(crate) fn of_pairs(pairs: Vec<(&str, String)>) -> Self {
        let filled = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        Self { rows: filled.map(|(name, value)| vec![name.to_owned(), value]).collect() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    /// The last column is not padded. Control characters, which a host might report, are shown as
    /// `?`, so that nobody's terminal obeys them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let shown = if cell.is_empty() { "-" } else { cell };
                let clean = printable(shown);
                line.push_str(&format!("{clean:<width$}  "));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `text` without anything that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "PHASE", "IMAGE"]);
        table.row(vec!["demo".into(), "crash-loop".into(), "a:1".into()]);
        table.row(vec!["a-longer-one".into(), String::new(), "b:\u{1b}[2J".into()]);
        let expected = "\
NAME          PHASE       IMAGE
demo          crash-loop  a:1
a-longer-one  -           b:?[2J
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn pairs_without_a_value_are_left_out() {
        let pairs =
            vec![("name", "demo".to_owned()), ("message", String::new()), ("a", "b".into())];
        assert_eq!(Table::of_pairs(pairs).to_string(), "name  demo\na     b\n");
    }
}
