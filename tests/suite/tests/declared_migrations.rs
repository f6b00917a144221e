//! Guest migrations that many processes apply at once, and that killed processes apply.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder_core::migrations::LEDGER_NAMESPACE;
use larder_core::{
    AppliedMigration, Error, Handle, HandleOptions, Migration, MigrationScope, Mode, NextMigration, Store,
};
use larder_host::drivers;
use larder_suite::{SqliteTestBed, TestBed};
use support::{harness, postgres_server};

type Outcome = Result<(), String>;

/// The number of migrations that a child process applies, and the store to which it applies them.
const STEPS: &str = "LARDER_MIGRATION_STEPS";
const STORE: &str = "LARDER_MIGRATION_STORE";

const HOSTS: usize = 16;
const KILLS: usize = 50;

fn main() {
    let runtime = harness::runtime();
    if let (Ok(steps), Ok(dsn)) = (std::env::var(STEPS), std::env::var(STORE)) {
        return runtime.block_on(migrate(&dsn, steps.parse().unwrap()));
    }
    let arguments = harness::arguments();
    let (server, postgres) = postgres_server::test_bed(&arguments);
    let sqlite: Arc<dyn TestBed> = Arc::new(SqliteTestBed::in_temporary_folder(drivers()));
    let mut trials = Vec::new();
    for (engine, test_bed) in [("sqlite", Ok(sqlite)), ("postgres", postgres)] {
        let crowd = test_bed.clone();
        let name = format!("{engine}_hosts_that_migrate_at_once_apply_each_step_once");
        trials.push(harness::trial(&runtime, name, move || async move { on(crowd?, migrate_at_once).await }));
        let name = format!("{engine}_keeps_a_clean_prefix_of_steps_through_kills");
        trials.push(harness::trial(&runtime, name, move || async move {
            on(test_bed?, migrate_through_kills).await
        }));
    }
    harness::run(&arguments, trials, || drop(server));
}

/// Runs a test on an empty database.
async fn on(test_bed: Arc<dyn TestBed>, test: impl AsyncFnOnce(&Database) -> Outcome) -> Outcome {
    let scratch = test_bed.scratch().await.map_err(|error| format!("{error:#}"))?;
    let dsn = scratch.dsn().ok_or("no other process can open the store")?.to_string();
    let outcome = test(&Database { dsn }).await;
    scratch.remove().await.map_err(|error| format!("{error:#}"))?;
    outcome
}

struct Database {
    dsn: String,
}

impl Database {
    fn start(&self, steps: usize) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(STEPS, steps.to_string()).env(STORE, &self.dsn);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// The applied migrations, and how often each ran.
    async fn applied(&self) -> (Vec<AppliedMigration>, Vec<String>) {
        let (store, handle) = open(&self.dsn).await;
        let mut view = handle.begin(Mode::View).unwrap();
        let rows = view.scan(LEDGER_NAMESPACE.into(), String::new()).await.unwrap();
        let counts = view.scan("counts".into(), String::new()).await.unwrap();
        drop(view);
        store.close().await;
        let row = |row: &larder_core::Entry| AppliedMigration::from_row(row.key.as_bytes(), &row.value);
        let mut steps: Vec<_> = rows.iter().map(row).collect::<Result<_, _>>().unwrap();
        steps.sort_by_key(|step| step.ordinal);
        let count =
            |row: larder_core::Entry| format!("{} {}", row.key, String::from_utf8(row.value).unwrap());
        (steps, counts.into_iter().map(count).collect())
    }

    /// Checks that exactly the first migrations are applied, each once, and returns their number.
    async fn expect_prefix(&self) -> Result<usize, String> {
        let (steps, counts) = self.applied().await;
        let expected: Vec<_> = (0..steps.len()).map(id).collect();
        let found: Vec<_> = steps.into_iter().map(|step| step.id).collect();
        let once: Vec<_> = expected.iter().map(|id| format!("{id} 1")).collect();
        if found == expected && counts == once {
            return Ok(found.len());
        }
        Err(format!("found {found:?} applied, with the counts {counts:?}"))
    }
}

fn id(number: usize) -> String {
    format!("{number:04}")
}

async fn open(dsn: &str) -> (Store, Handle) {
    let backend = drivers().open(dsn).await.unwrap();
    let store = Store::builder_shared(backend).sweep_interval(None).build().unwrap();
    let migrations = MigrationScope::only(["crowd"]).unwrap();
    let handle = store.handle(HandleOptions::default().migrations(migrations));
    (store, handle)
}

/// Migrates as a host does at startup, and prints each migration that it applied.
async fn migrate(dsn: &str, steps: usize) {
    let (store, handle) = open(dsn).await;
    while let Some(id) = apply_next(&handle, steps).await {
        println!("{id}");
    }
    store.close().await;
}

async fn apply_next(handle: &Handle, steps: usize) -> Option<String> {
    let declared: Vec<_> =
        (0..steps).map(|number| Migration { id: id(number), checksum: vec![number as u8; 32] }).collect();
    loop {
        let begun = handle.begin_migration("crowd".into(), declared.clone()).await;
        let outcome = match begun {
            Ok(None) => return None,
            Ok(Some(NextMigration { id, mut transaction })) => {
                transaction.increment("counts".into(), id.clone(), 1).unwrap();
                // Long enough that a kill can hit it.
                tokio::time::sleep(Duration::from_millis(1)).await;
                transaction.commit().await.map(|_| id)
            }
            Err(error) => Err(error),
        };
        match outcome {
            Ok(id) => return Some(id),
            Err(Error::Conflict) => tokio::time::sleep(Duration::from_millis(fastrand::u64(0..20))).await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn migrate_at_once(database: &Database) -> Outcome {
    const COUNT: usize = 12;
    let hosts: Vec<_> = (0..HOSTS).map(|_| database.start(COUNT)).collect();
    let mut said = Vec::new();
    for host in hosts {
        let output = host.wait_with_output().unwrap();
        if !output.status.success() {
            return Err(format!("a host ended with {}", output.status));
        }
        said.extend(String::from_utf8(output.stdout).unwrap().lines().map(str::to_string));
    }
    said.sort();
    let expected: Vec<_> = (0..COUNT).map(id).collect();
    if said != expected {
        return Err(format!("the hosts printed {said:?} instead of each migration once"));
    }
    match database.expect_prefix().await? {
        COUNT => Ok(()),
        other => Err(format!("{other} steps are applied instead of {COUNT}")),
    }
}

async fn migrate_through_kills(database: &Database) -> Outcome {
    const STEPS_A_ROUND: usize = 25;
    let (mut applied, mut interrupted) = (0, 0);
    for round in 0..KILLS {
        let host = database.start((round + 1) * STEPS_A_ROUND);
        let said = harness::kill(host, Duration::from_millis(8)).await?;
        let last = said.iter().max();
        let acknowledged = last.and_then(|id| id.parse::<usize>().ok()).map_or(0, |number| number + 1);
        let kept = database.expect_prefix().await?;
        if kept < acknowledged.max(applied) {
            return Err(format!(
                "round {round}: {kept} steps are applied, after {acknowledged} were acknowledged"
            ));
        }
        applied = kept;
        interrupted += usize::from(kept < (round + 1) * STEPS_A_ROUND);
    }
    if interrupted == 0 {
        return Err("no kill hit a migration".to_string());
    }
    let all = KILLS * STEPS_A_ROUND;
    let (store, handle) = open(&database.dsn).await;
    while apply_next(&handle, all).await.is_some() {}
    store.close().await;
    match database.expect_prefix().await? {
        count if count == all => Ok(()),
        other => Err(format!("{other} steps are applied instead of {all}")),
    }
}
