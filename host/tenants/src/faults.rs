//! Injects faults into object stores and cache folders, for tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use larder_core::clock::{Clock, MovableClock, UnixMillis};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error as StoreError, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::disk_space::DiskSpace;
use crate::objects::written_at;

/// An operation of an object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// A put, with or without a condition.
    Put,
    /// The start of a multipart upload.
    Multipart,
    /// A part of a multipart upload.
    Part,
    /// The completion of a multipart upload.
    Complete,
    /// The abort of a multipart upload.
    Abort,
    /// A read.
    Get,
    /// The deletion of one object.
    Delete,
    /// A listing.
    List,
    /// A copy.
    Copy,
}

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call is not done, and returns an error.
    Fail,
    /// The call is not done, and never returns.
    Hang,
    /// The call is done, but returns an error.
    LoseAnswer,
    /// The call is done, but never returns.
    HangAfter,
    /// The call is done, but reports that its condition was not met.
    DenyOwnSuccess,
    /// The call returns an error, and is done after this time.
    DoneLate(Duration),
    /// The call is done after this time, and then returns.
    Delay(Duration),
}

/// Which calls fail, and how.
#[derive(Clone, Debug)]
pub struct Rule {
    operation: Operation,
    path_part: String,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// The next call of `operation` on a path that contains `path_part` fails.
    pub fn next(operation: Operation, path_part: impl Into<String>, fault: Fault) -> Self {
        Self { operation, path_part: path_part.into(), skip: 0, times: 1, fault }
    }

    /// Lets `skip` matching calls succeed first.
    pub fn after(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// Makes `times` matching calls fail instead of one.
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    faults: u64,
    calls: BTreeMap<Operation, u64>,
    /// The parts in flight, and their maximum so far.
    parts: u64,
    most_parts: u64,
    /// Multipart uploads that were started, and neither completed nor aborted.
    unfinished: u64,
    is_down: bool,
    random: Option<(fastrand::Rng, f64, Vec<Fault>)>,
    clock: Option<Arc<MovableClock>>,
    /// When objects were written, by `clock`.
    written: BTreeMap<ObjectPath, UnixMillis>,
}

impl State {
    fn note_written(&mut self, path: &ObjectPath) {
        if let Some(clock) = &self.clock {
            self.written.insert(path.clone(), clock.unix_millis());
        }
    }

    /// Sets the time of an object to that of its write.
    fn set_time(&self, meta: &mut ObjectMeta) {
        let Some(written) = self.written.get(&meta.location) else { return };
        let found = written_at(meta);
        meta.last_modified += Duration::from_millis(written.saturating_sub(found));
        meta.last_modified -= Duration::from_millis(found.saturating_sub(*written));
    }
}

/// An object store that passes calls on to another one, unless a [`Rule`] applies.
///
/// Clones share their rules.
#[derive(Clone)]
pub struct FaultyStore {
    store: Arc<dyn ObjectStore>,
    multipart: Option<Arc<dyn MultipartStore>>,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for FaultyStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("FaultyStore").field(&self.store).finish()
    }
}

impl FaultyStore {
    /// Wraps a store, without any rule.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, multipart: None, state: Arc::default() }
    }

    /// Wraps a store that accepts parts of an upload by number, without any rule.
    pub fn with_parts(store: Arc<impl ObjectStore + MultipartStore>) -> Self {
        Self { multipart: Some(store.clone()), ..Self::new(store) }
    }

    /// Wraps the same store with rules and counters of its own.
    ///
    /// It stands for another host's access to the store.
    pub fn another(&self) -> Self {
        Self { multipart: self.multipart.clone(), ..Self::new(self.store.clone()) }
    }

    /// Makes the store give objects the times of a clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<MovableClock>) -> Self {
        self.state().clock = Some(clock);
        self
    }

    /// Adds a rule.
    ///
    /// Rules that match the same call apply in the order in which they were added.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// Removes all rules, and stops random faults.
    pub fn clear(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.random = None;
    }

    /// Makes every call fail while `is_down` is `true`.
    pub fn set_down(&self, is_down: bool) {
        self.state().is_down = is_down;
    }

    /// Makes a share of the calls fail at random, reproducibly for the same `seed`.
    pub fn fail_at_random(&self, seed: u64, share: f64, faults: &[Fault]) {
        self.state().random = Some((fastrand::Rng::with_seed(seed), share, faults.to_vec()));
    }

    /// How often an operation was called.
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state().calls.get(&operation).copied().unwrap_or(0)
    }

    /// The most parts of uploads that were ever in flight at once.
    pub fn parts_at_once(&self) -> u64 {
        self.state().most_parts
    }

    /// The number of multipart uploads that were started, and neither completed nor aborted.
    pub fn unfinished_uploads(&self) -> u64 {
        self.state().unfinished
    }

    /// How many calls failed because of a rule.
    pub fn faults(&self) -> u64 {
        self.state().faults
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn fault(&self, operation: Operation, path: &str) -> Option<Fault> {
        let mut state = self.state();
        *state.calls.entry(operation).or_default() += 1;
        if state.is_down {
            return Some(Fault::Fail);
        }
        let matching = |rule: &Rule| rule.operation == operation && path.contains(&rule.path_part);
        if let Some(rule) = state.rules.iter_mut().find(|rule| matching(rule)) {
            if let Some(skip) = rule.skip.checked_sub(1) {
                rule.skip = skip;
                return None;
            }
            rule.times = rule.times.saturating_sub(1);
            let fault = rule.fault;
            state.faults += 1;
            state.rules.retain(|rule| rule.times > 0);
            return Some(fault);
        }
        let (random, share, faults) = state.random.as_mut()?;
        if random.f64() < *share { random.choice(faults.iter()).copied() } else { None }
    }

    /// Runs a call with the fault that applies to it.
    async fn run<T>(
        &self,
        operation: Operation,
        path: &ObjectPath,
        call: impl Future<Output = Result<T>>,
        later: impl FnOnce(Duration) + Send,
    ) -> Result<T> {
        match self.fault(operation, path.as_ref()) {
            None => call.await,
            Some(Fault::Fail) => Err(broken()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LoseAnswer) => {
                call.await?;
                Err(broken())
            }
            Some(Fault::HangAfter) => {
                call.await?;
                std::future::pending().await
            }
            Some(Fault::DenyOwnSuccess) => {
                call.await?;
                let source = "the test denies the success".into();
                Err(StoreError::Precondition { path: path.to_string(), source })
            }
            Some(Fault::DoneLate(delay)) => {
                later(delay);
                Err(broken())
            }
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                call.await
            }
        }
    }
}

fn broken() -> StoreError {
    StoreError::Generic { store: "FaultyStore", source: "the test made this call fail".into() }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "FaultyStore({})", self.store)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let late = (self.store.clone(), path.clone(), payload.clone(), options.clone());
        let later = move |delay| {
            let (store, path, payload, options) = late;
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                // The store decides whether this still succeeds. No caller sees the outcome.
                drop(store.put_opts(&path, payload, options).await);
            });
        };
        let call = async {
            let put = self.store.put_opts(path, payload, options).await;
            if put.is_ok() {
                self.state().note_written(path);
            }
            put
        };
        self.run(Operation::Put, path, call, later).await
    }

    async fn put_multipart_opts(
        &self,
        path: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let call = async {
            let upload = self.store.put_multipart_opts(path, options).await?;
            self.state().unfinished += 1;
            Ok(upload)
        };
        let upload = self.run(Operation::Multipart, path, call, |_| {}).await?;
        Ok(Box::new(FaultyUpload { store: self.clone(), path: path.clone(), upload }))
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        let mut found = self.run(Operation::Get, path, self.store.get_opts(path, options), |_| {}).await?;
        self.state().set_time(&mut found.meta);
        Ok(found)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        let faulty = self.clone();
        let delete_one = move |path: Result<ObjectPath>| {
            let faulty = faulty.clone();
            async move {
                let path = path?;
                let (store, late) = (faulty.store.clone(), (faulty.store.clone(), path.clone()));
                let call = async { object_store::ObjectStoreExt::delete(&store, &path).await };
                let later = move |delay| {
                    tokio::spawn(async move {
                        tokio::time::sleep(delay).await;
                        drop(object_store::ObjectStoreExt::delete(&late.0, &late.1).await);
                    });
                };
                faulty.run(Operation::Delete, &path, call, later).await?;
                Ok(path)
            }
        };
        paths.then(delete_one).boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        let path = prefix.cloned().unwrap_or_default();
        self.faulty_list(path, self.store.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&ObjectPath>,
        offset: &ObjectPath,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let path = prefix.cloned().unwrap_or_default();
        self.faulty_list(path, self.store.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        let path = prefix.cloned().unwrap_or_default();
        self.run(Operation::List, &path, self.store.list_with_delimiter(prefix), |_| {}).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.run(Operation::Copy, to, self.store.copy_opts(from, to, options), |_| {}).await
    }
}

/// Counts a part that is in flight.
struct PartOnItsWay(FaultyStore);

impl Drop for PartOnItsWay {
    fn drop(&mut self) {
        self.0.state().parts -= 1;
    }
}

impl FaultyStore {
    async fn put_faulty_part<T>(
        &self,
        path: &ObjectPath,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let part = {
            let mut state = self.state();
            state.parts += 1;
            state.most_parts = state.most_parts.max(state.parts);
            PartOnItsWay(self.clone())
        };
        // Lets other parts that are sent at once start before this one ends.
        tokio::task::yield_now().await;
        let put = self.run(Operation::Part, path, call, |_| {}).await;
        drop(part);
        put
    }

    async fn finish_faulty(
        &self,
        operation: Operation,
        path: &ObjectPath,
        call: impl Future<Output = Result<()>>,
    ) -> Result<()> {
        let call = async {
            call.await?;
            let mut state = self.state();
            state.unfinished -= 1;
            if operation == Operation::Complete {
                state.note_written(path);
            }
            Ok(())
        };
        self.run(operation, path, call, |_| {}).await
    }

    fn multipart(&self) -> Result<Arc<dyn MultipartStore>> {
        let none = || StoreError::NotSupported { source: "the store does not support numbered parts".into() };
        self.multipart.clone().ok_or_else(none)
    }
}

#[derive(Debug)]
struct FaultyUpload {
    store: FaultyStore,
    path: ObjectPath,
    upload: Box<dyn MultipartUpload>,
}

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (store, path, call) = (self.store.clone(), self.path.clone(), self.upload.put_part(data));
        Box::pin(async move { store.put_faulty_part(&path, call).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let mut result = None;
        let call = async {
            result = Some(self.upload.complete().await?);
            Ok(())
        };
        self.store.finish_faulty(Operation::Complete, &self.path, call).await?;
        result.ok_or_else(broken)
    }

    async fn abort(&mut self) -> Result<()> {
        self.store.finish_faulty(Operation::Abort, &self.path, self.upload.abort()).await
    }
}

#[async_trait]
impl MultipartStore for FaultyStore {
    async fn create_multipart(&self, path: &ObjectPath) -> Result<MultipartId> {
        let store = self.multipart()?;
        let call = async {
            let id = store.create_multipart(path).await?;
            self.state().unfinished += 1;
            Ok(id)
        };
        self.run(Operation::Multipart, path, call, |_| {}).await
    }

    async fn put_part(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        part_idx: usize,
        data: PutPayload,
    ) -> Result<PartId> {
        let store = self.multipart()?;
        self.put_faulty_part(path, store.put_part(path, id, part_idx, data)).await
    }

    async fn complete_multipart(
        &self,
        path: &ObjectPath,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let (store, mut result) = (self.multipart()?, None);
        let call = async {
            result = Some(store.complete_multipart(path, id, parts).await?);
            Ok(())
        };
        self.finish_faulty(Operation::Complete, path, call).await?;
        result.ok_or_else(broken)
    }

    async fn abort_multipart(&self, path: &ObjectPath, id: &MultipartId) -> Result<()> {
        let store = self.multipart()?;
        self.finish_faulty(Operation::Abort, path, store.abort_multipart(path, id)).await
    }
}

impl FaultyStore {
    fn faulty_list(
        &self,
        path: ObjectPath,
        entries: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (faulty, faulty_entries) = (self.clone(), self.clone());
        let begin = async move { faulty.run(Operation::List, &path, async { Ok(()) }, |_| {}).await };
        futures_util::stream::once(begin)
            .filter_map(|begun| std::future::ready(begun.err().map(Err)))
            .chain(entries.map_ok(move |mut meta| {
                faulty_entries.state().set_time(&mut meta);
                meta
            }))
            .boxed()
    }
}

/// Makes a copied cache folder replace the original as the holder of its leases.
///
/// The original must not be used any more.
///
/// # Errors
/// An I/O error if `copy` is not a cache folder, or cannot be written.
pub fn replace_cache_folder(copy: &Path) -> std::io::Result<()> {
    let text = std::fs::read_to_string(copy.join(".holder"))?;
    crate::local::folder_owner::write(copy, text.lines().next().unwrap_or_default())
}

type LocalHook = Arc<dyn Fn(&Path) -> std::io::Result<()> + Send + Sync>;

static LOCAL_HOOKS: RwLock<Vec<(PathBuf, LocalHook)>> = RwLock::new(Vec::new());

/// Calls `hook` before each change of a cache folder of this process below `root`.
///
/// The argument is the path that changes. Syncing a folder is a change of its `.`. If the hook
/// fails, so does the change. Changes that SQLite makes are not reported.
pub fn before_local_changes(
    root: impl Into<PathBuf>,
    hook: impl Fn(&Path) -> std::io::Result<()> + Send + Sync + 'static,
) {
    LOCAL_HOOKS.write().push((root.into(), Arc::new(hook)));
}

pub(crate) fn before_local_change(path: &Path) -> std::io::Result<()> {
    let hooks = LOCAL_HOOKS.read();
    hooks.iter().filter(|(root, _)| path.starts_with(root)).try_for_each(|(_, hook)| hook(path))
}

type SpaceHook = Arc<dyn Fn() -> [u64; 2] + Send + Sync>;

static SPACE_HOOKS: RwLock<Vec<(PathBuf, SpaceHook)>> = RwLock::new(Vec::new());

/// Overrides the disk space of the file system of `root`.
///
/// `space` returns the free and the total bytes each time that larder checks.
pub fn set_disk_space(root: impl Into<PathBuf>, space: impl Fn() -> [u64; 2] + Send + Sync + 'static) {
    SPACE_HOOKS.write().push((root.into(), Arc::new(space)));
}

pub(crate) fn disk_space(folder: &Path) -> Option<DiskSpace> {
    let hooks = SPACE_HOOKS.read();
    let (_, space) = hooks.iter().rfind(|(root, _)| folder.starts_with(root))?;
    let [free, total] = space();
    Some(DiskSpace { free, total })
}
