//! Tests that signals end a running component cleanly, on every store.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use support::Larder;

/// Far longer than a command takes to end, and far shorter than the components run.
const END_MAX: Duration = Duration::from_secs(20);

struct Running {
    child: Child,
    since: Option<Instant>,
}

impl Running {
    /// Runs a component, and waits for its first line of output.
    fn start(larder: &Larder, component: &str, store: &str, arguments: &[&str]) -> Self {
        let grant = format!("default={store}");
        let run = ["run", component, "--store", grant.as_str(), "--tenant", "acme", "--user", "ann", "--"];
        let mut command = larder.command_for_signals(&[run.as_slice(), arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(["looping\n", "holding\n"].contains(&line.as_str()), "{line:?}");
        Self { child, since: None }
    }

    fn send(&mut self, signal: &str) {
        self.since.get_or_insert_with(Instant::now);
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Waits until the command has ended. Returns its status and standard error.
    fn end(mut self) -> (ExitStatus, String) {
        let since = self.since.unwrap();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if since.elapsed() > END_MAX => {
                    self.child.kill().unwrap();
                    panic!("the command did not end");
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let mut error = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        (status, error)
    }
}

const GUESTS: [(&str, &[&str]); 2] =
    [(larder_artifacts::LOOP_IN_UPDATE, &[]), (larder_artifacts::HOLD_UPDATE, &["600000"])];

#[test]
fn a_signal_ends_a_component_that_loops_or_waits_with_the_code_of_a_shell() {
    let larder = Larder::new();
    larder.output(&["schema", "up", "--store", "sqlite:a.db"]);
    for (component, arguments) in GUESTS {
        for store in ["in-memory:", "sqlite:a.db"] {
            for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
                let mut running = Running::start(&larder, component, store, arguments);
                running.send(signal);
                let (status, error) = running.end();
                assert_eq!(status.code(), Some(code), "{component} on {store}: {error}");
                assert_eq!(error, "", "{component} on {store}");
            }
        }
    }
    // The database was closed, so SQLite has removed the files beside it.
    let beside = ["a.db-wal", "a.db-shm"].map(|name| larder.path(name).exists());
    assert_eq!(beside, [false, false]);
    let row = larder.error(1, &["get", "--store", "sqlite:a.db", "n", "key"]);
    assert_eq!(row, "larder: there is no row \"key\" in the namespace \"n\"\n");
}

#[test]
fn a_tenant_is_written_back_and_its_lease_given_up_when_a_signal_comes() {
    let larder = Larder::new();
    let dsn = format!("tenants+file://{}", larder.path("bucket").display());
    let tenant = format!("{dsn}?tenant=acme/users/ann");
    for (component, arguments) in GUESTS {
        let mut running = Running::start(&larder, component, &tenant, arguments);
        let show = || {
            let show = ["tenants", "show", "acme/users/ann", "--json", "--store", dsn.as_str()];
            serde_json::from_str::<serde_json::Value>(&larder.output(&show)).unwrap()
        };
        assert!(!show()["lease"].is_null(), "the tenant has no lease while the command runs");
        running.send("TERM");
        let (status, error) = running.end();
        assert_eq!(status.code(), Some(143), "{component}: {error}");
        assert!(show()["lease"].is_null(), "{component}: its lease was not released");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let larder = Larder::new();
    let dsn = format!("tenants+file://{}", larder.path("bucket").display());
    let tenant = format!("{dsn}?tenant=acme/users/ann");
    let mut running = Running::start(&larder, larder_artifacts::LOOP_IN_UPDATE, &tenant, &[]);
    running.send("INT");
    running.send("TERM");
    let (status, error) = running.end();
    // The exit code is that of the signal that the process handled first.
    assert!([Some(130), Some(143)].contains(&status.code()), "{status}: {error}");
}

#[test]
fn a_signal_that_the_process_was_started_to_ignore_stays_ignored() {
    let larder = Larder::new();
    let mut command = Command::new("env");
    let program = env!("CARGO_BIN_EXE_larder");
    let script = "trap '' HUP; exec \"$0\" run \"$1\" --store default=in-memory: -- 600000";
    command.args(["--default-signal=TERM", "sh", "-c", script, program, larder_artifacts::HOLD_UPDATE]);
    command.current_dir(larder.path("")).stdin(Stdio::null());
    command.env("XDG_CACHE_HOME", larder.path("cache"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let mut running = Running { child, since: None };
    running.send("HUP");
    running.send("TERM");
    let (status, error) = running.end();
    assert_eq!(status.code(), Some(143), "{error}");
}

fn lease(larder: &Larder, dsn: &str) -> serde_json::Value {
    let show = larder.run(&["tenants", "show", "acme/users/ann", "--json", "--store", dsn]);
    let shown: serde_json::Value = serde_json::from_slice(&show.stdout).unwrap_or_default();
    shown["lease"].clone()
}

#[test]
fn a_signal_ends_a_verb_that_waits_on_a_pipe_and_neither_a_lease_nor_a_copy_is_left() {
    let larder = Larder::new();
    let temporary = larder.path("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let dsn = format!("tenants+file://{}", larder.path("bucket").display());
    let tenant = format!("{dsn}?tenant=acme/users/ann");
    let mut put = larder.command(&["put", "n", "k", "--store", &format!("{tenant}&create=yes")]);
    let mut put = put.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(&vec![b'x'; 1 << 20]).unwrap();
    assert!(put.wait().unwrap().success());
    let verbs: [&[&str]; 4] =
        [&["memory", "import"], &["get", "n", "k"], &["get", "n", "k", "--json"], &["scan", "n"]];
    for (verb, (signal, code)) in verbs.into_iter().zip([("TERM", 143), ("INT", 130)].into_iter().cycle()) {
        let mut command = larder.command_for_signals(&[verb, &["--store", &tenant]].concat());
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.env("TMPDIR", &temporary).spawn().unwrap();
        // A command that only reads takes no lease.
        if verb[0] == "memory" {
            let since = Instant::now();
            while lease(&larder, &dsn).is_null() {
                assert!(since.elapsed() < END_MAX, "{verb:?} took no lease");
            }
        }
        std::thread::sleep(Duration::from_millis(300));
        let mut running = Running { child, since: None };
        running.send(signal);
        let (status, error) = running.end();
        assert_eq!(status.code(), Some(code), "{verb:?}: {error}");
        assert!(lease(&larder, &dsn).is_null(), "{verb:?}: its lease was not released");
        assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0, "{verb:?}: a copy was not removed");
    }
}

#[test]
fn a_private_database_leaves_nothing_when_its_component_is_ended() {
    let larder = Larder::new();
    std::fs::create_dir(larder.path("tmp")).unwrap();
    let temporary = larder.path("tmp");
    let command = |arguments: &[&str]| {
        let run = ["run", larder_artifacts::LOOP_IN_UPDATE, "--store", "default=sqlite::memory:"];
        let mut command = larder.command_for_signals(&[run.as_slice(), arguments].concat());
        command.env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let left = || std::fs::read_dir(&temporary).unwrap().count();
    assert_eq!(command(&["--timeout", "300ms"]).output().unwrap().status.code(), Some(124));
    assert_eq!(left(), 0);
    let mut child = command(&[]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(left(), 1);
    let mut running = Running { child, since: None };
    running.send("TERM");
    assert_eq!(running.end().0.code(), Some(143));
    assert_eq!(left(), 0);
}

#[test]
fn a_conformance_run_that_a_signal_ends_leaves_no_store() {
    let larder = Larder::new();
    std::fs::create_dir(larder.path("tmp")).unwrap();
    for (name, store) in [
        ("data", "sqlite:data/a.db".to_string()),
        ("bucket", format!("tenants+file://{}", larder.path("bucket").display())),
    ] {
        let folder = larder.path(name);
        std::fs::create_dir(&folder).unwrap();
        let mut command = larder.command_for_signals(&["conformance", "--store", &store]);
        command.env("TMPDIR", larder.path("tmp")).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let since = Instant::now();
        while std::fs::read_dir(&folder).unwrap().count() == 0 {
            assert!(since.elapsed() < END_MAX, "the command created no store");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut running = Running { child, since: None };
        running.send("TERM");
        let (status, error) = running.end();
        assert_eq!(status.code(), Some(143), "{store}: {error}");
        let mut find = Command::new("find");
        // The lock files of a tenants directory stay.
        find.args([&folder, &larder.path("tmp")]).args(["-type", "f", "-not", "-path", "*/.larder/locks/*"]);
        let left = find.output().unwrap();
        assert_eq!(String::from_utf8(left.stdout).unwrap(), "", "{store}");
    }
}
