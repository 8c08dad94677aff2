//! Structured logs on standard error, for journald; and how an error is written in them.
//!
//! Nothing that is logged may hold a secret: types that carry one print only its length.

use std::error::Error;

use tracing_subscriber::EnvFilter;

/// Writes JSON lines to standard error. `CLAWD_LOG` sets the level (`info` by default), in the syntax of
/// tracing-subscriber's `EnvFilter`. Does nothing when a subscriber is set already.
pub fn init() {
    let filter =
        EnvFilter::try_from_env("CLAWD_LOG").unwrap_or_else(|_unset| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_current_span(false)
        .finish();
    // Fails only when there is one already.
    let _already_set = tracing::subscriber::set_global_default(subscriber);
}

/// An error and its causes in one line, separated by `: `.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent variants repeat their source.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
