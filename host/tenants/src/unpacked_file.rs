//! A database file that is written while its snapshot is decompressed, with limits on its size.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::disk_space;
use crate::error::{Result, TenantError};
use crate::key::TenantKey;

/// What is known of the size of a database file before it is decompressed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum FileSize {
    /// It has exactly this many bytes.
    Exact(u64),
    /// Its header has the size, which may be at most this many bytes.
    UpTo(u64),
}

/// The size of the header of a SQLite database.
const HEADER_BYTES: usize = 100;

/// File systems allocate blocks of this size or a multiple. A block of zeros becomes a hole.
const BLOCK_BYTES: usize = 4096;

/// The number of written bytes after which the free space is checked again.
const LOOK_BYTES: u64 = 16 << 20;

/// Writes and hashes a database file.
///
/// Nothing is written before the header has been compared with the expected size, and nothing
/// beyond that size. Blocks of zeros become holes.
pub(crate) struct UnpackedFile {
    key: TenantKey,
    file: File,
    folder: PathBuf,
    size: FileSize,
    /// The header, as far as it has been received.
    header: Vec<u8>,
    /// The size of the file. `None` until the header is complete.
    bytes: Option<u64>,
    position: u64,
    hash: Sha256,
    /// The bytes that were written since the free space was checked.
    written: u64,
    fault: Option<TenantError>,
}

impl UnpackedFile {
    pub(crate) fn create(key: &TenantKey, path: &Path, size: FileSize) -> Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Self {
            key: key.clone(),
            file: File::create(path).map_err(failed)?,
            folder: folder.to_path_buf(),
            size,
            header: Vec::with_capacity(HEADER_BYTES),
            bytes: None,
            position: 0,
            hash: Sha256::new(),
            written: 0,
            fault: None,
        })
    }

    /// Takes the reason why a write failed. `None` if the file was not the reason.
    pub(crate) fn take_fault(&mut self) -> Option<TenantError> {
        self.fault.take()
    }

    /// Syncs the file. Returns its size and its SHA-256.
    pub(crate) fn finish(self) -> Result<(u64, Vec<u8>)> {
        let Some(bytes) = self.bytes else { return Err(no_database(&self.key)) };
        let missing = bytes.saturating_sub(self.position);
        if missing > 0 {
            let reason = match self.size {
                FileSize::Exact(_) => format!("the snapshot is {missing} bytes shorter than the head says"),
                FileSize::UpTo(_) => format!("the snapshot is {missing} bytes shorter than its header says"),
            };
            return Err(TenantError::corrupt(&self.key, reason));
        }
        // The last block may be a hole.
        self.file.set_len(bytes).and_then(|()| self.file.sync_all()).map_err(failed)?;
        Ok((bytes, self.hash.finalize().to_vec()))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let (header, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES - self.header.len()));
        self.header.extend(header);
        if self.bytes.is_none() && self.header.len() == HEADER_BYTES {
            let bytes = self.check_header()?;
            disk_space::check(&self.folder, bytes)?;
            self.bytes = Some(bytes);
            let header = std::mem::take(&mut self.header);
            self.append(bytes, &header)?;
            self.header = header;
        }
        match self.bytes {
            Some(bytes) => self.append(bytes, rest),
            None => Ok(()),
        }
    }

    fn check_header(&self) -> Result<u64> {
        let bytes = database_bytes(&self.header).ok_or_else(|| no_database(&self.key))?;
        match self.size {
            FileSize::Exact(expected) if bytes != expected => {
                let reason = format!(
                    "the database has {bytes} bytes according to its header, but {expected} according to the head"
                );
                Err(TenantError::corrupt(&self.key, reason))
            }
            FileSize::UpTo(max_bytes) if bytes > max_bytes => Err(too_large(&self.key, bytes, max_bytes)),
            _ => Ok(bytes),
        }
    }

    fn append(&mut self, size: u64, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > size.saturating_sub(self.position) {
            let says = match self.size {
                FileSize::Exact(_) => "the head",
                FileSize::UpTo(_) => "its header",
            };
            return Err(TenantError::corrupt(&self.key, format!("the snapshot is longer than {says} says")));
        }
        self.hash.update(bytes);
        let (mut unwritten, mut at) = (0, 0);
        while at < bytes.len() {
            // Blocks are aligned to the beginning of the file.
            let in_block = usize::try_from((self.position + at as u64) % BLOCK_BYTES as u64).unwrap_or(0);
            let end = bytes.len().min(at + BLOCK_BYTES - in_block);
            if is_zero(bytes.get(at..end).unwrap_or_default()) {
                self.write_at(size, bytes, unwritten, at)?;
                unwritten = end;
            }
            at = end;
        }
        self.write_at(size, bytes, unwritten, at)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes a range of the appended bytes.
    fn write_at(&mut self, size: u64, bytes: &[u8], from: usize, to: usize) -> Result<()> {
        let range = bytes.get(from..to).unwrap_or_default();
        if range.is_empty() {
            return Ok(());
        }
        let offset = self.position + from as u64;
        self.written += range.len() as u64;
        if self.written >= LOOK_BYTES {
            disk_space::check(&self.folder, size.saturating_sub(offset))?;
            self.written = 0;
        }
        self.file.write_all_at(range, offset).map_err(failed)
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    ZEROS.starts_with(bytes)
}

fn failed(error: io::Error) -> TenantError {
    TenantError::file("a database file can't be written", error)
}

fn no_database(key: &TenantKey) -> TenantError {
    TenantError::corrupt(key, "the snapshot is not a SQLite database")
}

pub(crate) fn too_large(key: &TenantKey, bytes: u64, max_bytes: u64) -> TenantError {
    TenantError::corrupt(key, format!("the snapshot has {bytes} bytes, and max_database allows {max_bytes}"))
}

impl Write for UnpackedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.take(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(fault) => {
                self.fault = Some(fault);
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The size of a database according to its header. `None` if it is not a SQLite database, or the
/// size is not valid.
///
/// SQLite 3.7 and later store the number of pages. It is valid if the file change counter equals
/// the version-valid-for number.
fn database_bytes(header: &[u8]) -> Option<u64> {
    let number = |at: usize| {
        let bytes = header.get(at..)?.first_chunk()?;
        Some(u32::from_be_bytes(*bytes))
    };
    let page_bytes = match u16::from_be_bytes(*header.get(16..)?.first_chunk()?) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = number(28)?;
    let is_valid = header.starts_with(b"SQLite format 3\0")
        && page_bytes >= 512
        && page_bytes.is_power_of_two()
        && pages > 0
        && number(24)? == number(92)?;
    is_valid.then(|| page_bytes * u64::from(pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(page_bytes: u16, pages: u32) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[..16].copy_from_slice(b"SQLite format 3\0");
        header[16..18].copy_from_slice(&page_bytes.to_be_bytes());
        header[28..32].copy_from_slice(&pages.to_be_bytes());
        header
    }

    #[test]
    fn a_header_tells_the_size_of_the_database_or_is_refused() {
        assert_eq!(database_bytes(&header(4096, 3)), Some(12_288));
        assert_eq!(database_bytes(&header(1, 2)), Some(131_072));
        assert_eq!(database_bytes(&header(32_768, u32::MAX)), Some(32_768 * u64::from(u32::MAX)));
        for wrong in [header(0, 1), header(2, 1), header(256, 1), header(4097, 1), header(4096, 0)] {
            assert_eq!(database_bytes(&wrong), None);
        }
        let mut another = header(4096, 1);
        another[0] = b's';
        let mut uncounted = header(4096, 1);
        uncounted[27] = 1;
        for wrong in [&another, &uncounted, &header(4096, 1)[..95].to_vec(), &Vec::new()] {
            assert_eq!(database_bytes(wrong), None);
        }
    }

    #[test]
    fn every_way_to_cut_a_file_into_writes_gives_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut content = header(4096, 10);
        content.resize(40_960, 0);
        content[5_000] = 1;
        content[8_191] = 2;
        content[20_480..28_672].fill(3);
        let key = "acme/org".parse().unwrap();
        for cut in [1, 7, 99, 100, 101, 4_095, 4_096, 4_097, 10_000, 40_960] {
            let mut file = UnpackedFile::create(&key, &path, FileSize::Exact(40_960)).unwrap();
            for piece in content.chunks(cut) {
                file.write_all(piece).unwrap();
            }
            let (bytes, sha256) = file.finish().unwrap();
            assert_eq!((bytes, sha256.as_slice()), (40_960, Sha256::digest(&content).as_slice()), "{cut}");
            assert!(std::fs::read(&path).unwrap() == content, "{cut}");
        }
    }
}
