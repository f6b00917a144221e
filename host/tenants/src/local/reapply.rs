//! What a database in quarantine holds is read, compared with the live tenant, and applied to it.
//!
//! Rows that were sent before the database went into quarantine are left out, as the live tenant had them
//! and may have deleted or changed them since. A row that was deleted in the quarantined database can't
//! be told from one that was added to the live tenant later. So rows that only the live tenant has stay
//! as they are.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use larder_core::backend::{Backend, ChunkRow, ScanOptions, Snapshot, SnapshotOptions, StoredValue, is_live};
use larder_core::clock::{ForwardClock, UnixMillis};
use larder_core::memory::operator::{MemoryOperator, SessionFilter};
use larder_core::migrations::LedgerEntry;
use larder_core::name::{KeyRange, Namespace, RowKey, just_after};
use larder_core::{
    Error, Handle, HandleOptions, IdentityParts, Limits, MemorySnapshot, MigrationLedger, Mode, PutOptions,
    Share, Store, Version,
};
use larder_sqlite::{Durability, Sqlite, SqliteOptions};
use sha2::{Digest, Sha256};

use crate::error::{Result, TenantError};
use crate::local::cache::{CacheFolder, with_suffix};
use crate::local::quarantine::Quarantined;
use crate::local::tenants::{Tenants, blocking};

/// A database in quarantine, to be read.
///
/// It is a copy, so the files in quarantine stay as they are. Dropping this removes the copy.
pub struct QuarantinedStore {
    /// What is known of it.
    pub quarantined: Quarantined,
    store: Store,
    backend: Arc<dyn Backend>,
    clock: ForwardClock,
}

/// A row of a [`QuarantinedStore`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantinedRow {
    /// The row's namespace.
    pub namespace: String,
    /// The row's key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The version at which it was written.
    pub version: Version,
    /// When it expires, in milliseconds since 1970; `None` for a permanent row.
    pub expires_at: Option<UnixMillis>,
}

/// What becomes of rows and conversations that the live tenant has in another form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReapplyPolicy {
    /// They stay. Only what the live tenant lacks is added.
    OnlyMissing,
    /// They are replaced.
    Overwrite,
}

/// Which rows of a database in quarantine count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReapplyRows {
    /// Those that were written after the position that object storage has. If the live tenant lacks an
    /// older row, or has it in another form, it was deleted or changed there since.
    Unsent,
    /// All.
    All,
}

/// A row that would be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRow {
    /// The row's namespace.
    pub namespace: String,
    /// The row's key.
    pub key: String,
    /// The version of the live row that is replaced; [`Version::ABSENT`] if there is none.
    pub live: Version,
}

/// A conversation that would be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSession {
    /// Whose it is.
    pub identity: IdentityParts,
    /// A hash of the live one that is replaced; `None` if there is none.
    live: Option<[u8; 32]>,
}

impl PlannedSession {
    /// Whether the live tenant lacks it.
    pub fn is_missing(&self) -> bool {
        self.live.is_none()
    }
}

/// What applying a database in quarantine would do, and what it would leave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReapplyPlan {
    /// Rows that are written.
    pub rows: Vec<PlannedRow>,
    /// Conversations that are written.
    pub sessions: Vec<PlannedSession>,
    /// Rows that were sent before, and do not count.
    pub sent_rows: u64,
    /// Rows that are in the live tenant with the same value.
    pub equal_rows: u64,
    /// Rows that differ, and that the policy leaves.
    pub kept_rows: u64,
    /// Conversations that are the same in the live tenant.
    pub equal_sessions: u64,
    /// Conversations that differ, and that the policy leaves.
    pub kept_sessions: u64,
    /// Components whose migrations differ between the two. Rows of one layout must not be mixed with
    /// those of another.
    pub other_layouts: Vec<String>,
}

/// What [`QuarantinedStore::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reapplied {
    /// Rows that were written.
    pub rows: u64,
    /// Conversations that were written.
    pub sessions: u64,
    /// Rows that another client has changed since the plan was made, and that stay.
    pub changed_rows: Vec<PlannedRow>,
    /// Conversations that were changed since the plan was made, and that stay.
    pub changed_sessions: Vec<PlannedSession>,
}

/// Rows that a plan may hold. Each takes some hundred bytes of memory.
const PLANNED_ROWS_MAX: usize = 1_000_000;

/// Rows and bytes that are read at once.
const PAGE_ROWS: usize = 200;
const PAGE_BYTES: u64 = 1 << 20;

/// Rows and bytes that one transaction writes.
const COMMIT_ROWS: usize = 500;
const COMMIT_BYTES: usize = 4 << 20;

const DATABASE: &str = "database.db";

impl CacheFolder {
    /// Opens a database in quarantine to read it, with the system's clock for times to live.
    ///
    /// # Errors
    /// [`TenantError::InvalidArgument`] if nothing in quarantine has this name, [`TenantError::Corrupt`] if the database
    /// is damaged, and [`TenantError::File`] if it can't be copied.
    pub async fn open_quarantined(&self, name: &str) -> Result<QuarantinedStore> {
        self.open_quarantined_at(name, ForwardClock::default()).await
    }

    async fn open_quarantined_at(&self, name: &str, clock: ForwardClock) -> Result<QuarantinedStore> {
        let quarantined = self.in_quarantine(name)?;
        let what = format!("{name} can't be copied");
        let copied = move |error| TenantError::file(what.clone(), error);
        let folder = tempfile::Builder::new().prefix("quarantined-").tempdir_in(self.temporary_folder());
        let folder = folder.map_err(&copied)?;
        let (database, copy) = (quarantined.database.clone(), folder.path().join(DATABASE));
        blocking(move || copy_database(&database, &copy).map_err(copied)).await?;
        let failed = |error| TenantError::database(&quarantined.tenant, error);
        Sqlite::verify(folder.path().join(DATABASE)).await.map_err(failed)?;
        let options =
            SqliteOptions { create: false, durability: Durability::Off, ..SqliteOptions::default() };
        let database = Sqlite::open_temporary(folder, DATABASE, options).await.map_err(failed)?;
        let backend: Arc<dyn Backend> = Arc::new(database);
        let store = Store::builder_shared(backend.clone()).sweep_interval(None).build().map_err(failed)?;
        Ok(QuarantinedStore { quarantined, store, backend, clock })
    }
}

/// Copies a database with its write-ahead log. SQLite makes the index of the log anew.
fn copy_database(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    match fs::copy(with_suffix(from, "-wal"), with_suffix(to, "-wal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Tenants {
    /// Opens a database in the quarantine of this host to read it.
    ///
    /// # Errors
    /// As [`CacheFolder::open_quarantined`].
    pub async fn open_quarantined(&self, name: &str) -> Result<QuarantinedStore> {
        let clock = ForwardClock::new(self.remote().options().clock.clone());
        self.cache().open_quarantined_at(name, clock).await
    }
}

impl QuarantinedStore {
    /// Gives each row that has not expired to `each`, in the order of namespaces and keys. Rows of
    /// larder's own namespaces are left out.
    ///
    /// # Errors
    /// Those of reading, and those of `each`, which end it.
    pub async fn for_each_row<E: From<TenantError>>(
        &self,
        mut each: impl AsyncFnMut(QuarantinedRow) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error| E::from(self.failed(error));
        let mut snapshot = self.snapshot().await.map_err(failed)?;
        let mut namespace = snapshot.next_namespace(None).await.map_err(failed)?;
        while let Some(own) = namespace {
            if !own.is_reserved() {
                let mut range = KeyRange::new(own.clone(), Vec::new(), None);
                loop {
                    let chunk = snapshot.scan(&range, PAGE).await.map_err(failed)?;
                    for row in chunk.rows() {
                        each(quarantined_row(&own, row).map_err(failed)?).await?;
                    }
                    match chunk.last_key() {
                        Some(last) if !chunk.exhausted => range = range.narrowed_from(&just_after(last)),
                        _ => break,
                    }
                }
            }
            namespace = snapshot.next_namespace(Some(&own)).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Gives each conversation to `each`, in the order of identities.
    ///
    /// # Errors
    /// [`TenantError::Corrupt`] for a conversation that can't be read, other errors of reading, and
    /// those of `each`. Each of them ends it.
    pub async fn for_each_session<E: From<TenantError>>(
        &self,
        mut each: impl AsyncFnMut(IdentityParts, MemorySnapshot) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = |error| E::from(self.failed(error));
        let operator = MemoryOperator::new(&self.store);
        let mut after = None;
        loop {
            let page = operator.list(&SessionFilter::all(), after).await.map_err(failed)?;
            for session in page.sessions {
                let identity = session.identity;
                if let Some(snapshot) = operator.export(identity.clone()).await.map_err(failed)? {
                    each(identity, snapshot).await?;
                }
            }
            after = page.next;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// Compares it with the live tenant. Nothing is changed.
    ///
    /// # Errors
    /// Those of reading either, and [`TenantError::InvalidArgument`] if more than a million rows would be written.
    pub async fn plan(&self, live: &Store, policy: ReapplyPolicy, rows: ReapplyRows) -> Result<ReapplyPlan> {
        let sent = self.quarantined.sent_position.filter(|_| rows == ReapplyRows::Unsent);
        let handle = operator(live);
        let mut plan = ReapplyPlan::default();
        self.for_each_row(async |row| {
            if sent.is_some_and(|sent| row.version <= Version(sent)) {
                plan.sent_rows += 1;
                return Ok(());
            }
            let mut view = handle.begin(Mode::View).map_err(|error| self.failed(error))?;
            let found = view.get_versioned(row.namespace.clone(), row.key.clone()).await;
            let version = match found.map_err(|error| self.failed(error))? {
                None => Version::ABSENT,
                Some((value, _)) if value == row.value => {
                    plan.equal_rows += 1;
                    return Ok(());
                }
                Some(_) if policy == ReapplyPolicy::OnlyMissing => {
                    plan.kept_rows += 1;
                    return Ok(());
                }
                Some((_, version)) => version,
            };
            if plan.rows.len() >= PLANNED_ROWS_MAX {
                return Err(TenantError::invalid_argument(format!(
                    "more than {PLANNED_ROWS_MAX} rows would be written; export them, and write them in parts"
                )));
            }
            plan.rows.push(PlannedRow { namespace: row.namespace, key: row.key, live: version });
            Ok(())
        })
        .await?;
        let sessions = MemoryOperator::new(live);
        self.for_each_session(async |identity, snapshot| {
            let found = sessions.export(identity.clone()).await.map_err(|error| self.failed(error))?;
            match found {
                Some(found) if found == snapshot => plan.equal_sessions += 1,
                Some(_) if policy == ReapplyPolicy::OnlyMissing => plan.kept_sessions += 1,
                found => plan.sessions.push(PlannedSession { identity, live: found.as_ref().map(hash) }),
            }
            Ok::<_, TenantError>(())
        })
        .await?;
        plan.other_layouts = self.other_layouts(live).await?;
        Ok(plan)
    }

    /// Components that have applied other steps here than in the live tenant.
    async fn other_layouts(&self, live: &Store) -> Result<Vec<String>> {
        let (own, live) = (self.layouts(&self.store).await?, self.layouts(live).await?);
        let differ = own.iter().filter(|layout| !live.contains(layout));
        let others = live.iter().filter(|layout| !own.contains(layout));
        let mut names: Vec<_> = differ.chain(others).map(|(component, _)| component.clone()).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Each component, with what its ledger says of each step.
    async fn layouts(&self, store: &Store) -> Result<Vec<Layout>> {
        let ledger = MigrationLedger::new(operator(store));
        let mut layouts = Vec::new();
        let collected = ledger.for_each_component(|steps| {
            let component = steps.first().map(|step| step.component.clone()).unwrap_or_default();
            let checksum =
                |step: &LedgerEntry| step.applied.as_ref().ok().map(|applied| applied.checksum.clone());
            layouts.push((component, steps.iter().map(|step| (step.key.clone(), checksum(step))).collect()));
            Ok::<_, Error>(())
        });
        collected.await.map_err(|error| self.failed(error))?;
        Ok(layouts)
    }

    /// Does what a plan says. What has changed in the live tenant since the plan was made stays. A
    /// row keeps the moment at which it expires.
    ///
    /// If it fails or the process ends, part of the plan is done, and a new plan holds the rest.
    ///
    /// # Errors
    /// Those of reading and committing, such as [`Error::LimitExceeded`] over a quota.
    pub async fn apply(
        &self,
        live: &Store,
        plan: &ReapplyPlan,
    ) -> std::result::Result<Reapplied, (Reapplied, TenantError)> {
        let mut done = Reapplied::default();
        match self.apply_into(live, plan, &mut done).await {
            Ok(()) => Ok(done),
            Err(error) => Err((done, error)),
        }
    }

    async fn apply_into(&self, live: &Store, plan: &ReapplyPlan, done: &mut Reapplied) -> Result<()> {
        let handle = operator(live);
        let mut snapshot = self.snapshot().await.map_err(|error| self.failed(error))?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for planned in &plan.rows {
            let row = self.stored(snapshot.as_mut(), planned).await.map_err(|error| self.failed(error))?;
            let Some(row) = row.filter(|row| is_live(row.expires_at, self.clock.now())) else { continue };
            bytes += row.value.len();
            batch.push((planned, row));
            if batch.len() >= COMMIT_ROWS || bytes >= COMMIT_BYTES {
                self.write(&handle, std::mem::take(&mut batch), done).await?;
                bytes = 0;
            }
        }
        self.write(&handle, batch, done).await?;
        let (own, live) = (MemoryOperator::new(&self.store), MemoryOperator::new(live));
        for planned in &plan.sessions {
            let identity = planned.identity.clone();
            let snapshot = own.export(identity.clone()).await.map_err(|error| self.failed(error))?;
            let Some(snapshot) = snapshot else { continue };
            let is_as_planned = |found: Option<&MemorySnapshot>| found.map(hash) == planned.live;
            match live.import_if(identity, &snapshot, is_as_planned).await {
                Ok(()) => done.sessions += 1,
                Err(Error::Conflict) => done.changed_sessions.push(planned.clone()),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    /// Writes rows in one transaction; one by one if one of them was changed since.
    async fn write(
        &self,
        handle: &Handle,
        batch: Vec<(&PlannedRow, StoredValue)>,
        done: &mut Reapplied,
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.commit(handle, &batch).await {
            Ok(()) => done.rows += batch.len() as u64,
            Err(Error::Conflict) => {
                for row in batch {
                    match self.commit(handle, std::slice::from_ref(&row)).await {
                        Ok(()) => done.rows += 1,
                        Err(Error::Conflict) => done.changed_rows.push(row.0.clone()),
                        Err(error) => return Err(self.failed(error)),
                    }
                }
            }
            Err(error) => return Err(self.failed(error)),
        }
        Ok(())
    }

    async fn commit(
        &self,
        handle: &Handle,
        rows: &[(&PlannedRow, StoredValue)],
    ) -> std::result::Result<(), Error> {
        let mut update = handle.begin(Mode::Update)?;
        let now = self.clock.now();
        for (planned, row) in rows {
            let ttl_millis = row.expires_at.map(|expires_at| expires_at.saturating_sub(now).max(1));
            let options = PutOptions { ttl_millis, if_version: Some(planned.live) };
            let PlannedRow { namespace, key, .. } = (*planned).clone();
            update.put_with(namespace, key, row.value.clone(), options)?;
        }
        update.commit().await.map(drop)
    }

    async fn stored(
        &self,
        snapshot: &mut dyn Snapshot,
        planned: &PlannedRow,
    ) -> std::result::Result<Option<StoredValue>, Error> {
        let namespace = Namespace::from_stored(planned.namespace.clone().into_bytes())?;
        let key = larder_core::name::Key::from_stored(planned.key.clone().into_bytes())?;
        snapshot.get(&RowKey { namespace, key }).await
    }

    async fn snapshot(&self) -> std::result::Result<Box<dyn Snapshot>, Error> {
        let deadline = Instant::now() + DEADLINE;
        let (clock, share) = (self.clock.clone(), Share::host());
        self.backend.snapshot(SnapshotOptions { mode: Mode::View, clock, deadline, share }).await
    }

    fn failed(&self, error: Error) -> TenantError {
        TenantError::database(&self.quarantined.tenant, error)
    }
}

/// A component, and the keys and checksums of its steps.
type Layout = (String, Vec<(Vec<u8>, Option<String>)>);

/// How long all rows may be read.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

const PAGE: ScanOptions =
    ScanOptions { reverse: false, keys_only: false, max_rows: PAGE_ROWS, max_bytes: PAGE_BYTES };

fn quarantined_row(namespace: &Namespace, row: ChunkRow<'_>) -> std::result::Result<QuarantinedRow, Error> {
    let key = std::str::from_utf8(row.key).map_err(|_| Error::Corrupt("a key is not UTF-8".to_string()))?;
    Ok(QuarantinedRow {
        namespace: namespace.to_string(),
        key: key.to_string(),
        value: row.value.to_vec(),
        version: row.version,
        expires_at: row.expires_at,
    })
}

fn hash(snapshot: &MemorySnapshot) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(snapshot.strategy.name());
    hash.update([0]);
    hash.update(&snapshot.bytes);
    hash.finalize().into()
}

/// A handle that no limit of a guest bounds.
fn operator(store: &Store) -> Handle {
    let limits = Limits {
        value_bytes: Limits::VALUE_BYTES_MAX,
        result_bytes: Limits::VALUE_BYTES_MAX * 2,
        transaction_bytes: Limits::VALUE_BYTES_MAX * 2,
        instance_bytes: Limits::VALUE_BYTES_MAX * 16,
        ..Limits::default()
    };
    store.handle(HandleOptions { limits: limits.into(), ..HandleOptions::default() })
}
