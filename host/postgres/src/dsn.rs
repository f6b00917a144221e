//! Data-source names of Postgres stores.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_core::backend::Backend;
use larder_core::schema::{Ledger, MigrationError, SchemaMigrator};
use larder_core::{Driver, Error, ReadOnly, Result};
use percent_encoding::percent_decode_str;
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::search_path::quoted;
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

    async fn open_read_only(&self, dsn: &str) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(ReadOnly::new(Arc::new(Postgres::open_read_only(dsn).await?))))
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
    let (dsn, schemas) = take_schemas(dsn).ok_or_else(malformed)?;
    let mut config = match dsn.parse::<Config>() {
        Ok(config) if config.get_ssl_mode() == SslMode::Require => return Err(tls_is_missing()),
        Ok(config) => config,
        Err(_) if asks_for_tls(&dsn) => return Err(tls_is_missing()),
        Err(_) => return Err(malformed()),
    };
    check_hosts(&config)?;
    pin(&mut config, &schemas)?;
    fill_in(&mut config);
    Ok(config)
}

fn malformed() -> Error {
    Error::invalid_argument(
        "malformed data-source name of a Postgres store; right are `postgres://user:password@host:5432/database` and \
         `host=… user=… password=… dbname=…`, with the options that libpq has and `schema`; in a URL, special \
         characters of a name or password are percent-encoded",
    )
}

/// Takes the schemas out of a name, as libpq has no such option: the rest, and what was given. `None` if it is malformed.
fn take_schemas(dsn: &str) -> Option<(String, Vec<String>)> {
    let is_url = dsn.starts_with("postgres://") || dsn.starts_with("postgresql://");
    if is_url { take_from_url(dsn) } else { take_from_keywords(dsn) }
}

/// A question mark can be in a password.
fn take_from_url(dsn: &str) -> Option<(String, Vec<String>)> {
    let behind_password = dsn.find('@').unwrap_or_default();
    let Some(question) = dsn.get(behind_password..)?.find('?') else {
        return Some((dsn.to_string(), Vec::new()));
    };
    let (before, options) = dsn.split_at_checked(behind_password + question)?;
    let decoded = |text| percent_decode_str(text).decode_utf8().ok().map(String::from);
    let (mut kept, mut schemas) = (Vec::new(), Vec::new());
    for option in options.strip_prefix('?')?.split('&') {
        match option.split_once('=') {
            Some((key, value)) if decoded(key)? == "schema" => schemas.push(decoded(value)?),
            _ => kept.push(option),
        }
    }
    let separator = if kept.is_empty() { "" } else { "?" };
    Some((format!("{before}{separator}{}", kept.join("&")), schemas))
}

/// A value with blanks stands in quotes; in both, a backslash precedes what is meant literally.
fn take_from_keywords(dsn: &str) -> Option<(String, Vec<String>)> {
    let (mut kept, mut schemas) = (String::new(), Vec::new());
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let begin = rest;
        let (key, behind) = rest.split_once('=')?;
        let mut value = String::new();
        let behind = behind.trim_start();
        let unquoted = behind.strip_prefix('\'');
        let mut characters = unquoted.unwrap_or(behind).chars();
        loop {
            match characters.next() {
                Some('\'') if unquoted.is_some() => break,
                Some(next) if unquoted.is_none() && next.is_whitespace() => break,
                Some('\\') => value.extend(characters.next()),
                Some(next) => value.push(next),
                None if unquoted.is_none() => break,
                None => return None,
            }
        }
        rest = characters.as_str();
        if key.trim_end() == "schema" {
            schemas.push(value);
        } else {
            kept.push_str(begin.get(..begin.len() - rest.len())?);
        }
        rest = rest.trim_start();
        kept.push(' ');
    }
    Some((kept.trim_end().to_string(), schemas))
}

/// What the server keeps of a longer name would be that of another schema.
const SCHEMA_MAX: usize = 63;

/// Makes a schema the only one of the search path.
fn pin(config: &mut Config, schemas: &[String]) -> Result<()> {
    let schema = match schemas {
        [] => return Ok(()),
        [schema] if (1..=SCHEMA_MAX).contains(&schema.len()) && schema != "$user" => schema,
        _ => {
            return Err(Error::invalid_argument(format!(
                "invalid `schema` in the data-source name of a Postgres store; give it once, as a name of 1 to \
                 {SCHEMA_MAX} bytes that is not `$user`"
            )));
        }
    };
    let mut options = config.get_options().map(|options| format!("{options} ")).unwrap_or_default();
    options.push_str("-csearch_path=");
    for next in quoted(schema).chars() {
        if next == '\\' || next.is_ascii_whitespace() {
            options.push('\\');
        }
        options.push(next);
    }
    config.options(options);
    Ok(())
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
    fn both_forms_pin_a_store_to_a_schema_and_keep_the_other_options() {
        let dsns = [
            "postgres://ann:p%3F@h/d?schema=a%22%20b&options=-c%20jit%3Doff&connect_timeout=2",
            "postgres://ann:p?@h/d?connect_timeout=2&options=-c%20jit%3Doff&%73chema=a%22+b"
                .replace('+', "%20")
                .leak(),
            "host=h schema = 'a\" b' user=ann password='p?' dbname=d options='-c jit=off' connect_timeout=2",
            "schema=a\"\\ b host=h user=ann password=p? dbname=d connect_timeout=2 options=-c\\ jit=off",
        ];
        for dsn in dsns {
            let config = parse(dsn).unwrap();
            assert_eq!(config.get_options(), Some("-c jit=off -csearch_path=\"a\"\"\\ b\""), "{dsn}");
            assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(2)), "{dsn}");
            assert_eq!((config.get_user(), config.get_password()), (Some("ann"), Some(&b"p?"[..])), "{dsn}");
            assert_eq!(config.get_dbname(), Some("d"), "{dsn}");
        }
        let alone = parse("postgres://h/d?schema=tenant_a").unwrap();
        assert_eq!(alone.get_options(), Some("-csearch_path=\"tenant_a\""));
        let quoted = parse("host=h password='x schema=no' dbname=d").unwrap();
        assert_eq!(quoted.get_options(), None);
    }

    #[test]
    fn a_schema_that_can_not_be_meant_is_refused() {
        let long = "a".repeat(64);
        for schema in ["", "$user", &long, "a&schema=b"] {
            assert!(reason(&format!("postgres://h/d?schema={schema}")).contains("`schema`"), "{schema}");
        }
        assert!(reason("host=h schema='' dbname=d").contains("`schema`"));
        assert!(reason("host=h schema=a schema=b").contains("`schema`"));
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
