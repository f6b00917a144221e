//! Parser for data-source names: connection URIs and keyword/value strings, as libpq defines them.

use larder_core::{Error, Result};
use percent_encoding::percent_decode_str;

/// Parses a data-source name into its options, in order.
///
/// The error never repeats a part of the name, because a misplaced quote can make any part a
/// password.
///
/// # Errors
/// [`Error::InvalidArgument`] if the name is malformed.
pub(crate) fn pairs(dsn: &str) -> Result<Vec<(String, String)>> {
    let rest = dsn.strip_prefix("postgres://").or_else(|| dsn.strip_prefix("postgresql://"));
    let pairs = match rest {
        Some(rest) => url(rest),
        None => keywords(dsn),
    };
    pairs.ok_or_else(malformed)
}

fn malformed() -> Error {
    Error::invalid_argument(
        "malformed data-source name of a Postgres store; use `postgres://user:password@host:5432/database` or \
         `host=… user=… password=… dbname=…` with the options in docs/postgres.md, and percent-encode special \
         characters in a URL",
    )
}

/// Parses `name=value` pairs. Single quotes enclose a value with spaces, and a backslash escapes
/// the next character.
fn keywords(dsn: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let (key, behind) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
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
        pairs.push((key.to_string(), value));
        rest = characters.as_str().trim_start();
    }
    Some(pairs)
}

/// Parses a URL without its scheme.
fn url(rest: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut push = |name: &str, value: String| pairs.push((name.to_string(), value));
    // The password may contain a question mark, so the user and password are split off first. They
    // contain no slash.
    let at = rest.find(['@', '/']).filter(|at| rest.get(*at..).is_some_and(|rest| rest.starts_with('@')));
    let rest = match at {
        Some(at) => {
            let (credentials, rest) = rest.split_at_checked(at)?;
            let (user, password) = match credentials.split_once(':') {
                Some((user, password)) => (user, Some(password)),
                None => (credentials, None),
            };
            push("user", decoded(user)?);
            if let Some(password) = password {
                push("password", decoded(password)?);
            }
            rest.strip_prefix('@')?
        }
        None => rest,
    };
    let (rest, options) = match rest.split_once('?') {
        Some((rest, options)) => (rest, options),
        None => (rest, ""),
    };
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    if !authority.is_empty() {
        let (hosts, ports) = hosts_and_ports(authority)?;
        push("host", hosts.join(","));
        if ports.iter().any(|port| !port.is_empty()) {
            push("port", ports.join(","));
        }
    }
    if !database.is_empty() {
        push("dbname", decoded(database)?);
    }
    for option in options.split('&').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=')?;
        let (name, value) = (decoded(name)?, decoded(value)?);
        match (name.as_str(), value.as_str()) {
            // libpq accepts this JDBC option.
            ("ssl", "true") => push("sslmode", "require".to_string()),
            _ => push(&name, value),
        }
    }
    // An empty host in the URL does not override the option `host`.
    let hosts = pairs.iter().filter(|(name, value)| name == "host" && !value.is_empty()).count();
    if hosts > 0 {
        pairs.retain(|(name, value)| name != "host" || !value.is_empty());
    }
    Some(pairs)
}

/// Splits a list of hosts with optional ports. Brackets enclose an IPv6 address.
fn hosts_and_ports(authority: &str) -> Option<(Vec<String>, Vec<String>)> {
    let split = |part: &str| {
        let (host, behind) = match part.strip_prefix('[') {
            Some(part) => part.split_once(']')?,
            None => part.find(':').map_or(Some((part, "")), |colon| part.split_at_checked(colon))?,
        };
        let port = if behind.is_empty() { "" } else { behind.strip_prefix(':')? };
        Some((decoded(host)?, decoded(port)?))
    };
    authority.split(',').map(split).collect::<Option<Vec<_>>>().map(|parts| parts.into_iter().unzip())
}

fn decoded(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dsn: &str) -> Vec<String> {
        pairs(dsn).unwrap().into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        assert_eq!(
            read("postgres://ann:s%40cret@db:5433/plugins?options=-c%20a%3Db&sslmode=require"),
            [
                "user=ann",
                "password=s@cret",
                "host=db",
                "port=5433",
                "dbname=plugins",
                "options=-c a=b",
                "sslmode=require"
            ]
        );
        assert_eq!(read("postgresql://a,[::1]:5433,b/d"), ["host=a,::1,b", "port=,5433,", "dbname=d"]);
        assert_eq!(read("postgres://%2Frun%2Fpg/d"), ["host=/run/pg", "dbname=d"]);
        assert_eq!(
            read("postgres:///d?host=/run/pg&ssl=true"),
            ["dbname=d", "host=/run/pg", "sslmode=require"]
        );
        assert_eq!(
            read("postgres://ann:p?@h/d?a=b@c"),
            ["user=ann", "password=p?", "host=h", "dbname=d", "a=b@c"]
        );
        assert_eq!(read("postgres://"), [""; 0]);
    }

    #[test]
    fn keywords_are_read_as_libpq_reads_them() {
        assert_eq!(
            read("host = a  password='it\\'s x' dbname=b\\ c user=''"),
            ["host=a", "password=it's x", "dbname=b c", "user="]
        );
        assert_eq!(read(" "), [""; 0]);
    }

    #[test]
    fn what_is_malformed_is_refused_and_not_repeated() {
        for dsn in [
            "host=h password=x hunter2",
            "host=h password='hunter2",
            "postgres:ann:hunter2",
            "postgres://h/d?hunter2",
            "postgres://[::1/hunter2",
            "postgres://[::1]hunter2/d",
            "postgres://ann:hunter2%ff@h/d",
            "=hunter2",
            "a b=hunter2",
        ] {
            let Err(Error::InvalidArgument(reason)) = pairs(dsn) else { panic!("accepted {dsn}") };
            assert!(!reason.contains("hunter2"), "{dsn}");
        }
    }
}
