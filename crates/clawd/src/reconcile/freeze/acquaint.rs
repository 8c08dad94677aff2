//! Makes a gateway know this host, so that it can be asked to suspend.
//!
//! The gateway notes the request of a host that it does not know; its own command line, run within its
//! container, approves exactly that one. It knows the host from then on, until its data is replaced by older
//! data, or the instance moves. None of it is kept here.

use std::time::Duration;

use claw_core::name::InstanceName;
use claw_core::observed::ContainerState;
use claw_core::plan::Target;
use claw_core::spec::GATEWAY_PORT;
use claw_core::unit::MIB;

use crate::agent::Agent;
use crate::machine::Machine;
use crate::ports::{
    Acquaintance, Control as _, ControlError, GatewayAccess, Host as _, Inside as _, Runtime as _,
    RuntimeError,
};
use crate::reconcile::deadline::{Elapsed, LOOK, within};

/// Within a second of an introduction the request is on the gateway's list; its command line takes 1.9 s on a
/// quiet machine (measured).
const APPROVAL: Duration = Duration::from_secs(60);

/// What an approval takes of the container's own memory, 176 MiB (measured, OpenClaw 2026.9.6), and a margin: it
/// must not be what kills the gateway.
const MEMORY: u64 = 256 * MIB;

/// A call of a gateway, beyond the port's own deadline.
const CALL: Duration = Duration::from_secs(30);

/// Why a gateway cannot be suspended.
#[derive(Debug, thiserror::Error)]
pub(super) enum AcquaintError {
    /// Nothing runs that has a token.
    #[error("there is no gateway to be asked")]
    NoGateway,
    /// It could not be asked.
    #[error("asking the gateway")]
    Control(#[from] ControlError),
    /// Its container.
    #[error("asking its container")]
    Runtime(#[from] RuntimeError),
    /// Somebody does not answer.
    #[error(transparent)]
    Silent(#[from] Elapsed),
    /// The container has too little memory for the program that approves.
    #[error("its container has {} MiB of memory left, approving this host needs {}", free / MIB, MEMORY / MIB)]
    NoMemory {
        /// Bytes.
        free: u64,
    },
    /// The program that approves failed.
    #[error("approving this host ended with {status}: {output}")]
    NotApproved {
        /// Its exit status.
        status: i64,
        /// What it said.
        output: String,
    },
    /// The gateway does not know this host, although somebody has approved it.
    #[error("the gateway does not know this host after all")]
    Unknown,
}

/// A gateway that knows this host.
pub(super) async fn acquaint<M: Machine>(
    agent: &Agent<M>,
    instance: &InstanceName,
    container: &str,
) -> Result<GatewayAccess, AcquaintError> {
    let gateway = access(agent, instance).ok_or(AcquaintError::NoGateway)?;
    let Acquaintance::Asked(request) = introduce(agent, &gateway).await? else {
        return Ok(gateway);
    };
    let free = free_memory(agent, instance).await?;
    if free < MEMORY {
        return Err(AcquaintError::NoMemory { free });
    }
    let argv = ["openclaw", "devices", "approve", &request, "--json"];
    let approve = agent.machine.runtime().run_inside(container, &argv, APPROVAL);
    let ran = within(agent.machine.clock(), APPROVAL + LOOK + LOOK, approve).await??;
    if ran.status != 0 {
        let (status, output) = (ran.status, ran.output);
        return Err(AcquaintError::NotApproved { status, output });
    }
    match introduce(agent, &gateway).await? {
        Acquaintance::Known => {
            tracing::info!(instance = instance.as_str(), "its gateway knows this host now");
            Ok(gateway)
        }
        Acquaintance::Asked(_) => Err(AcquaintError::Unknown),
    }
}

fn access<M: Machine>(agent: &Agent<M>, instance: &InstanceName) -> Option<GatewayAccess> {
    let desired = agent.roster.member(instance)?.effective;
    let Target::Present { spec, .. } = &desired.target else { return None };
    let address = (desired.network.container(), GATEWAY_PORT).into();
    Some(GatewayAccess { address, token: spec.gateway_token()?.clone() })
}

async fn introduce<M: Machine>(
    agent: &Agent<M>,
    gateway: &GatewayAccess,
) -> Result<Acquaintance, AcquaintError> {
    let call = agent.machine.gateway().introduce(gateway);
    Ok(within(agent.machine.clock(), CALL, call).await??)
}

/// Bytes that its container may still take.
async fn free_memory<M: Machine>(
    agent: &Agent<M>,
    instance: &InstanceName,
) -> Result<u64, AcquaintError> {
    let machine = &agent.machine;
    let view = within(machine.clock(), LOOK, machine.runtime().view(instance, None)).await??;
    let pid = view.container.and_then(|container| match container.state {
        ContainerState::Running { pid, .. } => Some(pid),
        _ => None,
    });
    let usage = pid.and_then(|pid| machine.host().usage(pid)).ok_or(AcquaintError::NoGateway)?;
    Ok(usage.memory_limit_bytes.saturating_sub(usage.memory_bytes))
}
