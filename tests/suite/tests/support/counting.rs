//! Updates of one row by many tasks. None may be lost.

use std::time::Duration;

use larder_core::{Error, Handle, HandleOptions, Mode, OpenTransactions, Store, Transaction};
use tokio::task::JoinSet;

/// A handle for many transactions at once.
pub(crate) fn handle(store: &Store) -> Handle {
    let open_transactions = OpenTransactions::at_most(1_000);
    store.handle(HandleOptions::default().open_transactions(open_transactions))
}

/// Runs `tasks` tasks, each of which adds one to the same row `updates` times, and checks the sum.
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
        false => Err(format!("the row counts {count} of {} updates", tasks * updates)),
    }
}

/// Adds one. With `reads_more` it reads a second row first, so a transaction is open at the server
/// meanwhile.
async fn add_one(handle: &Handle, reads_more: bool) -> Result<(), Error> {
    let mut transaction = handle.begin(Mode::Update)?;
    if reads_more {
        transaction.get("n".into(), "other".into()).await?;
    }
    let count = count(&mut transaction).await?;
    put_number(&mut transaction, "count", count + 1)?;
    transaction.commit().await.map(drop)
}

async fn count(transaction: &mut Transaction) -> Result<u64, Error> {
    read_number(transaction, "count").await
}

/// The number in a row; 0 if the row does not exist.
pub(crate) async fn read_number(transaction: &mut Transaction, key: &str) -> Result<u64, Error> {
    let value = transaction.get("n".into(), key.into()).await?.unwrap_or_else(|| b"0".to_vec());
    let text = String::from_utf8(value).map_err(|error| Error::Corrupt(error.to_string()))?;
    text.parse().map_err(|_| Error::Corrupt(text))
}

/// Puts a number into a row.
pub(crate) fn put_number(transaction: &mut Transaction, key: &str, number: u64) -> Result<(), Error> {
    transaction.put("n".into(), key.into(), number.to_string().into())
}
