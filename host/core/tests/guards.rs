//! Tests that a store's guard lives as long as anything opened through the store.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use larder_core::{HandleOptions, InMemory, Mode, Store, StoreSource};

#[tokio::test]
async fn a_guard_goes_with_the_last_transaction_and_not_with_the_store() {
    let store = Store::builder(InMemory::new()).build().unwrap();
    let guard = Arc::new(());
    let guarded = store.guarded(guard.clone());
    assert_eq!(Arc::strong_count(&guard), 2);

    let handle = guarded.open().await.unwrap().handle(HandleOptions::default());
    drop(guarded);
    let transaction = handle.begin(Mode::Update).unwrap();
    drop(handle);
    assert_eq!(Arc::strong_count(&guard), 2);
    transaction.commit().await.unwrap();
    assert_eq!(Arc::strong_count(&guard), 1);
    // Dropping the guarded clone did not close the store.
    store.ping().await.unwrap();
}
