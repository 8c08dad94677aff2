//! Everything between the command line and a gateway that may serve: configuration, token, state and
//! lease, each with the exit code of the real one.

use std::fs;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use openclaw::config::{GATEWAY_PORT, GatewayConfig, TOKEN_VARIABLE};
use serde_json::{Value, json};

use crate::command::GatewayOptions;
use crate::devices::Devices;
use crate::environment::Environment;
use crate::lease::Lease;
use crate::log;
use crate::state::{State, StateError};
use crate::switches::Switches;

/// The exit code for configuration that cannot be used, `EX_CONFIG` of sysexits.h, as in OpenClaw.
const EX_CONFIG: u8 = 78;

/// Why the gateway does not run.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The exit code.
    pub(crate) code: u8,
    /// For the log.
    pub(crate) message: String,
}

/// A gateway that owns its state and may serve.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) switches: Switches,
    pub(crate) address: SocketAddr,
    pub(crate) config: GatewayConfig,
    pub(crate) token: String,
    pub(crate) state: State,
    pub(crate) lease: Lease,
}

/// Gets ready to serve.
pub(crate) fn prepare(
    options: &GatewayOptions,
    environment: &Environment,
) -> Result<Gateway, Refusal> {
    let switches = switches(environment)?;
    let config = config(options, environment)?;
    let token = token(&config, environment)?;
    let state = state(environment)?;
    state.prepare(&switches).map_err(state_refusal)?;
    let lease = Lease::acquire(state.dir())
        .map_err(|error| Refusal { code: 1, message: error.to_string() })?;
    let address = address(options, &config);
    Ok(Gateway { switches, address, config, token, state, lease })
}

/// Migrates the state and is done.
pub(crate) fn doctor(environment: &Environment) -> Result<(), Refusal> {
    let switches = switches(environment)?;
    let state = state(environment)?;
    state.migrate(&switches).map_err(state_refusal)?;
    log::info(&format!("state is at version {}", switches.state_version));
    Ok(())
}

/// Approves a device's request, as `openclaw devices approve REQUEST --json` does, and says which.
pub(crate) fn approve(request: &str, environment: &Environment) -> Result<Value, Refusal> {
    let approved = Devices::of(state(environment)?.dir()).approve(request);
    let refuse = |message: String| Refusal { code: 1, message };
    match approved.map_err(|error| refuse(format!("approving: {error}")))? {
        Some(device) => Ok(json!({ "requestId": request, "device": { "deviceId": device } })),
        None => Err(refuse(format!("No pending device request matches {request}."))),
    }
}

/// The verdict on the configuration file, and the exit code.
pub(crate) fn validate(environment: &Environment) -> (Value, u8) {
    let path = environment.config_path();
    let issue = |path: &str, message: &str| json!({ "path": path, "message": message });
    let issues: Vec<_> = match fs::read_to_string(&path) {
        Err(error) => vec![issue("<root>", &error.to_string())],
        Ok(text) => GatewayConfig::parse(&text)
            .err()
            .unwrap_or_default()
            .iter()
            .map(|fault| issue(&fault.path, &fault.message))
            .collect(),
    };
    let valid = issues.is_empty();
    (json!({ "valid": valid, "path": path, "issues": issues }), u8::from(!valid))
}

fn switches(environment: &Environment) -> Result<Switches, Refusal> {
    Switches::read(environment).map_err(|error| Refusal { code: 2, message: error.to_string() })
}

fn config(options: &GatewayOptions, environment: &Environment) -> Result<GatewayConfig, Refusal> {
    let refuse = |message: String| Refusal { code: EX_CONFIG, message };
    let path = environment.config_path();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => "{}".to_owned(),
        Err(error) => return Err(refuse(format!("reading {}: {error}", path.display()))),
    };
    let config = GatewayConfig::parse(&text).map_err(|faults| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        refuse(format!("Invalid config at {}: {}", path.display(), faults.join("; ")))
    })?;
    if !config.is_local() && !options.allow_unconfigured {
        return Err(refuse(
            "Gateway start blocked: set gateway.mode=local or pass --allow-unconfigured".to_owned(),
        ));
    }
    Ok(config)
}

/// The token from the configuration or the environment. Without one the real gateway makes one up, warns
/// and starts; so does this one.
fn token(config: &GatewayConfig, environment: &Environment) -> Result<String, Refusal> {
    let written = config.token().filter(|text| !text.is_empty());
    let referred = written
        .and_then(|text| text.strip_prefix("${")?.strip_suffix('}'))
        .unwrap_or(TOKEN_VARIABLE);
    if let Some(token) = environment.variable(referred) {
        return Ok(token.to_owned());
    }
    match written.filter(|text| !text.starts_with("${")) {
        Some(token) => Ok(token.to_owned()),
        None => {
            log::warn("no gateway token is configured: using a random one for this run");
            random_hex()
                .map_err(|error| Refusal { code: 1, message: format!("making a token: {error}") })
        }
    }
}

/// 48 random hexadecimal digits.
pub(crate) fn random_hex() -> io::Result<String> {
    let mut bytes = [0; 24];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn state(environment: &Environment) -> Result<State, Refusal> {
    State::open(environment.state_dir()).map_err(state_refusal)
}

fn state_refusal(error: StateError) -> Refusal {
    let code = match error {
        // A newer schema is maintenance as well: `startup-maintenance-required.ts` in openclaw 2026.9.6.
        StateError::Open { .. }
        | StateError::MaintenanceRequired { .. }
        | StateError::Newer { .. } => EX_CONFIG,
        StateError::MigrationFailed { .. } => 1,
    };
    Refusal { code, message: error.to_string() }
}

fn address(options: &GatewayOptions, config: &GatewayConfig) -> SocketAddr {
    let bind = options.bind.as_deref().or_else(|| config.bind());
    let address = match bind {
        Some("loopback") => Ipv4Addr::LOCALHOST,
        _ => Ipv4Addr::UNSPECIFIED,
    };
    let port = options.port.or_else(|| config.port()).unwrap_or(GATEWAY_PORT);
    SocketAddr::new(IpAddr::V4(address), port)
}
