//! A port of the machine's loopback that leads into the lab: a forwarder in user space, so that
//! neither routes nor firewall of the machine are touched.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{Shutdown as Direction, shutdown};

/// A listening forwarder; dropping it closes the port and every connection through it.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    listener: Arc<TcpListener>,
    open: Arc<Connections>,
    acceptor: Option<JoinHandle<()>>,
}

/// Both ends of every connection that is open, to close them at the end; `None` after it.
#[derive(Debug)]
struct Connections(Mutex<Option<Vec<Weak<TcpStream>>>>);

impl Forward {
    /// Listens on `local` and joins each connection with one that `dial` makes.
    pub(crate) fn start(
        local: SocketAddr,
        dial: impl Fn() -> Result<TcpStream> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener =
            TcpListener::bind(local).with_context(|| format!("cannot listen on {local}"))?;
        let (local, listener) = (listener.local_addr()?, Arc::new(listener));
        let open = Arc::new(Connections(Mutex::new(Some(Vec::new()))));
        let (accepting, connections, dial) =
            (Arc::clone(&listener), Arc::clone(&open), Arc::new(dial));
        let acceptor = thread("lab-forward").spawn(move || {
            while !connections.closed() {
                let Ok((near, _)) = accepting.accept() else {
                    // Out of descriptors, perhaps: that passes.
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                };
                let (connections, dial) = (Arc::clone(&connections), Arc::clone(&dial));
                // Without a thread or a far end the connection just closes, which the caller sees.
                let _ = thread("lab-forwarded").spawn(move || {
                    dial().and_then(|far| connections.join(near, far)).unwrap_or_default();
                });
            }
        })?;
        Ok(Self { local, listener, open, acceptor: Some(acceptor) })
    }

    /// Where it listens on the machine.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let streams = self.open.lock().take();
        // Wakes the acceptor, which then ends; both fail only when there is nothing to close.
        let _ = shutdown(self.listener.as_raw_fd(), Direction::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in streams.into_iter().flatten().filter_map(|stream| stream.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Connections {
    /// Copies both ways until both are at their end.
    fn join(&self, near: TcpStream, far: TcpStream) -> Result<()> {
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (near, far) = (Arc::new(near), Arc::new(far));
        {
            let mut open = self.lock();
            let open = open.as_mut().context("the forwarder is closed")?;
            open.retain(|stream| stream.strong_count() > 0);
            open.extend([Arc::downgrade(&near), Arc::downgrade(&far)]);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| copy(&near, &far));
            copy(&far, &near);
        });
        Ok(())
    }

    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Weak<TcpStream>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    // Either end may vanish at any time; the other one is then told by the shutdown.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

fn thread(name: &str) -> Builder {
    Builder::new().name(name.to_owned()).stack_size(256 << 10)
}
