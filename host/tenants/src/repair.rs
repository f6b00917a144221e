//! Rebuilds a lost or damaged head from the other objects of a tenant.

use bytes::Bytes;
use larder_core::backend::Backend;
use larder_sqlite::{Sqlite, SqliteOptions};
use object_store::ObjectMeta;

use crate::error::{Result, TenantError};
use crate::head::{Head, MAX_HEAD_BYTES, SnapshotRef};
use crate::key::TenantKey;
use crate::local::CacheFolder;
use crate::objects::{Found, Written, written_at};
use crate::remote::Remote;
use crate::segments::{SEGMENTS, position_of};
use crate::snapshot_transfer::{Expected, fetch_expected};
use crate::snapshots::SNAPSHOTS;

/// A planned head for a tenant whose own head is lost or damaged.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Repair {
    /// The head to write.
    ///
    /// It has all intact snapshots, ordered by their last commits. So if no commit followed a
    /// restore, the repair undoes that restore.
    pub head: Head,
    /// The names of damaged snapshots, each with its error. The repair does not remove them.
    pub damaged: Vec<(String, TenantError)>,
    /// The number of consecutive segments at the end of the log. The current snapshot may contain
    /// some of them.
    pub segments: u64,
}

/// The most objects of one tenant that are listed.
const OBJECTS_MAX: usize = 1_000_000;

/// The gap to the new epoch, because the epochs of the last leases are unknown.
const EPOCHS_LEFT_OUT: u64 = 1 << 16;

impl Remote {
    /// Plans a new head for a tenant from its other objects.
    ///
    /// Writes nothing to object storage.
    ///
    /// Downloads every snapshot to verify it.
    ///
    /// # Errors
    /// - [`TenantError::InvalidArgument`] if the head is intact.
    /// - [`TenantError::Corrupt`] if no snapshot is intact.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the head.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    /// - [`TenantError::DiskFull`] if a snapshot would fill the disk.
    /// - [`TenantError::File`] if the cache folder cannot be written.
    /// - [`TenantError::Database`] if a snapshot cannot be opened.
    pub async fn plan_repair(&self, key: &TenantKey, cache: &CacheFolder) -> Result<Repair> {
        self.check_needs_repair(key).await?;
        let folder = self.folder_path(key, SNAPSHOTS);
        let mut metas = self.objects().list(&folder, None, OBJECTS_MAX).await?;
        metas.sort_by(|a, b| (a.last_modified, &a.location).cmp(&(b.last_modified, &b.location)));
        let (mut whole, mut damaged) = (Vec::new(), Vec::new());
        for meta in &metas {
            let name = meta.location.filename().unwrap_or_default().to_string();
            match self.snapshot_of(key, cache, meta).await {
                Ok(snapshot) => whole.push(snapshot),
                Err(error @ TenantError::Corrupt { .. }) => damaged.push((name, error)),
                Err(error) => return Err(error),
            }
        }
        // Versions increase from lease to lease, but a host that lost its lease may have completed
        // an upload late.
        whole.sort_by_key(|(_, version)| *version);
        let positions = self.segment_positions(key).await?;
        let mut head = Head::new(key);
        let mut epoch = 0;
        for (number, (snapshot, version)) in (1..).zip(whole) {
            epoch = epoch.max(version >> 32);
            head.supersede(SnapshotRef { generation: number, version, ..snapshot });
            head.generation = number;
        }
        let Some(current) = &mut head.snapshot else {
            return Err(TenantError::corrupt(key, "the tenant has no intact snapshot"));
        };
        // A replay skips the commits that the snapshot contains.
        let run = last_run(&positions);
        current.covers = run.first().map_or(0, |first| first.saturating_sub(1));
        head.has_log = !positions.is_empty();
        head.epoch = epoch.saturating_add(EPOCHS_LEFT_OUT);
        Ok(Repair { head, damaged, segments: run.len() as u64 })
    }

    /// Writes the planned head.
    ///
    /// # Errors
    /// - [`TenantError::InvalidArgument`] if an intact head exists by now.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote the head.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn repair(&self, key: &TenantKey, repair: &Repair) -> Result<Head> {
        let found = self.check_needs_repair(key).await?;
        let head = repair.head.successor()?;
        let (path, bytes) = (self.head_path(key), Bytes::from(head.to_bytes()?));
        let own = bytes.clone();
        let is_own = move |found: &[u8]| found == own;
        let written = match found {
            Some(found) => self.objects().swap(&path, bytes, &found.version, is_own, MAX_HEAD_BYTES).await?,
            None => self.objects().create(&path, bytes, is_own, MAX_HEAD_BYTES).await?,
        };
        match written {
            Written::Done(_) => Ok(head),
            Written::Lost(_) => Err(is_intact(key)),
        }
    }

    /// The damaged head. `None` if the head is missing.
    async fn check_needs_repair(&self, key: &TenantKey) -> Result<Option<Found>> {
        let Some(found) = self.find_head(key).await? else { return Ok(None) };
        match Head::parse(key, &found.bytes) {
            Ok(_) => Err(is_intact(key)),
            Err(TenantError::Corrupt { .. }) => Ok(Some(found)),
            Err(error) => Err(error),
        }
    }

    /// The reference to a snapshot, as far as its object reveals it, and the version of its last
    /// commit.
    async fn snapshot_of(
        &self,
        key: &TenantKey,
        cache: &CacheFolder,
        meta: &ObjectMeta,
    ) -> Result<(SnapshotRef, u64)> {
        let name = meta.location.filename().unwrap_or_default().to_string();
        let sha256 = name.split('-').next().unwrap_or_default().to_string();
        let snapshot = SnapshotRef {
            name,
            bytes: 0,
            compressed_bytes: meta.size,
            sha256: sha256.clone(),
            taken_at: written_at(meta),
            generation: 0,
            covers: 0,
            version: 0,
        };
        if let Some(fault) = snapshot.fault() {
            return Err(TenantError::corrupt(key, fault));
        }
        let max_bytes = self.options().max_snapshot_bytes;
        let expected = Expected { sha256, compressed_bytes: meta.size, max_bytes, is_exact: false };
        let file = cache.temporary();
        let bytes = fetch_expected(self.objects(), key, &meta.location, &expected, file.path()).await?;
        let failed = |error| TenantError::database(key, error);
        Sqlite::verify(file.path()).await.map_err(failed)?;
        let options = SqliteOptions::default().create(false).cache_bytes(0);
        let database = Sqlite::open_positioned(file.path(), options).await.map_err(failed)?;
        let version = database.redo_position().await;
        database.close().await;
        Ok((SnapshotRef { bytes, ..snapshot }, version.map_err(failed)?.0))
    }

    async fn segment_positions(&self, key: &TenantKey) -> Result<Vec<u64>> {
        let folder = self.folder_path(key, SEGMENTS);
        let found = self.objects().list(&folder, None, OBJECTS_MAX).await?;
        let mut positions: Vec<_> = found.iter().filter_map(|meta| position_of(&meta.location)).collect();
        positions.sort_unstable();
        Ok(positions)
    }
}

fn is_intact(key: &TenantKey) -> TenantError {
    TenantError::invalid_argument(format!("the head of {key} is intact, so there is nothing to repair"))
}

/// The last run of consecutive positions.
fn last_run(positions: &[u64]) -> &[u64] {
    let follow = |pair: &[u64]| matches!(pair, [one, next] if one.checked_add(1) == Some(*next));
    let gap = positions.windows(2).rposition(|pair| !follow(pair));
    positions.get(gap.map_or(0, |gap| gap + 1)..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_run_ends_at_the_first_gap_from_the_end() {
        assert_eq!(last_run(&[]), [0; 0]);
        assert_eq!(last_run(&[7]), [7]);
        assert_eq!(last_run(&[1, 2, 3]), [1, 2, 3]);
        assert_eq!(last_run(&[1, 3, 4]), [3, 4]);
        assert_eq!(last_run(&[1, 2, 9]), [9]);
    }
}
