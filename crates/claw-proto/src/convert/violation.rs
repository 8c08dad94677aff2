//! What is wrong with a message: every field at once.

use std::fmt;

/// One wrong field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path from the request's root, such as `instance.spec.image`.
    pub field: String,
    /// What is wrong, with what, in words.
    pub description: String,
}

/// Every wrong field of a message; never empty when returned as an error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Violations(pub Vec<Violation>);

impl Violations {
    /// A single violation.
    #[must_use]
    pub fn one(field: &str, description: impl fmt::Display) -> Self {
        let mut violations = Self::default();
        violations.push(field, description);
        violations
    }

    /// Adds a violation.
    pub fn push(&mut self, field: &str, description: impl fmt::Display) {
        self.0.push(Violation { field: field.to_owned(), description: description.to_string() });
    }

    /// The value if the result has one; otherwise the violation is kept and `None` returned.
    pub fn take<T, E: fmt::Display>(&mut self, field: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.push(field, error)).ok()
    }

    /// The same violations with every path below `prefix`.
    #[must_use]
    pub fn below(mut self, prefix: &str) -> Self {
        for violation in &mut self.0 {
            violation.field = format!("{prefix}.{}", violation.field);
        }
        self
    }

    /// Adds other violations.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// `Ok` if there is none.
    ///
    /// # Errors
    /// The violations themselves.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

impl From<Violation> for Violations {
    fn from(violation: Violation) -> Self {
        Self(vec![violation])
    }
}
