//! TLS configuration for rustls. Certificates are verified by the rules of libpq.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_core::{Error, Result};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

use crate::certificate::Certificate;
use crate::environment::Environment;
use crate::option_table::{Roots, TlsDraft, TlsMode, TlsVersion};

/// The ALPN protocol name of Postgres.
pub(crate) const PROTOCOL: &[u8] = b"postgresql";

/// TLS configuration of a store.
pub(crate) struct Tls {
    pub(crate) config: Arc<ClientConfig>,
    /// Whether the TLS handshake starts without an `SSLRequest` (`sslnegotiation=direct`).
    pub(crate) is_direct: bool,
}

impl Tls {
    /// Returns `sslmode` if it is given, and otherwise the default that goes with the other
    /// options.
    pub(crate) fn mode(draft: &TlsDraft) -> Result<TlsMode> {
        let trusts_system = draft.roots == Some(Roots::System);
        let mode = draft.mode.unwrap_or(if trusts_system { TlsMode::VerifyFull } else { TlsMode::Prefer });
        // The owner of any domain can get a certificate that the system trusts, so the host name
        // has to be verified too.
        if trusts_system && mode < TlsMode::VerifyFull {
            return Err(Error::invalid_argument(
                "\"sslrootcert\" of a Postgres store is system, but \"sslmode\" is weaker than verify-full; omit \"sslmode\", or \
                 name a file in \"sslrootcert\"",
            ));
        }
        if draft.is_direct && mode < TlsMode::Require {
            return Err(Error::invalid_argument(
                "\"sslnegotiation\" of a Postgres store is direct, but \"sslmode\" is weaker than require; set \"sslmode\" to \
                 require or stronger",
            ));
        }
        Ok(mode)
    }

    /// Reads the certificates and the key, and builds the configuration.
    pub(crate) fn read(draft: &TlsDraft, mode: TlsMode, environment: &Environment) -> Result<Self> {
        let provider = CryptoProvider::get_default().cloned();
        let provider = provider.unwrap_or_else(|| Arc::new(aws_lc_rs::default_provider()));
        let trusted = trusted(draft, mode, environment)?;
        let verifier = Verifier {
            algorithms: provider.signature_verification_algorithms,
            names: mode == TlsMode::VerifyFull,
            trusted,
        };
        let failed = |error| Error::caused("cannot set up TLS for a Postgres store", error);
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(draft)?)
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match client_certificate(draft, environment)? {
            None => config.with_no_client_auth(),
            Some((chain, key)) => config.with_client_auth_cert(chain, key).map_err(|error| {
                Error::caused(
                    "\"sslkey\" of a Postgres store is not the key of the certificate in \"sslcert\"",
                    error,
                )
            })?,
        };
        config.enable_sni = !draft.hides_name;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self { config: Arc::new(config), is_direct: draft.is_direct })
    }
}

fn versions(draft: &TlsDraft) -> Result<Vec<&'static SupportedProtocolVersion>> {
    let (min, max) =
        (draft.min_version.unwrap_or(TlsVersion::Tls12), draft.max_version.unwrap_or(TlsVersion::Tls13));
    if min > max {
        return Err(Error::invalid_argument(
            "\"ssl_min_protocol_version\" of a Postgres store is higher than \"ssl_max_protocol_version\"",
        ));
    }
    let all = [(TlsVersion::Tls13, &TLS13), (TlsVersion::Tls12, &TLS12)];
    Ok(all
        .into_iter()
        .filter(|(version, _)| (min..=max).contains(version))
        .map(|(_, version)| version)
        .collect())
}

/// Returns the certificate authorities to verify against, or `None` if every certificate is
/// accepted.
///
/// As in libpq, every mode verifies the chain if root certificates are available. Unlike libpq,
/// larder fails if the file in `sslrootcert` is missing.
fn trusted(draft: &TlsDraft, mode: TlsMode, environment: &Environment) -> Result<Option<Trusted>> {
    const USUAL: &str = ".postgresql/root.crt";
    let certificates = match &draft.roots {
        Some(Roots::System) => systems_roots()?,
        Some(Roots::File(path)) => certificates(path, "sslrootcert")?,
        None => match environment.at_home(USUAL).filter(|path| path.exists()) {
            Some(path) => certificates(&path, "sslrootcert")?,
            None if mode < TlsMode::VerifyCa => return Ok(None),
            None => {
                return Err(Error::invalid_argument(
                    "\"sslmode\" of a Postgres store verifies certificates, but no root certificate is given; name a file in \
                     \"sslrootcert\", or set sslrootcert=system and sslmode=verify-full",
                ));
            }
        },
    };
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        let added = roots.add(certificate.clone());
        // rustls cannot parse every certificate that an operating system trusts.
        if draft.roots != Some(Roots::System) {
            added.map_err(|error| {
                Error::caused("\"sslrootcert\" of a Postgres store contains an invalid certificate", error)
            })?;
        }
    }
    Ok(Some(Trusted { roots, certificates }))
}

fn systems_roots() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = "\"sslrootcert\" of a Postgres store is system, but the system trusts no authority";
        return Err(match found.errors.into_iter().next() {
            Some(error) => Error::caused(reason, error),
            None => {
                Error::other(format!("{reason}; install CA certificates, or name a file in \"sslrootcert\""))
            }
        });
    }
    Ok(found.certs)
}

fn certificates(path: &Path, option: &str) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read(path, option)?;
    let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| {
        Error::caused(format!("the file in {option:?} of a Postgres store is not a valid PEM file"), error)
    })?;
    match certificates.is_empty() {
        true => Err(Error::invalid_argument(format!(
            "the file in {option:?} of a Postgres store contains no PEM certificate"
        ))),
        false => Ok(certificates),
    }
}

fn read(path: &Path, option: &str) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| {
        Error::caused(format!("cannot read the file in {option:?} of a Postgres store"), error)
    })
}

type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Returns the client certificate with its chain, and the private key.
fn client_certificate(draft: &TlsDraft, environment: &Environment) -> Result<Option<ClientCertificate>> {
    let usual = |name: &str| environment.at_home(&format!(".postgresql/{name}"));
    let certificate: Option<PathBuf> =
        draft.certificate.clone().or_else(|| usual("postgresql.crt").filter(|path| path.exists()));
    let Some(certificate) = certificate.filter(|_| !draft.hides_certificate) else { return Ok(None) };
    let Some(key) = draft.key.clone().or_else(|| usual("postgresql.key")) else {
        return Err(Error::invalid_argument(
            "\"sslcert\" of a Postgres store has no private key; name its file in \"sslkey\"",
        ));
    };
    check_key_permissions(&key)?;
    let parsed = PrivateKeyDer::from_pem_slice(&read(&key, "sslkey")?).map_err(|error| {
        Error::caused(
            "the file in \"sslkey\" of a Postgres store is not a PEM private key without a passphrase",
            error,
        )
    })?;
    Ok(Some((certificates(&certificate, "sslcert")?, parsed)))
}

/// Applies libpq's rule: only the owner may access the file, but its group may read it if root owns
/// it.
#[cfg(unix)]
fn check_key_permissions(path: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;

    let metadata = fs::metadata(path)
        .map_err(|error| Error::caused("cannot read the file in \"sslkey\" of a Postgres store", error))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.is_file() && metadata.mode() & forbidden == 0 {
        return Ok(());
    }
    Err(Error::invalid_argument(
        "the file in \"sslkey\" of a Postgres store is not a regular file that only its owner can access; set its \
         permissions to 0600, or to 0640 if root owns it",
    ))
}

#[cfg(not(unix))]
fn check_key_permissions(_: &Path) -> Result<()> {
    Ok(())
}

#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// The root certificates in full, to find a trusted self-signed certificate among them.
    certificates: Vec<CertificateDer<'static>>,
}

/// Verifier for the server's certificate.
#[derive(Debug)]
struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// `None` accepts every certificate.
    trusted: Option<Trusted>,
    /// Whether to verify the host name.
    names: bool,
}

impl Verifier {
    /// Whether the server's certificate is self-issued and is itself one of the trusted
    /// certificates.
    ///
    /// webpki rejects such a certificate if it is marked as a CA, as `openssl req -x509` does.
    fn is_trusted_itself(
        trusted: &Trusted,
        shown: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<bool, rustls::Error> {
        let Some(certificate) = Certificate::read(shown) else { return Ok(false) };
        if !certificate.is_self_issued() || !trusted.certificates.iter().any(|root| root == shown) {
            return Ok(false);
        }
        match certificate.is_valid_at(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)) {
            Ok(true) => Ok(true),
            Ok(false) => Err(CertificateError::Expired.into()),
            Err(_) => Err(CertificateError::NotValidYet.into()),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else { return Ok(ServerCertVerified::assertion()) };
        let certificate = ParsedCertificate::try_from(shown)?;
        if !Self::is_trusted_itself(trusted, shown, now)? {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &trusted.roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        if self.names {
            verify_server_name(&certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, shown, signature, &self.algorithms)
    }

    /// Verifies the signature with the public key of the certificate.
    ///
    /// larder extracts the key itself, because webpki cannot parse X.509 version 1 certificates.
    /// Such certificates are accepted if the chain is not verified.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let certificate = Certificate::read(shown).ok_or(CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key());
        verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
    use std::time::Duration;

    /// A time in June 2025.
    const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_750_000_000));

    fn self_signed(host: &str, is_authority: bool, years: (i32, i32)) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([host.to_string()]).unwrap();
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verify(
        trusted: &[CertificateDer<'static>],
        shown: &CertificateDer<'_>,
        names: bool,
    ) -> Result<(), rustls::Error> {
        let mut roots = RootCertStore::empty();
        trusted.iter().for_each(|root| roots.add(root.clone()).unwrap());
        let trusted = Some(Trusted { roots, certificates: trusted.to_vec() });
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        let verifier = Verifier { algorithms, trusted, names };
        let name = ServerName::try_from("db.internal").unwrap();
        verifier.verify_server_cert(shown, &[], &name, &[], NOW).map(drop)
    }

    #[test]
    fn a_certificate_that_a_server_signed_itself_is_accepted_if_it_is_trusted_and_valid() {
        for is_authority in [false, true] {
            let shown = self_signed("db.internal", is_authority, (2020, 2030));
            let other = self_signed("db.internal", is_authority, (2020, 2030));
            assert_eq!(verify(std::slice::from_ref(&shown), &shown, true), Ok(()), "{is_authority}");
            assert!(verify(&[other], &shown, false).is_err(), "{is_authority}");
            for years in [(2020, 2024), (2026, 2030)] {
                let shown = self_signed("db.internal", is_authority, years);
                assert!(verify(std::slice::from_ref(&shown), &shown, false).is_err(), "{years:?}");
            }
            let shown = self_signed("other", is_authority, (2020, 2030));
            assert_eq!(verify(std::slice::from_ref(&shown), &shown, false), Ok(()), "{is_authority}");
            assert!(verify(std::slice::from_ref(&shown), &shown, true).is_err(), "{is_authority}");
        }
    }

    #[test]
    fn a_certificate_of_a_trusted_authority_is_accepted_and_no_trusted_one_of_another_is() {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(["db.internal".to_string()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "a server");
        params.not_before = date_time_ymd(2020, 1, 1);
        let shown = params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap().der().clone();
        assert_eq!(verify(&[authority.der().clone()], &shown, true), Ok(()));
        // As in libpq, a chain must end at a certificate authority.
        assert!(verify(std::slice::from_ref(&shown), &shown, true).is_err());
    }

    #[test]
    fn what_can_not_be_meant_together_is_refused() {
        let draft = |mode, is_direct, roots| TlsDraft { mode, is_direct, roots, ..TlsDraft::default() };
        assert_eq!(Tls::mode(&draft(None, false, None)).unwrap(), TlsMode::Prefer);
        assert_eq!(Tls::mode(&draft(None, false, Some(Roots::System))).unwrap(), TlsMode::VerifyFull);
        assert!(Tls::mode(&draft(Some(TlsMode::VerifyCa), false, Some(Roots::System))).is_err());
        assert!(Tls::mode(&draft(None, true, None)).is_err());
        assert_eq!(Tls::mode(&draft(Some(TlsMode::Require), true, None)).unwrap(), TlsMode::Require);
        let versions = |min_version, max_version| {
            let draft = TlsDraft { min_version, max_version, ..TlsDraft::default() };
            versions(&draft).map(|versions| versions.len())
        };
        assert_eq!(versions(None, None).unwrap(), 2);
        assert_eq!(versions(Some(TlsVersion::Tls13), None).unwrap(), 1);
        assert!(versions(Some(TlsVersion::Tls13), Some(TlsVersion::Tls12)).is_err());
    }
}
