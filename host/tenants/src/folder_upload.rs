//! An upload in parts to a folder.

use std::io::{self, Seek, SeekFrom, Write};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::FutureExt;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, PutMode, PutPayload, PutResult, Result, UploadPart};

use crate::folder::{FolderStore, HEADER_BYTES, Unfinished, blocking, generic};

/// Parts are written to where they belong in one file, in any order.
pub(crate) struct FolderUpload {
    store: FolderStore,
    location: ObjectPath,
    /// None once it was completed or aborted.
    unfinished: Arc<Mutex<Option<Unfinished>>>,
    /// Where the next part begins.
    end: u64,
}

impl FolderUpload {
    pub(crate) fn new(store: FolderStore, location: ObjectPath, unfinished: Unfinished) -> Self {
        Self { store, location, unfinished: Arc::new(Mutex::new(Some(unfinished))), end: HEADER_BYTES }
    }

    fn take(&self) -> Option<Unfinished> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn over() -> object_store::Error {
    generic(io::Error::other("the upload was completed or aborted"))
}

fn write_part(unfinished: &Mutex<Option<Unfinished>>, offset: u64, part: &PutPayload) -> Result<()> {
    let mut unfinished = unfinished.lock().unwrap_or_else(PoisonError::into_inner);
    let file = &mut unfinished.as_mut().ok_or_else(over)?.file;
    file.seek(SeekFrom::Start(offset)).map_err(generic)?;
    part.iter().try_for_each(|bytes| file.write_all(bytes)).map_err(generic)
}

impl std::fmt::Debug for FolderUpload {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FolderUpload").field("location", &self.location).finish_non_exhaustive()
    }
}

#[async_trait]
impl MultipartUpload for FolderUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (unfinished, offset) = (self.unfinished.clone(), self.end);
        self.end += data.content_length() as u64;
        blocking(move || write_part(&unfinished, offset, &data)).boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let unfinished = self.take().ok_or_else(over)?;
        let (store, location) = (self.store.clone(), self.location.clone());
        blocking(move || store.finish(&location, unfinished, &PutMode::Overwrite)).await
    }

    async fn abort(&mut self) -> Result<()> {
        drop(self.take());
        Ok(())
    }
}
