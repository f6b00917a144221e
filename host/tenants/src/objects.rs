//! Object storage with timeouts, bounded retries and known outcomes of writes.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use larder_core::clock::UnixMillis;
use object_store::multipart::MultipartStore;
use object_store::path::Path as ObjectPath;
use object_store::{
    Error as StoreError, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    PutResult, UpdateVersion,
};

use crate::attempts::Attempts;
use crate::error::{Result, TenantError};

/// Limits of calls to object storage.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallLimits {
    /// The timeout of a call that moves little data.
    pub(crate) call_timeout: Duration,
    /// The timeout of a call that moves up to [`PART_BYTES`].
    pub(crate) transfer_timeout: Duration,
    /// How often a call is attempted.
    pub(crate) attempts: u32,
}

/// The most bytes that one call moves.
pub(crate) const PART_BYTES: usize = 8 << 20;

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there was no response within {0:?}")]
    TimedOut(Duration),
}

impl CallError {
    /// Whether a retry cannot help.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Store(
                StoreError::PermissionDenied { .. }
                    | StoreError::Unauthenticated { .. }
                    | StoreError::NotImplemented { .. }
                    | StoreError::NotSupported { .. }
                    | StoreError::InvalidPath { .. }
                    | StoreError::UnknownConfigurationKey { .. }
            )
        )
    }
}

/// Runs a call with a timeout. After a timeout, the call may still take effect.
pub(crate) async fn timed<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(CallError::TimedOut(limit)),
    }
}

/// An object that was read, with its version.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) bytes: Bytes,
    pub(crate) version: UpdateVersion,
}

/// The outcome of a conditional write.
#[derive(Debug)]
pub(crate) enum Written {
    /// The object holds this write.
    Done(UpdateVersion),
    /// The object holds another write. `None` if an object was to be replaced and does not exist.
    Lost(Option<Found>),
}

/// The objects below a prefix.
#[derive(Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    prefix: ObjectPath,
    limits: CallLimits,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Objects").field(&self.store).field(&self.prefix).finish()
    }
}

impl Objects {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        multipart: Option<Arc<dyn MultipartStore>>,
        prefix: ObjectPath,
        limits: CallLimits,
    ) -> Self {
        Self { store, multipart, prefix, limits }
    }

    /// The same object store, if it accepts parts of an upload by number.
    pub(crate) fn multipart(&self) -> Option<&Arc<dyn MultipartStore>> {
        self.multipart.as_ref()
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    pub(crate) fn limits(&self) -> CallLimits {
        self.limits
    }

    /// The attempts of one call.
    pub(crate) fn attempts(&self) -> Attempts {
        Attempts::new(self.limits.attempts)
    }

    /// The path of the prefix.
    pub(crate) fn root(&self) -> &ObjectPath {
        &self.prefix
    }

    /// The full path of `relative`, which is below the prefix. Its parts are larder's own names.
    pub(crate) fn path(&self, relative: &str) -> ObjectPath {
        relative.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// The path of an object relative to the prefix. `None` if it is not below the prefix.
    pub(crate) fn relative<'a>(&self, path: &'a ObjectPath) -> Option<&'a str> {
        let rest = path.as_ref().strip_prefix(self.prefix.as_ref())?;
        Some(rest.strip_prefix('/').unwrap_or(rest))
    }

    /// Reads an object of up to `max_bytes`. `None` if it does not exist.
    pub(crate) async fn get(&self, path: &ObjectPath, max_bytes: u64) -> Result<Option<Found>> {
        let mut attempts = self.attempts();
        loop {
            match self.read_once(path, max_bytes).await {
                Ok(found) => return Ok(found),
                Err(ReadError::TooLarge(bytes)) => return Err(too_large(path, bytes, max_bytes)),
                Err(ReadError::Call(error)) if error.is_final() || !attempts.wait().await => {
                    return Err(TenantError::unavailable("an object can't be read", error));
                }
                Err(ReadError::Call(_)) => {}
            }
        }
    }

    async fn read_once(&self, path: &ObjectPath, max_bytes: u64) -> Result<Option<Found>, ReadError> {
        let limit = self.limits.call_timeout;
        let result = match timed(limit, self.store.get(path)).await {
            Ok(result) => result,
            Err(CallError::Store(StoreError::NotFound { .. })) => return Ok(None),
            Err(error) => return Err(ReadError::Call(error)),
        };
        let version = version_of(&result.meta);
        if result.meta.size > max_bytes {
            return Err(ReadError::TooLarge(result.meta.size));
        }
        let bytes = self.read_body(result, max_bytes).await?;
        Ok(Some(Found { bytes, version }))
    }

    async fn read_body(&self, result: GetResult, max_bytes: u64) -> Result<Bytes, ReadError> {
        let mut chunks = result.into_stream();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = timed(self.limits.call_timeout, chunks.try_next()).await? {
            // The size in the metadata is only a claim.
            let so_far = (bytes.len() + chunk.len()) as u64;
            if so_far > max_bytes {
                return Err(ReadError::TooLarge(so_far));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// When an object was written, by the clock of the object storage. `None` if it does not exist.
    pub(crate) async fn written_at(&self, path: &ObjectPath) -> Result<Option<UnixMillis>> {
        let mut attempts = self.attempts();
        loop {
            match timed(self.limits.call_timeout, self.store.head(path)).await {
                Ok(meta) => return Ok(Some(written_at(&meta))),
                Err(CallError::Store(StoreError::NotFound { .. })) => return Ok(None),
                Err(error) if error.is_final() || !attempts.wait().await => {
                    return Err(TenantError::unavailable("the metadata of an object can't be read", error));
                }
                Err(_) => {}
            }
        }
    }

    /// Creates an object that must not exist. `is_own` recognises the bytes of this write.
    pub(crate) async fn create(
        &self,
        path: &ObjectPath,
        bytes: Bytes,
        is_own: impl Fn(&[u8]) -> bool,
        max_bytes: u64,
    ) -> Result<Written> {
        self.write(path, bytes, None, is_own, max_bytes).await
    }

    /// Replaces an object if its version is still `base`. `is_own` recognises the bytes of this
    /// write.
    ///
    /// After an error, the write may still take effect later, while the version is `base`.
    pub(crate) async fn swap(
        &self,
        path: &ObjectPath,
        bytes: Bytes,
        base: &UpdateVersion,
        is_own: impl Fn(&[u8]) -> bool,
        max_bytes: u64,
    ) -> Result<Written> {
        self.write(path, bytes, Some(base), is_own, max_bytes).await
    }

    /// Repeats a conditional put until it is known whose bytes are stored. Every attempt sends the
    /// same bytes, so a late one does what this one would have done, or fails.
    async fn write(
        &self,
        path: &ObjectPath,
        bytes: Bytes,
        base: Option<&UpdateVersion>,
        is_own: impl Fn(&[u8]) -> bool,
        max_bytes: u64,
    ) -> Result<Written> {
        let mode = base.map_or(PutMode::Create, |version| PutMode::Update(version.clone()));
        let mut attempts = self.attempts();
        loop {
            let error = match self.put_once(path, bytes.clone(), mode.clone()).await {
                Ok(PutResult { e_tag: None, version: None, .. }) => None,
                Ok(result) => {
                    return Ok(Written::Done(UpdateVersion { e_tag: result.e_tag, version: result.version }));
                }
                Err(error) if error.is_final() => {
                    return Err(TenantError::unavailable("an object can't be written", error));
                }
                Err(error) => Some(error),
            };
            // A put that was done may be retried by the client and then refused, or it may return
            // an error. So only the stored object decides.
            let unsettled = match self.read_once(path, max_bytes).await {
                Ok(Some(found)) if is_own(&found.bytes) => return Ok(Written::Done(found.version)),
                Ok(Some(found)) if base != Some(&found.version) => return Ok(Written::Lost(Some(found))),
                Ok(Some(_)) => error,
                Ok(None) if base.is_some() => return Ok(Written::Lost(None)),
                Ok(None) => error,
                Err(ReadError::TooLarge(found)) => return Err(too_large(path, found, max_bytes)),
                Err(ReadError::Call(read)) => Some(read),
            };
            if !attempts.wait().await {
                let reason = "it is unknown whether an object was written".to_string();
                let cause = unsettled.map(|error| Arc::new(error) as larder_core::error::Cause);
                return Err(TenantError::Unavailable { reason, cause });
            }
        }
    }

    async fn put_once(&self, path: &ObjectPath, bytes: Bytes, mode: PutMode) -> Result<PutResult, CallError> {
        // Most writes are small, and a lease depends on their speed.
        let is_small = bytes.len() <= PART_BYTES / 8;
        let limit = if is_small { self.limits.call_timeout } else { self.limits.transfer_timeout };
        let options = PutOptions { mode, ..PutOptions::default() };
        timed(limit, self.store.put_opts(path, PutPayload::from(bytes), options)).await
    }

    /// Deletes an object. An object that does not exist counts as deleted.
    pub(crate) async fn delete(&self, path: &ObjectPath) -> Result<()> {
        let mut attempts = self.attempts();
        loop {
            match timed(self.limits.call_timeout, self.store.delete(path)).await {
                Ok(()) | Err(CallError::Store(StoreError::NotFound { .. })) => return Ok(()),
                Err(error) if error.is_final() || !attempts.wait().await => {
                    return Err(TenantError::unavailable("an object can't be deleted", error));
                }
                Err(_) => {}
            }
        }
    }

    /// Lists up to `max` objects below `folder` whose path is after `after`, in no particular
    /// order.
    pub(crate) async fn list(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        max: usize,
    ) -> Result<Vec<ObjectMeta>> {
        let mut attempts = self.attempts();
        loop {
            match self.list_once(folder, after, max).await {
                Ok(found) => return Ok(found),
                Err(error) if error.is_final() || !attempts.wait().await => {
                    return Err(TenantError::unavailable("objects can't be listed", error));
                }
                Err(_) => {}
            }
        }
    }

    /// Lists the folders directly below a folder, in no particular order.
    pub(crate) async fn folders(&self, folder: &ObjectPath) -> Result<Vec<ObjectPath>> {
        let folder = (!folder.is_root()).then_some(folder);
        let mut attempts = self.attempts();
        loop {
            let listed = self.store.list_with_delimiter(folder);
            match timed(self.limits.transfer_timeout, listed).await {
                Ok(found) => return Ok(found.common_prefixes),
                Err(error) if error.is_final() || !attempts.wait().await => {
                    return Err(TenantError::unavailable("objects can't be listed", error));
                }
                Err(_) => {}
            }
        }
    }

    async fn list_once(
        &self,
        folder: &ObjectPath,
        after: Option<&ObjectPath>,
        max: usize,
    ) -> Result<Vec<ObjectMeta>, CallError> {
        let folder = (!folder.is_root()).then_some(folder);
        let mut entries = match after {
            Some(after) => self.store.list_with_offset(folder, after),
            None => self.store.list(folder),
        };
        let mut found = Vec::new();
        while found.len() < max {
            match timed(self.limits.call_timeout, async { entries.next().await.transpose() }).await? {
                Some(meta) => found.push(meta),
                None => break,
            }
        }
        Ok(found)
    }
}

enum ReadError {
    TooLarge(u64),
    Call(CallError),
}

impl From<CallError> for ReadError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

fn too_large(path: &ObjectPath, bytes: u64, max_bytes: u64) -> TenantError {
    TenantError::corrupt(
        path,
        format!("an object has at least {bytes} bytes, and may have at most {max_bytes}"),
    )
}

/// When an object was written, by the clock of the object storage.
pub(crate) fn written_at(meta: &ObjectMeta) -> UnixMillis {
    UnixMillis::try_from(meta.last_modified.timestamp_millis()).unwrap_or_default()
}

pub(crate) fn version_of(meta: &ObjectMeta) -> UpdateVersion {
    UpdateVersion { e_tag: meta.e_tag.clone(), version: meta.version.clone() }
}
