//! Several hosts and guests that commit to one Postgres database concurrently.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use larder_host::larder_core::OpenTransactions;
use larder_host::{Error, Handle, HandleOptions, Mode, Store, drivers};
use tokio::task::JoinSet;

use super::postgres::{connect, wait_for_disk, within};
use crate::row::{Comparison, Row, Side, Work};
use crate::runner::{PostgresDatabase, Runner};

const SCHEMA: &str = "larder_bench_hosts";

/// The most hosts. Each has a store with its own connections, in this process.
const HOSTS: usize = 4;

/// Guests of each host, which commit without a pause.
const GUESTS: usize = 4;

/// How long they commit in one measurement.
const BUSY: Duration = Duration::from_secs(1);

/// Rows that all guests update at random.
const SHARED_ROWS: u64 = 1_000;

pub(super) async fn measure(runner: &mut Runner<'_>) -> Result<()> {
    let Some(database) = runner.postgres() else { return Ok(()) };
    let client = connect(&database.dsn).await?;
    let drop_schema = format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE");
    client.batch_execute(&format!("{drop_schema}; CREATE SCHEMA {SCHEMA}")).await?;
    if database.is_private {
        wait_for_disk(&client, false).await?;
    }
    let measured = measure_on(runner, &database).await;
    if database.is_private {
        wait_for_disk(&client, true).await?;
    }
    client.batch_execute(&drop_schema).await?;
    measured
}

async fn measure_on(runner: &mut Runner<'_>, database: &PostgresDatabase) -> Result<()> {
    let mut stores = Vec::new();
    for _ in 0..HOSTS {
        let backend = drivers().open(&within(&database.dsn, SCHEMA)).await?;
        stores.push(Store::builder_shared(backend).sweep_interval(None).build()?);
    }
    let load = |hosts: usize, update, per| Load {
        hosts: stores.iter().take(hosts).cloned().collect(),
        update,
        per,
        found: None,
    };
    let own = Row::named("an update of a guest's own row, 4 guests a host")
        .side_at_own_pace("1 host", load(1, Update::OwnRow, Per::Update))
        .side_at_own_pace("2 hosts", load(2, Update::OwnRow, Per::Update))
        .side_at_own_pace("4 hosts", load(4, Update::OwnRow, Per::Update))
        .goal("2 hosts to 1", Comparison::Ratio { of: 1, to: 0 }, None)
        .goal("4 hosts to 1", Comparison::Ratio { of: 2, to: 0 }, None);
    let shared = Row::named("an update of one of 1,000 rows, 4 guests a host")
        .side_at_own_pace("1 host", load(1, Update::SharedRow, Per::Update))
        .side_at_own_pace("4 hosts", load(4, Update::SharedRow, Per::Update))
        .side_at_own_pace("4 hosts, conflicts counted too", load(4, Update::SharedRow, Per::Run))
        .goal("4 hosts to 1", Comparison::Ratio { of: 1, to: 0 }, None)
        .goal("runs for an update", Comparison::Ratio { of: 1, to: 2 }, None);
    // A backend that locked counters before rows with a put would lock these two in both orders.
    let crossing = Row::named("commits that cross, 8 guests")
        .side_at_own_pace("a put and an increment, crossing", load(2, Update::Crossing, Per::Update))
        .side_at_own_pace("two puts", load(2, Update::TwoPuts, Per::Update))
        .goal("ratio", Comparison::Ratio { of: 0, to: 1 }, 2.0);
    for row in [own, shared, crossing] {
        runner.measure(row).await?;
    }
    for store in stores {
        store.close().await;
    }
    Ok(())
}

/// The update that a guest makes.
#[derive(Clone, Copy, Debug)]
enum Update {
    /// Reads and puts a row that no other guest touches.
    OwnRow,
    /// Reads and puts one of the shared rows.
    SharedRow,
    /// Puts one row and increments the other, or puts both, depending on the guest.
    Crossing,
    /// Puts both rows.
    TwoPuts,
}

/// What the time of a load is divided by.
#[derive(Clone, Copy, Debug)]
enum Per {
    Update,
    /// The runs of updates. An update that conflicts is run again.
    Run,
}

/// Guests of some hosts that update without a pause.
struct Load {
    hosts: Vec<Store>,
    update: Update,
    per: Per,
    found: Option<Duration>,
}

#[async_trait]
impl Side for Load {
    async fn run(&mut self, work: Work) -> Result<u64> {
        let mut guests = JoinSet::new();
        let begun = Instant::now();
        for (host, store) in self.hosts.iter().enumerate() {
            for guest in 0..GUESTS {
                let open_transactions = OpenTransactions::at_most(1_000);
                let handle = store.handle(HandleOptions::default().open_transactions(open_transactions));
                guests.spawn(update_until(handle, self.update, host * GUESTS + guest, begun + BUSY));
            }
        }
        let (mut updates, mut runs) = (0, 0);
        for outcome in guests.join_all().await {
            let (of_updates, of_runs) = outcome?;
            updates += of_updates;
            runs += of_runs;
        }
        ensure!(updates > 0, "no guest committed an update");
        let count = match self.per {
            Per::Update => updates,
            Per::Run => runs,
        };
        self.found = Some(begun.elapsed() / u32::try_from(count)?);
        Ok(work.count)
    }

    fn measured(&self) -> Option<Duration> {
        self.found
    }
}

/// Returns the number of committed updates, and how often updates were run.
async fn update_until(handle: Handle, update: Update, guest: usize, until: Instant) -> Result<(u64, u64)> {
    let (mut updates, mut runs) = (0, 0);
    while Instant::now() < until {
        runs += 1;
        match update_once(&handle, update, guest, runs).await {
            Ok(()) => updates += 1,
            Err(Error::Conflict) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((updates, runs))
}

async fn update_once(handle: &Handle, update: Update, guest: usize, run: u64) -> Result<(), Error> {
    let namespace = || "hosts".to_string();
    // A number, because some guests increment the row.
    let value = || run.to_string().into_bytes();
    let key = match update {
        Update::SharedRow => format!("shared/{}", fastrand::u64(..SHARED_ROWS)),
        _ => format!("own/{guest}"),
    };
    let mut transaction = handle.begin(Mode::Update)?;
    match update {
        Update::OwnRow | Update::SharedRow => {
            transaction.get(namespace(), key.clone()).await?;
            transaction.put(namespace(), key, value())?;
        }
        Update::Crossing if guest.is_multiple_of(2) => {
            transaction.put(namespace(), "a".into(), value())?;
            transaction.increment(namespace(), "z".into(), 1)?;
        }
        Update::Crossing | Update::TwoPuts => {
            transaction.put(namespace(), "a".into(), value())?;
            transaction.put(namespace(), "z".into(), value())?;
        }
    }
    transaction.commit().await.map(drop)
}
