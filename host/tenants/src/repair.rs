//! A head that is lost or damaged is made anew of the objects that are there.

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

/// A head for a tenant whose own one is lost or damaged.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Repair {
    /// The head that would be written. Its snapshots are all that are whole, in the order of their last commits. So a restore
    /// that nothing followed is undone.
    pub head: Head,
    /// Snapshots that are damaged, and why. The repair leaves them where they are.
    pub damaged: Vec<(String, TenantError)>,
    /// Segments that follow on the current snapshot, or that it holds already.
    pub segments: u64,
}

/// Objects of one tenant that are looked at.
const OBJECTS_MAX: usize = 1_000_000;

/// Epochs that are left out, as those of the last leases are not known.
const EPOCHS_LEFT_OUT: u64 = 1 << 16;

impl Remote {
    /// Finds out what the head of a tenant should say, from its other objects. Nothing is written there. Every snapshot is
    /// downloaded to see whether it is whole.
    ///
    /// # Errors
    /// [`TenantError::InvalidArgument`] if the head is intact, [`TenantError::Corrupt`] if no snapshot is whole,
    /// [`TenantError::Unavailable`], and [`TenantError::File`] if the cache folder can't be written.
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
        // Positions grow from lease to lease. A host that lost its lease may have completed an upload late.
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
            return Err(TenantError::corrupt(key, "none of its snapshots is whole"));
        };
        // Whoever replays passes over what the snapshot holds.
        let run = last_run(&positions);
        current.covers = run.first().map_or(0, |first| first.saturating_sub(1));
        head.has_log = !positions.is_empty();
        head.epoch = epoch.saturating_add(EPOCHS_LEFT_OUT);
        Ok(Repair { head, damaged, segments: run.len() as u64 })
    }

    /// Writes the head that was planned.
    ///
    /// # Errors
    /// [`TenantError::InvalidArgument`] if there is an intact head meanwhile, and [`TenantError::Unavailable`].
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

    /// The damaged head, if there is one.
    async fn check_needs_repair(&self, key: &TenantKey) -> Result<Option<Found>> {
        let Some(found) = self.find_head(key).await? else { return Ok(None) };
        match Head::parse(key, &found.bytes) {
            Ok(_) => Err(is_intact(key)),
            Err(TenantError::Corrupt { .. }) => Ok(Some(found)),
            Err(error) => Err(error),
        }
    }

    /// What the head said of a snapshot, as far as its object tells, and the version of the last commit in it.
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
        let options = SqliteOptions { create: false, cache_bytes: 0, ..SqliteOptions::default() };
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

/// The positions at the end that follow on each other.
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
