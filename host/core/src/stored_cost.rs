//! The overhead that a quota counts for each row and record.

/// The overhead that a quota counts for rows and records in a backend.
///
/// The default counts names once, and no overhead.
///
/// ```
/// use larder_core::stored_cost::StoredCost;
///
/// let cost = StoredCost { row_overhead: 100, name_copies: 2, record_overhead: 0 };
/// assert_eq!(cost.row(10, 1_000), 1_120);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredCost {
    /// The overhead of a row, in bytes.
    pub row_overhead: u64,
    /// The number of copies of its namespace and key that a row has.
    pub name_copies: u64,
    /// The overhead of a record, in bytes.
    pub record_overhead: u64,
}

impl Default for StoredCost {
    fn default() -> Self {
        Self { row_overhead: 0, name_copies: 1, record_overhead: 0 }
    }
}

impl StoredCost {
    /// The bytes that a row counts. `names` is the size of its namespace and key.
    pub const fn row(&self, names: u64, value: u64) -> u64 {
        self.name_copies * names + value + self.row_overhead
    }

    /// The bytes that a record counts.
    pub const fn record(&self, key: u64, bytes: u64) -> u64 {
        key + bytes + self.record_overhead
    }
}
