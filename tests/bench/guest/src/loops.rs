//! An open store and its rows.

use larder_bench_workload::{Rows, Shape as RowShape};
use larder_guest::{Error, Store, View};

use crate::bindings::exports::larder::bench::loops::Shape;

/// An open store and its rows.
pub(crate) struct Loops {
    pub(crate) name: String,
    pub(crate) store: Store,
    pub(crate) rows: Rows,
}

impl Loops {
    pub(crate) fn open(name: &str, shape: Shape) -> Result<Self, Error> {
        let Shape { rows, namespaces, value_bytes } = shape;
        let rows = Rows::new(RowShape { rows, namespaces, value_bytes });
        Ok(Self { name: name.to_string(), store: Store::open(name)?, rows })
    }
}

/// Reads the value of a row that must exist.
pub(crate) fn present(tx: &View, rows: &Rows, index: u64) -> Result<Vec<u8>, Error> {
    let key = larder_bench_workload::Key::of(index);
    tx.get(rows.namespace(index), key.as_str())?.ok_or_else(|| absent(index))
}

pub(crate) fn absent(index: u64) -> Error {
    Error::Other(format!("row {index} is missing"))
}
