//! The probe refuses object stores that do not honour conditional puts.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use larder_tenants::TenantError;
use larder_tenants::faults::{Fault, FaultyStore, Operation, Rule};
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use support::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Flaw {
    /// Every put succeeds, as with several S3 servers.
    IgnoresAll,
    /// Honours If-None-Match and ignores If-Match, as `localbucket` does.
    IgnoresMatch,
    /// Checks the condition first and then puts, as `s3s-fs` does.
    LooksFirst,
    /// Refuses a put, but does it.
    RefusesAndPuts,
}

/// An object store that does not honour conditional puts.
#[derive(Debug)]
struct Flawed(InMemory, Flaw);

impl std::fmt::Display for Flawed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?}", self.1)
    }
}

impl Flawed {
    async fn check(&self, path: &ObjectPath, mode: &PutMode) -> Result<()> {
        let error = |source: &'static str| object_store::Error::Precondition {
            path: path.to_string(),
            source: source.into(),
        };
        let found = self.0.head(path).await.ok();
        match mode {
            PutMode::Create if found.is_some() => Err(error("there")),
            PutMode::Update(expected) if found.is_none_or(|found| found.e_tag != expected.e_tag) => {
                Err(error("another"))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for Flawed {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let plain = PutOptions { mode: PutMode::Overwrite, ..options.clone() };
        match self.1 {
            Flaw::IgnoresAll => self.0.put_opts(path, payload, plain).await,
            Flaw::IgnoresMatch if matches!(options.mode, PutMode::Update(_)) => {
                self.0.put_opts(path, payload, plain).await
            }
            Flaw::IgnoresMatch => self.0.put_opts(path, payload, options).await,
            Flaw::LooksFirst => {
                self.check(path, &options.mode).await?;
                tokio::task::yield_now().await;
                self.0.put_opts(path, payload, plain).await
            }
            Flaw::RefusesAndPuts => {
                let checked = self.check(path, &options.mode).await;
                let put = self.0.put_opts(path, payload, plain).await;
                checked.and(put)
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused_with_one_sentence() {
    let expected = [
        (Flaw::IgnoresAll, "it created an object a second time"),
        (Flaw::IgnoresMatch, "it replaced an object whose ETag did not match"),
        (Flaw::LooksFirst, "it let more than one of several concurrent writes succeed"),
        (Flaw::RefusesAndPuts, "it refused a write, but did it"),
    ];
    for (flaw, why) in expected {
        let inner = InMemory::new();
        let error = remote(Arc::new(Flawed(inner.clone(), flaw))).probe().await.unwrap_err();
        let TenantError::NoConditions { reason } = &error else { panic!("{flaw:?}: {error}") };
        assert_eq!(reason, why, "{flaw:?}");
        let sentence = error.to_string();
        assert!(sentence.starts_with("this object storage can't keep tenants"), "{sentence}");
        assert!(!sentence.contains('\n') && !sentence.contains(". "), "{sentence}");
        assert!(
            inner.list_with_delimiter(None).await.unwrap().common_prefixes.is_empty(),
            "{flaw:?} left objects"
        );
    }
}

#[tokio::test]
async fn a_store_that_honours_conditions_passes_and_is_left_as_it_was() {
    let store = InMemory::new();
    remote(Arc::new(store.clone())).probe().await.unwrap();
    let left = store.list_with_delimiter(None).await.unwrap();
    assert_eq!((left.objects.len(), left.common_prefixes.len()), (0, 0));
}

#[tokio::test]
async fn lost_answers_do_not_make_a_good_store_look_bad() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    store.add(Rule::next(Operation::Put, "create-1", Fault::DenyOwnSuccess).times(8));
    store.add(Rule::next(Operation::Put, "swap", Fault::DenyOwnSuccess).after(1).times(8));
    remote(Arc::new(store)).probe().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_is_unavailable_and_not_refused() {
    let store = FaultyStore::new(Arc::new(InMemory::new()));
    store.set_down(true);
    let error = remote(Arc::new(store)).probe().await.unwrap_err();
    assert!(matches!(error, TenantError::Unavailable { .. }), "{error}");
}

/// A negative control: on a store that checks the condition first and puts then, several hosts do
/// get the lease. So the tests can tell good stores from bad ones.
#[tokio::test]
async fn on_a_store_that_looks_first_two_hosts_do_get_the_same_lease() {
    let store: Arc<dyn ObjectStore> = Arc::new(Flawed(InMemory::new(), Flaw::LooksFirst));
    let hosts: Vec<_> =
        (0..8).map(|number| (remote(store.clone()), holder(&format!("host-{number}")))).collect();
    let taken = hosts.iter().map(|(host, holder)| host.acquire(host_key(), holder, NO_WAIT));
    let taken = futures_util::future::join_all(taken).await;
    assert!(taken.iter().filter(|taken| taken.is_ok()).count() > 1);
}

fn host_key() -> &'static larder_tenants::TenantKey {
    static KEY: std::sync::OnceLock<larder_tenants::TenantKey> = std::sync::OnceLock::new();
    KEY.get_or_init(key)
}
