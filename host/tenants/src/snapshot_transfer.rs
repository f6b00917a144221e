//! Transfers database files to and from object storage.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, ObjectStoreExt};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::blocking::blocking;
use crate::disk_space;
use crate::error::{Result, TenantError};
use crate::head::SnapshotRef;
use crate::key::TenantKey;
use crate::objects::{CallError, Objects, PART_BYTES, Written, timed};
use crate::parts;
use crate::unpacked_file::{FileSize, UnpackedFile, too_large};

const COMPRESSION: i32 = 3;
const READ_BYTES: usize = 256 << 10;

/// The most chunks that wait for the thread that decompresses them.
const WAITING_CHUNKS: usize = 4;

/// A compressed database file. Its file is removed on drop.
pub(crate) struct Packed {
    file: NamedTempFile,
    pub(crate) bytes: u64,
    pub(crate) compressed_bytes: u64,
    pub(crate) sha256: String,
}

/// Compresses a file into a temporary file beside it.
pub(crate) async fn pack(file: &Path, max_bytes: u64) -> Result<Packed> {
    let file = file.to_path_buf();
    blocking(move || pack_blocking(&file, max_bytes)).await
}

fn pack_blocking(path: &Path, max_bytes: u64) -> Result<Packed> {
    let failed = |error| TenantError::file("a database file can't be compressed", error);
    let mut source = File::open(path).map_err(failed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::Builder::new().prefix(".larder-upload-").tempfile_in(folder).map_err(failed)?;
    let mut encoder = zstd::stream::write::Encoder::new(file, COMPRESSION).map_err(failed)?;
    let (mut hash, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; READ_BYTES]);
    loop {
        let read = match source.read(&mut buffer) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let chunk = buffer.get(..read).unwrap_or_default();
        if chunk.is_empty() {
            break;
        }
        bytes += chunk.len() as u64;
        if bytes > max_bytes {
            return Err(TenantError::invalid_argument(format!(
                "a database may have at most {max_bytes} bytes"
            )));
        }
        hash.update(chunk);
        encoder.write_all(chunk).map_err(failed)?;
    }
    if bytes == 0 {
        return Err(TenantError::invalid_argument("an empty file is not a database"));
    }
    let file = encoder.finish().map_err(failed)?;
    let compressed_bytes = file.as_file().metadata().map_err(failed)?.len();
    Ok(Packed { file, bytes, compressed_bytes, sha256: hex::encode(hash.finalize()) })
}

/// Uploads a compressed file to a name that no other upload uses. An object that exists there is
/// this file.
pub(crate) async fn upload(objects: &Objects, path: &ObjectPath, packed: &Packed) -> Result<()> {
    let handle =
        packed.file.reopen().map_err(|error| TenantError::file("a file can't be read again", error))?;
    if packed.compressed_bytes <= PART_BYTES as u64 {
        let bytes = read_all(handle, packed.compressed_bytes).await?;
        let own = bytes.clone();
        return match objects.create(path, bytes, move |found| found == own, PART_BYTES as u64).await? {
            Written::Done(_) => Ok(()),
            Written::Lost(_) => {
                Err(TenantError::corrupt(path, "the unique name of an upload has another object"))
            }
        };
    }
    parts::upload(objects, path, handle, packed.compressed_bytes).await
}

async fn read_all(mut file: File, length: u64) -> Result<Bytes> {
    blocking(move || {
        let failed = |error| TenantError::file("a compressed file can't be read", error);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(PART_BYTES).min(PART_BYTES)];
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes.into())
    })
    .await
}

/// Why a transfer failed.
pub(crate) enum TransferError {
    Call(CallError),
    Tenant(TenantError),
}

impl From<CallError> for TransferError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<TenantError> for TransferError {
    fn from(error: TenantError) -> Self {
        Self::Tenant(error)
    }
}

/// What is known of a snapshot before it is downloaded.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// The SHA-256 of the database file, in hexadecimal.
    pub(crate) sha256: String,
    /// The size of the object, in bytes.
    pub(crate) compressed_bytes: u64,
    /// The maximum size of the database file, in bytes.
    pub(crate) max_bytes: u64,
    /// Whether the database file has exactly that size.
    pub(crate) is_exact: bool,
}

impl Expected {
    fn size(&self) -> FileSize {
        if self.is_exact { FileSize::Exact(self.max_bytes) } else { FileSize::UpTo(self.max_bytes) }
    }

    /// The bytes that are certain to be written.
    fn least_bytes(&self) -> u64 {
        match self.size() {
            FileSize::Exact(bytes) => bytes,
            FileSize::UpTo(_) => 0,
        }
    }
}

/// Downloads a snapshot that a head names; see `Remote::fetch`.
pub(crate) async fn fetch(
    objects: &Objects,
    key: &TenantKey,
    path: &ObjectPath,
    snapshot: &SnapshotRef,
    into: &Path,
    max_bytes: u64,
) -> Result<()> {
    if snapshot.bytes > max_bytes {
        return Err(too_large(key, snapshot.bytes, max_bytes));
    }
    let SnapshotRef { bytes, compressed_bytes, sha256, .. } = snapshot.clone();
    let expected = Expected { sha256, compressed_bytes, max_bytes: bytes, is_exact: true };
    fetch_expected(objects, key, path, &expected, into).await.map(drop)
}

/// Downloads a snapshot. Returns the size of the database file.
pub(crate) async fn fetch_expected(
    objects: &Objects,
    key: &TenantKey,
    path: &ObjectPath,
    expected: &Expected,
    into: &Path,
) -> Result<u64> {
    let folder = into.parent().map(Path::to_path_buf).unwrap_or_default();
    let needed = expected.least_bytes();
    blocking(move || disk_space::check(&folder, needed)).await?;
    let guard = PartialFile { path: Some(into.to_path_buf()) };
    let mut attempts = objects.attempts();
    loop {
        match fetch_once(objects, key, path, expected, into).await {
            Ok(bytes) => {
                guard.keep();
                return Ok(bytes);
            }
            Err(TransferError::Tenant(error)) => return Err(error),
            Err(TransferError::Call(CallError::Store(StoreError::NotFound { .. }))) => {
                return Err(TenantError::corrupt(key, "the snapshot that the head names is missing"));
            }
            Err(TransferError::Call(error)) => {
                if !attempts.wait().await {
                    return Err(TenantError::unavailable("a snapshot can't be downloaded", error));
                }
            }
        }
    }
}

/// Removes an incomplete file, even if the download's future is dropped.
struct PartialFile {
    path: Option<std::path::PathBuf>,
}

impl PartialFile {
    fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            // It may not exist.
            drop(std::fs::remove_file(path));
        }
    }
}

async fn fetch_once(
    objects: &Objects,
    key: &TenantKey,
    path: &ObjectPath,
    expected: &Expected,
    into: &Path,
) -> Result<u64, TransferError> {
    let limit = objects.limits().transfer_timeout;
    let result = timed(limit, objects.store().get(path)).await?;
    if result.meta.size != expected.compressed_bytes {
        let (found, expected) = (result.meta.size, expected.compressed_bytes);
        let reason = format!("the snapshot's object has {found} bytes, but {expected} according to the head");
        return Err(TenantError::corrupt(key, reason).into());
    }
    let (sender, receiver) = mpsc::channel::<Bytes>(WAITING_CHUNKS);
    let (key, expected, into) = (key.clone(), expected.clone(), into.to_path_buf());
    let unpacking = tokio::task::spawn_blocking(move || unpack(&key, &expected, &into, receiver));
    let mut chunks = result.into_stream();
    let received = loop {
        match timed(limit, chunks.try_next()).await {
            Ok(Some(chunk)) => {
                // The thread ends early if it finds a fault, which it returns.
                if sender.send(chunk).await.is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(sender);
    let unpacked =
        unpacking.await.map_err(|error| TenantError::file("the work on a snapshot was cancelled", error))?;
    // A download that broke off says nothing about the object.
    received?;
    Ok(unpacked?)
}

fn unpack(
    key: &TenantKey,
    expected: &Expected,
    into: &Path,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<u64> {
    let output = UnpackedFile::create(key, into, expected.size())?;
    let failed = |error| TenantError::file("a database file can't be written", error);
    let mut decoder = zstd::stream::write::Decoder::new(output).map_err(failed)?;
    // If the file had no fault, the bytes are not valid zstd.
    let fault_of = |file: &mut UnpackedFile| {
        let not_zstd = || TenantError::corrupt(key, "the snapshot can't be decompressed");
        file.take_fault().unwrap_or_else(not_zstd)
    };
    while let Some(chunk) = chunks.blocking_recv() {
        if decoder.write_all(&chunk).is_err() {
            return Err(fault_of(decoder.get_mut()));
        }
    }
    if decoder.flush().is_err() {
        return Err(fault_of(decoder.get_mut()));
    }
    let (bytes, sha256) = decoder.into_inner().finish()?;
    if hex::encode(sha256) != expected.sha256 {
        return Err(TenantError::corrupt(key, "the hash of the snapshot differs from that in the head"));
    }
    Ok(bytes)
}
