//! The command line.
//!
//! The real image runs `node openclaw.mjs gateway …`, so words before a known command are passed over,
//! and options that change nothing here are ignored.

use std::net::SocketAddr;

use thiserror::Error;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Serve.
    Gateway(GatewayOptions),
    /// Migrate the state and end: `doctor --fix --yes --non-interactive`.
    Doctor,
    /// Approve a device's request and end: `devices approve REQUEST --json`.
    Approve(String),
    /// Check the configuration and end: `config validate --json`.
    ValidateConfig,
    /// Connect to these addresses without end; the real one offers no such thing.
    Dial(Vec<SocketAddr>),
}

/// Options of `gateway`. They win over the configuration.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GatewayOptions {
    /// Serve without a configuration.
    pub(crate) allow_unconfigured: bool,
    /// The port; 0 lets the kernel choose, which the real one does not offer.
    pub(crate) port: Option<u16>,
    /// `loopback` or anything else.
    pub(crate) bind: Option<String>,
}

/// A command line that makes no sense.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum UsageError {
    #[error("no command; hint: gateway, doctor, config validate, devices approve or dial")]
    NoCommand,
    #[error("{option} needs a value that it can use")]
    Value { option: &'static str },
}

impl Command {
    /// Reads the words after the program's name.
    pub(crate) fn parse(words: impl Iterator<Item = String>) -> Result<Self, UsageError> {
        let mut words = words.skip_while(|word| !is_command(word));
        match words.next().as_deref() {
            Some("gateway") => gateway(words).map(Self::Gateway),
            Some("doctor") => Ok(Self::Doctor),
            Some("config") if words.next().as_deref() == Some("validate") => {
                Ok(Self::ValidateConfig)
            }
            Some("devices") if words.next().as_deref() == Some("approve") => {
                let request = words.find(|word| !word.starts_with("--"));
                request.map(Self::Approve).ok_or(UsageError::Value { option: "devices approve" })
            }
            Some("dial") => dial(words).map(Self::Dial),
            _ => Err(UsageError::NoCommand),
        }
    }
}

fn is_command(word: &str) -> bool {
    matches!(word, "gateway" | "doctor" | "config" | "devices" | "dial")
}

fn dial(words: impl Iterator<Item = String>) -> Result<Vec<SocketAddr>, UsageError> {
    let addresses: Result<Vec<SocketAddr>, _> = words.map(|word| word.parse()).collect();
    let usable = addresses.ok().filter(|addresses| !addresses.is_empty());
    usable.ok_or(UsageError::Value { option: "dial" })
}

fn gateway(mut words: impl Iterator<Item = String>) -> Result<GatewayOptions, UsageError> {
    let mut options = GatewayOptions::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--allow-unconfigured" => options.allow_unconfigured = true,
            "--port" => {
                let port = words.next().and_then(|port| port.parse().ok());
                options.port = Some(port.ok_or(UsageError::Value { option: "--port" })?);
            }
            "--bind" => {
                options.bind = Some(words.next().ok_or(UsageError::Value { option: "--bind" })?);
            }
            _ => {}
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command, UsageError> {
        Command::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_real_images_command_lines_are_understood() {
        let serve = parse("node openclaw.mjs gateway --allow-unconfigured --bind lan --port 18789");
        let options = GatewayOptions {
            allow_unconfigured: true,
            port: Some(18789),
            bind: Some("lan".to_owned()),
        };
        assert_eq!(serve, Ok(Command::Gateway(options)));
        assert_eq!(parse("gateway"), Ok(Command::Gateway(GatewayOptions::default())));
        assert_eq!(
            parse("node openclaw.mjs doctor --fix --yes --non-interactive"),
            Ok(Command::Doctor)
        );
        assert_eq!(parse("config validate --json"), Ok(Command::ValidateConfig));
        let approve = parse("openclaw devices approve f0-1 --json");
        assert_eq!(approve, Ok(Command::Approve("f0-1".to_owned())));
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(parse(""), Err(UsageError::NoCommand));
        assert_eq!(parse("node openclaw.mjs"), Err(UsageError::NoCommand));
        assert_eq!(parse("config get"), Err(UsageError::NoCommand));
        assert_eq!(parse("devices list"), Err(UsageError::NoCommand));
        // As the real one, which only shows what it would choose.
        let option = "devices approve";
        assert_eq!(parse("devices approve --latest --json"), Err(UsageError::Value { option }));
        assert_eq!(parse("dial"), Err(UsageError::Value { option: "dial" }));
        assert_eq!(parse("dial 192.0.2.1"), Err(UsageError::Value { option: "dial" }));
        assert_eq!(parse("gateway --port x"), Err(UsageError::Value { option: "--port" }));
        assert_eq!(parse("gateway --bind"), Err(UsageError::Value { option: "--bind" }));
    }
}
