//! The floor's server: what TLS 1.3 and tokio cost by themselves.
//!
//! It has the coordinator's TLS configuration (library, provider, client certificates) and its number of
//! threads, and gives back every byte. It knows nothing else.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use claw_coordinator::clock::Clock;
use claw_coordinator::server::AUTHORITY;
use claw_coordinator::server_certificate::ServerCertificates;
use claw_identity::CertificateAuthority;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::wire::NAME;

/// The echo's buffer: on the stack of the connection's task, and so part of what a connection costs.
const BUFFER: usize = 512;

/// Serves until it is killed.
pub(crate) async fn serve(data_dir: &Path, port: u16) -> Result<()> {
    let authority = CertificateAuthority::load(&data_dir.join(AUTHORITY))?;
    let certificates = ServerCertificates {
        data_dir,
        authority: &authority,
        names: &[NAME.to_owned()],
        clock: &Clock::system(),
    };
    let acceptor = TlsAcceptor::from(Arc::new(certificates.config()?));
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    loop {
        let (stream, _source) = socket.accept().await?;
        let acceptor = acceptor.clone();
        // A client that goes away is no failure of the server.
        tokio::spawn(async move { drop(echo(&acceptor, stream).await) });
    }
}

async fn echo(acceptor: &TlsAcceptor, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let mut buffer = [0; BUFFER];
    loop {
        let read = stream.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return Ok(());
        };
        stream.write_all(bytes).await?;
        stream.flush().await?;
    }
}
