//! Tests of the command line on Postgres.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder_postgres_server::PostgresServer;
use support::Larder;

/// Commands that write to an existing store.
const WRITES: [&[&str]; 7] = [
    &["put", "n", "k", "v"],
    &["delete", "n", "k"],
    &["sweep"],
    &["memory", "import"],
    &["memory", "forget", "--tenant", "t", "--user", "u"],
    &["migrations", "remove", "--component", "c"],
    &["migrations", "record", "--component", "c", "--id", "1", "--checksum", CHECKSUM],
];

const CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn verbs_that_write_make_no_tables_and_a_standby_is_looked_at() {
    let mut server = PostgresServer::start().unwrap();
    let (larder, dsn) = (Larder::new(), server.dsn());
    for verb in WRITES {
        let error = larder.error(1, &[verb, &["--store", &dsn]].concat());
        assert!(error.contains("cannot open the store \"postgres\""), "{verb:?}: {error}");
        assert!(error.contains("larder schema up"), "{verb:?}: {error}");
    }
    let dump = server.dump("postgres").unwrap();
    assert!(!dump.contains("CREATE"), "{dump}");

    larder.output(&["schema", "up", "--store", &dsn]);
    larder.output(&["put", "n", "k", "v", "--store", &dsn]);
    server.stop();
    std::fs::write(server.folder().join("data/standby.signal"), "").unwrap();
    server.launch().unwrap();
    assert_eq!(larder.output(&["get", "n", "k", "--store", &dsn]), "v");
    assert_eq!(larder.output(&["scan", "n", "--store", &dsn]), "k\tv\n");
    assert_eq!(larder.output(&["namespaces", "--store", &dsn]), "n\n");
    for verb in [["memory", "list"].as_slice(), &["memory", "export"], &["migrations"], &["schema", "status"]]
    {
        larder.output(&[verb, &["--store", &dsn]].concat());
    }
    let grant = format!("default={dsn}");
    let run = ["run", larder_artifacts::CATALOG, "--read-only-store", &grant, "--", "list"];
    let run = larder.run(&run);
    let error = String::from_utf8(run.stderr).unwrap();
    assert!(!error.contains("cannot open"), "{error}");
    larder.error(1, &["put", "n", "k", "w", "--store", &dsn]);
}

#[test]
fn a_password_comes_from_the_environment_and_a_missing_one_is_said() {
    let hba = [("pg_hba.conf", "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")];
    let server = PostgresServer::start_on_tcp(&["fsync=off"], &hba).unwrap();
    let (larder, socket) = (Larder::new(), server.dsn());
    larder.output(&["schema", "up", "--store", &socket]);
    larder.output(&["put", "n", "k", "v", "--store", &socket]);
    server.execute("ALTER ROLE larder PASSWORD 'hunter2'").unwrap();

    let dsn = format!("postgres://larder@127.0.0.1:{}/postgres", server.port().unwrap());
    let run = |dsn: &str, password: Option<&str>| {
        let mut command = larder.command(&["get", "n", "k", "--store", dsn]);
        command.env("HOME", larder.path("."));
        if let Some(password) = password {
            command.env("PGPASSWORD", password);
        }
        let output = command.output().unwrap();
        let [said, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(!error.contains("hunter2"), "{error}");
        (said, error)
    };
    assert_eq!(run(&dsn, Some("hunter2")), ("v".to_string(), String::new()));
    let (_, error) = run(&dsn, None);
    for part in ["cannot open the store", "user \"larder\"", "\"127.0.0.1\"", "PGPASSWORD", "passfile"] {
        assert!(error.contains(part), "{error}");
    }
    let (_, error) = run(&dsn, Some("wrong"));
    assert!(error.contains("refused larder's login"), "{error}");
    let (_, error) = run(&format!("{dsn}?sslmod=require"), None);
    assert!(error.contains("did you mean \"sslmode\"?"), "{error}");
}

#[test]
fn a_conformance_run_that_a_signal_ends_leaves_no_schema() {
    let server = PostgresServer::start().unwrap();
    let (larder, dsn) = (Larder::new(), server.dsn());
    let mut command = larder.command_for_signals(&["conformance", "--store", &dsn]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let since = Instant::now();
    while !server.dump("postgres").unwrap().contains("CREATE SCHEMA") {
        assert!(since.elapsed() < Duration::from_secs(60), "the command created no schema");
    }
    assert!(Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let dump = server.dump("postgres").unwrap();
    assert!(!dump.contains("CREATE"), "{dump}");
}
