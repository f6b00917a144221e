//! Errors of connecting to a server.

use std::io;

/// An error of connecting to a Postgres server.
///
/// It is the cause of an [`Error`](larder_core::Error). Its message names hosts and users, never passwords, and no guest sees
/// it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server asks for a password and the options give none.
    ///
    /// A server that asks for a login by GSSAPI or SSPI, which larder does not support, is reported as this too.
    #[error(
        "no password for user {user:?} on the server at {host:?}; set PGPASSWORD, or add the user to the password file: \
         \"passfile\", PGPASSFILE or ~/.pgpass{}", note(.ignored_file)
    )]
    MissingPassword {
        /// The role that larder logs in as.
        user: String,
        /// The host as the options name it.
        host: String,
        /// Why the password file was not read.
        ignored_file: Option<&'static str>,
        /// The error of the client.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// The host name has no address.
    #[error("the host {host:?} has no address; check its name")]
    HostNotFound {
        /// The host as the options name it.
        host: String,
        /// The error of the resolver.
        #[source]
        cause: io::Error,
    },
    /// `sslmode` demands TLS, and the server, or an attacker on the network, answered that there is none.
    #[error(
        "the server at {host:?} offers no TLS; turn it on there, or give a weaker \"sslmode\" if the network is trusted"
    )]
    TlsNotOffered {
        /// The host as the options name it.
        host: String,
    },
    /// The TLS handshake failed, for example because a certificate was not accepted.
    #[error("TLS with the server at {host:?} failed; check its certificate, \"sslrootcert\" and \"sslcert\"")]
    TlsFailed {
        /// The host as the options name it.
        host: String,
        /// The error of rustls or of the network.
        #[source]
        cause: io::Error,
    },
    /// `channel_binding` is `require`, and the server did not use channel binding.
    #[error(
        "the server at {host:?} did not use channel binding; give channel_binding=prefer, or use SCRAM over TLS"
    )]
    ChannelBindingMissing {
        /// The host as the options name it.
        host: String,
        /// The error of the client.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// The store was opened for writing, and the server is a standby.
    #[error(
        "the server at {host:?} is a standby, which accepts no writes; name the primary, or all hosts with \
         target_session_attrs=read-write"
    )]
    Standby {
        /// The host as the options name it.
        host: String,
    },
    /// The server is not of the kind that `target_session_attrs` demands.
    #[error("the server at {host:?} is not {wanted}; check \"host\" and \"target_session_attrs\"")]
    OtherTarget {
        /// The host as the options name it.
        host: String,
        /// The value of the option.
        wanted: &'static str,
    },
}

fn note(reason: &Option<&'static str>) -> String {
    reason.map(|reason| format!("; the password file was ignored because {reason}")).unwrap_or_default()
}

impl ConnectError {
    /// Whether a later attempt can succeed with the same options.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::HostNotFound { .. } | Self::Standby { .. } | Self::OtherTarget { .. } => true,
            // The network ended the handshake.
            Self::TlsFailed { cause, .. } => !is_of_rustls(cause),
            Self::MissingPassword { .. }
            | Self::TlsNotOffered { .. }
            | Self::ChannelBindingMissing { .. } => false,
        }
    }

    /// The reason that guests see.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::MissingPassword { .. } => "larder has no password for the database",
            Self::HostNotFound { .. } => "the database's host has no address",
            Self::TlsNotOffered { .. } => {
                "the database offers no TLS, and larder must not connect without it"
            }
            Self::TlsFailed { .. } => "no encrypted connection to the database could be made",
            Self::ChannelBindingMissing { .. } => {
                "the database did not use channel binding, which larder must use"
            }
            Self::Standby { .. } => "the database is a standby, which takes no writes",
            Self::OtherTarget { .. } => "no database server is of the kind that larder needs",
        }
    }
}

/// Whether the error is one of rustls and not of the network.
pub(crate) fn is_of_rustls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
