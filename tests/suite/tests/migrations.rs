//! Schema migrations: by many processes at once, by killed processes, and of stores that older
//! releases wrote. The program runs itself as a child process where a test needs one.
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod support;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use larder_core::{
    Error, HandleOptions, IdentityParts, IdentityScope, MemoryOptions, MemoryStore, Mode, PutOptions, Store,
    Strategy, Turn, Version,
};
use larder_host::drivers;
use larder_postgres::PostgresMigrator;
use larder_postgres_server::PgBouncer;
use larder_schema::{
    Ledger, MigrationError, SchemaError, SchemaMigrator, Step, StepSet, is_missing_migration,
};
use larder_sqlite::SqliteMigrator;
use libtest_mimic::Trial;
use support::harness;
use support::postgres_server::PostgresServer;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

type Outcome = Result<(), String>;

/// The role and the database of a child process.
const ROLE: &str = "LARDER_MIGRATIONS_ROLE";
const STORE: &str = "LARDER_MIGRATIONS_STORE";

/// The folder for fixtures of the newest schema. If it is set, the program writes them instead of
/// running tests.
const FIXTURES: &str = "LARDER_WRITE_FIXTURES";

fn main() {
    let runtime = harness::runtime();
    if let (Ok(role), Ok(dsn)) = (std::env::var(ROLE), std::env::var(STORE)) {
        return runtime.block_on(play(&role, &dsn));
    }
    if let Ok(folder) = std::env::var(FIXTURES) {
        return runtime.block_on(write_fixtures(folder.as_ref()));
    }
    let arguments = harness::arguments();
    let server = if arguments.list { Err("only listed".to_string()) } else { start_server() };
    let shared = server.as_ref().map(PostgresServer::dsn).map_err(Clone::clone);
    let mut trials = Vec::new();
    macro_rules! on_both {
        ($($test:ident),* $(,)?) => {
            $(
                trials.push(harness::trial(&runtime, concat!("sqlite::", stringify!($test)), || async {
                    let (_folder, dsn) = sqlite();
                    $test(&dsn).await
                }));
                let server = shared.clone();
                trials.push(harness::trial(&runtime, concat!("postgres::", stringify!($test)), || async move {
                    $test(&database(&server?).await).await
                }));
            )*
        };
    }
    macro_rules! on_postgres {
        ($($test:ident),* $(,)?) => {
            $(
                let server = shared.clone();
                trials.push(harness::trial(&runtime, concat!("postgres::", stringify!($test)), || async move {
                    $test(&database(&server?).await).await
                }));
            )*
        };
    }
    on_both!(
        sixteen_processes_that_open_one_fresh_database_apply_each_step_once,
        a_migration_that_is_killed_leaves_a_prefix_and_the_next_goes_on,
        a_store_of_every_released_schema_is_read_written_and_brought_up_to_date,
    );
    on_postgres!(
        a_fresh_schema_gets_every_step_and_a_second_run_finds_nothing_to_do,
        looking_at_a_schema_writes_nothing,
        a_fresh_database_is_told_from_all_that_fails_otherwise,
        foreign_keys_and_constraints_are_enforced_on_every_connection,
        a_step_that_fails_is_rolled_back_and_those_before_it_stay,
        a_step_can_not_take_its_transaction_apart,
        a_step_may_hold_functions_and_be_long,
        a_set_that_does_not_continue_the_database_is_refused_and_nothing_is_done,
        a_lock_is_waited_for_as_long_as_was_asked_and_only_where_there_is_something_to_do,
        a_step_waits_for_a_lock_on_a_table_no_longer_than_asked,
        the_lock_is_held_by_the_one_session_that_applies_the_steps,
        a_future_that_is_dropped_gives_the_lock_back_and_leaves_nothing_of_its_step,
        what_a_step_does_to_its_session_ends_with_it,
        a_role_that_may_not_make_tables_uses_what_another_has_made,
        a_schema_is_shared_with_larder_and_each_schema_is_apart,
        a_schema_that_is_created_later_does_not_hide_a_store_or_a_ledger,
        a_schema_that_the_role_may_not_use_does_not_hide_a_ledger_either,
        a_schema_that_can_hold_no_ledger_is_refused,
        a_pinned_schema_has_to_exist_and_is_the_only_one,
        an_error_of_a_step_names_the_file_the_statement_and_the_line,
        a_query_in_a_step_runs_for_all_its_rows,
        a_query_in_a_step_keeps_no_rows_at_the_server,
        a_command_that_a_step_can_not_have_gets_the_advice_that_fits,
        an_open_store_stays_in_its_schema,
        a_schema_that_is_created_during_a_step_does_not_split_it,
        a_run_applies_each_step_once_and_in_one_schema,
        a_step_that_takes_its_ledger_away_fails,
        nothing_of_a_step_is_left_when_the_next_one_begins,
        a_search_path_may_hold_names_that_the_server_cuts_off,
        a_ledger_without_the_tables_of_larder_is_refused,
        a_store_needs_no_procedural_language,
        a_step_runs_whole_or_is_refused,
        a_step_does_what_its_text_does_at_once,
        a_checksum_of_an_earlier_release_is_recorded_anew_with_the_next_step,
        any_split_of_steps_into_runs_gives_the_same_tables_or_the_same_error,
    );
    let mut poolers = Vec::new();
    if let Ok(server) = &server {
        for (program, mode) in PgBouncer::programs_and_modes().unwrap() {
            poolers.push((PgBouncer::start(&program, server, mode).unwrap(), program, mode));
        }
        DIRECT.set(poolers.iter().map(|(pooler, ..)| (pooler.dsn(), server.dsn())).collect()).unwrap();
    }
    macro_rules! through_poolers {
        ($($test:ident),* $(,)?) => {
            for (pooler, program, mode) in &poolers {
                $(
                    let (name, dsn) = (stringify!($test), pooler.dsn());
                    let name = format!("{}_in_{mode:?}_mode::{name}", program.display());
                    trials.push(harness::trial(&runtime, name, || async move {
                        $test(&database(&dsn).await).await
                    }));
                )*
            }
        };
    }
    // The other tests depend on sessions, roles or session options, which a pooler manages itself.
    through_poolers!(
        sixteen_processes_that_open_one_fresh_database_apply_each_step_once,
        a_migration_that_is_killed_leaves_a_prefix_and_the_next_goes_on,
        a_store_of_every_released_schema_is_read_written_and_brought_up_to_date,
        a_fresh_schema_gets_every_step_and_a_second_run_finds_nothing_to_do,
        looking_at_a_schema_writes_nothing,
        a_step_that_fails_is_rolled_back_and_those_before_it_stay,
        a_step_can_not_take_its_transaction_apart,
        a_step_may_hold_functions_and_be_long,
        a_set_that_does_not_continue_the_database_is_refused_and_nothing_is_done,
        an_error_of_a_step_names_the_file_the_statement_and_the_line,
        a_query_in_a_step_runs_for_all_its_rows,
        a_command_that_a_step_can_not_have_gets_the_advice_that_fits,
        a_step_that_takes_its_ledger_away_fails,
        a_step_runs_whole_or_is_refused,
        a_step_does_what_its_text_does_at_once,
        a_checksum_of_an_earlier_release_is_recorded_anew_with_the_next_step,
    );
    trials.push(Trial::test("every_schema_version_has_a_fixture", || {
        Ok(every_schema_version_has_a_fixture()?)
    }));
    harness::run(&arguments, trials, || {
        drop(poolers);
        drop(server);
    });
}

fn start_server() -> Result<PostgresServer, String> {
    PostgresServer::start().map_err(|error| format!("{error:#}"))
}

fn expect(holds: bool, found: impl std::fmt::Debug) -> Outcome {
    if holds { Ok(()) } else { Err(format!("{found:?}")) }
}

// Databases, one for each test.

fn sqlite() -> (TempDir, String) {
    let folder = tempfile::Builder::new().prefix("larder-migrations-").tempdir().unwrap();
    let dsn = format!("sqlite:{}", folder.path().join("store.db").display());
    (folder, dsn)
}

/// A new database on the server. It lives as long as the server.
async fn database(server: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let name = format!("migrations_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    connect(server).await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    server.replace("dbname=postgres", &format!("dbname={name} application_name={name}"))
}

/// Data-source names through a pooler, each with its direct counterpart.
static DIRECT: OnceLock<Vec<(String, String)>> = OnceLock::new();

/// Connects without a pooler, so that the session keeps its settings and prepared statements.
async fn connect(dsn: &str) -> Client {
    let mut dsn = dsn.to_string();
    for (pooled, direct) in DIRECT.get().into_iter().flatten() {
        dsn = dsn
            .replace(pooled.trim_end_matches("dbname=postgres"), direct.trim_end_matches("dbname=postgres"));
    }
    let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn path_of(dsn: &str) -> Option<&Path> {
    dsn.strip_prefix("sqlite:").map(Path::new)
}

/// The numbers that a query returns, on a direct connection.
async fn found(dsn: &str, sql: &str) -> Vec<i64> {
    match path_of(dsn) {
        Some(path) => {
            let connection = rusqlite::Connection::open(path).unwrap();
            connection.busy_timeout(Duration::from_secs(10)).unwrap();
            let mut statement = connection.prepare(sql).unwrap();
            statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        }
        None => connect(dsn).await.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect(),
    }
}

// Schema migrations of a platform.

fn ledger() -> Ledger {
    Ledger::new("platform_migrations").unwrap()
}

fn migrator(dsn: &str, steps: StepSet) -> Box<dyn SchemaMigrator<Error = Error>> {
    match path_of(dsn) {
        Some(path) => Box::new(SqliteMigrator::new(path, steps, ledger())),
        None => Box::new(PostgresMigrator::new(dsn, steps, ledger()).unwrap()),
    }
}

/// `count` steps. Each makes a table with rows and an index, and takes some milliseconds.
fn slow_steps(dsn: &str, count: u32) -> StepSet {
    let (rows, sleep) = if path_of(dsn).is_some() { (8_000, "") } else { (300, "SELECT pg_sleep(0.003);") };
    let step = |number: u32| -> (&'static str, &'static str) {
        let sql = format!(
            "CREATE TABLE step_{number:04} (x INTEGER); {sleep}
             INSERT INTO step_{number:04}
                 WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < {rows}) SELECT x FROM n;
             CREATE INDEX step_{number:04}_x ON step_{number:04} (x)"
        );
        (format!("{number:04}_slow.sql").leak(), sql.leak())
    };
    StepSet::embedded(&(1..=count).map(step).collect::<Vec<_>>()).unwrap()
}

fn numbers(steps: &[Step]) -> Vec<u32> {
    steps.iter().map(Step::number).collect()
}

// Processes.

const MANY_STEPS: u32 = 30;
const ENDLESS_STEPS: u32 = 2_000;

async fn play(role: &str, dsn: &str) {
    match role {
        "open" => {
            let store = drivers().open(dsn).await.unwrap();
            for number in numbers(&migrator(dsn, slow_steps(dsn, MANY_STEPS)).up().await.unwrap()) {
                println!("{number}");
            }
            store.close().await;
        }
        "climb" => {
            migrator(dsn, slow_steps(dsn, ENDLESS_STEPS)).up().await.unwrap();
        }
        _ => panic!("unknown role {role:?}"),
    }
}

fn start(role: &str, dsn: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ROLE, role).env(STORE, dsn).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

async fn sixteen_processes_that_open_one_fresh_database_apply_each_step_once(dsn: &str) -> Outcome {
    let mut children: Vec<Child> = (0..16).map(|_| start("open", dsn)).collect();
    let mut applied = Vec::new();
    for child in &mut children {
        let mut said = String::new();
        child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        applied.extend(said.lines().map(|line| line.parse::<u32>().unwrap()));
        let status = child.wait().unwrap();
        expect(status.success(), status)?;
    }
    applied.sort_unstable();
    expect(applied == (1..=MANY_STEPS).collect::<Vec<_>>(), &applied)?;
    let of_larder = found(dsn, "SELECT count(*) FROM larder_migrations").await;
    expect(of_larder == [i64::from(newest(dsn))], of_larder)
}

const KILLS: u32 = 50;

async fn a_migration_that_is_killed_leaves_a_prefix_and_the_next_goes_on(dsn: &str) -> Outcome {
    let mut whole = 0;
    for round in 0..KILLS {
        let mut child = start("climb", dsn);
        let outcome = advance(dsn, whole).await;
        // During a later step.
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..20_000))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        outcome.map_err(|error| format!("in round {round}: {error}"))?;
        let prefix = prefix(dsn).await.map_err(|error| format!("after {round} kills: {error}"))?;
        expect(
            prefix > whole && prefix < ENDLESS_STEPS,
            format!("{prefix} steps are applied, after {whole} before this round"),
        )?;
        whole = prefix;
    }
    let last = whole + 5;
    let rest = numbers(&migrator(dsn, slow_steps(dsn, last)).up().await.unwrap());
    // The server may have completed the last COMMIT of a killed host.
    expect(rest.last() == Some(&last) && matches!(rest.len(), 4 | 5), &rest)?;
    expect(prefix(dsn).await? == last, "not every step is applied")
}

/// Waits until a host has applied another step. Every state seen meanwhile must be a prefix too.
async fn advance(dsn: &str, whole: u32) -> Outcome {
    let until = Instant::now() + Duration::from_secs(60);
    while prefix(dsn).await? <= whole {
        expect(Instant::now() < until, format!("no step was applied after step {whole}"))?;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// How many steps are applied. Checks that they are the first ones, that each is complete, and that
/// the ledger and the tables agree.
async fn prefix(dsn: &str) -> Result<u32, String> {
    // One query reads the state at one moment, as another host's COMMIT may be in progress.
    let (ledger, tables) = match path_of(dsn) {
        Some(_) => (
            "SELECT count(*) FROM sqlite_schema WHERE name = 'platform_migrations'",
            "SELECT number * 10 FROM platform_migrations
             UNION ALL SELECT CAST(substr(name, 6) AS INTEGER) * 10 + 1 FROM sqlite_schema
                 WHERE type = 'table' AND name LIKE 'step%'
             UNION ALL SELECT CAST(substr(name, 6, 4) AS INTEGER) * 10 + 2 FROM sqlite_schema
                 WHERE type = 'index' AND name LIKE 'step%'
             ORDER BY 1",
        ),
        None => (
            "SELECT count(*) FROM pg_class WHERE relname = 'platform_migrations'",
            "SELECT number::bigint * 10 FROM platform_migrations
             UNION ALL SELECT substr(relname, 6, 4)::bigint * 10 + CASE relkind WHEN 'r' THEN 1 ELSE 2 END
                 FROM pg_class WHERE relname LIKE 'step%'
             ORDER BY 1",
        ),
    };
    if found(dsn, ledger).await == [0] {
        return Ok(0);
    }
    let parts = found(dsn, tables).await;
    let count = parts.len() as i64 / 3;
    let whole: Vec<i64> = (1..=count).flat_map(|step| (0..3).map(move |part| step * 10 + part)).collect();
    expect(parts == whole, &parts)?;
    u32::try_from(count).map_err(|error| error.to_string())
}

// Stores that older releases wrote.

fn fixture(engine: &str, version: u32) -> PathBuf {
    let ending = if engine == "sqlite" { "db" } else { "sql" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(engine).join(format!("{version:04}.{ending}"))
}

/// The number of the newest step of larder's own schema, which differs between the engines.
fn newest(dsn: &str) -> u32 {
    newest_of(if path_of(dsn).is_some() { "sqlite" } else { "postgres" })
}

fn newest_of(engine: &str) -> u32 {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations").join(engine);
    StepSet::from_folder(folder).unwrap().newest()
}

fn every_schema_version_has_a_fixture() -> Outcome {
    for engine in ["sqlite", "postgres"] {
        for version in 1..=newest_of(engine) {
            let path = fixture(engine, version);
            expect(
                path.is_file(),
                format!(
                    "{} is missing. Every released schema needs a fixture; once the step of schema {version} is \
                     final, run `{FIXTURES}=fixtures cargo test --package larder-suite --test migrations`",
                    path.display()
                ),
            )?;
        }
    }
    Ok(())
}

async fn a_store_of_every_released_schema_is_read_written_and_brought_up_to_date(dsn: &str) -> Outcome {
    let newest = newest(dsn);
    for version in 1..=newest {
        let (_folder, dsn) = match path_of(dsn) {
            Some(_) => {
                let (folder, dsn) = sqlite();
                std::fs::copy(fixture("sqlite", version), path_of(&dsn).unwrap()).unwrap();
                (Some(folder), dsn)
            }
            None => {
                let name = dsn.rsplit('=').next().unwrap();
                let copy = format!("{name}_{version}");
                connect(dsn).await.batch_execute(&format!("CREATE DATABASE {copy}")).await.unwrap();
                let dsn = dsn.replace(&format!("dbname={name}"), &format!("dbname={copy}"));
                let dump = std::fs::read_to_string(fixture("postgres", version)).unwrap();
                connect(&dsn).await.batch_execute(&dump).await.unwrap();
                (None, dsn)
            }
        };
        let migrator = drivers().migrator(&dsn).unwrap().unwrap();
        let before = migrator.status().await.map_err(|error| format!("{version}: {error}"))?;
        expect(before.applied.len() as u32 == version, format!("{version}: {before:?}"))?;
        read_and_write(&dsn, version).await.map_err(|error| format!("{version}: {error}"))?;
        let after = migrator.status().await.unwrap();
        expect(after.pending.is_empty() && after.applied.len() as u32 == newest, after)?;
    }
    Ok(())
}

async fn open(dsn: &str) -> Store {
    let backend = drivers().open(dsn).await.unwrap();
    Store::builder_shared(backend).sweep_interval(None).build().unwrap()
}

/// Writes the content of every fixture. If a release stores more, extend this and `read_and_write`.
async fn write_what_is_kept(dsn: &str) {
    let store = open(dsn).await;
    let handle = store.handle(HandleOptions::default());
    let notes = || "notes".to_string();
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put(notes(), "a".into(), b"first".to_vec()).unwrap();
    update.put(notes(), "gone".into(), b"soon".to_vec()).unwrap();
    update.commit().await.unwrap();
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put(notes(), "a".into(), b"second".to_vec()).unwrap();
    update.delete(notes(), "gone".into()).unwrap();
    update.commit().await.unwrap();
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put("größe\0".into(), "\0".into(), (0..=255).collect()).unwrap();
    let options = PutOptions::default().ttl_ms(100 * 365 * 86_400_000);
    update.put_with(notes(), "fleeting".into(), b"for 100 years".to_vec(), options).unwrap();
    update.commit().await.unwrap();
    // Schema 2 and later.
    let memories = memories(&store);
    let memory = memory(&memories);
    for text in ["one", "two"] {
        memory.add_turn(Turn { user_message: text.into(), ..Turn::default() }).await.unwrap();
    }
    memories.close().await;
    store.close().await;
}

fn memories(store: &Store) -> MemoryStore {
    MemoryStore::builder(store, MemoryOptions::new(Strategy::Truncation)).background(false).build().unwrap()
}

fn memory(memories: &MemoryStore) -> larder_core::Memory {
    let parts = IdentityParts::session("acme", "ann", "monday");
    memories.open(parts, &IdentityScope::Any, &Default::default()).unwrap()
}

async fn read_and_write(dsn: &str, version: u32) -> Outcome {
    let store = open(dsn).await;
    let handle = store.handle(HandleOptions::default());
    let mut view = handle.begin(Mode::View).unwrap();
    let mut rows = Vec::new();
    for (namespace, key) in
        [("notes", "a"), ("notes", "gone"), ("notes", "fleeting"), ("größe\0", "\0"), ("none", "a")]
    {
        rows.push(view.get_versioned(namespace.into(), key.into()).await.unwrap());
    }
    let newest = rows.iter().flatten().map(|(_, version)| *version).max();
    let values: Vec<_> = rows.into_iter().map(|row| row.map(|(value, _)| value)).collect();
    let expected =
        [Some(b"second".to_vec()), None, Some(b"for 100 years".to_vec()), Some((0..=255).collect()), None];
    expect(values == expected, &values)?;
    expect(newest >= Some(Version(3)), newest)?;
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put("notes".into(), "new".into(), b"row".to_vec()).unwrap();
    let committed = update.commit().await.unwrap();
    expect(Some(committed) > newest, committed)?;
    let memories = memories(&store);
    let memory = memory(&memories);
    let turns: Vec<_> =
        memory.llm_context().await.unwrap().recent_turns.into_iter().map(|turn| turn.user_message).collect();
    expect(turns == if version < 2 { &[][..] } else { &["one", "two"] }, turns)?;
    memory.add_turn(Turn { user_message: "three".into(), ..Turn::default() }).await.unwrap();
    memories.close().await;
    store.close().await;
    Ok(())
}

/// Writes missing fixtures; only one engine may have a new step. Never overwrites the fixture of a
/// release.
async fn write_fixtures(folder: &Path) {
    let of_sqlite = folder.join("sqlite").join(format!("{:04}.db", newest_of("sqlite")));
    if !of_sqlite.exists() {
        let (_folder, dsn) = sqlite();
        write_what_is_kept(&dsn).await;
        std::fs::copy(path_of(&dsn).unwrap(), of_sqlite).unwrap();
    }
    let of_postgres = folder.join("postgres").join(format!("{:04}.sql", newest_of("postgres")));
    if !of_postgres.exists() {
        let server = PostgresServer::start().unwrap();
        let dsn = database(&server.dsn()).await;
        write_what_is_kept(&dsn).await;
        std::fs::write(of_postgres, server.dump(dsn.rsplit('=').next().unwrap()).unwrap()).unwrap();
    }
}

// Tables of a platform in Postgres. The tests of `larder-sqlite` cover SQLite.

const SCANS: &str = "
    -- Both are enforced, or the data is worth nothing.
    CREATE TABLE scans (id TEXT PRIMARY KEY, source TEXT NOT NULL CHECK (source IN ('cli', 'server')));
    CREATE TABLE findings (
        id       TEXT PRIMARY KEY,
        scan     TEXT NOT NULL REFERENCES scans (id) ON DELETE CASCADE,
        severity TEXT NOT NULL CHECK (severity IN ('low', 'high'))
    );";
const SESSIONS: &str = "CREATE TABLE sessions (id TEXT PRIMARY KEY)";
const TEAMS: &str = "CREATE TABLE teams (id TEXT PRIMARY KEY)";
const FILES: [(&str, &str); 3] =
    [("0001_scans.sql", SCANS), ("0002_sessions.sql", SESSIONS), ("0003_teams.sql", TEAMS)];

fn platform(dsn: &str, files: &[(&'static str, &'static str)]) -> PostgresMigrator {
    PostgresMigrator::new(dsn, StepSet::embedded(files).unwrap(), ledger()).unwrap()
}

/// A migrator with `sql` as its second step, after a step that succeeds.
fn with_second(dsn: &str, sql: &'static str) -> PostgresMigrator {
    platform(dsn, &[("0001_teams.sql", TEAMS), ("0002_second.sql", sql)])
}

async fn tables(dsn: &str) -> String {
    let sql = "SELECT coalesce(string_agg(relname::text, ' ' ORDER BY relname::text), '') FROM pg_class
               WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace";
    connect(dsn).await.query_one(sql, &[]).await.unwrap().get(0)
}

/// Counts the sessions of migrators that match a condition.
async fn sessions(dsn: &str, condition: &str) -> i64 {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity AS activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
    );
    connect(dsn).await.query_one(&sql, &[]).await.unwrap().get(0)
}

const HOLDS_LOCK: &str = "EXISTS (
    SELECT FROM pg_locks WHERE pg_locks.pid = activity.pid AND locktype = 'advisory' AND granted)";

async fn soon(dsn: &str, condition: &str, expected: i64) -> Outcome {
    let mut count = -1;
    for _ in 0..1_000 {
        count = sessions(dsn, condition).await;
        if count == expected {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(format!("{count} sessions instead of {expected} match: {condition}"))
}

fn is_schema_error(error: &MigrationError<Error>, expected: SchemaError) -> Outcome {
    expect(matches!(error, MigrationError::Schema(error) if *error == expected), error)
}

async fn a_fresh_schema_gets_every_step_and_a_second_run_finds_nothing_to_do(dsn: &str) -> Outcome {
    let migrator = platform(dsn, &FILES);
    expect(numbers(&migrator.up().await.unwrap()) == [1, 2, 3], "not every step was applied")?;
    expect(migrator.version().await.unwrap() == 3, "the version is not 3")?;
    expect(tables(dsn).await == "findings platform_migrations scans sessions teams", tables(dsn).await)?;
    expect(migrator.up().await.unwrap().is_empty(), "a step was applied again")?;
    let status = migrator.status().await.unwrap();
    let year_2020 = 1_577_836_800_000;
    let in_order = status.applied.iter().map(|step| step.name.as_str()).eq(["scans", "sessions", "teams"]);
    expect(in_order && status.applied.iter().all(|step| step.applied_at > year_2020), status)
}

async fn looking_at_a_schema_writes_nothing(dsn: &str) -> Outcome {
    let migrator = platform(dsn, &FILES);
    let status = migrator.status().await.unwrap();
    expect(status.is_fresh() && numbers(&status.pending) == [1, 2, 3], status)?;
    expect(
        is_missing_migration(&migrator.version().await.unwrap_err()),
        "the database is not reported as fresh",
    )?;
    expect(tables(dsn).await.is_empty(), tables(dsn).await)
}

async fn a_fresh_database_is_told_from_all_that_fails_otherwise(dsn: &str) -> Outcome {
    connect(dsn)
        .await
        .batch_execute("CREATE TABLE another (x int); CREATE ROLE stranger LOGIN")
        .await
        .unwrap();
    let error = platform(dsn, &FILES).version().await.unwrap_err();
    expect(is_missing_migration(&error), error)?;
    let folder = dsn.split_whitespace().next().unwrap();
    for other in [
        dsn.replace(folder, "host=/nowhere"),
        dsn.replace("dbname=", "dbname=no_"),
        format!("{dsn} options='-csearch_path=missing'"),
    ] {
        let error = platform(&other, &FILES).version().await.unwrap_err();
        expect(!is_missing_migration(&error), &error)?;
        expect(matches!(error, MigrationError::Database(_)), error)?;
    }
    // A database whose ledger may not be read is not fresh either.
    platform(dsn, &FILES).up().await.unwrap();
    let stranger = dsn.replace("user=larder", "user=stranger");
    let error = platform(&stranger, &FILES).version().await.unwrap_err();
    expect(matches!(error, MigrationError::Database(Error::Other { .. })), error)
}

async fn foreign_keys_and_constraints_are_enforced_on_every_connection(dsn: &str) -> Outcome {
    let migrator = platform(dsn, &FILES);
    migrator.up().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let migrator = migrator.clone();
        // The future is `Send`.
        tasks.spawn(async move {
            let work = async |client: &mut Client| {
                let mut outcomes = Vec::new();
                for sql in [
                    format!("INSERT INTO scans VALUES ('a{number}', 'elsewhere')"),
                    format!("INSERT INTO scans VALUES ('b{number}', 'server')"),
                    format!("INSERT INTO findings VALUES ('c{number}', 'b{number}', 'severe')"),
                    format!("INSERT INTO findings VALUES ('d{number}', 'no scan', 'high')"),
                    format!("INSERT INTO findings VALUES ('e{number}', 'b{number}', 'high')"),
                    format!("DELETE FROM scans WHERE id = 'b{number}'"),
                ] {
                    outcomes.push(client.execute(&sql, &[]).await.is_ok());
                }
                outcomes
            };
            migrator.with_connection(work).await.unwrap()
        });
    }
    for outcomes in tasks.join_all().await {
        expect(outcomes == [false, true, false, false, true, true], outcomes)?;
    }
    expect(found(dsn, "SELECT count(*) FROM findings").await == [0], "a finding outlived its scan")?;
    soon(dsn, "application_name LIKE 'migrations%' AND state = 'active'", 0).await
}

async fn a_step_that_fails_is_rolled_back_and_those_before_it_stay(dsn: &str) -> Outcome {
    for sql in [
        "CREATE TABLE two (x int); INSERT INTO nowhere VALUES (1)",
        "CREATE TABLE two (x int); SELECT 1 /",
        "CREATE TABLE two (team text REFERENCES teams DEFERRABLE INITIALLY DEFERRED);
         INSERT INTO two VALUES ('no such team')",
    ] {
        let error = with_second(dsn, sql).up().await.unwrap_err();
        let is_typed = matches!(
            &error,
            MigrationError::StepFailed { number: 2, name, cause: Error::Other { .. }, .. } if name == "second"
        );
        expect(is_typed, (sql, error))?;
        expect(tables(dsn).await == "platform_migrations teams", tables(dsn).await)?;
        soon(dsn, HOLDS_LOCK, 0).await?;
    }
    expect(
        numbers(&with_second(dsn, SESSIONS).up().await.unwrap()) == [2],
        "a corrected step was not applied",
    )
}

async fn a_step_can_not_take_its_transaction_apart(dsn: &str) -> Outcome {
    for sql in [
        "CREATE TABLE two (x int); COMMIT",
        "CREATE TABLE two (x int); COMMIT; CREATE TABLE three (x int)",
        "CREATE TABLE two (x int); END; BEGIN",
        "CREATE TABLE two (x int); ROLLBACK; CREATE TABLE three (x int)",
        "CREATE TABLE two (x int); ABORT; START TRANSACTION; CREATE TABLE three (x int); COMMIT",
        "CREATE TABLE two (x int); COMMIT AND CHAIN",
        "BEGIN; CREATE TABLE two (x int)",
        "CREATE TABLE two (x int); SAVEPOINT here; ROLLBACK TO here",
        "CREATE TABLE two (x int); PREPARE TRANSACTION 'two'",
        "CREATE TABLE two (x int); /* hidden */ cOmMiT -- here",
        "CREATE TABLE two (x int); DO $$ BEGIN COMMIT; END $$",
        "CREATE TABLE two (x int); VACUUM",
        "CREATE TABLE two (x int); CREATE INDEX CONCURRENTLY two_x ON two (x)",
        "CREATE TABLE two (x int); COPY two FROM STDIN",
    ] {
        let error = with_second(dsn, sql).up().await.unwrap_err();
        expect(matches!(error, MigrationError::ForbiddenCommand { number: 2, .. }), (sql, error))?;
        expect(tables(dsn).await == "platform_migrations teams", (sql, tables(dsn).await))?;
        expect(with_second(dsn, sql).version().await.unwrap() == 1, sql)?;
    }
    Ok(())
}

async fn a_step_may_hold_functions_and_be_long(dsn: &str) -> Outcome {
    const FUNCTION: &str = r"
        CREATE FUNCTION logged() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO log VALUES (new.id || E' it''s \'$larder$\' $1'); RETURN new;
        END $$;
        CREATE TABLE log (x text);
        CREATE TRIGGER logged AFTER INSERT ON teams FOR EACH ROW EXECUTE FUNCTION logged();
        INSERT INTO teams VALUES ('red');
        ALTER TABLE log RENAME TO team_log;
        SELECT * FROM team_log; -- the end";
    let applied = with_second(dsn, FUNCTION).up().await.map_err(|error| format!("{error:?}"))?;
    expect(numbers(&applied) == [1, 2], applied)?;
    let logged: String = connect(dsn).await.query_one("SELECT x FROM team_log", &[]).await.unwrap().get(0);
    expect(logged == "red it's '$larder$' $1", logged)?;

    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("0001_teams.sql"), TEAMS).unwrap();
    std::fs::write(folder.path().join("0002_second.sql"), FUNCTION).unwrap();
    let rows = "INSERT INTO sessions VALUES (gen_random_uuid()::text);\n".repeat(20_000);
    std::fs::write(folder.path().join("0003_rows.sql"), format!("{SESSIONS};\n{rows}")).unwrap();
    let steps = StepSet::from_folder(folder.path()).unwrap();
    let applied = migrator(dsn, steps).up().await.map_err(|error| format!("{error:?}"))?;
    expect(numbers(&applied) == [3], numbers(&applied))?;
    expect(found(dsn, "SELECT count(*) FROM sessions").await == [20_000], "rows are missing")
}

async fn a_set_that_does_not_continue_the_database_is_refused_and_nothing_is_done(dsn: &str) -> Outcome {
    platform(dsn, &FILES[..2]).up().await.unwrap();
    let edited = platform(dsn, &[FILES[0], ("0002_sessions.sql", TEAMS), FILES[2]]);
    for error in [edited.up().await.unwrap_err(), edited.version().await.unwrap_err()] {
        is_schema_error(&error, SchemaError::Edited(2))?;
    }
    let older = platform(dsn, &FILES[..1]);
    for error in [older.up().await.unwrap_err(), older.status().await.unwrap_err()] {
        is_schema_error(&error, SchemaError::Newer { applied: 2, known: 1 })?;
    }
    let gap = "DELETE FROM platform_migrations WHERE number = 1";
    connect(dsn).await.batch_execute(gap).await.unwrap();
    is_schema_error(&platform(dsn, &FILES).up().await.unwrap_err(), SchemaError::Missing(1))?;
    expect(tables(dsn).await == "findings platform_migrations scans sessions", tables(dsn).await)
}

/// A migrator whose second step blocks until the client of [`gate`] is dropped.
fn with_slow_second(dsn: &str) -> PostgresMigrator {
    with_second(dsn, "CREATE TABLE two (x int); SELECT pg_advisory_xact_lock(1)")
}

async fn gate(dsn: &str) -> Client {
    let client = connect(dsn).await;
    client.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    client
}

async fn a_lock_is_waited_for_as_long_as_was_asked_and_only_where_there_is_something_to_do(
    dsn: &str,
) -> Outcome {
    let (slow, gate) = (with_slow_second(dsn), gate(dsn).await);
    let slow = tokio::spawn(async move { slow.up().await.map(|steps| numbers(&steps)) });
    soon(dsn, "wait_event = 'advisory'", 1).await?;
    let wait = Duration::from_millis(30);
    let second = with_slow_second(dsn);
    let error = second.clone().lock_wait(wait).up().await.unwrap_err();
    let is_typed = matches!(
        &error,
        MigrationError::LockHeld { waited, cause: Error::Unavailable { .. } } if *waited == wait
    );
    expect(is_typed && !is_missing_migration(&error), error)?;
    // If no step is pending, neither a migration nor a status waits for the lock.
    let first = platform(dsn, &[("0001_teams.sql", TEAMS)]).lock_wait(wait);
    expect(first.up().await.unwrap().is_empty(), "a step was applied")?;
    expect(second.version().await.unwrap() == 1, "the version is not 1")?;
    let patient = tokio::spawn(async move { second.up().await.map(|steps| numbers(&steps)) });
    soon(dsn, "wait_event = 'advisory'", 2).await?;
    drop(gate);
    let (slow, patient) = (slow.await.unwrap(), patient.await.unwrap());
    let is_once =
        matches!((&slow, &patient), (Ok(first), Ok(second)) if *first == [1, 2] && second.is_empty());
    expect(is_once, (slow, patient))
}

async fn a_step_waits_for_a_lock_on_a_table_no_longer_than_asked(dsn: &str) -> Outcome {
    platform(dsn, &[("0001_teams.sql", TEAMS)]).up().await.unwrap();
    let long = connect(dsn).await;
    long.batch_execute("BEGIN; SELECT * FROM teams").await.unwrap();
    let alter =
        with_second(dsn, "ALTER TABLE teams ADD COLUMN name text").lock_wait(Duration::from_millis(30));
    let error = alter.up().await.unwrap_err();
    let is_typed =
        matches!(error, MigrationError::StepFailed { number: 2, cause: Error::Unavailable { .. }, .. });
    expect(is_typed, error)?;
    long.batch_execute("ROLLBACK").await.unwrap();
    expect(numbers(&alter.up().await.unwrap()) == [2], "the step was not applied after the lock was released")
}

/// The lock must not be taken and released on different connections of a pool.
async fn the_lock_is_held_by_the_one_session_that_applies_the_steps(dsn: &str) -> Outcome {
    let (slow, gate) = (with_slow_second(dsn), gate(dsn).await);
    let slow = tokio::spawn(async move { slow.up().await.map(drop) });
    soon(dsn, "wait_event = 'advisory'", 1).await?;
    soon(dsn, &format!("wait_event = 'advisory' AND {HOLDS_LOCK}"), 1).await?;
    soon(dsn, "application_name LIKE 'migrations%'", 2).await?;
    drop(gate);
    slow.await.unwrap().map_err(|error| format!("{error:?}"))?;
    soon(dsn, HOLDS_LOCK, 0).await
}

async fn a_future_that_is_dropped_gives_the_lock_back_and_leaves_nothing_of_its_step(dsn: &str) -> Outcome {
    let (slow, gate) = (with_slow_second(dsn), gate(dsn).await);
    let slow = tokio::spawn(async move { slow.up().await.map(drop) });
    soon(dsn, "wait_event = 'advisory'", 1).await?;
    slow.abort();
    // The remaining lock is the gate's.
    soon(dsn, HOLDS_LOCK, 1).await?;
    expect(tables(dsn).await == "platform_migrations teams", tables(dsn).await)?;
    drop(gate);
    let second = with_slow_second(dsn);
    expect(
        numbers(&second.lock_wait(Duration::from_secs(10)).up().await.unwrap()) == [2],
        "the second step was not applied",
    )
}

async fn what_a_step_does_to_its_session_ends_with_it(dsn: &str) -> Outcome {
    // A setting as in the output of `pg_dump`, a role with few rights, and a timeout that the next
    // step would exceed.
    let first = "CREATE ROLE hardly; CREATE TABLE public.one (x int);
                 SELECT set_config('search_path', '', false); SET lock_timeout = 1; SET ROLE hardly";
    let second = "CREATE TABLE two (x int); SELECT pg_sleep(0.2)";
    let platform = platform(
        &format!("{dsn} options='-cstatement_timeout=100'"),
        &[("0001_first.sql", first), ("0002_second.sql", second)],
    );
    let applied = platform.up().await.map_err(|error| format!("{error:?}"))?;
    expect(numbers(&applied) == [1, 2], numbers(&applied))?;
    expect(tables(dsn).await == "one platform_migrations two", tables(dsn).await)?;
    connect(dsn).await.batch_execute("DROP ROLE hardly").await.unwrap();
    Ok(())
}

async fn a_role_that_may_not_make_tables_uses_what_another_has_made(dsn: &str) -> Outcome {
    let client = connect(dsn).await;
    client
        .batch_execute("CREATE ROLE modest LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        .await
        .unwrap();
    let modest = dsn.replace("user=larder", "user=modest");
    let error = platform(&modest, &FILES).up().await.unwrap_err();
    expect(matches!(error, MigrationError::Database(Error::Other { .. })), error)?;
    platform(dsn, &FILES).up().await.unwrap();
    open(dsn).await.close().await;
    let rights = "GRANT ALL ON ALL TABLES IN SCHEMA public TO modest;
                  GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO modest";
    client.batch_execute(rights).await.unwrap();
    expect(platform(&modest, &FILES).up().await.unwrap().is_empty(), "a step was applied")?;
    let store = open(&modest).await;
    let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    update.put("n".into(), "key".into(), b"value".to_vec()).unwrap();
    update.commit().await.map_err(|error| format!("{error:?}"))?;
    store.close().await;
    Ok(())
}

async fn a_schema_is_shared_with_larder_and_each_schema_is_apart(dsn: &str) -> Outcome {
    connect(dsn).await.batch_execute("CREATE SCHEMA \"a\"\"b\"").await.unwrap();
    open(dsn).await.close().await;
    let other = format!("{dsn} options='-csearch_path=\"a\"\"b\"'");
    platform(dsn, &FILES).up().await.unwrap();
    let migrator = platform(&format!("{dsn} schema='a\"b'"), &FILES);
    expect(
        is_missing_migration(&migrator.version().await.unwrap_err()),
        "the ledger of the other schema was found",
    )?;
    expect(
        numbers(&migrator.up().await.unwrap()) == [1, 2, 3],
        "not every step was applied in the second schema",
    )?;
    expect(
        tables(&other).await == "findings platform_migrations scans sessions teams",
        tables(&other).await,
    )?;
    let of_larder = found(dsn, "SELECT count(*) FROM larder_migrations").await;
    expect(of_larder == [i64::from(newest(dsn))], of_larder)
}

async fn batch(dsn: &str, sql: &str) {
    connect(dsn).await.batch_execute(sql).await.unwrap();
}

fn is_shadowed(error: &MigrationError<Error>, first: &str, holder: &str) -> Outcome {
    let is_shadowed = matches!(
        error,
        MigrationError::ShadowedLedger { first: found, holder: other, .. } if found == first && other == holder
    );
    expect(is_shadowed, error)
}

async fn a_schema_that_is_created_later_does_not_hide_a_store_or_a_ledger(dsn: &str) -> Outcome {
    write_what_is_kept(dsn).await;
    platform(dsn, &FILES[..2]).up().await.unwrap();
    batch(dsn, "CREATE SCHEMA AUTHORIZATION larder").await;
    let migrator = platform(dsn, &FILES);
    for error in [
        migrator.up().await.unwrap_err(),
        migrator.status().await.unwrap_err(),
        migrator.version().await.unwrap_err(),
    ] {
        is_shadowed(&error, "larder", "public")?;
    }
    let Err(error) = drivers().open(dsn).await else { return Err("the store was opened".to_string()) };
    let cause = error_chain(&error);
    expect(
        cause.contains("\"larder\"") && cause.contains("\"public\"") && cause.contains("schema=public"),
        cause,
    )?;
    expect(
        found(dsn, "SELECT count(*) FROM pg_class WHERE relname = 'larder_entries'").await == [1],
        "a second store was created",
    )?;

    let pinned = format!("{dsn} schema=public");
    expect(
        numbers(&platform(&pinned, &FILES).up().await.unwrap()) == [3],
        "the ledger in the pinned schema was not found",
    )?;
    read_and_write(&pinned, newest(&pinned)).await?;
    // A caller that wants a second store names its schema.
    let second = format!("{dsn} schema=larder");
    expect(
        is_missing_migration(&platform(&second, &FILES).version().await.unwrap_err()),
        "the second schema is not reported as fresh",
    )?;
    platform(&second, &FILES).up().await.map_err(|error| format!("{error:?}"))?;
    // Without a schema in the name, either ledger could be meant now.
    for error in
        [platform(dsn, &FILES).up().await.unwrap_err(), platform(dsn, &FILES).status().await.unwrap_err()]
    {
        let are_named = matches!(
            &error,
            MigrationError::SeveralLedgers { schemas, .. } if *schemas == ["larder", "public"]
        );
        expect(are_named && error.to_string().contains("\"larder\", \"public\""), error)?;
    }
    Ok(())
}

/// Creates a role with the name of the test's database. It may create tables in `public`. Returns
/// the role and its data-source name.
async fn role(dsn: &str, options: &str) -> (String, String) {
    let role = dsn.rsplit('=').next().unwrap();
    batch(dsn, &format!("CREATE ROLE {role} LOGIN {options}; GRANT ALL ON SCHEMA public TO {role}")).await;
    (role.to_string(), dsn.replace("user=larder", &format!("user={role}")))
}

async fn drop_role(dsn: &str, role: &str) {
    batch(dsn, &format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}")).await;
}

async fn put(store: &Store, key: &str) {
    let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    update.put("n".into(), key.into(), b"value".to_vec()).unwrap();
    update.commit().await.unwrap();
}

async fn an_open_store_stays_in_its_schema(dsn: &str) -> Outcome {
    let (role, theirs) = role(dsn, "").await;
    let store = open(&theirs).await;
    put(&store, "a").await;
    batch(dsn, &format!("CREATE SCHEMA AUTHORIZATION {role}")).await;
    let steps = drivers().migrator(&format!("{theirs} schema={role}")).unwrap().unwrap();
    steps.up().await.map_err(|error| format!("{error:?}"))?;
    put(&store, "b").await;
    // In new sessions. The store repeats a read if its session is gone.
    batch(dsn, &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"))
        .await;
    let mut view = store.handle(HandleOptions::default()).begin(Mode::View).unwrap();
    view.get("n".into(), "c".into()).await.unwrap();
    drop(view);
    put(&store, "c").await;
    let memories = memories(&store);
    memory(&memories).add_turn(Turn { user_message: "one".into(), ..Turn::default() }).await.unwrap();
    memories.close().await;
    let handle = store.handle(HandleOptions::default());
    let mut view = handle.begin(Mode::View).unwrap();
    let mut read = Vec::new();
    for key in ["a", "b", "c"] {
        read.push(view.get("n".into(), key.into()).await.unwrap().is_some());
    }
    drop(view);
    store.close().await;
    let kept = found(
        dsn,
        &format!(
            "SELECT count(*) FROM public.larder_entries UNION ALL SELECT count(*) FROM public.larder_memory_state
             UNION ALL SELECT count(*) FROM {role}.larder_entries
             UNION ALL SELECT count(*) FROM {role}.larder_memory_state
             UNION ALL SELECT last_value FROM {role}.larder_commit_sequence"
        ),
    )
    .await;
    let refused = drivers().open(&theirs).await.err().map(|error| error_chain(&error)).unwrap_or_default();
    drop_role(dsn, &role).await;
    expect(read == [true; 3] && kept == [3, 1, 0, 0, 1], (read, kept))?;
    expect(refused.contains(&format!("the schemas {role:?}, \"public\" of")), refused)
}

async fn a_schema_that_is_created_during_a_step_does_not_split_it(dsn: &str) -> Outcome {
    let (role, theirs) = role(dsn, "").await;
    let slow = with_second(
        &theirs,
        "CREATE TABLE a (x int); SELECT pg_advisory_xact_lock(1); CREATE TABLE b (x int)",
    );
    let gate = gate(dsn).await;
    let slow = tokio::spawn(async move { slow.up().await.map(|steps| numbers(&steps)) });
    soon(dsn, "wait_event = 'advisory'", 1).await?;
    batch(dsn, &format!("CREATE SCHEMA AUTHORIZATION {role}")).await;
    drop(gate);
    let outcome = slow.await.unwrap();
    let made = tables(dsn).await;
    drop_role(dsn, &role).await;
    expect(matches!(&outcome, Ok(numbers) if *numbers == [1, 2]), outcome)?;
    expect(made == "a b platform_migrations teams", made)
}

async fn a_run_applies_each_step_once_and_in_one_schema(dsn: &str) -> Outcome {
    let (role, theirs) = role(dsn, "").await;
    let change: &str = format!("ALTER ROLE {role} SET search_path = app").leak();
    let files = [
        ("0001_app.sql", "CREATE SCHEMA IF NOT EXISTS app; CREATE TABLE IF NOT EXISTS log (x int)"),
        ("0002_log.sql", "INSERT INTO log VALUES (1)"),
        ("0003_path.sql", change),
        ("0004_c.sql", "CREATE TABLE c (x int)"),
    ];
    batch(dsn, &format!("GRANT CREATE ON DATABASE {role} TO {role}")).await;
    let outcome = platform(&theirs, &files).up().await.map(|steps| numbers(&steps));
    let logged = found(dsn, "SELECT x::bigint FROM log").await;
    let left = tables(dsn).await;
    drop_role(dsn, &role).await;
    let is_typed = matches!(
        &outcome,
        Err(MigrationError::SchemaChanged { number: 3, schema, found, .. }) if schema == "public" && found == "app"
    );
    expect(is_typed && logged == [1] && left == "log platform_migrations", (outcome, logged, left))
}

async fn a_step_that_takes_its_ledger_away_fails(dsn: &str) -> Outcome {
    batch(dsn, "CREATE SCHEMA app").await;
    for sql in [
        "DROP TABLE platform_migrations",
        "ALTER TABLE platform_migrations SET SCHEMA app",
        "ALTER TABLE platform_migrations RENAME TO mine",
        "ALTER TABLE platform_migrations RENAME COLUMN checksum TO hash",
        "ALTER SCHEMA public RENAME TO old; CREATE SCHEMA public",
        "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
        "TRUNCATE platform_migrations",
        "DELETE FROM platform_migrations WHERE number = 1",
        "DROP TABLE platform_migrations; CREATE TABLE platform_migrations AS SELECT 1 AS number",
        "UPDATE platform_migrations SET number = number + 1000; SET ROLE pg_monitor",
        "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN DELETE FROM platform_migrations; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER forget AFTER INSERT ON teams DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION forget();
         INSERT INTO teams VALUES ('red')",
    ] {
        let files = [("0001_teams.sql", TEAMS), ("0002_second.sql", sql), ("0003_third.sql", SESSIONS)];
        for files in [&files[..], &files[..2]] {
            let error = platform(dsn, files).up().await.unwrap_err();
            let is_typed = matches!(error, MigrationError::StepFailed { number: 2, .. });
            let chain = error_chain(&error);
            expect(is_typed && chain.contains("leave the ledger as it is"), (sql, chain))?;
            expect(tables(dsn).await == "platform_migrations teams", (sql, tables(dsn).await))?;
        }
    }
    expect(
        numbers(&with_second(dsn, SESSIONS).up().await.unwrap()) == [2],
        "a corrected step was not applied",
    )
}

async fn nothing_of_a_step_is_left_when_the_next_one_begins(dsn: &str) -> Outcome {
    const FIRST: &str = "SELECT pg_advisory_lock(1);
        DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE 'CREATE TEMP TABLE t' || i || ' (x text)'; END LOOP; END $$;
        SET statement_timeout = 1";
    const SECOND: &str = "SELECT 1 / pg_try_advisory_lock(1)::int;
        SELECT 1 / (count(*) = 0)::int FROM pg_class WHERE relname ~ '^t[0-9]+$'";
    const FAILS: &str = "SELECT pg_advisory_lock(1), 1 / 0";
    let (role, theirs) = role(dsn, "").await;
    let mut outcomes = Vec::new();
    // With a connection limit, a session can begin only after the one before it has ended.
    for limit in ["", "CONNECTION LIMIT 1"] {
        batch(dsn, &format!("ALTER ROLE {role} {limit}")).await;
        let files = [("0001_a.sql", FIRST), ("0002_b.sql", SECOND), ("0003_c.sql", FAILS)];
        let failed = platform(&theirs, &files).up().await;
        let is_third = matches!(failed, Err(MigrationError::StepFailed { number: 3, .. }));
        let last = platform(&theirs, &[files[0], files[1], ("0003_c.sql", SECOND)]).up().await;
        outcomes.push((is_third, failed, last.map(|steps| numbers(&steps))));
        open(&theirs).await.close().await;
        batch(dsn, "DROP TABLE platform_migrations").await;
    }
    drop_role(dsn, &role).await;
    let are_right =
        outcomes.iter().all(|(is_third, _, last)| *is_third && matches!(last, Ok(last) if *last == [3]));
    expect(are_right, outcomes)
}

async fn a_search_path_may_hold_names_that_the_server_cuts_off(dsn: &str) -> Outcome {
    let (long, cut) = ("ö".repeat(40), "ö".repeat(31));
    batch(dsn, &format!("CREATE SCHEMA {cut}")).await;
    for path in [format!("{long},public"), format!("public,missing_{long}")] {
        let dsn = format!("{dsn} options='-csearch_path={path}'");
        let outcome = platform(&dsn, &FILES).up().await;
        expect(outcome.is_ok(), &outcome)?;
        batch(&dsn, "DROP TABLE platform_migrations, findings, scans, sessions, teams").await;
    }
    platform(dsn, &FILES).up().await.unwrap();
    let behind = format!("{dsn} options='-csearch_path={long},public'");
    is_shadowed(&platform(&behind, &FILES).up().await.unwrap_err(), &cut, "public")?;
    write_what_is_kept(&format!("{dsn} options='-csearch_path={long}'")).await;
    expect(
        found(dsn, &format!("SELECT count(*) FROM {cut}.larder_entries")).await == [3],
        "the rows are not in the schema with the truncated name",
    )
}

async fn a_ledger_without_the_tables_of_larder_is_refused(dsn: &str) -> Outcome {
    open(dsn).await.close().await;
    batch(dsn, "CREATE SCHEMA first; CREATE TABLE first.larder_migrations AS TABLE larder_migrations").await;
    let pinned = format!("{dsn} schema=first");
    let both = format!("{dsn} options='-csearch_path=first,public'");
    let error = |dsn: String| async move {
        let drivers = drivers();
        let (writing, reading) = (drivers.open(&dsn).await.err(), drivers.open_read_only(&dsn).await.err());
        (writing.map(|error| error_chain(&error)), reading.map(|error| error_chain(&error)))
    };
    for _ in 0..2 {
        let (Some(writing), Some(reading)) = error(pinned.clone()).await else {
            return Err("it was opened".to_string());
        };
        let is_said =
            |error: &str| error.contains("\"first\"") && error.contains("\"larder_entries\" is missing");
        expect(is_said(&writing) && is_said(&reading), (writing, reading))?;
        batch(dsn, "CREATE OR REPLACE VIEW first.larder_entries AS TABLE larder_entries").await;
    }
    let (Some(writing), Some(reading)) = error(both).await else { return Err("it was opened".to_string()) };
    expect(writing.contains("\"public\"") && reading.contains("\"public\""), (writing, reading))?;
    for (index, statement) in
        ["DROP SEQUENCE larder_commit_sequence", "DROP TABLE larder_memory_state"].into_iter().enumerate()
    {
        batch(dsn, statement).await;
        let (writing, _) = error(dsn.to_string()).await;
        let name = ["larder_commit_sequence", "larder_memory_state"][index];
        expect(writing.as_ref().is_some_and(|error| error.contains(name)), writing)?;
        batch(dsn, "CREATE SEQUENCE IF NOT EXISTS larder_commit_sequence").await;
    }
    Ok(())
}

async fn a_query_in_a_step_keeps_no_rows_at_the_server(dsn: &str) -> Outcome {
    const QUERIES: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 150000);
        WITH rows AS (SELECT 1) VALUES (1);
        (TABLE teams);
        SELECT * FROM pg_stats; SELECT pg_sleep(0), NULL, 1 AS a, 2 AS a, ROW(1), '{}'::int[]; SELECT;
        INSERT INTO teams SELECT substring(pg_read_file('/proc/self/status', 0, 10000) FROM 'VmHWM:\\s+(\\d+)')";
    with_second(dsn, QUERIES).up().await.map_err(|error| format!("{error:?}"))?;
    let kib = found(dsn, "SELECT id::bigint FROM teams").await;
    expect(kib.iter().all(|kib| *kib < 100_000) && kib.len() == 1, kib)
}

async fn a_command_that_a_step_can_not_have_gets_the_advice_that_fits(dsn: &str) -> Outcome {
    for (sql, advice) in [
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "sets up a transaction that has begun"),
        ("SELECT 1; SET transaction_isolation = 'repeatable read'", "sets up a transaction that has begun"),
        ("VACUUM", "on a connection of its own"),
        ("CREATE INDEX CONCURRENTLY ON teams (id)", "on a connection of its own"),
    ] {
        let error = with_second(dsn, sql).up().await.unwrap_err();
        let is_typed = matches!(error, MigrationError::ForbiddenCommand { number: 2, .. });
        expect(is_typed && error.to_string().contains(advice), (sql, error.to_string()))?;
    }
    Ok(())
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn a_schema_that_the_role_may_not_use_does_not_hide_a_ledger_either(dsn: &str) -> Outcome {
    let role = dsn.rsplit('=').next().unwrap();
    batch(
        dsn,
        &format!(
            "CREATE SCHEMA kept; CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA kept, public TO {role};
             ALTER ROLE {role} SET search_path = kept, public"
        ),
    )
    .await;
    let theirs = dsn.replace("user=larder", &format!("user={role}"));
    platform(&theirs, &FILES).up().await.unwrap();
    batch(dsn, &format!("REVOKE USAGE ON SCHEMA kept FROM {role}")).await;
    let outcome = is_shadowed(&platform(&theirs, &FILES).up().await.unwrap_err(), "public", "kept");
    // A view is in the way as well as a table.
    batch(dsn, "CREATE SCHEMA views; CREATE VIEW views.platform_migrations AS SELECT 1").await;
    let behind = format!("{dsn} options='-csearch_path=public,views'");
    let of_view = is_shadowed(&platform(&behind, &FILES).up().await.unwrap_err(), "public", "views");
    batch(dsn, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    outcome.and(of_view)
}

async fn a_schema_that_can_hold_no_ledger_is_refused(dsn: &str) -> Outcome {
    for path in ["pg_temp,public", "pg_catalog,public", "information_schema", "pg_temp", "\"\"", "missing"] {
        let dsn = format!("{dsn} options='-csearch_path={path}'");
        let error = platform(&dsn, &FILES).up().await.unwrap_err();
        let is_typed = matches!(error, MigrationError::Database(Error::InvalidArgument(_)));
        expect(is_typed, (path, error))?;
    }
    batch(dsn, "CREATE VIEW platform_migrations AS SELECT 1").await;
    let error = platform(dsn, &FILES).up().await.unwrap_err();
    expect(error.to_string().contains("\"public\".\"platform_migrations\""), &error)?;
    expect(
        !is_missing_migration(&platform(dsn, &FILES).version().await.unwrap_err()),
        "the database is reported as fresh",
    )
}

async fn a_pinned_schema_has_to_exist_and_is_the_only_one(dsn: &str) -> Outcome {
    let url = format!("postgres://larder@/?{}&schema=", dsn.replace(' ', "&"));
    for missing in [format!("{dsn} schema=tenant_a"), format!("{url}tenant_a")] {
        let Err(error) = drivers().open(&missing).await else { return Err("it was opened".to_string()) };
        expect(error_chain(&error).contains("tenant_a"), error_chain(&error))?;
    }
    batch(dsn, "CREATE SCHEMA \"Tenant A\"; CREATE SCHEMA larder").await;
    write_what_is_kept(&format!("{dsn} schema='Tenant A'")).await;
    read_and_write(&format!("{url}Tenant%20A"), newest(dsn)).await?;
    let schemas = "SELECT count(*) FROM pg_class WHERE relname LIKE 'larder%' AND relkind = 'r'
                   AND relnamespace <> '\"Tenant A\"'::regnamespace";
    expect(found(dsn, schemas).await == [0], "tables were created in another schema")
}

async fn an_error_of_a_step_names_the_file_the_statement_and_the_line(dsn: &str) -> Outcome {
    const FUNCTION: &str = "CREATE FUNCTION broken() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
            SELECT nothing;
        END $$;
        SELECT broken();";
    for (sql, place) in [
        // Errors during execution, analysis and parsing, in a function that the step calls, and of
        // forbidden commands.
        (
            "CREATE TABLE two (x int UNIQUE);\n\n-- Größe.\nINSERT INTO two\n    VALUES (1),\n    (1);\nSELECT 1",
            "failed in line 4, at \"INSERT INTO two VALUES (1), (1)\" and",
        ),
        ("SELECT 1;\nSELECT\n  'größe',\n  nothing;", "failed in line 4, at \"SELECT 'größe', nothing\" and"),
        ("SELECT 1;\r\nSELEC 2", "failed in line 2, at \"SELEC 2\" and"),
        (FUNCTION, "failed in line 4, at \"SELECT broken()\" and"),
        ("SET client_min_messages = error;\nSELECT 1 / 0", "failed in line 2, at \"SELECT 1 / 0\" and"),
        ("SELECT 1;\nCOMMIT", "was rolled back in line 2, at \"COMMIT\": it"),
        ("SELECT 1;\nVACUUM", "was rolled back in line 2, at \"VACUUM\": it"),
    ] {
        let error = with_second(dsn, sql).up().await.unwrap_err().to_string();
        expect(error.starts_with(&format!("schema step \"0002_second.sql\" {place}")), error)?;
    }
    Ok(())
}

async fn a_query_in_a_step_runs_for_all_its_rows(dsn: &str) -> Outcome {
    let error =
        with_second(dsn, "SELECT 1 / (3 - x) FROM generate_series(1, 3) AS x").up().await.unwrap_err();
    expect(matches!(error, MigrationError::StepFailed { number: 2, .. }), error)
}

async fn a_store_needs_no_procedural_language(dsn: &str) -> Outcome {
    batch(dsn, "DROP EXTENSION plpgsql").await;
    let store = drivers().open(dsn).await.map_err(|error| format!("{error:?}"))?;
    store.close().await;
    expect(
        found(dsn, "SELECT count(*) FROM pg_language WHERE lanname = 'plpgsql'").await == [0],
        "the language plpgsql exists again",
    )
}

async fn a_step_runs_whole_or_is_refused(dsn: &str) -> Outcome {
    for (sql, is_valid) in [
        ("CREATE TABLE a (x int);\n/* files in src/*.sql */\nCREATE TABLE b (x int);", false),
        ("CREATE TABLE a (x int);\n/*//////////\n// part 2 //\n//////////*/\nCREATE TABLE b (x int);", false),
        ("CREATE TABLE a (x int); CREATE TABLE b (x int); /* the end", false),
        ("CREATE TABLE a (x int); CREATE TABLE b (x text DEFAULT 'c);", false),
        ("CREATE TABLE a (x int); CREATE TABLE b (x int); SELECT $a$ $b$", false),
        ("CREATE TABLE a (x int); -- first\rCREATE TABLE b (x int);", true),
        ("-- both\rCREATE TABLE a (x int);\rCREATE TABLE b (x int);\r", true),
        (
            "CREATE TABLE a (x int); /* /* one */ -- two */ CREATE TABLE b (x text DEFAULT E'c'\n'd\\';e')",
            true,
        ),
    ] {
        let outcome = with_second(dsn, sql).up().await;
        let expected = if is_valid { "a b platform_migrations teams" } else { "platform_migrations teams" };
        expect(tables(dsn).await == expected, (sql, tables(dsn).await))?;
        expect(outcome.is_ok() == is_valid, (sql, outcome))?;
        batch(dsn, "DROP TABLE IF EXISTS a, b; DELETE FROM platform_migrations WHERE number = 2").await;
    }
    Ok(())
}

/// Pieces that the lexers of the server and of the migrator must read alike, at the beginning, at
/// the end and between statements.
const TEXTS: [&str; 22] = [
    "CREATE TABLE a (x text);",
    "CREATE TABLE b (x text)",
    "INSERT INTO log VALUES (1);",
    "INSERT INTO log VALUES (E'1'",
    ") ;",
    "DO 'BEGIN END';",
    ";",
    "\n",
    "\r",
    " ",
    "-- ",
    "/* ",
    " */",
    "/",
    "*/",
    "'",
    "'\\'",
    "\n'",
    "$$",
    "$a$",
    "E'",
    "\"",
];

async fn a_step_does_what_its_text_does_at_once(dsn: &str) -> Outcome {
    const RESET: &str = "DROP TABLE IF EXISTS a, b, log; CREATE TABLE log (x text)";
    const LEFT: &str = "SELECT coalesce(string_agg(relname::text, ' ' ORDER BY relname), '')
        || (SELECT coalesce(string_agg(x, ' '), '') FROM log)
        FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname IN ('a', 'b')";
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let client = connect(dsn).await;
    client.batch_execute(TEAMS).await.unwrap();
    for _ in 0..30 {
        let text: String = (0..random.usize(1..9)).map(|_| random.choice(TEXTS).unwrap()).collect();
        if text.trim().is_empty() {
            continue;
        }
        client.batch_execute(RESET).await.unwrap();
        let at_once = client.batch_execute(&text).await.map_err(|error| format!("{error:?}"));
        let expected: String = client.query_one(LEFT, &[]).await.unwrap().get(0);
        client.batch_execute(RESET).await.unwrap();
        client.batch_execute("DROP TABLE IF EXISTS platform_migrations").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("0001_text.sql"), &text).unwrap();
        let outcome = migrator(dsn, StepSet::from_folder(folder.path()).unwrap()).up().await;
        let left: String = client.query_one(LEFT, &[]).await.unwrap().get(0);
        let is_same = outcome.is_ok() == at_once.is_ok() && left == expected;
        expect(is_same, (seed, text, outcome, left, at_once, expected))?;
    }
    Ok(())
}

async fn a_checksum_of_an_earlier_release_is_recorded_anew_with_the_next_step(dsn: &str) -> Outcome {
    let steps = [("0001_teams.sql", TEAMS), ("0002_sessions.sql", SESSIONS)];
    platform(dsn, &steps[..1]).up().await.unwrap();
    let recorded = "SELECT count(*) FROM platform_migrations WHERE checksum = ";
    let earlier = format!("sha256(convert_to('{TEAMS}' || E'\\r\\n', 'UTF8'))");
    batch(dsn, &format!("UPDATE platform_migrations SET checksum = {earlier}")).await;
    // Hosts of the earlier release read the ledger too, until a step is added that they lack.
    expect(platform(dsn, &steps[..1]).up().await.unwrap().is_empty(), "a step was applied")?;
    expect(
        found(dsn, &format!("{recorded}{earlier}")).await == [1],
        "the checksum was rewritten without a new step",
    )?;
    expect(numbers(&platform(dsn, &steps).up().await.unwrap()) == [2], "the second step was not applied")?;
    expect(found(dsn, &format!("{recorded}{earlier}")).await == [0], "the checksum was not rewritten")?;
    expect(platform(dsn, &steps).version().await.unwrap() == 2, "the version is not 2")
}

/// What steps leave behind in a session, and statements that would notice it.
const PIECES: [&str; 18] = [
    "CREATE TEMP TABLE t (x text)",
    "CREATE TEMP TABLE log (x text)",
    "CREATE TEMP TABLE platform_migrations (number int, name text, checksum bytea, applied_at bigint)",
    "CREATE TABLE t (x text)",
    "CREATE TABLE IF NOT EXISTS t (x text DEFAULT 'a')",
    "INSERT INTO t VALUES ('b')",
    "DROP TABLE t",
    "SET search_path = elsewhere, public",
    "SELECT set_config('search_path', '', false)",
    "SET larder.step = '{}'",
    "SET my.setting = 'set'",
    "PREPARE prepared AS SELECT 1",
    "EXECUTE prepared",
    "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
    "SELECT nextval('numbers')",
    "INSERT INTO log SELECT lastval()::text",
    "INSERT INTO public.log SELECT coalesce(current_setting('my.setting', true), 'unset')",
    "INSERT INTO public.log SELECT current_schema()",
];

async fn any_split_of_steps_into_runs_gives_the_same_tables_or_the_same_error(dsn: &str) -> Outcome {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..20 {
        let begin =
            "CREATE SCHEMA elsewhere; CREATE TABLE public.log (x text); CREATE SEQUENCE public.numbers";
        let mut files = vec![("0001_begin.sql".to_string(), begin.to_string())];
        for number in 2..6 {
            let (one, two) = (random.choice(PIECES).unwrap(), random.choice(PIECES).unwrap());
            files.push((format!("{number:04}_piece.sql"), format!("{one};\n{two}")));
        }
        let expected = apply_in_runs(dsn, &files, &[files.len()]).await;
        let split: Vec<_> = (1..files.len()).filter(|_| random.bool()).chain([files.len()]).collect();
        let outcome = apply_in_runs(dsn, &files, &split).await;
        expect(outcome == expected, (seed, round, &split, &files, outcome, &expected))?;
    }
    Ok(())
}

/// Applies the files in several runs, each up to the next of `ends`. Returns the error and the
/// final state of the database.
async fn apply_in_runs(dsn: &str, files: &[(String, String)], ends: &[usize]) -> (String, String) {
    batch(dsn, "DROP SCHEMA IF EXISTS elsewhere CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        .await;
    let folder = tempfile::tempdir().unwrap();
    let (mut written, mut error) = (0, String::new());
    for end in ends {
        for (file, sql) in &files[written..*end] {
            std::fs::write(folder.path().join(file), sql).unwrap();
        }
        written = *end;
        if let Err(failed) = migrator(dsn, StepSet::from_folder(folder.path()).unwrap()).up().await {
            error = error_chain(&failed);
            break;
        }
    }
    let sql = "SELECT coalesce((SELECT string_agg(oid::regclass::text, ' ' ORDER BY oid::regclass::text) FROM pg_class
            WHERE relnamespace IN ('public'::regnamespace, 'elsewhere'::regnamespace)), '')
        || coalesce((SELECT string_agg(number::text, ' ' ORDER BY number) FROM platform_migrations), '')
        || coalesce((SELECT string_agg(x, ' ') FROM log), '')";
    (error, connect(dsn).await.query_one(sql, &[]).await.unwrap().get(0))
}
