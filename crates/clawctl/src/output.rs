//! Prints resources in the format that the user chose.

use std::io::{self, Write};

use claw_core::time::Timestamp;
use serde::Serialize;

use crate::cli::Format;
use crate::table::Table;
use crate::view::Resource;

/// Where answers go and how.
pub(crate) struct Output<'a> {
    pub(crate) format: Format,
    pub(crate) out: &'a mut dyn Write,
    /// What "ago" is measured from.
    pub(crate) now: Timestamp,
}

/// Why an answer was not printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("cannot write output")]
    Write(#[from] io::Error),
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
    #[error("cannot write YAML")]
    Yaml(#[from] serde_yaml_ng::Error),
}

impl Output<'_> {
    /// A list: a table, an array, a document for each, or names.
    pub(crate) fn list<R: Resource>(&mut self, resources: &[R]) -> Result<(), OutputError> {
        match self.format {
            Format::Table => {
                let mut table = Table::new(R::HEADER);
                resources.iter().for_each(|resource| table.row(resource.row(self.now)));
                write!(self.out, "{table}")?;
            }
            Format::Json => self.json(resources)?,
            Format::Yaml => {
                for (position, resource) in resources.iter().enumerate() {
                    if position > 0 {
                        writeln!(self.out, "---")?;
                    }
                    self.yaml(resource)?;
                }
            }
            Format::Name => {
                for resource in resources {
                    writeln!(self.out, "{}", resource.resource())?;
                }
            }
        }
        Ok(())
    }

    /// One resource with everything that is known of it.
    pub(crate) fn one<R: Resource>(&mut self, resource: &R) -> Result<(), OutputError> {
        match self.format {
            Format::Table => {
                write!(self.out, "{}", Table::of_pairs(resource.details(self.now)))?;
                Ok(())
            }
            _ => self.value(resource, &resource.resource()),
        }
    }

    /// A value that is no resource; `text` stands for it where people or names are asked for.
    pub(crate) fn value(&mut self, value: &impl Serialize, text: &str) -> Result<(), OutputError> {
        match self.format {
            Format::Table | Format::Name => Ok(writeln!(self.out, "{text}")?),
            Format::Json => self.json(value),
            Format::Yaml => self.yaml(value),
        }
    }

    /// One value of a stream that does not end by itself: a line of JSON, or a YAML document.
    pub(crate) fn streamed(
        &mut self,
        value: &impl Serialize,
        text: &str,
    ) -> Result<(), OutputError> {
        match self.format {
            Format::Table | Format::Name => writeln!(self.out, "{text}")?,
            Format::Json => {
                serde_json::to_writer(&mut *self.out, value)?;
                writeln!(self.out)?;
            }
            Format::Yaml => {
                writeln!(self.out, "---")?;
                self.yaml(value)?;
            }
        }
        Ok(self.out.flush()?)
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), OutputError> {
        serde_json::to_writer_pretty(&mut *self.out, value)?;
        Ok(writeln!(self.out)?)
    }

    fn yaml<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), OutputError> {
        Ok(serde_yaml_ng::to_writer(&mut *self.out, value)?)
    }
}
