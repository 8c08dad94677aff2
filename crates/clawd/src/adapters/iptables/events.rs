//! Changes of the kernel's rules by others, told as they happen.

use std::time::Duration;

use tokio::sync::mpsc;

use super::ledger::Ledger;
use super::netlink::{Change, Heard, Listener};
use crate::ports::FirewallEvent;

/// Events that wait to be taken. While there is no room, the kernel's queue fills, and then it says that
/// events were lost: [`FirewallEvent::Overrun`].
pub(super) const QUEUE: usize = 64;
/// Before the kernel is listened to again after it could not be.
const RETRY: Duration = Duration::from_secs(5);

/// Tells changes by others until nobody takes them any more. What is heard while a program of ours runs is
/// judged when it has ended.
pub(super) async fn tell(ledger: Ledger, events: mpsc::Sender<FirewallEvent>) {
    loop {
        tokio::select! {
            () = events.closed() => return,
            error = listen(&ledger, &events) => {
                tracing::warn!(%error, "changes of the firewall are not told; listening again soon");
            }
        }
        tokio::select! {
            () = events.closed() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
        // Whatever happened meanwhile was missed.
        if events.send(FirewallEvent::Overrun).await.is_err() {
            return;
        }
    }
}

async fn listen(ledger: &Ledger, events: &mpsc::Sender<FirewallEvent>) -> std::io::Error {
    let mut listener = match Listener::open() {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    loop {
        let changes = match listener.hear().await {
            Ok(Heard::Changes(changes)) => changes,
            Ok(Heard::Lost) => {
                // Nobody takes events any more: the caller sees it too.
                let _told = events.send(FirewallEvent::Overrun).await;
                continue;
            }
            Err(error) => return error,
        };
        if changes.is_empty() {
            continue;
        }
        ledger.settled().await;
        for change in changes.into_iter().filter(|change| !ledger.is_own(change)) {
            let _told = events.send(event(change)).await;
        }
    }
}

fn event(change: Change) -> FirewallEvent {
    FirewallEvent::Changed { generation: change.generation, by: change.program.zip(change.pid) }
}
