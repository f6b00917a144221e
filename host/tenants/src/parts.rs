//! Multipart uploads of large files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, MultipartId, MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::blocking::blocking;
use crate::error::{Result, TenantError};
use crate::objects::{CallError, Objects, PART_BYTES, timed};
use crate::snapshot_transfer::TransferError;

/// The most parts of one upload that are in memory and in flight.
const PARTS_AT_ONCE: u32 = 4;

/// Uploads a file to a name that no other upload uses.
///
/// If this fails or its future is dropped, it removes the parts that were sent, as far as object
/// storage can be reached.
pub(crate) async fn upload(objects: &Objects, path: &ObjectPath, file: File, bytes: u64) -> Result<()> {
    let parts = Parts { file: Arc::new(file), bytes, side_by_side: SideBySide::new() };
    let uploaded = match objects.multipart() {
        Some(store) => upload_numbered(objects, store, path, &parts).await,
        None => upload_in_order(objects, path, &parts).await,
    };
    uploaded.map_err(|error| match error {
        TransferError::Tenant(error) => error,
        TransferError::Call(error) => TenantError::unavailable("a snapshot can't be uploaded", error),
    })
}

/// The file that is uploaded.
struct Parts {
    file: Arc<File>,
    bytes: u64,
    side_by_side: SideBySide,
}

impl Parts {
    fn count(&self) -> u64 {
        self.bytes.div_ceil(PART_BYTES as u64)
    }

    async fn read(&self, number: u64) -> Result<PutPayload> {
        let offset = number * PART_BYTES as u64;
        let (file, length) = (self.file.clone(), self.bytes.saturating_sub(offset).min(PART_BYTES as u64));
        blocking(move || {
            let mut part = vec![0; usize::try_from(length).unwrap_or(PART_BYTES)];
            file.read_exact_at(&mut part, offset)
                .map_err(|error| TenantError::file("a compressed file can't be read", error))?;
            Ok(PutPayload::from(Bytes::from(part)))
        })
        .await
    }
}

/// Sends parts in parallel until one times out, and then one at a time, because together they may
/// be what saturates a slow connection.
struct SideBySide {
    turns: Semaphore,
    is_slow: AtomicBool,
}

impl SideBySide {
    fn new() -> Self {
        Self { turns: Semaphore::new(PARTS_AT_ONCE as usize), is_slow: AtomicBool::new(false) }
    }

    /// Waits for its turn, which does not count towards the timeout.
    async fn send<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, CallError> {
        let share = if self.is_slow.load(Ordering::Relaxed) { PARTS_AT_ONCE } else { 1 };
        // The semaphore is never closed.
        let _turn = self.turns.acquire_many(share).await;
        let sent = timed(limit, call).await;
        if matches!(sent, Err(CallError::TimedOut(_))) {
            self.is_slow.store(true, Ordering::Relaxed);
        }
        sent
    }
}

/// Whether the object exists. The response to the completion of its upload may have been lost.
async fn is_complete(objects: &Objects, path: &ObjectPath, parts: &Parts) -> bool {
    let found = timed(objects.limits().call_timeout, objects.store().head(path)).await;
    found.is_ok_and(|meta| meta.size == parts.bytes)
}

/// Uploads numbered parts. A part that fails is retried alone.
async fn upload_numbered(
    objects: &Objects,
    store: &Arc<dyn MultipartStore>,
    path: &ObjectPath,
    parts: &Parts,
) -> Result<(), TransferError> {
    let mut upload = Numbered::begin(objects, store, path).await?;
    let uploaded = upload.send(parts).await;
    if uploaded.is_ok() {
        upload.id = None;
    } else {
        upload.abort().await;
    }
    uploaded
}

/// An upload of numbered parts. It is aborted if it is dropped before its end.
struct Numbered {
    objects: Objects,
    store: Arc<dyn MultipartStore>,
    path: ObjectPath,
    /// `None` once the upload is complete or aborted.
    id: Option<MultipartId>,
}

impl Numbered {
    /// If the response is lost, an upload without parts stays behind, of which only the object
    /// storage knows.
    async fn begin(
        objects: &Objects,
        store: &Arc<dyn MultipartStore>,
        path: &ObjectPath,
    ) -> Result<Self, CallError> {
        let mut attempts = objects.attempts();
        let id = loop {
            match timed(objects.limits().call_timeout, store.create_multipart(path)).await {
                Ok(id) => break Some(id),
                Err(error) if error.is_final() || !attempts.wait().await => return Err(error),
                Err(_) => {}
            }
        };
        Ok(Self { objects: objects.clone(), store: store.clone(), path: path.clone(), id })
    }

    async fn send(&self, parts: &Parts) -> Result<(), TransferError> {
        let Some(id) = &self.id else { return Ok(()) };
        let sent = futures_util::stream::iter(0..parts.count())
            .map(|number| self.send_part(id, parts, number))
            .buffer_unordered(PARTS_AT_ONCE as usize);
        let mut sent: Vec<(u64, PartId)> = sent.try_collect().await?;
        sent.sort_unstable_by_key(|(number, _)| *number);
        self.complete(id, parts, sent.into_iter().map(|(_, part)| part).collect()).await
    }

    async fn send_part(
        &self,
        id: &MultipartId,
        parts: &Parts,
        number: u64,
    ) -> Result<(u64, PartId), TransferError> {
        let index = usize::try_from(number).map_err(|_| {
            TenantError::invalid_argument(format!("a file of {} bytes has too many parts", parts.bytes))
        })?;
        let payload = parts.read(number).await?;
        let limit = self.objects.limits().transfer_timeout;
        let mut attempts = self.objects.attempts();
        loop {
            let call = self.store.put_part(&self.path, id, index, payload.clone());
            match parts.side_by_side.send(limit, call).await {
                Ok(part) => return Ok((number, part)),
                Err(error) if error.is_final() || !attempts.wait().await => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    async fn complete(
        &self,
        id: &MultipartId,
        parts: &Parts,
        sent: Vec<PartId>,
    ) -> Result<(), TransferError> {
        let limit = self.objects.limits().transfer_timeout;
        let mut attempts = self.objects.attempts();
        loop {
            let completed = timed(limit, self.store.complete_multipart(&self.path, id, sent.clone())).await;
            let Err(error) = completed else { return Ok(()) };
            if is_complete(&self.objects, &self.path, parts).await {
                return Ok(());
            }
            if error.is_final() || !attempts.wait().await {
                return Err(error.into());
            }
        }
    }

    /// Removes the parts. The object storage must clean up those that stay.
    async fn abort(&mut self) {
        if let Some(id) = self.id.take() {
            abort_numbered(self.objects.clone(), self.store.clone(), self.path.clone(), id).await;
        }
    }
}

async fn abort_numbered(objects: Objects, store: Arc<dyn MultipartStore>, path: ObjectPath, id: MultipartId) {
    let mut attempts = objects.attempts();
    loop {
        match timed(objects.limits().call_timeout, store.abort_multipart(&path, &id)).await {
            Ok(()) | Err(CallError::Store(StoreError::NotFound { .. })) => return,
            Err(error) if error.is_final() || !attempts.wait().await => {
                tracing::warn!(%path, %error, "the parts of an upload can't be removed");
                return;
            }
            Err(_) => {}
        }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        if let (Some(id), Ok(runtime)) = (self.id.take(), Handle::try_current()) {
            let (objects, store, path) = (self.objects.clone(), self.store.clone(), self.path.clone());
            runtime.spawn(abort_numbered(objects, store, path, id));
        }
    }
}

/// Uploads parts in order. A part that fails cannot be retried, so the upload starts again.
async fn upload_in_order(objects: &Objects, path: &ObjectPath, parts: &Parts) -> Result<(), TransferError> {
    let mut attempts = objects.attempts();
    loop {
        let Err(error) = try_in_order(objects, path, parts).await else { return Ok(()) };
        let TransferError::Call(error) = error else { return Err(error) };
        if error.is_final() || !attempts.wait().await {
            return Err(error.into());
        }
    }
}

async fn try_in_order(objects: &Objects, path: &ObjectPath, parts: &Parts) -> Result<(), TransferError> {
    let limits = objects.limits();
    let upload = timed(limits.call_timeout, objects.store().put_multipart(path)).await?;
    let mut upload = InOrder { upload: Some(upload), limit: limits.call_timeout };
    let sent = upload.send(parts, limits.transfer_timeout).await;
    let is_sent = sent.is_ok() || is_complete(objects, path, parts).await;
    match upload.upload.take() {
        Some(upload) if !is_sent => abort_in_order(upload, limits.call_timeout).await,
        _ => {}
    }
    if is_sent { Ok(()) } else { sent }
}

/// An upload of parts in order. It is aborted if it is dropped before its end.
struct InOrder {
    /// `None` once the upload is complete or aborted.
    upload: Option<Box<dyn MultipartUpload>>,
    limit: Duration,
}

impl InOrder {
    async fn send(&mut self, parts: &Parts, limit: Duration) -> Result<(), TransferError> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let mut sending = FuturesUnordered::new();
        for number in 0..parts.count() {
            if sending.len() == PARTS_AT_ONCE as usize {
                sending.try_next().await?;
            }
            let payload = parts.read(number).await?;
            sending.push(parts.side_by_side.send(limit, upload.put_part(payload)));
        }
        while sending.try_next().await?.is_some() {}
        timed(limit, upload.complete()).await?;
        Ok(())
    }
}

/// Aborts an upload. The object storage must clean up parts that stay.
async fn abort_in_order(mut upload: Box<dyn MultipartUpload>, limit: Duration) {
    drop(timed(limit, upload.abort()).await);
}

impl Drop for InOrder {
    fn drop(&mut self) {
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) {
            runtime.spawn(abort_in_order(upload, self.limit));
        }
    }
}
