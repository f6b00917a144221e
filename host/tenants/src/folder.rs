//! An object store in a folder, with conditional puts.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyMode, CopyOptions, Error as StoreError, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::folder_upload::FolderUpload;
use crate::write_id::WriteId;

/// An object store in a folder, for development and single machines.
///
/// It honours `PutMode::Create` and `PutMode::Update` between processes. A writer of an object
/// holds a lock on a file that stands for the object, and the system releases the lock when the
/// process ends. An object is written to a temporary file, synced and renamed into place together
/// with its ETag. The ETag is random, so two writes of the same bytes have different ETags. A
/// reader never sees a partial object.
///
/// The store's own files are in `.larder`, and its objects begin with a header. Other programs can
/// list the objects, but should not write them. A file without the header counts as an empty
/// object, which larder then reports as damaged.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use larder_tenants::FolderStore;
/// use object_store::ObjectStoreExt;
///
/// # let folder = tempfile::tempdir()?;
/// let store = FolderStore::open(folder.path())?;
/// let path = object_store::path::Path::from("acme/note");
/// store.put(&path, "hello".into()).await?;
/// assert_eq!(store.get(&path).await?.bytes().await?, "hello");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct FolderStore {
    folder: Arc<PathBuf>,
}

/// The folder of the store's own files.
const OWN_FOLDER: &str = ".larder";
const MAGIC: &[u8; 8] = b"larder\0\x01";
pub(crate) const HEADER_BYTES: u64 = 24;
const LOCKS: u8 = 64;
const CHUNK_BYTES: u64 = 1 << 20;
const LIST_BATCH: usize = 1000;
/// The age from which unfinished files are removed.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

impl FolderStore {
    /// Opens a folder, and creates it if it does not exist.
    ///
    /// # Errors
    /// An I/O error if the folder cannot be created or read.
    pub fn open(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let store = Self::at(folder.into())?;
        for own in [store.temporary_folder(), store.lock_folder()] {
            make_folder(&own)?;
        }
        store.remove_stale_files()?;
        Ok(store)
    }

    /// Opens a folder that was opened before. Creates nothing.
    ///
    /// # Errors
    /// An error of kind [`NotFound`](io::ErrorKind::NotFound) if the folder does not exist or was
    /// never opened, and other I/O errors.
    pub fn open_existing(folder: impl Into<PathBuf>) -> io::Result<Self> {
        let store = Self::at(folder.into())?;
        for own in [store.temporary_folder(), store.lock_folder()] {
            fs::metadata(own)?;
        }
        Ok(store)
    }

    /// Resolves the folder against the current directory once, so a later change of directory has
    /// no effect.
    fn at(folder: PathBuf) -> io::Result<Self> {
        Ok(Self { folder: Arc::new(std::path::absolute(folder)?) })
    }

    pub(crate) fn temporary_folder(&self) -> PathBuf {
        self.folder.join(OWN_FOLDER).join("temporary")
    }

    fn lock_folder(&self) -> PathBuf {
        self.folder.join(OWN_FOLDER).join("locks")
    }

    /// Removes files that a killed process left. Younger files may belong to another process that
    /// is running.
    fn remove_stale_files(&self) -> io::Result<()> {
        let oldest = SystemTime::now().checked_sub(STALE_AFTER);
        for entry in fs::read_dir(self.temporary_folder())? {
            let entry = entry?;
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|modified| oldest.is_some_and(|oldest| modified < oldest)) {
                // Another process may have removed it first.
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(())
    }

    pub(crate) fn file_of(&self, location: &ObjectPath) -> Result<PathBuf> {
        let mut file = self.folder.as_ref().clone();
        for (index, part) in location.parts().enumerate() {
            if index == 0 && part.as_ref() == OWN_FOLDER {
                let source = format!("{OWN_FOLDER} belongs to the folder store").into();
                return Err(StoreError::NotSupported { source });
            }
            file.push(part.as_ref());
        }
        Ok(file)
    }

    /// Locks an object for a change. The lock is released when the file is closed, which includes
    /// the end of the process.
    fn lock(&self, location: &ObjectPath) -> Result<File> {
        let hash = Sha256::digest(location.as_ref().as_bytes());
        let number = hash.first().copied().unwrap_or_default() % LOCKS;
        let path = self.lock_folder().join(format!("{number:02}"));
        let lock = File::options().create(true).truncate(false).write(true).open(path).map_err(generic)?;
        lock.lock().map_err(generic)?;
        Ok(lock)
    }

    /// Starts the file of an object, with its header. It is removed on drop, unless it is finished.
    pub(crate) fn begin(&self) -> Result<Unfinished> {
        let mut file = NamedTempFile::new_in(self.temporary_folder()).map_err(generic)?;
        let write_id = WriteId::random();
        file.write_all(MAGIC).and_then(|()| file.write_all(&write_id.to_bytes())).map_err(generic)?;
        Ok(Unfinished { file, write_id })
    }

    /// Renames a written file into place, if the condition is met.
    pub(crate) fn finish(
        &self,
        location: &ObjectPath,
        unfinished: Unfinished,
        mode: &PutMode,
    ) -> Result<PutResult> {
        let Unfinished { file, write_id } = unfinished;
        let target = self.file_of(location)?;
        file.as_file().sync_all().map_err(generic)?;
        let _lock = self.lock(location)?;
        self.check(location, &target, mode)?;
        let parent = target.parent().unwrap_or(&self.folder).to_path_buf();
        make_folder(&parent).map_err(generic)?;
        file.persist(&target).map_err(|error| generic(error.error))?;
        sync_folder(&parent).map_err(generic)?;
        Ok(PutResult { e_tag: Some(e_tag(write_id)), version: None, extensions: Default::default() })
    }

    fn check(&self, location: &ObjectPath, target: &Path, mode: &PutMode) -> Result<()> {
        let found = match open(location, target) {
            Ok(opened) => Some(opened.meta),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let path = location.to_string();
        match (mode, found) {
            (PutMode::Overwrite, _) | (PutMode::Create, None) => Ok(()),
            (PutMode::Create, Some(_)) => {
                Err(StoreError::AlreadyExists { path, source: "an object with this name exists".into() })
            }
            (PutMode::Update(expected), Some(found)) if expected.e_tag == found.e_tag => Ok(()),
            (PutMode::Update(_), _) => Err(StoreError::Precondition {
                path,
                source: "the object does not exist, or its ETag differs".into(),
            }),
        }
    }

    fn put_blocking(&self, location: &ObjectPath, payload: &PutPayload, mode: &PutMode) -> Result<PutResult> {
        let mut unfinished = self.begin()?;
        for bytes in payload {
            unfinished.file.write_all(bytes).map_err(generic)?;
        }
        self.finish(location, unfinished, mode)
    }

    fn delete_blocking(&self, location: &ObjectPath) -> Result<()> {
        let target = self.file_of(location)?;
        let _lock = self.lock(location)?;
        match fs::remove_file(&target) {
            Ok(()) => sync_folder(target.parent().unwrap_or(&self.folder)).map_err(generic),
            // A part of its path is not a folder, so no such object exists.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(())
            }
            Err(error) => Err(generic(error)),
        }
    }

    fn list_from(
        &self,
        prefix: Option<&ObjectPath>,
        after: Option<ObjectPath>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let walk = self.file_of(&prefix).map(|folder| Walk::new(folder, prefix, after));
        let batches = futures_util::stream::try_unfold(walk, |walk| async move {
            let next = move || {
                let mut walk = walk?;
                let batch = walk.next_batch(LIST_BATCH)?;
                Ok((!batch.is_empty()).then_some((batch, Ok(walk))))
            };
            blocking(next).await
        });
        batches.map_ok(|batch| futures_util::stream::iter(batch.into_iter().map(Ok))).try_flatten().boxed()
    }
}

/// The unfinished file of an object.
pub(crate) struct Unfinished {
    pub(crate) file: NamedTempFile,
    write_id: WriteId,
}

struct Opened {
    file: File,
    meta: ObjectMeta,
}

fn open(location: &ObjectPath, path: &Path) -> Result<Opened> {
    let not_found = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            StoreError::NotFound { path: location.to_string(), source: Box::new(error) }
        }
        _ => generic(error),
    };
    let mut file = File::open(path).map_err(not_found)?;
    let metadata = file.metadata().map_err(generic)?;
    if metadata.is_dir() {
        let source = "the name is that of a folder of objects".into();
        return Err(StoreError::NotFound { path: location.to_string(), source });
    }
    let modified = metadata.modified().map_err(generic)?;
    let (size, e_tag) = match read_id(&mut file).map_err(generic)? {
        Some(id) => (metadata.len().saturating_sub(HEADER_BYTES), e_tag(id)),
        // A damaged object can be replaced, if it has not changed since.
        None => {
            let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            (0, format!("\"damaged-{}-{}\"", metadata.len(), since.as_nanos()))
        }
    };
    let last_modified = modified.into();
    let meta =
        ObjectMeta { location: location.clone(), last_modified, size, e_tag: Some(e_tag), version: None };
    Ok(Opened { file, meta })
}

/// Reads the id in the header of a file. `None` if the file is damaged, or another program wrote
/// it.
fn read_id(file: &mut File) -> io::Result<Option<WriteId>> {
    let (mut magic, mut id) = ([0; 8], [0; 16]);
    match file.read_exact(&mut magic).and_then(|()| file.read_exact(&mut id)) {
        Ok(()) if &magic == MAGIC => Ok(Some(WriteId::from_bytes(id))),
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn e_tag(write_id: WriteId) -> String {
    format!("\"{write_id}\"")
}

/// The chunks of an open object. A process that replaces the object leaves this file unchanged.
fn chunks(file: File, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    futures_util::stream::try_unfold((file, range), |(mut file, range)| async move {
        let bytes = CHUNK_BYTES.min(range.end.saturating_sub(range.start));
        if bytes == 0 {
            return Ok(None);
        }
        blocking(move || {
            let mut chunk = vec![0; usize::try_from(bytes).unwrap_or_default()];
            file.seek(SeekFrom::Start(HEADER_BYTES + range.start)).map_err(generic)?;
            file.read_exact(&mut chunk).map_err(generic)?;
            Ok(Some((Bytes::from(chunk), (file, range.start + bytes..range.end))))
        })
        .await
    })
    .boxed()
}

/// Walks a folder in the order of the objects' paths.
struct Walk {
    after: Option<ObjectPath>,
    /// The paths that are still to be visited, in reverse order.
    pending: Vec<(PathBuf, ObjectPath)>,
}

impl Walk {
    fn new(folder: PathBuf, prefix: ObjectPath, after: Option<ObjectPath>) -> Self {
        Self { after, pending: vec![(folder, prefix)] }
    }

    /// The objects directly in the folder, and the folders in it that contain objects.
    fn one_level(mut self) -> Result<ListResult> {
        let mut result =
            ListResult { common_prefixes: Vec::new(), objects: Vec::new(), extensions: Default::default() };
        if let Some((folder, location)) = self.pending.pop()
            && folder.is_dir()
        {
            self.enter(&folder, &location)?;
        }
        while let Some(child) = self.pending.pop() {
            let (is_folder, location) = (child.0.is_dir(), child.1.clone());
            let first = Self { after: None, pending: vec![child] }.next_batch(1)?;
            if is_folder && !first.is_empty() {
                result.common_prefixes.push(location);
            } else {
                result.objects.extend(first);
            }
        }
        Ok(result)
    }

    fn next_batch(&mut self, max: usize) -> Result<Vec<ObjectMeta>> {
        let mut batch = Vec::new();
        while batch.len() < max
            && let Some((file, location)) = self.pending.pop()
        {
            let metadata = match fs::symlink_metadata(&file) {
                Ok(metadata) => metadata,
                // It was deleted after its folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(generic(error)),
            };
            if metadata.is_dir() {
                self.enter(&file, &location)?;
            } else if self.after.as_ref().is_none_or(|after| location > *after) {
                let size = metadata.len().saturating_sub(HEADER_BYTES);
                let last_modified = metadata.modified().map_err(generic)?.into();
                batch.push(ObjectMeta { location, last_modified, size, e_tag: None, version: None });
            }
        }
        Ok(batch)
    }

    fn enter(&mut self, folder: &Path, location: &ObjectPath) -> Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(generic)? {
            let entry = entry.map_err(generic)?;
            let is_folder = entry.file_type().map_err(generic)?.is_dir();
            let Ok(name) = entry.file_name().into_string() else { continue };
            if location.is_root() && name == OWN_FOLDER {
                continue;
            }
            let Ok(child) = ObjectPath::parse(join(location.as_ref(), &name)) else { continue };
            // The paths of objects in a folder begin with its name and a slash, so `a.b` comes
            // before `a/b`.
            let order = if is_folder { format!("{child}/") } else { child.to_string() };
            if !(is_folder && self.is_over(&order)) {
                found.push((order, entry.path(), child));
            }
        }
        found.sort_unstable_by(|left, right| right.0.cmp(&left.0));
        self.pending.extend(found.into_iter().map(|(_, file, child)| (file, child)));
        Ok(())
    }

    /// Whether all paths with this prefix come before the requested ones.
    fn is_over(&self, beginning: &str) -> bool {
        self.after
            .as_ref()
            .is_some_and(|after| !after.as_ref().starts_with(beginning) && beginning < after.as_ref())
    }
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

/// Creates a folder and its parents durably.
fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        Err(error) => return Err(error),
    }
    sync_folder(parent.unwrap_or(Path::new(".")))
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    // On other systems a folder cannot be opened, and the journal of the file system keeps the
    // order.
    Ok(())
}

pub(crate) fn generic(error: io::Error) -> StoreError {
    StoreError::Generic { store: "FolderStore", source: Box::new(error) }
}

/// Runs blocking file operations on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Generic { store: "FolderStore", source: Box::new(error) }),
    }
}

impl std::fmt::Display for FolderStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "FolderStore({})", self.folder.display())
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let (store, location) = (self.clone(), location.clone());
        blocking(move || store.put_blocking(&location, &payload, &options.mode)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.file_of(location)?;
        let store = self.clone();
        let unfinished = blocking(move || store.begin()).await?;
        Ok(Box::new(FolderUpload::new(self.clone(), location.clone(), unfinished)))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let (path, opened_location) = (self.file_of(location)?, location.clone());
        let Opened { file, meta } = blocking(move || open(&opened_location, &path)).await?;
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range
                .as_range(meta.size)
                .map_err(|error| StoreError::Generic { store: "FolderStore", source: Box::new(error) })?,
            None => 0..meta.size,
        };
        let read = if options.head { 0..0 } else { range.clone() };
        Ok(GetResult {
            payload: GetResultPayload::Stream(chunks(file, read)),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        let store = self.clone();
        locations
            .and_then(move |location| {
                let store = store.clone();
                blocking(move || store.delete_blocking(&location).map(|()| location))
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_from(prefix, None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&ObjectPath>,
        offset: &ObjectPath,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.list_from(prefix, Some(offset.clone()))
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        let prefix = prefix.cloned().unwrap_or_default();
        let folder = self.file_of(&prefix)?;
        blocking(move || Walk::new(folder, prefix, None).one_level()).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        let bytes = self.get_opts(from, GetOptions::default()).await?.bytes().await?;
        let mode = match options.mode {
            CopyMode::Overwrite => PutMode::Overwrite,
            CopyMode::Create => PutMode::Create,
        };
        self.put_opts(to, bytes.into(), PutOptions { mode, ..PutOptions::default() }).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, UpdateVersion};

    use super::*;

    fn path(text: &str) -> ObjectPath {
        ObjectPath::parse(text).unwrap()
    }

    fn store() -> (tempfile::TempDir, FolderStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = FolderStore::open(folder.path()).unwrap();
        (folder, store)
    }

    async fn read(store: &FolderStore, location: &str) -> Vec<u8> {
        store.get(&path(location)).await.unwrap().bytes().await.unwrap().to_vec()
    }

    fn update(result: &PutResult) -> PutOptions {
        let version = UpdateVersion { e_tag: result.e_tag.clone(), version: None };
        PutOptions { mode: PutMode::Update(version), ..PutOptions::default() }
    }

    fn create() -> PutOptions {
        PutOptions { mode: PutMode::Create, ..PutOptions::default() }
    }

    #[tokio::test]
    async fn conditions_are_honoured_and_equal_bytes_have_another_e_tag() {
        let (_folder, store) = store();
        let object = path("a/b/c");
        let first = store.put_opts(&object, "x".into(), create()).await.unwrap();
        let again = store.put_opts(&object, "y".into(), create()).await;
        assert!(matches!(again, Err(StoreError::AlreadyExists { .. })));
        let second = store.put_opts(&object, "x".into(), update(&first)).await.unwrap();
        assert_ne!(first.e_tag, second.e_tag);
        let stale = store.put_opts(&object, "z".into(), update(&first)).await;
        assert!(matches!(stale, Err(StoreError::Precondition { .. })));
        let missing = store.put_opts(&path("a/b/d"), "z".into(), update(&first)).await;
        assert!(matches!(missing, Err(StoreError::Precondition { .. })));
        assert_eq!(read(&store, "a/b/c").await, b"x");
        store.delete(&object).await.unwrap();
        store.delete(&object).await.unwrap();
        assert!(matches!(store.get(&object).await, Err(StoreError::NotFound { .. })));
        assert!(matches!(store.get(&path("a/b")).await, Err(StoreError::NotFound { .. })));
    }

    #[tokio::test]
    async fn lists_are_in_the_order_of_paths_and_hold_no_file_of_its_own() {
        let (folder, store) = store();
        for location in ["a/b", "a.b", "a0", "b/c/d", "b/c/e", "b/d"] {
            store.put(&path(location), location.to_string().into()).await.unwrap();
        }
        fs::write(folder.path().join(".larder/temporary/left"), b"half of an unfinished object").unwrap();
        let names =
            |entries: Vec<ObjectMeta>| entries.into_iter().map(|meta| meta.location.to_string()).collect();
        let listed: Vec<String> = names(store.list(None).try_collect().await.unwrap());
        assert_eq!(listed, ["a.b", "a/b", "a0", "b/c/d", "b/c/e", "b/d"]);
        for (index, offset) in listed.iter().enumerate() {
            let rest = store.list_with_offset(None, &path(offset)).try_collect().await.unwrap();
            let rest: Vec<String> = names(rest);
            assert_eq!(rest, listed[index + 1..], "after {offset}");
        }
        let below: Vec<String> = names(store.list(Some(&path("b/c"))).try_collect().await.unwrap());
        assert_eq!(below, ["b/c/d", "b/c/e"]);
        let none: Vec<ObjectMeta> = store.list(Some(&path("nothing"))).try_collect().await.unwrap();
        assert!(none.is_empty());
        let top = store.list_with_delimiter(None).await.unwrap();
        assert_eq!(top.common_prefixes, [path("a"), path("b")]);
        assert_eq!(names(top.objects), ["a.b".to_string(), "a0".to_string()] as [String; 2]);
    }

    #[tokio::test]
    async fn parts_become_one_object_once_they_are_complete() {
        let (folder, store) = store();
        let mut upload = store.put_multipart(&path("big")).await.unwrap();
        let first = upload.put_part(vec![1; 3 << 20].into());
        let second = upload.put_part(vec![2; 10].into());
        second.await.unwrap();
        first.await.unwrap();
        assert!(matches!(store.head(&path("big")).await, Err(StoreError::NotFound { .. })));
        upload.complete().await.unwrap();
        let bytes = read(&store, "big").await;
        assert_eq!((bytes.len(), bytes[0], bytes[3 << 20]), ((3 << 20) + 10, 1, 2));
        let range = store.get_range(&path("big"), (3 << 20) - 1..(3 << 20) + 1).await.unwrap();
        assert_eq!(range.as_ref(), [1, 2]);
        let mut aborted = store.put_multipart(&path("other")).await.unwrap();
        aborted.put_part("x".into()).await.unwrap();
        aborted.abort().await.unwrap();
        drop(aborted);
        assert_eq!(fs::read_dir(folder.path().join(".larder/temporary")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn parts_that_have_numbers_come_in_any_order_and_again() {
        use object_store::multipart::MultipartStore;

        let (folder, store) = store();
        let temporary = || fs::read_dir(folder.path().join(".larder/temporary")).unwrap().count();
        let object = path("big");
        let id = store.create_multipart(&object).await.unwrap();
        let mut parts = Vec::new();
        for (index, content) in [(1, "b"), (0, "wrong"), (2, "c"), (0, "a")] {
            let part = store.put_part(&object, &id, index, content.into()).await.unwrap();
            parts.push((index, part));
        }
        parts.remove(1);
        parts.sort_by_key(|(index, _)| *index);
        let parts: Vec<_> = parts.into_iter().map(|(_, part)| part).collect();
        assert!(matches!(store.head(&object).await, Err(StoreError::NotFound { .. })));
        let done = store.complete_multipart(&object, &id, parts.clone()).await.unwrap();
        assert_eq!(read(&store, "big").await, b"abc");
        assert_eq!(store.head(&object).await.unwrap().e_tag, done.e_tag);
        assert_eq!(temporary(), 0);
        store.complete_multipart(&object, &id, parts).await.unwrap_err();
        assert_eq!(read(&store, "big").await, b"abc");

        let id = store.create_multipart(&object).await.unwrap();
        let part = store.put_part(&object, &id, 1, "b".into()).await.unwrap();
        store.complete_multipart(&object, &id, vec![part.clone(), part]).await.unwrap_err();
        store.abort_multipart(&object, &id).await.unwrap();
        store.abort_multipart(&object, &id).await.unwrap();
        store.put_part(&object, &id, 0, "late".into()).await.unwrap_err();
        for id in ["../../big", "", "0"] {
            store.put_part(&object, &id.to_string(), 0, "x".into()).await.unwrap_err();
        }
        assert_eq!((temporary(), read(&store, "big").await.as_slice()), (0, &b"abc"[..]));
    }

    #[tokio::test]
    async fn a_file_that_is_no_object_is_an_empty_one_and_its_own_folder_is_out_of_reach() {
        let (folder, store) = store();
        for content in [&b"something that another program put here"[..], b"larder", b""] {
            fs::write(folder.path().join("foreign"), content).unwrap();
            let found = store.get(&path("foreign")).await.unwrap();
            let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: None };
            assert_eq!(found.bytes().await.unwrap().len(), 0);
            let replace = PutOptions::from(PutMode::Update(version));
            store.put_opts(&path("foreign"), "replaced".into(), replace.clone()).await.unwrap();
            assert_eq!(read(&store, "foreign").await, b"replaced");
            let again = store.put_opts(&path("foreign"), "again".into(), replace).await;
            assert!(matches!(again, Err(StoreError::Precondition { .. })));
        }
        let own = store.put(&path(".larder/locks/00"), "x".into()).await;
        assert!(matches!(own, Err(StoreError::NotSupported { .. })));
    }
}
