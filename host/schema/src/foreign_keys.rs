//! Foreign-key violations that a step would leave.

use std::fmt;

/// A row that refers to a missing row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ForeignKeyViolation {
    /// The table of the row.
    pub table: String,
    /// The row's id; `None` if the table has no row ids.
    pub row: Option<i64>,
    /// The table that lacks the referenced row.
    pub parent: String,
}

impl fmt::Display for ForeignKeyViolation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            Some(row) => write!(formatter, "row {row} of {:?}", self.table)?,
            None => write!(formatter, "a row of {:?}", self.table)?,
        }
        write!(formatter, " refers to {:?}", self.parent)
    }
}

/// The number of rows that refer to missing rows, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForeignKeyViolations {
    first: Vec<ForeignKeyViolation>,
    count: u64,
}

impl ForeignKeyViolations {
    /// The number of violations that are kept.
    pub const FIRST_MAX: usize = 10;

    /// The first violations, at most [`ForeignKeyViolations::FIRST_MAX`].
    pub fn first(&self) -> &[ForeignKeyViolation] {
        &self.first
    }

    /// The number of violations.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Counts a violation, and keeps it if it is one of the first.
    pub fn push(&mut self, violation: ForeignKeyViolation) {
        self.count = self.count.saturating_add(1);
        if self.first.len() < Self::FIRST_MAX {
            self.first.push(violation);
        }
    }
}

impl FromIterator<ForeignKeyViolation> for ForeignKeyViolations {
    fn from_iter<I: IntoIterator<Item = ForeignKeyViolation>>(violations: I) -> Self {
        let mut collected = Self::default();
        violations.into_iter().for_each(|violation| collected.push(violation));
        collected
    }
}

impl fmt::Display for ForeignKeyViolations {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, violation) in self.first.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{violation}")?;
        }
        match self.count.saturating_sub(self.first.len() as u64) {
            0 => Ok(()),
            more => write!(formatter, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_violations_are_named_and_the_others_counted() {
        let violation = |row| ForeignKeyViolation {
            table: "child".to_string(),
            row: (row != 0).then_some(row),
            parent: "parent".to_string(),
        };
        let two: ForeignKeyViolations = (0..2).map(violation).collect();
        assert_eq!(
            two.to_string(),
            "a row of \"child\" refers to \"parent\", row 1 of \"child\" refers to \"parent\""
        );
        let many: ForeignKeyViolations = (0..1_000).map(violation).collect();
        assert_eq!((many.first().len(), many.count()), (10, 1_000));
        assert!(many.to_string().ends_with(" and 990 more"), "{many}");
    }
}
