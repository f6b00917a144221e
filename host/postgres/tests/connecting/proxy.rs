//! A proxy between a client and a server, on a port of its own.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Signed;

/// How a proxy handles connections.
#[derive(Clone)]
pub(crate) enum Deed {
    /// Forwards them unchanged.
    Pass,
    /// Answers that the server does not support TLS, and forwards everything after that.
    DenyTls,
    /// Answers with an error message in clear text.
    Error,
    /// Terminates TLS with a certificate of its own, and opens a TLS connection to the server.
    Intercept(TlsAcceptor),
    /// Like `Intercept`, but expects the TLS handshake without an `SSLRequest`.
    Direct(TlsAcceptor),
}

/// A proxy that runs until the runtime ends.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// The first eight bytes of each connection. Not recorded for [`Deed::Direct`].
    seen: Arc<Mutex<Vec<[u8; 8]>>>,
}

pub(crate) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

impl Proxy {
    pub(crate) async fn start(target: u16, deed: Deed) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<[u8; 8]>>> = Arc::default();
        let shared = seen.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (deed, seen) = (deed.clone(), shared.clone());
                // If a connection is closed early, the result is an error, which does not matter
                // here.
                tokio::spawn(async move { serve(client, target, deed, &seen).await });
            }
        });
        Self { port, seen }
    }

    pub(crate) fn seen(&self) -> Vec<[u8; 8]> {
        self.seen.lock().clone()
    }
}

/// Returns an acceptor that terminates TLS with this certificate.
pub(crate) fn acceptor(signed: &Signed, protocols: &[&[u8]]) -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(signed.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config).into()
}

async fn serve(mut client: TcpStream, target: u16, deed: Deed, seen: &Mutex<Vec<[u8; 8]>>) -> io::Result<()> {
    if let Deed::Direct(acceptor) = deed {
        let client = acceptor.accept(client).await?;
        return pass(client, encrypted(target).await?).await;
    }
    let mut first = [0; 8];
    client.read_exact(&mut first).await?;
    seen.lock().push(first);
    match deed {
        Deed::DenyTls if first == SSL_REQUEST => {
            client.write_all(b"N").await?;
            pass(client, TcpStream::connect(("127.0.0.1", target)).await?).await
        }
        Deed::Error if first == SSL_REQUEST => client.write_all(b"E\0\0\0\x0bSFATAL\0\0").await,
        Deed::Intercept(acceptor) => {
            client.write_all(b"S").await?;
            let client = acceptor.accept(client).await?;
            pass(client, encrypted(target).await?).await
        }
        Deed::Pass | Deed::DenyTls | Deed::Error | Deed::Direct(_) => {
            let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
            server.write_all(&first).await?;
            pass(client, server).await
        }
    }
}

/// Opens an encrypted connection to the server.
async fn encrypted(target: u16) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
    server.write_all(&SSL_REQUEST).await?;
    assert_eq!(server.read_u8().await?, b'S');
    trusting().connect("localhost".try_into().unwrap(), server).await
}

async fn pass(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Returns a TLS client that accepts every certificate.
fn trusting() -> tokio_rustls::TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone());
    let config = config.with_safe_default_protocol_versions().unwrap().dangerous();
    let config = config.with_custom_certificate_verifier(Arc::new(Trusting(provider))).with_no_client_auth();
    Arc::new(config).into()
}

#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
