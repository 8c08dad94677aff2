//! Accepting connections: bounded in number, in memory and in time.

use std::io;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::ingress::Ingress;
use crate::log;
use crate::request::Request;
use crate::route::{Site, attribution_required, peer_ip};
use crate::websocket;

/// The stack of every thread. Only touched pages count as memory.
pub(crate) const STACK_BYTES: usize = 128 * 1024;

/// Connections at the same time; more are closed at once.
const MAX_CONNECTIONS: usize = 64;

/// How long a peer may take for a request, or leave a WebSocket silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a hanging gateway holds a connection.
const HANGS_FOR: Duration = Duration::from_secs(3600);

/// Serves `site` on `listener` in threads of their own, for ever.
pub(crate) fn serve(listener: TcpListener, site: Site) -> io::Result<()> {
    let site = Arc::new(site);
    let open = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        loop {
            match listener.accept() {
                Ok((stream, peer)) => start(stream, peer, &site, &open),
                Err(error) => {
                    log::warn(&format!("accepting: {error}"));
                    // Out of descriptors, most likely: give connections time to end.
                    thread::sleep(Duration::from_millis(50));
                }
            }
        }
    };
    thread("accept", accept)
}

fn start(stream: TcpStream, peer: SocketAddr, site: &Arc<Site>, open: &Arc<AtomicUsize>) {
    if open.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        open.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let slot = Slot(Arc::clone(open));
    let site = Arc::clone(site);
    let work = move || {
        let _slot = slot;
        // A peer that goes away or misbehaves ends its own connection and nothing else.
        let _ = converse(stream, peer, &site);
    };
    if let Err(error) = thread("connection", work) {
        log::warn(&format!("starting a thread: {error}"));
    }
}

/// Counts one connection until dropped.
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn converse(mut stream: TcpStream, peer: SocketAddr, site: &Site) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Some(request) = Request::read(&mut stream)? else { return Ok(()) };
    if site.status.hangs.load(Ordering::Relaxed) {
        return hang(&mut stream);
    }
    let ingress = Ingress::of(&request, peer_ip(peer), &site.config);
    match websocket::key(&request) {
        Some(_) if ingress == Ingress::Unattributable => {
            attribution_required().write(&request, &mut stream)
        }
        Some(key) => websocket::serve(stream, key, ingress, site),
        None => site.answer(&request, ingress).write(&request, &mut stream),
    }
}

/// Holds the connection without a word until the peer has enough.
fn hang(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(HANGS_FOR))?;
    let mut ignored = [0; 256];
    while stream.read(&mut ignored)? > 0 {}
    Ok(())
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(work).map(drop)
}
