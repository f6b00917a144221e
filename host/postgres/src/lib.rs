//! The Postgres backend of larder, for stores that several hosts share.
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
//! | URL | `postgres://user:password@host:5432/database?connect_timeout=5`, or with `postgresql://` |
//! | keywords | `host=/run/postgresql user=larder dbname=plugins` |
//!
//! Both take the options of libpq, completed from a service file, the environment variables of libpq and a password file,
//! and larder's own `schema`, `pool_size` and `pool_snapshots`. `docs/postgres.md` lists them all. An embedder whose
//! environment must not count opens a store with [`PostgresOptions::parse_with`] and [`Postgres::open_with`].
//!
//! Several hosts are tried in turn; with `target_session_attrs=read-write` the one that is primary is taken.
//!
//! # Schemas
//!
//! larder's tables are made and found in the first schema of the search path. `schema=tenant_a`, which both forms take, pins
//! a store to a schema, which has to exist: the search path is then this schema alone. Each schema has a store of its own.
//!
//! Without it the search path is the server's, as a rule `"$user", public`, or that of `options=-c search_path=…`. If its
//! first schema holds no store and another one of it does, opening the store fails with
//! [`MigrationError::ShadowedLedger`](larder_core::schema::MigrationError::ShadowedLedger) as its cause: a schema that is
//! created later, for example by `CREATE SCHEMA AUTHORIZATION`, would otherwise hide the store behind a new one. If several
//! schemas of it hold a store, opening fails with
//! [`MigrationError::SeveralLedgers`](larder_core::schema::MigrationError::SeveralLedgers).
//!
//! The schema is resolved once, when the store is opened, and stands in every statement: a change of the search path does not
//! lead an open store to other tables.
//!
//! # Privileges
//!
//! The role that creates a store, or migrates it to a newer release, needs `CREATE` and `USAGE` on the schema. Afterwards `USAGE`
//! on the schema, all privileges of the tables, and `SELECT`, `USAGE` and `UPDATE` of the sequence are enough.
//!
//! # TLS
//!
//! `sslmode` means what it means to libpq. The default, `prefer`, encrypts if the server can, and protects from no one who
//! can change what the network carries: across a network that is not trusted, use `sslmode=verify-full` with
//! `sslrootcert=system` or a file of authorities. Encryption is that of rustls.
//!
//! # How it works
//!
//! - Snapshots are REPEATABLE READ transactions, which a hot standby accepts too. Each sees one committed state.
//! - A commit is a READ COMMITTED transaction. It locks the rows that it depends on, checks that they
//!   are unchanged, and writes, usually in one round trip. It depends on no setting of the session, the
//!   role or the database, and its own settings end with it.
//! - Locks of 16 empty tables, which stand for namespaces, protect absent rows and ranges. A commit that
//!   depends on one excludes the other commits of its namespace.
//! - There are at most `pool_size` connections for work, [`CONNECTIONS_MAX`] by default, of which snapshots have at most
//!   `pool_snapshots`, [`SNAPSHOTS_MAX`] by default, so that transactions which wait for their guest never keep a commit of
//!   another from a connection. Broken connections are replaced when they are next asked for. If the server allows fewer,
//!   calls wait for one of those that are open.
//! - The server ends a transaction in which nothing happens for ten minutes, as a net for a host that has gone:
//!   a longer `transaction_timeout` has no use here.
//!
//! [`PostgresMigrator`] keeps a platform's own tables up to date by the same rules as larder's, in the same schema or in
//! another.

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
mod fnv;
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
use larder_core::backend::{Backend, Committed, Snapshot, SnapshotOptions, SweepOptions, Swept, Version};
use larder_core::clock::UnixMillis;
use larder_core::commit::Commit;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::{Error, OpenSnapshots, Result};
use tokio::runtime::Handle;

/// What [`PostgresMigrator::with_connection`] gives a client of, in the release that fits.
pub use tokio_postgres;

pub use connect_error::ConnectError;
use connections::{Access, Connections, while_crowded};
use connector::Connector;
pub use dsn::PostgresDriver;
pub use environment::Environment;
pub use migrator::PostgresMigrator;
pub use options::{CONNECTIONS_MAX, PostgresOptions, SNAPSHOTS_MAX};
use snapshot::PostgresSnapshot;

/// The rows in one schema of a Postgres database.
pub struct Postgres {
    connections: Arc<Connections>,
}

impl Postgres {
    /// Connects, and brings larder's own tables up to date. It is called within a tokio runtime, which has to live as
    /// long as the backend does.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] if the data-source name is malformed or an option is unknown or invalid.
    /// - [`Error::Unavailable`] if the server can't be reached or is a standby.
    /// - [`Error::Other`] if it refuses the login, TLS fails, or a newer release of larder has migrated the schema.
    ///
    /// The cause of what went wrong while connecting is a [`ConnectError`] if it is not the server's own error.
    pub async fn open(dsn: &str) -> Result<Self> {
        Self::open_with(PostgresOptions::parse(dsn)?).await
    }

    /// As [`Postgres::open`], with options of the caller's own, which need not come from the environment of the process.
    ///
    /// # Errors
    /// Those of [`Postgres::open`], [`Error::InvalidArgument`] aside.
    pub async fn open_with(options: PostgresOptions) -> Result<Self> {
        let connector = Connector::new(options);
        let runtime = Handle::try_current()
            .map_err(|error| Error::caused("a Postgres store needs a tokio runtime", error))?;
        let schema = migrate::migrate(&connector).await?;
        Self::within(connector, runtime, Access::ReadWrite, &schema).await
    }

    /// Connects to read. Nothing is created or migrated, and the server refuses every write of these sessions.
    pub(crate) async fn open_read_only(options: PostgresOptions) -> Result<Self> {
        let connector = Connector::new(options);
        let runtime = Handle::try_current()
            .map_err(|error| Error::caused("a Postgres store needs a tokio runtime", error))?;
        let schema = migrate::check(&connector).await?;
        Self::within(connector, runtime, Access::ReadOnly, &schema).await
    }

    /// The store in a schema, whatever sessions find first later.
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
