//! A process that kills itself between two steps.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use larder_tenants::FolderStore;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// Kills its own process before or after the n-th call. Each call counts twice.
#[derive(Debug)]
pub(crate) struct KillingStore {
    pub(crate) store: FolderStore,
    pub(crate) passed: Arc<AtomicUsize>,
    pub(crate) at: usize,
}

impl KillingStore {
    fn pass(&self, path: &ObjectPath) {
        // The probe's objects belong to no tenant.
        if !path.as_ref().starts_with(".probe") {
            pass(&self.passed, self.at);
        }
    }

    fn listed(
        &self,
        path: Option<&ObjectPath>,
        listed: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let path = path.cloned().unwrap_or_default();
        self.pass(&path);
        let (passed, at) = (self.passed.clone(), self.at);
        let end = futures_util::stream::poll_fn(move |_| {
            pass(&passed, at);
            std::task::Poll::Ready(None)
        });
        listed.chain(end).boxed()
    }
}

/// Counts one step, and kills the process at step `at`.
pub(crate) fn pass(passed: &AtomicUsize, at: usize) {
    if passed.fetch_add(1, Ordering::AcqRel) + 1 == at {
        nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }
}

impl Display for KillingStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "KillingStore")
    }
}

#[async_trait]
impl ObjectStore for KillingStore {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.pass(path);
        let put = self.store.put_opts(path, payload, options).await;
        self.pass(path);
        put
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.pass(path);
        self.store.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.pass(path);
        let got = self.store.get_opts(path, options).await;
        self.pass(path);
        got
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.store.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, self.store.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&ObjectPath>,
        offset: &ObjectPath,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(prefix, self.store.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}
