//! Tests of the limits of `larder run`.
#![allow(clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use larder_artifacts::{HOLD_UPDATE, LOOP_IN_UPDATE, TAKE_MUCH};
use support::Larder;

fn error(larder: &Larder, code: i32, options: &[&str], component: &[&str]) -> String {
    larder.error(code, &[&["run"], options, component].concat())
}

#[test]
fn a_component_that_loops_or_waits_is_ended_when_its_time_is_over() {
    let larder = Larder::new();
    larder.output(&["schema", "up", "--store", "sqlite:a.db"]);
    let options = ["--timeout", "300ms", "--store", "default=sqlite:a.db"];
    for component in [[LOOP_IN_UPDATE].as_slice(), &[HOLD_UPDATE, "--", "600000"]] {
        let said = error(&larder, 124, &options, component);
        assert_eq!(
            said,
            "larder: the component was stopped after its time limit of 300ms; raise the limit with --timeout\n"
        );
    }
    let row = larder.error(1, &["get", "--store", "sqlite:a.db", "n", "key"]);
    assert_eq!(row, "larder: there is no row \"key\" in the namespace \"n\"\n");
    let in_time = ["--timeout", "0", "--store", "default=sqlite:a.db", HOLD_UPDATE, "--", "1"];
    assert_eq!(larder.output(&[&["run"], in_time.as_slice()].concat()), "holding\ncommitted: Ok(())\n");
}

#[test]
fn a_component_gets_no_more_memory_than_it_may_have() {
    let larder = Larder::new();
    let output = larder.run(&["run", "--max-memory", "64MiB", TAKE_MUCH, "--", "memory"]);
    assert_eq!(output.status.code(), Some(1));
    // The component's own panic is in the output too.
    let said = String::from_utf8(output.stderr).unwrap();
    let refused = "larder: the component tried to use more than 64.00 MiB of memory; raise the limit with --max-memory: ";
    assert!(said.contains(refused), "{said}");
    // The limit is smaller than the initial memory.
    let said = error(&larder, 1, &["--max-memory", "1"], &[TAKE_MUCH, "--", "memory"]);
    assert!(said.starts_with("larder: the component tried to use more than 1 byte of memory"), "{said}");
}

#[test]
fn a_component_prints_no_more_than_it_may() {
    let larder = Larder::new();
    let output = larder.run(&["run", "--max-output", "100KiB", TAKE_MUCH, "--", "output"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected =
        "larder: the component failed: it printed more than 100.00 KiB; raise the limit with --max-output\n";
    assert_eq!(said, expected);
    assert!(output.stdout.len() <= 100 << 10 && output.stdout.len() > 90 << 10, "{}", output.stdout.len());
}

#[test]
fn a_store_holds_no_more_than_its_quota() {
    let larder = Larder::new();
    let tenant = format!("default=tenants+file://{}", larder.path("bucket").display());
    for store in ["default=sqlite:a.db", tenant.as_str()] {
        let options = ["--quota", "3MiB", "--tenant", "acme", "--user", "ann", "--store", store];
        let said = error(&larder, 1, &options, &[TAKE_MUCH, "--", "store"]);
        assert!(said.contains("StoreBytes"), "{said}");
    }
    let held = larder.output(&["scan", "--store", "sqlite:a.db", "--keys-only", "n"]);
    assert_eq!(held, "0\n1\n");
}

#[test]
fn a_limit_that_is_none_or_contradicts_another_is_refused_before_anything_runs() {
    let larder = Larder::new();
    let run = |code, limit: &str| {
        error(&larder, code, &["--limit", limit, "--store", "default=sqlite:a.db"], &[TAKE_MUCH])
    };
    assert!(run(2, "values=1").contains("unknown limit \"values\""));
    assert!(run(2, "value-bytes=much").contains("\"much\" is not a size"));
    let said = run(1, "value-bytes=1GiB");
    assert_eq!(
        said,
        "larder: --limit: invalid argument: the limit value_bytes is 1073741824, and can be at most 67108864\n"
    );
    assert!(!larder.path("a.db").exists());
    let said = run(1, "value-bytes=1000");
    assert!(said.contains("ValueBytes"), "{said}");
}
