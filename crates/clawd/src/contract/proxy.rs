//! The contract of [`Proxy`].

use claw_core::plan::VirtualHost;

use super::{Breach, done, holds};
use crate::ports::Proxy;

/// The contract of [`Proxy`], on two virtual hosts that it does not serve. It ends as it began.
///
/// # Errors
/// The first rule that is broken.
pub async fn proxy(
    proxy: &impl Proxy,
    first: &VirtualHost,
    second: &VirtualHost,
) -> Result<(), Breach> {
    let current = async |host: &VirtualHost| done("looking succeeds", proxy.is_current(host).await);
    holds("an unknown virtual host is not current", !current(first).await?, first)?;
    done("removing what is gone is success", proxy.unpublish(&first.instance).await)?;

    let (one, other) = tokio::join!(proxy.publish(first), proxy.publish(second));
    done("virtual hosts are published side by side", one.and(other))?;
    let both = current(first).await? && current(second).await?;
    holds("a published virtual host is current", both, first)?;
    done("publishing again does no harm", proxy.publish(first).await)?;
    holds("it is current still", current(first).await?, first)?;

    let moved = VirtualHost { upstream: second.upstream, ..first.clone() };
    holds("another upstream is not current", !current(&moved).await?, &moved)?;
    done("a virtual host is replaced", proxy.publish(&moved).await)?;
    let replaced = current(&moved).await? && !current(first).await?;
    holds("the new one is current, the old one is not", replaced, &moved)?;

    done("a virtual host is removed", proxy.unpublish(&first.instance).await)?;
    holds("a removed one is not current", !current(&moved).await?, &moved)?;
    holds("the other one stays", current(second).await?, second)?;
    done("the other one is removed", proxy.unpublish(&second.instance).await)?;
    done("removing again is success", proxy.unpublish(&second.instance).await)?;
    holds("nothing is left", !current(second).await?, second)
}
