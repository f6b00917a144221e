//! Tests of connecting: TLS, authentication, standbys, and servers at their connection limit.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod certificates;
mod proxy;

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use certificates::{Authority, Files, Signed};
use larder_core::error::Cause;
use larder_core::{Driver, Error, Handle, HandleOptions, Limits, Mode, OpenTransactions, Store};
use larder_postgres::tokio_postgres::error::SqlState;
use larder_postgres::tokio_postgres::{self, Client, NoTls};
use larder_postgres::{
    ConnectError, Environment, Postgres, PostgresDriver, PostgresMigrator, PostgresOptions,
};
use larder_postgres_server::PostgresServer;
use larder_schema::{Ledger, StepSet};
use libtest_mimic::{Arguments, Trial};
use proxy::{Deed, Proxy, SSL_REQUEST, acceptor};
use tokio::sync::Mutex;

/// The servers that the tests share. A server ends with the thread that started it, so the main
/// thread starts all of them.
struct Shared {
    authority: Authority,
    /// Supports TLS, with a certificate for `localhost`.
    secure: PostgresServer,
    /// Supports TLS, with an expired certificate.
    expired: PostgresServer,
    /// Does not support TLS.
    plain: PostgresServer,
    standby: PostgresServer,
    /// Accepts few connections, so only one test at a time uses it.
    small: Mutex<PostgresServer>,
}

/// `pg_hba.conf` of the servers. Some roles may connect only with TLS or only without it, and some
/// need an authentication method.
const HBA: &str = "
    local all all trust
    hostssl all scram 127.0.0.1/32 scram-sha-256
    hostssl all md5 127.0.0.1/32 md5
    hostssl all certain 127.0.0.1/32 cert
    hostssl all encrypted 127.0.0.1/32 trust
    hostnossl all clear 127.0.0.1/32 trust
    host all password 127.0.0.1/32 password
    host all larder 127.0.0.1/32 trust
";

const ROLES: &str = "
    CREATE ROLE scram LOGIN SUPERUSER PASSWORD 'secret';
    SET password_encryption = 'md5';
    CREATE ROLE md5 LOGIN SUPERUSER PASSWORD 'secret';
    CREATE ROLE password LOGIN SUPERUSER PASSWORD 'secret';
    CREATE ROLE certain LOGIN SUPERUSER;
    CREATE ROLE encrypted LOGIN SUPERUSER;
    CREATE ROLE clear LOGIN SUPERUSER;
";

impl Shared {
    fn start(runtime: &tokio::runtime::Runtime) -> Self {
        let authority = Authority::new("larder's tests");
        let with_tls = |Signed { certificate, key }: Signed| {
            let files = [
                ("server.crt", certificate.as_str()),
                ("server.key", key.as_str()),
                ("root.crt", &authority.pem()),
                ("pg_hba.conf", HBA),
            ];
            PostgresServer::start_on_tcp(&["fsync=off", "ssl=on", "ssl_ca_file=root.crt"], &files).unwrap()
        };
        let secure = with_tls(authority.server("localhost"));
        let expired = with_tls(authority.expired_server("localhost"));
        let plain = PostgresServer::start_on_tcp(&["fsync=off"], &[("pg_hba.conf", HBA)]).unwrap();
        for server in [&secure, &expired, &plain] {
            runtime.block_on(async { connect(&server.dsn()).await.batch_execute(ROLES).await.unwrap() });
        }
        let mut standby = PostgresServer::start_on_tcp(&["fsync=off"], &[]).unwrap();
        runtime.block_on(async { drop(open(&options(&standby.dsn())).await.unwrap()) });
        standby.stop();
        std::fs::write(standby.folder().join("data/standby.signal"), "").unwrap();
        standby.launch().unwrap();
        let small = PostgresServer::start_with(&["fsync=off", "max_connections=10"]).unwrap();
        Self { authority, secure, expired, plain, standby, small: Mutex::new(small) }
    }
}

fn main() {
    let arguments = Arguments::from_args();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let shared = (!arguments.list).then(|| Arc::new(Shared::start(&runtime)));
    let mut trials = Vec::new();
    macro_rules! tests {
        ($($test:ident),* $(,)?) => {
            $({
                let (shared, runtime) = (shared.clone(), runtime.handle().clone());
                trials.push(Trial::test(stringify!($test), move || {
                    runtime.block_on($test(&shared.unwrap()));
                    Ok(())
                }));
            })*
        };
    }
    tests!(
        each_sslmode_encrypts_as_libpq_does,
        a_server_that_refuses_one_kind_of_connection_is_asked_for_the_other,
        a_wrong_password_is_not_sent_again_in_the_clear,
        a_certificate_for_another_name_passes_all_but_verify_full,
        a_certificate_of_an_unknown_authority_is_refused_where_authorities_are_known,
        an_expired_certificate_is_refused_where_authorities_are_known,
        the_authorities_of_the_system_do_not_sign_for_others,
        a_role_that_needs_a_certificate_logs_in_with_one,
        a_key_that_others_can_read_is_refused,
        a_machine_in_between_that_denies_tls_is_found_out,
        a_machine_in_between_with_another_certificate_is_found_out_by_channel_binding,
        tls_begins_at_once_with_a_server_of_the_same_protocol,
        channel_binding_that_is_demanded_and_not_done_is_an_error,
        every_connection_of_a_store_is_encrypted_also_the_one_that_cancels,
        a_missing_password_is_named_with_its_user_and_host,
        a_password_comes_from_the_environment_a_file_or_a_service,
        a_driver_reads_the_environment_that_it_is_given,
        a_standby_is_refused_for_writing_and_can_be_read,
        the_server_that_is_wanted_is_found_among_several,
        settings_of_a_role_do_not_change_what_a_store_does,
        more_work_than_the_server_has_connections_for_waits_for_its_turn,
        snapshots_that_have_all_connections_of_a_full_server_give_way_to_a_commit,
        a_store_without_a_connection_waits_for_one_that_another_client_gives_up,
        a_pool_is_no_larger_than_its_options_say,
    );
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(shared);
    conclusion.exit()
}

// Helpers.

/// The files of larder's own steps.
const STEPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");

/// Opens a connection that larder does not manage. Retries if the small server still counts
/// connections that another test has just closed.
async fn connect(dsn: &str) -> Client {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match tokio_postgres::connect(dsn, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error)
                if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) && Instant::now() < deadline =>
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn options(dsn: &str) -> PostgresOptions {
    PostgresOptions::parse_with(dsn, &Environment::empty()).unwrap()
}

async fn open(options: &PostgresOptions) -> Result<Store, Error> {
    let backend = Postgres::open_with(options.clone()).await?;
    Store::builder(backend).sweep_interval(None).build()
}

fn handle(store: &Store) -> Arc<Handle> {
    let options = HandleOptions::default()
        .limits(Limits::default().transaction_timeout(Duration::from_secs(60)))
        .open_transactions(OpenTransactions::at_most(1_000));
    Arc::new(store.handle(options))
}

/// Creates a schema for one test, and returns the option that selects it.
async fn schema(server: &PostgresServer, name: &str) -> String {
    connect(&server.dsn()).await.batch_execute(&format!("CREATE SCHEMA {name}")).await.unwrap();
    format!("schema={name}")
}

/// Returns a data-source name that reaches the server over TCP.
fn over_tcp(server: &PostgresServer, user: &str) -> String {
    format!("host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user={user}", server.port().unwrap())
}

/// Whether the server reports that the connection is encrypted.
async fn is_encrypted(options: PostgresOptions) -> Result<bool, Error> {
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    options.with_connection(async |client| client.query_one(sql, &[]).await.unwrap().get(0)).await
}

/// Returns the reason for which connecting failed.
fn cause(error: &Error) -> &ConnectError {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<Cause>());
    let Some(cause) = cause.and_then(|cause| cause.downcast_ref()) else { panic!("{error:?}") };
    cause
}

fn code(error: &Error) -> &str {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<Cause>());
    let Some(cause) = cause.and_then(|cause| cause.downcast_ref::<tokio_postgres::Error>()) else {
        panic!("{error:?}")
    };
    cause.code().unwrap().code()
}

async fn refused(dsn: &str) -> Error {
    is_encrypted(options(dsn)).await.expect_err(dsn)
}

/// Polls a condition, for up to ten seconds.
async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    for _ in 0..1_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition did not become true within 10 s");
}

async fn put(handle: &Handle, key: &str, value: &str) -> Result<(), Error> {
    let mut update = handle.begin(Mode::Update)?;
    update.put("n".into(), key.into(), value.into())?;
    update.commit().await.map(drop)
}

async fn get(handle: &Handle, key: &str) -> Result<Option<Vec<u8>>, Error> {
    handle.begin(Mode::View)?.get("n".into(), key.into()).await
}

// Encryption.

async fn each_sslmode_encrypts_as_libpq_does(shared: &Shared) {
    let files = Files::new();
    let root = files.write("root.crt", &shared.authority.pem());
    let expected = [
        ("disable", Some(false), Some(false)),
        ("allow", Some(false), Some(false)),
        ("prefer", Some(true), Some(false)),
        ("require", Some(true), None),
        ("verify-ca", Some(true), None),
        ("verify-full", Some(true), None),
    ];
    for (mode, with_tls, without) in expected {
        for (server, encrypted) in [(&shared.secure, with_tls), (&shared.plain, without)] {
            let dsn = format!("{} sslmode={mode} sslrootcert={root}", over_tcp(server, "larder"));
            match (encrypted, is_encrypted(options(&dsn)).await) {
                (Some(expected), found) => assert_eq!(found.unwrap(), expected, "{dsn}"),
                (None, found) => {
                    let error = found.expect_err(&dsn);
                    assert!(matches!(error, Error::Other { .. }), "{error:?}");
                    let ConnectError::TlsNotOffered { host } = cause(&error) else { panic!("{error:?}") };
                    assert_eq!(host, "localhost");
                }
            }
        }
        // A Unix-domain socket is never encrypted, whatever `sslmode` is.
        let dsn = format!("{} sslmode={mode} sslrootcert={root}", shared.secure.dsn());
        assert!(!is_encrypted(options(&dsn)).await.unwrap(), "{dsn}");
    }
    assert!(is_encrypted(options(&over_tcp(&shared.secure, "larder"))).await.unwrap(), "by default");
    for versions in ["ssl_max_protocol_version=TLSv1.2", "ssl_min_protocol_version=TLSv1.3", "sslsni=0"] {
        let dsn = format!(
            "{} sslmode=verify-full sslrootcert={root} {versions}",
            over_tcp(&shared.secure, "larder")
        );
        assert!(is_encrypted(options(&dsn)).await.unwrap(), "{versions}");
    }
}

async fn a_server_that_refuses_one_kind_of_connection_is_asked_for_the_other(shared: &Shared) {
    for (user, mode, encrypted) in [
        ("encrypted", "allow", Some(true)),
        ("encrypted", "prefer", Some(true)),
        ("encrypted", "disable", None),
        ("clear", "allow", Some(false)),
        ("clear", "prefer", Some(false)),
        ("clear", "require", None),
    ] {
        let dsn = format!("{} sslmode={mode}", over_tcp(&shared.secure, user));
        match (encrypted, is_encrypted(options(&dsn)).await) {
            (Some(expected), found) => assert_eq!(found.unwrap(), expected, "{dsn}"),
            (None, found) => assert_eq!(code(&found.expect_err(&dsn)), "28000", "{dsn}"),
        }
    }
    // If the server does not support TLS, its first error is reported.
    let dsn = format!("{} sslmode=allow", over_tcp(&shared.plain, "encrypted"));
    assert_eq!(code(&refused(&dsn).await), "28000");
}

async fn a_wrong_password_is_not_sent_again_in_the_clear(shared: &Shared) {
    for (mode, first) in [("prefer", true), ("allow", false)] {
        let proxy = Proxy::start(shared.secure.port().unwrap(), Deed::Pass).await;
        let dsn = format!(
            "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user=password password=wrong sslmode={mode}",
            proxy.port
        );
        let error = refused(&dsn).await;
        assert_eq!(code(&error), "28P01");
        let seen = proxy.seen();
        assert_eq!((seen.len(), seen[0] == SSL_REQUEST), (1, first), "{mode}");
    }
}

// Certificates.

async fn a_certificate_for_another_name_passes_all_but_verify_full(shared: &Shared) {
    let files = Files::new();
    let root = files.write("root.crt", &shared.authority.pem());
    let dsn = over_tcp(&shared.secure, "larder").replace("host=localhost", "host=other.example");
    for mode in ["require", "verify-ca"] {
        assert!(
            is_encrypted(options(&format!("{dsn} sslmode={mode} sslrootcert={root}"))).await.unwrap(),
            "{mode}"
        );
    }
    let error = refused(&format!("{dsn} sslmode=verify-full sslrootcert={root}")).await;
    let ConnectError::TlsFailed { host, cause } = cause(&error) else { panic!("{error:?}") };
    assert_eq!(host, "other.example");
    let cause = cause.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    let rustls::Error::InvalidCertificate(cause) = cause else { panic!("{cause:?}") };
    assert!(matches!(cause, rustls::CertificateError::NotValidForNameContext { .. }), "{cause:?}");
}

fn certificate_error(error: &Error) -> rustls::CertificateError {
    let ConnectError::TlsFailed { cause, .. } = cause(error) else { panic!("{error:?}") };
    let cause = cause.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap();
    let rustls::Error::InvalidCertificate(cause) = cause else { panic!("{cause:?}") };
    cause.clone()
}

async fn a_certificate_of_an_unknown_authority_is_refused_where_authorities_are_known(shared: &Shared) {
    let files = Files::new();
    let root = files.write("root.crt", &Authority::new("another").pem());
    let dsn = over_tcp(&shared.secure, "larder");
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = refused(&format!("{dsn} sslmode={mode} sslrootcert={root}")).await;
        assert_eq!(certificate_error(&error), rustls::CertificateError::UnknownIssuer, "{mode}");
    }
    // As in libpq, `prefer` continues without TLS.
    assert!(!is_encrypted(options(&format!("{dsn} sslmode=prefer sslrootcert={root}"))).await.unwrap());
    // The file in the home directory is used as if `sslrootcert` named it.
    files.write(".postgresql/root.crt", &Authority::new("another").pem());
    let at_home = Environment::empty().home(files.folder());
    let at_home = PostgresOptions::parse_with(&format!("{dsn} sslmode=require"), &at_home).unwrap();
    let error = is_encrypted(at_home).await.unwrap_err();
    assert_eq!(certificate_error(&error), rustls::CertificateError::UnknownIssuer);
    assert!(
        is_encrypted(options(&format!("{dsn} sslmode=require"))).await.unwrap(),
        "without root certificates"
    );
    let unread = PostgresOptions::parse_with(&format!("{dsn} sslmode=verify-ca"), &Environment::empty());
    assert!(matches!(unread, Err(Error::InvalidArgument(_))), "{unread:?}");
    let missing = format!("{dsn} sslmode=require sslrootcert={root}.missing");
    let missing = PostgresOptions::parse_with(&missing, &Environment::empty());
    assert!(matches!(missing, Err(Error::Other { .. })), "{missing:?}");
}

async fn an_expired_certificate_is_refused_where_authorities_are_known(shared: &Shared) {
    let files = Files::new();
    let root = files.write("root.crt", &shared.authority.pem());
    let dsn = over_tcp(&shared.expired, "larder");
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = refused(&format!("{dsn} sslmode={mode} sslrootcert={root}")).await;
        let cause = certificate_error(&error);
        assert!(matches!(cause, rustls::CertificateError::ExpiredContext { .. }), "{cause:?}");
    }
    assert!(
        is_encrypted(options(&format!("{dsn} sslmode=require"))).await.unwrap(),
        "without root certificates"
    );
}

async fn the_authorities_of_the_system_do_not_sign_for_others(shared: &Shared) {
    let dsn = format!("{} sslrootcert=system", over_tcp(&shared.secure, "larder"));
    let weak = PostgresOptions::parse_with(&format!("{dsn} sslmode=require"), &Environment::empty());
    let Err(Error::InvalidArgument(reason)) = weak else { panic!("{weak:?}") };
    assert!(reason.contains("verify-full"), "{reason}");
    match PostgresOptions::parse_with(&dsn, &Environment::empty()) {
        Ok(options) => {
            let error = is_encrypted(options).await.expect_err("sslrootcert=system implies verify-full");
            assert_eq!(certificate_error(&error), rustls::CertificateError::UnknownIssuer);
        }
        // The machine has no root certificates.
        Err(Error::Other { reason, .. }) => assert!(reason.contains("no authority"), "{reason}"),
        Err(error) => panic!("{error:?}"),
    }
}

async fn a_role_that_needs_a_certificate_logs_in_with_one(shared: &Shared) {
    let files = Files::new();
    let root = files.write("root.crt", &shared.authority.pem());
    let Signed { certificate, key } = shared.authority.client("certain");
    let (crt, key_file) = (files.write("client.crt", &certificate), files.write("client.key", &key));
    let dsn = format!("{} sslmode=verify-full sslrootcert={root}", over_tcp(&shared.secure, "certain"));
    let with_certificate = format!("{dsn} sslcert={crt} sslkey={key_file}");
    assert!(is_encrypted(options(&with_certificate)).await.unwrap());
    assert_eq!(code(&refused(&dsn).await), "28000");
    assert_eq!(code(&refused(&format!("{with_certificate} sslcertmode=disable")).await), "28000");

    files.write(".postgresql/postgresql.crt", &certificate);
    files.write(".postgresql/postgresql.key", &key);
    let at_home = PostgresOptions::parse_with(&dsn, &Environment::empty().home(files.folder())).unwrap();
    assert!(is_encrypted(at_home).await.unwrap(), "from the default files");

    let Signed { certificate, key } = shared.authority.client("other");
    let (crt, key) = (files.write("other.crt", &certificate), files.write("other.key", &key));
    assert_eq!(code(&refused(&format!("{dsn} sslcert={crt} sslkey={key}")).await), "28000");
    let apart = format!("{dsn} sslcert={crt} sslkey={key_file}");
    let apart = PostgresOptions::parse_with(&apart, &Environment::empty());
    assert!(matches!(apart, Err(Error::Other { .. })), "{apart:?}");

    // The server rejects a client certificate of an unknown CA. The client sees that only when it
    // reads.
    let Signed { certificate, key } = Authority::new("another").client("certain");
    let (crt, key) = (files.write("strange.crt", &certificate), files.write("strange.key", &key));
    let error = refused(&format!("{dsn} sslcert={crt} sslkey={key}")).await;
    assert!(matches!(cause(&error), ConnectError::TlsFailed { .. }), "{error:?}");
    assert!(matches!(error, Error::Other { .. }), "{error:?}");
}

async fn a_key_that_others_can_read_is_refused(shared: &Shared) {
    let files = Files::new();
    let Signed { certificate, key } = shared.authority.client("certain");
    let (crt, key) = (files.write("client.crt", &certificate), files.write("client.key", &key));
    let dsn = format!("{} sslmode=require sslcert={crt} sslkey={key}", over_tcp(&shared.secure, "certain"));
    for mode in [0o644, 0o660, 0o604] {
        files.permit("client.key", mode);
        let outcome = PostgresOptions::parse_with(&dsn, &Environment::empty());
        let Err(Error::InvalidArgument(reason)) = outcome else { panic!("{mode:o}: {outcome:?}") };
        assert!(reason.contains("\"sslkey\"") && reason.contains("0600"), "{reason}");
    }
    files.permit("client.key", 0o400);
    assert!(is_encrypted(options(&dsn)).await.unwrap());
}

// Attackers on the network.

async fn a_machine_in_between_that_denies_tls_is_found_out(shared: &Shared) {
    let files = Files::new();
    let root = files.write("root.crt", &shared.authority.pem());
    let proxy = Proxy::start(shared.secure.port().unwrap(), Deed::DenyTls).await;
    let through = |port: u16, mode: &str| {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={port} dbname=postgres user=larder sslmode={mode} sslrootcert={root}"
        )
    };
    for mode in ["require", "verify-ca", "verify-full"] {
        let error = refused(&through(proxy.port, mode)).await;
        assert!(matches!(cause(&error), ConnectError::TlsNotOffered { .. }), "{mode}: {error:?}");
    }
    assert_eq!(
        proxy.seen(),
        [SSL_REQUEST; 3],
        "the client sent something other than SSLRequest in clear text"
    );
    assert!(!is_encrypted(options(&through(proxy.port, "prefer"))).await.unwrap());

    let proxy = Proxy::start(shared.secure.port().unwrap(), Deed::Error).await;
    let error = refused(&through(proxy.port, "require")).await;
    assert!(matches!(cause(&error), ConnectError::TlsFailed { .. }), "{error:?}");
    assert!(!is_encrypted(options(&through(proxy.port, "prefer"))).await.unwrap());
}

async fn a_machine_in_between_with_another_certificate_is_found_out_by_channel_binding(shared: &Shared) {
    let other = Authority::new("another").server("localhost");
    let proxy = Proxy::start(shared.secure.port().unwrap(), Deed::Intercept(acceptor(&other, &[]))).await;
    let through = |binding: &str| {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user=scram password=secret sslmode=require \
             channel_binding={binding}",
            proxy.port
        )
    };
    // Without channel binding, the attacker can read everything.
    assert!(is_encrypted(options(&through("disable"))).await.unwrap());
    for binding in ["prefer", "require"] {
        assert_eq!(code(&refused(&through(binding)).await), "28000", "{binding}");
    }
}

async fn tls_begins_at_once_with_a_server_of_the_same_protocol(shared: &Shared) {
    let files = Files::new();
    let root = files.write("root.crt", &shared.authority.pem());
    let certificate = shared.authority.server("localhost");
    let through = async |protocols: &[&[u8]]| {
        let proxy =
            Proxy::start(shared.secure.port().unwrap(), Deed::Direct(acceptor(&certificate, protocols)))
                .await;
        let dsn = format!(
            "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user=larder sslmode=verify-full sslrootcert={root} \
             sslnegotiation=direct",
            proxy.port
        );
        is_encrypted(options(&dsn)).await
    };
    assert!(through(&[b"postgresql"]).await.unwrap());
    let error = through(&[]).await.unwrap_err();
    assert!(matches!(cause(&error), ConnectError::TlsNotOffered { .. }), "{error:?}");
    let error = through(&[b"http/1.1"]).await.unwrap_err();
    assert!(matches!(cause(&error), ConnectError::TlsFailed { .. }), "{error:?}");
    let dsn = format!("{} sslmode=require sslnegotiation=direct", over_tcp(&shared.secure, "larder"));
    let client = connect(&shared.secure.dsn()).await;
    let release = "SELECT current_setting('server_version_num')::int";
    if client.query_one(release, &[]).await.unwrap().get::<_, i32>(0) >= 170_000 {
        assert!(is_encrypted(options(&dsn)).await.unwrap());
    } else {
        // The server takes the start of the TLS handshake for a message that is too long.
        let error = refused(&dsn).await;
        assert!(matches!(cause(&error), ConnectError::TlsFailed { .. }), "{error:?}");
    }
}

async fn channel_binding_that_is_demanded_and_not_done_is_an_error(shared: &Shared) {
    for binding in ["disable", "prefer", "require"] {
        let dsn = format!("{} password=secret channel_binding={binding}", over_tcp(&shared.secure, "scram"));
        assert!(is_encrypted(options(&dsn)).await.unwrap(), "{binding}");
    }
    for (server, user) in [(&shared.secure, "md5"), (&shared.secure, "larder"), (&shared.plain, "password")] {
        let dsn = format!("{} password=secret channel_binding=require", over_tcp(server, user));
        let error = refused(&dsn).await;
        assert!(matches!(cause(&error), ConnectError::ChannelBindingMissing { .. }), "{user}: {error:?}");
        assert!(is_encrypted(options(&dsn.replace("=require", "=prefer"))).await.is_ok(), "{user}");
    }
}

async fn every_connection_of_a_store_is_encrypted_also_the_one_that_cancels(shared: &Shared) {
    let proxy = Proxy::start(shared.secure.port().unwrap(), Deed::Pass).await;
    let schema = schema(&shared.secure, "cancels").await;
    let dsn = format!(
        "host=localhost hostaddr=127.0.0.1 port={} dbname=postgres user=scram password=secret sslmode=require {schema} \
         application_name=cancels",
        proxy.port
    );
    let store = open(&options(&dsn)).await.unwrap();
    let handle = handle(&store);
    put(&handle, "key", "value").await.unwrap();
    let observer = connect(&shared.secure.dsn()).await;
    let sql = "SELECT bool_and(ssl), count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
               WHERE application_name = 'cancels'";
    let row = observer.query_one(sql, &[]).await.unwrap();
    assert!(row.get::<_, bool>(0) && row.get::<_, i64>(1) > 0);

    observer.batch_execute("BEGIN; LOCK TABLE cancels.larder_entries").await.unwrap();
    let before = proxy.seen().len();
    let reading = tokio::spawn({
        let handle = handle.clone();
        async move { get(&handle, "key").await }
    });
    let watcher = connect(&shared.secure.dsn()).await;
    let waiting = "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'cancels' AND wait_event_type = 'Lock'";
    until(async || watcher.query_one(waiting, &[]).await.unwrap().get(0)).await;
    reading.abort();
    until(async || proxy.seen().len() > before).await;
    let waiting = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'cancels' AND wait_event_type = 'Lock'";
    until(async || watcher.query_one(waiting, &[]).await.unwrap().get(0)).await;
    observer.batch_execute("ROLLBACK").await.unwrap();
    assert_eq!(get(&handle, "key").await.unwrap().as_deref(), Some(&b"value"[..]));
    assert!(proxy.seen().iter().all(|first| *first == SSL_REQUEST), "{:?}", proxy.seen());
}

// Passwords.

async fn a_missing_password_is_named_with_its_user_and_host(shared: &Shared) {
    for user in ["scram", "md5", "password"] {
        let error = open(&options(&over_tcp(&shared.secure, user))).await.err().unwrap();
        let Error::Other { reason, .. } = &error else { panic!("{error:?}") };
        assert_eq!(reason, "larder has no password for the database");
        let told = cause(&error).to_string();
        let ConnectError::MissingPassword { user: of, host, ignored_file: None, .. } = cause(&error) else {
            panic!("{error:?}")
        };
        assert_eq!((of.as_str(), host.as_str()), (user, "localhost"));
        assert!(told.contains("PGPASSWORD") && told.contains("passfile"), "{told}");
    }
    let files = Files::new();
    let path = files.write("pgpass", "*:*:*:*:secret");
    files.permit("pgpass", 0o644);
    let error = refused(&format!("{} passfile={path}", over_tcp(&shared.secure, "scram"))).await;
    assert!(cause(&error).to_string().contains("0600"), "{}", cause(&error));
    // The client sent nothing that the server could reject.
    let bound = refused(&format!("{} channel_binding=require", over_tcp(&shared.secure, "md5"))).await;
    assert!(matches!(cause(&bound), ConnectError::MissingPassword { .. }), "{bound:?}");
}

async fn a_password_comes_from_the_environment_a_file_or_a_service(shared: &Shared) {
    let files = Files::new();
    let port = shared.secure.port().unwrap();
    let passfile = files.write("pgpass", &format!("localhost:{port}:postgres:scram:secret\n"));
    let services = format!(
        "[plugins]\nhost=localhost\nhostaddr=127.0.0.1\nport={port}\ndbname=postgres\nuser=scram\npassword=secret\n"
    );
    let services = files.write("services", &services);
    let dsn = over_tcp(&shared.secure, "scram");
    let environment = Environment::empty;
    for (dsn, environment) in [
        (dsn.as_str(), environment().variable("PGPASSWORD", "secret")),
        (dsn.as_str(), environment().variable("PGPASSFILE", &passfile)),
        (&format!("{dsn} passfile={passfile}"), environment()),
        ("service=plugins", environment().variable("PGSERVICEFILE", &services)),
        ("postgres://", environment().variable("PGSERVICEFILE", &services).variable("PGSERVICE", "plugins")),
    ] {
        let options = PostgresOptions::parse_with(dsn, &environment).unwrap();
        assert!(is_encrypted(options).await.unwrap(), "{dsn}");
    }
    let wrong = environment().variable("PGPASSWORD", "wrong");
    let error = is_encrypted(PostgresOptions::parse_with(&dsn, &wrong).unwrap()).await.unwrap_err();
    assert_eq!(code(&error), "28P01");
}

async fn a_driver_reads_the_environment_that_it_is_given(shared: &Shared) {
    let schema = schema(&shared.secure, "driver").await;
    let environment = Environment::empty()
        .variable("PGHOST", shared.secure.folder().display().to_string())
        .variable("PGPORT", shared.secure.port().unwrap().to_string())
        .variable("PGDATABASE", "postgres")
        .variable("PGUSER", "larder");
    let driver = PostgresDriver::with_environment(environment);
    let backend = driver.open(&schema).await.unwrap();
    backend.ping().await.unwrap();
    assert!(driver.migrator(&schema).unwrap().unwrap().status().await.unwrap().pending.is_empty());
    let alone = PostgresDriver::with_environment(Environment::empty());
    let Err(Error::InvalidArgument(reason)) = alone.open(&schema).await else { panic!("opened") };
    assert!(reason.contains("PGUSER"), "{reason}");
}

// Standbys and lists of servers.

async fn a_standby_is_refused_for_writing_and_can_be_read(shared: &Shared) {
    let dsn = over_tcp(&shared.standby, "larder");
    connect(&shared.plain.dsn()).await;
    for dsn in [dsn.clone(), format!("{dsn} options='-c default_transaction_isolation=serializable'")] {
        let error = open(&options(&dsn)).await.err().unwrap();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        let ConnectError::Standby { host } = cause(&error) else { panic!("{error:?}") };
        assert_eq!(host, "localhost");
        let driver = PostgresDriver::with_environment(Environment::empty());
        let backend = driver.open_read_only(&dsn).await.unwrap();
        let store = Store::builder_shared(backend).sweep_interval(None).build().unwrap();
        assert_eq!(get(&handle(&store), "key").await.unwrap(), None);
    }
}

async fn the_server_that_is_wanted_is_found_among_several(shared: &Shared) {
    let (standby, primary) = (shared.standby.port().unwrap(), shared.plain.port().unwrap());
    let port = async |ports: &str, wanted: &str| {
        let dsn = format!(
            "host=localhost,localhost hostaddr=127.0.0.1,127.0.0.1 port={ports} dbname=postgres user=larder \
             target_session_attrs={wanted}"
        );
        let steps = StepSet::from_folder(STEPS).unwrap();
        let migrator = PostgresMigrator::with_options(options(&dsn), steps, Ledger::larder());
        let sql = "SELECT inet_server_port()";
        let port = migrator
            .with_connection(async |client| client.query_one(sql, &[]).await.unwrap().get::<_, i32>(0));
        port.await.map(|port| u16::try_from(port).unwrap())
    };
    for ports in [format!("{standby},{primary}"), format!("{primary},{standby}")] {
        for (wanted, found) in [
            ("read-write", primary),
            ("primary", primary),
            ("read-only", standby),
            ("standby", standby),
            ("prefer-standby", standby),
        ] {
            assert_eq!(port(&ports, wanted).await.unwrap(), found, "{ports} {wanted}");
        }
    }
    assert_eq!(port(&format!("{standby},{primary}"), "any").await.unwrap(), standby);
    assert_eq!(port(&format!("{primary},{primary}"), "prefer-standby").await.unwrap(), primary);
    let error = port(&format!("{standby},{standby}"), "read-write").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let ConnectError::OtherTarget { wanted, .. } = cause(&error) else { panic!("{error:?}") };
    assert_eq!(*wanted, "read-write");
    // A server that cannot be reached is skipped.
    assert_eq!(port(&format!("1,{primary}"), "any").await.unwrap(), primary);

    // An address of a host without a listener, and a host name without an address, are skipped too.
    let by_name = format!("host=localhost port={primary} dbname=postgres user=larder");
    is_encrypted(options(&by_name)).await.unwrap();
    is_encrypted(options(&by_name.replace("host=localhost", "host=no..name,localhost"))).await.unwrap();
    let error = refused(&by_name.replace("host=localhost", "host=no..name")).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    let ConnectError::HostNotFound { host, .. } = cause(&error) else { panic!("{error:?}") };
    assert_eq!(host, "no..name");
}

// Settings and connection limits of a server.

async fn settings_of_a_role_do_not_change_what_a_store_does(shared: &Shared) {
    let observer = connect(&shared.plain.dsn()).await;
    observer
        .batch_execute(
            "CREATE ROLE odd LOGIN; CREATE SCHEMA odd AUTHORIZATION odd;
             ALTER ROLE odd SET default_transaction_read_only = on;
             ALTER ROLE odd SET default_transaction_deferrable = on;
             ALTER ROLE odd SET default_transaction_isolation = serializable;
             ALTER ROLE odd SET statement_timeout = '100ms';
             ALTER ROLE odd SET lock_timeout = '100ms'",
        )
        .await
        .unwrap();
    let dsn = shared.plain.dsn().replace("user=larder", "user=odd");
    let store = open(&options(&format!("{dsn} schema=odd application_name=odd"))).await.unwrap();
    let handle = handle(&store);
    put(&handle, "a", "1").await.unwrap();
    put(&handle, "b", "1").await.unwrap();
    let mut update = handle.begin(Mode::Update).unwrap();
    for key in ["a", "b"] {
        assert_eq!(update.get("n".into(), key.into()).await.unwrap().as_deref(), Some(&b"1"[..]));
        update.put("n".into(), key.into(), b"2".to_vec()).unwrap();
    }
    // A deferrable view would wait until the update ends.
    assert_eq!(get(&handle, "a").await.unwrap().as_deref(), Some(&b"1"[..]));
    update.commit().await.unwrap();
    assert_eq!(get(&handle, "b").await.unwrap().as_deref(), Some(&b"2"[..]));
    store.sweep().await.unwrap();

    // A commit that waits longer than the role's timeouts.
    observer.batch_execute("BEGIN; LOCK TABLE odd.larder_entries").await.unwrap();
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { put(&handle, "a", "3").await }
    });
    let watcher = connect(&shared.plain.dsn()).await;
    let waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE application_name = 'odd' AND wait_event_type = 'Lock'
                 AND clock_timestamp() - query_start > interval '300ms'";
    until(async || watcher.query_one(waits, &[]).await.unwrap().get(0)).await;
    observer.batch_execute("ROLLBACK").await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(get(&handle, "a").await.unwrap().as_deref(), Some(&b"3"[..]));
}

async fn more_work_than_the_server_has_connections_for_waits_for_its_turn(shared: &Shared) {
    let server = shared.small.lock().await;
    let schema = schema(&server, "crowded").await;
    let store = open(&options(&format!("{} {schema}", server.dsn()))).await.unwrap();
    let handle = handle(&store);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..60 {
        let handle = handle.clone();
        tasks.spawn(async move {
            let key = format!("{number}");
            put(&handle, &key, "1").await?;
            // After two reads, the update holds a connection.
            loop {
                let mut update = handle.begin(Mode::Update)?;
                let read = async {
                    update.get("n".into(), key.as_str().into()).await?;
                    update.get("n".into(), "other".into()).await
                };
                let outcome = match read.await {
                    Ok(_) => {
                        update.put("n".into(), key.as_str().into(), b"2".to_vec())?;
                        update.commit().await.map(drop)
                    }
                    Err(error) => Err(error),
                };
                match outcome {
                    Err(Error::Conflict) => {}
                    outcome => break outcome,
                }
            }?;
            get(&handle, &key).await
        });
    }
    for outcome in tasks.join_all().await {
        assert_eq!(outcome.unwrap().as_deref(), Some(&b"2"[..]));
    }
}

async fn snapshots_that_have_all_connections_of_a_full_server_give_way_to_a_commit(shared: &Shared) {
    let server = shared.small.lock().await;
    let schema = schema(&server, "held").await;
    let store = open(&options(&format!("{} {schema}", server.dsn()))).await.unwrap();
    let handle = handle(&store);
    let mut views = Vec::new();
    // More than the server accepts.
    for _ in 0..12 {
        let mut view = handle.begin(Mode::View).unwrap();
        view.get("n".into(), "key".into()).await.unwrap();
        views.push(view);
    }
    put(&handle, "key", "value").await.unwrap();
    assert_eq!(get(&handle, "key").await.unwrap().as_deref(), Some(&b"value"[..]));
    drop(views);
}

async fn a_store_without_a_connection_waits_for_one_that_another_client_gives_up(shared: &Shared) {
    let server = shared.small.lock().await;
    let schema = schema(&server, "starved").await;
    let store = open(&options(&format!("{} {schema} application_name=starved", server.dsn()))).await.unwrap();
    let handle = handle(&store);
    put(&handle, "key", "1").await.unwrap();

    let observer = connect(&server.dsn()).await;
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'starved'";
    observer.execute(ended, &[]).await.unwrap();
    let gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'starved'";
    until(async || observer.query_one(gone, &[]).await.unwrap().get(0)).await;
    let mut others = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&server.dsn(), NoTls).await {
        tokio::spawn(connection);
        others.push(client);
    }
    let refusals = || {
        let log = std::fs::read_to_string(server.folder().join("log")).unwrap();
        log.matches("too many clients").count()
    };
    let before = refusals();
    // A read, because the outcome of a write on a connection that has just been closed is unknown.
    let reading = tokio::spawn({
        let handle = handle.clone();
        async move { get(&handle, "key").await }
    });
    // larder retries.
    until(async || refusals() >= before + 3 || reading.is_finished()).await;
    drop(others);
    assert_eq!(reading.await.unwrap().unwrap().as_deref(), Some(&b"1"[..]));
}

async fn a_pool_is_no_larger_than_its_options_say(shared: &Shared) {
    let schema = schema(&shared.plain, "pooled").await;
    let dsn = format!("{} {schema} application_name=pooled pool_size=3", shared.plain.dsn());
    let store = open(&options(&dsn)).await.unwrap();
    let handle = handle(&store);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..30 {
        let handle = handle.clone();
        tasks.spawn(async move {
            put(&handle, &number.to_string(), "value").await?;
            get(&handle, &number.to_string()).await
        });
    }
    for outcome in tasks.join_all().await {
        assert_eq!(outcome.unwrap().as_deref(), Some(&b"value"[..]));
    }
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pooled'";
    let count: i64 = connect(&shared.plain.dsn()).await.query_one(sql, &[]).await.unwrap().get(0);
    assert!((1..=3).contains(&count), "{count}");
}
