//! Hydration: brings the newest state of a tenant's database into the cache folder, and decides
//! what to do with a database that is already there.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use larder_core::Event;
use larder_core::backend::Backend;
use larder_sqlite::{Sqlite, SqliteOptions};

use crate::dsn::Durability;
use crate::error::{Result, TenantError};
use crate::head::min_version;
use crate::key::TenantKey;
use crate::lease::Lease;
use crate::local::cache::{CacheFolder, with_suffix};
use crate::local::journal::LogJournal;
use crate::local::quarantine::Quarantined;
use crate::local::state::{Leftover, LocalState};
use crate::local::tenants::Surroundings;
use crate::segments::Replay;

/// A database that was opened.
pub(crate) struct Hydrated {
    pub(crate) database: Sqlite,
    /// Ships commits to object storage, with durability `object`.
    pub(crate) journal: Option<Arc<LogJournal>>,
    /// The position up to which object storage has the database.
    pub(crate) sent: u64,
    /// Whether an earlier process left later commits.
    pub(crate) is_ahead: bool,
    /// The recorded state of the database in the cache folder.
    pub(crate) state: LocalState,
}

/// Runs before a lease is taken. A process that was killed right after it took a lease has left a
/// database whose recorded state lacks that lease. No other host had the tenant meanwhile, and the
/// next lease must build on that one.
pub(crate) async fn adopt_leftover(around: &Surroundings, key: &TenantKey) -> Result<()> {
    let cache = &around.cache;
    if !cache.has_database(key) {
        return Ok(());
    }
    let Some(state) = cache.read_state(key)? else { return Ok(()) };
    let Some(head) = around.remote.head(key).await? else { return Ok(()) };
    state.adopted(&head, cache.holder()).map_or(Ok(()), |state| cache.write_state(key, &state))
}

/// Runs after an opening that failed. Returns whether the recorded state, if there is a database,
/// has this lease, so that the next lease directly follows it. If not, only the lease in the head
/// tells.
pub(crate) fn is_leftover_noted(around: &Surroundings, lease: &Lease) -> bool {
    let (cache, key) = (&around.cache, lease.key());
    let is_noted = |state: Option<LocalState>| state.is_none_or(|state| state.is_under(lease));
    !cache.has_database(key) || cache.read_state(key).is_ok_and(is_noted)
}

/// Opens the newest state of a tenant under a lease that was just taken.
pub(crate) async fn hydrate(around: &Arc<Surroundings>, lease: &Lease) -> Result<Hydrated> {
    match look_at_leftover(around, lease).await? {
        Some(position) => open(around, lease, Some(position)).await,
        None => {
            fetch(around, lease).await?;
            open(around, lease, None).await
        }
    }
}

/// Examines the database that an earlier process left. If it is the newest state, it stays, and
/// this returns the position up to which object storage has it. Otherwise it is removed, or goes
/// into quarantine if it has acknowledged commits.
async fn look_at_leftover(around: &Surroundings, lease: &Lease) -> Result<Option<u64>> {
    let (cache, key) = (&around.cache, lease.key());
    if !cache.has_database(key) {
        cache.remove(key)?;
        return Ok(None);
    }
    let Some(state) = cache.read_state(key)? else {
        quarantine(around, lease, "the origin of this database is not recorded", None, None)?;
        return Ok(None);
    };
    let (position, superseded) = match state.leftover(lease) {
        Leftover::Worthless => {
            cache.remove(key)?;
            return Ok(None);
        }
        Leftover::Current { position } => {
            // If opening fails further on, the next lease directly follows this one.
            cache.write_state(key, &state.under(lease))?;
            (position, None)
        }
        Leftover::Superseded { position, reason } => (position, Some(reason)),
    };
    match (position_of(cache, lease).await, superseded) {
        (Ok(found), None) if found >= position => return Ok(Some(position)),
        (Ok(found), None) => {
            // A power cut lost commits that had been sent before. The snapshot has all that is
            // left.
            tracing::warn!(tenant = %key, found, sent = position, "the local database is older than its snapshot");
            cache.remove(key)?;
        }
        // A power cut may have lost commits that had been sent.
        (Ok(found), Some(_)) if found <= position => cache.remove(key)?,
        (Ok(found), Some(reason)) => {
            quarantine(around, lease, reason, Some(position), Some(found))?;
        }
        (Err(larder_core::Error::Corrupt(reason)), _) => {
            let reason = format!("the database that an earlier process left is damaged: {reason}");
            quarantine(around, lease, &reason, Some(position), None)?;
        }
        // A disk that cannot be read now may be readable later.
        (Err(error), _) => return Err(TenantError::database(key, error)),
    }
    Ok(None)
}

/// Verifies a database that is not open, and returns its position.
async fn position_of(cache: &CacheFolder, lease: &Lease) -> larder_core::Result<u64> {
    let path = cache.database(lease.key());
    Sqlite::verify(&path).await?;
    let database = Sqlite::open_positioned(&path, existing()).await?;
    let position = database.redo_position().await;
    database.finish().await?;
    Ok(position?.0)
}

pub(crate) fn existing() -> SqliteOptions {
    SqliteOptions::default().create(false).cache_bytes(0)
}

/// The bytes of rows that an open tenant caches in memory. A host may have hundreds of open
/// tenants.
const ROW_CACHE_BYTES: u64 = 2 << 20;

pub(crate) fn quarantine(
    around: &Surroundings,
    lease: &Lease,
    reason: &str,
    sent_position: Option<u64>,
    position: Option<u64>,
) -> Result<Quarantined> {
    let key = lease.key();
    let note = Quarantined {
        name: String::new(),
        database: Default::default(),
        tenant: key.to_string(),
        reason: reason.to_string(),
        at: around.remote.now(),
        sent_position,
        position,
    };
    let note = around.cache.put_into_quarantine(key, note)?;
    around.events.emit(Event::TenantQuarantined { tenant: key.to_string(), reason: reason.to_string() });
    Ok(note)
}

/// Downloads the current snapshot to the path of the database. Does nothing if the tenant has none.
async fn fetch(around: &Surroundings, lease: &Lease) -> Result<()> {
    let (cache, key) = (&around.cache, lease.key());
    cache.write_state(key, &LocalState::hydrating(lease, around.options.durability))?;
    let Some(snapshot) = lease.head().snapshot else { return Ok(()) };
    let file = cache.temporary();
    let max_bytes = around.remote.options().max_snapshot_bytes;
    around.remote.fetch(key, &snapshot, file.path(), max_bytes).await?;
    Sqlite::verify(file.path()).await.map_err(|error| TenantError::database(key, error))?;
    cache.install(key, file)
}

/// Opens the database. One that was downloaded then replays the log.
async fn open(around: &Arc<Surroundings>, lease: &Lease, kept: Option<u64>) -> Result<Hydrated> {
    let key = lease.key();
    let path = around.cache.database(key);
    let failed = |error| TenantError::database(key, error);
    let durability = around.options.durability;
    let journal = (durability == Durability::Object).then(|| Arc::new(LogJournal::new(lease)));
    let min_version = min_version(lease.epoch());
    let options = SqliteOptions::default().cache_bytes(ROW_CACHE_BYTES).min_version(min_version);
    let database = match &journal {
        Some(journal) => Sqlite::open_journaled(&path, options, journal.clone()).await,
        None => Sqlite::open_positioned(&path, options).await,
    };
    let database = database.map_err(failed)?;
    match bring_up_to_date(around, lease, &database, kept).await {
        Ok((sent, is_ahead, state)) => Ok(Hydrated { database, journal, sent, is_ahead, state }),
        Err(error) => {
            database.close().await;
            Err(error)
        }
    }
}

/// Returns the position up to which object storage has the database, whether the database has more,
/// and the recorded state.
async fn bring_up_to_date(
    around: &Surroundings,
    lease: &Lease,
    database: &Sqlite,
    kept: Option<u64>,
) -> Result<(u64, bool, LocalState)> {
    let failed = |error| TenantError::database(lease.key(), error);
    let sent = match kept {
        Some(position) => position,
        None => replay(lease.key(), lease.replay().await?, database).await?,
    };
    if kept.is_none() && lease.head().snapshot.is_none() {
        sync_new_log(&around.cache.database(lease.key()))?;
    }
    let is_ahead = database.redo_position().await.map_err(failed)?.0 != sent;
    // The commits that are ahead are only on this disk, even if later commits are not. The first
    // checkpoint records that object storage has them.
    let durability = if is_ahead { Durability::Local } else { around.options.durability };
    let state = LocalState::open(lease, durability, sent);
    around.cache.write_state(lease.key(), &state)?;
    Ok((sent, is_ahead, state))
}

/// Syncs the write-ahead log of a new database, because only the log has its tables. Without this,
/// a power cut leaves a database without tables, which looks damaged.
fn sync_new_log(database: &Path) -> Result<()> {
    let log = with_suffix(database, "-wal");
    // SQLite takes no POSIX locks on its log, so closing this descriptor releases none.
    match File::open(&log).and_then(|log| log.sync_all()) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(TenantError::file(format!("{} can't be synced", log.display()), error))
        }
        _ => Ok(()),
    }
}

/// Replays the commits of a log into a database, and returns its resulting position.
pub(crate) async fn replay(key: &TenantKey, mut log: Replay, database: &Sqlite) -> Result<u64> {
    let failed = |error| TenantError::database(key, error);
    while let Some((_, redo)) = log.next().await? {
        database.replay(&redo).await.map_err(failed)?;
    }
    Ok(database.redo_position().await.map_err(failed)?.0)
}
