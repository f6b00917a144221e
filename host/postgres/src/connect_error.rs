//! Errors that occur while connecting to a server.

use std::io;

/// Reason why larder could not connect to a Postgres server.
///
/// It is the cause of an [`Error`](larder_core::Error). Its message names hosts and users, but
/// never passwords. Guests do not see it.
///
/// ```
/// use std::error::Error as _;
///
/// use larder_core::error::Cause;
/// use larder_postgres::ConnectError;
///
/// fn lacks_password(error: &larder_core::Error) -> bool {
///     let cause = error.source().and_then(|cause| cause.downcast_ref::<Cause>());
///     let cause = cause.and_then(|cause| cause.downcast_ref::<ConnectError>());
///     matches!(cause, Some(ConnectError::MissingPassword { .. }))
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server requires a password, and the options give none.
    ///
    /// A server that requires GSSAPI or SSPI authentication, which larder does not support, leads
    /// to this error too.
    #[error(
        "no password for user {user:?} on the server at {host:?}; set PGPASSWORD, or add the user to the password file \
         (\"passfile\", PGPASSFILE or ~/.pgpass){}", note(.ignored_file)
    )]
    MissingPassword {
        /// The role that larder logs in as.
        user: String,
        /// The host as given in the options.
        host: String,
        /// Why larder ignored the password file, if it did.
        ignored_file: Option<&'static str>,
        /// The error of tokio-postgres.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// The host name did not resolve to an address.
    #[error("cannot resolve the host name {host:?}; check \"host\" and the name server")]
    HostNotFound {
        /// The host as given in the options.
        host: String,
        /// The error of the resolver.
        #[source]
        cause: io::Error,
    },
    /// `sslmode` requires TLS, but the server, or an attacker on the network, answered that it does
    /// not support TLS.
    #[error(
        "the server at {host:?} does not support TLS; enable it there, or set a weaker \"sslmode\" if the network is trusted"
    )]
    TlsNotOffered {
        /// The host as given in the options.
        host: String,
    },
    /// The TLS handshake failed, for example because one side rejected the other's certificate.
    #[error(
        "TLS handshake with the server at {host:?} failed; check its certificate, \"sslrootcert\" and \"sslcert\""
    )]
    TlsFailed {
        /// The host as given in the options.
        host: String,
        /// The error of rustls or of the network.
        #[source]
        cause: io::Error,
    },
    /// `channel_binding` is `require`, but the server did not use channel binding.
    #[error(
        "the server at {host:?} did not use channel binding; enable SCRAM and TLS there, or set channel_binding=prefer"
    )]
    ChannelBindingMissing {
        /// The host as given in the options.
        host: String,
        /// The error of tokio-postgres.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// The store was opened for writing, but the server is a standby.
    #[error(
        "the server at {host:?} is a standby, which accepts no writes; name the primary, or all hosts with \
         target_session_attrs=read-write"
    )]
    Standby {
        /// The host as given in the options.
        host: String,
    },
    /// The server does not match `target_session_attrs`.
    #[error("the server at {host:?} is not {wanted}; check \"host\" and \"target_session_attrs\"")]
    OtherTarget {
        /// The host as given in the options.
        host: String,
        /// The value of `target_session_attrs`.
        wanted: &'static str,
    },
}

fn note(reason: &Option<&'static str>) -> String {
    reason.map(|reason| format!("; the password file was ignored because {reason}")).unwrap_or_default()
}

impl ConnectError {
    /// Whether a retry with the same options can succeed.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::HostNotFound { .. } | Self::Standby { .. } | Self::OtherTarget { .. } => true,
            // Unless rustls rejected the handshake, the network broke it.
            Self::TlsFailed { cause, .. } => !is_of_rustls(cause),
            Self::MissingPassword { .. }
            | Self::TlsNotOffered { .. }
            | Self::ChannelBindingMissing { .. } => false,
        }
    }

    /// The reason in the error that guests see.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::MissingPassword { .. } => "larder has no password for the database",
            Self::HostNotFound { .. } => "cannot resolve the host name of the database",
            Self::TlsNotOffered { .. } => "the database does not support TLS, which larder's options require",
            Self::TlsFailed { .. } => "cannot make an encrypted connection to the database",
            Self::ChannelBindingMissing { .. } => {
                "the database did not use channel binding, which larder's options require"
            }
            Self::Standby { .. } => "the database is a standby, which accepts no writes",
            Self::OtherTarget { .. } => "no database server is of the kind that larder's options require",
        }
    }
}

/// Whether rustls, and not the network, caused the error.
pub(crate) fn is_of_rustls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
