//! The options of a Postgres store, read from the same sources as those of libpq.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder_core::{Error, Result};
use tokio_postgres::Client;

use crate::connections::WAIT_MAX;
use crate::connector::Connector;
use crate::conninfo;
use crate::environment::Environment;
use crate::migrator;
use crate::option_table::{
    ChannelBinding, Draft, OPTIONS, POOL_SIZE_MAX, POOL_SIZE_MIN, SERVICE, Target, TlsMode, find, nearest,
};
use crate::password_file::{Login, PasswordFile};
use crate::service_file;
use crate::tls::Tls;

/// Servers, login, TLS and pool size of a Postgres store.
///
/// An option in the data-source name overrides the service that `service` or `PGSERVICE` names. The
/// service overrides libpq's environment variables, and these override the defaults. The
/// constructors read all files once.
///
/// ```
/// use larder_postgres::{Environment, PostgresOptions};
///
/// // Ignores the environment of the process.
/// let name = "postgres://ann:secret@db.internal/d";
/// let options = PostgresOptions::parse_with(name, &Environment::empty())?;
/// let options = options.pool(10, 8)?;
/// # drop(options); Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone)]
pub struct PostgresOptions {
    pub(crate) servers: Vec<Server>,
    pub(crate) user: String,
    pub(crate) database: Option<String>,
    pub(crate) settings: Option<String>,
    /// The whole search path, if set. It is not sent as a session setting, because poolers refuse
    /// those.
    pub(crate) schema: Option<String>,
    pub(crate) application_name: String,
    /// Time limit for the TCP connection to one address.
    pub(crate) tcp_timeout: Option<Duration>,
    /// Time limit for TCP, TLS and the login together, for one address.
    pub(crate) login_timeout: Option<Duration>,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) keepalives: bool,
    pub(crate) keepalives_idle: Duration,
    pub(crate) keepalives_interval: Option<Duration>,
    pub(crate) keepalives_count: Option<u32>,
    pub(crate) target: Target,
    pub(crate) shuffles_servers: bool,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) tls_mode: TlsMode,
    /// `None` if no connection uses TLS.
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) pool: PoolSize,
    /// Why the password file was ignored.
    pub(crate) ignored_password_file: Option<&'static str>,
}

/// Limits of a connection pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolSize {
    pub(crate) connections: usize,
    /// How many of the connections snapshots may hold.
    pub(crate) snapshots: usize,
}

/// One server of the list.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// A host name, an IP address, or the directory of a Unix-domain socket.
    pub(crate) host: String,
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) password: Option<String>,
}

impl Server {
    pub(crate) fn is_socket(&self) -> bool {
        self.address.is_none() && self.host.starts_with('/')
    }
}

/// Default time limit for the TCP connection to one address. A login may take longer, because it
/// needs CPU time of the server.
const TCP_TIMEOUT: Duration = Duration::from_secs(5);

/// Default time without a response from the peer before a connection is closed. The operating
/// system's default is hours.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Default of `pool_size`, the maximum number of connections of one store.
pub const CONNECTIONS_MAX: usize = 25;

/// Default of `pool_snapshots`, the maximum number of connections that snapshots hold.
///
/// A snapshot holds its connection while its guest computes. The limit keeps connections free for
/// the commits of other transactions.
pub const SNAPSHOTS_MAX: usize = 20;

const PORT: u16 = 5432;

/// The longest schema name, in bytes. The server truncates a longer one, which could then name
/// another schema.
const SCHEMA_MAX: usize = 63;

/// Where a value comes from, for error messages.
#[derive(Clone, Copy)]
enum Source {
    DataSourceName,
    Service,
    Variable(&'static str),
}

impl std::fmt::Display for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DataSourceName => formatter.write_str("the data-source name of a Postgres store"),
            Self::Service => formatter.write_str("the service file of Postgres"),
            Self::Variable(name) => write!(formatter, "the environment variable {name}"),
        }
    }
}

/// The given values and their sources, by option name.
type Given = BTreeMap<&'static str, (String, Source)>;

impl PostgresOptions {
    /// Parses a data-source name, with the process's environment as the fallback.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the name is malformed, an option is unknown, or a value is
    ///   invalid or not supported.
    /// - [`Error::Other`] if a service, certificate or key file cannot be read or is invalid.
    pub fn parse(dsn: &str) -> Result<Self> {
        Self::parse_with(dsn, &Environment::of_process())
    }

    /// Parses a data-source name, with the given environment as the fallback.
    ///
    /// Error messages never repeat a value, because a misplaced quote can make any part of the name
    /// a password.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the name is malformed, an option is unknown, or a value is
    ///   invalid or not supported.
    /// - [`Error::Other`] if a service, certificate or key file cannot be read or is invalid.
    pub fn parse_with(dsn: &str, environment: &Environment) -> Result<Self> {
        let mut given = Given::new();
        add_all(&mut given, conninfo::pairs(dsn)?, Source::DataSourceName)?;
        let service = given.get(SERVICE).map(|(name, _)| name.as_str()).or(environment.get("PGSERVICE"));
        if let Some(service) = service {
            let options = service_file::options_of(service, environment)?;
            let mut of_service = Given::new();
            add_all(&mut of_service, options, Source::Service)?;
            of_service.append(&mut given);
            given = of_service;
        }
        for option in OPTIONS {
            let Some((variable, value)) =
                option.variable.and_then(|name| Some((name, environment.get(name)?)))
            else {
                continue;
            };
            given.entry(option.name).or_insert_with(|| (value.to_string(), Source::Variable(variable)));
        }
        let mut draft = Draft::default();
        for option in OPTIONS {
            let Some((value, source)) = given.get(option.name) else { continue };
            (option.apply)(&mut draft, value).map_err(|right| {
                Error::invalid_argument(format!("invalid {:?} in {source}; {right}", option.name))
            })?;
        }
        Self::complete(draft, environment)
    }

    /// Sets the size of the connection pool, and how many connections open transactions may hold.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `connections` is not from 2 to 1000, or `snapshots` is not
    /// from 1 to `connections - 1`.
    pub fn pool(mut self, connections: usize, snapshots: usize) -> Result<Self> {
        let is_valid =
            (POOL_SIZE_MIN..=POOL_SIZE_MAX).contains(&connections) && (1..connections).contains(&snapshots);
        if !is_valid {
            return Err(Error::invalid_argument(format!(
                "invalid pool of {connections} connections, {snapshots} of them for snapshots; set \"pool_size\" from \
                 {POOL_SIZE_MIN} to {POOL_SIZE_MAX}, and \"pool_snapshots\" from 1 to \"pool_size\" - 1"
            )));
        }
        self.pool = PoolSize { connections, snapshots };
        Ok(self)
    }

    /// Opens a connection, runs `work` with its client, and closes the connection.
    ///
    /// Returns what `work` returns.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use larder_postgres::PostgresOptions;
    ///
    /// let options = PostgresOptions::parse("postgres://ann@db.internal/d")?;
    /// let sql = "CREATE SCHEMA tenant_a";
    /// options.with_connection(async |client| client.batch_execute(sql).await).await??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Unavailable`] if no server can be reached, or none matches
    ///   `target_session_attrs`.
    /// - [`Error::Other`] if the server refuses the login, or TLS fails.
    ///
    /// Errors of `work` are part of the value that it returns.
    pub async fn with_connection<T>(&self, work: impl AsyncFnOnce(&mut Client) -> T) -> Result<T> {
        migrator::with_connection(&Connector::new(self.clone()), work).await
    }

    fn complete(draft: Draft, environment: &Environment) -> Result<Self> {
        let Some(user) = draft.user.as_deref().or(environment.user_name()) else {
            return Err(Error::invalid_argument(
                "the data-source name of a Postgres store has no user; give \"user\" or set PGUSER",
            ));
        };
        let user = user.to_string();
        let (servers, ignored_password_file) = servers(&draft, &user, environment)?;
        let tls_mode = Tls::mode(&draft.tls)?;
        if draft.channel_binding == ChannelBinding::Require && tls_mode == TlsMode::Disable {
            return Err(Error::invalid_argument(
                "\"channel_binding\" of a Postgres store is require, but \"sslmode\" is disable; channel binding needs TLS, so \
                 set \"sslmode\" to require or stronger",
            ));
        }
        // Connections over Unix-domain sockets do not use TLS.
        let is_encrypted = tls_mode != TlsMode::Disable && !servers.iter().all(Server::is_socket);
        let tls = is_encrypted.then(|| Tls::read(&draft.tls, tls_mode, environment)).transpose()?;
        // Leaves time for the last server of the list, even if no other one answers.
        let for_each = WAIT_MAX / u32::try_from(servers.len()).unwrap_or(u32::MAX).max(1);
        let connections = draft.pool_size.unwrap_or(CONNECTIONS_MAX);
        let snapshots = draft.pool_snapshots.unwrap_or((connections * 4 / 5).max(1));
        let application_name = draft.application_name.or(draft.fallback_application_name);
        let options = Self {
            servers,
            user,
            database: draft.database,
            settings: draft.options,
            schema: checked_schema(draft.schema)?,
            application_name: application_name.unwrap_or_else(|| "larder".to_string()),
            tcp_timeout: draft.connect_timeout.unwrap_or(Some(TCP_TIMEOUT.min(for_each))),
            login_timeout: draft.connect_timeout.unwrap_or(Some(for_each)),
            tcp_user_timeout: draft.tcp_user_timeout.unwrap_or(Some(SILENCE_MAX)),
            keepalives: draft.keepalives.unwrap_or(true),
            keepalives_idle: draft.keepalives_idle.unwrap_or(SILENCE_MAX),
            keepalives_interval: draft.keepalives_interval,
            keepalives_count: draft.keepalives_count.filter(|count| *count > 0),
            target: draft.target,
            shuffles_servers: draft.shuffles_hosts,
            channel_binding: draft.channel_binding,
            tls_mode,
            tls: tls.map(Arc::new),
            pool: PoolSize { connections, snapshots },
            ignored_password_file,
        };
        options.pool(connections, snapshots)
    }
}

impl std::fmt::Debug for PostgresOptions {
    /// Omits passwords, and `options`, whose settings may contain one.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hosts: Vec<_> = self.servers.iter().map(|server| &server.host).collect();
        formatter
            .debug_struct("PostgresOptions")
            .field("hosts", &hosts)
            .field("sslmode", &self.tls_mode)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

fn add_all(given: &mut Given, pairs: Vec<(String, String)>, source: Source) -> Result<()> {
    for (name, value) in pairs {
        let Some(option) = find(&name) else { return Err(unknown(&name, source)) };
        // As in libpq, an empty value counts as unset. An empty schema is refused later.
        if value.is_empty() && option.name != "schema" {
            continue;
        }
        // As in libpq, the last value wins. A second schema is refused, because it would select
        // other data.
        let earlier = given.insert(option.name, (value, source));
        if earlier.is_some() && option.name == "schema" {
            return Err(Error::invalid_argument(format!(
                "\"schema\" is given twice in {source}; give it once"
            )));
        }
    }
    Ok(())
}

/// The error about an unknown option. It repeats the name only if it resembles a known option.
fn unknown(name: &str, source: Source) -> Error {
    Error::invalid_argument(match nearest(name) {
        Some(right) => format!("unknown option {name:?} in {source}; did you mean {right:?}?"),
        None => format!("unknown option in {source}; docs/postgres.md lists the valid options"),
    })
}

fn servers(
    draft: &Draft,
    user: &str,
    environment: &Environment,
) -> Result<(Vec<Server>, Option<&'static str>)> {
    let count = draft.hosts.len().max(draft.addresses.len());
    if count == 0 {
        return Err(Error::invalid_argument(
            "the data-source name of a Postgres store has no host; give \"host\" or set PGHOST; for a Unix-domain socket, \
             give its directory, for example host=/run/postgresql",
        ));
    }
    if !draft.hosts.is_empty() && !draft.addresses.is_empty() && draft.hosts.len() != draft.addresses.len() {
        return Err(Error::invalid_argument(
            "\"host\" and \"hostaddr\" of a Postgres store have different lengths; give one address for each host",
        ));
    }
    if draft.ports.len() > 1 && draft.ports.len() != count {
        return Err(Error::invalid_argument(
            "\"port\" of a Postgres store does not match the number of hosts; give one port, or one for each host",
        ));
    }
    let mut servers = Vec::new();
    for number in 0..count {
        let address = draft.addresses.get(number).copied().flatten();
        let host = draft.hosts.get(number).filter(|host| !host.is_empty()).cloned();
        let Some(host) = host.or_else(|| address.map(|address| address.to_string())) else {
            return Err(Error::invalid_argument(
                "\"host\" of a Postgres store has an empty entry; remove the extra comma",
            ));
        };
        let port = draft.ports.get(number).or(draft.ports.first()).copied().flatten().unwrap_or(PORT);
        servers.push(Server { host, address, port, password: draft.password.clone() });
    }
    let ignored = match draft.password {
        Some(_) => None,
        None => find_passwords(&mut servers, draft, user, environment),
    };
    Ok((servers, ignored))
}

/// Looks up passwords in the password file. If it ignored the file, returns the reason.
fn find_passwords(
    servers: &mut [Server],
    draft: &Draft,
    user: &str,
    environment: &Environment,
) -> Option<&'static str> {
    let path: PathBuf = draft.password_file.clone().or_else(|| environment.at_home(".pgpass"))?;
    let file = PasswordFile::read(&path);
    let database = draft.database.as_deref().unwrap_or(user);
    for server in servers {
        let login = Login { host: &server.host, port: server.port, database, user };
        server.password = file.password(&login);
    }
    match file {
        PasswordFile::Ignored(reason) => Some(reason),
        PasswordFile::Missing | PasswordFile::Read(_) => None,
    }
}

/// Refuses a schema name that the server would truncate or expand.
fn checked_schema(schema: Option<String>) -> Result<Option<String>> {
    match schema {
        Some(schema) if !(1..=SCHEMA_MAX).contains(&schema.len()) || schema == "$user" => {
            Err(Error::invalid_argument(format!(
                "invalid \"schema\" of a Postgres store; use a name of 1 to {SCHEMA_MAX} bytes other than `$user`"
            )))
        }
        schema => Ok(schema),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> Environment {
        Environment::empty().user("me")
    }

    fn parse(dsn: &str) -> PostgresOptions {
        PostgresOptions::parse_with(dsn, &alone()).unwrap()
    }

    fn reason(dsn: &str) -> String {
        reason_in(dsn, &alone())
    }

    fn reason_in(dsn: &str, environment: &Environment) -> String {
        match PostgresOptions::parse_with(dsn, environment) {
            Err(Error::InvalidArgument(reason)) => reason,
            other => panic!("{dsn}: {other:?}"),
        }
    }

    /// Host, address, port and password.
    fn servers(options: &PostgresOptions) -> Vec<(&str, Option<String>, u16, Option<&str>)> {
        let server = |server: &'_ Server| server.address.map(|address| address.to_string());
        let all = options.servers.iter();
        all.map(|each| (each.host.as_str(), server(each), each.port, each.password.as_deref())).collect()
    }

    #[test]
    fn both_forms_say_the_same() {
        for dsn in [
            "postgres://ann:s%40cret@db:5433/plugins?options=-c%20search_path%3Dt",
            "host=db port=5433 user=ann password=s@cret dbname=plugins options='-c search_path=t'",
        ] {
            let options = parse(dsn);
            assert_eq!(servers(&options), [("db", None, 5433, Some("s@cret"))], "{dsn}");
            assert_eq!(
                (options.user.as_str(), options.database.as_deref()),
                ("ann", Some("plugins")),
                "{dsn}"
            );
            assert_eq!(options.settings.as_deref(), Some("-c search_path=t"), "{dsn}");
            assert_eq!(options.application_name, "larder", "{dsn}");
        }
    }

    #[test]
    fn both_forms_pin_a_store_to_a_schema_and_keep_the_other_options() {
        for dsn in [
            "postgres://ann:p%3F@h/d?schema=a%22%20b&options=-c%20jit%3Doff&connect_timeout=2",
            "postgres://ann:p?@h/d?connect_timeout=2&options=-c%20jit%3Doff&%73chema=a%22%20b",
            "host=h schema = 'a\" b' user=ann password='p?' dbname=d options='-c jit=off' connect_timeout=2",
            "schema=a\"\\ b host=h user=ann password=p? dbname=d connect_timeout=2 options=-c\\ jit=off",
        ] {
            let options = parse(dsn);
            assert_eq!(options.settings.as_deref(), Some("-c jit=off"), "{dsn}");
            assert_eq!(options.schema.as_deref(), Some("a\" b"), "{dsn}");
            assert_eq!(options.login_timeout, Some(Duration::from_secs(2)), "{dsn}");
            assert_eq!(servers(&options), [("h", None, 5432, Some("p?"))], "{dsn}");
        }
        assert_eq!(parse("postgres://h/d?schema=tenant_a").schema.as_deref(), Some("tenant_a"));
        assert_eq!(parse("host=h password='x schema=no' dbname=d").schema, None);
    }

    #[test]
    fn a_schema_that_can_not_be_meant_is_refused() {
        let long = "a".repeat(64);
        for schema in ["", "$user", &long, "a&schema=b"] {
            assert!(reason(&format!("postgres://h/d?schema={schema}")).contains("\"schema\""), "{schema}");
        }
        assert!(reason("host=h schema='' dbname=d").contains("\"schema\""));
        assert!(reason("host=h schema=a schema=b").contains("\"schema\" is given twice"));
    }

    #[test]
    fn what_is_given_first_counts_from_the_name_over_the_service_to_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let services = folder.path().join("services");
        std::fs::write(&services, "[s]\nhost=service\nuser=service\nport=1\n").unwrap();
        let environment = alone()
            .variable("PGSERVICEFILE", services.display().to_string())
            .variable("PGHOST", "variable")
            .variable("PGUSER", "variable")
            .variable("PGPORT", "2")
            .variable("PGDATABASE", "variable")
            .variable("PGAPPNAME", "variable")
            .variable("PGPASSWORD", "variable")
            .variable("PGCONNECT_TIMEOUT", "9")
            .variable("PGTARGETSESSIONATTRS", "primary");
        let with =
            |dsn: &str, environment: &Environment| PostgresOptions::parse_with(dsn, environment).unwrap();
        let options = with("host=name service=s fallback_application_name=unused", &environment);
        assert_eq!(servers(&options), [("name", None, 1, Some("variable"))]);
        assert_eq!((options.user.as_str(), options.database.as_deref()), ("service", Some("variable")));
        assert_eq!(options.application_name, "variable");
        assert_eq!((options.login_timeout, options.target), (Some(Duration::from_secs(9)), Target::Primary));

        let options = with("postgres://", &environment.clone().variable("PGSERVICE", "s"));
        assert_eq!(servers(&options), [("service", None, 1, Some("variable"))]);
        let options = with("", &environment);
        assert_eq!(servers(&options), [("variable", None, 2, Some("variable"))]);
        let options = with("host=h fallback_application_name=mine", &alone());
        assert_eq!((options.application_name.as_str(), options.user.as_str()), ("mine", "me"));
    }

    #[test]
    fn an_empty_environment_gives_nothing() {
        let environment = Environment::empty();
        assert!(reason_in("host=h", &environment).contains("PGUSER"));
        assert!(reason_in("user=u", &environment).contains("PGHOST"));
        let options = PostgresOptions::parse_with("host=h user=u", &environment).unwrap();
        assert_eq!(servers(&options), [("h", None, 5432, None)]);
    }

    #[test]
    fn each_server_gets_its_own_address_port_and_password() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        std::fs::write(&path, "a:5432:d:ann:first\n127.0.0.2:7:d:ann:second\nb:*:d:ann:third\n").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let passfile = format!("passfile={} user=ann dbname=d", path.display());
        let options = parse(&format!("{passfile} host=a,b port=,9"));
        assert_eq!(servers(&options), [("a", None, 5432, Some("first")), ("b", None, 9, Some("third"))]);
        let options = parse(&format!("{passfile} hostaddr=127.0.0.2,::1 port=7"));
        let expected = [
            ("127.0.0.2", Some("127.0.0.2".to_string()), 7, Some("second")),
            ("::1", Some("::1".to_string()), 7, None),
        ];
        assert_eq!(servers(&options), expected);
        let options = parse(&format!("{passfile} host=a hostaddr=127.0.0.2 password=given"));
        assert_eq!(servers(&options), [("a", Some("127.0.0.2".to_string()), 5432, Some("given"))]);
        let by_variable = alone().variable("PGPASSFILE", path.display().to_string());
        let options = PostgresOptions::parse_with("postgres://ann@a/d", &by_variable).unwrap();
        assert_eq!(servers(&options), [("a", None, 5432, Some("first"))]);

        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let options = parse(&format!("{passfile} host=a"));
        assert_eq!(servers(&options), [("a", None, 5432, None)]);
        assert!(options.ignored_password_file.unwrap().contains("0600"));
    }

    #[test]
    fn of_an_option_that_stands_twice_the_last_one_counts() {
        let options = parse("postgres://ann:first@a:1/d?user=eve&host=b&port=2&password=x&password=second");
        assert_eq!(options.user, "eve");
        assert_eq!(servers(&options), [("b", None, 2, Some("second"))]);
    }

    #[test]
    fn the_servers_of_a_list_share_the_time_for_connecting() {
        let timeouts = |dsn: &str| {
            let options = parse(dsn);
            [options.tcp_timeout, options.login_timeout].map(|timeout| timeout.unwrap().as_millis())
        };
        assert_eq!(timeouts("host=a"), [5_000, 10_000]);
        assert_eq!(timeouts("host=a,b"), [5_000, 5_000]);
        assert_eq!(timeouts("host=a,b,c,d"), [2_500, 2_500]);
        assert_eq!(timeouts("host=a,b,c,d connect_timeout=7"), [7_000, 7_000]);
    }

    #[test]
    fn the_pool_is_as_large_as_the_options_say() {
        assert_eq!(parse("host=h").pool, PoolSize { connections: CONNECTIONS_MAX, snapshots: SNAPSHOTS_MAX });
        assert_eq!(parse("host=h pool_size=10").pool, PoolSize { connections: 10, snapshots: 8 });
        assert_eq!(parse("host=h pool_size=2").pool, PoolSize { connections: 2, snapshots: 1 });
        assert_eq!(
            parse("host=h pool_size=9 pool_snapshots=3").pool,
            PoolSize { connections: 9, snapshots: 3 }
        );
        assert_eq!(parse("host=h").pool(3, 2).unwrap().pool, PoolSize { connections: 3, snapshots: 2 });
        for wrong in [
            "pool_size=1",
            "pool_size=0",
            "pool_size=1001",
            "pool_size=x",
            "pool_snapshots=25",
            "pool_snapshots=0",
        ] {
            assert!(reason(&format!("host=h {wrong}")).contains("pool"), "{wrong}");
        }
        assert!(parse("host=h").pool(2, 2).is_err());
    }

    #[test]
    fn a_wrong_option_is_told_the_right_one() {
        let unknown = reason("host=h sslmod=require");
        assert!(
            unknown.contains("unknown option \"sslmod\"") && unknown.contains("mean \"sslmode\"?"),
            "{unknown}"
        );
        assert!(reason("postgres://h/d?database=x").contains("mean \"dbname\"?"));
        let value = reason("host=h sslmode=hunter2");
        assert!(
            value.contains("\"sslmode\"") && value.contains("verify-full") && !value.contains("hunter2"),
            "{value}"
        );
        let variable = reason_in("host=h", &alone().variable("PGSSLMODE", "hunter2"));
        assert!(variable.contains("variable PGSSLMODE") && !variable.contains("hunter2"), "{variable}");
        assert!(reason("host=h client_encoding=LATIN1").contains("UTF8"));
        assert!(reason("host=h gssencmode=require").contains("GSSAPI"));
        for refused in [
            "sslcompression=1",
            "sslcrl=x",
            "require_auth=x",
            "requirepeer=x",
            "replication=1",
            "sslpassword=x",
        ] {
            let name = refused.split('=').next().unwrap();
            assert!(reason(&format!("host=h {refused}")).contains(name), "{refused}");
        }
    }

    #[test]
    fn channel_binding_needs_tls() {
        assert!(reason("host=h channel_binding=require sslmode=disable").contains("channel_binding"));
        assert_eq!(parse("host=h channel_binding=require").channel_binding, ChannelBinding::Require);
    }

    #[test]
    fn a_malformed_name_is_refused_and_the_password_kept() {
        let malformed = [
            "postgres://ann:hunter2@h:port/d",
            "postgres://ann:hunter2@h/d?nonsense=1",
            "postgres://ann:hunter2@h/d?sslmode",
            "host=h password=x hunter2",
            "host=h password=x hunter2=1",
            "host=h password='hunter2",
            "postgres:ann:hunter2",
            "password=hunter2 dbname=d",
            "postgres:///hunter2",
            "host=a,b port=1,2,3 password=hunter2",
            "host=a,b hostaddr=127.0.0.1 password=hunter2",
            "host=a hostaddr=hunter2",
            "host=a,, password=hunter2",
            "host=h pool_size=hunter2",
        ];
        for dsn in malformed {
            assert!(!reason(dsn).contains("hunter2"), "{dsn}");
        }
        let shown = format!("{:?}", parse("postgres://ann:hunter2@h/d?options=-chunter2%3D1"));
        assert!(shown.contains("\"h\"") && !shown.contains("hunter2"), "{shown}");
    }
}
