//! The limits of a component that `larder run` runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use clap::Args;
use larder_host::Limits;
use tokio::io::AsyncWrite;
use wasmtime::ResourceLimiter;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use crate::text::{parse_bytes, parse_duration};

#[derive(Args)]
pub(crate) struct RunBounds {
    /// Time limit of the component; 0 for no limit
    ///
    /// Write a duration with units, for example 500ms, 90s, 10m or 1h.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    timeout: Duration,
    /// RAM limit of the component, such as 512MiB
    ///
    /// It limits all linear memories and tables of the component together. Write a size in bytes or
    /// with a unit, for example 4096, 64KiB, 512MiB or 1GiB.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    max_memory: u64,
    /// Limit of standard output and error together
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    max_output: u64,
    /// Size limit of each writable store [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) quota: Option<u64>,
    /// Change a limit of the storage API; repeatable; see --help
    ///
    /// NAME is one of namespace-bytes, key-bytes, value-bytes, result-bytes, transaction-bytes,
    /// transaction-mutations, open-transactions, open-stores, identity-bytes, turn-bytes,
    /// open-memories, instance-bytes and transaction-timeout. VALUE is a size such as 2MiB, a
    /// number, or for transaction-timeout a duration such as 10s.
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = parse_limit)]
    limits: Vec<Limit>,
}

impl RunBounds {
    /// The time limit of the component; `None` if there is none.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        Some(self.timeout).filter(|timeout| !timeout.is_zero())
    }

    pub(crate) fn memory(&self) -> MemoryBound {
        MemoryBound { max: self.max_memory, left: self.max_memory, was_refused: false }
    }

    pub(crate) fn output(&self) -> OutputBound {
        OutputBound { max: self.max_output, left: Arc::new(AtomicU64::new(self.max_output)) }
    }

    /// The limits of the storage API.
    ///
    /// # Errors
    /// Fails if the limits contradict each other.
    pub(crate) fn limits(&self) -> Result<Limits> {
        let mut limits = Limits::default();
        for limit in &self.limits {
            limit.apply(&mut limits);
        }
        limits.validate()?;
        Ok(limits)
    }
}

/// One of the [`Limits`].
#[derive(Clone, Copy, Debug)]
enum Limit {
    Timeout(Duration),
    Amount(fn(&mut Limits) -> &mut u64, u64),
}

impl Limit {
    fn apply(self, limits: &mut Limits) {
        match self {
            Self::Timeout(timeout) => limits.transaction_timeout = timeout,
            Self::Amount(field, amount) => *field(limits) = amount,
        }
    }
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    let Some((name, value)) = text.split_once('=') else {
        return Err("expected NAME=VALUE, for example value-bytes=2MiB".to_string());
    };
    let field: fn(&mut Limits) -> &mut u64 = match name {
        "transaction-timeout" => return Ok(Limit::Timeout(parse_duration(value)?)),
        "namespace-bytes" => |limits| &mut limits.namespace_bytes,
        "key-bytes" => |limits| &mut limits.key_bytes,
        "value-bytes" => |limits| &mut limits.value_bytes,
        "result-bytes" => |limits| &mut limits.result_bytes,
        "transaction-bytes" => |limits| &mut limits.transaction_bytes,
        "transaction-mutations" => |limits| &mut limits.transaction_mutations,
        "open-transactions" => |limits| &mut limits.open_transactions,
        "open-stores" => |limits| &mut limits.open_stores,
        "identity-bytes" => |limits| &mut limits.identity_bytes,
        "turn-bytes" => |limits| &mut limits.turn_bytes,
        "open-memories" => |limits| &mut limits.open_memories,
        "instance-bytes" => |limits| &mut limits.instance_bytes,
        name => return Err(format!("unknown limit {name:?}; `larder run --help` lists the limits")),
    };
    Ok(Limit::Amount(field, parse_bytes(value)?))
}

/// Limits all linear memories and tables of a component together.
pub(crate) struct MemoryBound {
    max: u64,
    left: u64,
    was_refused: bool,
}

impl MemoryBound {
    fn take(&mut self, bytes: u64) -> bool {
        let left = self.left.checked_sub(bytes);
        self.left = left.unwrap_or(self.left);
        self.was_refused |= left.is_none();
        left.is_some()
    }

    /// Adds to the error of a component that it may have failed for lack of memory.
    pub(crate) fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if !self.was_refused {
            return error;
        }
        let max = crate::text::bytes(self.max);
        error.context(format!(
            "the component tried to use more than {max} of memory; raise the limit with --max-memory"
        ))
    }
}

/// The bytes that a growth takes, with `size` bytes per element.
fn growth(current: usize, desired: usize, size: u64) -> u64 {
    u64::try_from(desired.saturating_sub(current)).map_or(u64::MAX, |grown| grown.saturating_mul(size))
}

/// A component that may not grow gets a failure, as on a machine with less memory. A growth counts
/// even if it fails after it was allowed.
impl ResourceLimiter for MemoryBound {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.take(growth(current, desired, 1)))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.take(growth(current, desired, size_of::<usize>() as u64)))
    }
}

/// Limits the output of a component.
#[derive(Clone)]
pub(crate) struct OutputBound {
    max: u64,
    left: Arc<AtomicU64>,
}

impl OutputBound {
    /// Wraps a stream so that its output counts for this limit.
    pub(crate) fn bind<T>(&self, stream: T) -> Bounded<T> {
        Bounded { stream, bound: self.clone() }
    }

    /// Counts bytes that are about to be printed. The component traps if they exceed the limit.
    fn take(&self, bytes: usize) -> StreamResult<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let taken =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        match taken {
            Ok(_) => Ok(()),
            Err(_) => {
                let max = crate::text::bytes(self.max);
                let error = anyhow!("it printed more than {max}; raise the limit with --max-output");
                Err(StreamError::Trap(wasmtime::Error::from_anyhow(error)))
            }
        }
    }
}

/// Standard output or standard error with an [`OutputBound`].
pub(crate) struct Bounded<T> {
    stream: T,
    bound: OutputBound,
}

impl<T: IsTerminal> IsTerminal for Bounded<T> {
    fn is_terminal(&self) -> bool {
        self.stream.is_terminal()
    }
}

impl<T: StdoutStream> StdoutStream for Bounded<T> {
    /// Components of WASI 0.2 do not use this function.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::empty())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(Bounded { stream: self.stream.p2_stream(), bound: self.bound.clone() })
    }
}

#[async_trait]
impl Pollable for Bounded<Box<dyn OutputStream>> {
    async fn ready(&mut self) {
        self.stream.ready().await;
    }
}

impl OutputStream for Bounded<Box<dyn OutputStream>> {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.bound.take(bytes.len())?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.stream.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.stream.check_write()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_set_by_its_name() {
        let mut limits = Limits::default();
        for limit in ["value-bytes=2MiB", "open-stores=3", "transaction-timeout=1m"] {
            parse_limit(limit).unwrap().apply(&mut limits);
        }
        let expected = Limits::default()
            .value_bytes(2 << 20)
            .open_stores(3)
            .transaction_timeout(Duration::from_secs(60));
        assert_eq!(limits, expected);
        for wrong in
            ["value-bytes", "values=1", "value-bytes=many", "value-bytes=-1", "transaction-timeout=1"]
        {
            parse_limit(wrong).unwrap_err();
        }
    }

    #[test]
    fn memories_and_tables_are_bounded_together() {
        let mut bound = MemoryBound { max: 1 << 20, left: 1 << 20, was_refused: false };
        assert!(bound.memory_growing(0, 1 << 19, None).unwrap());
        assert!(bound.memory_growing(0, 1 << 18, None).unwrap());
        assert!(bound.table_growing(0, 1 << 15, None).unwrap());
        assert!(!bound.table_growing(0, 1, None).unwrap());
        assert!(!bound.memory_growing(1 << 18, (1 << 18) + 1, None).unwrap());
    }
}
