//! Output that cannot be written causes an error and an exit code, never a panic.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use support::Larder;

const STORE: [&str; 2] = ["--store", "sqlite:a.db"];

/// Commands that print, in an order in which each has work to do, and the start of the error that
/// each prints on a full device.
const VERBS: [(&[&str], &str); 15] = [
    (&["schema", "up"], "the schema is up to date, but the output was not written: "),
    (&["put", "n", "k", "v"], "the row was written, version 1, but the output was not written: "),
    (&["get", "n", "k"], ""),
    (&["get", "n", "k", "--json"], ""),
    (&["scan", "n"], ""),
    (&["scan", "n", "--json"], ""),
    (&["namespaces"], ""),
    (&["schema", "status"], ""),
    (&["schema", "up", "--dry-run"], ""),
    (&["migrations"], ""),
    (&["memory", "list"], ""),
    (&["memory", "import"], "0 sessions were imported, but the output was not written: "),
    (
        &["memory", "forget", "--tenant", "acme", "--user", "ann"],
        "removed 0 sessions with 0 turns in full, and their summaries, but the output was not written: ",
    ),
    (&["delete", "n", "k"], "the row was deleted, but the output was not written: "),
    (&["delete", "n", "k"], "there was no such row, but the output was not written: "),
];

fn run(larder: &Larder, arguments: &[&str], stdout: Stdio) -> Output {
    larder.command(arguments).stdout(stdout).stderr(Stdio::piped()).output().unwrap()
}

/// A pipe whose reader is closed.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_device() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[test]
fn a_full_device_is_an_error_that_says_what_was_done() {
    let larder = Larder::new();
    for (verb, done) in VERBS {
        let output = run(&larder, &[verb, &STORE].concat(), full_device());
        let error = String::from_utf8(output.stderr).unwrap();
        let expected = format!("larder: {done}cannot write standard output: ");
        assert!(error.starts_with(&expected) && error.lines().count() == 1, "{verb:?}: {error}");
        assert_eq!(output.status.code(), Some(1), "{verb:?}");
    }
}

#[test]
fn a_closed_pipe_ends_every_verb_quietly_with_its_work_done() {
    let larder = Larder::new();
    for (verb, _) in VERBS {
        let output = run(&larder, &[verb, &STORE].concat(), closed_pipe());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), error.as_str()), (Some(0), ""), "{verb:?}");
    }
    let gone = larder.error(1, &[["get", "n", "k"].as_slice(), &STORE].concat());
    assert_eq!(gone, "larder: there is no row \"k\" in the namespace \"n\"\n");
}

#[test]
fn help_and_the_version_are_output_too() {
    let larder = Larder::new();
    for arguments in [["--help"].as_slice(), &["--version"], &["help"], &["put", "--help"]] {
        let output = run(&larder, arguments, full_device());
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.starts_with("larder: cannot write standard output: "), "{arguments:?}: {error}");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let output = run(&larder, arguments, closed_pipe());
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{arguments:?}");
    }
}

#[test]
fn errors_that_cannot_be_written_still_have_their_exit_code() {
    let larder = Larder::new();
    for (code, arguments) in [(1, ["get", "--store", "sqlite:a.db", "n", "k"].as_slice()), (2, &["get"])] {
        for stderr in [full_device(), closed_pipe()] {
            let status = larder.command(arguments).stdout(Stdio::null()).stderr(stderr).status().unwrap();
            assert_eq!(status.code(), Some(code), "{arguments:?}");
        }
    }
}

#[test]
fn a_failing_suite_fails_also_if_its_output_is_closed() {
    let larder = Larder::new();
    let run = |stdout| {
        let arguments =
            ["conformance", "--store", "in-memory:", "--filter", "basic::an_empty_value_is_present"];
        run(&larder, &arguments, stdout)
    };
    assert_eq!(run(closed_pipe()).status.code(), Some(0));
    let full = run(full_device());
    let error = String::from_utf8(full.stderr).unwrap();
    assert!(error.starts_with("larder: cannot write standard output: "), "{error}");
    assert_eq!(full.status.code(), Some(1));
}

/// Runs the program in a shell that closes or replaces its standard streams.
fn by_shell(larder: &Larder, streams: &str, arguments: &[&str]) -> Output {
    let script = format!("exec \"$0\" \"$@\" {streams}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_larder")]).args(arguments);
    command.current_dir(larder.path("")).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_standard_input_that_cannot_be_read_is_an_error_and_nothing_is_written() {
    let larder = Larder::new();
    larder.output(&["schema", "up", "--store", "sqlite:a.db"]);
    larder.output(&["put", "n", "k", "v", "--store", "sqlite:a.db"]);
    for streams in ["<&-", "0>/dev/null"] {
        for verb in [["put", "n", "k"].as_slice(), &["memory", "import"]] {
            let output = by_shell(&larder, streams, &[verb, &STORE].concat());
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{verb:?} {streams}: {error}");
            assert!(error.contains("standard input"), "{verb:?} {streams}: {error}");
        }
    }
    let get = ["get", "n", "k", "--json", "--store", "sqlite:a.db"];
    assert!(larder.output(&get).contains("\"value\":\"v\""));
    let put = by_shell(&larder, "</dev/null", &["put", "n", "empty", "--store", "sqlite:a.db"]);
    assert_eq!(put.status.code(), Some(0));
}

#[test]
fn a_closed_standard_output_is_an_error_that_says_what_was_done() {
    let larder = Larder::new();
    for (verb, done) in VERBS {
        for streams in [">&-", "1</dev/null"] {
            // The first run has done the work, so the message of the second run differs.
            let done = if streams == ">&-" { done } else { "" };
            let output = by_shell(&larder, streams, &[verb, &STORE].concat());
            let error = String::from_utf8(output.stderr).unwrap();
            let expected = format!("larder: {done}");
            assert!(error.starts_with(&expected), "{verb:?} {streams}: {error}");
            assert!(error.contains("cannot write standard output: "), "{verb:?} {streams}: {error}");
            assert_eq!(output.status.code(), Some(1), "{verb:?} {streams}");
        }
    }
}
