//! Hands the redo of commits to a [`Journal`], and answers the callers once it is kept.
//!
//! The writer does not wait for the journal: it commits further groups, which queue up here. One
//! task hands all queued groups to the journal as one redo, and then answers their members in the
//! order of their commits. So an answer means that the commit is kept, and every commit before it.
//!
//! A group is visible in the file before it is kept. Each group therefore gets a number before it
//! is committed, and a reader waits until all groups with a number are kept ([`Status::kept`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use larder_core::commit::Committed;
use larder_core::redo::{Journal, Redo};
use larder_core::{Error, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::writer::Writer;

/// Where the outcome of a request is sent. The caller may have stopped waiting.
pub(crate) type Answer = oneshot::Sender<Result<Reply>>;

/// The answer to a request that the writer did not refuse.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    /// The commit is made.
    Made(Committed),
    /// Nothing was made. The caller must first validate its reads, while others commit.
    Unvalidated,
}

/// The most bytes of one redo. A single group may be larger.
const REDO_BYTES_MAX: u64 = 16 << 20;

/// Backpressure: from this many queued bytes on, no further group is committed until some are kept.
const QUEUED_BYTES_MAX: u64 = 64 << 20;

/// One group of commits. Without a redo, members that only wait for the groups before.
struct Shipment {
    number: GroupNumber,
    redo: Option<Redo>,
    members: Vec<(Answer, Committed)>,
}

impl Shipment {
    fn bytes(&self) -> u64 {
        self.redo.as_ref().map_or(0, |redo| redo.as_bytes().len() as u64)
    }

    fn answer(self, outcome: &Result<()>) {
        for (answer, committed) in self.members {
            drop(answer.send(outcome.clone().map(|()| Reply::Made(committed))));
        }
    }
}

/// The number of a group, in the order of the commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupNumber(u64);

/// The state that the writer and the journal's task share.
#[derive(Default)]
pub(crate) struct Status {
    queued_bytes: AtomicU64,
    failure: OnceLock<Error>,
    /// The number of the last group that may be visible.
    begun: AtomicU64,
    /// All groups up to this one are kept or have failed.
    kept: watch::Sender<GroupNumber>,
}

impl Status {
    /// Gives a group its number, before it is committed. The caller must push the group afterwards,
    /// even if it failed.
    pub(crate) fn begin(&self) -> GroupNumber {
        GroupNumber(self.begun.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Waits until everything that is visible now is kept.
    ///
    /// # Errors
    /// The error of the journal, if it has failed.
    pub(crate) async fn kept(&self) -> Result<()> {
        let visible = self.last_begun();
        if *self.kept.borrow() < visible {
            // The sender is a field of `self`, so the channel stays open.
            let _ = self.kept.subscribe().wait_for(|kept| *kept >= visible).await;
        }
        self.failure().map_or(Ok(()), Err)
    }

    /// Records that the file may hold a commit that the journal will never keep. Returns the first
    /// such failure.
    pub(crate) fn fail(&self, error: Error) -> Error {
        self.failure.get_or_init(|| error).clone()
    }

    fn last_begun(&self) -> GroupNumber {
        GroupNumber(self.begun.load(Ordering::SeqCst))
    }

    fn move_to(&self, number: GroupNumber) {
        self.kept.send_if_modified(|kept| {
            let moves = *kept < number;
            *kept = number.max(*kept);
            moves
        });
    }

    /// The error of the journal, if it has failed: the database then holds commits that the journal
    /// did not keep.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.get().map(|error| match error {
            // The unknown outcome is that of an earlier commit, not of the caller's.
            Error::CommitUnknown { .. } => Error::unavailable(
                "the journal did not keep an earlier commit; open the store again",
                error.clone(),
            ),
            error => error.clone(),
        })
    }

    /// Whether the next group must wait.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.queued_bytes.load(Ordering::Acquire) >= QUEUED_BYTES_MAX
    }
}

/// The writer's end of the queue. After it is dropped, the queued groups are still handed to the
/// journal.
pub(crate) struct Queue {
    shipments: mpsc::UnboundedSender<Shipment>,
    status: Arc<Status>,
}

impl Queue {
    /// Spawns the task that hands groups to the journal.
    pub(crate) fn start(
        journal: Arc<dyn Journal>,
        status: Arc<Status>,
        writer: Weak<Writer>,
    ) -> (Self, JoinHandle<()>) {
        let (shipments, queued) = mpsc::unbounded_channel();
        let shipper = Shipper { journal, status: status.clone(), queued, writer };
        let task = tokio::spawn(shipper.run());
        (Self { shipments, status }, task)
    }

    /// Answers once everything that was pushed before is kept.
    pub(crate) fn push_answer(&self, answer: Answer) {
        self.push(self.status.last_begun(), None, vec![(answer, Committed::default())]);
    }

    /// Queues a group that was just committed. Must be called in the order of the commits.
    pub(crate) fn push(&self, number: GroupNumber, redo: Option<Redo>, members: Vec<(Answer, Committed)>) {
        let shipment = Shipment { number, redo, members };
        self.status.queued_bytes.fetch_add(shipment.bytes(), Ordering::AcqRel);
        if let Err(mpsc::error::SendError(shipment)) = self.shipments.send(shipment) {
            // The runtime is shutting down.
            let error = self
                .status
                .fail(not_kept("the task of the journal ended, because the runtime is shutting down", None));
            self.status.move_to(number);
            shipment.answer(&Err(error));
        }
    }
}

struct Shipper {
    journal: Arc<dyn Journal>,
    status: Arc<Status>,
    queued: mpsc::UnboundedReceiver<Shipment>,
    /// The writer, which waits if there is a backlog.
    writer: Weak<Writer>,
}

impl Shipper {
    async fn run(mut self) {
        while let Some(first) = self.queued.recv().await {
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            while bytes < REDO_BYTES_MAX
                && let Ok(next) = self.queued.try_recv()
            {
                bytes += next.bytes();
                batch.push(next);
            }
            let outcome = self.keep(&mut batch).await;
            let last = batch.iter().map(|shipment| shipment.number).max().unwrap_or_default();
            self.status.move_to(last);
            for shipment in batch {
                shipment.answer(&outcome);
            }
            self.status.queued_bytes.fetch_sub(bytes, Ordering::AcqRel);
            if let Some(writer) = self.writer.upgrade() {
                writer.serve_waiting();
            }
        }
    }

    /// Hands the redo of a batch to the journal. After a failure nothing is handed over any more,
    /// because it would leave a gap.
    ///
    /// The failure is recorded before any member is answered: a member that then reads to find the
    /// outcome of its commit is refused.
    async fn keep(&self, batch: &mut [Shipment]) -> Result<()> {
        let kept = match self.status.failure.get() {
            Some(error) => return Err(error.clone()),
            None => self.append(batch).await,
        };
        kept.map_err(|error| self.status.fail(error))
    }

    async fn append(&self, batch: &mut [Shipment]) -> Result<()> {
        let mut redos = batch.iter_mut().filter_map(|shipment| shipment.redo.take());
        let Some(mut all) = redos.next() else { return Ok(()) };
        for redo in redos {
            all.push(redo)?;
        }
        let journal = self.journal.clone();
        // The call runs in a task of its own, so that a panic of the journal is a failure like any
        // other.
        match tokio::spawn(async move { journal.append(all).await }).await {
            Ok(kept) => kept,
            Err(error) => {
                Err(not_kept("the journal panicked, or the runtime is shutting down", Some(Arc::new(error))))
            }
        }
    }
}

fn not_kept(reason: &str, cause: Option<larder_core::error::Cause>) -> Error {
    Error::CommitUnknown { reason: reason.to_string(), cause }
}
