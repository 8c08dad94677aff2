//! Log lines on standard error, one JSON object each, as `logging.consoleStyle: json` gives them.
//!
//! A line that cannot be written is lost: there is nowhere to say so.

use std::io::Write;

use serde_json::json;

pub(crate) fn info(message: &str) {
    line("info", message);
}

pub(crate) fn warn(message: &str) {
    line("warn", message);
}

pub(crate) fn error(message: &str) {
    line("error", message);
}

fn line(level: &str, message: &str) {
    let line = json!({ "level": level, "subsystem": "gateway", "message": message });
    let _ = writeln!(std::io::stderr(), "{line}");
}
