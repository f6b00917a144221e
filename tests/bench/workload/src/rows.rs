//! The rows of a store.

/// The number of rows, their distribution and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Total number of rows.
    pub rows: u64,
    /// Namespaces over which the rows are spread.
    pub namespaces: u32,
    /// Bytes of each value, at least 16 for the stamp.
    pub value_bytes: u32,
}

/// The rows of a shape.
#[derive(Clone, Debug)]
pub struct Rows {
    shape: Shape,
    namespaces: Vec<String>,
    /// The value that was computed last.
    value: Vec<u8>,
}

impl Rows {
    /// The rows of `shape`.
    pub fn new(shape: Shape) -> Self {
        let namespaces = (0..shape.namespaces.max(1)).map(|number| format!("rows{number:04}")).collect();
        let value = (0..shape.value_bytes.max(16)).map(|position| (position % 251) as u8).collect();
        Self { shape, namespaces, value }
    }

    /// The number of rows.
    pub fn count(&self) -> u64 {
        self.shape.rows
    }

    /// The namespace of a row.
    pub fn namespace(&self, index: u64) -> &str {
        let position = index % self.namespaces.len().max(1) as u64;
        self.namespaces.get(position as usize).map_or("", String::as_str)
    }

    /// The namespace of the rows that are scanned.
    pub fn first_namespace(&self) -> &str {
        self.namespace(0)
    }

    /// The value of a row after the write `salt`.
    ///
    /// It is a stamp, followed by bytes that are always the same.
    pub fn value(&mut self, index: u64, salt: u64) -> &[u8] {
        let stamps = [index.to_le_bytes(), salt.to_le_bytes()];
        for (place, byte) in self.value.iter_mut().zip(stamps.as_flattened()) {
            *place = *byte;
        }
        &self.value
    }

    /// The value that was computed last.
    pub fn last_value(&self) -> &[u8] {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_size_and_stamp() {
        let mut rows = Rows::new(Shape { rows: 3, namespaces: 2, value_bytes: 20 });
        let first = rows.value(1, 0).to_vec();
        assert_eq!(first.len(), 20);
        assert_ne!(rows.value(2, 0), first);
        assert_ne!(rows.value(1, 1), first);
        assert_eq!(rows.value(1, 0), first);
    }

    #[test]
    fn rows_are_spread_over_the_namespaces() {
        let rows = Rows::new(Shape { rows: 10, namespaces: 3, value_bytes: 16 });
        assert_eq!(
            [0, 1, 2, 3].map(|index| rows.namespace(index)),
            ["rows0000", "rows0001", "rows0002", "rows0000"]
        );
    }
}
