//! A SQLite VFS for tests that fails calls on request and reports every change of a file.
//!
//! [`Disk::watch`] registers the VFS as the default of the process, on top of SQLite's own. It
//! passes every call on, fails the calls on one directory as [`Disk::arm`] says, and reports the
//! changes of its files to [`Disk::follow`]. Files elsewhere never fail, so tests can run in
//! parallel. All unsafe code of these tests is in this file.
//!
//! ```no_run
//! use larder_sqlite_vfs::{Call, Disk, Fault, Victim};
//!
//! let disk = Disk::watch("data".as_ref());
//! let code = rusqlite::ffi::SQLITE_IOERR_FSYNC;
//! let (call, victim) = (Call::Sync, Victim::Writer);
//! disk.arm(Some(Fault { call, victim, code, nth: 1, is_lasting: false }));
//! // Use a database in the directory, and then:
//! let (failed, _counts) = disk.disarm();
//! assert_eq!(failed, 1);
//! ```
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use rusqlite::ffi;

/// The name of SQLite's own VFS, for connections that must not fail.
pub const UNDERLYING: &CStr = c"unix";

/// A method of the VFS or of one of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `xOpen`.
    Open,
    /// `xAccess`.
    Access,
    /// `xDelete`.
    Delete,
    /// `xRead`.
    Read,
    /// `xWrite`.
    Write,
    /// `xSync`.
    Sync,
    /// `xTruncate`.
    Truncate,
    /// `xFileSize`.
    FileSize,
    /// `xLock`.
    Lock,
    /// `xCheckReservedLock`.
    CheckReservedLock,
    /// `xShmMap`.
    ShmMap,
    /// `xShmLock`.
    ShmLock,
}

/// The connection whose calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// A connection that has held the write lock, or tried to take it.
    Writer,
    /// Any other connection.
    Reader,
}

/// A fault of a single call, or of all calls from one on.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The call that fails.
    pub call: Call,
    /// The connection whose call fails.
    pub victim: Victim,
    /// The error code that the call returns.
    pub code: c_int,
    /// Which of the victim's calls fails, counted from 1.
    pub nth: usize,
    /// Whether all later calls fail as well.
    pub is_lasting: bool,
}

/// A change of a file that the file system has made.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    /// The file was opened, and created if it did not exist.
    Opened,
    /// These bytes were written at this offset.
    Written(u64, &'a [u8]),
    /// The file has this length in bytes.
    Truncated(u64),
    /// A sync of the file begins. Once it ends, all earlier changes of the file are on the disk.
    SyncBegins,
    /// The last sync of the file to begin has ended.
    SyncEnds,
    /// The file was removed. The directory has not been synced since.
    Removed,
}

/// How often each kind of call was made.
pub type Counts = BTreeMap<(Call, Victim), usize>;

/// The files of one directory.
pub struct Disk {
    state: Mutex<State>,
    changed: Condvar,
    /// Called each time that a writer has released the write lock.
    observer: OnceLock<Box<dyn Fn() + Send + Sync>>,
    follower: OnceLock<Follower>,
}

type Follower = Box<dyn Fn(&Path, Change<'_>) + Send + Sync>;

#[derive(Default)]
struct State {
    counts: Counts,
    fault: Option<Fault>,
    failed: usize,
    gate: Gate,
}

/// The gate at which a writer waits before it takes the write lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Gate {
    #[default]
    Open,
    Closed,
    Reached,
}

/// The longest that a test waits for another thread.
const WAIT_MAX: Duration = Duration::from_secs(30);

impl Disk {
    /// Watches the files of a directory, for as long as the result lives.
    ///
    /// # Panics
    /// If the directory does not exist.
    pub fn watch(folder: &Path) -> Arc<Self> {
        register();
        let disk = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            observer: OnceLock::new(),
            follower: OnceLock::new(),
        });
        let mut disks = lock(&DISKS);
        disks.retain(|_, disk| disk.strong_count() > 0);
        disks.insert(folder.canonicalize().unwrap(), Arc::downgrade(&disk));
        disk
    }

    /// Resets the counts, and fails calls as `fault` says.
    pub fn arm(&self, fault: Option<Fault>) {
        let mut state = lock(&self.state);
        (state.counts, state.fault, state.failed) = (Counts::new(), fault, 0);
    }

    /// Stops failing calls. Returns how many have failed, and how often each kind was made.
    pub fn disarm(&self) -> (usize, Counts) {
        let mut state = lock(&self.state);
        state.fault = None;
        (state.failed, std::mem::take(&mut state.counts))
    }

    /// Calls the observer each time that the write lock is released.
    ///
    /// That is after each commit. SQLite calls the observer, so it must not panic.
    pub fn observe(&self, observer: impl Fn() + Send + Sync + 'static) {
        drop(self.observer.set(Box::new(observer)));
    }

    /// Calls the follower for each change of a file of the directory.
    ///
    /// The changes of one file come in their order. SQLite calls the follower, so it must not
    /// panic.
    pub fn follow(&self, follower: impl Fn(&Path, Change<'_>) + Send + Sync + 'static) {
        drop(self.follower.set(Box::new(follower)));
    }

    fn tell(&self, file: &Path, change: Change<'_>) {
        if let Some(follower) = self.follower.get() {
            follower(file, change);
        }
    }

    /// Closes the gate: the next connection that takes the write lock waits.
    pub fn close_gate(&self) {
        lock(&self.state).gate = Gate::Closed;
    }

    /// Waits until a writer waits at the gate, or the gate is opened.
    ///
    /// Aborts the process after 30 s.
    pub fn wait_at_gate(&self) {
        self.wait_while(|gate| gate == Gate::Closed);
    }

    /// Opens the gate for the writer that waits.
    pub fn open_gate(&self) {
        lock(&self.state).gate = Gate::Open;
        self.changed.notify_all();
    }

    fn pass_gate(&self) {
        let mut state = lock(&self.state);
        if state.gate == Gate::Closed {
            state.gate = Gate::Reached;
            self.changed.notify_all();
        }
        drop(state);
        self.wait_while(|gate| gate == Gate::Reached);
    }

    fn wait_while(&self, condition: impl Fn(Gate) -> bool) {
        let state = lock(&self.state);
        let waited = self.changed.wait_timeout_while(state, WAIT_MAX, |state| condition(state.gate));
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(state);
        // A panic must not unwind through SQLite's frames.
        if timeout.timed_out() {
            eprintln!("timed out at the gate of the write lock, waiting for another thread");
            std::process::abort();
        }
    }

    /// The code that the call must return instead.
    fn failure(&self, call: Call, victim: Victim) -> Option<c_int> {
        let mut state = lock(&self.state);
        let count = state.counts.entry((call, victim)).or_default();
        *count += 1;
        let count = *count;
        let fault = state.fault.filter(|fault| (fault.call, fault.victim) == (call, victim))?;
        let fails = count == fault.nth || fault.is_lasting && count > fault.nth;
        state.failed += usize::from(fails);
        fails.then_some(fault.code)
    }
}

static DISKS: Mutex<BTreeMap<PathBuf, Weak<Disk>>> = Mutex::new(BTreeMap::new());

fn disk_of(name: *const c_char) -> Option<(Arc<Disk>, PathBuf)> {
    if name.is_null() {
        return None;
    }
    // SAFETY: SQLite passes names that end with NUL and stay valid during the call.
    let name = unsafe { CStr::from_ptr(name) };
    let file = Path::new(OsStr::from_bytes(name.to_bytes()));
    let disk = lock(&DISKS).get(file.parent()?).and_then(Weak::upgrade)?;
    Some((disk, file.to_path_buf()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this VFS knows about an open file.
struct Watched {
    disk: Arc<Disk>,
    path: PathBuf,
    /// Whether the connection has taken the write lock. Shared by the database and its log.
    has_written: Arc<AtomicBool>,
}

impl Watched {
    fn tell(&self, change: Change<'_>) {
        self.disk.tell(&self.path, change);
    }

    fn victim(&self) -> Victim {
        if self.has_written.load(Ordering::Relaxed) { Victim::Writer } else { Victim::Reader }
    }
}

/// An open file in the memory that SQLite provides. The file of the underlying VFS follows it.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    watched: *mut Watched,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    // Version 2 has no memory-mapped I/O, so every read is a call.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock_file),
    xUnlock: Some(unlock_file),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

fn register() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        // SAFETY: the underlying VFS lives as long as the process, and so does the leaked copy, of
        // which only the fields that are set here differ.
        unsafe {
            let underlying = ffi::sqlite3_vfs_find(UNDERLYING.as_ptr());
            let mut vfs = *underlying.as_ref().unwrap();
            vfs.szOsFile += c_int::try_from(size_of::<File>()).unwrap();
            vfs.pNext = std::ptr::null_mut();
            vfs.zName = c"faults".as_ptr();
            vfs.pAppData = underlying.cast();
            vfs.xOpen = Some(open);
            vfs.xAccess = Some(access);
            vfs.xDelete = Some(delete);
            vfs.xFullPathname = Some(full_pathname);
            let vfs = Box::leak(Box::new(vfs));
            assert_eq!(ffi::sqlite3_vfs_register(vfs, 1), ffi::SQLITE_OK);
        }
    });
}

/// The underlying VFS.
///
/// # Safety
/// `vfs` must be the one that [`register`] registered.
unsafe fn underlying(vfs: *mut ffi::sqlite3_vfs) -> *mut ffi::sqlite3_vfs {
    // SAFETY: `register` has set this field to the underlying VFS.
    unsafe { (*vfs).pAppData.cast() }
}

/// Calls a method of the underlying file.
macro_rules! below {
    ($file:expr, $method:ident $(, $argument:expr)*) => {{
        // SAFETY: SQLite calls this with a file that `open` opened. The underlying file follows it
        // in memory.
        unsafe {
            let real: *mut ffi::sqlite3_file = $file.cast::<File>().add(1).cast();
            match (*(*real).pMethods).$method {
                Some(method) => method(real $(, $argument)*),
                None => Default::default(),
            }
        }
    }};
}

fn watched<'a>(file: *mut ffi::sqlite3_file) -> Option<&'a Watched> {
    // SAFETY: SQLite calls this with a file that `open` opened, and not after `close`.
    unsafe { (*file.cast::<File>()).watched.as_ref() }
}

fn failure(file: *mut ffi::sqlite3_file, call: Call) -> Option<c_int> {
    let watched = watched(file)?;
    watched.disk.failure(call, watched.victim())
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let ours = file.cast::<File>();
    // SAFETY: SQLite provides `szOsFile` bytes of memory, and passes a name of its own for a log.
    unsafe {
        let base = ffi::sqlite3_file { pMethods: std::ptr::null() };
        ours.write(File { base, watched: std::ptr::null_mut() });
        let disk = disk_of(name);
        let has_written = if flags & ffi::SQLITE_OPEN_WAL == 0 {
            Arc::default()
        } else {
            let database = ffi::sqlite3_database_file_object(name);
            watched(database).map(|watched| watched.has_written.clone()).unwrap_or_default()
        };
        let watched = disk.map(|(disk, path)| Watched { disk, path, has_written });
        let failure = watched.as_ref().and_then(|watched| watched.disk.failure(Call::Open, watched.victim()));
        if let Some(code) = failure {
            return code;
        }
        let real: *mut ffi::sqlite3_file = ours.add(1).cast();
        let below = underlying(vfs);
        let code = (*below).xOpen.unwrap()(below, name, real, flags, out_flags);
        if !(*real).pMethods.is_null() {
            (*ours).base.pMethods = &raw const METHODS;
            if code == ffi::SQLITE_OK {
                watched.iter().for_each(|watched| watched.tell(Change::Opened));
            }
            (*ours).watched =
                watched.map_or(std::ptr::null_mut(), |watched| Box::into_raw(Box::new(watched)));
        }
        code
    }
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    if let Some(code) = disk_of(name).and_then(|(disk, _)| disk.failure(Call::Access, Victim::Reader)) {
        return code;
    }
    // SAFETY: the arguments are passed on as SQLite passed them.
    unsafe {
        let below = underlying(vfs);
        (*below).xAccess.unwrap()(below, name, flags, out)
    }
}

unsafe extern "C" fn delete(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    let disk = disk_of(name);
    if let Some(code) = disk.as_ref().and_then(|(disk, _)| disk.failure(Call::Delete, Victim::Reader)) {
        return code;
    }
    // SAFETY: the arguments are passed on as SQLite passed them.
    let code = unsafe {
        let below = underlying(vfs);
        (*below).xDelete.unwrap()(below, name, sync_folder)
    };
    if let (Some((disk, path)), ffi::SQLITE_OK) = (disk, code) {
        disk.tell(&path, Change::Removed);
    }
    code
}

unsafe extern "C" fn full_pathname(
    vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    bytes: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the arguments are passed on as SQLite passed them.
    unsafe {
        let below = underlying(vfs);
        (*below).xFullPathname.unwrap()(below, name, bytes, out)
    }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    let code = below!(file, xClose);
    // SAFETY: SQLite no longer uses the file. `open` allocated the memory.
    unsafe {
        let watched = std::mem::replace(&mut (*file.cast::<File>()).watched, std::ptr::null_mut());
        if !watched.is_null() {
            drop(Box::from_raw(watched));
        }
    }
    code
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    bytes: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    match failure(file, Call::Read) {
        None => below!(file, xRead, buffer, bytes, offset),
        Some(code) => {
            if code == ffi::SQLITE_IOERR_SHORT_READ {
                // SQLite expects the bytes after the end of a file as zeros.
                // SAFETY: the buffer has as many bytes as SQLite asks for.
                unsafe { buffer.cast::<u8>().write_bytes(0, bytes.unsigned_abs() as usize) };
            }
            code
        }
    }
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    bytes: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    match failure(file, Call::Write) {
        None => {
            let code = below!(file, xWrite, buffer, bytes, offset);
            if let (Some(watched), ffi::SQLITE_OK) = (watched(file), code) {
                // SAFETY: the buffer has as many bytes as SQLite writes.
                let bytes =
                    unsafe { std::slice::from_raw_parts(buffer.cast(), bytes.unsigned_abs() as usize) };
                watched.tell(Change::Written(offset.unsigned_abs(), bytes));
            }
            code
        }
        Some(code) => {
            // Half of the write arrives, as on a disk that becomes full.
            below!(file, xWrite, buffer, bytes / 2, offset);
            code
        }
    }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, bytes: ffi::sqlite3_int64) -> c_int {
    failure(file, Call::Truncate).unwrap_or_else(|| {
        let code = below!(file, xTruncate, bytes);
        if let (Some(watched), ffi::SQLITE_OK) = (watched(file), code) {
            watched.tell(Change::Truncated(bytes.unsigned_abs()));
        }
        code
    })
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    failure(file, Call::Sync).unwrap_or_else(|| {
        let watched = watched(file);
        watched.iter().for_each(|watched| watched.tell(Change::SyncBegins));
        let code = below!(file, xSync, flags);
        if code == ffi::SQLITE_OK {
            watched.iter().for_each(|watched| watched.tell(Change::SyncEnds));
        }
        code
    })
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, bytes: *mut ffi::sqlite3_int64) -> c_int {
    failure(file, Call::FileSize).unwrap_or_else(|| below!(file, xFileSize, bytes))
}

unsafe extern "C" fn lock_file(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    failure(file, Call::Lock).unwrap_or_else(|| below!(file, xLock, level))
}

/// Never fails, because SQLite ignores the result.
unsafe extern "C" fn unlock_file(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    below!(file, xUnlock, level)
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    failure(file, Call::CheckReservedLock).unwrap_or_else(|| below!(file, xCheckReservedLock, out))
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, operation: c_int, out: *mut c_void) -> c_int {
    below!(file, xFileControl, operation, out)
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    below!(file, xSectorSize)
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    below!(file, xDeviceCharacteristics)
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    bytes: c_int,
    extend: c_int,
    out: *mut *mut c_void,
) -> c_int {
    match failure(file, Call::ShmMap) {
        None => below!(file, xShmMap, region, bytes, extend, out),
        Some(code) => {
            // SAFETY: SQLite passes a valid pointer for one result.
            unsafe { *out = std::ptr::null_mut() };
            code
        }
    }
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    let is_write_lock = offset == 0 && flags & ffi::SQLITE_SHM_EXCLUSIVE != 0;
    if flags & ffi::SQLITE_SHM_UNLOCK != 0 {
        let code = below!(file, xShmLock, offset, count, flags);
        if let Some(observer) =
            watched(file).filter(|_| is_write_lock).and_then(|watched| watched.disk.observer.get())
        {
            observer();
        }
        return code;
    }
    if let Some(watched) = watched(file).filter(|_| is_write_lock) {
        watched.disk.pass_gate();
        watched.has_written.store(true, Ordering::Relaxed);
    }
    failure(file, Call::ShmLock).unwrap_or_else(|| below!(file, xShmLock, offset, count, flags))
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    below!(file, xShmBarrier);
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, is_deleted: c_int) -> c_int {
    below!(file, xShmUnmap, is_deleted)
}
