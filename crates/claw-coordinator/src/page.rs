//! Pages of lists: sizes and opaque tokens.
//!
//! A token holds the key of the last row that was shown, so pages neither skip nor repeat rows when
//! others come or go. It is bound to its list by a prefix; it is not secret.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::refusal::Refusal;

/// Rows when the caller does not say.
const DEFAULT: usize = 50;
/// Most rows.
const MAX: i32 = 1000;
/// A page is full with this many bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Which rows to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    list: String,
    size: usize,
    /// Key of the last row that was shown.
    pub after: Option<String>,
}

impl Page {
    /// From the fields of a request; `list` names the list and its filter.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when size or token are wrong.
    pub fn parse(list: impl Into<String>, size: i32, token: &str) -> Result<Self, Refusal> {
        let list = list.into();
        let size = match size {
            0 => DEFAULT,
            1..=MAX => usize::try_from(size).unwrap_or(DEFAULT),
            other => {
                return Err(Refusal::field(
                    "page_size",
                    format!("must be between 0 and {MAX}, is {other}"),
                ));
            }
        };
        let after = if token.is_empty() { None } else { Some(decode(&list, token)?) };
        Ok(Self { list, size, after })
    }

    /// Everything at once, for callers inside.
    #[must_use]
    pub fn of_size(size: usize, after: Option<String>) -> Self {
        Self { list: String::new(), size, after }
    }

    /// Rows to ask for: one more than is shown tells whether there are more.
    #[must_use]
    pub fn fetch(&self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX).saturating_add(1)
    }

    /// The key as a number, for lists that are ordered by one.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] when the token holds none.
    pub fn after_number(&self, otherwise: i64) -> Result<i64, Refusal> {
        match &self.after {
            None => Ok(otherwise),
            Some(key) => key.parse().map_err(|_not_a_number| malformed()),
        }
    }

    /// Takes rows until the page is full; with the token of the next page if there is one.
    ///
    /// A page holds at least one row, and no more once `weight` in bytes has reached
    /// [`MAX_BYTES`]: common clients take messages of 4 MiB.
    ///
    /// # Errors
    /// What the rows yield.
    pub fn collect<T>(
        &self,
        rows: impl Iterator<Item = Result<T, Refusal>>,
        weight: impl Fn(&T) -> usize,
        key: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, String), Refusal> {
        let (mut taken, mut bytes) = (Vec::new(), 0_usize);
        for row in rows {
            let row = row?;
            if taken.len() >= self.size || bytes >= MAX_BYTES {
                let token = taken.last().map(|row| self.token(&key(row))).unwrap_or_default();
                return Ok((taken, token));
            }
            bytes = bytes.saturating_add(weight(&row));
            taken.push(row);
        }
        Ok((taken, String::new()))
    }

    fn token(&self, key: &str) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}\n{key}", self.list))
    }
}

fn decode(list: &str, token: &str) -> Result<String, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_not_base64| malformed())?;
    let text = String::from_utf8(bytes).map_err(|_not_text| malformed())?;
    match text.rsplit_once('\n') {
        Some((from, key)) if from == list => Ok(key.to_owned()),
        _ => Err(malformed()),
    }
}

fn malformed() -> Refusal {
    Refusal::field("page_token", "is not one that this list with this filter has given")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(page: &Page, rows: &[&str], weight: usize) -> (Vec<String>, String) {
        let rows = rows.iter().map(|row| Ok((*row).to_owned()));
        page.collect(rows, |_row| weight, Clone::clone).unwrap()
    }

    #[test]
    fn tokens_continue_their_own_list_only() {
        let page = Page::parse("hosts", 2, "").unwrap();
        let (rows, token) = collect(&page, &["a", "b", "c"], 1);
        assert_eq!(rows, ["a", "b"]);
        assert_eq!(Page::parse("hosts", 2, &token).unwrap().after.as_deref(), Some("b"));
        assert!(Page::parse("instances", 2, &token).is_err());
        assert!(Page::parse("hosts", 2, "%%%").is_err());
    }

    #[test]
    fn the_last_page_has_no_token() {
        let page = Page::parse("hosts", 2, "").unwrap();
        assert_eq!(collect(&page, &["a", "b"], 1).1, "");
    }

    #[test]
    fn heavy_rows_fill_a_page_early() {
        let page = Page::parse("hosts", 50, "").unwrap();
        let (rows, token) = collect(&page, &["a", "b", "c"], MAX_BYTES);
        assert_eq!(rows, ["a"]);
        assert_eq!(Page::parse("hosts", 50, &token).unwrap().after.as_deref(), Some("a"));
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(Page::parse("x", 0, "").unwrap().fetch(), 51);
        assert_eq!(Page::parse("x", 1000, "").unwrap().fetch(), 1001);
        assert!(Page::parse("x", -1, "").is_err());
        assert!(Page::parse("x", 1001, "").is_err());
    }
}
