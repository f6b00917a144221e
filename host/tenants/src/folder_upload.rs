//! Multipart uploads to a folder.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{MultipartId, MultipartUpload, PutMode, PutPayload, PutResult, Result, UploadPart};
use parking_lot::Mutex;
use tempfile::NamedTempFile;

use crate::folder::{FolderStore, HEADER_BYTES, Unfinished, blocking, generic};
use crate::write_id::WriteId;

/// A multipart upload in order. Each part is written at its offset in one file.
pub(crate) struct FolderUpload {
    store: FolderStore,
    location: ObjectPath,
    /// `None` once the upload is complete or aborted.
    unfinished: Arc<Mutex<Option<Unfinished>>>,
    /// The offset of the next part.
    end: u64,
}

impl FolderUpload {
    pub(crate) fn new(store: FolderStore, location: ObjectPath, unfinished: Unfinished) -> Self {
        Self { store, location, unfinished: Arc::new(Mutex::new(Some(unfinished))), end: HEADER_BYTES }
    }

    fn take(&self) -> Option<Unfinished> {
        self.unfinished.lock().take()
    }
}

fn over() -> object_store::Error {
    generic(io::Error::other("the upload is already completed or aborted"))
}

fn write_part(unfinished: &Mutex<Option<Unfinished>>, offset: u64, part: &PutPayload) -> Result<()> {
    let mut unfinished = unfinished.lock();
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

/// The files of one upload of numbered parts: an empty file that stands for the upload, and one for
/// each part. Those of an upload that is never completed are removed with the other stale files.
struct PartFiles {
    store: FolderStore,
    id: WriteId,
}

impl PartFiles {
    fn new(store: &FolderStore, id: &str) -> Result<Self> {
        Ok(Self { store: store.clone(), id: WriteId::parse(id).ok_or_else(over)? })
    }

    fn upload(&self) -> PathBuf {
        self.store.temporary_folder().join(format!("{}.upload", self.id))
    }

    fn part(&self, index: usize) -> PathBuf {
        self.store.temporary_folder().join(format!("{}.{index}", self.id))
    }

    fn check_begun(&self) -> Result<()> {
        if self.upload().try_exists().map_err(generic)? { Ok(()) } else { Err(over()) }
    }

    /// Writes a part atomically.
    fn put(&self, index: usize, data: &PutPayload) -> Result<()> {
        self.check_begun()?;
        let mut file = NamedTempFile::new_in(self.store.temporary_folder()).map_err(generic)?;
        data.iter().try_for_each(|bytes| file.write_all(bytes)).map_err(generic)?;
        file.persist(self.part(index)).map_err(|error| generic(error.error))?;
        Ok(())
    }

    fn complete(&self, location: &ObjectPath, parts: usize) -> Result<PutResult> {
        self.check_begun()?;
        let mut unfinished = self.store.begin()?;
        for index in 0..parts {
            let mut part = File::open(self.part(index)).map_err(generic)?;
            io::copy(&mut part, unfinished.file.as_file_mut()).map_err(generic)?;
        }
        let result = self.store.finish(location, unfinished, &PutMode::Overwrite)?;
        // The object exists, so files that stay are stale.
        drop(self.remove());
        Ok(result)
    }

    fn remove(&self) -> io::Result<()> {
        let own = format!("{}.", self.id);
        for entry in fs::read_dir(self.store.temporary_folder())? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(own.as_bytes()) {
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl MultipartStore for FolderStore {
    async fn create_multipart(&self, path: &ObjectPath) -> Result<MultipartId> {
        self.file_of(path)?;
        let files = PartFiles { store: self.clone(), id: WriteId::random() };
        blocking(move || {
            File::create_new(files.upload()).map_err(generic)?;
            Ok(files.id.to_string())
        })
        .await
    }

    async fn put_part(
        &self,
        _: &ObjectPath,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let files = PartFiles::new(self, id)?;
        blocking(move || files.put(part_idx, &data)).await?;
        Ok(PartId { content_id: part_idx.to_string() })
    }

    async fn complete_multipart(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let (files, path) = (PartFiles::new(self, id)?, path.clone());
        blocking(move || files.complete(&path, parts.len())).await
    }

    async fn abort_multipart(&self, _: &ObjectPath, id: &MultipartId) -> Result<()> {
        let files = PartFiles::new(self, id)?;
        blocking(move || files.remove().map_err(generic)).await
    }
}
