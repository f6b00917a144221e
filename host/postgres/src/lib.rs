//! Postgres backend of larder, for stores that several hosts share.
//!
//! ```no_run
//! # async fn example() -> larder_core::Result<()> {
//! use larder_core::Store;
//! use larder_postgres::Postgres;
//!
//! let backend = Postgres::open("postgres://larder:secret@db.internal/plugins").await?;
//! let store = Store::builder(backend).build()?;
//! # Ok(()) }
//! ```
//!
//! # Data-source names
//!
//! | form | example |
//! |---|---|
//! | URL | `postgres://user:password@host:5432/database?connect_timeout=5`, or `postgresql://…` |
//! | keywords | `host=/run/postgresql user=larder dbname=plugins` |
//!
//! Both forms take the options of libpq, and larder's own `schema`, `pool_size` and
//! `pool_snapshots`. Options that the name does not give come from a service file, the environment
//! variables of libpq and a password file. `docs/postgres.md` lists all options. An embedder that
//! must not depend on the environment of its process uses [`PostgresOptions::parse_with`] and
//! [`Postgres::open_with`].
//!
//! If the name lists several hosts, larder tries them in order. With
//! `target_session_attrs=read-write` it skips servers that do not accept writes, and so finds the
//! primary.
//!
//! # Schemas
//!
//! larder creates its tables in the first schema of the search path, and looks for them there.
//! `schema=tenant_a`, in either form, pins the store to an existing schema: the search path is then
//! this schema alone. Each schema holds a store of its own.
//!
//! Without `schema`, the search path is the server's, by default `"$user", public`, or the one in
//! `options=-c search_path=…`. If the first schema of the path holds no store but a later one does,
//! opening the store fails, and the cause is
//! [`MigrationError::ShadowedLedger`](larder_schema::MigrationError::ShadowedLedger).
//! Otherwise a schema that is created later, for example by `CREATE SCHEMA AUTHORIZATION`, would
//! hide the store behind a new, empty one. If several schemas of the search path hold a store,
//! opening fails, and the cause is
//! [`MigrationError::SeveralLedgers`](larder_schema::MigrationError::SeveralLedgers).
//!
//! larder resolves the schema once, when the store is opened, and qualifies every table with it. A
//! later change of the search path does not affect an open store.
//!
//! # Privileges
//!
//! The role that creates a store, or migrates it to a newer release, needs `CREATE` and `USAGE` on
//! the schema. Afterwards, `USAGE` on the schema, all privileges on the tables, and `SELECT`,
//! `USAGE` and `UPDATE` on the sequence are enough.
//!
//! # TLS
//!
//! `sslmode` has the same meaning as in libpq. The default, `prefer`, encrypts if the server
//! supports TLS, but does not protect against an attacker who can alter network traffic. Across an
//! untrusted network, use `sslmode=verify-full` with `sslrootcert=system` or a file of root
//! certificates. larder uses rustls.
//!
//! # How it works
//!
//! - A snapshot is a REPEATABLE READ transaction, which sees one committed state. A hot standby
//!   accepts it too.
//! - A commit is a READ COMMITTED transaction. It locks the rows that it depends on, checks that
//!   they are unchanged, and writes, usually in one round trip. It depends on no setting of the
//!   session, the role or the database, and its own settings end with it.
//! - Locks on 16 empty tables protect absent rows and ranges. A hash maps each namespace to one of
//!   the tables. A commit that depends on an absent row or a range excludes the other commits of
//!   its namespace.
//! - A store uses at most `pool_size` connections for its work ([`CONNECTIONS_MAX`] by default).
//!   Snapshots hold at most `pool_snapshots` of them ([`SNAPSHOTS_MAX`] by default), so
//!   transactions that wait for their guests do not keep other commits from a connection. The pool
//!   replaces a broken connection when a caller next asks for one. If the server allows fewer
//!   connections, calls wait for one of those that are open.
//! - The server ends a transaction that has been idle for ten minutes, in case its host is gone.
//!   Setting the limit `transaction_timeout` to more than that has no effect.
//!
//! [`PostgresMigrator`] keeps a platform's own tables up to date by the same rules as larder's, in
//! the same schema or in another one.

mod abandoned_commits;
mod answer;
mod certificate;
mod commit;
mod commit_alone;
mod commit_puts;
mod commit_transaction;
mod connect_error;
mod connections;
mod connector;
mod conninfo;
mod crowd;
mod driver;
mod dsn;
mod encryption;
mod environment;
mod error;
mod first_read;
mod large_commits;
mod locking;
mod maintenance;
mod migrate;
mod migrator;
mod moment;
mod namespace_lock;
mod opening;
mod option_table;
mod options;
mod param;
mod password_file;
mod pool;
mod pooler;
mod prober;
mod queries;
mod records;
mod rows;
mod search_path;
mod service_file;
mod session;
mod silence;
mod snapshot;
mod statements;
mod tls;
mod versions;

use std::sync::Arc;

use async_trait::async_trait;
use larder_core::backend::{Backend, SweepOptions, Swept};
use larder_core::clock::UnixMillis;
use larder_core::commit::{Commit, Committed};
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::row::Version;
use larder_core::snapshot::{Snapshot, SnapshotOptions};
use larder_core::{Error, OpenSnapshots, Result};
use tokio::runtime::Handle;

/// The client library whose `Client` [`PostgresMigrator::with_connection`] passes to its closure.
pub use tokio_postgres;

pub use connect_error::ConnectError;
use connections::{Access, Connections, while_crowded};
use connector::Connector;
pub use dsn::PostgresDriver;
pub use environment::Environment;
pub use migrator::PostgresMigrator;
pub use options::{CONNECTIONS_MAX, PostgresOptions, SNAPSHOTS_MAX};
use snapshot::PostgresSnapshot;

/// Storage backend that keeps its rows in one schema of a Postgres database.
///
/// ```no_run
/// # async fn example() -> larder_core::Result<()> {
/// use larder_core::Store;
/// use larder_postgres::{Postgres, PostgresOptions};
///
/// let options = PostgresOptions::parse("host=a,b target_session_attrs=read-write")?;
/// let backend = Postgres::open_with(options.pool(10, 8)?).await?;
/// let store = Store::builder(backend).build()?;
/// # drop(store); Ok(()) }
/// ```
pub struct Postgres {
    connections: Arc<Connections>,
}

impl Postgres {
    /// Connects to the server, and creates or migrates larder's own tables.
    ///
    /// Must be called within a tokio runtime, which has to outlive the backend.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the data-source name is malformed, an option is unknown, a
    ///   value is invalid, or the search path contains no schema that the role may use.
    /// - [`Error::Unavailable`] if no server can be reached, none matches `target_session_attrs`,
    ///   the server is a standby, or another process holds the lock of the migrations for too long.
    /// - [`Error::Corrupt`] if the schema lacks one of larder's tables, although the ledger records
    ///   its creation.
    /// - [`Error::Other`] if the server refuses the login, TLS fails, a file that the options name
    ///   cannot be read, the search path leads to several stores, a newer release of larder has
    ///   migrated the schema, or there is no tokio runtime.
    ///
    /// If connecting fails for a reason that the server did not report, the cause is a
    /// [`ConnectError`].
    pub async fn open(dsn: &str) -> Result<Self> {
        Self::open_with(PostgresOptions::parse(dsn)?).await
    }

    /// Opens a store with options that the caller has built.
    ///
    /// The options need not come from the environment of the process.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the search path contains no schema that the role may use.
    /// - [`Error::Unavailable`] if no server can be reached, none matches `target_session_attrs`,
    ///   the server is a standby, or another process holds the lock of the migrations for too long.
    /// - [`Error::Corrupt`] if the schema lacks one of larder's tables, although the ledger records
    ///   its creation.
    /// - [`Error::Other`] if the server refuses the login, TLS fails, the search path leads to
    ///   several stores, a newer release of larder has migrated the schema, or there is no tokio
    ///   runtime.
    ///
    /// If connecting fails for a reason that the server did not report, the cause is a
    /// [`ConnectError`].
    pub async fn open_with(options: PostgresOptions) -> Result<Self> {
        let connector = Connector::new(options);
        let runtime = Handle::try_current().map_err(|error| {
            Error::caused("cannot open the Postgres store outside a tokio runtime; call it within one", error)
        })?;
        let schema = migrate::migrate(&connector).await?;
        Self::within(connector, runtime, Access::ReadWrite, &schema).await
    }

    /// Opens the store for reading: migrates nothing, and the server refuses writes in its
    /// sessions.
    pub(crate) async fn open_read_only(options: PostgresOptions) -> Result<Self> {
        let connector = Connector::new(options);
        let runtime = Handle::try_current().map_err(|error| {
            Error::caused("cannot open the Postgres store outside a tokio runtime; call it within one", error)
        })?;
        let schema = migrate::check(&connector).await?;
        Self::within(connector, runtime, Access::ReadOnly, &schema).await
    }

    /// Opens the store in `schema`, whatever search path later sessions have.
    async fn within(connector: Connector, runtime: Handle, access: Access, schema: &str) -> Result<Self> {
        let connections = Connections::new(connector, runtime, access, schema)?;
        while_crowded(|| maintenance::check_tables(&connections, schema)).await?;
        Ok(Self { connections: Arc::new(connections) })
    }
}

#[async_trait]
impl Backend for Postgres {
    fn attach(&self, snapshots: OpenSnapshots) {
        self.connections.attach(snapshots);
    }

    async fn snapshot(&self, options: SnapshotOptions) -> Result<Box<dyn Snapshot>> {
        Ok(Box::new(PostgresSnapshot::take(&self.connections, options).await?))
    }

    async fn commit(&self, commit: Arc<Commit>) -> Result<Committed> {
        commit::make(&self.connections, None, commit).await
    }

    async fn stored_bytes(&self) -> Result<u64> {
        Ok(maintenance::stored_bytes(&self.connections).await?)
    }

    async fn sweep(&self, options: SweepOptions) -> Result<Swept> {
        Ok(maintenance::sweep(&self.connections, &options).await?)
    }

    async fn load_record(&self, key: &RecordKey) -> Result<Option<StoredRecord>> {
        Ok(records::load(&self.connections, key).await?)
    }

    async fn write_record(&self, write: Arc<RecordWrite>) -> Result<()> {
        records::write(&self.connections, write).await
    }

    async fn confirm_record(&self, key: &RecordKey, version: Version) -> Result<()> {
        records::confirm(&self.connections, key.clone(), version).await
    }

    async fn list_records(&self, after: Option<&RecordKey>, max: u32) -> Result<Vec<RecordKey>> {
        Ok(records::list(&self.connections, after, max).await?)
    }

    async fn due_records(&self, now: UnixMillis, max: u32) -> Result<Vec<RecordKey>> {
        Ok(records::due(&self.connections, now, max).await?)
    }

    async fn ping(&self) -> Result<()> {
        Ok(maintenance::ping(&self.connections).await?)
    }

    async fn close(&self) {
        self.connections.close();
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Postgres").finish_non_exhaustive()
    }
}

/// The program of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
