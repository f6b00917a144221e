//! Quarantined databases can be read, compared with the live tenant, and applied to it.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod host;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use host::*;
use larder_core::clock::MovableClock;
use larder_core::{
    Error, HandleOptions, IdentityParts, IdentityScope, Memory, MemoryOptions, MemoryStore, Migration,
    MigrationScope, Mode, NextMigration, PutOptions, Store, Strategy, Turn, Version,
};
use larder_tenants::{
    PlannedRow, QuarantinedStore, ReapplyPolicy, ReapplyRows, RemoteOptions, Tenant, TenantError, TenantKey,
    Tenants,
};

fn ann() -> TenantKey {
    key("acme/users/ann")
}

/// A host with a quarantined database: `before` is in both databases, `lost` only in the
/// quarantined one, and `live` only in the live tenant.
struct Begun {
    world: World,
    host: Tenants,
    name: String,
    clock: Arc<MovableClock>,
}

async fn begun(
    before: impl AsyncFnOnce(&Store),
    lost: impl AsyncFnOnce(&Store),
    live: impl AsyncFnOnce(&Store),
) -> Begun {
    let world = World::new();
    let clock = Arc::new(MovableClock::default());
    let builder = |name: &str| {
        let options = RemoteOptions::default().clock(clock.clone());
        world.builder(name).remote_options(options)
    };
    let a = builder("a").open().await.unwrap();
    let tenant = a.get(&ann()).await.unwrap();
    before(&tenant.store()).await;
    a.checkpoint(&ann()).await.unwrap();
    lost(&tenant.store()).await;
    crash(&world, "a", "left").await;
    std::mem::forget((a.clone(), tenant));
    let holder = a.cache().holder().clone();
    a.remote().acquire(&ann(), &holder, Duration::ZERO).await.unwrap().release().await.unwrap();
    let b = builder("b").open().await.unwrap();
    live(&b.get(&ann()).await.unwrap().store()).await;
    b.close().await.unwrap();
    // No host opens the database before it goes into quarantine.
    std::fs::remove_file(world.cache("left").join("acme/users/ann.db.state.json")).unwrap();
    let host = builder("left").open().await.unwrap();
    eventually("the quarantine", async || host.cache().quarantined().unwrap().len() == 1).await;
    let name = host.cache().quarantined().unwrap().remove(0).name;
    Begun { world, host, name, clock }
}

impl Begun {
    async fn open(&self) -> QuarantinedStore {
        self.host.open_quarantined(&self.name).await.unwrap()
    }

    async fn tenant(&self) -> Tenant {
        self.host.get(&ann()).await.unwrap()
    }
}

async fn write(store: &Store, rows: &[(&str, &str)]) {
    let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
    for (key, value) in rows {
        update.put("n".into(), (*key).into(), (*value).into()).unwrap();
    }
    update.commit().await.unwrap();
}

async fn rows(tenant: &Tenant) -> BTreeMap<String, String> {
    let mut view = handle(tenant).begin(Mode::View).unwrap();
    let found = view.scan("n".into(), String::new()).await.unwrap();
    found.into_iter().map(|row| (row.key, String::from_utf8(row.value).unwrap())).collect()
}

fn names(rows: &[PlannedRow]) -> Vec<&str> {
    rows.iter().map(|row| row.key.as_str()).collect()
}

fn expected(rows: &[(&str, &str)]) -> BTreeMap<String, String> {
    rows.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
}

async fn ordinary() -> Begun {
    begun(
        async |store| write(store, &[("both", "1"), ("differs", "1"), ("deleted", "1")]).await,
        async |store| {
            write(store, &[("differs", "lost"), ("lost", "lost")]).await;
            let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
            update.delete("n".into(), "deleted".into()).unwrap();
            update.commit().await.unwrap();
        },
        async |store| write(store, &[("differs", "live"), ("live", "live")]).await,
    )
    .await
}

/// All files in the quarantine.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

#[tokio::test]
async fn rows_in_quarantine_are_read_and_its_files_stay_as_they_are() {
    let begun = ordinary().await;
    let folder = begun.host.cache().quarantined().unwrap()[0].database.parent().unwrap().to_path_buf();
    let before = files(&folder);
    // The last commits are only in the write-ahead log.
    assert!(before["database.db-wal"].len() > 4_096);
    let store = begun.open().await;
    let mut found = Vec::new();
    store
        .for_each_row(async |row| {
            assert!(row.namespace == "n" && row.expires_at.is_none() && row.version > Version::ABSENT);
            found.push((row.key, String::from_utf8(row.value).unwrap()));
            Ok::<_, TenantError>(())
        })
        .await
        .unwrap();
    let found: BTreeMap<_, _> = found.into_iter().collect();
    assert_eq!(found, expected(&[("both", "1"), ("differs", "lost"), ("lost", "lost")]));
    store.plan(&begun.tenant().await.store(), ReapplyPolicy::Overwrite, ReapplyRows::All).await.unwrap();
    drop(store);
    assert_eq!(files(&folder), before);
}

#[tokio::test]
async fn only_missing_rows_are_added_and_a_second_plan_is_empty() {
    let begun = ordinary().await;
    let (store, tenant) = (begun.open().await, begun.tenant().await);
    let before = rows(&tenant).await;
    let plan = store.plan(&tenant.store(), ReapplyPolicy::OnlyMissing, ReapplyRows::All).await.unwrap();
    assert_eq!(rows(&tenant).await, before, "a plan changed the tenant");
    assert_eq!(names(&plan.rows), ["lost"]);
    assert_eq!((plan.equal_rows, plan.kept_rows), (1, 1));
    let done = store.apply(&tenant.store(), &plan).await.unwrap();
    assert_eq!((done.rows, done.changed_rows.len()), (1, 0));
    let all = [("both", "1"), ("deleted", "1"), ("differs", "live"), ("live", "live"), ("lost", "lost")];
    assert_eq!(rows(&tenant).await, expected(&all));
    let again = store.plan(&tenant.store(), ReapplyPolicy::OnlyMissing, ReapplyRows::All).await.unwrap();
    assert_eq!((again.rows.len(), again.equal_rows), (0, 2));
    // Another host sees it too.
    drop(tenant);
    begun.host.close().await.unwrap();
    assert_eq!(rows(&begun.world.host("c").await.get(&ann()).await.unwrap()).await, expected(&all));
}

#[tokio::test]
async fn a_row_that_was_sent_and_that_the_live_tenant_deleted_stays_away() {
    let world = World::new();
    let a = world.host("a").await;
    for row in ["deleted", "changed", "kept"] {
        put_in(&a, &ann(), row, "sent").await;
    }
    a.checkpoint(&ann()).await.unwrap();
    put_in(&a, &ann(), "unsent", "1").await;
    crash(&world, "a", "left").await;
    let live = a.get(&ann()).await.unwrap();
    let mut update = handle(&live).begin(Mode::Update).unwrap();
    update.delete("n".into(), "deleted".into()).unwrap();
    update.delete("n".into(), "unsent".into()).unwrap();
    update.put("n".into(), "changed".into(), b"later".to_vec()).unwrap();
    update.commit().await.unwrap();
    drop(live);
    a.close().await.unwrap();
    let left = world.host("left").await;
    eventually("the quarantine", async || left.cache().quarantined().unwrap().len() == 1).await;
    let quarantined = left.cache().quarantined().unwrap().remove(0);
    assert!(quarantined.sent_position.is_some());
    let (store, tenant) =
        (left.open_quarantined(&quarantined.name).await.unwrap(), left.get(&ann()).await.unwrap());
    let live = tenant.store();
    let unsent = store.plan(&live, ReapplyPolicy::Overwrite, ReapplyRows::Unsent).await.unwrap();
    assert_eq!((names(&unsent.rows), unsent.sent_rows), (vec!["unsent"], 3));
    let all = store.plan(&live, ReapplyPolicy::Overwrite, ReapplyRows::All).await.unwrap();
    assert_eq!(
        (names(&all.rows), all.sent_rows, all.equal_rows),
        (vec!["changed", "deleted", "unsent"], 0, 1)
    );
}

#[tokio::test]
async fn overwriting_replaces_what_differs_and_leaves_what_only_the_live_tenant_has() {
    let begun = ordinary().await;
    let (store, tenant) = (begun.open().await, begun.tenant().await);
    let plan = store.plan(&tenant.store(), ReapplyPolicy::Overwrite, ReapplyRows::All).await.unwrap();
    assert_eq!(names(&plan.rows), ["differs", "lost"]);
    store.apply(&tenant.store(), &plan).await.unwrap();
    let all = [("both", "1"), ("deleted", "1"), ("differs", "lost"), ("live", "live"), ("lost", "lost")];
    assert_eq!(rows(&tenant).await, expected(&all));
}

#[tokio::test]
async fn a_row_that_changed_after_the_plan_stays_and_is_reported() {
    let begun = ordinary().await;
    let (store, tenant) = (begun.open().await, begun.tenant().await);
    let plan = store.plan(&tenant.store(), ReapplyPolicy::Overwrite, ReapplyRows::All).await.unwrap();
    write(&tenant.store(), &[("differs", "newer")]).await;
    let done = store.apply(&tenant.store(), &plan).await.unwrap();
    assert_eq!((done.rows, names(&done.changed_rows)), (1, vec!["differs"]));
    let found = rows(&tenant).await;
    assert_eq!((found["differs"].as_str(), found["lost"].as_str()), ("newer", "lost"));
}

#[tokio::test]
async fn an_apply_that_fails_halfway_says_how_far_it_came_and_a_second_one_does_the_rest() {
    let begun = begun(
        async |store| write(store, &[("both", "1")]).await,
        async |store| {
            for part in 0..3 {
                let keys: Vec<_> = (0..500).map(|number| format!("{part}-{number:03}")).collect();
                let rows: Vec<_> = keys.iter().map(|key| (key.as_str(), "value")).collect();
                write(store, &rows).await;
            }
        },
        async |store| write(store, &[("live", "1")]).await,
    )
    .await;
    let (quarantined, tenant) = (begun.open().await, begun.tenant().await);
    // The limit has room for two of the three transactions.
    let small = Store::builder(tenant.backend()).sweep_interval(None).quota_bytes(12_000).build().unwrap();
    let plan = quarantined.plan(&small, ReapplyPolicy::OnlyMissing, ReapplyRows::All).await.unwrap();
    assert_eq!(plan.rows.len(), 1_500);
    let (done, error) = quarantined.apply(&small, &plan).await.unwrap_err();
    assert!(matches!(error, TenantError::Database { error: Error::LimitExceeded(_), .. }), "{error:?}");
    assert!(done.rows > 0 && done.rows.is_multiple_of(500), "{}", done.rows);
    let rest = quarantined.plan(&tenant.store(), ReapplyPolicy::OnlyMissing, ReapplyRows::All).await.unwrap();
    assert_eq!(rest.rows.len() as u64, 1_500 - done.rows);
    quarantined.apply(&tenant.store(), &rest).await.unwrap();
    assert_eq!(rows(&tenant).await.len(), 1_502);
}

#[tokio::test]
async fn a_row_keeps_the_moment_at_which_it_expires_and_an_expired_one_stays_away() {
    let put = async |store: &Store, key: &str, ttl_ms: u64| {
        let mut update = store.handle(HandleOptions::default()).begin(Mode::Update).unwrap();
        let options = PutOptions::default().ttl_ms(ttl_ms);
        update.put_with("n".into(), key.into(), b"value".to_vec(), options).unwrap();
        update.commit().await.unwrap();
    };
    let begun = begun(
        async |_| {},
        async |store| {
            put(store, "short", 60_000).await;
            put(store, "long", 3_600_000).await;
        },
        async |store| write(store, &[("live", "1")]).await,
    )
    .await;
    begun.clock.advance(Duration::from_secs(120));
    let (quarantined, tenant) = (begun.open().await, begun.tenant().await);
    let plan = quarantined.plan(&tenant.store(), ReapplyPolicy::OnlyMissing, ReapplyRows::All).await.unwrap();
    assert_eq!(names(&plan.rows), ["long"]);
    quarantined.apply(&tenant.store(), &plan).await.unwrap();
    begun.clock.advance(Duration::from_secs(3_600 - 120 - 60));
    assert!(rows(&tenant).await.contains_key("long"));
    begun.clock.advance(Duration::from_secs(120));
    assert!(!rows(&tenant).await.contains_key("long"));
}

#[tokio::test]
async fn conversations_are_added_and_replaced_like_rows() {
    let talk = async |store: &Store, session: &str, text: &str| {
        let memories = MemoryStore::builder(store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
        open_session(&memories, session)
            .add_turn(Turn { user_message: text.into(), ..Turn::default() })
            .await
            .unwrap();
        memories.close().await;
    };
    let begun = begun(
        async |store| talk(store, "differs", "first").await,
        async |store| {
            talk(store, "differs", "lost").await;
            talk(store, "lost", "lost").await;
        },
        async |store| talk(store, "differs", "live").await,
    )
    .await;
    let (quarantined, tenant) = (begun.open().await, begun.tenant().await);
    let texts = async |session: &str| {
        let store = tenant.store();
        let memories =
            MemoryStore::builder(&store, MemoryOptions::new(Strategy::Truncation)).build().unwrap();
        let context = open_session(&memories, session).llm_context().await.unwrap();
        memories.close().await;
        context.recent_turns.into_iter().map(|turn| turn.user_message).collect::<Vec<_>>()
    };
    let plan = quarantined.plan(&tenant.store(), ReapplyPolicy::OnlyMissing, ReapplyRows::All).await.unwrap();
    assert_eq!((plan.sessions.len(), plan.kept_sessions), (1, 1));
    assert!(plan.sessions[0].is_missing() && plan.sessions[0].identity.session == "lost");
    assert_eq!(quarantined.apply(&tenant.store(), &plan).await.unwrap().sessions, 1);
    assert_eq!(
        (texts("lost").await, texts("differs").await),
        (vec!["lost".into()], vec!["first".into(), "live".to_string()])
    );
    let plan = quarantined.plan(&tenant.store(), ReapplyPolicy::Overwrite, ReapplyRows::All).await.unwrap();
    assert_eq!((plan.sessions.len(), plan.equal_sessions), (1, 1));
    // It was changed meanwhile.
    talk(&tenant.store(), "differs", "newer").await;
    let done = quarantined.apply(&tenant.store(), &plan).await.unwrap();
    assert_eq!((done.sessions, done.changed_sessions.len()), (0, 1));
    let plan = quarantined.plan(&tenant.store(), ReapplyPolicy::Overwrite, ReapplyRows::All).await.unwrap();
    assert_eq!(quarantined.apply(&tenant.store(), &plan).await.unwrap().sessions, 1);
    assert_eq!(texts("differs").await, ["first", "lost"]);
}

fn open_session(memories: &MemoryStore, session: &str) -> Memory {
    let parts = IdentityParts::session("acme", "ann", session);
    memories.open(parts, &IdentityScope::Any, &Default::default()).unwrap()
}

#[tokio::test]
async fn other_migrations_of_components_are_told() {
    let migrate = async |store: &Store, id: &str| {
        let options = HandleOptions::default().migrations(MigrationScope::Any);
        let step = Migration { id: id.into(), checksum: vec![7; 32] };
        let next = store.handle(options).begin_migration("tasks".into(), vec![step]).await.unwrap();
        let NextMigration { mut transaction, .. } = next.unwrap();
        transaction.put("n".into(), id.into(), b"layout".to_vec()).unwrap();
        transaction.commit().await.unwrap();
    };
    let begun = begun(
        async |store| write(store, &[("both", "1")]).await,
        async |store| migrate(store, "0001_lost").await,
        async |store| write(store, &[("live", "1")]).await,
    )
    .await;
    let (quarantined, tenant) = (begun.open().await, begun.tenant().await);
    let plan = quarantined.plan(&tenant.store(), ReapplyPolicy::OnlyMissing, ReapplyRows::All).await.unwrap();
    assert_eq!((plan.other_layouts, names(&plan.rows)), (vec!["tasks".to_string()], vec!["0001_lost"]));
}

#[tokio::test]
async fn a_damaged_database_is_corrupt_and_an_unknown_name_is_refused() {
    let begun = ordinary().await;
    let unknown = begun.host.cache().open_quarantined("unknown").await;
    assert!(matches!(unknown.map(drop), Err(TenantError::InvalidArgument(_))));
    let database = begun.host.cache().quarantined().unwrap().remove(0).database;
    std::fs::write(&database, vec![b'x'; 8_192]).unwrap();
    std::fs::write(database.with_file_name("database.db-wal"), "").unwrap();
    let damaged = begun.host.cache().open_quarantined(&begun.name).await.map(drop);
    assert!(matches!(damaged, Err(TenantError::Corrupt { .. })), "{damaged:?}");
}
