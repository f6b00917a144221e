//! The rows that attackers read, written by the host.

use std::time::Duration;

use anyhow::Result;
use larder_host::larder_core::PutOptions;
use larder_host::{Handle, HandleOptions, Limits, Mode, Store};

use super::attack::Prepared;

/// The rows of one transaction.
const BATCH: u64 = 50_000;

/// The number of rows of 100 bytes in the namespace `rows`. The program `attackers` relies on it.
const ROWS: u64 = 20_000;

/// Puts the rows that every attacker reads into a store.
pub(super) async fn prepare_common(store: &Store) -> Result<()> {
    put(&handle(store), "rows", ROWS, &[1; 100], None).await
}

fn handle(store: &Store) -> Handle {
    let limits = Limits::default().transaction_mutations(BATCH).transaction_bytes(32 << 20);
    store.handle(HandleOptions::default().limits(limits))
}

/// Puts the rows of one attack into a store; `many` rows, if the attack needs many.
///
/// Call it after the store's last reopening: a store that closes removes expired rows.
pub(super) async fn prepare(store: &Store, prepared: Prepared, many: u64) -> Result<()> {
    let handle = handle(store);
    match prepared {
        Prepared::Rows => Ok(()),
        Prepared::Empty => put(&handle, "tiny", many, b"", None).await,
        Prepared::Tiny => put(&handle, "tiny", many, b"ab", None).await,
        Prepared::Largest => put(&handle, "largest", 1, &vec![1; 1 << 20], None).await,
        Prepared::Expired => {
            put(&handle, "expired", many, b"", Some(1)).await?;
            let mut transaction = handle.begin(Mode::Update)?;
            transaction.put("expired".into(), "never".into(), Vec::new())?;
            transaction.commit().await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
            Ok(())
        }
    }
}

async fn put(handle: &Handle, namespace: &str, count: u64, value: &[u8], ttl_ms: Option<u64>) -> Result<()> {
    for first in (0..count).step_by(BATCH as usize) {
        let mut transaction = handle.begin(Mode::Update)?;
        for index in first..count.min(first + BATCH) {
            let key = if namespace == "largest" { "value".to_string() } else { format!("{index:06}") };
            let options = PutOptions::default().ttl_ms(ttl_ms);
            transaction.put_with(namespace.to_string(), key, value.to_vec(), options)?;
        }
        transaction.commit().await?;
    }
    Ok(())
}
