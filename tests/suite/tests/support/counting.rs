//! Updates of one row by many tasks, of which none may be lost.

use std::time::Duration;

use larder_core::{Error, Handle, HandleOptions, Mode, OpenTransactions, Store};
use tokio::task::JoinSet;

/// A handle for many transactions at once.
pub(crate) fn handle(store: &Store) -> Handle {
    let open_transactions = OpenTransactions::at_most(1_000);
    store.handle(HandleOptions { open_transactions, ..HandleOptions::default() })
}

/// Has so many tasks add to one row so many times each, and checks the sum.
pub(crate) async fn count_up(store: &Store, tasks: u64, updates: u64) -> Result<(), String> {
    let mut adding = JoinSet::new();
    for task in 0..tasks {
        let handle = handle(store);
        adding.spawn(async move {
            let mut made = 0;
            while made < updates {
                match add_one(&handle, task % 2 == 0).await {
                    Ok(()) => made += 1,
                    Err(Error::Conflict) => {
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..20))).await
                    }
                    Err(error) => return Err(format!("{error:?}")),
                }
            }
            Ok(())
        });
    }
    for outcome in adding.join_all().await {
        outcome?;
    }
    let count = count(&mut handle(store).begin(Mode::View).map_err(|error| error.to_string())?).await;
    let count = count.map_err(|error| error.to_string())?;
    match count == tasks * updates {
        true => Ok(()),
        false => Err(format!("{count} of {} updates count", tasks * updates)),
    }
}

/// Adds one. If it reads a second row too, a transaction is open at the server meanwhile.
async fn add_one(handle: &Handle, reads_more: bool) -> Result<(), Error> {
    let mut transaction = handle.begin(Mode::Update)?;
    if reads_more {
        transaction.get("n".into(), "other".into()).await?;
    }
    let count = count(&mut transaction).await?;
    transaction.put("n".into(), "count".into(), (count + 1).to_string().into())?;
    transaction.commit().await.map(drop)
}

async fn count(transaction: &mut larder_core::Transaction) -> Result<u64, Error> {
    let value = transaction.get("n".into(), "count".into()).await?.unwrap_or_else(|| b"0".to_vec());
    let text = String::from_utf8(value).map_err(|error| Error::Corrupt(error.to_string()))?;
    text.parse().map_err(|_| Error::Corrupt(text))
}
