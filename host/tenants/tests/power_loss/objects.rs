//! Object storage whose changes are recorded.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::{Moment, now};

/// The objects at one time.
pub(crate) type Objects = BTreeMap<ObjectPath, Bytes>;

/// A change of an object.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    /// It takes effect at some time between these two.
    pub(crate) began: Moment,
    pub(crate) done: Moment,
    pub(crate) path: ObjectPath,
    /// `None` if the object is removed.
    bytes: Option<Bytes>,
}

/// Forwards all calls, and records the changes.
#[derive(Clone, Debug)]
pub(crate) struct RecordedStore {
    store: Arc<dyn ObjectStore>,
    puts: Arc<Mutex<Vec<Put>>>,
    /// Allows one put at a time, so that puts are recorded in the order in which they take effect.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl RecordedStore {
    pub(crate) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, puts: Arc::default(), turn: Arc::default() }
    }

    pub(crate) fn puts(&self) -> Vec<Put> {
        self.puts.lock().clone()
    }
}

/// The objects at a time. A put in flight may have taken effect, with its response lost.
pub(crate) fn objects_at(puts: &[Put], moment: Moment, random: &mut fastrand::Rng) -> Objects {
    let mut objects = Objects::new();
    for put in puts.iter().filter(|put| put.began <= moment) {
        if put.done > moment && random.bool() {
            continue;
        }
        match &put.bytes {
            Some(bytes) => objects.insert(put.path.clone(), bytes.clone()),
            None => objects.remove(&put.path),
        };
    }
    objects
}

pub(crate) async fn put_all(objects: &Objects, store: &dyn ObjectStore) {
    for (path, bytes) in objects {
        store.put(path, bytes.clone().into()).await.unwrap();
    }
}

impl Display for RecordedStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "RecordedStore")
    }
}

#[async_trait]
impl ObjectStore for RecordedStore {
    async fn put_opts(
        &self,
        path: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let _turn = self.turn.lock().await;
        let (began, bytes) = (now(), Some(Bytes::from(payload.clone())));
        let put = self.store.put_opts(path, payload, options).await?;
        self.puts.lock().push(Put { began, done: now(), path: path.clone(), bytes });
        Ok(put)
    }

    /// The databases are too small for it.
    async fn put_multipart_opts(
        &self,
        _: &ObjectPath,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "put_multipart".into(), implementer: self.to_string() })
    }

    async fn get_opts(&self, path: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.store.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        let (puts, began) = (self.puts.clone(), now());
        let deleted = self.store.delete_stream(paths);
        deleted
            .inspect(move |path| {
                if let Ok(path) = path {
                    let put = Put { began, done: now(), path: path.clone(), bytes: None };
                    puts.lock().push(put);
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.store.list_with_delimiter(prefix).await
    }

    /// The host makes no copies.
    async fn copy_opts(&self, _: &ObjectPath, _: &ObjectPath, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".into(), implementer: self.to_string() })
    }
}
