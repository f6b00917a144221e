//! The redo log of a tenant: the commits since its snapshot.
//!
//! The positions of a log are a single sequence from 1 on, across all epochs. Each position is one
//! segment, which is created once and never changed. A lease has one append in flight at a time,
//! and uses the next position only after the previous one is settled. So a replaced holder can
//! write at most one more position: the one directly after the last segment. A new holder takes
//! exactly that position with its seal. If it finds the old holder's segment there, it reads that
//! segment and seals after it. A replaced holder that does not know it was replaced cannot seal in
//! turn, because a seal is only put after a segment of its own epoch or an earlier one.
//!
//! Segments that a snapshot covers are deleted, which frees their positions. A put of an old holder
//! that was delayed could then succeed at such a position. But an append is only acknowledged while
//! the lease holds on the holder's own clock, or once the head shows that no other host took over.
//! And positions are only freed by later holders, long after. So a segment that is put there late
//! was never acknowledged, is covered by the snapshot, and is not read.

use std::ops::RangeInclusive;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path as ObjectPath;

use crate::error::{Result, TenantError};
use crate::key::TenantKey;
use crate::lease::Lease;
use crate::objects::{Found, Written};
use crate::remote::Remote;
use crate::segment::{Kind, SegmentHeader, decode, encode, max_stored_bytes};
use crate::write_id::WriteId;

/// The state of the log under a lease.
#[derive(Default)]
pub(crate) struct Log {
    /// The first free position. `None` until this lease has sealed the log.
    next: Option<u64>,
    /// A segment that was sent and whose outcome is unknown.
    unsettled: Option<Unsettled>,
}

#[derive(Clone)]
struct Unsettled {
    header: SegmentHeader,
    bytes: Bytes,
}

/// The most segments that a log may have after a snapshot. A holder publishes a snapshot long
/// before.
const MAX_SEGMENTS: usize = 1_000_000;

/// The number of segments that are downloaded ahead.
const READ_AHEAD: usize = 4;

pub(crate) const SEGMENTS: &str = "segments";

/// The position of a segment object. `None` if the name is not that of a segment.
pub(crate) fn position_of(path: &ObjectPath) -> Option<u64> {
    let name = path.filename()?;
    let position = name.parse().ok()?;
    (name_of(position) == name).then_some(position)
}

/// The name of a segment. Names sort like positions.
fn name_of(position: u64) -> String {
    format!("{position:020}")
}

impl Remote {
    fn segment_path(&self, key: &TenantKey, position: u64) -> ObjectPath {
        self.folder_path(key, &format!("{SEGMENTS}/{}", name_of(position)))
    }

    fn max_segment_object(&self) -> u64 {
        max_stored_bytes(self.options().max_segment_bytes)
    }

    /// Reads a segment. `None` if it does not exist.
    pub(crate) async fn segment(
        &self,
        key: &TenantKey,
        position: u64,
    ) -> Result<Option<(SegmentHeader, Bytes)>> {
        let path = self.segment_path(key, position);
        let Some(found) = self.objects().get(&path, self.max_segment_object()).await? else {
            return Ok(None);
        };
        let (key, max) = (key.clone(), self.options().max_segment_bytes);
        let decoded = tokio::task::spawn_blocking(move || decode(&key, position, &found.bytes, max)).await;
        let failed =
            |error| TenantError::file("a segment can't be decompressed", std::io::Error::other(error));
        let (header, payload) = decoded.map_err(failed)??;
        Ok(Some((header, payload.into())))
    }

    /// The positions after `covers` that are in use, in ascending order.
    pub(crate) async fn positions_after(&self, key: &TenantKey, covers: u64) -> Result<Vec<u64>> {
        let folder = self.folder_path(key, SEGMENTS);
        let after = self.segment_path(key, covers);
        let found = self.objects().list(&folder, Some(&after), MAX_SEGMENTS).await?;
        let positions = found.iter().filter_map(|meta| position_of(&meta.location));
        let mut positions: Vec<_> = positions.filter(|position| *position > covers).collect();
        positions.sort_unstable();
        Ok(positions)
    }
}

impl Lease {
    fn segment_path(&self, position: u64) -> ObjectPath {
        self.remote().segment_path(self.key(), position)
    }

    /// Appends a payload to the log. Returns its position once object storage has it.
    ///
    /// Appends of one lease are made one after another, in the order of the calls. If this fails
    /// with [`TenantError::OutcomeUnknown`] or its future is dropped, the segment stays first in
    /// line. [`Lease::settle`] or the next append then settles it before anything else is written.
    ///
    /// # Errors
    /// After any error but [`TenantError::OutcomeUnknown`], the payload was not written and never
    /// will be.
    ///
    /// - [`TenantError::OutcomeUnknown`] if it is unknown whether the payload was written.
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::LeaseLapsed`] if the lease was not renewed in time.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Corrupt`] or [`TenantError::NewerFormat`] if the head or the log is damaged
    ///   or of a newer release.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached, or an earlier segment is
    ///   still unsettled.
    /// - [`TenantError::InvalidArgument`] if the payload is too large.
    /// - [`TenantError::File`] if the payload cannot be compressed.
    pub async fn append(&self, payload: Bytes) -> Result<u64> {
        let max = self.remote().options().max_segment_bytes;
        if payload.len() as u64 > max {
            return Err(TenantError::invalid_argument(format!(
                "a segment may have at most {max} bytes, and not {}",
                payload.len()
            )));
        }
        let mut log = self.log().await;
        self.check()?;
        let next = self.begin_log(&mut log).await?;
        let position = match self.settle_in(&mut log).await {
            Ok(settled) => settled.map_or(Ok(next), |earlier| self.after(earlier))?,
            // Only the outcome of the earlier segment is unknown. This payload was not sent.
            Err(TenantError::OutcomeUnknown { cause, .. }) => {
                let reason = "the outcome of an earlier segment is still unknown".to_string();
                return Err(TenantError::Unavailable { reason, cause });
            }
            Err(error) => return Err(error),
        };
        self.check()?;
        let header =
            SegmentHeader { kind: Kind::Data, epoch: self.epoch(), position, write_id: WriteId::random() };
        let bytes = self.encoded(header, payload).await?;
        log.unsettled = Some(Unsettled { header, bytes });
        self.settle_in(&mut log).await?;
        Ok(position)
    }

    /// Settles a segment whose outcome is unknown.
    ///
    /// Returns its position, or `None` if there is no such segment.
    ///
    /// # Errors
    /// - [`TenantError::OutcomeUnknown`] if the outcome is still unknown.
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Corrupt`] if the position has another segment although this lease holds.
    pub async fn settle(&self) -> Result<Option<u64>> {
        let mut log = self.log().await;
        self.settle_in(&mut log).await
    }

    /// The last position in use, or 0 if there is none.
    ///
    /// A snapshot of the current state covers it.
    ///
    /// Seals the log if this lease has not done so.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if a segment is missing or damaged.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote a segment.
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn log_end(&self) -> Result<u64> {
        let mut log = self.log().await;
        if !self.head().has_log {
            return Ok(self.head().covers());
        }
        Ok(self.seal(&mut log).await?.saturating_sub(1))
    }

    /// Reads the payloads that all holders appended after the current snapshot.
    ///
    /// This seals the log first, so that no earlier holder can append from then on.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if a segment is missing or damaged.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote a segment.
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::Closed`] if the lease was released.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn replay(&self) -> Result<Replay> {
        let covers = self.head().covers();
        let end = self.log_end().await?;
        let lease = self.clone();
        let download = move |position| {
            let lease = lease.clone();
            async move { lease.download(position).await }
        };
        Ok(Replay::new(self.key(), covers.saturating_add(1)..=end, download))
    }

    async fn encoded(&self, header: SegmentHeader, payload: Bytes) -> Result<Bytes> {
        let key = self.key().clone();
        let encoded = tokio::task::spawn_blocking(move || encode(&key, &header, &payload)).await;
        let failed = |error| TenantError::file("a segment can't be compressed", error);
        encoded.map_err(|error| failed(std::io::Error::other(error)))?.map_err(failed)
    }

    fn after(&self, position: u64) -> Result<u64> {
        let exhausted = || TenantError::corrupt(self.key(), "the log has reached its last position");
        position.checked_add(1).ok_or_else(exhausted)
    }

    /// Records in the head that the log has segments, so that the next holder reads it, and then
    /// seals it.
    async fn begin_log(&self, log: &mut Log) -> Result<u64> {
        if !self.head().has_log {
            self.change(|head| {
                head.has_log = true;
                Ok(())
            })
            .await?;
        }
        self.seal(log).await
    }

    /// Makes sure that no earlier holder can append. Returns the first free position.
    async fn seal(&self, log: &mut Log) -> Result<u64> {
        if let Some(next) = log.next {
            return Ok(next);
        }
        let last = self.last_position().await?;
        if last > self.head().covers() && self.download(last).await?.0.epoch > self.epoch() {
            return Err(self.overtaken(last).await);
        }
        let mut position = self.after(last)?;
        loop {
            let header = SegmentHeader {
                kind: Kind::Seal,
                epoch: self.epoch(),
                position,
                write_id: WriteId::random(),
            };
            let bytes = self.encoded(header, Bytes::new()).await?;
            match self.create(&header, bytes).await? {
                Written::Done(_) => break,
                // The last segment of the previous holder, which was faster, or a seal of this
                // lease whose response was lost.
                Written::Lost(Some(found)) if self.read(position, &found)?.epoch <= self.epoch() => {
                    position = self.after(position)?;
                }
                Written::Lost(_) => return Err(self.overtaken(position).await),
            }
        }
        let next = self.after(position)?;
        log.next = Some(next);
        Ok(next)
    }

    /// Seals a log whose segments may be missing or damaged. Returns the last position in use.
    ///
    /// Commits after the current snapshot can no longer be replayed then, so the head must be
    /// swapped for one with another snapshot.
    pub(crate) async fn seal_damaged(&self) -> Result<u64> {
        let mut log = self.log().await;
        if !self.head().has_log {
            return Ok(self.head().covers());
        }
        let last = self.positions().await?.last().copied();
        let mut position = self.after(last.unwrap_or_else(|| self.head().covers()))?;
        loop {
            self.check()?;
            let (kind, epoch, write_id) = (Kind::Seal, self.epoch(), WriteId::random());
            let header = SegmentHeader { kind, epoch, position, write_id };
            let bytes = self.encoded(header, Bytes::new()).await?;
            match self.create(&header, bytes).await? {
                Written::Done(_) => break,
                Written::Lost(_) => position = self.after(position)?,
            }
        }
        log.next = Some(self.after(position)?);
        Ok(position)
    }

    /// The positions after the current snapshot, in ascending order.
    async fn positions(&self) -> Result<Vec<u64>> {
        self.remote().positions_after(self.key(), self.head().covers()).await
    }

    async fn last_position(&self) -> Result<u64> {
        let mut last = self.head().covers();
        for position in self.positions().await? {
            if position != self.after(last)? {
                return Err(self.missing(position - 1).await);
            }
            last = position;
        }
        Ok(last)
    }

    fn read(&self, position: u64, found: &Found) -> Result<SegmentHeader> {
        let max = self.remote().options().max_segment_bytes;
        decode(self.key(), position, &found.bytes, max).map(|(header, _)| header)
    }

    async fn create(&self, header: &SegmentHeader, bytes: Bytes) -> Result<Written> {
        let own = bytes.clone();
        // The bytes contain the write id.
        let is_own = move |found: &[u8]| found == own;
        let objects = self.remote().objects();
        objects
            .create(&self.segment_path(header.position), bytes, is_own, self.remote().max_segment_object())
            .await
    }

    /// Sends the unsettled segment until it is known to be stored. While the lease lasts, it is
    /// never given up: it may be stored late, and the segments after it build on it.
    async fn settle_in(&self, log: &mut Log) -> Result<Option<u64>> {
        let Some(Unsettled { header, bytes }) = log.unsettled.clone() else { return Ok(None) };
        let position = header.position;
        let unknown = |error: TenantError| TenantError::OutcomeUnknown {
            key: self.key().to_string(),
            position,
            cause: Some(std::sync::Arc::new(error)),
        };
        match self.create(&header, bytes).await {
            Ok(Written::Done(_)) => {}
            Ok(Written::Lost(_)) => {
                // Another holder has the position for good, so this segment was not written and
                // cannot be.
                log.unsettled = None;
                return Err(self.overtaken(position).await);
            }
            Err(error) => return Err(unknown(error)),
        }
        // This may be the late success of a put that a new holder's log no longer reads. Only a
        // lease that still holds proves that there is no such holder.
        if self.check().is_err() {
            self.renew().await.map_err(unknown)?;
        }
        log.unsettled = None;
        log.next = Some(self.after(position)?);
        Ok(Some(position))
    }

    /// The error for a position of this lease that another holder has taken.
    async fn overtaken(&self, position: u64) -> TenantError {
        self.unless_fenced(format!(
            "segment {position} is of another holder, but no other host took over the tenant"
        ))
        .await
    }

    /// The error for a missing segment.
    async fn missing(&self, position: u64) -> TenantError {
        self.unless_fenced(format!("segment {position} is missing")).await
    }

    /// Data that looks corrupt to a holder may be the work of the next holder, so this renews the
    /// lease to find out.
    async fn unless_fenced(&self, reason: String) -> TenantError {
        match self.renew().await {
            Ok(()) => TenantError::corrupt(self.key(), reason),
            Err(error) => error,
        }
    }
}

/// The payloads of a log, in the order of their positions.
///
/// A few of them are in memory at a time.
pub struct Replay {
    payloads: BoxStream<'static, Result<(SegmentHeader, Bytes)>>,
    last_epoch: u64,
    key: String,
}

impl Replay {
    /// Replays the segments at `positions`, each read by `download`.
    pub(crate) fn new<F>(
        key: &TenantKey,
        positions: RangeInclusive<u64>,
        download: impl Fn(u64) -> F + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(SegmentHeader, Bytes)>> + Send + 'static,
    {
        let payloads = futures_util::stream::iter(positions).map(download).buffered(READ_AHEAD).boxed();
        Self { payloads, last_epoch: 0, key: key.to_string() }
    }

    /// The next payload and its position.
    ///
    /// `None` at the end. Positions ascend, with gaps for seals.
    ///
    /// # Errors
    /// - [`TenantError::Corrupt`] if a segment is missing or altered.
    /// - [`TenantError::NewerFormat`] if a newer release of larder wrote a segment.
    /// - [`TenantError::Fenced`] if another holder has taken over.
    /// - [`TenantError::Unavailable`] if object storage cannot be reached.
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>> {
        while let Some(downloaded) = self.payloads.next().await {
            let (header, payload) = downloaded?;
            if header.epoch < self.last_epoch {
                let reason =
                    format!("segment {} has an earlier epoch than the segment before it", header.position);
                return Err(TenantError::corrupt(&self.key, reason));
            }
            self.last_epoch = header.epoch;
            if header.kind == Kind::Data {
                return Ok(Some((header.position, payload)));
            }
        }
        Ok(None)
    }
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Replay").field("key", &self.key).finish_non_exhaustive()
    }
}

impl Lease {
    async fn download(&self, position: u64) -> Result<(SegmentHeader, Bytes)> {
        match self.remote().segment(self.key(), position).await? {
            Some(found) => Ok(found),
            None => Err(self.missing(position).await),
        }
    }
}
