//! Replays redos in SQL. [`larder_core::redo`] describes their format.

use larder_core::Result;
use larder_core::commit::RowWrite;
use larder_core::redo::{Change, Group};
use larder_core::row::{StoredValue, Version};
use rusqlite::Connection;

use crate::{records, rows};

/// Replays the groups that the database does not hold yet, within the writer's transaction. Returns
/// the new position, and how many groups were replayed.
pub(crate) fn replay(connection: &Connection, groups: &[Group]) -> Result<(Version, u64)> {
    let before = rows::last_version(connection)?;
    let (mut position, mut made) = (before, 0);
    for group in groups {
        if group.follows(position)? {
            for change in &group.changes {
                apply(connection, change, group.after)?;
            }
            position = group.after;
            made += 1;
        }
    }
    if position != before {
        rows::set_last_version(connection, position)?;
    }
    Ok((position, made))
}

fn apply(connection: &Connection, change: &Change, after: Version) -> Result<()> {
    match change {
        Change::Row(row, Some(StoredValue { value, version, expires_at })) => {
            let put = RowWrite::Put { value: value.into(), expires_at: *expires_at };
            rows::write(connection, row, &put, *version)?;
        }
        // A deleted row has no version.
        Change::Row(row, None) => {
            rows::write(connection, row, &RowWrite::Delete, after)?;
        }
        Change::Record(key, record) => records::set(connection, key, record.as_ref())?,
    }
    Ok(())
}
