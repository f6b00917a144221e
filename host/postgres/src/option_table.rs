//! The table of options, with a parser for the value of each.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The options that were given, before defaults are applied and files are read.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) hosts: Vec<String>,
    pub(crate) addresses: Vec<Option<IpAddr>>,
    pub(crate) ports: Vec<Option<u16>>,
    pub(crate) user: Option<String>,
    pub(crate) database: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) schema: Option<String>,
    pub(crate) pool_size: Option<usize>,
    pub(crate) pool_snapshots: Option<usize>,
    pub(crate) application_name: Option<String>,
    pub(crate) fallback_application_name: Option<String>,
    pub(crate) options: Option<String>,
    /// `Some(None)` sets no limit.
    pub(crate) connect_timeout: Option<Option<Duration>>,
    pub(crate) tcp_user_timeout: Option<Option<Duration>>,
    pub(crate) keepalives: Option<bool>,
    pub(crate) keepalives_idle: Option<Duration>,
    pub(crate) keepalives_interval: Option<Duration>,
    pub(crate) keepalives_count: Option<u32>,
    pub(crate) target: Target,
    pub(crate) shuffles_hosts: bool,
    pub(crate) tls: TlsDraft,
    pub(crate) channel_binding: ChannelBinding,
}

/// The TLS options that were given.
#[derive(Default)]
pub(crate) struct TlsDraft {
    pub(crate) mode: Option<TlsMode>,
    pub(crate) is_direct: bool,
    pub(crate) roots: Option<Roots>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) hides_certificate: bool,
    pub(crate) hides_name: bool,
    pub(crate) min_version: Option<TlsVersion>,
    pub(crate) max_version: Option<TlsVersion>,
}

/// The values of `sslmode`, from the weakest to the strongest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// The source of trusted root certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Roots {
    System,
    File(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    Tls12,
    Tls13,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChannelBinding {
    Disable,
    #[default]
    Prefer,
    Require,
}

/// The values of `target_session_attrs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Target {
    #[default]
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

/// An option that a data-source name can have.
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "only the test of docs/postgres.md reads some of the fields")
)]
pub(crate) struct OptionKind {
    pub(crate) name: &'static str,
    /// The environment variable that sets the option.
    pub(crate) variable: Option<&'static str>,
    /// The default value, as the documentation describes it.
    pub(crate) default: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) meaning: &'static str,
    /// Parses and sets the value. On failure, returns advice on valid values.
    pub(crate) apply: fn(&mut Draft, &str) -> Result<(), String>,
}

/// The option that names a service. The service's options are read before any option is applied.
pub(crate) const SERVICE: &str = "service";

const fn option(
    name: &'static str,
    variable: Option<&'static str>,
    (default, unit): (&'static str, &'static str),
    meaning: &'static str,
    apply: fn(&mut Draft, &str) -> Result<(), String>,
) -> OptionKind {
    OptionKind { name, variable, default, unit, meaning, apply }
}

/// All options, in the order of the table in `docs/postgres.md`, which a test compares with this.
pub(crate) const OPTIONS: &[OptionKind] = &[
    option(
        "host",
        Some("PGHOST"),
        ("", "list"),
        "Host names, IP addresses, or directories of Unix-domain sockets, which begin with `/`. larder tries them in order. Required unless `hostaddr` is given.",
        |draft, value| {
            draft.hosts = value.split(',').map(str::to_string).collect();
            Ok(())
        },
    ),
    option(
        "hostaddr",
        Some("PGHOSTADDR"),
        ("resolved from `host`", "list"),
        "IP addresses to connect to, one for each host. Certificates and password files are still matched against `host`.",
        |draft, value| {
            let address = |text: &str| if text.is_empty() { Ok(None) } else { text.parse().map(Some) };
            draft.addresses = value
                .split(',')
                .map(address)
                .collect::<Result<_, _>>()
                .map_err(|_| "use IP addresses".to_string())?;
            Ok(())
        },
    ),
    option(
        "port",
        Some("PGPORT"),
        ("5432", "list"),
        "Port for all hosts, or one port for each host. Also part of the file name of a Unix-domain socket.",
        |draft, value| {
            let port = |text: &str| match text {
                "" => Some(None),
                text => text.parse().ok().filter(|port| *port != 0).map(Some),
            };
            draft.ports =
                value.split(',').map(port).collect::<Option<_>>().ok_or("use numbers from 1 to 65535")?;
            Ok(())
        },
    ),
    option("dbname", Some("PGDATABASE"), ("same as `user`", ""), "Database name.", |draft, value| {
        text(&mut draft.database, value)
    }),
    option(
        "user",
        Some("PGUSER"),
        ("the operating-system user", ""),
        "Role to log in as.",
        |draft, value| text(&mut draft.user, value),
    ),
    option(
        "password",
        Some("PGPASSWORD"),
        ("from `passfile`", ""),
        "Password. On a command line, use PGPASSWORD or a password file instead: other users of the machine can see arguments.",
        |draft, value| text(&mut draft.password, value),
    ),
    option(
        "passfile",
        Some("PGPASSFILE"),
        ("`~/.pgpass`", "path"),
        "Password file with lines `host:port:database:user:password`. Ignored if its group or others have any access.",
        |draft, value| path(&mut draft.password_file, value),
    ),
    option(
        SERVICE,
        Some("PGSERVICE"),
        ("", ""),
        "Section of the service file with further options. They override the environment, and the data-source name overrides them.",
        |_, _| Ok(()),
    ),
    option(
        "schema",
        None,
        ("first schema of the search path", ""),
        "Schema of the store. It must exist. Each schema holds a store of its own.",
        |draft, value| text(&mut draft.schema, value),
    ),
    option(
        "pool_size",
        None,
        ("25", "connections"),
        "Maximum number of connections in the store's pool, from 2 to 1000.",
        |draft, value| {
            draft.pool_size = Some(number(value, POOL_SIZE_MIN, POOL_SIZE_MAX)?);
            Ok(())
        },
    ),
    option(
        "pool_snapshots",
        None,
        ("80 % of `pool_size`", "connections"),
        "Maximum number of connections that open transactions hold. Must be less than `pool_size`, so that commits can get a connection.",
        |draft, value| {
            draft.pool_snapshots = Some(number(value, 1, POOL_SIZE_MAX - 1)?);
            Ok(())
        },
    ),
    option(
        "application_name",
        Some("PGAPPNAME"),
        ("`larder`", ""),
        "Application name that the server shows for the sessions.",
        |draft, value| text(&mut draft.application_name, value),
    ),
    option(
        "fallback_application_name",
        None,
        ("`larder`", ""),
        "Application name if `application_name` is not set.",
        |draft, value| text(&mut draft.fallback_application_name, value),
    ),
    option(
        "options",
        Some("PGOPTIONS"),
        ("", ""),
        "Session settings that are sent at connection start, as `-c name=value`.",
        |draft, value| text(&mut draft.options, value),
    ),
    option(
        "connect_timeout",
        Some("PGCONNECT_TIMEOUT"),
        ("5 for TCP, 10 with TLS and the login", "s"),
        "Time limit for connecting and logging in to one address. All hosts together have 10 s in any case, and share it equally by default. 0 sets no limit for one address.",
        |draft, value| {
            draft.connect_timeout = Some(duration(value, Duration::from_secs)?);
            Ok(())
        },
    ),
    option(
        "tcp_user_timeout",
        None,
        ("30000", "ms"),
        "How long sent data may stay unacknowledged before the connection is closed. 0 uses the system default.",
        |draft, value| {
            draft.tcp_user_timeout = Some(duration(value, Duration::from_millis)?);
            Ok(())
        },
    ),
    option("keepalives", None, ("1", "0 or 1"), "Whether TCP keepalives are used.", |draft, value| {
        draft.keepalives = Some(one_of(value, &[("1", true), ("0", false)])?);
        Ok(())
    }),
    option(
        "keepalives_idle",
        None,
        ("30", "s"),
        "Idle time before the first keepalive probe is sent.",
        |draft, value| {
            draft.keepalives_idle = duration(value, Duration::from_secs)?;
            Ok(())
        },
    ),
    option(
        "keepalives_interval",
        None,
        ("system default", "s"),
        "Time after which an unacknowledged keepalive probe is sent again.",
        |draft, value| {
            draft.keepalives_interval = duration(value, Duration::from_secs)?;
            Ok(())
        },
    ),
    option(
        "keepalives_count",
        None,
        ("system default", "probes"),
        "Number of lost keepalive probes after which the connection is closed.",
        |draft, value| {
            draft.keepalives_count = Some(number(value, 0, 127)?);
            Ok(())
        },
    ),
    option(
        "target_session_attrs",
        Some("PGTARGETSESSIONATTRS"),
        ("any", ""),
        "Which servers are accepted: `any`, `read-write`, `read-only`, `primary`, `standby` or `prefer-standby`. A store that is opened for writing needs a primary.",
        |draft, value| {
            draft.target = one_of(
                value,
                &[
                    ("any", Target::Any),
                    ("read-write", Target::ReadWrite),
                    ("read-only", Target::ReadOnly),
                    ("primary", Target::Primary),
                    ("standby", Target::Standby),
                    ("prefer-standby", Target::PreferStandby),
                ],
            )?;
            Ok(())
        },
    ),
    option(
        "load_balance_hosts",
        Some("PGLOADBALANCEHOSTS"),
        ("disable", ""),
        "`random` tries the hosts, and the addresses of each host, in random order.",
        |draft, value| {
            draft.shuffles_hosts = one_of(value, &[("disable", false), ("random", true)])?;
            Ok(())
        },
    ),
    option(
        "sslmode",
        Some("PGSSLMODE"),
        ("prefer", ""),
        "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`; see [TLS](#tls).",
        |draft, value| {
            draft.tls.mode = Some(one_of(
                value,
                &[
                    ("disable", TlsMode::Disable),
                    ("allow", TlsMode::Allow),
                    ("prefer", TlsMode::Prefer),
                    ("require", TlsMode::Require),
                    ("verify-ca", TlsMode::VerifyCa),
                    ("verify-full", TlsMode::VerifyFull),
                ],
            )?);
            Ok(())
        },
    ),
    option(
        "sslnegotiation",
        Some("PGSSLNEGOTIATION"),
        ("postgres", ""),
        "`direct` starts the TLS handshake without asking the server first. Needs Postgres 17 or later, and `sslmode=require` or stronger.",
        |draft, value| {
            draft.tls.is_direct = one_of(value, &[("postgres", false), ("direct", true)])?;
            Ok(())
        },
    ),
    option(
        "sslrootcert",
        Some("PGSSLROOTCERT"),
        ("`~/.postgresql/root.crt`", "path"),
        "PEM file with the certificates of trusted authorities (CAs), or `system` for the authorities that the operating system trusts.",
        |draft, value| {
            draft.tls.roots = Some(match value {
                "system" => Roots::System,
                value => Roots::File(value.into()),
            });
            Ok(())
        },
    ),
    option(
        "sslcert",
        Some("PGSSLCERT"),
        ("`~/.postgresql/postgresql.crt`", "path"),
        "PEM file with the client certificate, followed by its intermediate certificates.",
        |draft, value| path(&mut draft.tls.certificate, value),
    ),
    option(
        "sslkey",
        Some("PGSSLKEY"),
        ("`~/.postgresql/postgresql.key`", "path"),
        "PEM file with the private key for `sslcert`, without a passphrase. Refused if its group or others have any access; if root owns the file, its group may read it.",
        |draft, value| path(&mut draft.tls.key, value),
    ),
    option(
        "sslcertmode",
        Some("PGSSLCERTMODE"),
        ("allow", ""),
        "`disable` sends no client certificate. `require` is refused.",
        |draft, value| {
            draft.tls.hides_certificate = one_of(value, &[("allow", false), ("disable", true)])?;
            Ok(())
        },
    ),
    option(
        "sslsni",
        Some("PGSSLSNI"),
        ("1", "0 or 1"),
        "Whether TLS sends the host name in clear text (SNI), for proxies that route by it.",
        |draft, value| {
            draft.tls.hides_name = one_of(value, &[("1", false), ("0", true)])?;
            Ok(())
        },
    ),
    option(
        "ssl_min_protocol_version",
        Some("PGSSLMINPROTOCOLVERSION"),
        ("TLSv1.2", ""),
        "Minimum TLS version. A version before `TLSv1.2` means `TLSv1.2`.",
        |draft, value| {
            draft.tls.min_version = Some(one_of(
                value,
                &[
                    ("TLSv1.2", TlsVersion::Tls12),
                    ("TLSv1.3", TlsVersion::Tls13),
                    ("TLSv1", TlsVersion::Tls12),
                    ("TLSv1.1", TlsVersion::Tls12),
                ],
            )?);
            Ok(())
        },
    ),
    option(
        "ssl_max_protocol_version",
        Some("PGSSLMAXPROTOCOLVERSION"),
        ("TLSv1.3", ""),
        "Maximum TLS version: `TLSv1.2` or `TLSv1.3`.",
        |draft, value| {
            draft.tls.max_version =
                Some(one_of(value, &[("TLSv1.2", TlsVersion::Tls12), ("TLSv1.3", TlsVersion::Tls13)])?);
            Ok(())
        },
    ),
    option(
        "channel_binding",
        Some("PGCHANNELBINDING"),
        ("prefer", ""),
        "`require` accepts only SCRAM authentication with channel binding; `disable` never uses channel binding.",
        |draft, value| {
            draft.channel_binding = one_of(
                value,
                &[
                    ("disable", ChannelBinding::Disable),
                    ("prefer", ChannelBinding::Prefer),
                    ("require", ChannelBinding::Require),
                ],
            )?;
            Ok(())
        },
    ),
    option(
        "client_encoding",
        None,
        ("UTF8", ""),
        "`UTF8` or `auto`. larder uses UTF-8 with every server, and refuses other encodings.",
        |_, value| {
            let folded: String = value.chars().filter(|next| next.is_alphanumeric()).collect();
            match folded.to_ascii_lowercase().as_str() {
                "utf8" | "unicode" | "auto" => Ok(()),
                _ => Err("omit it, or use UTF8 or auto".to_string()),
            }
        },
    ),
    option(
        "gssencmode",
        Some("PGGSSENCMODE"),
        ("disable", ""),
        "`disable` or `prefer`, which mean the same, because GSSAPI is not supported. `require` is refused.",
        |_, value| {
            one_of(value, &[("disable", ()), ("prefer", ())]).map_err(|right| {
                format!("{right}: larder does not support GSSAPI encryption; set \"sslmode\" for TLS")
            })
        },
    ),
    option(
        "sslcompression",
        Some("PGSSLCOMPRESSION"),
        ("0", ""),
        "`0`. `1` is refused, because TLS compression is insecure.",
        |_, value| one_of(value, &[("0", ())]),
    ),
    option(
        "krbsrvname",
        Some("PGKRBSRVNAME"),
        ("", ""),
        "No effect, because GSSAPI is not supported.",
        |_, _| Ok(()),
    ),
    option(
        "gsslib",
        Some("PGGSSLIB"),
        ("", ""),
        "No effect, because GSSAPI is not supported.",
        |_, _| Ok(()),
    ),
    option(
        "gssdelegation",
        Some("PGGSSDELEGATION"),
        ("0", ""),
        "`0`. `1` is refused, because GSSAPI is not supported.",
        |_, value| one_of(value, &[("0", ())]),
    ),
    option("sslpassword", None, ("", ""), "Refused: a private key must not have a passphrase.", |_, _| {
        refused("omit it, and decrypt the file of \"sslkey\"")
    }),
    option(
        "sslcrl",
        Some("PGSSLCRL"),
        ("", ""),
        "Refused: certificate revocation lists are not supported.",
        |_, _| refused("omit it"),
    ),
    option(
        "sslcrldir",
        Some("PGSSLCRLDIR"),
        ("", ""),
        "Refused: certificate revocation lists are not supported.",
        |_, _| refused("omit it"),
    ),
    option(
        "require_auth",
        Some("PGREQUIREAUTH"),
        ("", ""),
        "Refused: use `channel_binding=require` to accept only SCRAM.",
        |_, _| refused("omit it, and use channel_binding=require to accept only SCRAM"),
    ),
    option(
        "requirepeer",
        Some("PGREQUIREPEER"),
        ("", ""),
        "Refused: larder does not check the owner of a socket.",
        |_, _| refused("omit it"),
    ),
    option("replication", None, ("", ""), "Refused: a store needs ordinary SQL sessions.", |_, _| {
        refused("omit it")
    }),
];

/// Names that other programs use for an option, and the option's name here.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("database", "dbname"),
    ("db", "dbname"),
    ("username", "user"),
    ("passwd", "password"),
    ("pwd", "password"),
    ("hostname", "host"),
    ("timeout", "connect_timeout"),
    ("keepalives_retries", "keepalives_count"),
    ("search_path", "schema"),
    ("encoding", "client_encoding"),
    ("ssl", "sslmode"),
    ("sslca", "sslrootcert"),
    ("max_connections", "pool_size"),
];

/// The minimum of `pool_size`: one connection for a snapshot and one for a commit.
pub(crate) const POOL_SIZE_MIN: usize = 2;
pub(crate) const POOL_SIZE_MAX: usize = 1_000;

/// Returns the option with this name.
pub(crate) fn find(name: &str) -> Option<&'static OptionKind> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// Returns the option that an unknown name most likely stands for.
///
/// `None` if no option has a similar name. The unknown name may then be part of a password, so
/// error messages must not repeat it.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    if let Some((_, right)) = OTHER_NAMES.iter().find(|(other, _)| *other == name) {
        return Some(right);
    }
    let lower = name.to_ascii_lowercase();
    let nearest = OPTIONS.iter().map(|option| (distance(&lower, option.name), option.name)).min()?;
    let far = if nearest.1.len() < 6 { 1 } else { 2 };
    (nearest.0 <= far).then_some(nearest.1)
}

/// Computes the Levenshtein distance.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (number, have) in (1..).zip(from.chars()) {
        let mut next = vec![number];
        for ((above, want), left_above) in row.iter().skip(1).zip(&to).zip(&row) {
            let left = next.last().copied().unwrap_or(number);
            next.push((left + 1).min(above + 1).min(left_above + usize::from(have != *want)));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

fn text(option: &mut Option<String>, value: &str) -> Result<(), String> {
    *option = Some(value.to_string());
    Ok(())
}

fn path(option: &mut Option<PathBuf>, value: &str) -> Result<(), String> {
    *option = Some(value.into());
    Ok(())
}

fn refused(right: &str) -> Result<(), String> {
    Err(right.to_string())
}

fn one_of<T: Copy>(value: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let chosen = choices.iter().find(|(name, _)| *name == value).map(|(_, choice)| *choice);
    chosen.ok_or_else(|| {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        match names.split_last() {
            Some((last, names)) if !names.is_empty() => format!("use {} or {last}", names.join(", ")),
            _ => format!("use {}", names.concat()),
        }
    })
}

fn number<T>(value: &str, min: T, max: T) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let number = value.parse().ok().filter(|number| (&min..=&max).contains(&number));
    number.ok_or_else(|| format!("use a number from {min} to {max}"))
}

/// Parses a duration. Returns `None` for 0 and for negative numbers, as libpq does.
fn duration(value: &str, of: fn(u64) -> Duration) -> Result<Option<Duration>, String> {
    let number: i32 =
        number(value.trim(), i32::MIN, i32::MAX).map_err(|_| "use a whole number, without a unit")?;
    Ok(u64::try_from(number).ok().filter(|number| *number > 0).map(of))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_stands_in_the_table_once() {
        let mut names: Vec<_> = OPTIONS.iter().map(|option| option.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_documentation_has_every_option_as_it_is() {
        let documented = include_str!("../../../docs/postgres.md");
        let documented = documented.split_once("## Options\n").unwrap().1.split("\n## ").next().unwrap();
        let rows: Vec<_> = documented.lines().filter(|line| line.starts_with("| `")).collect();
        let right = OPTIONS.iter().map(|OptionKind { name, variable, default, unit, meaning, .. }| {
            let variable = variable.map(|variable| format!("`{variable}`")).unwrap_or_default();
            let row = format!("| `{name}` | {variable} | {default} | {unit} | {meaning} |");
            row.replace("|  |", "| |").replace("|  |", "| |")
        });
        let right: Vec<_> = right.collect();
        assert!(
            rows == right,
            "the options table in docs/postgres.md is out of date; it has to be:\n{}",
            right.join("\n")
        );
    }

    #[test]
    fn a_name_that_is_nearly_right_finds_the_right_one() {
        let cases = [
            ("sslmod", Some("sslmode")),
            ("SSLMODE", Some("sslmode")),
            ("hots", None),
            ("hosts", Some("host")),
            ("passwort", Some("password")),
            ("database", Some("dbname")),
            ("target_session_attr", Some("target_session_attrs")),
            ("hunter2", None),
            ("", None),
        ];
        for (name, right) in cases {
            assert_eq!(nearest(name), right, "{name}");
        }
    }

    #[test]
    fn a_distance_counts_changes() {
        for (from, to, changes) in
            [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("abc", "axc", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(from, to), changes, "{from} {to}");
        }
    }

    #[test]
    fn values_outside_of_their_range_are_told_what_is_right() {
        let wrong =
            |name: &str, value: &str| (find(name).unwrap().apply)(&mut Draft::default(), value).unwrap_err();
        assert_eq!(wrong("sslmode", "on"), "use disable, allow, prefer, require, verify-ca or verify-full");
        assert_eq!(wrong("pool_size", "1"), "use a number from 2 to 1000");
        assert_eq!(wrong("pool_snapshots", "-1"), "use a number from 1 to 999");
        assert_eq!(wrong("sslcompression", "1"), "use 0");
        assert_eq!(wrong("client_encoding", "LATIN1"), "omit it, or use UTF8 or auto");
        assert_eq!(wrong("connect_timeout", "1s"), "use a whole number, without a unit");
        assert!(wrong("gssencmode", "require").contains("GSSAPI encryption"));
        assert_eq!(wrong("port", "0"), "use numbers from 1 to 65535");
        for encoding in ["UTF8", "utf-8", "auto", "UNICODE"] {
            (find("client_encoding").unwrap().apply)(&mut Draft::default(), encoding).unwrap();
        }
    }

    #[test]
    fn a_timeout_of_zero_or_less_is_none() {
        let timeout = |value: &str| {
            let mut draft = Draft::default();
            (find("connect_timeout").unwrap().apply)(&mut draft, value).unwrap();
            draft.connect_timeout.unwrap()
        };
        assert_eq!([timeout("0"), timeout("-1")], [None; 2]);
        assert_eq!(timeout("7"), Some(Duration::from_secs(7)));
    }
}
