//! Tests that commands which only read change nothing, and wait for no other process.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use support::Larder;

/// Commands that only read, without their `--store`.
const LOOKS: [&[&str]; 11] = [
    &["get", "n", "k"],
    &["get", "n", "k", "--json"],
    &["scan", "n"],
    &["namespaces"],
    &["migrations"],
    &["memory", "list"],
    &["memory", "export"],
    &["schema", "status"],
    &["schema", "up", "--dry-run"],
    &["migrations", "remove", "--component", "c", "--dry-run"],
    &["memory", "show", "--tenant", "t", "--user", "u", "--session", "s"],
];

/// Commands that write, without their `--store`.
const WRITES: [&[&str]; 6] = [
    &["put", "n", "k", "v"],
    &["delete", "n", "k"],
    &["sweep"],
    &["memory", "import"],
    &["memory", "forget", "--tenant", "t", "--user", "u"],
    &["schema", "up"],
];

/// The files of a directory, with their bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn run(larder: &Larder, verb: &[&str], store: &str) -> Output {
    larder.run(&[verb, &["--store", store]].concat())
}

/// Creates a store with one row, in the directory `data`.
fn store(larder: &Larder) {
    fs::create_dir(larder.path("data")).unwrap();
    larder.output(&["schema", "up", "--store", "sqlite:data/a.db"]);
    larder.output(&["put", "n", "k", "v", "--store", "sqlite:data/a.db"]);
}

#[test]
fn every_verb_refuses_the_database_of_another_application_and_leaves_it_as_it_is() {
    let larder = Larder::new();
    let foreign = [
        ("rollback.db", "CREATE TABLE moz_places (id); PRAGMA user_version = 77"),
        ("ahead.db", "PRAGMA journal_mode = WAL; CREATE TABLE moz_places (id)"),
        ("map.gpkg", "PRAGMA application_id = 0x47504b47; CREATE TABLE gpkg_contents (id)"),
        ("empty.gpkg", "PRAGMA application_id = 0x47504b47"),
        ("taken.db", "CREATE TABLE larder_entries (id)"),
    ];
    for (name, sql) in foreign {
        fs::create_dir(larder.path("foreign")).unwrap();
        Connection::open(larder.path("foreign").join(name)).unwrap().execute_batch(sql).unwrap();
        let before = files(&larder.path("foreign"));
        for verb in LOOKS.iter().chain(&WRITES) {
            let output = run(&larder, verb, &format!("sqlite:foreign/{name}"));
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{verb:?} on {name}: {error}");
            assert!(error.contains("check the path"), "{verb:?} on {name}: {error}");
            assert!(error.contains(name), "{verb:?} does not name {name}: {error}");
            assert_eq!(files(&larder.path("foreign")), before, "{verb:?} changed {name}");
        }
        fs::remove_dir_all(larder.path("foreign")).unwrap();
    }
}

#[test]
fn a_look_leaves_no_file_and_no_changed_byte() {
    let larder = Larder::new();
    store(&larder);
    let before = files(&larder.path("data"));
    for verb in LOOKS {
        let output = run(&larder, verb, "sqlite:data/a.db");
        assert!(!text(&output.stderr).contains("cannot open"), "{verb:?}: {}", text(&output.stderr));
        assert_eq!(files(&larder.path("data")), before, "{verb:?}");
    }
    assert_eq!(text(&run(&larder, &["scan", "n"], "sqlite:data/a.db").stdout), "k\tv\n");
}

#[test]
fn a_look_sees_the_commits_in_the_log_of_a_live_writer_and_of_one_that_was_killed() {
    let larder = Larder::new();
    store(&larder);
    let writer = Connection::open(larder.path("data/a.db")).unwrap();
    writer.execute_batch("PRAGMA wal_autocheckpoint = 0; UPDATE larder_entries SET value = x'77'").unwrap();
    let before = files(&larder.path("data"));
    assert!(before.keys().eq(["a.db", "a.db-shm", "a.db-wal"]), "{:?}", before.keys());
    let look = |store: &str| text(&run(&larder, &["get", "n", "k"], store).stdout);
    assert_eq!(look("sqlite:data/a.db"), "w");
    assert_eq!(files(&larder.path("data")), before);
    // The files that a killed process leaves, and a copy without the WAL index.
    for names in [["a.db", "a.db-wal", "a.db-shm"].as_slice(), &["a.db", "a.db-wal"]] {
        fs::create_dir(larder.path("left")).unwrap();
        for name in names {
            fs::write(larder.path("left").join(name), &before[*name]).unwrap();
        }
        let before = files(&larder.path("left"));
        assert_eq!(look("sqlite:left/a.db"), "w", "{names:?}");
        assert_eq!(files(&larder.path("left")), before, "{names:?}");
        fs::remove_dir_all(larder.path("left")).unwrap();
    }
}

#[test]
fn a_store_of_an_older_schema_is_not_migrated_by_a_look() {
    let larder = Larder::new();
    store(&larder);
    let older = "DELETE FROM larder_migrations WHERE number = 2; DROP TABLE larder_memory_state";
    Connection::open(larder.path("data/a.db")).unwrap().execute_batch(older).unwrap();
    let before = files(&larder.path("data"));
    for verb in [["get", "n", "k"].as_slice(), &["namespaces"], &["memory", "list"], &["migrations"]] {
        let output = run(&larder, verb, "sqlite:data/a.db");
        let error = text(&output.stderr);
        assert!(error.contains("at schema step 0001") && error.contains("larder schema up"), "{error}");
        assert_eq!(
            (output.status.code(), files(&larder.path("data"))),
            (Some(1), before.clone()),
            "{verb:?}"
        );
    }
    let dry_run = run(&larder, &["schema", "up", "--dry-run"], "sqlite:data/a.db");
    assert_eq!(text(&dry_run.stdout), "would apply 0002_memory_state\n");
    assert_eq!(files(&larder.path("data")), before);
    run(&larder, &["schema", "up"], "sqlite:data/a.db");
    assert_eq!(text(&run(&larder, &["get", "n", "k"], "sqlite:data/a.db").stdout), "v");
}

#[test]
fn an_empty_file_has_no_schema_yet_and_stays_empty() {
    let larder = Larder::new();
    fs::write(larder.path("empty.db"), b"").unwrap();
    let error = larder.error(1, &["get", "n", "k", "--store", "sqlite:empty.db"]);
    assert!(error.contains("larder schema up"), "{error}");
    assert_eq!(fs::read(larder.path("empty.db")).unwrap(), b"");
}

#[test]
fn a_store_that_does_not_exist_is_named_and_said_how_to_create() {
    let larder = Larder::new();
    let verbs =
        LOOKS.iter().chain(&WRITES).filter(|verb| verb[0] != "schema" && !verb.ends_with(&["import"]));
    for verb in verbs {
        for path in ["missing.db", "nowhere/missing.db"] {
            let error = text(&run(&larder, verb, &format!("sqlite:{path}")).stderr);
            let expected = format!("larder: cannot open the store \"sqlite:{path}\": the ");
            assert!(error.starts_with(&expected), "{verb:?}: {error}");
            assert!(error.contains("does not exist"), "{verb:?}: {error}");
            assert!(error.ends_with("or create the store with `larder schema up`\n"), "{verb:?}: {error}");
            assert!(!error.contains("unavailable"), "{verb:?}: {error}");
        }
    }
    assert_eq!(files(&larder.path("")), BTreeMap::new());
}

#[test]
fn a_look_at_a_rollback_journal_shows_what_is_committed_or_nothing() {
    let larder = Larder::new();
    store(&larder);
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
                INSERT INTO larder_entries SELECT CAST('n' AS BLOB), CAST('k' || i AS BLOB), zeroblob(200), 1, NULL FROM n";
    let update = |text: &str| {
        format!("UPDATE larder_entries SET value = CAST('{text}' || hex(zeroblob(100)) AS BLOB)")
    };
    let writer = Connection::open(larder.path("data/a.db")).unwrap();
    writer.execute_batch(rows).unwrap();
    for mode in ["DELETE", "TRUNCATE", "PERSIST"] {
        let setup = format!("PRAGMA journal_mode = {mode}; PRAGMA cache_size = 2; {}", update(mode));
        writer.execute_batch(&setup).unwrap();
        let mut get = larder.command(&["get", "n", "k", "--store", "sqlite:data/a.db"]);
        let get = get.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        writer.execute_batch(&format!("BEGIN; {}", update("uncommitted"))).unwrap();
        let seen = get.wait_with_output().unwrap();
        let (said, error) = (text(&seen.stdout), text(&seen.stderr));
        let is_committed = seen.status.success() && said.starts_with(mode);
        assert!(is_committed || said.is_empty() && error.contains("journal"), "{mode}: {said:?} {error}");
        let refused = larder.error(1, &["get", "n", "k", "--store", "sqlite:data/a.db"]);
        assert!(
            refused.contains("unfinished transaction") || refused.contains("try again"),
            "{mode}: {refused}"
        );
        writer.execute_batch("ROLLBACK").unwrap();
        let seen = larder.output(&["get", "n", "k", "--store", "sqlite:data/a.db"]);
        assert!(seen.starts_with(mode), "{mode}: {seen}");
    }
    assert!(larder.path("data/a.db-journal").exists(), "the journal was not kept");
}

#[test]
fn verbs_that_write_make_no_store_of_an_empty_database() {
    let larder = Larder::new();
    fs::create_dir(larder.path("data")).unwrap();
    fs::write(larder.path("data/empty.db"), b"").unwrap();
    let without_tables = Connection::open(larder.path("data/bare.db")).unwrap();
    without_tables.execute_batch("CREATE TABLE t (i); DROP TABLE t").unwrap();
    drop(without_tables);
    let before = files(&larder.path("data"));
    let verbs = WRITES.iter().filter(|verb| verb[0] != "schema");
    for verb in verbs.chain(&[["migrations", "remove", "--component", "c"].as_slice()]) {
        for name in ["empty.db", "bare.db"] {
            let error = text(&run(&larder, verb, &format!("sqlite:data/{name}")).stderr);
            assert!(error.contains("larder schema up"), "{verb:?}: {error}");
            assert_eq!(files(&larder.path("data")), before, "{verb:?} changed {name}");
        }
    }
}

#[test]
fn every_verb_refuses_what_is_no_regular_file() {
    let larder = Larder::new();
    let fifo = Command::new("mkfifo").arg(larder.path("fifo.db")).status().unwrap();
    assert!(fifo.success());
    std::os::unix::fs::symlink("/dev/null", larder.path("null.db")).unwrap();
    fs::create_dir(larder.path("folder.db")).unwrap();
    let before = fs::read_dir(larder.path("")).unwrap().count();
    for path in ["fifo.db", "null.db", "folder.db", "/dev/zero"] {
        for verb in LOOKS.iter().chain(&WRITES) {
            let output = run(&larder, verb, &format!("sqlite:{path}"));
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{verb:?} on {path}: {error}");
            assert!(error.contains("is not a regular file; check the path"), "{verb:?} on {path}: {error}");
        }
    }
    assert_eq!(fs::read_dir(larder.path("")).unwrap().count(), before);
    assert!(!Path::new("/dev/null-journal").exists());
}

#[test]
fn a_missing_folder_is_said_by_migrations_as_by_a_look() {
    let larder = Larder::new();
    for verb in [["schema", "status"].as_slice(), &["schema", "up", "--dry-run"], &["schema", "up"]] {
        let error = text(&run(&larder, verb, "sqlite:nowhere/a.db").stderr);
        let expected = "store \"sqlite:nowhere/a.db\": the directory of the database file does not exist: ";
        assert!(
            error.contains(expected) && error.ends_with("/nowhere/a.db; check the path\n"),
            "{verb:?}: {error}"
        );
    }
}

#[test]
fn a_migration_that_waits_for_a_lock_says_so() {
    let larder = Larder::new();
    let holder = Connection::open(larder.path("a.db")).unwrap();
    holder.execute_batch("CREATE TABLE t (i); DROP TABLE t; BEGIN EXCLUSIVE").unwrap();
    let mut up = larder.command(&["schema", "up", "--store", "sqlite:a.db"]);
    let up = up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(2_500));
    holder.execute_batch("ROLLBACK").unwrap();
    let output = up.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert!(error.contains("if another process holds the lock, this waits"), "{error}");
}

#[test]
fn a_component_reads_a_file_that_may_not_be_written_and_creates_none() {
    let larder = Larder::new();
    let run = |grants: &[&str]| {
        let run = [&["run", larder_artifacts::CATALOG], grants, &["--", "list"]].concat();
        let output = larder.run(&run);
        (output.status.code(), text(&output.stderr))
    };
    let (code, error) = run(&["--read-only-store", "default=sqlite:missing.db"]);
    assert!(error.contains("the database file does not exist"), "{error}");
    assert_eq!((code, larder.path("missing.db").exists()), (Some(1), false));
    fs::create_dir(larder.path("data")).unwrap();
    assert_eq!(run(&["--store", "default=sqlite:data/a.db"]), (Some(0), String::new()));
    let before = files(&larder.path("data"));
    assert_eq!(run(&["--read-only-store", "default=sqlite:data/a.db"]), (Some(0), String::new()));
    assert_eq!(files(&larder.path("data")), before);
    // One file that is granted three times.
    let both = [
        "--read-only-store",
        "first=sqlite:./data/a.db",
        "--read-only-store",
        "second=sqlite:data/a.db",
        "--store",
        "default=sqlite:data/../data/a.db",
    ];
    assert_eq!(run(&both), (Some(0), String::new()));
    assert!(files(&larder.path("data")).keys().all(|name| !name.ends_with("-wal")));
}

#[test]
fn a_look_does_not_wait_for_a_process_that_holds_the_database() {
    let larder = Larder::new();
    store(&larder);
    for lock in ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE", "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE"] {
        let holder = Connection::open(larder.path("data/a.db")).unwrap();
        holder.execute_batch(lock).unwrap();
        let since = Instant::now();
        for verb in LOOKS {
            run(&larder, verb, "sqlite:data/a.db");
        }
        // The lock is not released, so a command that waited for it would take a minute.
        assert!(since.elapsed() < Duration::from_secs(30), "{lock}");
        holder.execute_batch("ROLLBACK").unwrap();
    }
}

#[test]
fn any_path_is_looked_at_through_whatever_leads_to_it() {
    let larder = Larder::new();
    store(&larder);
    std::os::unix::fs::symlink("data/a.db", larder.path("link.db")).unwrap();
    fs::copy(larder.path("data/a.db"), larder.path("a b?#&%41ö.db")).unwrap();
    for path in ["link.db", "a b%3F#&%2541ö.db", "./data/../data/a.db"] {
        let output = run(&larder, &["get", "n", "k"], &format!("sqlite:{path}"));
        assert_eq!(text(&output.stdout), "v", "{path}: {}", text(&output.stderr));
    }
}

/// Runs a command as another user, if there is one. `root` ignores file permissions, so tests that
/// run as `root` need another user.
fn run_as(user: Option<u32>, larder: &Larder, verb: &[&str], store: &str) -> Output {
    // Other users may not have access to the build directory.
    let program = larder.path("larder");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_larder"), &program).unwrap();
    }
    let mut command = Command::new(program);
    command.args(verb).args(["--store", store]).current_dir(larder.path("")).stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command.output().unwrap()
}

/// Two users that are not `root`. If the tests do not run as `root`, both are the current user.
fn users(larder: &Larder) -> [Option<u32>; 2] {
    let is_root = fs::metadata(larder.path("")).unwrap().uid() == 0;
    fs::set_permissions(larder.path(""), Permissions::from_mode(0o755)).unwrap();
    if is_root { [Some(65_534), Some(65_533)] } else { [None, None] }
}

#[test]
fn a_read_only_file_in_a_read_only_folder_is_looked_at() {
    let larder = Larder::new();
    store(&larder);
    let [user, _] = users(&larder);
    let (folder, file) = (larder.path("data"), larder.path("data/a.db"));
    if let Some(user) = user {
        for path in [&folder, &file] {
            std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
        }
    }
    for (file_mode, folder_mode) in [(0o444, 0o555), (0o444, 0o755), (0o644, 0o555)] {
        fs::set_permissions(&file, Permissions::from_mode(file_mode)).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(folder_mode)).unwrap();
        let before = files(&folder);
        for (verb, said) in [(["get", "n", "k"].as_slice(), "v"), (&["scan", "n"], "k\tv\n")] {
            let output = run_as(user, &larder, verb, "sqlite:data/a.db");
            assert_eq!(text(&output.stdout), said, "{file_mode:o} {folder_mode:o}: {}", text(&output.stderr));
        }
        let refused = run_as(user, &larder, &["put", "n", "k", "w"], "sqlite:data/a.db");
        let error = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{file_mode:o} {folder_mode:o}: {error}");
        assert!(error.contains("sqlite:data/a.db"), "{error}");
        assert_eq!(files(&folder), before);
    }
    fs::set_permissions(&file, Permissions::from_mode(0o000)).unwrap();
    let unreadable = text(&run_as(user, &larder, &["get", "n", "k"], "sqlite:data/a.db").stderr);
    assert!(unreadable.contains("cannot open the database") && unreadable.contains("a.db"), "{unreadable}");
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_look_by_another_user_leaves_the_owner_able_to_write() {
    let larder = Larder::new();
    let [owner, other] = users(&larder);
    fs::create_dir(larder.path("data")).unwrap();
    // As in /tmp, each user may create files, and only remove their own.
    fs::set_permissions(larder.path("data"), Permissions::from_mode(0o1777)).unwrap();
    let as_user = |user, verb: &[&str]| {
        let output = run_as(user, &larder, verb, "sqlite:data/a.db");
        assert!(output.status.success(), "{verb:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    as_user(owner, &["schema", "up"]);
    as_user(owner, &["put", "n", "k", "v"]);
    let before = files(&larder.path("data"));
    assert_eq!(as_user(other, &["get", "n", "k"]), "v");
    assert_eq!(files(&larder.path("data")), before);
    as_user(owner, &["put", "n", "k", "w"]);
    assert_eq!(as_user(owner, &["get", "n", "k"]), "w");
    assert_eq!(as_user(other, &["get", "n", "k"]), "w");
}

#[test]
fn a_stale_version_is_answered_with_the_one_that_the_row_has() {
    let larder = Larder::new();
    store(&larder);
    let put = |version: &str, key: &str| {
        let put = ["put", "n", key, "w", "--if-version", version, "--store", "sqlite:data/a.db"];
        larder.error(1, &put)
    };
    let row = "larder: cannot write \"k\" in the namespace \"n\": ";
    assert_eq!(
        put("9", "k"),
        format!("{row}the row is at version 1, not at version 9; nothing was written\n")
    );
    assert_eq!(put("0", "k"), format!("{row}the row is at version 1, not absent; nothing was written\n"));
    let absent = "larder: cannot write \"x\" in the namespace \"n\": the row is absent, not at version 9; nothing \
                  was written\n";
    assert_eq!(put("9", "x"), absent);
}
