//! The contract of [`Trials`].

use std::net::SocketAddr;
use std::time::Duration;

use claw_core::name::{ImageRef, InstanceName};
use claw_core::observed::Exit;

use super::{Breach, done, holds, same};
use crate::ports::{Gateway, GatewayAnswer, Runtime, RuntimeError, Trial, TrialState, Trials};

/// How long a start or an end may take. Nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the suite works on: an instance that the runtime knows nothing of.
#[derive(Debug)]
pub struct TrialsSubject {
    /// A gateway on the network of trials; its image is present and it starts.
    pub gateway: Trial,
    /// Its port.
    pub port: u16,
    /// A command without a network that ends with 0, on the same data.
    pub command: Trial,
    /// An image that is nowhere.
    pub absent_image: ImageRef,
}

/// The contract of [`Trials`]. It ends as it began.
///
/// # Errors
/// The first rule that is broken.
pub async fn trials(
    trials: &(impl Trials + Runtime),
    gateway: &impl Gateway,
    subject: &TrialsSubject,
) -> Result<(), Breach> {
    let suite = Suite { trials, gateway, subject };
    suite.nothing().await?;
    suite.runs().await?;
    suite.removed().await?;
    suite.ends().await?;
    suite.refused().await
}

struct Suite<'a, T, G> {
    trials: &'a T,
    gateway: &'a G,
    subject: &'a TrialsSubject,
}

impl<T: Trials + Runtime, G: Gateway> Suite<'_, T, G> {
    const fn instance(&self) -> &InstanceName {
        &self.subject.gateway.container.instance
    }

    async fn state(&self) -> Result<TrialState, Breach> {
        done("looking at a trial succeeds", self.trials.trial_state(self.instance()).await)
    }

    async fn is_listed(&self, expected: bool) -> Result<(), Breach> {
        let listed = done("listing trials succeeds", self.trials.trials().await)?;
        let rule = "instances with a trial are listed, others are not";
        same(rule, &listed.contains(self.instance()), &expected)?;
        let instances = done("listing succeeds", self.trials.inventory().await)?;
        let found = instances.contains(self.instance());
        holds("a trial is no instance's container or network", !found, instances)
    }

    async fn nothing(&self) -> Result<(), Breach> {
        self.is_listed(false).await?;
        same("an unknown instance has no trial", &self.state().await?, &TrialState::Gone)?;
        let removed = self.trials.remove_trial(self.instance()).await;
        done("removing one that is not there is success", removed)
    }

    async fn runs(&self) -> Result<(), Breach> {
        let Some(network) = self.subject.gateway.network else {
            return Err(Breach::new("the subject has a network", "none"));
        };
        let address = SocketAddr::new(network.container(), self.subject.port);
        for rule in ["a trial is started", "starting another removes the first"] {
            done(rule, self.trials.start_trial(&self.subject.gateway).await)?;
            same(rule, &self.state().await?, &TrialState::Running)?;
            self.is_listed(true).await?;
            self.starts(rule, address).await?;
        }
        Ok(())
    }

    /// Waits until the gateway answers: the host reaches it.
    async fn starts(&self, rule: &'static str, address: SocketAddr) -> Result<(), Breach> {
        let waiting = async {
            loop {
                match self.gateway.look_directly(address).await {
                    GatewayAnswer::Started { .. } => return,
                    _not_yet => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        let started = tokio::time::timeout(PATIENCE, waiting).await;
        if started.is_ok() {
            return Ok(());
        }
        let answer = self.gateway.look_directly(address).await;
        Err(Breach::new(rule, (answer, self.state().await?)))
    }

    async fn removed(&self) -> Result<(), Breach> {
        for rule in ["a trial is removed", "removing it again is success"] {
            done(rule, self.trials.remove_trial(self.instance()).await)?;
            same(rule, &self.state().await?, &TrialState::Gone)?;
            self.is_listed(false).await?;
        }
        Ok(())
    }

    async fn ends(&self) -> Result<(), Breach> {
        let rule = "a command ends, and how is told";
        done(rule, self.trials.start_trial(&self.subject.command).await)?;
        let ending = async {
            loop {
                match self.state().await? {
                    TrialState::Running => tokio::time::sleep(Duration::from_millis(50)).await,
                    other => return Ok(other),
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ending).await;
        let ended = ended.map_err(|_late| Breach::new(rule, "it did not end"))??;
        let good = matches!(&ended, TrialState::Exited(Exit { code: 0, oom: false, .. }, output)
            if output.chars().count() <= 2_000);
        holds(rule, good, ended)?;
        self.is_listed(true).await?;
        self.removed().await
    }

    async fn refused(&self) -> Result<(), Breach> {
        let mut trial = self.subject.gateway.clone();
        trial.container.image = self.subject.absent_image.clone();
        let started = self.trials.start_trial(&trial).await;
        let refused = matches!(started, Err(RuntimeError::Image { .. }));
        holds("an image that is nowhere is not tried", refused, started)?;
        self.removed().await
    }
}
