//! Tests whether an object store honours conditional puts.

use bytes::Bytes;
use futures_util::future::join_all;
use larder_core::clock::{Clock, SystemClock};
use object_store::path::Path as ObjectPath;
use object_store::{Error as StoreError, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion};

use crate::error::{Result, TenantError};
use crate::objects::{CallError, Found, Objects, timed};
use crate::write_id::WriteId;

/// The folder of the probe's objects. No tenant's path begins with a dot.
const FOLDER: &str = ".probe";

/// The number of writers that race. Some servers make them wait for each other for seconds.
const WRITERS: usize = 5;

/// The number of races of each kind.
const ROUNDS: usize = 2;

/// The age from which objects of a killed probe are removed.
const STALE_MILLIS: u64 = 60 * 60 * 1000;

const MAX_BYTES: u64 = 1024;

/// Creates a few objects, checks which conditional puts are refused, and removes the objects.
pub(crate) async fn probe(objects: &Objects) -> Result<()> {
    let probe = Probe { objects, run: WriteId::random() };
    let outcome = probe.run().await;
    let removed = probe.clean_up().await;
    outcome.and(removed)
}

struct Probe<'a> {
    objects: &'a Objects,
    run: WriteId,
}

/// The response to a conditional put.
enum Answer {
    Done(UpdateVersion),
    Refused,
}

impl Probe<'_> {
    async fn run(&self) -> Result<()> {
        self.creates_once().await?;
        for round in 0..ROUNDS {
            self.one_of_many_creates(&format!("create-{round}")).await?;
        }
        self.one_of_many_swaps().await
    }

    fn path(&self, name: &str) -> ObjectPath {
        self.objects.path(&format!("{FOLDER}/{}/{name}", self.run))
    }

    async fn put(&self, path: &ObjectPath, text: &str, mode: PutMode) -> Result<Answer> {
        let payload = PutPayload::from(Bytes::copy_from_slice(text.as_bytes()));
        let options = PutOptions { mode, ..PutOptions::default() };
        let limit = self.objects.limits().call_timeout;
        match timed(limit, self.objects.store().put_opts(path, payload, options)).await {
            Ok(PutResult { e_tag: None, version: None, .. }) => {
                Err(no_conditions("it returns neither an ETag nor a version for a put"))
            }
            Ok(result) => Ok(Answer::Done(UpdateVersion { e_tag: result.e_tag, version: result.version })),
            Err(CallError::Store(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })) => {
                Ok(Answer::Refused)
            }
            Err(CallError::Store(StoreError::NotImplemented { .. } | StoreError::NotSupported { .. })) => {
                Err(no_conditions("it says that it does not support them"))
            }
            Err(error) => Err(TenantError::unavailable("the object storage can't be probed", error)),
        }
    }

    async fn read(&self, path: &ObjectPath) -> Result<Found> {
        let found = self.objects.get(path, MAX_BYTES).await?;
        found.ok_or_else(|| no_conditions("an object that was just put does not exist"))
    }

    async fn creates_once(&self) -> Result<()> {
        let path = self.path("once");
        let Answer::Done(first) = self.put(&path, "first", PutMode::Create).await? else {
            return Err(no_conditions("it refuses to create an object that does not exist"));
        };
        if let Answer::Done(_) = self.put(&path, "second", PutMode::Create).await? {
            return Err(no_conditions("it created an object a second time"));
        }
        self.holds(&path, "first").await?;
        let Answer::Done(_) = self.put(&path, "third", PutMode::Update(first.clone())).await? else {
            return Err(no_conditions("it refuses to replace an object whose ETag matches"));
        };
        if let Answer::Done(_) = self.put(&path, "fourth", PutMode::Update(first)).await? {
            return Err(no_conditions("it replaced an object whose ETag did not match"));
        }
        self.holds(&path, "third").await
    }

    async fn holds(&self, path: &ObjectPath, text: &str) -> Result<()> {
        if self.read(path).await?.bytes == text.as_bytes() {
            Ok(())
        } else {
            Err(no_conditions("it refused a write, but did it"))
        }
    }

    async fn one_of_many_creates(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        self.race(&path, &PutMode::Create).await
    }

    async fn one_of_many_swaps(&self) -> Result<()> {
        let path = self.path("swap");
        self.put(&path, "start", PutMode::Create).await?;
        for _ in 0..ROUNDS {
            let base = self.read(&path).await?.version;
            self.race(&path, &PutMode::Update(base)).await?;
        }
        Ok(())
    }

    /// Lets several writers put at once. Exactly one of them must succeed, and its bytes must be
    /// stored. If a client retries a put whose response was lost, even the successful writer may be
    /// refused. A writer without a response proves nothing, as long as another one got a response.
    async fn race(&self, path: &ObjectPath, mode: &PutMode) -> Result<()> {
        let texts: Vec<_> = (0..WRITERS).map(|_| WriteId::random().to_string()).collect();
        let answers = join_all(texts.iter().map(|text| self.put(path, text, mode.clone()))).await;
        let mut winners = Vec::new();
        let (mut answered, mut unanswered) = (false, None);
        for (text, answer) in texts.iter().zip(answers) {
            match answer {
                Ok(Answer::Done(_)) => winners.push(text),
                Ok(Answer::Refused) => answered = true,
                Err(error @ TenantError::Unavailable { .. }) => unanswered = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let (true, false, Some(error)) = (winners.is_empty(), answered, unanswered) {
            return Err(error);
        }
        let found = self.read(path).await?.bytes;
        match winners.as_slice() {
            [] if texts.iter().any(|text| found == text.as_bytes()) => Ok(()),
            [] => Err(no_conditions("it refused all of several concurrent writes")),
            [winner] if found == winner.as_bytes() => Ok(()),
            [_] => Err(no_conditions("of several concurrent writes, it kept another one than it reported")),
            _ => Err(no_conditions("it let more than one of several concurrent writes succeed")),
        }
    }

    async fn clean_up(&self) -> Result<()> {
        let own = self.objects.path(&format!("{FOLDER}/{}", self.run));
        let now = SystemClock::default().unix_millis();
        for meta in self.objects.list(&self.objects.path(FOLDER), None, 1000).await? {
            let modified = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or(u64::MAX);
            let is_stale = modified < now.saturating_sub(STALE_MILLIS);
            if is_stale || meta.location.prefix_matches(&own) {
                self.objects.delete(&meta.location).await?;
            }
        }
        Ok(())
    }
}

fn no_conditions(reason: &str) -> TenantError {
    TenantError::NoConditions { reason: reason.into() }
}
