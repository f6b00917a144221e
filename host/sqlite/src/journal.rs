//! Hands the redo of commits to a [`Journal`], and answers those who committed once it is kept.
//!
//! The writer never waits for it: it commits further groups, which queue up here. One task hands over all that has
//! queued up, as one redo, and then answers its members in the order of their commits. So an answer says that this
//! commit is kept, and every one before it.
//!
//! A group is visible in the file before it is kept. So each group has a number, which is given before the group is committed,
//! and whoever has read waits until all groups with a number are kept ([`Status::kept`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use larder_core::backend::Committed;
use larder_core::redo::{Journal, Redo};
use larder_core::{Error, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::writer::Writer;

/// Somebody waits for an answer; nobody may be there any more to hear it.
pub(crate) type Answer = oneshot::Sender<Result<Reply>>;

/// What the writer answers to one that it did not refuse.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reply {
    /// It is made.
    Made(Committed),
    /// Nothing was made: what it read is to be validated while others commit.
    Unvalidated,
}

/// Bytes that one redo is handed over with at most; a single group may be larger.
const REDO_BYTES_MAX: u64 = 16 << 20;

/// With so many bytes queued up, no further group is committed until some are kept.
const QUEUED_BYTES_MAX: u64 = 64 << 20;

/// One group of commits, or none where somebody only waits for those before.
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

/// What both ends of the queue know.
#[derive(Default)]
pub(crate) struct Status {
    queued_bytes: AtomicU64,
    failure: OnceLock<Error>,
    /// The number of the last group that may be visible.
    begun: AtomicU64,
    /// All groups up to this one are kept, or came to nothing.
    kept: watch::Sender<GroupNumber>,
}

impl Status {
    /// Gives a group its number, before it is committed. The group is to be pushed afterwards, also if it came to nothing.
    pub(crate) fn begin(&self) -> GroupNumber {
        GroupNumber(self.begun.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Waits until everything is kept that is visible now.
    ///
    /// # Errors
    /// As [`Status::failure`].
    pub(crate) async fn kept(&self) -> Result<()> {
        let visible = self.last_begun();
        if *self.kept.borrow() < visible {
            // The sender is here, so it does not end.
            let _ = self.kept.subscribe().wait_for(|kept| *kept >= visible).await;
        }
        self.failure().map_or(Ok(()), Err)
    }

    /// Notes that the file may hold what the journal will never keep. The first failure counts.
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

    /// Why nothing of this database can be relied on any more: commits are in it that the journal did not keep.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.get().map(|error| match error {
            // It was the outcome of another's commit.
            Error::CommitUnknown { .. } => Error::unavailable(
                "an earlier commit could not be kept in the journal; open the store again",
                error.clone(),
            ),
            error => error.clone(),
        })
    }

    /// Whether the next group has to wait.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.queued_bytes.load(Ordering::Acquire) >= QUEUED_BYTES_MAX
    }
}

/// The writer's end of the queue. Once it is dropped, what is queued up is still handed over.
pub(crate) struct Queue {
    shipments: mpsc::UnboundedSender<Shipment>,
    status: Arc<Status>,
}

impl Queue {
    /// Starts handing over.
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

    /// Has somebody answered once everything is kept that was pushed before.
    pub(crate) fn push_answer(&self, answer: Answer) {
        self.push(self.status.last_begun(), None, vec![(answer, Committed::default())]);
    }

    /// Takes a group that was just committed. It is called in the order of the commits.
    pub(crate) fn push(&self, number: GroupNumber, redo: Option<Redo>, members: Vec<(Answer, Committed)>) {
        let shipment = Shipment { number, redo, members };
        self.status.queued_bytes.fetch_add(shipment.bytes(), Ordering::AcqRel);
        if let Err(mpsc::error::SendError(shipment)) = self.shipments.send(shipment) {
            // The runtime is shutting down.
            let error = self.status.fail(not_kept("the journal's task ended", None));
            self.status.move_to(number);
            shipment.answer(&Err(error));
        }
    }
}

struct Shipper {
    journal: Arc<dyn Journal>,
    status: Arc<Status>,
    queued: mpsc::UnboundedReceiver<Shipment>,
    /// Waits where there is a backlog.
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

    /// Hands over the redo of a batch. After a failure nothing is handed over any more, as it would leave a gap.
    /// The failure is known before anybody is told of it: who reads afterwards what became of a commit is refused.
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
        // In a task of its own, so that a panic there is a failure like any other.
        match tokio::spawn(async move { journal.append(all).await }).await {
            Ok(kept) => kept,
            Err(error) => Err(not_kept("the journal ended before it answered", Some(Arc::new(error)))),
        }
    }
}

fn not_kept(reason: &str, cause: Option<larder_core::error::Cause>) -> Error {
    Error::CommitUnknown { reason: reason.to_string(), cause }
}
