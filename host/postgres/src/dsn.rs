//! Data-source names of Postgres stores.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::backend::Backend;
use larder_core::schema::{Ledger, MigrationError, SchemaMigrator};
use larder_core::{Driver, Error, Result};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::{Postgres, PostgresMigrator, migrate};

/// Opens `postgres://…`, `postgresql://…` and `host=… dbname=…`. The crate's documentation has the forms.
///
/// ```
/// use larder_core::Drivers;
/// use larder_postgres::PostgresDriver;
///
/// let mut drivers = Drivers::new();
/// drivers.register(PostgresDriver)?;
/// assert_eq!(drivers.names(), ["postgres"]);
/// # Ok::<(), larder_core::DriverError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct PostgresDriver;

#[async_trait]
impl Driver for PostgresDriver {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn accepts(&self, dsn: &str) -> bool {
        dsn.starts_with("postgres:") || dsn.starts_with("postgresql:") || begins_with_keyword(dsn)
    }

    async fn open(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(Postgres::open(dsn).await?))
    }

    fn migrator(&self, dsn: &str) -> Result<Option<Box<dyn SchemaMigrator>>> {
        let steps = migrate::steps().map_err(MigrationError::from)?;
        Ok(Some(Box::new(PostgresMigrator::new(dsn, steps, Ledger::larder())?)))
    }
}

fn begins_with_keyword(dsn: &str) -> bool {
    dsn.split_once('=').is_some_and(|(word, _)| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    })
}

/// How long one address may take to answer, where the name doesn't say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may go unanswered by the other machine before it counts as dead. The system's own
/// default is hours.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What tokio-postgres has where a data-source name doesn't set `keepalives_idle`.
const KEEPALIVES_IDLE_UNSET: Duration = Duration::from_secs(2 * 60 * 60);

/// Reads a data-source name. No error repeats a part of it: a misplaced quote can make a password of any part.
pub(crate) fn parse(dsn: &str) -> Result<Config> {
    let mut config = match dsn.parse::<Config>() {
        Ok(config) if config.get_ssl_mode() == SslMode::Require => return Err(tls_is_missing()),
        Ok(config) => config,
        Err(_) if asks_for_tls(dsn) => return Err(tls_is_missing()),
        Err(_) => {
            return Err(Error::invalid_argument(
                "malformed data-source name of a Postgres store; right are \
                 `postgres://user:password@host:5432/database` and `host=… user=… password=… dbname=…`, with the \
                 options that libpq has; in a URL, special characters of a name or password are percent-encoded",
            ));
        }
    };
    check_hosts(&config)?;
    fill_in(&mut config);
    Ok(config)
}

fn check_hosts(config: &Config) -> Result<()> {
    let (hosts, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
    if hosts == 0 && addresses == 0 {
        return Err(Error::invalid_argument(
            "the data-source name of a Postgres store names no host; a socket's folder is one too: \
             `host=/run/postgresql`",
        ));
    }
    if hosts != 0 && addresses != 0 && hosts != addresses {
        return Err(Error::invalid_argument(
            "the data-source name of a Postgres store gives `host` and `hostaddr` in different numbers",
        ));
    }
    if config.get_ports().len() > 1 && config.get_ports().len() != hosts.max(addresses) {
        return Err(Error::invalid_argument(
            "the data-source name of a Postgres store gives `port` neither once nor for each host",
        ));
    }
    Ok(())
}

/// Sets what the name leaves open.
fn fill_in(config: &mut Config) {
    if config.get_application_name().is_none() {
        config.application_name("larder");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(SILENCE_MAX);
    }
    if config.get_keepalives_idle() == KEEPALIVES_IDLE_UNSET {
        config.keepalives_idle(SILENCE_MAX);
    }
}

/// Whether a name that could not be read has one of libpq's modes that need TLS.
fn asks_for_tls(dsn: &str) -> bool {
    dsn.split(|separator: char| separator.is_whitespace() || matches!(separator, '?' | '&'))
        .filter_map(|option| option.strip_prefix("sslmode="))
        .any(|mode| matches!(mode.trim_matches('\''), "require" | "verify-ca" | "verify-full"))
}

fn tls_is_missing() -> Error {
    Error::invalid_argument(
        "this build of larder connects to Postgres without TLS; `sslmode` can be `disable` or `prefer`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_postgres::config::Host;

    fn reason(dsn: &str) -> String {
        let Err(Error::InvalidArgument(reason)) = parse(dsn) else { panic!("accepted {dsn}") };
        reason
    }

    #[test]
    fn the_driver_takes_urls_and_keywords_and_nothing_else() {
        let taken =
            ["postgres://h/d", "postgresql://h/d", "host=h dbname=d", "application_name=x", "postgres:h"];
        for dsn in taken {
            assert!(PostgresDriver.accepts(dsn), "{dsn}");
        }
        for dsn in ["memory:", "sqlite:a=b", "", "=", "mysql://h/d?a=b", "plugins.db", "Host=h"] {
            assert!(!PostgresDriver.accepts(dsn), "{dsn}");
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let url = parse("postgres://ann:s%40cret@db:5433/plugins?options=-c%20search_path%3Dt").unwrap();
        let keywords =
            parse("host=db port=5433 user=ann password=s@cret dbname=plugins options='-c search_path=t'")
                .unwrap();
        assert_eq!(url, keywords);
        assert_eq!(url.get_hosts(), [Host::Tcp("db".to_string())]);
        assert_eq!(url.get_options(), Some("-c search_path=t"));
        assert_eq!(url.get_application_name(), Some("larder"));
    }

    #[test]
    fn what_the_name_sets_is_kept() {
        let config = parse("postgres://h/d?application_name=a&connect_timeout=2&keepalives_idle=9").unwrap();
        assert_eq!(config.get_application_name(), Some("a"));
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(2)));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(9));
    }

    #[test]
    fn modes_that_need_tls_are_refused_by_name() {
        for mode in ["require", "verify-ca", "verify-full"] {
            for dsn in [format!("postgres://h/d?sslmode={mode}"), format!("host=h sslmode={mode}")] {
                assert!(reason(&dsn).contains("without TLS"), "{dsn}");
            }
        }
        for mode in ["disable", "prefer"] {
            parse(&format!("postgres://h/d?sslmode={mode}")).unwrap();
        }
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
        ];
        for dsn in malformed {
            assert!(!reason(dsn).contains("hunter2"), "{dsn}");
        }
    }
}
