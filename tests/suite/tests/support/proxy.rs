//! Stands between a client and a Postgres server, and cuts the connection at a moment that a test chooses.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// What becomes of the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// They pass.
    Never = 0,
    /// What the client sends is cut off before the server has it.
    Request = 1,
    /// The server has it all and works; its answer is cut off.
    Answer = 2,
}

/// A proxy on a socket of its own.
pub(crate) struct Proxy {
    folder: TempDir,
    cut: Arc<AtomicU8>,
}

/// The name of the socket of a server on the usual port.
const SOCKET: &str = ".s.PGSQL.5432";

/// How long the server is left to finish what it was asked for.
const WORK: Duration = Duration::from_millis(200);

impl Proxy {
    /// Listens for clients of the server whose socket is in `server`.
    pub(crate) fn start(server: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-proxy-").tempdir()?;
        let listener = UnixListener::bind(folder.path().join(SOCKET))?;
        let cut = Arc::new(AtomicU8::new(Cut::Never as u8));
        let (target, shared) = (server.join(SOCKET), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, cut) = (target.clone(), shared.clone());
                tokio::spawn(async move {
                    // A connection that is cut ends in an error, which is what it is for.
                    let _ = serve(client, &target, &cut).await;
                });
            }
        });
        Ok(Self { folder, cut })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Cuts the next connection that is used, once.
    pub(crate) fn cut_next(&self, cut: Cut) {
        self.cut.store(cut as u8, Ordering::SeqCst);
    }
}

/// Whether this is what was ordered; an order counts once.
fn takes(cut: &AtomicU8, wanted: Cut) -> bool {
    cut.compare_exchange(wanted as u8, Cut::Never as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

async fn serve(client: UnixStream, server: &Path, cut: &AtomicU8) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = UnixStream::connect(server).await?.into_split();
    let (mut request, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            count = from_client.read(&mut request) => {
                let bytes = request.get(..count?).unwrap_or_default();
                if bytes.is_empty() || takes(cut, Cut::Request) {
                    return Ok(());
                }
                to_server.write_all(bytes).await?;
            }
            count = from_server.read(&mut answer) => {
                let bytes = answer.get(..count?).unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(());
                }
                if takes(cut, Cut::Answer) {
                    tokio::time::sleep(WORK).await;
                    return Ok(());
                }
                to_client.write_all(bytes).await?;
            }
        }
    }
}
