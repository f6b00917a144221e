//! A proxy between a client and a Postgres server that simulates network failures.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// What happens to the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// They are passed on.
    Never = 0,
    /// The connection ends before the server gets the request.
    Request = 1,
    /// The server gets the request and executes it; the connection ends before the client gets the
    /// answer.
    Answer = 2,
}

/// The state of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Works,
    /// Requests arrive late.
    Slow,
    /// Connections end.
    Cuts,
    /// Nothing arrives, and connections stay open.
    Swallows,
    /// Requests arrive, answers do not.
    SwallowsAnswers,
}

/// How late requests arrive on a slow network.
const DELAY: Duration = Duration::from_millis(50);

/// A proxy on a socket of its own.
pub(crate) struct Proxy {
    folder: TempDir,
    cut: Arc<AtomicU8>,
    network: watch::Sender<Network>,
}

/// The name of the socket of a server on the default port.
const SOCKET: &str = ".s.PGSQL.5432";

/// How long the server has to finish the request before the connection ends.
const WORK: Duration = Duration::from_millis(200);

impl Proxy {
    /// Listens for clients of the server whose socket is in `server`.
    pub(crate) fn start(server: &Path) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("larder-proxy-").tempdir()?;
        let listener = UnixListener::bind(folder.path().join(SOCKET))?;
        let cut = Arc::new(AtomicU8::new(Cut::Never as u8));
        let network = watch::Sender::new(Network::Works);
        let (target, shared, weather) = (server.join(SOCKET), cut.clone(), network.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (target, cut, network) = (target.clone(), shared.clone(), weather.clone());
                tokio::spawn(async move {
                    // A cut connection ends in an error, which is expected.
                    let _ = serve(client, &target, &cut, network).await;
                });
            }
        });
        Ok(Self { folder, cut, network })
    }

    /// Changes the state of the network. When the network works again, connections on which bytes
    /// were lost end.
    pub(crate) fn network(&self, network: Network) {
        self.network.send_replace(network);
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Cuts the next connection that is used, once.
    pub(crate) fn cut_next(&self, cut: Cut) {
        self.cut.store(cut as u8, Ordering::SeqCst);
    }
}

/// Whether `wanted` was ordered. Takes the order, so it counts once.
fn takes(cut: &AtomicU8, wanted: Cut) -> bool {
    cut.compare_exchange(wanted as u8, Cut::Never as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
}

async fn serve(
    client: UnixStream,
    server: &Path,
    cut: &AtomicU8,
    mut network: watch::Receiver<Network>,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = UnixStream::connect(server).await?.into_split();
    let (mut request, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    network.mark_unchanged();
    loop {
        tokio::select! {
            count = from_client.read(&mut request) => {
                let bytes = request.get(..count?).unwrap_or_default();
                if bytes.is_empty() || takes(cut, Cut::Request) {
                    return Ok(());
                }
                let now = *network.borrow_and_update();
                match now {
                    Network::Works | Network::SwallowsAnswers => {}
                    Network::Slow => tokio::time::sleep(DELAY).await,
                    Network::Cuts => return Ok(()),
                    Network::Swallows => return lose(from_client, network).await,
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
                let now = *network.borrow_and_update();
                match now {
                    Network::Works | Network::Slow => {}
                    Network::Cuts => return Ok(()),
                    Network::Swallows | Network::SwallowsAnswers => return lose(from_client, network).await,
                }
                to_client.write_all(bytes).await?;
            }
            changed = network.changed() => {
                if changed.is_err() || *network.borrow_and_update() == Network::Cuts {
                    return Ok(());
                }
            }
        }
    }
}

/// Discards what the client sends until the client gives up or the state of the network changes.
async fn lose(mut from_client: OwnedReadHalf, mut network: watch::Receiver<Network>) -> io::Result<()> {
    let mut swallowed = vec![0; 1 << 16];
    loop {
        tokio::select! {
            count = from_client.read(&mut swallowed) => if count? == 0 { return Ok(()) },
            _ = network.changed() => return Ok(()),
        }
    }
}
