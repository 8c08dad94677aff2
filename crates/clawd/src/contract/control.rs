//! The contract of [`Control`], with [`Inside`], through which a gateway is told whom to know.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Breach, done, holds, same};
use crate::ports::{Acquaintance, Control, GatewayAccess, Inside};

/// How long a program within a container may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the suite works on: a gateway that is up and does not know this host.
#[derive(Debug)]
pub struct ControlSubject {
    /// The gateway.
    pub gateway: GatewayAccess,
    /// Its container.
    pub container: String,
    /// Where nothing listens.
    pub absent: SocketAddr,
}

/// The contracts of [`Control`] and [`Inside`]. The gateway knows this host afterwards, and is not suspended.
///
/// # Errors
/// The first rule that is broken.
pub async fn control(
    control: &impl Control,
    inside: &impl Inside,
    subject: &ControlSubject,
) -> Result<(), Breach> {
    let ControlSubject { gateway, container, absent } = subject;
    let nobody = GatewayAccess { address: *absent, ..gateway.clone() };
    let refused = control.introduce(&nobody).await;
    holds("where nothing listens nobody is introduced", refused.is_err(), &refused)?;
    introduced(control, inside, gateway, container).await?;
    suspended(control, gateway).await
}

async fn introduced(
    control: &impl Control,
    inside: &impl Inside,
    gateway: &GatewayAccess,
    container: &str,
) -> Result<(), Breach> {
    let rule = "a gateway that does not know this host says what is to be approved";
    let Acquaintance::Asked(request) = done(rule, control.introduce(gateway).await)? else {
        return Err(Breach::new(rule, "it knows this host"));
    };
    let again = done(rule, control.introduce(gateway).await)?;
    same("asked again it names the same request", &again, &Acquaintance::Asked(request.clone()))?;
    let early = control.suspend(gateway).await.is_err();
    holds("it is not suspended by somebody whom it does not know", early, early)?;
    let missing = inside.run_inside(container, &["/no/such/program"], PATIENCE).await;
    let failed = missing.as_ref().map_or(true, |ran| ran.status != 0);
    holds("a program that is not there fails", failed, &missing)?;
    let nowhere = inside.run_inside("no-such-container", &["openclaw"], PATIENCE).await;
    holds("nothing runs in a container that is not there", nowhere.is_err(), &nowhere)?;
    let argv = ["openclaw", "devices", "approve", &request, "--json"];
    let ran = done("a program runs", inside.run_inside(container, &argv, PATIENCE).await)?;
    holds("a request is approved", ran.status == 0, &ran)?;
    let known = done("an approved host is introduced", control.introduce(gateway).await)?;
    same("an approved host is known", &known, &Acquaintance::Known)
}

async fn suspended(control: &impl Control, gateway: &GatewayAccess) -> Result<(), Breach> {
    let rule = "a gateway is suspended";
    let mut suspended = done(rule, control.suspend(gateway).await)?;
    done("it is told to resume", control.let_go(&mut suspended).await)?;
    done("it resumes", control.resumed(suspended).await)?;
    let suspended = done(rule, control.suspend(gateway).await)?;
    done("it resumes without having been told before", control.resumed(suspended).await)?;
    drop(done(rule, control.suspend(gateway).await)?);
    let rule = "what an agent began that has died, the next one takes over";
    let suspended = done(rule, control.suspend(gateway).await)?;
    done("it resumes, whoever began it", control.resumed(suspended).await)
}
