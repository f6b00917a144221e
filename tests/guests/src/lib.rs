//! Hostile guests for larder's tests, and the code that they share.

pub mod attacks;

use larder_guest::raw::store::Store;
use larder_guest::raw::tx::{Mode, Tx};
use larder_guest::raw::types::Error;

/// Opens the store `default`.
///
/// # Errors
///
/// - [`Error::NoSuchStore`] if the store is not granted.
/// - [`Error::LimitExceeded`] if the instance has too many open stores.
/// - [`Error::Closed`] if the host has closed the store.
pub fn open() -> Result<Store, Error> {
    Store::open("default")
}

/// Begins an update, and reads and writes a row in it.
///
/// # Errors
///
/// - [`Error::LimitExceeded`] if the instance has too many open transactions.
/// - [`Error::Unavailable`] if the backend cannot read the row.
/// - Any other error of the calls `begin`, `get` and `put`.
pub fn update_under_way(store: &Store) -> Result<Tx, Error> {
    let tx = store.begin(Mode::Update)?;
    tx.get("n", "key")?;
    tx.put("n", "key", b"never committed")?;
    Ok(tx)
}
