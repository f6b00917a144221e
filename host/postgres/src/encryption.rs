//! Connector that starts TLS on a connection, if the server supports TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client;

use crate::certificate::Certificate;
use crate::tls::{PROTOCOL, Tls};

/// TLS settings for one connection.
///
/// tokio-postgres has no distinct error for a server that refuses TLS. So larder configures it to
/// start TLS directly, and this connector sends the `SSLRequest` and reads the response itself.
#[derive(Clone)]
pub(crate) struct Encryption {
    /// `None` for a connection without TLS.
    pub(crate) tls: Option<Arc<Tls>>,
    /// Whether the connection continues without TLS if the server does not support TLS.
    pub(crate) is_optional: bool,
}

impl Encryption {
    pub(crate) fn none() -> Self {
        Self { tls: None, is_optional: true }
    }
}

/// Reason why TLS was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsFailure {
    #[error("the server does not support TLS")]
    NotOffered,
    #[error(transparent)]
    Handshake(#[from] io::Error),
}

/// The `SSLRequest` message: its length and its code.
const REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Responses to an `SSLRequest`.
const ACCEPTED: u8 = b'S';
const REFUSED: u8 = b'N';

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Encryption {
    type Stream = MaybeEncrypted<S>;
    type TlsConnect = Handshake;
    type Error = TlsFailure;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, TlsFailure> {
        Ok(Handshake { encryption: self.clone(), host: host.to_string() })
    }
}

/// A TLS handshake that has not started yet.
pub(crate) struct Handshake {
    encryption: Encryption,
    host: String,
}

impl Handshake {
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(
        self,
        mut stream: S,
    ) -> Result<MaybeEncrypted<S>, TlsFailure> {
        let Some(tls) = self.encryption.tls else { return Ok(MaybeEncrypted::Clear(stream)) };
        if !tls.is_direct {
            stream.write_all(&REQUEST).await?;
            stream.flush().await?;
            // Reads exactly one byte. If an attacker injects plain text after it, the handshake
            // fails.
            match stream.read_u8().await? {
                ACCEPTED => {}
                REFUSED if self.encryption.is_optional => return Ok(MaybeEncrypted::Clear(stream)),
                REFUSED => return Err(TlsFailure::NotOffered),
                // An error message. It is not shown, because it is not authenticated.
                _ => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            }
        }
        let name = ServerName::try_from(self.host)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let stream = TlsConnector::from(tls.config.clone()).connect(name, stream).await?;
        // Without ALPN, an attacker could redirect the connection to a server that speaks another
        // protocol.
        if tls.is_direct && stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            return Err(TlsFailure::NotOffered);
        }
        Ok(MaybeEncrypted::Tls(Box::new(stream)))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Handshake {
    type Stream = MaybeEncrypted<S>;
    type Error = TlsFailure;
    type Future = Pin<Box<dyn Future<Output = Result<MaybeEncrypted<S>, TlsFailure>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(self.run(stream))
    }
}

/// A connection with or without TLS.
pub(crate) enum MaybeEncrypted<S> {
    Clear(S),
    Tls(Box<client::TlsStream<S>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for MaybeEncrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        let Self::Tls(stream) = self else { return ChannelBinding::none() };
        let shown = stream.get_ref().1.peer_certificates().and_then(|certificates| certificates.first());
        let binding = shown.and_then(|shown| Certificate::read(shown)?.channel_binding());
        binding.map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for MaybeEncrypted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for MaybeEncrypted<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
