//! Data-source names of tenants.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder_core::Error;
use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::folder::FolderStore;
use crate::key::{Scope, TenantKey};

/// What an acknowledged commit survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// The end of the process.
    ///
    /// The loss of the disk can lose the commits since the last checkpoint.
    #[default]
    Local,
    /// The loss of the host. The commit is in object storage.
    Object,
}

/// The kind of object storage, and its bucket or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// A folder of a file system.
    Folder(PathBuf),
    /// Amazon S3 or an S3-compatible server.
    S3 {
        /// The bucket.
        bucket: String,
        /// The server, if it is not Amazon's.
        endpoint: Option<String>,
        /// The region. `None` for that of the environment.
        region: Option<String>,
    },
    /// Azure Blob Storage.
    Azure {
        /// The container.
        container: String,
        /// The storage account. `None` for that of the environment.
        account: Option<String>,
        /// The server, if it is not Azure's.
        endpoint: Option<String>,
    },
    /// Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
    },
}

/// A parsed data-source name (DSN) of tenants.
///
/// These are the forms of a DSN:
///
/// - `tenants+file:///FOLDER?scope=user`
/// - `tenants+s3://BUCKET/PREFIX?endpoint=http://127.0.0.1:8333&region=eu-west-1&scope=org`
/// - `tenants+az://CONTAINER/PREFIX?account=NAME`, in builds with the feature `azure`
/// - `tenants+gs://BUCKET/PREFIX`, in builds with the feature `gcs`
///
/// A DSN never contains credentials. They come from the usual environment variables. All forms have
/// these options:
///
/// - `scope`: `user`, `org`, `app` or `project`.
/// - `durability`: `local` or `object`.
/// - `checkpoint_writes`: a number of at least 1.
/// - `checkpoint_interval`, `lease_ttl`, `lease_wait`, `keep_for`: durations such as `500ms`,
///   `15s`, `5m`, `2h` and `7d`.
/// - `max_database`: a size such as `4096`, `512MiB` and `16GiB`.
/// - `tenant`: the key of a single tenant, such as `acme/users/ann`.
/// - `cache`: the folder for open databases; see [`TenantsDsn::cache_folder`].
/// - `create`: with `no`, neither a folder nor a tenant is created.
///
/// ```
/// use larder_tenants::{Scope, TenantsDsn};
///
/// let dsn = TenantsDsn::parse("tenants+file:///srv/tenants?scope=org&lease_ttl=30s")?;
/// assert_eq!(dsn.scope, Scope::Org);
/// # Ok::<(), larder_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantsDsn {
    /// The object storage that keeps the tenants.
    pub location: Location,
    /// The path in it below which tenants are kept.
    pub prefix: ObjectPath,
    /// The scope of the tenants.
    pub scope: Scope,
    /// What an acknowledged commit survives.
    pub durability: Durability,
    /// The number of commits after which a tenant is written back.
    pub checkpoint_writes: Option<u64>,
    /// The longest time from a commit until the tenant is written back.
    pub checkpoint_interval: Option<Duration>,
    /// How long a lease is valid without a renewal.
    pub lease_ttl: Option<Duration>,
    /// How long opening a tenant waits for another host's lease.
    pub lease_wait: Option<Duration>,
    /// How long superseded snapshots are kept.
    pub keep_for: Option<Duration>,
    /// The largest database file, in bytes; see
    /// [`TenantsBuilder::max_database`](crate::TenantsBuilder::max_database).
    pub max_database: Option<u64>,
    /// The single tenant, if the DSN names one. It has the same scope.
    pub tenant: Option<TenantKey>,
    /// The folder for open databases.
    pub cache: Option<PathBuf>,
    /// Whether to create a folder or a tenant that does not exist.
    pub create: bool,
}

const SCHEME: &str = "tenants+";

const FORMS: &str = "a data-source name of tenants is `tenants+file:///FOLDER`, `tenants+s3://BUCKET/PREFIX`, \
                     `tenants+az://CONTAINER/PREFIX` or `tenants+gs://BUCKET/PREFIX`";

const COMMON_OPTIONS: [&str; 11] = [
    "scope",
    "durability",
    "checkpoint_writes",
    "checkpoint_interval",
    "lease_ttl",
    "lease_wait",
    "keep_for",
    "max_database",
    "tenant",
    "cache",
    "create",
];

impl TenantsDsn {
    /// Whether a data-source name has the scheme of tenants. It may still be invalid.
    pub fn accepts(dsn: &str) -> bool {
        dsn.starts_with(SCHEME)
    }

    /// Parses a data-source name.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is invalid. The message never repeats a value that may be a
    /// secret.
    pub fn parse(dsn: &str) -> Result<Self, Error> {
        let url = Url::parse(dsn).map_err(|error| Error::invalid_argument(format!("{FORMS}; {error}")))?;
        if !url.username().is_empty() || url.password().is_some() || url.port().is_some() {
            return Err(Error::invalid_argument(
                "a data-source name of tenants has no credentials and no port; set credentials in the \
                 environment, and a port in `endpoint`",
            ));
        }
        let scheme = url.scheme().strip_prefix(SCHEME).unwrap_or_default();
        let own_options: &[&str] = match scheme {
            "s3" => &["endpoint", "region"],
            "az" => &["account", "endpoint"],
            "file" | "gs" => &[],
            _ => return Err(Error::invalid_argument(FORMS)),
        };
        let options = Options::read(&url, own_options)?;
        let (location, prefix) = match scheme {
            "file" => (Location::Folder(folder(&url)?), ObjectPath::default()),
            _ => (bucket_location(scheme, &url, &options)?, prefix(&url)?),
        };
        let tenant: Option<TenantKey> = options.parsed("tenant", str::parse)?;
        let scope: Option<Scope> = options.parsed("scope", str::parse)?;
        let own_scope = tenant.as_ref().map(TenantKey::scope);
        if let (Some(scope), Some(own)) = (scope, own_scope)
            && scope != own
        {
            return Err(Error::invalid_argument(format!(
                "the options `tenant` and `scope` contradict each other: the tenant has scope `{own}`"
            )));
        }
        Ok(Self {
            location,
            prefix,
            scope: own_scope.or(scope).unwrap_or(Scope::User),
            durability: options.parsed("durability", durability)?.unwrap_or_default(),
            checkpoint_writes: options.parsed("checkpoint_writes", count)?,
            checkpoint_interval: options.parsed("checkpoint_interval", duration)?,
            lease_ttl: options.parsed("lease_ttl", duration)?,
            lease_wait: options.parsed("lease_wait", duration)?,
            keep_for: options.parsed("keep_for", duration)?,
            max_database: options.parsed("max_database", size)?,
            tenant,
            cache: options.parsed("cache", cache)?,
            create: options.parsed("create", yes_or_no)?.unwrap_or(true),
        })
    }

    /// Opens the object store. Sends no request.
    ///
    /// A folder that does not exist is created, unless the DSN has `create=no`.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if this build does not support the object store, or the
    ///   settings in the environment are invalid.
    /// - [`Error::NotFound`] if the folder does not exist and must not be created.
    /// - [`Error::Unavailable`] if the folder cannot be used.
    pub fn open_store(&self) -> Result<Arc<dyn ObjectStore>, Error> {
        Ok(self.open()?.store)
    }

    pub(crate) fn open(&self) -> Result<Opened, Error> {
        match &self.location {
            Location::Folder(folder) => {
                let open = if self.create { FolderStore::open } else { FolderStore::open_existing };
                let store = open(folder.clone()).map_err(folder_not_opened)?;
                Ok(Opened::new(store))
            }
            Location::S3 { bucket, endpoint, region } => s3(bucket, endpoint.as_deref(), region.as_deref()),
            Location::Azure { container, account, endpoint } => {
                azure(container, account.as_deref(), endpoint.as_deref())
            }
            Location::Gcs { bucket } => gcs(bucket),
        }
    }
}

/// An object store that also accepts parts of an upload by number.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) multipart: Arc<dyn MultipartStore>,
}

impl Opened {
    fn new(store: impl ObjectStore + MultipartStore) -> Self {
        let store = Arc::new(store);
        Self { store: store.clone(), multipart: store }
    }
}

fn bucket_location(scheme: &str, url: &Url, options: &Options) -> Result<Location, Error> {
    let bucket = url.host_str().filter(|host| !host.is_empty());
    let bucket = bucket.ok_or_else(|| Error::invalid_argument(FORMS))?.to_string();
    let endpoint = options.parsed("endpoint", endpoint)?;
    Ok(match scheme {
        "s3" => Location::S3 { bucket, endpoint, region: options.text("region") },
        "az" => Location::Azure { container: bucket, account: options.text("account"), endpoint },
        _ => Location::Gcs { bucket },
    })
}

fn folder(url: &Url) -> Result<PathBuf, Error> {
    if url.host_str().is_some_and(|host| !host.is_empty()) {
        return Err(Error::invalid_argument(
            "the folder of tenants must be an absolute path: `tenants+file:///FOLDER`",
        ));
    }
    let path = percent_decode_str(url.path()).decode_utf8().map_err(|_| {
        Error::invalid_argument("the path of the folder of tenants is not UTF-8 after percent-decoding")
    })?;
    if path.len() < 2 || path.contains('\0') {
        return Err(Error::invalid_argument(
            "the folder of tenants must not be the root, and its path must not contain NUL",
        ));
    }
    Ok(PathBuf::from(path.as_ref()))
}

fn prefix(url: &Url) -> Result<ObjectPath, Error> {
    ObjectPath::from_url_path(url.path()).map_err(|error| {
        Error::invalid_argument(format!("the prefix of tenants is not a valid path: {error}"))
    })
}

/// The options after `?`.
struct Options(Vec<(String, String)>);

impl Options {
    fn read(url: &Url, own: &[&str]) -> Result<Self, Error> {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        for (index, (name, _)) in pairs.iter().enumerate() {
            if !own.contains(&name.as_str()) && !COMMON_OPTIONS.contains(&name.as_str()) {
                let known: Vec<_> =
                    own.iter().chain(&COMMON_OPTIONS).map(|name| format!("`{name}`")).collect();
                return Err(Error::invalid_argument(format!(
                    "unknown option {name:?} of tenants; use one of {}",
                    known.join(", ")
                )));
            }
            if pairs.iter().take(index).any(|(earlier, _)| earlier == name) {
                return Err(Error::invalid_argument(format!(
                    "the option `{name}` of tenants is set more than once"
                )));
            }
        }
        Ok(Self(pairs))
    }

    fn text(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone())
    }

    fn parsed<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, Error>) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name) else { return Ok(None) };
        parse(&text).map(Some).map_err(|error| match error {
            Error::InvalidArgument(reason) => {
                Error::invalid_argument(format!("the option `{name}` of tenants: {reason}"))
            }
            other => other,
        })
    }
}

fn cache(text: &str) -> Result<PathBuf, Error> {
    let wrong = || Error::invalid_argument("it must be the path of a folder, without NUL");
    (!text.is_empty() && !text.contains('\0')).then(|| PathBuf::from(text)).ok_or_else(wrong)
}

fn yes_or_no(text: &str) -> Result<bool, Error> {
    match text {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(Error::invalid_argument("it must be `yes` or `no`")),
    }
}

fn durability(text: &str) -> Result<Durability, Error> {
    match text {
        "local" => Ok(Durability::Local),
        "object" => Ok(Durability::Object),
        _ => Err(Error::invalid_argument("it must be `local` or `object`")),
    }
}

fn count(text: &str) -> Result<u64, Error> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| Error::invalid_argument("it must be a number of at least 1"))
}

fn size(text: &str) -> Result<u64, Error> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let unit = units.into_iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let is_number = number.bytes().all(|digit| digit.is_ascii_digit());
    let bytes = number.parse::<u64>().ok().filter(|_| is_number);
    let bytes = bytes.and_then(|number| number.checked_mul(1 << shift)).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| {
        Error::invalid_argument("it must be a size such as `4096`, `64KiB`, `512MiB`, `16GiB` or `1TiB`")
    })
}

/// The longest duration of an option. Any sum of such durations is safe from overflow.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

fn duration(text: &str) -> Result<Duration, Error> {
    let wrong =
        || Error::invalid_argument("it must be a duration such as `500ms`, `15s`, `5m`, `2h` or `7d`");
    let digits = text.find(|found: char| !found.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return Err(wrong()),
    };
    let duration = number.checked_mul(millis).map(Duration::from_millis);
    duration.filter(|duration| !duration.is_zero() && *duration <= MAX_DURATION).ok_or_else(wrong)
}

fn endpoint(text: &str) -> Result<String, Error> {
    let wrong = || {
        Error::invalid_argument(
            "it must be `https://HOST` or `http://HOST`, with an optional port and nothing else",
        )
    };
    let url = Url::parse(text).map_err(|_| wrong())?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.host_str().is_some()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if is_plain { Ok(text.trim_end_matches('/').to_string()) } else { Err(wrong()) }
}

#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
mod cloud {
    use std::time::Duration;

    use larder_core::Error;
    use object_store::{BackoffConfig, ClientOptions, RetryConfig};

    /// larder has its own timeouts. A download has no overall timeout.
    pub(super) fn client() -> ClientOptions {
        ClientOptions::new().with_timeout_disabled().with_connect_timeout(Duration::from_secs(5))
    }

    /// A few quick retries of transient errors. Retries whose meaning depends on the operation are
    /// made by the callers.
    pub(super) fn retries() -> RetryConfig {
        let backoff = BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_millis(500),
            base: 2.0,
        };
        RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(5) }
    }

    pub(super) fn refused(error: object_store::Error) -> Error {
        Error::invalid_argument(format!("the settings of the object storage are invalid: {error}"))
    }
}

#[cfg(feature = "s3")]
fn s3(bucket: &str, endpoint: Option<&str>, region: Option<&str>) -> Result<Opened, Error> {
    Ok(Opened::new(s3_builder(bucket, endpoint, region).build().map_err(cloud::refused)?))
}

#[cfg(feature = "s3")]
fn s3_builder(
    bucket: &str,
    endpoint: Option<&str>,
    region: Option<&str>,
) -> object_store::aws::AmazonS3Builder {
    use object_store::aws::{AmazonS3Builder, S3ConditionalPut};

    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(cloud::client())
        .with_retry(cloud::retries())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // Not every server supports bulk deletion, and each call deletes one object.
        .with_disable_bulk_delete(true);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = region {
        builder = builder.with_region(region);
    }
    builder
}

/// The effective server. If the DSN has none, the environment may.
#[cfg(feature = "s3")]
pub(crate) fn s3_endpoint(endpoint: Option<&str>) -> Option<String> {
    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

    let from_environment = || AmazonS3Builder::from_env().get_config_value(&AmazonS3ConfigKey::Endpoint);
    endpoint.map(str::to_string).or_else(from_environment)
}

#[cfg(not(feature = "s3"))]
pub(crate) fn s3_endpoint(endpoint: Option<&str>) -> Option<String> {
    endpoint.map(str::to_string)
}

#[cfg(not(feature = "s3"))]
fn s3(_: &str, _: Option<&str>, _: Option<&str>) -> Result<Opened, Error> {
    Err(Error::invalid_argument(
        "this build of larder has no S3 support; build larder-tenants with its feature `s3`",
    ))
}

#[cfg(feature = "azure")]
fn azure(container: &str, account: Option<&str>, endpoint: Option<&str>) -> Result<Opened, Error> {
    use object_store::azure::MicrosoftAzureBuilder;

    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_client_options(cloud::client())
        .with_retry(cloud::retries());
    if let Some(account) = account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = endpoint {
        builder =
            builder.with_endpoint(endpoint.to_string()).with_allow_http(endpoint.starts_with("http://"));
    }
    Ok(Opened::new(builder.build().map_err(cloud::refused)?))
}

/// The effective account and server. If the DSN lacks one, the environment may have it.
#[cfg(feature = "azure")]
pub(crate) fn azure_account(account: Option<&str>, endpoint: Option<&str>) -> [Option<String>; 2] {
    use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};

    let environment = MicrosoftAzureBuilder::from_env();
    let or = |own: Option<&str>, key| own.map(str::to_string).or_else(|| environment.get_config_value(&key));
    [or(account, AzureConfigKey::AccountName), or(endpoint, AzureConfigKey::Endpoint)]
}

#[cfg(not(feature = "azure"))]
pub(crate) fn azure_account(account: Option<&str>, endpoint: Option<&str>) -> [Option<String>; 2] {
    [account, endpoint].map(|own| own.map(str::to_string))
}

#[cfg(not(feature = "azure"))]
fn azure(_: &str, _: Option<&str>, _: Option<&str>) -> Result<Opened, Error> {
    Err(Error::invalid_argument(
        "this build of larder has no Azure support; build larder-tenants with its feature `azure`",
    ))
}

#[cfg(feature = "gcs")]
fn gcs(bucket: &str) -> Result<Opened, Error> {
    let builder = object_store::gcp::GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(cloud::client())
        .with_retry(cloud::retries());
    Ok(Opened::new(builder.build().map_err(cloud::refused)?))
}

#[cfg(not(feature = "gcs"))]
fn gcs(_: &str) -> Result<Opened, Error> {
    Err(Error::invalid_argument(
        "this build of larder has no Google Cloud support; build larder-tenants with its feature `gcs`",
    ))
}

fn folder_not_opened(error: std::io::Error) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        let reason = "the folder of tenants does not exist".to_string();
        return Error::NotFound { reason, cause: Some(Arc::new(error)) };
    }
    Error::unavailable("the folder of tenants can't be opened", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(dsn: &str) -> String {
        match TenantsDsn::parse(dsn) {
            Err(Error::InvalidArgument(reason)) => reason,
            other => panic!("{dsn}: {other:?}"),
        }
    }

    #[test]
    fn a_folder_and_its_options_are_read() {
        let dsn = TenantsDsn::parse(
            "tenants+file:///srv/ten%20ants?scope=project&durability=object&checkpoint_writes=7\
             &checkpoint_interval=500ms&lease_ttl=30s&keep_for=2d&max_database=512MiB",
        )
        .unwrap();
        assert_eq!(dsn.location, Location::Folder("/srv/ten ants".into()));
        assert_eq!((dsn.scope, dsn.durability), (Scope::Project, Durability::Object));
        assert_eq!(
            (dsn.checkpoint_writes, dsn.checkpoint_interval),
            (Some(7), Some(Duration::from_millis(500)))
        );
        assert_eq!(dsn.lease_ttl, Some(Duration::from_secs(30)));
        assert_eq!(dsn.keep_for, Some(Duration::from_secs(2 * 86_400)));
        assert_eq!(dsn.max_database, Some(512 << 20));
        let plain = TenantsDsn::parse("tenants+file:///srv").unwrap();
        assert_eq!((plain.scope, plain.durability, plain.lease_ttl), (Scope::User, Durability::Local, None));
    }

    #[test]
    fn buckets_endpoints_and_prefixes_are_read() {
        let dsn = TenantsDsn::parse(
            "tenants+s3://my-bucket/some/prefix/?endpoint=http://127.0.0.1:8333/&region=eu-west-1",
        )
        .unwrap();
        let (endpoint, region) = (Some("http://127.0.0.1:8333".into()), Some("eu-west-1".into()));
        assert_eq!(dsn.location, Location::S3 { bucket: "my-bucket".into(), endpoint, region });
        assert_eq!(dsn.prefix, ObjectPath::from("some/prefix"));
        let dsn = TenantsDsn::parse("tenants+az://box?account=me&scope=org").unwrap();
        let account = Some("me".into());
        assert_eq!(dsn.location, Location::Azure { container: "box".into(), account, endpoint: None });
        assert_eq!((dsn.prefix.is_root(), dsn.scope), (true, Scope::Org));
        assert_eq!(
            TenantsDsn::parse("tenants+gs://b/x").unwrap().location,
            Location::Gcs { bucket: "b".into() }
        );
    }

    #[test]
    fn what_is_wrong_is_said_and_secrets_are_not_repeated() {
        assert!(TenantsDsn::accepts("tenants+ftp://x") && !TenantsDsn::accepts("sqlite:x"));
        assert_eq!(reason("tenants+ftp://x"), FORMS);
        assert_eq!(reason("tenants+s3:///prefix"), FORMS);
        assert!(reason("tenants+s3://key:s3cret@bucket/").contains("no credentials"));
        assert!(!reason("tenants+s3://key:s3cret@bucket/").contains("s3cret"));
        assert!(!reason("tenants+s3://b/?endpoint=http://key:s3cret@host").contains("s3cret"));
        assert!(!reason("tenants+s3://b/?secret_access_key=s3cret").contains("s3cret"));
        let unknown = reason("tenants+s3://b/?regoin=x");
        assert!(
            unknown.starts_with(
                "unknown option \"regoin\" of tenants; use one of `endpoint`, `region`, `scope`"
            )
        );
        assert!(reason("tenants+file:///x?region=x").contains("unknown option"));
        assert!(reason("tenants+file:///x?scope=user&scope=org").contains("set more than once"));
        assert!(reason("tenants+file:///x?scope=User").contains("use `user`, `org`, `app` or `project`"));
        assert!(reason("tenants+file:///x?checkpoint_writes=0").contains("a number of at least 1"));
        for wrong in ["15", "0s", "s", "1w", "-1s", "99999999999999999999s", "9999999999999999d", ""] {
            let said = reason(&format!("tenants+file:///x?lease_ttl={wrong}"));
            assert!(said.contains("`lease_ttl`") && said.contains("`500ms`"), "{wrong}: {said}");
        }
        for wrong in ["", "0", "0GiB", "-1", "+1", "1.5GiB", "GiB", "1GB", "16777216TiB", "1 GiB"] {
            let said = reason(&format!("tenants+file:///x?max_database={}", wrong.replace('+', "%2b")));
            assert!(said.contains("`max_database`") && said.contains("`512MiB`"), "{wrong}: {said}");
        }
        assert!(reason("tenants+file://host/x").contains("an absolute path"));
        assert!(reason("tenants+file:///").contains("not be the root"));
        assert!(reason("tenants+s3://b/?endpoint=ftp://x").contains("`endpoint`"));
        assert!(
            reason("tenants+file:///x?tenant=ann").contains("`tenant` of tenants: a tenant is named ORG/org")
        );
        assert!(reason("tenants+file:///x?tenant=acme/org&scope=app").contains("the tenant has scope `org`"));
        assert!(reason("tenants+file:///x?cache=").contains("`cache`"));
        assert!(reason("tenants+file:///x?create=maybe").contains("it must be `yes` or `no`"));
    }

    #[test]
    fn one_tenant_its_cache_folder_and_what_must_not_be_made_are_read() {
        let dsn = "tenants+file:///x?tenant=acme/apps/shop&cache=/var/cache%20folder&create=no";
        let dsn = TenantsDsn::parse(dsn).unwrap();
        assert_eq!((dsn.tenant, dsn.scope), (Some("acme/apps/shop".parse().unwrap()), Scope::App));
        assert_eq!((dsn.cache, dsn.create), (Some("/var/cache folder".into()), false));
    }

    #[test]
    fn a_folder_that_must_not_be_made_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let dsn = format!("tenants+file://{}/new?create=no", folder.path().display());
        let refused = TenantsDsn::parse(&dsn).unwrap().open_store();
        assert!(matches!(refused, Err(Error::NotFound { .. })));
        assert!(!folder.path().join("new").exists());
        let dsn = TenantsDsn::parse(dsn.trim_end_matches("?create=no")).unwrap();
        dsn.open_store().unwrap();
        TenantsDsn { create: false, ..dsn }.open_store().unwrap();
    }

    /// Starts a server that responds `501 Not Implemented` to every `POST`, and `204 No Content`
    /// otherwise. Returns its address and the request lines it has received.
    #[cfg(feature = "s3")]
    async fn server_without_posts() -> (String, Arc<parking_lot::Mutex<Vec<String>>>) {
        use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
        let requests = asked.clone();
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (read, mut write) = socket.into_split();
                let mut lines = BufReader::new(read).lines();
                let request = lines.next_line().await.unwrap().unwrap_or_default();
                while lines.next_line().await.unwrap().is_some_and(|line| !line.is_empty()) {}
                let status =
                    if request.starts_with("POST") { "501 Not Implemented" } else { "204 No Content" };
                requests.lock().push(request);
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                write.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (endpoint, asked)
    }

    #[cfg(feature = "s3")]
    #[tokio::test]
    async fn objects_are_deleted_on_an_s3_server_without_deletions_of_many() {
        use object_store::ObjectStoreExt;

        let (endpoint, asked) = server_without_posts().await;
        let builder = s3_builder("tenants", Some(&endpoint), Some("us-east-1"));
        let store = builder.with_access_key_id("key").with_secret_access_key("secret").build().unwrap();
        store.delete(&ObjectPath::from("a/b")).await.unwrap();
        assert_eq!(*asked.lock(), ["DELETE /tenants/a/b HTTP/1.1"]);
    }

    #[tokio::test]
    async fn a_folder_is_opened_and_honours_conditions() {
        let folder = tempfile::tempdir().unwrap();
        let dsn = format!("tenants+file://{}/new/place", folder.path().display());
        let dsn = TenantsDsn::parse(&dsn).unwrap();
        let store = dsn.open_store().unwrap();
        let remote = crate::Remote::new(store, dsn.prefix, crate::RemoteOptions::default()).unwrap();
        remote.probe().await.unwrap();
    }
}
