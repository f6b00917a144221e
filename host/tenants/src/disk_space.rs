//! Checks the free space of a file system, and reserves a part of it.

use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::error::{Result, TenantError};

/// The size and free space of a file system, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskSpace {
    pub(crate) free: u64,
    /// 0 if the file system does not report it.
    pub(crate) total: u64,
}

const LEAST_RESERVE: u64 = 64 << 20;

impl DiskSpace {
    fn of(folder: &Path) -> Result<Self> {
        #[cfg(feature = "testing")]
        if let Some(space) = crate::faults::disk_space(folder) {
            return Ok(space);
        }
        let found = statvfs(folder)
            .map_err(|error| TenantError::file("the free space of the cache folder can't be read", error))?;
        let size = found.fragment_size();
        Ok(Self { free: bytes(found.blocks_available(), size), total: bytes(found.blocks(), size) })
    }

    /// The bytes that are never used: 1 % of the file system, but at least 64 MiB and at most a
    /// tenth of it.
    fn reserve(self) -> u64 {
        (self.total / 100).max(LEAST_RESERVE).min(self.total / 10)
    }

    fn holds(self, needed: u64) -> bool {
        self.total == 0 || needed <= self.free.saturating_sub(self.reserve())
    }
}

/// The bytes of a number of blocks, whose type differs among systems.
fn bytes(blocks: impl Into<u64>, size: u64) -> u64 {
    blocks.into().saturating_mul(size)
}

/// Checks that a folder's file system has room for `needed` more bytes.
pub(crate) fn check(folder: &Path, needed: u64) -> Result<()> {
    let space = DiskSpace::of(folder)?;
    if space.holds(needed) {
        return Ok(());
    }
    let folder = folder.display().to_string();
    Err(TenantError::DiskFull { folder, needed, free: space.free, reserve: space.reserve() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_part_of_every_file_system_stays_free() {
        let reserve = |total| DiskSpace { free: total, total }.reserve();
        assert_eq!(reserve(100 * GIB), GIB);
        assert_eq!(reserve(GIB), 64 * MIB);
        assert_eq!(reserve(100 * MIB), 10 * MIB);
        let space = DiskSpace { free: 3 * GIB, total: 200 * GIB };
        assert!(space.holds(GIB) && !space.holds(GIB + 1));
        assert!(!DiskSpace { free: GIB, ..space }.holds(1));
        // A file system that does not report its size is not full.
        assert!(DiskSpace { free: 0, total: 0 }.holds(GIB));
    }

    #[test]
    fn the_file_system_of_a_folder_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let space = DiskSpace::of(folder.path()).unwrap();
        assert!(space.free > 0 && space.free <= space.total);
        let missing = DiskSpace::of(&folder.path().join("missing"));
        assert!(matches!(missing, Err(TenantError::File { .. })));
    }
}
