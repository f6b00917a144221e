//! Writers that account for each of their commits while servers and connections fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder_core::{Error, Handle, Mode, Store, Transaction};
use tokio::task::JoinHandle;

use super::counting::{handle, put_number, read_number};

/// The pause of a writer after an error.
const PAUSE: Duration = Duration::from_millis(10);

/// The longest time that a writer looks for a commit with an unknown outcome.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// Writers that run until [`Load::end`].
pub(crate) struct Load {
    ends: Arc<AtomicBool>,
    writers: Vec<Writer>,
}

struct Writer {
    /// The number of its last commit.
    made: Arc<AtomicU64>,
    task: JoinHandle<Result<Account, String>>,
}

/// The commits of one writer.
#[derive(Debug, Default)]
struct Account {
    /// The number of its last commit. All numbers up to it are committed.
    last: u64,
    /// How many commits had an unknown outcome, which the writer found out by looking.
    unknown: u64,
    /// The longest time between two commits.
    pause_max: Duration,
}

/// The sum of all accounts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) commits: u64,
    pub(crate) unknown: u64,
    pub(crate) pause_max: Duration,
}

impl Load {
    /// Starts writers on each store.
    pub(crate) fn start(stores: &[Store], writers_per_store: u64) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let stores = stores.iter().flat_map(|store| (0..writers_per_store).map(move |_| store));
        let writers = stores
            .zip(0..)
            .map(|(store, number)| {
                let made = Arc::new(AtomicU64::new(0));
                let task = tokio::spawn(write_on(handle(store), number, made.clone(), ends.clone()));
                Writer { made, task }
            })
            .collect();
        Self { ends, writers }
    }

    /// Waits until every writer has made another commit.
    pub(crate) async fn progress(&mut self, within: Duration) -> Result<(), String> {
        let until = Instant::now() + within;
        let before: Vec<u64> = self.writers.iter().map(Writer::made).collect();
        while self.writers.iter().zip(&before).any(|(writer, before)| writer.made() == *before) {
            if let Some(writer) = self.writers.iter_mut().find(|writer| writer.task.is_finished()) {
                let account = (&mut writer.task).await.map_err(|error| error.to_string())?;
                return Err(format!("a writer ended: {account:?}"));
            }
            if Instant::now() > until {
                let made: Vec<u64> = self.writers.iter().map(Writer::made).collect();
                return Err(format!(
                    "not every writer made a commit within {within:?}: {before:?} to {made:?}"
                ));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Ends the writers, and checks the stored rows against their accounts.
    pub(crate) async fn end(self, store: &Store) -> Result<Tally, String> {
        self.ends.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        let mut accounts = Vec::new();
        for writer in self.writers {
            let account = writer.task.await.map_err(|error| error.to_string())??;
            tally.commits += account.last;
            tally.unknown += account.unknown;
            tally.pause_max = tally.pause_max.max(account.pause_max);
            accounts.push(account);
        }
        check(&handle(store), &accounts).await?;
        Ok(tally)
    }
}

impl Writer {
    fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}

async fn write_on(
    handle: Handle,
    writer: u64,
    made: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
) -> Result<Account, String> {
    let mut account = Account::default();
    let mut before = Instant::now();
    let mut is_repeated = false;
    while !ends.load(Ordering::Relaxed) {
        let number = account.last + 1;
        let is_made = match write(&handle, writer, number, is_repeated).await {
            Ok(()) => true,
            Err(Error::CommitUnknown { .. }) => {
                account.unknown += 1;
                look(&handle, writer, number).await?
            }
            Err(error) if passes(&error) => false,
            Err(error) => return Err(format!("commit {number} of writer {writer}: {error:?}")),
        };
        is_repeated = !is_made;
        if is_made {
            account.last = number;
            account.pause_max = account.pause_max.max(before.elapsed());
            before = Instant::now();
            made.store(number, Ordering::Relaxed);
        } else {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(account)
}

fn passes(error: &Error) -> bool {
    matches!(error, Error::Conflict | Error::TimedOut | Error::Unavailable { .. })
}

/// Makes one commit. By its number, that is a put without a read, a read and a put, or several rows
/// of which one is shared with another writer.
///
/// A repeated commit always reads: a commit that failed with an error must not be stored.
async fn write(handle: &Handle, writer: u64, number: u64, is_repeated: bool) -> Result<(), Error> {
    let mut transaction = handle.begin(Mode::Update)?;
    if is_repeated || !number.is_multiple_of(3) {
        expect_last(&mut transaction, writer, number - 1).await?;
    }
    put_number(&mut transaction, &own(writer), number)?;
    if number % 3 == 2 {
        let total = read_number(&mut transaction, &total_of(writer)).await?;
        put_number(&mut transaction, &total_of(writer), total + 1)?;
        put_number(&mut transaction, &seen(writer, number), number)?;
    }
    transaction.commit().await.map(drop)
}

/// Finds out whether a commit with an unknown outcome was made. It writes the row itself, so it
/// waits for that commit if it is still running.
async fn look(handle: &Handle, writer: u64, number: u64) -> Result<bool, String> {
    let until = Instant::now() + LOOK_MAX;
    loop {
        match look_once(handle, writer, number).await {
            Ok(is_made) => return Ok(is_made),
            Err(
                Error::Conflict | Error::TimedOut | Error::Unavailable { .. } | Error::CommitUnknown { .. },
            ) if Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(format!("looking for commit {number} of writer {writer}: {error:?}")),
        }
    }
}

async fn look_once(handle: &Handle, writer: u64, number: u64) -> Result<bool, Error> {
    let mut transaction = handle.begin(Mode::Update)?;
    let found = read_number(&mut transaction, &own(writer)).await?;
    if found != number {
        expect_last(&mut transaction, writer, number - 1).await?;
    }
    put_number(&mut transaction, &own(writer), found)?;
    transaction.commit().await?;
    Ok(found == number)
}

/// Checks that the last acknowledged commit is stored, and no later one.
async fn expect_last(transaction: &mut Transaction, writer: u64, last: u64) -> Result<(), Error> {
    match read_number(transaction, &own(writer)).await? {
        found if found == last => Ok(()),
        found => {
            Err(Error::Corrupt(format!("writer {writer} made commit {last}, but commit {found} is stored")))
        }
    }
}

async fn check(handle: &Handle, accounts: &[Account]) -> Result<(), String> {
    let mut view = handle.begin(Mode::View).map_err(|error| error.to_string())?;
    let mut totals = BTreeMap::<String, u64>::new();
    for (account, writer) in accounts.iter().zip(0..) {
        expect_last(&mut view, writer, account.last).await.map_err(|error| error.to_string())?;
        for number in (account.last.saturating_sub(SLOTS - 1)..=account.last).filter(|number| number % 3 == 2)
        {
            let stored =
                read_number(&mut view, &seen(writer, number)).await.map_err(|error| error.to_string())?;
            if stored != number {
                return Err(format!(
                    "commit {number} of writer {writer} is incomplete: its second row holds {stored}"
                ));
            }
        }
        *totals.entry(total_of(writer)).or_default() += account.last.saturating_add(1) / 3;
    }
    for (key, total) in totals {
        let stored = read_number(&mut view, &key).await.map_err(|error| error.to_string())?;
        if stored != total {
            return Err(format!("{key} is {stored} after {total} commits"));
        }
    }
    Ok(())
}

const SLOTS: u64 = 96;

fn own(writer: u64) -> String {
    format!("last/{writer:02}")
}

/// Two writers share a total.
fn total_of(writer: u64) -> String {
    format!("total/{:02}", writer / 2)
}

/// The second row of a commit of several rows. Slots are reused, so the latest [`SLOTS`] commits
/// can be checked.
fn seen(writer: u64, number: u64) -> String {
    format!("seen/{writer:02}/{:02}", number % SLOTS)
}
