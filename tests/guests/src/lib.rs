//! What the guests share.

pub mod attacks;

use larder_guest::raw::store::Store;
use larder_guest::raw::tx::{Mode, Tx};
use larder_guest::raw::types::Error;

/// The store `default`.
///
/// # Errors
/// Where it was not granted.
pub fn open() -> Result<Store, Error> {
    Store::open("default")
}

/// An update that has read and written.
///
/// # Errors
/// Those of the calls.
pub fn update_under_way(store: &Store) -> Result<Tx, Error> {
    let tx = store.begin(Mode::Update)?;
    tx.get("n", "key")?;
    tx.put("n", "key", b"never committed")?;
    Ok(tx)
}
