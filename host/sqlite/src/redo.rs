//! Replays redos in SQL. [`larder_core::redo`] describes their format.

use larder_core::Result;
use larder_core::commit::RowWrite;
use larder_core::name::RowKey;
use larder_core::redo::{Change, Group};
use larder_core::row::{StoredValue, Version};

use crate::commit_clock::Writing;
use crate::records;

/// Writes the groups that the database does not hold yet. Returns the new position, and how many
/// groups were replayed.
pub(crate) fn replay(writing: &mut Writing<'_>, groups: &[Group]) -> Result<(Version, u64)> {
    let mut made = 0;
    for group in groups {
        if group.follows(writing.last_version())? {
            for change in &group.changes {
                apply(writing, change, group.after)?;
            }
            writing.end_member(group.after, group.changes.iter().filter_map(row).cloned());
            made += 1;
        }
    }
    writing.reserve_versions(0)?;
    Ok((writing.last_version(), made))
}

fn apply(writing: &mut Writing<'_>, change: &Change, after: Version) -> Result<()> {
    match change {
        Change::Row(row, Some(StoredValue { value, version, expires_at })) => {
            let put = RowWrite::Put { value: value.into(), expires_at: *expires_at };
            writing.write_row(row, &put, *version)
        }
        // A deleted row has no version.
        Change::Row(row, None) => writing.write_row(row, &RowWrite::Delete, after),
        Change::Record(key, record) => {
            writing.wrote_page();
            Ok(records::set(writing.connection(), key, record.as_ref())?)
        }
    }
}

fn row(change: &Change) -> Option<&RowKey> {
    match change {
        Change::Row(row, _) => Some(row),
        Change::Record(..) => None,
    }
}
