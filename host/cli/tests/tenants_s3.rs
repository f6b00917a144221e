//! Tests of the command line with tenants on a real S3 server.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "../../tenants/tests/support/seaweed.rs"]
mod seaweed;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use seaweed::{BUCKET, KEY, SECRET, Seaweed};

fn larder(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command.env("XDG_CACHE_HOME", folder.join("cache")).env("RUST_LOG", "off");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn hosts_hand_a_tenant_over_by_way_of_s3_and_a_third_is_told_who_has_it() {
    let server = Seaweed::start();
    server.wait_until_ready(&server.store()).await;
    let folder = tempfile::tempdir().unwrap();
    let dsn =
        format!("tenants+s3://{BUCKET}/plat?endpoint={}&region=us-east-1&lease_wait=1s", server.endpoint());
    let grant = format!("default={dsn}");
    let run = |component: &str, cache: &str, arguments: &[&str]| {
        let run = [
            "run",
            component,
            "--store",
            &grant,
            "--cache-dir",
            cache,
            "--tenant",
            "acme",
            "--user",
            "ann",
            "--",
        ];
        larder(folder.path(), &[run.as_slice(), arguments].concat())
    };

    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/catalog/sample/status");
    let stored =
        run(larder_artifacts::CATALOG, "one", &[]).stdin(File::open(sample).unwrap()).output().unwrap();
    assert!(text(&stored.stdout).starts_with("stored 12 packages"), "{}", text(&stored.stderr));
    let seen = run(larder_artifacts::CATALOG, "two", &["needs", "libtext"]).output().unwrap();
    assert_eq!(text(&seen.stdout), "editor\nreader\nshell\n", "{}", text(&seen.stderr));

    let mut holding =
        run(larder_artifacts::HOLD_UPDATE, "two", &["60000"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holding.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    let third = run(larder_artifacts::CATALOG, "three", &["list"]).output().unwrap();
    holding.kill().unwrap();
    holding.wait().unwrap();
    let error = text(&third.stderr);
    assert_eq!(third.status.code(), Some(1), "{error}");
    assert!(error.contains("acme/users/ann: ") && error.contains("holds the lease"), "{error}");
}
