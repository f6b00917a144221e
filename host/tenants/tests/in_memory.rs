//! Runs the scenarios on the in-memory object store.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use object_store::ObjectStore;
use object_store::memory::InMemory;

#[tokio::test(start_paused = true)]
async fn every_scenario_holds_in_memory() {
    let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    support::scenarios::all(|| store.clone(), "in-memory").await;
}
