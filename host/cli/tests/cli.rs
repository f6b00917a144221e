//! End-to-end tests of the command line.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::{Output, Stdio};

use support::Larder;

const STORE: &str = "default=sqlite:catalog.db";

fn load(larder: &Larder) -> Output {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/catalog/sample/status");
    let mut command = larder.command(&["run", larder_artifacts::CATALOG, "--store", STORE]);
    command.stdin(File::open(sample).unwrap()).output().unwrap()
}

#[test]
fn a_component_keeps_data_from_run_to_run() {
    let larder = Larder::new();
    for _ in 0..2 {
        let loaded = String::from_utf8(load(&larder).stdout).unwrap();
        assert!(
            loaded.starts_with("stored 12 packages with 22 dependencies in 1 transactions: "),
            "{loaded}"
        );
    }
    let ask = |question: &[&str]| {
        let run = ["run", larder_artifacts::CATALOG, "--store", STORE, "--"];
        larder.output(&[run.as_slice(), question].concat())
    };
    assert_eq!(ask(&["needs", "libtext"]), "editor\nreader\nshell\n");
    assert_eq!(
        ask(&["show", "shell"]),
        "shell 5.3 (amd64)\n    a command interpreter\n    depends on: libcore, libtext\n"
    );
    assert_eq!(
        ask(&["list", "libt"]),
        "libtext 1.10 - text handling\nlibtext-small 0.9 - text handling for small systems\n"
    );
    let compiled = std::fs::read_dir(larder.path("cache/larder")).unwrap().count();
    assert!(compiled > 0, "no compiled code was kept");
}

#[test]
fn a_store_of_an_earlier_release_is_migrated_by_the_component_with_its_data() {
    let larder = Larder::new();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/catalog/sample/first-layout.db");
    std::fs::copy(sample, larder.path("catalog.db")).unwrap();
    let migrations = ["migrations", "--store", "sqlite:catalog.db"];
    let header = "COMPONENT\tNUMBER\tMIGRATION\tAPPLIED\tLARDER\tCHECKSUM\n";
    assert_eq!(larder.output(&migrations), header);

    let ask = |grant: &str, question: &[&str]| {
        let run = ["run", larder_artifacts::CATALOG, grant, STORE, "--"];
        larder.run(&[run.as_slice(), question].concat())
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let refused = text(ask("--read-only-store", &["of", "all"]).stderr);
    assert!(
        refused.ends_with("catalog: access denied: the store \"default\" is granted read-only\n"),
        "{refused}"
    );
    assert_eq!(larder.output(&migrations), header);
    assert_eq!(text(ask("--store", &["of", "all"]).stdout), "base-layout\ncertificates\n");
    assert_eq!(text(ask("--store", &["needs", "libtext"]).stdout), "editor\nreader\nshell\n");
    // All steps are applied now, so a read-only grant is enough.
    assert_eq!(text(ask("--read-only-store", &["of", "all"]).stdout), "base-layout\ncertificates\n");

    let printed = larder.output(&migrations);
    let lines: Vec<Vec<_>> = printed.lines().map(|line| line.split('\t').collect()).collect();
    let steps: Vec<_> = lines.iter().map(|fields| fields.get(..3).unwrap()).collect();
    assert_eq!(
        steps,
        [
            ["COMPONENT", "NUMBER", "MIGRATION"],
            ["catalog", "1", "0001_packages"],
            ["catalog", "2", "0002_index_by_architecture"],
        ]
    );
    let none = larder.output(&[migrations.as_slice(), &["--component", "cat", "--json"]].concat());
    assert_eq!(none, "");
    let json = larder.output(&[migrations.as_slice(), &["--component", "catalog", "--json"]].concat());
    let last = json.lines().last().unwrap();
    assert!(last.contains(r#""migration":"0002_index_by_architecture","number":2"#), "{last}");
}

#[test]
fn a_component_declares_migrations_under_the_name_of_its_file_or_those_it_is_given() {
    let larder = Larder::new();
    std::fs::copy(larder_artifacts::CATALOG, larder.path("plugin.wasm")).unwrap();
    let ask = |component: &str, names: &[&str]| {
        let run = ["run", component, "--store", STORE];
        let output = larder.run(&[run.as_slice(), names, &["--", "of", "all"]].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let migrations = ["migrations", "--store", "sqlite:catalog.db", "--json"];
    for names in [&[][..], &["--component-name", "plugin"], &["--component-name", "catalog2"]] {
        let (code, said) = ask("plugin.wasm", names);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("access denied: cannot declare migrations of the component \"catalog\""),
            "{said}"
        );
        assert_eq!(larder.output(&migrations), "");
    }
    // An explicit name replaces the name of the file.
    let (code, said) = ask(larder_artifacts::CATALOG, &["--component-name", "plugin"]);
    assert_eq!(code, Some(1), "{said}");
    let (code, said) = ask("plugin.wasm", &["--component-name", ""]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("larder: --component-name: "), "{said}");
    let given = ["--component-name", "plugin", "--component-name", "catalog"];
    assert_eq!(ask("plugin.wasm", &given), (Some(0), String::new()));
    assert_eq!(larder.output(&migrations).lines().count(), 2);
    assert_eq!(ask(larder_artifacts::CATALOG, &[]), (Some(0), String::new()));
}

#[test]
fn an_operator_repairs_the_record_of_migrations_after_a_dry_run() {
    let larder = Larder::new();
    let ask = || larder.output(&["run", larder_artifacts::CATALOG, "--store", STORE, "--", "of", "all"]);
    ask();
    let store = ["--store", "sqlite:catalog.db", "--component", "catalog"];
    let call =
        |verb: &str, rest: &[&str]| larder.run(&[&["migrations", verb], store.as_slice(), rest].concat());
    let done = |verb: &str, rest: &[&str]| {
        let output = call(verb, rest);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = |verb: &str, rest: &[&str]| {
        let output = call(verb, rest);
        assert_ne!(output.status.code(), Some(0));
        assert_eq!(output.stdout, b"");
        String::from_utf8(output.stderr).unwrap()
    };
    let listed = || larder.output(&[&["migrations"], store.as_slice(), &["--json"]].concat());
    let before = listed();
    let checksum = |line: &str| line.split(r#""checksum":""#).nth(1).unwrap().get(..64).unwrap().to_string();
    let second = checksum(before.lines().last().unwrap());

    let from = ["--from", "0002_index_by_architecture"];
    let dry = [from.as_slice(), &["--dry-run"]].concat();
    assert_eq!(done("remove", &dry), "would remove catalog\t2\t0002_index_by_architecture\n");
    assert_eq!(listed(), before);
    assert_eq!(done("remove", &from), "removed catalog\t2\t0002_index_by_architecture\n");
    assert_eq!(listed().lines().count(), 1);
    assert!(refused("remove", &from).contains("has no migration \"0002_index_by_architecture\""));

    let record = ["--id", "0002_index_by_architecture", "--checksum", &second];
    let dry = [record.as_slice(), &["--dry-run"]].concat();
    assert_eq!(done("record", &dry), "would record catalog\t2\t0002_index_by_architecture\n");
    assert_eq!(listed().lines().count(), 1);
    assert_eq!(done("record", &record), "recorded catalog\t2\t0002_index_by_architecture\n");
    assert!(refused("record", &record).contains("it is recorded already; remove it first"));
    assert!(refused("record", &["--id", "0003", "--checksum", "ab"]).contains("64 hexadecimal digits"));
    // The recorded steps match those that the component declares.
    ask();

    let all = "removed catalog\t1\t0001_packages\nremoved catalog\t2\t0002_index_by_architecture\n";
    assert_eq!(done("remove", &[]), all);
    assert!(refused("remove", &[]).contains("there is nothing to remove"));
    ask();
    assert_eq!(listed().lines().count(), 2);
}

#[test]
fn an_operator_removes_one_invalid_row_of_the_record_of_migrations() {
    let larder = Larder::new();
    let ask = || larder.run(&["run", larder_artifacts::CATALOG, "--store", STORE, "--", "of", "all"]);
    assert_eq!(ask().status.code(), Some(0));
    let store = ["--store", "sqlite:catalog.db"];
    let listed = || larder.output(&[&["migrations"], store.as_slice(), &["--json"]].concat());
    let before = listed();
    let damage = "INSERT INTO larder_entries (namespace, key, value, version)
        SELECT namespace, x'636174616c6f6700fffe', value, version FROM larder_entries
        WHERE namespace = CAST('__store_migrations__' AS BLOB) LIMIT 1";
    rusqlite::Connection::open(larder.path("catalog.db")).unwrap().execute_batch(damage).unwrap();

    let row = "636174616c6f6700fffe";
    let lines = listed();
    assert!(lines.starts_with(&before), "{lines}");
    assert!(lines.lines().nth(2).unwrap().contains(&format!(r#""row":"{row}""#)), "{lines}");
    let table = larder.output(&[&["migrations"], store.as_slice()].concat());
    assert!(table.lines().nth(3).unwrap().contains(&format!("remove --row {row}")), "{table}");
    let told = ask();
    assert_ne!(told.status.code(), Some(0));
    let told = String::from_utf8(told.stderr).unwrap();
    assert!(told.contains(&format!("`larder migrations remove --row {row}`")), "{told}");

    fn remove<'a>(rest: &[&'a str]) -> Vec<&'a str> {
        [&["migrations", "remove", "--store", "sqlite:catalog.db"], rest].concat()
    }
    let printed = |what: &str| format!("{what} catalog\t?\t\u{fffd}\u{fffd}\n");
    assert_eq!(larder.output(&remove(&["--row", row, "--dry-run"])), printed("would remove"));
    assert_eq!(listed(), lines);
    assert_eq!(larder.output(&remove(&["--row", row])), printed("removed"));
    assert_eq!(listed(), before);
    assert_eq!(ask().status.code(), Some(0));
    let valid = larder.error(1, &remove(&["--row", "636174616c6f6700303030315f7061636b61676573"]));
    assert!(valid.contains("is a valid entry"), "{valid}");
    larder.error(2, &remove(&["--row", "abc"]));
    larder.error(2, &remove(&["--row", row, "--component", "catalog"]));
    larder.error(2, &remove(&[]));
}

#[test]
fn a_component_name_that_none_can_have_is_refused_in_one_sentence() {
    let larder = Larder::new();
    let run = ["run", larder_artifacts::CATALOG, "--store", STORE, "--component-name", "", "--", "of", "all"];
    let error = larder.error(1, &run);
    assert_eq!(error.matches("invalid argument:").count(), 1, "{error}");
}

#[test]
fn a_store_that_is_not_granted_or_only_for_reading_is_refused() {
    let larder = Larder::new();
    let run = ["run", larder_artifacts::CATALOG];
    let missing = larder.error(1, &[run.as_slice(), &["--", "list"]].concat());
    assert_eq!(missing, "catalog: the host granted no store named \"default\"\n");
    load(&larder);
    let read_only = ["--read-only-store", STORE];
    assert!(
        larder
            .output(&[run.as_slice(), &read_only, &["--", "list", "shell"]].concat())
            .starts_with("shell 5.3")
    );
    let mut command = larder.command(&[run.as_slice(), &read_only].concat());
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/catalog/sample/status");
    let output = command.stdin(File::open(sample).unwrap()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("access denied: the store \"default\" is granted read-only"), "{error}");
}

#[test]
fn what_cannot_run_is_said_in_a_sentence() {
    let larder = Larder::new();
    std::fs::write(larder.path("text.wasm"), "no component").unwrap();
    let error = |component: &str| larder.error(1, &["run", component, "--store", "default=in-memory:"]);
    assert!(error("missing.wasm").starts_with("larder: cannot read missing.wasm: No such file"));
    assert!(error("text.wasm").starts_with("larder: text.wasm is not a WebAssembly component: "));
    let unknown = error(larder_artifacts::IMPORT_UNKNOWN);
    assert!(
        unknown.ends_with(".wasm imports \"larder:unknown/thing\", which larder does not provide\n"),
        "{unknown}"
    );
    let library = error(larder_artifacts::LARDER_CONFORMANCE);
    assert!(
        library.contains("imports \"larder:conformance/probe@0.1.0\", which larder does not provide"),
        "{library}"
    );
    let trapped = error(larder_artifacts::TRAP_IN_UPDATE);
    assert_eq!(
        trapped,
        "larder: the component trapped: wasm trap: wasm `unreachable` instruction executed\n"
    );
}

#[test]
fn a_wrong_data_source_name_is_said_in_a_sentence_without_its_password() {
    let larder = Larder::new();
    let error = |dsn: &str| larder.error(1, &["get", "--store", dsn, "n", "key"]);
    let unknown = error("mysql://ann:secret@host/db");
    assert_eq!(
        unknown,
        "larder: no driver for the data-source name \"mysql:\"; use one of: in-memory, postgres, sqlite, tenants\n"
    );
    let unreachable = error("postgres://ann:secret@127.0.0.1:1/db");
    assert!(unreachable.starts_with("larder: cannot open the store \"postgres\": "), "{unreachable}");
    assert!(!unreachable.contains("secret"), "{unreachable}");
    assert!(error("sqlite:").contains("use `sqlite:PATH` or `sqlite::memory:`"));
    assert!(error("in-memory:x").contains("the data-source name of an in-memory store is `in-memory:`"));
    let usage = larder.error(2, &["run", larder_artifacts::CATALOG, "--store", "sqlite:catalog.db"]);
    assert!(usage.contains("expected the form NAME=…"), "{usage}");
}

#[test]
fn no_error_repeats_a_password() {
    let larder = Larder::new();
    let run = ["run", larder_artifacts::CATALOG];
    let wrong: [(i32, &[&str]); 14] = [
        (2, &["--store", "postgres://ann:hunter2@h/d"]),
        (2, &["--store", "postgres://ann:hunter2@h/d?sslmode=x"]),
        (2, &["--read-only-store", "postgres://ann:hunter2@h/d"]),
        (2, &["--env", "hunter2"]),
        (1, &["--store", "host=h password=hunter2"]),
        (1, &["--store", "default= host=h password=hunter2"]),
        (1, &["--store", "default=HOST=h password=hunter2"]),
        (1, &["--read-only-store", "default= host=h password=hunter2"]),
        (1, &["--memory", " host=h password=hunter2", "--tenant", "t", "--user", "u"]),
        (1, &["--store", "default=sqlite:x?password=hunter2"]),
        (1, &["--store", "default=sqlite:x?key=hunter2"]),
        (2, &["--store=a=in-memory:", "--password=hunter2"]),
        (2, &["--store=a=in-memory:", "postgres://ann:hunter2@h/d"]),
        (2, &["--store=a=in-memory:", "host=h password=hunter2"]),
    ];
    for (code, arguments) in wrong {
        let error = larder.error(code, &[run.as_slice(), arguments].concat());
        assert!(!error.contains("hunter2"), "{arguments:?}: {error}");
    }
    let dsns = [
        " host=h password=hunter2",
        "HOST=h password=hunter2",
        "HOST=h password=hunter2:x",
        "hunter2",
        "sqlite:x?password=hunter2",
        "sqlite::memory:?key=hunter2",
        "postgres://ann:hunter2@h:port/d",
    ];
    for dsn in dsns {
        for verb in [["get", "n", "k"].as_slice(), &["put", "n", "k", "v"], &["schema", "status"]] {
            let error = larder.error(1, &[verb, &["--store", dsn]].concat());
            assert!(!error.contains("hunter2"), "{verb:?} {dsn}: {error}");
        }
    }
    for arguments in
        [["postgres://ann:hunter2@h/d"].as_slice(), &["schema", "status", "postgres://hunter2@h/d"]]
    {
        let error = larder.error(2, arguments);
        assert!(!error.contains("hunter2"), "{arguments:?}: {error}");
    }
}

#[test]
fn an_import_names_the_line_that_is_wrong_and_makes_no_store_for_it() {
    let larder = Larder::new();
    let import = |store: &str, input: &[u8]| {
        let mut command = larder.command(&["memory", "import", "--store", store]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The process may exit before it has read all input.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), input);
        String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap()
    };
    let begin = "larder: line 2, after 0 sessions were imported: ";
    let valid_shape =
        br#"{"tenant":"t","user":"u","session":"s","run":"","strategy":"truncation","record":{}}"#;
    for wrong in [b"\xff\n".as_slice(), b"{}\n", b"[[[[", valid_shape] {
        let error = import("sqlite:missing.db", &[b"\n", wrong].concat());
        assert!(error.starts_with(begin), "{error}");
        assert!(!larder.path("missing.db").exists());
    }
    larder.output(&["schema", "up", "--store", "sqlite:a.db"]);
    let error = import("sqlite:a.db", b"\n\xff\n");
    assert_eq!(
        error,
        format!("{begin}the line is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0\n")
    );
    let error = import("sqlite:a.db", &vec![b'x'; 130 << 20]);
    assert!(
        error.starts_with("larder: line 1, after 0 sessions were imported: the line is longer than "),
        "{error}"
    );
}

#[test]
fn rows_are_written_and_read_without_a_guest() {
    let larder = Larder::new();
    load(&larder);
    let store = ["--store", "sqlite:catalog.db"];
    let call = |command: &str, arguments: &[&str]| {
        larder.output(&[&[command], store.as_slice(), arguments].concat())
    };
    assert_eq!(call("put", &["notes", "b", "second"]), "version 4\n");
    assert_eq!(call("put", &["notes", "a", "first", "--if-version", "0"]), "version 5\n");
    assert_eq!(call("get", &["notes", "a"]), "first");
    let json = "{\"key\":\"a\",\"namespace\":\"notes\",\"value\":\"first\",\"version\":5}\n";
    assert_eq!(call("get", &["notes", "a", "--json"]), json);
    assert_eq!(call("namespaces", &[]), "__store_migrations__\nnotes\npackages\n");
    assert_eq!(call("scan", &["notes"]), "a\tfirst\nb\tsecond\n");
    assert_eq!(
        call("scan", &["notes", "--reverse", "--limit", "1", "--json"]),
        "{\"key\":\"b\",\"value\":\"second\"}\n"
    );
    assert_eq!(call("delete", &["notes", "a"]), "deleted\n");
    assert_eq!(call("delete", &["notes", "a"]), "there was no such row\n");
    let missing = larder.error(1, &[&["get"], store.as_slice(), &["notes", "a"]].concat());
    assert_eq!(missing, "larder: there is no row \"a\" in the namespace \"notes\"\n");
    let conflict =
        larder.error(1, &[&["put"], store.as_slice(), &["notes", "b", "x", "--if-version", "1"]].concat());
    assert!(
        conflict.contains("the row is at version 4, not at version 1; nothing was written"),
        "{conflict}"
    );
}

#[test]
fn expired_rows_are_removed_on_demand() {
    let larder = Larder::new();
    load(&larder);
    let sweep = ["sweep", "--store", "sqlite:catalog.db"];
    assert_eq!(larder.output(&sweep), "removed 0 expired rows\n");
    let database = rusqlite::Connection::open(larder.path("catalog.db")).unwrap();
    let insert = "INSERT INTO larder_entries (namespace, key, value, version, expires_at)
        VALUES (CAST('n' AS BLOB), CAST(?1 AS BLOB), x'', 1, ?2)";
    for (key, expires_at) in [("a", 1), ("b", 2), ("later", i64::MAX)] {
        database.execute(insert, (key, expires_at)).unwrap();
    }
    drop(database);
    assert_eq!(larder.output(&sweep), "removed 2 expired rows\n");
    assert_eq!(larder.output(&["scan", "--store", "sqlite:catalog.db", "n"]), "later\t\n");
    larder.error(1, &["sweep", "--store", "sqlite:missing.db"]);
}

#[test]
fn keys_that_are_not_printable_are_shown_escaped_and_found_so() {
    let larder = Larder::new();
    load(&larder);
    let store = ["--store", "sqlite:catalog.db"];
    let call = |arguments: &[&str]| larder.output(&[arguments, store.as_slice()].concat());
    let keys = call(&["scan", "packages", "ineeds\\0libtext\\0", "--escaped", "--keys-only"]);
    let expected =
        ["editor", "reader", "shell"].map(|name| format!("ineeds\\0libtext\\0{name} amd64\n")).concat();
    assert_eq!(keys, expected);
    assert_eq!(call(&["get", "packages", "ineeds\\0libtext\\0shell amd64", "--escaped"]), "");
}

#[test]
fn commands_that_write_remove_what_has_expired() {
    let larder = Larder::new();
    let store = ["--store", "sqlite:a.db"];
    larder.output(&[&["schema", "up"], store.as_slice()].concat());
    let stored = || -> i64 {
        let database = rusqlite::Connection::open(larder.path("a.db")).unwrap();
        database.query_row("SELECT count(*) FROM larder_entries", [], |row| row.get(0)).unwrap()
    };
    for command in [["delete", "n", "x"].as_slice(), &["put", "n", "x", "v"]] {
        for key in ["a", "b"] {
            larder.output(&[&["put", "n", key, "v", "--ttl-ms", "1"], store.as_slice()].concat());
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
        larder.output(&[command, store.as_slice()].concat());
        assert_eq!(stored(), i64::from(command[0] == "put"), "{command:?}");
    }
    larder.output(&[&["put", "n", "a", "v", "--ttl-ms", "100"], store.as_slice()].concat());
    std::thread::sleep(std::time::Duration::from_millis(110));
    // Reading changes nothing.
    assert_eq!(larder.output(&[&["scan", "n"], store.as_slice()].concat()), "x\tv\n");
    assert_eq!(stored(), 2);
}

#[test]
fn looking_into_a_store_that_is_not_there_makes_none() {
    let larder = Larder::new();
    let error = larder.error(1, &["scan", "--store", "sqlite:missing.db", "n"]);
    let begins = "larder: cannot open the store \"sqlite:missing.db\": the database file does not exist: ";
    assert!(error.starts_with(begins), "{error}");
    assert!(error.ends_with("check the path, or create the store with `larder schema up`\n"), "{error}");
    assert!(!larder.path("missing.db").exists());
}

#[test]
fn a_long_scan_streams_and_may_be_cut_off() {
    let larder = Larder::new();
    load(&larder);
    let mut scan = larder.command(&["scan", "--store", "sqlite:catalog.db", "packages"]);
    let mut scan = scan.stdout(Stdio::piped()).spawn().unwrap();
    drop(scan.stdout.take());
    assert!(scan.wait().unwrap().success());
}

#[test]
fn the_conformance_suite_runs_from_the_command_line() {
    let larder = Larder::new();
    let run = |arguments: &[&str]| larder.output(&[&["conformance", "--store"], arguments].concat());
    for store in ["in-memory:", "sqlite:here.db", "sqlite::memory:"] {
        let table = run(&[store, "--filter", "basic::"]);
        assert!(table.starts_with("group            passed failed\nbasic"), "{table}");
        assert!(table.ends_with(" passed, 0 failed\n"), "{table}");
    }
    assert!(!larder.path("here.db").exists(), "the suite created the named store");
    let json = run(&["in-memory:", "--filter", "basic::an_empty_value_is_present", "--json"]);
    assert_eq!(json, "{\"case\":\"basic::an_empty_value_is_present\",\"error\":null,\"passed\":true}\n");
    let none = larder.error(1, &["conformance", "--store", "in-memory:", "--filter", "no such"]);
    assert_eq!(none, "larder: no case has a name that contains \"no such\"\n");
}

const TRANSCRIPT: &str = include_str!("../../../examples/assistant/sample/transcript.txt");

/// Runs the assistant for a user with a transcript, in `sqlite:talk.db`.
fn converse(larder: &Larder, user: &str, transcript: &str) -> Output {
    let summarizer = format!("component:{}", larder_artifacts::KEYWORD_SUMMARIZER);
    let run = ["run", larder_artifacts::ASSISTANT, "--store", "default=sqlite:talk.db"];
    let memory =
        ["--memory", "sqlite:talk.db", "--memory-strategy", "rolling-summary", "--memory-window", "2"];
    let whose =
        ["--summarizer", &summarizer, "--tenant", "acme", "--user", user, "--", "acme", user, "monday"];
    let mut command = larder.command(&[run.as_slice(), &memory, &whose].concat());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), transcript.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn what_is_kept_of_conversations_is_seen_moved_and_forgotten() {
    let larder = Larder::new();
    for user in ["ann", "bob"] {
        let said = converse(&larder, user, TRANSCRIPT);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
    let memory = |arguments: &[&str]| {
        larder.output(&[&["memory"], arguments, &["--store", "sqlite:talk.db"]].concat())
    };
    let listed = memory(&["list"]);
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines.len(), 3, "{listed}");
    assert!(lines[1].starts_with("acme\tann\tmonday\t\trolling-summary\thealthy\t2\t0\t"), "{listed}");
    let json: Vec<serde_json::Value> = memory(&["list", "--tenant", "acme", "--user", "bob", "--json"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((json.len(), &json[0]["user"], &json[0]["turns"]), (1, &"bob".into(), &2.into()));
    let ann = ["--tenant", "acme", "--user", "ann", "--session", "monday"];
    let shown = memory(&[&["show"], ann.as_slice()].concat());
    assert!(shown.contains("summary:\n    - user asked: Hello, my order 48213"), "{shown}");

    // Export the sessions, and import them into another store.
    let exported = memory(&["export"]);
    let import = |arguments: &[&str], input: &str| {
        let mut command =
            larder.command(&[&["memory", "import", "--store", "sqlite:other.db"], arguments].concat());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    assert_eq!(String::from_utf8(import(&[], &exported).stdout).unwrap(), "imported 2 sessions\n");
    assert_eq!(larder.output(&["memory", "export", "--store", "sqlite:other.db"]), exported);
    let again = String::from_utf8(import(&[], &exported).stderr).unwrap();
    assert!(
        again.starts_with("larder: line 1, after 0 sessions were imported: the session \"monday\""),
        "{again}"
    );
    assert!(import(&["--replace"], &exported).status.success());
    let broken = String::from_utf8(import(&[], "no session\n").stderr).unwrap();
    assert!(broken.contains("the line is not a session as `larder memory export` prints it"), "{broken}");

    let forgotten = memory(&["forget", "--tenant", "acme", "--user", "ann"]);
    assert_eq!(
        forgotten,
        "removed session monday \t2 turns in full\nremoved 1 sessions with 2 turns in full, and their summaries\n"
    );
    assert_eq!(memory(&["list"]).lines().count(), 2);
    let gone = larder.error(1, &[&["memory", "show", "--store", "sqlite:talk.db"], ann.as_slice()].concat());
    assert_eq!(gone, "larder: the session does not exist; `larder memory list` prints the sessions\n");
}

#[test]
fn memory_that_can_not_be_had_is_said_in_a_sentence() {
    let larder = Larder::new();
    let run = ["run", larder_artifacts::ASSISTANT, "--store", "default=in-memory:", "--memory", "in-memory:"];
    let error = |code, arguments: &[&str]| larder.error(code, &[run.as_slice(), arguments].concat());
    assert!(error(2, &[]).contains("--tenant <TENANT>"));
    let whose = ["--tenant", "acme", "--user", "ann"];
    let error = |code, arguments: &[&str]| error(code, &[whose.as_slice(), arguments].concat());
    let unknown = error(2, &["--memory-strategy", "episodic"]);
    assert!(unknown.contains("unknown strategy \"episodic\"; use none, truncation"), "{unknown}");
    let rolling = ["--memory-strategy", "rolling-summary"];
    let none = error(1, &rolling);
    assert!(
        none.starts_with(
            "larder: the strategy rolling-summary needs a summariser; give --summarizer component:FILE"
        ),
        "{none}"
    );
    let catalog = format!("component:{}", larder_artifacts::CATALOG);
    let wrong = error(1, &[rolling.as_slice(), &["--summarizer", &catalog]].concat());
    assert!(
        wrong.ends_with(
            "is not a summariser: the component does not export `larder:storage/summarizer@0.1.0`\n"
        ),
        "{wrong}"
    );
    let other = error(1, &[rolling.as_slice(), &["--summarizer", "gpt"]].concat());
    assert!(other.contains("unknown summariser \"gpt\""), "{other}");
    let forged = converse(&larder, "ann", "user: hello\n");
    assert!(!forged.status.success(), "an unanswered question was accepted");
    let missing = larder.error(1, &["memory", "list", "--store", "sqlite:missing.db"]);
    assert!(missing.starts_with("larder: cannot open the store \"sqlite:missing.db\": "), "{missing}");
}

#[test]
fn larders_own_tables_are_looked_at_and_brought_up_to_date() {
    let larder = Larder::new();
    let migrate = |arguments: &[&str]| {
        larder.output(&[&["schema"], arguments, &["--store", "sqlite:notes.db"]].concat())
    };
    let pending = "number  name          state    applied at\n\
                   0001    entries       pending  -\n\
                   0002    memory_state  pending  -\n";
    assert_eq!(migrate(&["status"]), pending);
    assert_eq!(migrate(&["up", "--dry-run"]), "would apply 0001_entries\nwould apply 0002_memory_state\n");
    assert!(!larder.path("notes.db").exists(), "a command that only reads created a store");
    assert_eq!(migrate(&["up"]), "applied 0001_entries\napplied 0002_memory_state\n");
    for up in [["up"].as_slice(), &["up", "--dry-run"]] {
        assert_eq!(migrate(up), "the schema is up to date, at step 0002\n");
    }
    let status = migrate(&["status"]);
    let lines: Vec<_> = status.lines().collect();
    assert_eq!(lines.len(), 3, "{status}");
    assert!(lines[2].starts_with("0002    memory_state  applied  20") && lines[2].ends_with('Z'), "{status}");
    // The store is ready for use.
    let put = ["put", "--store", "sqlite:notes.db?create=no", "notes", "a", "text"];
    assert_eq!(larder.output(&put), "version 1\n");
}

#[test]
fn a_schema_that_does_not_fit_is_said_in_a_sentence() {
    let larder = Larder::new();
    let store = ["--store", "sqlite:notes.db"];
    larder.output(&[&["schema", "up"], store.as_slice()].concat());
    let damage = |sql: &str| {
        rusqlite::Connection::open(larder.path("notes.db")).unwrap().execute_batch(sql).unwrap();
    };
    let error = |command: &str| larder.error(1, &[&["schema", command], store.as_slice()].concat());
    let both = |problem: &str| {
        let begins = ["cannot read the schema of", "cannot migrate"];
        begins.map(|begin| format!("larder: {begin} the store \"sqlite:notes.db\": {problem}\n"))
    };
    damage("UPDATE larder_migrations SET checksum = x'00' WHERE number = 2");
    let edited = "schema step 0002 was applied with statements that differ from this release";
    assert_eq!([error("status"), error("up")], both(edited));
    damage("UPDATE larder_migrations SET number = 9 WHERE number = 2");
    let newer =
        "the database has schema step 0009, but this release knows no step after 0002; use a newer release";
    assert_eq!([error("status"), error("up")], both(newer));

    damage("UPDATE larder_migrations SET number = 2 WHERE number = 9");
    std::fs::remove_file(larder.path("notes.db")).unwrap();
    larder.output(&[&["schema", "up"], store.as_slice()].concat());
    damage("DROP INDEX larder_entries_expiry");
    let altered = "stored data is corrupt: the file is not an intact larder database: its \"larder_entries_expiry\" is \
                   missing or altered";
    assert_eq!([error("status"), error("up")], both(altered));
    let put = larder.error(1, &["put", "--store", "sqlite:notes.db", "notes", "a", "text"]);
    assert!(put.contains(altered), "{put}");

    std::fs::write(larder.path("text.db"), "no database. ".repeat(100)).unwrap();
    let corrupt = larder.error(1, &["schema", "status", "--store", "sqlite:text.db"]);
    let problem = "stored data is corrupt: the file is not an intact SQLite database\n";
    assert_eq!(corrupt, format!("larder: cannot read the schema of the store \"sqlite:text.db\": {problem}"));
    let unknown = larder.error(1, &["schema", "status", "--store", "mysql:x"]);
    assert!(unknown.starts_with("larder: no driver for the data-source name \"mysql:\""), "{unknown}");
    let absent = larder.error(1, &["schema", "up", "--store", "sqlite:new.db?create=no"]);
    assert!(
        absent.starts_with(
            "larder: cannot migrate the store \"sqlite:new.db\": the database file does not exist: "
        ),
        "{absent}"
    );
}

#[test]
fn a_store_in_memory_has_no_schema() {
    let larder = Larder::new();
    for store in ["in-memory:", "sqlite::memory:"] {
        for command in [["schema", "status"].as_slice(), &["schema", "up"], &["schema", "up", "--dry-run"]] {
            let said = larder.output(&[command, &["--store", store]].concat());
            assert_eq!(said, "the store is deleted when its process ends; it has no schema to migrate\n");
        }
    }
}

/// The names in the list of subcommands of a help text.
fn subcommands(help: &str) -> Vec<String> {
    let list = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let lines = list.lines().take_while(|line| !line.is_empty());
    // The description of a command may continue on a line that is indented further.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_string).collect()
}

#[test]
fn every_short_and_long_help_fits_100_columns() {
    let larder = Larder::new();
    let mut commands = vec![Vec::new()];
    let mut count = 0;
    while let Some(command) = commands.pop() {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        for option in ["-h", "--help"] {
            let help = larder.output(&[arguments.as_slice(), &[option]].concat());
            // A usage line is not wrapped, so that it can be copied.
            let lines = help.lines().filter(|line| !line.starts_with("Usage: "));
            let wide: Vec<_> = lines.filter(|line| line.chars().count() > 100).collect();
            assert!(wide.is_empty(), "larder {} {option}:\n{}", command.join(" "), wide.join("\n"));
        }
        let help = larder.output(&[arguments.as_slice(), &["-h"]].concat());
        commands.extend(subcommands(&help).into_iter().map(|name| [command.clone(), vec![name]].concat()));
        count += 1;
    }
    assert!(count > 30, "{count} commands were found");
}

#[test]
fn help_names_every_command_and_the_forms_of_a_store() {
    let help = Larder::new().output(&["--help"]);
    for word in [
        "run",
        "conformance",
        "get",
        "put",
        "delete",
        "scan",
        "namespaces",
        "memory",
        "schema",
        "tenants",
        "sqlite:PATH",
        "tenants+s3://",
        "postgres://",
    ] {
        assert!(help.contains(word), "{help}");
    }
}
