//! Why a server was not connected to.

use std::io;

/// Why a server was not connected to, as the cause of an [`Error`](larder_core::Error).
///
/// Messages name hosts and users, never passwords. A guest sees none of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server asks for a password, or for a method of login that larder does not have, and none is given.
    #[error(
        "no password for user {user:?} of the server at {host:?}; set PGPASSWORD, or add the user to a password file, which \
         \"passfile\", PGPASSFILE or ~/.pgpass is{}", note(.ignored_file)
    )]
    MissingPassword {
        /// The role that larder logs in as.
        user: String,
        /// The host as the options name it.
        host: String,
        /// Why the password file was not read.
        ignored_file: Option<&'static str>,
        /// What the client could not answer.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// A name has no address.
    #[error("the host {host:?} has no address; check its name")]
    HostNotFound {
        /// The host as the options name it.
        host: String,
        /// What the resolver says.
        #[source]
        cause: io::Error,
    },
    /// `sslmode` demands TLS, and the server refuses it, or a machine in between does.
    #[error(
        "the server at {host:?} offers no TLS; turn it on there, or give a weaker \"sslmode\" if the network is trusted"
    )]
    TlsNotOffered {
        /// The host as the options name it.
        host: String,
    },
    /// TLS failed: the server's certificate or the client's was not accepted, or the two have nothing in common.
    #[error("TLS with the server at {host:?} failed; check its certificate, \"sslrootcert\" and \"sslcert\"")]
    TlsFailed {
        /// The host as the options name it.
        host: String,
        /// What rustls says.
        #[source]
        cause: io::Error,
    },
    /// `channel_binding` demands a login that is bound to the server's certificate, and the server does not do it.
    #[error(
        "the server at {host:?} did not bind the login to its certificate, as \"channel_binding\" demands"
    )]
    ChannelBindingMissing {
        /// The host as the options name it.
        host: String,
        /// What the client says.
        #[source]
        cause: tokio_postgres::Error,
    },
    /// A store is opened to be written, and the server only replays what another writes.
    #[error(
        "the server at {host:?} is a standby, on which hot_standby allows reads only; name the primary, or all hosts with \
         target_session_attrs=read-write"
    )]
    Standby {
        /// The host as the options name it.
        host: String,
    },
    /// The server is not what `target_session_attrs` demands.
    #[error("the server at {host:?} is not {wanted}, as \"target_session_attrs\" demands")]
    OtherTarget {
        /// The host as the options name it.
        host: String,
        /// The value of the option.
        wanted: &'static str,
    },
}

fn note(reason: &Option<&'static str>) -> String {
    reason.map(|reason| format!(" (the present one was ignored: {reason})")).unwrap_or_default()
}

impl ConnectError {
    /// Whether the same can succeed later without a change of options.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::HostNotFound { .. } | Self::Standby { .. } | Self::OtherTarget { .. } => true,
            // A connection that was cut.
            Self::TlsFailed { cause, .. } => !is_of_rustls(cause),
            Self::MissingPassword { .. }
            | Self::TlsNotOffered { .. }
            | Self::ChannelBindingMissing { .. } => false,
        }
    }

    /// What a guest is told.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::MissingPassword { .. } => "larder has no password for the database",
            Self::HostNotFound { .. } => "the database's host has no address",
            Self::TlsNotOffered { .. } => "the database offers no TLS, which larder is to use",
            Self::TlsFailed { .. } => "no encrypted connection to the database could be made",
            Self::ChannelBindingMissing { .. } => {
                "the login to the database was not bound to its certificate"
            }
            Self::Standby { .. } => "the database is a standby, which takes no writes",
            Self::OtherTarget { .. } => "no database server is what larder is to use",
        }
    }
}

/// Whether rustls ended a connection, and not the network.
pub(crate) fn is_of_rustls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
