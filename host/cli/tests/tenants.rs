//! End-to-end tests of the command line with tenants.
#![allow(clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use larder_host::larder_tenants::CacheFolder;
use larder_host::{HandleOptions, Mode, TenantKey, Tenants, TenantsBuilder, TenantsDsn};
use tempfile::TempDir;

/// A directory with tenants in the folder `bucket`, and the cache directories of hosts beside it.
struct Larder {
    folder: TempDir,
}

impl Larder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dsn(&self) -> String {
        format!("tenants+file://{}", self.path("bucket").display())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("RUST_LOG", "off");
        command
    }

    fn output(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn error(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(!error.contains("backtrace") && !error.contains("panicked"), "{error}");
        error
    }

    /// Runs `larder tenants` on the tenants directory.
    fn tenants(&self, arguments: &[&str]) -> String {
        self.output(&[&["tenants"], arguments, &["--store", &self.dsn()]].concat())
    }

    /// `larder run` of the catalog as a user of acme, with a cache directory.
    fn catalog(&self, user: &str, cache: &str, arguments: &[&str]) -> Command {
        let grant = format!("default={}?lease_wait=100ms", self.dsn());
        let run = ["run", larder_artifacts::CATALOG, "--store", &grant, "--cache-dir", cache];
        self.command(&[run.as_slice(), &["--tenant", "acme", "--user", user, "--"], arguments].concat())
    }

    fn load(&self, user: &str, cache: &str) {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/catalog/sample/status");
        let output = self.catalog(user, cache, &[]).stdin(File::open(sample).unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stdout).starts_with("stored 12 packages"), "{}", text(&output.stdout));
    }

    /// A builder for the tenants directory, with the cache directory that the command line uses
    /// below `cache`.
    fn builder(&self, cache: &str) -> TenantsBuilder {
        let dsn = TenantsDsn::parse(&self.dsn()).unwrap();
        let folder = dsn.cache_folder(Some(&self.path(cache))).unwrap();
        TenantsBuilder::from_dsn(&dsn)
            .unwrap()
            .cache_folder(folder)
            .checkpoint_interval(Duration::from_secs(3_600))
            .lease_ttl(Duration::from_secs(1))
    }

    /// Leaves the files of a host that crashed after a commit: a database with unsent commits, in
    /// the cache directory `cache`.
    fn crash(&self, cache: &str, user: &str, value: &str) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let host = runtime.block_on(self.builder(&format!("{cache}-alive")).open()).unwrap();
        runtime.block_on(put(&host, &ann(user), value));
        copy(&self.path(&format!("{cache}-alive")), &self.path(cache));
        // The host uploads nothing and does not release its lease.
        drop(runtime);
    }
}

fn ann(user: &str) -> TenantKey {
    format!("acme/users/{user}").parse().unwrap()
}

async fn put(host: &Tenants, key: &TenantKey, value: &str) {
    let handle = host.get(key).await.unwrap().store().handle(HandleOptions::default());
    let mut update = handle.begin(Mode::Update).unwrap();
    update.put("notes".into(), "a".into(), value.into()).unwrap();
    update.commit().await.unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

#[test]
fn a_users_store_is_seen_by_a_second_host_once_the_first_has_ended_and_by_no_other_user() {
    let larder = Larder::new();
    larder.load("ann", "one");
    let seen = larder.catalog("ann", "two", &["needs", "libtext"]).output().unwrap();
    assert_eq!(text(&seen.stdout), "editor\nreader\nshell\n", "{}", text(&seen.stderr));
    let other = larder.catalog("bob", "two", &["list"]).output().unwrap();
    assert_eq!((text(&other.stdout), other.status.code()), (String::new(), Some(0)));
    let read_only = larder.output(&[
        "run",
        larder_artifacts::CATALOG,
        "--read-only-store",
        &format!("default={}", larder.dsn()),
        "--tenant",
        "acme",
        "--user",
        "ann",
        "--",
        "show",
        "shell",
    ]);
    assert!(read_only.starts_with("shell 5.3 (amd64)\n"), "{read_only}");
    assert_eq!(std::fs::read_dir(larder.path("cache/larder/tenants")).unwrap().count(), 1);
}

#[test]
fn whose_store_it_is_must_be_said_and_another_tenants_is_denied() {
    let larder = Larder::new();
    let grant = format!("default={}", larder.dsn());
    let run = ["run", larder_artifacts::CATALOG, "--store", &grant];
    let error = |arguments: &[&str]| larder.error(1, &[&run, arguments, &["--", "list"]].concat());
    let unbound = error(&[]);
    assert!(
        unbound.contains("cannot open the store \"default\": an identity is required")
            && unbound.contains("--tenant, and --user, --app or --project"),
        "{unbound}"
    );
    assert!(
        unbound.ends_with("catalog: an identity is required: the host bound no identity to this component\n"),
        "{unbound}"
    );
    let half = error(&["--tenant", "acme"]);
    assert!(
        half.ends_with("catalog: an identity is required: a store of scope `user` needs the user\n"),
        "{half}"
    );
    let slug = error(&["--tenant", "Acme"]);
    assert!(slug.starts_with("larder: --tenant: invalid argument: a name within a tenant must be"), "{slug}");
    let usage = larder.error(2, &[&run, ["--user", "ann"].as_slice()].concat());
    assert!(usage.contains("--tenant <TENANT>"), "{usage}");

    let others = format!("default={}?tenant=acme/users/ann", larder.dsn());
    let identity = ["--tenant", "acme", "--user", "bob", "--", "list"];
    let denied = larder
        .error(1, &[&["run", larder_artifacts::CATALOG, "--store", &others], identity.as_slice()].concat());
    assert!(denied.ends_with("catalog: access denied: the store belongs to another tenant\n"), "{denied}");
}

#[test]
fn stores_of_one_location_share_a_host_and_may_not_contradict_each_other() {
    let larder = Larder::new();
    let [user, org] = ["user", "org"].map(|scope| format!("{scope}={}?scope={scope}", larder.dsn()));
    let durable = format!("org={}?scope=org&durability=object", larder.dsn());
    let run = |second: &str| {
        let run = ["run", larder_artifacts::CATALOG, "--store", &user, "--store", second];
        let whose = ["--tenant", "acme", "--user", "ann", "--", "--help"];
        larder.command(&[run.as_slice(), &whose].concat()).output().unwrap()
    };
    assert!(run(&org).status.success());
    let error = text(&run(&durable).stderr);
    assert!(
        error.contains("have the same location and different options; give both the same options"),
        "{error}"
    );
}

/// Runs a guest that has the tenant open. Returns the process and its standard output after the
/// line `holding`.
fn hold(larder: &Larder, cache: &str, millis: &str) -> (Child, BufReader<ChildStdout>) {
    let grant = format!("default={}", larder.dsn());
    let run = ["run", larder_artifacts::HOLD_UPDATE, "--store", &grant, "--cache-dir", cache];
    let whose = ["--tenant", "acme", "--user", "ann", "--", millis];
    let mut command = larder.command(&[run.as_slice(), &whose].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "holding\n");
    (child, output)
}

#[test]
fn who_comes_while_another_has_the_tenant_is_told_who_and_for_how_long() {
    let larder = Larder::new();
    let (mut child, _output) = hold(&larder, "one", "60000");
    let listed = json(larder.tenants(&["list", "--json"]).trim_end());
    let holder = listed["lease"]["holder"].as_str().unwrap().to_string();
    let second = larder.catalog("ann", "two", &["list"]).output().unwrap();
    let error = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{error}");
    let expected = format!(
        "larder: cannot open the store \"default\": the store is unavailable: another host has this tenant open: \
         acme/users/ann: {holder:?} holds the lease, which expires after 15s without a renewal\n"
    );
    assert!(error.contains(&expected), "{error}\n{expected}");
    assert!(
        error.ends_with("catalog: the store is unavailable: another host has this tenant open\n"),
        "{error}"
    );
    let same_folder = text(&larder.catalog("ann", "one", &["list"]).output().unwrap().stderr);
    assert!(
        same_folder.contains("is in use by another process") && same_folder.contains("--cache-dir"),
        "{same_folder}"
    );
    let quarantine = larder.error(1, &["tenants", "quarantine", "--cache-dir", "one"]);
    assert!(quarantine.contains("a host is using it; stop the host first"), "{quarantine}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_can_not_be_written_back_fails_the_run_and_is_sent_later() {
    let larder = Larder::new();
    let (child, mut output) = hold(&larder, "one", "500");
    std::fs::rename(larder.path("bucket"), larder.path("away")).unwrap();
    std::fs::write(larder.path("bucket"), "in its stead").unwrap();
    let mut committed = String::new();
    output.read_line(&mut committed).unwrap();
    assert_eq!(committed, "committed: Ok(())\n");
    let ended = child.wait_with_output().unwrap();
    let error = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{error}");
    assert!(
        error.contains("larder: cannot upload acme/users/ann: object storage is unavailable: "),
        "{error}"
    );
    let database = CacheFolder::find(&larder.path("one")).unwrap()[0].join("acme/users/ann.db");
    let advice = format!("its data is in {}; upload it with `larder tenants checkpoint`", database.display());
    assert!(error.contains(&advice), "{error}");
    std::fs::remove_file(larder.path("bucket")).unwrap();
    std::fs::rename(larder.path("away"), larder.path("bucket")).unwrap();
    let sent = larder.tenants(&["checkpoint", "--cache-dir", "one"]);
    assert!(sent.starts_with("acme/users/ann was uploaded, "), "{sent}");
    let dsn = format!("{}?tenant=acme/users/ann&cache={}", larder.dsn(), larder.path("two").display());
    assert_eq!(larder.output(&["get", "--store", &dsn, "n", "key"]), "never committed");
}

#[test]
fn tenants_are_listed_and_shown() {
    let larder = Larder::new();
    let missing = larder.error(1, &["tenants", "list", "--store", &larder.dsn()]);
    assert!(missing.starts_with("larder: the folder of tenants does not exist: "), "{missing}");
    assert!(!larder.path("bucket").exists(), "a command that only reads created a directory");
    larder.load("ann", "one");
    larder.load("bob", "one");
    let listed = larder.tenants(&["list"]);
    let lines: Vec<Vec<_>> = listed.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(lines[0], ["TENANT", "SCOPE", "GENERATION", "EPOCH", "LEASE", "SNAPSHOT", "SIZE", "DELETED"]);
    assert_eq!((lines[1][0], lines[2][0], lines.len()), ("acme/users/ann", "acme/users/bob", 3));
    assert_eq!((lines[1][1], lines[1][3], lines[1][4]), ("user", "1", "-"));
    assert!(
        lines[1][5].starts_with("20") && lines[1][5].ends_with('Z') && lines[1][6].ends_with("KiB"),
        "{listed}"
    );
    let objects: Vec<_> = larder.tenants(&["list", "--json"]).lines().map(json).collect();
    assert_eq!(
        (objects.len(), &objects[1]["tenant"], &objects[1]["lease"]),
        (2, &"acme/users/bob".into(), &serde_json::Value::Null)
    );

    let shown = larder.tenants(&["show", "acme/users/ann"]);
    assert!(
        shown.contains(
            "\nlease: free\nlog: no segments after the snapshot\nsnapshots, the current one last:\n  20"
        ),
        "{shown}"
    );
    let object = json(&larder.tenants(&["show", "acme/users/ann", "--json"]));
    assert_eq!(object["log"], serde_json::json!({ "segments": 0, "bytes": 0 }));
    assert!(object["history"].as_array().unwrap().is_empty(), "{object}");
    assert_eq!(object["snapshot"]["sha256"].as_str().unwrap().len(), 64);
    let unknown = larder.error(1, &["tenants", "show", "acme/users/eve", "--store", &larder.dsn()]);
    assert!(unknown.starts_with("larder: there is no tenant acme/users/eve in this location"), "{unknown}");
    let malformed = larder.error(2, &["tenants", "show", "ann", "--store", &larder.dsn()]);
    assert!(malformed.contains("a tenant is named ORG/org, ORG/users/USER"), "{malformed}");
}

#[test]
fn what_a_dead_host_left_is_sent_and_what_it_lost_is_in_quarantine() {
    let larder = Larder::new();
    larder.crash("one", "ann", "first");
    let send =
        |command: &str, more: &[&str]| larder.tenants(&[&[command, "--cache-dir", "one"], more].concat());
    let sent = send("checkpoint", &["acme/users/ann"]);
    assert!(sent.starts_with("acme/users/ann was uploaded, "), "{sent}");
    let database = |cache: &str| {
        let folder = CacheFolder::find(&larder.path(cache)).unwrap();
        folder[0].join("acme/users/ann.db")
    };
    assert!(database("one").exists(), "checkpoint removed the database");
    assert_eq!(send("evict", &[]), "acme/users/ann was up to date\n");
    assert!(!database("one").exists(), "evict left the database");
    assert!(send("checkpoint", &[]).ends_with("contains no tenants\n"));
    let unknown =
        larder.error(1, &["tenants", "evict", "--cache-dir", "one", "acme/org", "--store", &larder.dsn()]);
    assert!(unknown.ends_with("contains no database of acme/org\n"), "{unknown}");
    let nowhere = larder.error(1, &["tenants", "evict", "--cache-dir", "none", "--store", &larder.dsn()]);
    assert!(nowhere.ends_with("; check --cache-dir and --store\n"), "{nowhere}");

    // Another host opens the tenant, writes and closes it. Then the first host's directory is used
    // again.
    larder.crash("two", "ann", "lost");
    let dsn = format!("{}?tenant=acme/users/ann&cache={}", larder.dsn(), larder.path("three").display());
    assert!(larder.output(&["put", "--store", &dsn, "notes", "a", "won"]).starts_with("version "));
    let arguments = ["tenants", "checkpoint", "--cache-dir", "two", "--store", &larder.dsn()];
    let quarantined = larder.error(1, &arguments);
    assert!(quarantined.contains("cannot upload acme/users/ann: another host had the tenant before these commits were sent; its data is in quarantine, in "), "{quarantined}");
    let list = ["tenants", "quarantine", "--cache-dir", "two"];
    let object = json(&larder.output(&[list.as_slice(), &["--json"]].concat()));
    assert_eq!(object["tenant"], "acme/users/ann");
    let kept = format!("sqlite:{}", object["database"].as_str().unwrap());
    assert_eq!(larder.output(&["get", "--store", &kept, "notes", "a"]), "lost");
    assert_eq!(larder.output(&["get", "--store", &dsn, "notes", "a"]), "won");
    let name = object["name"].as_str().unwrap();
    let exported = json(&larder.output(&["tenants", "quarantine", "export", name, "--cache-dir", "two"]));
    assert_eq!((&exported["key"], &exported["value"]), (&"a".into(), &"lost".into()));
    let apply = |more: &[&str]| {
        let apply = ["tenants", "quarantine", "apply", name, "--cache-dir", "two", "--store", &larder.dsn()];
        larder.output(&[&apply, more].concat())
    };
    let kept = apply(&["--only-missing", "--yes"]);
    assert!(
        kept.starts_with(
            "acme/users/ann: rows to add 0, to replace 0; unchanged: already uploaded 0, equal 0, different 1"
        ),
        "{kept}"
    );
    assert!(kept.ends_with("wrote 0 rows and 0 conversations\n"), "{kept}");
    let planned = apply(&["--overwrite"]);
    assert!(
        planned.contains("rows to add 0, to replace 1") && planned.contains("\n  replace\tnotes\ta\n"),
        "{planned}"
    );
    assert!(planned.ends_with("nothing was written; add --yes to write these changes\n"), "{planned}");
    assert_eq!(larder.output(&["get", "--store", &dsn, "notes", "a"]), "won");
    assert_eq!(
        apply(&["--overwrite", "--yes", "--json"]).lines().last(),
        Some("wrote 1 rows and 0 conversations")
    );
    assert_eq!(larder.output(&["get", "--store", &dsn, "notes", "a"]), "lost");
    assert_eq!(larder.output(&list).lines().nth(1).unwrap().split('\t').next(), Some(name));
    let wrong = larder.error(1, &[list.as_slice(), &["--remove", "wrong"]].concat());
    assert!(wrong.starts_with("larder: there is no quarantined database \"wrong\""), "{wrong}");
    assert_eq!(larder.output(&[list.as_slice(), &["--remove", name]].concat()), format!("removed {name}\n"));
    assert_eq!(larder.output(&list).lines().count(), 1);
}

#[test]
fn a_cache_folder_of_another_location_is_refused_and_nothing_of_it_is_sent_there() {
    let larder = Larder::new();
    larder.crash("one", "ann", "unsent");
    let folder = CacheFolder::find(&larder.path("one")).unwrap().remove(0);
    let folder = folder.to_str().unwrap();
    let other = format!("tenants+file://{}", larder.path("other").display());
    let dsn = |cache: &str| format!("{other}?tenant=acme/users/ann&cache={cache}");
    let made = format!("{}&create=yes", dsn("two"));
    larder.output(&["put", "--store", &made, "notes", "a", "of the other"]);
    let refused = |arguments: &[&str]| {
        let error = larder.error(1, arguments);
        let expected = format!("the cache folder {folder} belongs to other tenants: those of location ");
        assert!(
            error.contains(&expected) && error.contains("a separate cache folder for each location"),
            "{error}"
        );
        error
    };
    let host = ["--cache-dir", folder, "--store", &other];
    for command in
        [&["checkpoint"][..], &["evict"], &["restore", "acme/users/ann", "--at", "9999-01-01T00:00:00Z"]]
    {
        let error = refused(&[&["tenants"], command, &host].concat());
        assert!(error.ends_with(" (use --cache-dir DIR)\n"), "{error}");
    }
    refused(&["put", "--store", &dsn(folder), "notes", "a", "of this bucket"]);
    let grant = format!("default={other}");
    let run = ["run", larder_artifacts::CATALOG, "--store", &grant, "--cache-dir", folder];
    refused(&[run.as_slice(), &["--tenant", "acme", "--user", "ann", "--", "list"]].concat());
    assert_eq!(larder.output(&["get", "--store", &dsn("two"), "notes", "a"]), "of the other");
    let sent = larder.tenants(&["checkpoint", "--cache-dir", folder]);
    assert!(sent.starts_with("acme/users/ann was uploaded, "), "{sent}");
    // A command that only reads object storage needs no cache directory.
    assert!(larder.output(&["tenants", "list", "--store", &other]).contains("acme/users/ann"));
}

#[test]
fn a_tenant_that_a_host_has_open_is_looked_at_and_its_unsent_commits_are_named() {
    let larder = Larder::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let host = runtime.block_on(larder.builder("one").open()).unwrap();
    runtime.block_on(put(&host, &ann("ann"), "sent"));
    assert!(runtime.block_on(host.checkpoint(&ann("ann"))).unwrap());
    runtime.block_on(put(&host, &ann("ann"), "unsent"));
    let dsn = |cache: &str| {
        format!("{}?tenant=acme/users/ann&cache={}", larder.dsn(), larder.path(cache).display())
    };
    let look = |cache: &str| {
        let mut command = larder.command(&["get", "--store", &dsn(cache), "notes", "a"]);
        command.env("RUST_LOG", "warn").output().unwrap()
    };
    let elsewhere = look("two");
    assert_eq!((text(&elsewhere.stdout), text(&elsewhere.stderr)), ("sent".to_string(), String::new()));
    assert!(!larder.path("two").exists(), "a command that only reads created a directory");
    let here = look("one");
    let warning = text(&here.stderr);
    assert_eq!(text(&here.stdout), "sent");
    assert!(warning.contains("may hold commits of acme/users/ann that were not sent yet"), "{warning}");
    let scanned = larder.output(&["scan", "--store", &dsn("two"), "notes"]);
    assert!(scanned.contains("sent"), "{scanned}");
    let written =
        larder.error(1, &["put", "--store", &format!("{}&lease_wait=1ms", dsn("two")), "notes", "a", "x"]);
    assert!(written.contains("another host has this tenant open"), "{written}");
    runtime.block_on(host.close()).unwrap();
    assert_eq!(text(&look("two").stdout), "unsent");
}

#[test]
fn a_tenant_is_deleted_brought_back_and_removed_for_good() {
    let larder = Larder::new();
    let dsn = format!("{}?tenant=acme/users/ann", larder.dsn());
    let put = ["put", "--store", &format!("{dsn}&create=yes"), "notes", "a", "value"];
    larder.output(&put);
    let deleted = larder.tenants(&["delete", "acme/users/ann"]);
    assert!(deleted.starts_with("acme/users/ann is deleted; from 20"), "{deleted}");
    for command in [&put[..], &["get", "--store", &dsn, "notes", "a"]] {
        let error = larder.error(1, command);
        assert!(error.contains("deleted at") && error.contains("larder tenants undelete"), "{error}");
    }
    let shown = larder.tenants(&["show", "acme/users/ann"]);
    assert!(shown.contains("\ndeleted at 20") && shown.contains("may remove its objects"), "{shown}");
    let listed = json(&larder.tenants(&["list", "--json"]));
    assert_eq!(listed["deletion"]["stage"], "marked");
    // The grace period has not passed.
    assert_eq!(larder.tenants(&["purge"]), "");
    let early = larder.error(1, &["tenants", "purge", "acme/users/ann", "--store", &larder.dsn()]);
    assert!(early.contains("deleted at"), "{early}");
    assert_eq!(larder.tenants(&["undelete", "acme/users/ann"]), "acme/users/ann can be opened\n");
    assert_eq!(larder.output(&["get", "--store", &dsn, "notes", "a"]), "value");
    let gone = larder.tenants(&["delete", "acme/users/ann", "--grace", "0"]);
    assert_eq!(gone, "acme/users/ann is deleted, and its objects were removed\n");
    assert_eq!(larder.tenants(&["list", "--json"]), "");
    let missing = larder.error(1, &["get", "--store", &dsn, "notes", "a"]);
    assert!(missing.contains("the tenant acme/users/ann does not exist"), "{missing}");
    assert_eq!(larder.tenants(&["delete", "acme/users/ann"]), gone);
    let unknown = larder.error(1, &["tenants", "delete", "acme/users/eve", "--store", &larder.dsn()]);
    assert!(unknown.contains("there is no tenant acme/users/eve"), "{unknown}");
    larder.output(&put);
    larder.tenants(&["delete", "acme/users/ann", "--grace", "1ms"]);
    let purged = larder.tenants(&["purge"]);
    assert_eq!(purged, "acme/users/ann is deleted, and its objects were removed\n");
    let entries =
        std::fs::read_dir(larder.path("bucket/acme/users/ann.db")).unwrap().map(|entry| entry.unwrap());
    let files: Vec<_> =
        entries.filter(|entry| entry.path().is_file()).map(|entry| entry.file_name()).collect();
    assert_eq!(files, ["head.json"]);
    assert!(
        !larder
            .path("bucket/acme/users/ann.db/snapshots")
            .read_dir()
            .is_ok_and(|mut found| found.next().is_some())
    );
}

#[test]
fn a_tenant_goes_back_to_an_earlier_moment_and_forward_again() {
    let larder = Larder::new();
    let dsn = format!("{}?tenant=acme/users/ann", larder.dsn());
    let put = |value: &str| {
        let made = TenantsDsn::parse(&dsn).unwrap();
        made.open_store().unwrap();
        larder.output(&["put", "--store", &format!("{dsn}&create=yes"), "notes", "a", value])
    };
    let get = || larder.output(&["get", "--store", &dsn, "notes", "a"]);
    let snapshots = || {
        let shown = json(&larder.tenants(&["show", "acme/users/ann", "--json"]));
        let history = shown["history"].as_array().unwrap().iter().chain([&shown["snapshot"]]);
        let taken_at = |snapshot: &serde_json::Value| snapshot["taken_at"].as_str().unwrap().to_string();
        history.map(|snapshot| (taken_at(snapshot), snapshot["generation"].to_string())).collect::<Vec<_>>()
    };
    put("first");
    std::thread::sleep(Duration::from_millis(5));
    put("second");
    let [(first, _), (second, generation)] = snapshots().try_into().unwrap();
    let restore = |at: &str| larder.tenants(&["restore", "acme/users/ann", "--at", at]);
    let restored = restore(&first);
    assert!(restored.starts_with(&format!("acme/users/ann now has the state of {first}, ")), "{restored}");
    assert!(
        restored.contains(&format!(
            "to undo this: larder tenants restore acme/users/ann --generation {generation} "
        )),
        "{restored}"
    );
    assert_eq!(get(), "first");
    larder.tenants(&["restore", "acme/users/ann", "--generation", &generation]);
    assert_eq!(get(), "second");
    restore(&first);
    restore(&second);
    assert_eq!(get(), "second");
    let again = restore("9999-01-01T00:00:00Z");
    assert!(again.contains("already"), "{again}");
    let store = ["--store", &larder.dsn()];
    let error = |code, arguments: &[&str]| {
        larder.error(code, &[&["tenants", "restore"], arguments, store.as_slice()].concat())
    };
    let early = error(1, &["acme/users/ann", "--at", "2000-01-01T00:00:00Z"]);
    assert_eq!(
        early,
        format!(
            "larder: acme/users/ann has no snapshot of 2000-01-01T00:00:00.000Z or before; the oldest snapshot is of {first}\n"
        )
    );
    assert!(error(2, &["acme/users/ann", "--at", "yesterday"]).contains("expected a time such as 2026-"));
    assert!(
        error(1, &["acme/users/eve", "--at", "0"])
            .contains("there is no tenant acme/users/eve in this location")
    );
}

#[test]
fn a_lost_head_is_told_and_made_anew() {
    let larder = Larder::new();
    larder.load("ann", "one");
    let show = ["tenants", "show", "acme/users/ann", "--store", &larder.dsn()];
    let shown = larder.output(&show);
    std::fs::remove_file(larder.path("bucket/acme/users/ann.db/head.json")).unwrap();
    let lost = larder.error(1, &show);
    assert!(lost.contains("its head.json is missing") && lost.contains("larder tenants repair"), "{lost}");
    let opened = text(&larder.catalog("ann", "two", &["list"]).output().unwrap().stderr);
    assert!(opened.contains("its head.json is missing"), "{opened}");
    let planned = larder.tenants(&["repair", "acme/users/ann"]);
    assert!(planned.ends_with("nothing was written; add --yes to write this head\n"), "{planned}");
    larder.error(1, &show);
    let repaired = larder.tenants(&["repair", "acme/users/ann", "--yes"]);
    assert!(repaired.ends_with("acme/users/ann has a head again\n"), "{repaired}");
    let snapshot = |shown: &str| shown.lines().last().unwrap().split("  ").last().unwrap().to_string();
    assert_eq!(snapshot(&larder.output(&show)), snapshot(&shown));
    let intact = larder.error(1, &["tenants", "repair", "acme/users/ann", "--store", &larder.dsn()]);
    assert!(intact.contains("is intact"), "{intact}");
}

#[test]
fn a_wrong_name_of_tenants_is_said_in_a_sentence() {
    let larder = Larder::new();
    let error = |dsn: &str| larder.error(1, &["get", "--store", dsn, "n", "key"]);
    let forms = error("tenants+ftp://x");
    assert!(
        forms.contains(
            "a data-source name of tenants is `tenants+file:///FOLDER`, `tenants+s3://BUCKET/PREFIX`"
        ),
        "{forms}"
    );
    let secret = error("tenants+s3://key:s3cret@bucket/");
    assert!(secret.contains("has no credentials") && !secret.contains("s3cret"), "{secret}");
    let whose = error(&larder.dsn());
    assert!(whose.contains("say which with `tenant=ORG/users/USER`"), "{whose}");
    std::fs::create_dir_all(larder.path("bucket")).unwrap();
    TenantsDsn::parse(&larder.dsn()).unwrap().open_store().unwrap();
    let absent = error(&format!("{}?tenant=acme/org", larder.dsn()));
    assert!(
        absent.ends_with("the tenant acme/org does not exist; check the key after `tenant=`\n"),
        "{absent}"
    );
    let migrate = larder.error(1, &["schema", "up", "--store", &larder.dsn()]);
    assert!(migrate.contains("brought up to date when a tenant is opened"), "{migrate}");
    let list = larder.error(1, &["tenants", "list", "--store", "sqlite:a.db"]);
    assert!(list.contains("a data-source name of tenants is"), "{list}");
}

#[test]
fn conversations_are_kept_in_a_tenants_database_too() {
    let larder = Larder::new();
    let (grant, memory) = (format!("default={}", larder.dsn()), larder.dsn());
    let run = ["run", larder_artifacts::ASSISTANT, "--store", &grant, "--memory", &memory];
    let whose = ["--tenant", "acme", "--user", "ann", "--", "acme", "ann", "monday"];
    let transcript =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/assistant/sample/transcript.txt");
    let mut command = larder.command(&[run.as_slice(), &whose].concat());
    let said = command.stdin(File::open(transcript).unwrap()).output().unwrap();
    assert!(said.status.success(), "{}", text(&said.stderr));
    let store = format!("{}?tenant=acme/users/ann", larder.dsn());
    let listed = larder.output(&["memory", "list", "--store", &store]);
    assert!(listed.lines().nth(1).unwrap().starts_with("acme\tann\tmonday\t"), "{listed}");
}
