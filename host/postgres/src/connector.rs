//! Connects to a server. Tries the servers, their addresses and the kinds of encryption in the
//! order that the options give.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use tokio_postgres::config::{self, SslMode, SslNegotiation};
use tokio_postgres::error::{DbError, SqlState};
use tokio_postgres::{Client, Config, Connection, SimpleQueryMessage, Socket};

use crate::connect_error::{ConnectError, is_of_rustls};
use crate::encryption::{Encryption, MaybeEncrypted, TlsFailure};
use crate::error::{Failure, Result};
use crate::option_table::{ChannelBinding, Target, TlsMode};
use crate::options::{PostgresOptions, Server};
use crate::silence::{SILENT_AFTER, Silence};

/// Opens connections to the servers of one store. Clones are cheap.
#[derive(Clone)]
pub(crate) struct Connector {
    options: Arc<PostgresOptions>,
    servers: Arc<[Arc<ListedServer>]>,
    /// The number of the server that the last successful connection went to.
    last: Arc<AtomicUsize>,
}

/// A server of the list, with what larder knows about its availability.
pub(crate) struct ListedServer {
    /// Its index in the list.
    number: usize,
    pub(crate) options: Server,
    pub(crate) silence: Arc<Silence>,
}

/// A new connection. The caller must poll `connection` for `client` to work.
pub(crate) struct Connected {
    pub(crate) client: Client,
    pub(crate) connection: Connection<Socket, MaybeEncrypted<Socket>>,
    /// The encryption to use for a further connection to the server, such as a cancel request.
    pub(crate) encryption: Encryption,
    pub(crate) host: String,
    pub(crate) server: Arc<ListedServer>,
    /// The server's IP address, or `None` for a Unix-domain socket.
    pub(crate) address: Option<IpAddr>,
}

/// Queries the server's state. `SHOW` needs no snapshot, which a standby refuses if the role's
/// default isolation level is serializable.
const STATE: &str = "SHOW in_hot_standby; SHOW transaction_read_only";

impl Connector {
    pub(crate) fn new(options: PostgresOptions) -> Self {
        let listed = |(number, server): (usize, &Server)| {
            Arc::new(ListedServer { number, options: server.clone(), silence: Arc::default() })
        };
        let servers = options.servers.iter().enumerate().map(listed).collect();
        Self { options: Arc::new(options), servers, last: Arc::new(AtomicUsize::new(usize::MAX)) }
    }

    pub(crate) fn options(&self) -> &PostgresOptions {
        &self.options
    }

    /// Connects to the first server that accepts the login and matches `target_session_attrs`.
    pub(crate) async fn connect(&self) -> Result<Connected> {
        let servers = self.in_order();
        let rounds: &[Target] = match &self.options.target {
            Target::PreferStandby => &[Target::Standby, Target::Any],
            target => std::slice::from_ref(target),
        };
        let mut last = Failure::Stalled("the list of database servers is empty");
        for wanted in rounds {
            for server in &servers {
                let addresses = match self.in_time(self.addresses(&server.options)).await {
                    Ok(addresses) => addresses,
                    Err(failure) => {
                        last = failure;
                        continue;
                    }
                };
                for address in addresses {
                    let mut awaited =
                        Awaited { silence: &server.silence, since: Instant::now(), has_answered: false };
                    let attempt = Attempt { listed: server, address };
                    let outcome = self.in_time(self.connect_to(attempt, *wanted)).await;
                    awaited.has_answered = has_answered(&outcome);
                    match outcome {
                        Ok(connected) => {
                            self.last.store(server.number, Ordering::Relaxed);
                            return Ok(connected);
                        }
                        Err(failure) if is_final(&failure) => return Err(failure),
                        Err(failure) => last = failure,
                    }
                }
            }
        }
        Err(last)
    }

    /// Returns the servers in the order in which to try them.
    fn in_order(&self) -> Vec<&Arc<ListedServer>> {
        let mut servers: Vec<_> = self.servers.iter().collect();
        if self.options.shuffles_servers {
            fastrand::shuffle(&mut servers);
        }
        let last = self.last.load(Ordering::Relaxed);
        match self.options.target {
            // There is one primary, and it rarely changes.
            Target::ReadWrite | Target::Primary => {
                servers.sort_by_key(|server| (server.silence.is_suspected(), server.number != last));
            }
            // Any server will do, so the list's order decides. The first one may be the only
            // primary.
            Target::Any => {}
            Target::ReadOnly | Target::Standby | Target::PreferStandby => {
                servers.sort_by_key(|server| server.silence.is_suspected());
            }
        }
        servers
    }

    pub(crate) fn servers_count(&self) -> usize {
        self.servers.len()
    }

    /// Whether a server neither accepts nor refuses a login. Returns `false` if the login failed
    /// for a local reason, because the server's state is then unknown.
    pub(crate) async fn is_unreachable(&self, server: &Arc<ListedServer>, address: Option<IpAddr>) -> bool {
        let attempt = Attempt { listed: server, address };
        match timeout(SILENT_AFTER, self.connect_to(attempt, Target::Any)).await {
            Ok(Err(Failure::Database(error))) => is_of_peer(&error),
            Ok(_) => false,
            Err(_) => true,
        }
    }

    /// Returns a server's addresses in the resolver's order. A Unix-domain socket is `None`.
    async fn addresses(&self, server: &Server) -> Result<Vec<Option<IpAddr>>> {
        if server.is_socket() || server.address.is_some() {
            return Ok(vec![server.address]);
        }
        let not_found = |cause| ConnectError::HostNotFound { host: server.host.clone(), cause };
        let found = lookup_host((server.host.as_str(), server.port)).await.map_err(not_found)?;
        let mut addresses: Vec<_> = found.map(|address| Some(address.ip())).collect();
        if self.options.shuffles_servers {
            fastrand::shuffle(&mut addresses);
        }
        match addresses.is_empty() {
            true => Err(not_found(io::ErrorKind::NotFound.into()).into()),
            false => Ok(addresses),
        }
    }

    /// Limits an attempt to `connect_timeout`.
    async fn in_time<T>(&self, connecting: impl Future<Output = Result<T>>) -> Result<T> {
        match self.options.login_timeout {
            None => connecting.await,
            Some(limit) => timeout(limit, connecting)
                .await
                .unwrap_or(Err(Failure::Stalled("timed out while connecting to the database"))),
        }
    }

    /// Connects to one address. `allow` and `prefer` try both with and without encryption.
    async fn connect_to(&self, attempt: Attempt<'_>, wanted: Target) -> Result<Connected> {
        let encrypted = |is_optional| Encryption { tls: self.options.tls.clone(), is_optional };
        let (first, second) = match self.options.tls_mode {
            _ if attempt.listed.options.is_socket() => (Encryption::none(), None),
            TlsMode::Disable => (Encryption::none(), None),
            TlsMode::Allow => (Encryption::none(), Some(encrypted(false))),
            TlsMode::Prefer => (encrypted(true), Some(Encryption::none())),
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => (encrypted(false), None),
        };
        let connected = match (self.log_in(attempt, first).await, second) {
            (Err(failure), Some(second)) if may_pass_otherwise(&failure) => {
                match self.log_in(attempt, second).await {
                    Err(Failure::Connect(ConnectError::TlsNotOffered { .. })) => Err(failure),
                    outcome => outcome,
                }
            }
            (outcome, _) => outcome,
        };
        check_target(connected?, wanted).await
    }

    async fn log_in(&self, attempt: Attempt<'_>, encryption: Encryption) -> Result<Connected> {
        let server = &attempt.listed.options;
        match self.config(attempt, &encryption).connect(encryption.clone()).await {
            Ok((client, connection)) => Ok(Connected {
                client,
                connection,
                encryption,
                host: server.host.clone(),
                server: attempt.listed.clone(),
                address: attempt.address,
            }),
            Err(error) => Err(self.why_it_failed(server, error)),
        }
    }

    fn config(&self, Attempt { listed, address }: Attempt<'_>, encryption: &Encryption) -> Config {
        let (options, server) = (&self.options, &listed.options);
        let mut config = Config::new();
        config.user(&options.user).application_name(&options.application_name);
        config.host(&server.host).port(server.port);
        if let Some(address) = address {
            config.hostaddr(address);
        }
        if let Some(database) = &options.database {
            config.dbname(database);
        }
        if let Some(password) = &server.password {
            config.password(password);
        }
        if let Some(settings) = &options.settings {
            config.options(settings);
        }
        match encryption.tls {
            None => config.ssl_mode(SslMode::Disable),
            // `Encryption` sends the `SSLRequest`.
            Some(_) => config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct),
        };
        config.channel_binding(match options.channel_binding {
            ChannelBinding::Disable => config::ChannelBinding::Disable,
            ChannelBinding::Prefer => config::ChannelBinding::Prefer,
            ChannelBinding::Require => config::ChannelBinding::Require,
        });
        // tokio-postgres applies the limit to cancel requests too.
        if let Some(limit) = options.tcp_timeout {
            config.connect_timeout(limit);
        }
        if let Some(limit) = options.tcp_user_timeout {
            config.tcp_user_timeout(limit);
        }
        config.keepalives(options.keepalives).keepalives_idle(options.keepalives_idle);
        if let Some(interval) = options.keepalives_interval {
            config.keepalives_interval(interval);
        }
        if let Some(count) = options.keepalives_count {
            config.keepalives_retries(count);
        }
        config
    }

    /// Converts an error, by the type of its cause.
    fn why_it_failed(&self, server: &Server, error: tokio_postgres::Error) -> Failure {
        let host = || server.host.clone();
        match Cause::of(&error) {
            Cause::Network | Cause::Server => error.into(),
            Cause::TlsNotOffered => ConnectError::TlsNotOffered { host: host() }.into(),
            Cause::Tls => match tls_error(error) {
                Ok(cause) => ConnectError::TlsFailed { host: host(), cause }.into(),
                Err(failure) => failure,
            },
            // Channel binding needs a password, so a missing password is reported first.
            Cause::Client if server.password.is_none() => ConnectError::MissingPassword {
                user: self.options.user.clone(),
                host: host(),
                ignored_file: self.options.ignored_password_file,
                cause: error,
            }
            .into(),
            Cause::Client if self.options.channel_binding == ChannelBinding::Require => {
                ConnectError::ChannelBindingMissing { host: host(), cause: error }.into()
            }
            Cause::Client => error.into(),
        }
    }
}

/// One address of a server.
#[derive(Clone, Copy)]
struct Attempt<'a> {
    listed: &'a Arc<ListedServer>,
    address: Option<IpAddr>,
}

/// A connection attempt. If it is dropped without a response from the server, the next attempt
/// tries the other servers first.
///
/// It is dropped when its own time limit or that of a caller passes.
struct Awaited<'a> {
    silence: &'a Silence,
    since: Instant,
    has_answered: bool,
}

/// How long an attempt must last without a response before its server is suspected.
const SUSPECT_AFTER: Duration = Duration::from_secs(1);

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if !self.has_answered && self.since.elapsed() >= SUSPECT_AFTER {
            self.silence.suspect();
        }
    }
}

/// Whether the outcome shows that the server responded.
fn has_answered<T>(outcome: &Result<T>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(Failure::Database(error)) => error.as_db_error().is_some(),
        Err(Failure::Connect(error)) => !matches!(error, ConnectError::HostNotFound { .. }),
        Err(_) => false,
    }
}

/// Whether the peer or the network, and not this host, caused an error.
fn is_of_peer(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    source.is_some_and(|error| {
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::TimedOut
        )
    })
}

/// The origin of an error.
enum Cause {
    /// The connection broke, or a message was malformed.
    Network,
    /// The server sent an error.
    Server,
    TlsNotOffered,
    Tls,
    /// tokio-postgres could not respond to the server's authentication request.
    Client,
}

impl Cause {
    fn of(error: &tokio_postgres::Error) -> Self {
        let Some(source) = std::error::Error::source(error) else { return Self::Network };
        if source.is::<DbError>() {
            return Self::Server;
        }
        match (source.downcast_ref::<TlsFailure>(), source.downcast_ref::<io::Error>()) {
            (Some(TlsFailure::NotOffered), _) => Self::TlsNotOffered,
            (Some(TlsFailure::Handshake(_)), _) => Self::Tls,
            // In TLS 1.3, an alert about the client's certificate arrives after the client has
            // finished its handshake.
            (None, Some(error)) if is_of_rustls(error) => Self::Tls,
            (None, Some(_)) => Self::Network,
            (None, None) => Self::Client,
        }
    }
}

fn tls_error(error: tokio_postgres::Error) -> Result<io::Error, Failure> {
    let source = match error.into_source() {
        None => return Err(Failure::Gone),
        Some(source) => source,
    };
    match source.downcast::<io::Error>() {
        Ok(error) => Ok(*error),
        Err(source) => match source.downcast::<TlsFailure>() {
            Ok(failure) => match *failure {
                TlsFailure::Handshake(error) => Ok(error),
                TlsFailure::NotOffered => Err(Failure::Gone),
            },
            Err(_) => Err(Failure::Gone),
        },
    }
}

/// Whether to stop instead of trying the next server. All servers of a list have the same roles and
/// databases.
fn is_final(failure: &Failure) -> bool {
    match failure {
        Failure::Connect(error) => matches!(error, ConnectError::MissingPassword { .. }),
        Failure::Database(error) => error.code().is_some_and(|code| {
            *code == SqlState::INVALID_PASSWORD
                || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
                || *code == SqlState::INVALID_CATALOG_NAME
        }),
        _ => false,
    }
}

/// Whether `allow` or `prefer` retries with the other kind of encryption.
///
/// They retry if `pg_hba.conf` has no entry for this kind of connection (28000), if a pooler
/// refuses it (08P01), or if the TLS handshake fails. A wrong password is not sent again.
fn may_pass_otherwise(failure: &Failure) -> bool {
    match failure {
        Failure::Connect(error) => matches!(error, ConnectError::TlsFailed { .. }),
        Failure::Database(error) => error.code().is_some_and(|code| {
            *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION || *code == SqlState::PROTOCOL_VIOLATION
        }),
        _ => false,
    }
}

/// Checks `target_session_attrs`. Costs one round trip unless the option is `any`.
async fn check_target(mut connected: Connected, wanted: Target) -> Result<Connected> {
    if wanted == Target::Any {
        return Ok(connected);
    }
    let answer = tokio::select! {
        answer = connected.client.simple_query(STATE) => answer?,
        ended = &mut connected.connection => {
            ended?;
            return Err(Failure::Gone);
        }
    };
    let mut settings = answer.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("on")),
        _ => None,
    });
    let (Some(is_standby), Some(is_read_only)) = (settings.next(), settings.next()) else {
        return Err(Failure::corrupt("the database did not report whether it is a standby"));
    };
    drop(settings);
    let (is_wanted, name) = match wanted {
        Target::Any => (true, "any"),
        Target::ReadWrite => (!is_standby && !is_read_only, "read-write"),
        Target::ReadOnly => (is_standby || is_read_only, "read-only"),
        Target::Primary => (!is_standby, "primary"),
        Target::Standby => (is_standby, "standby"),
        Target::PreferStandby => (true, "prefer-standby"),
    };
    match is_wanted {
        true => Ok(connected),
        false => Err(ConnectError::OtherTarget { host: connected.host, wanted: name }.into()),
    }
}
