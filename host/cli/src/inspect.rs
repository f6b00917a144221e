//! Commands that read and write the rows of a store without a guest.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use larder_host::larder_core::name::Namespace;
use larder_host::larder_core::{PutOptions, Range, Transaction};
use larder_host::{Error, Handle, Limits, Mode, Store, Version};

use crate::output::{complain, heard, output};
use crate::standard;
use crate::store::{StoreArgument, closing, operator};
use crate::text::{escape, escape_bytes, json_value, unescape};

/// Print the value of a row
#[derive(Args)]
pub(crate) struct Get {
    #[command(flatten)]
    store: StoreArguments,
    /// Namespace of the row
    namespace: String,
    /// Key of the row
    key: String,
    /// Print a JSON object with the value and the row's version
    #[arg(long)]
    json: bool,
}

/// Write a row
#[derive(Args)]
pub(crate) struct Put {
    #[command(flatten)]
    store: StoreArguments,
    /// Namespace of the row
    namespace: String,
    /// Key of the row
    key: String,
    /// Value to write [default: read from standard input]
    value: Option<String>,
    /// Time to live of the row, in milliseconds [default: no expiry]
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// Write only if the row is at this version; 0 if it must be absent
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

/// Delete a row
#[derive(Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    store: StoreArguments,
    /// Namespace of the row
    namespace: String,
    /// Key of the row
    key: String,
}

/// Print the rows of a namespace
///
/// Rows are printed while they are read, in the byte order of their keys.
#[derive(Args)]
pub(crate) struct Scan {
    #[command(flatten)]
    store: StoreArguments,
    /// Namespace to print
    namespace: String,
    /// Print only rows whose key begins with PREFIX
    #[arg(default_value = "")]
    prefix: String,
    /// Print only rows whose key is KEY or later
    #[arg(long, value_name = "KEY")]
    start: Option<String>,
    /// Print only rows whose key is before KEY
    #[arg(long, value_name = "KEY")]
    end: Option<String>,
    /// Print the rows from the last key to the first
    #[arg(long)]
    reverse: bool,
    /// Print at most this number of rows [default: no limit]
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,
    /// Print keys without values
    #[arg(long)]
    keys_only: bool,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// Print the namespaces of a store
#[derive(Args)]
pub(crate) struct Namespaces {
    #[command(flatten)]
    store: StoreArguments,
    /// Print one JSON string per line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct StoreArguments {
    #[command(flatten)]
    store: StoreArgument,
    /// Decode escapes such as `\u{0}` in namespaces and keys
    ///
    /// `larder scan` prints namespaces and keys with these escapes.
    #[arg(long)]
    escaped: bool,
}

impl StoreArguments {
    async fn look(&self) -> Result<(Store, Handle)> {
        let store = self.store.look().await?;
        let handle = operator(&store);
        Ok((store, handle))
    }

    async fn open(&self) -> Result<(Store, Handle)> {
        let store = self.store.open().await?;
        let handle = operator(&store);
        Ok((store, handle))
    }

    fn name(&self, text: String) -> Result<String> {
        if self.escaped { unescape(&text) } else { Ok(text) }
    }
}

impl Get {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let (store, handle) = self.store.look().await?;
        let (namespace, key) = (self.store.name(self.namespace), self.store.name(self.key));
        let found = closing(store, move || async move {
            let (namespace, key) = (namespace?, key?);
            let found = handle.begin(Mode::View)?.get_versioned(namespace.clone(), key.clone()).await?;
            Ok((found, namespace, key))
        });
        let (found, namespace, key) = found.await?;
        let Some((value, version)) = found else {
            complain(format_args!("there is no row {key:?} in the namespace {namespace:?}"));
            return Ok(ExitCode::FAILURE);
        };
        if self.json {
            let (name, value) = json_value(value);
            let row = serde_json::json!({
                "namespace": namespace, "key": key, name: value, "version": version.0,
            });
            writeln!(output(), "{row}")?;
        } else {
            output().write_value(&value)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Put {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let value = match self.value {
            Some(value) => value.into_bytes(),
            None => read_value()?,
        };
        let (store, handle) = self.store.open().await?;
        let committed = closing(store, move || async move {
            let mut transaction = handle.begin(Mode::Update)?;
            let options = PutOptions::default().ttl_ms(self.ttl_ms).if_version(self.if_version.map(Version));
            let (namespace, key) = (self.store.name(self.namespace)?, self.store.name(self.key)?);
            transaction.put_with(namespace.clone(), key.clone(), value, options)?;
            match (transaction.commit().await, self.if_version) {
                (Err(Error::Conflict), Some(expected)) => Err(stale(&handle, namespace, key, expected).await),
                (committed, _) => Ok(committed?),
            }
        });
        let version = committed.await?.0;
        let printed = writeln!(output(), "version {version}");
        printed.with_context(|| {
            format!("the row was written, version {version}, but the output was not written")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// An error with the version that the row has instead of the expected one.
async fn stale(handle: &Handle, namespace: String, key: String, expected: u64) -> anyhow::Error {
    let expected = match expected {
        0 => "absent".to_string(),
        version => format!("at version {version}"),
    };
    let row = format!("{key:?} in the namespace {namespace:?}");
    let found = async { handle.begin(Mode::View)?.get_versioned(namespace, key).await };
    match found.await {
        Ok(Some((_, found))) => {
            anyhow!(
                "cannot write {row}: the row is at version {}, not {expected}; nothing was written",
                found.0
            )
        }
        Ok(None) => anyhow!("cannot write {row}: the row is absent, not {expected}; nothing was written"),
        Err(error) => {
            let what =
                format!("cannot write {row}: the row is not {expected}, and its version cannot be read");
            anyhow!(error).context(what)
        }
    }
}

/// Reads the value from standard input: at most one byte more than the limit, so that a longer
/// value fails the check of the limit.
fn read_value() -> Result<Vec<u8>> {
    let mut value = Vec::new();
    let read =
        standard::input().and_then(|input| input.take(Limits::VALUE_BYTES_MAX + 1).read_to_end(&mut value));
    read.context("cannot read the value from standard input; nothing was written")?;
    Ok(value)
}

impl Delete {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let (store, handle) = self.store.open().await?;
        let deleted = closing(store, move || async move {
            let mut transaction = handle.begin(Mode::Update)?;
            let (namespace, key) = (self.store.name(self.namespace)?, self.store.name(self.key)?);
            let was_there = transaction.get_versioned(namespace.clone(), key.clone()).await?.is_some();
            transaction.delete(namespace.clone(), key.clone())?;
            match transaction.commit().await {
                Err(Error::Conflict) => {
                    bail!(
                        "cannot delete {key:?} in the namespace {namespace:?}: another process wrote it \
                         meanwhile; run the command again"
                    )
                }
                committed => committed?,
            };
            Ok(was_there)
        });
        let was_there = deleted.await?;
        let (said, done) = match was_there {
            true => ("deleted", "the row was deleted"),
            false => ("there was no such row", "there was no such row"),
        };
        writeln!(output(), "{said}").with_context(|| format!("{done}, but the output was not written"))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Scan {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let (store, handle) = self.store.look().await?;
        let printed = closing(store, move || async move {
            let name = |text: Option<String>| text.map(|text| self.store.name(text)).transpose();
            let namespace = self.store.name(self.namespace)?;
            let range = Range {
                prefix: self.store.name(self.prefix)?,
                start: name(self.start)?,
                end: name(self.end)?,
                reverse: self.reverse,
                limit: None,
                keys_only: self.keys_only,
            };
            let view = handle.begin(Mode::View)?;
            print_rows(view, namespace, range, self.limit, self.json).await
        });
        done(printed.await)
    }
}

/// The number of rows to read at once.
const PAGE_ROWS: u32 = 500;

async fn print_rows(
    mut view: Transaction,
    namespace: String,
    mut range: Range,
    limit: Option<u64>,
    json: bool,
) -> Result<()> {
    let mut left = limit.unwrap_or(u64::MAX);
    let mut after = None;
    while left > 0 {
        range.limit = Some(u32::try_from(left).unwrap_or(PAGE_ROWS).min(PAGE_ROWS));
        let page = view.scan_page(namespace.clone(), range.clone(), after).await?;
        left -= page.entries.len() as u64;
        let mut output = output();
        for entry in page.entries {
            if json {
                let (name, value) = json_value(entry.value);
                let mut row = serde_json::json!({ "key": entry.key });
                if let (Some(row), false) = (row.as_object_mut(), range.keys_only) {
                    row.insert(name.to_string(), value.into());
                }
                writeln!(output, "{row}")?;
            } else if range.keys_only {
                writeln!(output, "{}", escape(&entry.key))?;
            } else {
                writeln!(output, "{}\t{}", escape(&entry.key), escape_bytes(&entry.value))?;
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    Ok(())
}

impl Namespaces {
    pub(crate) async fn execute(self) -> Result<ExitCode> {
        let (store, handle) = self.store.look().await?;
        let printed =
            closing(
                store,
                move || async move { print_namespaces(handle.begin(Mode::View)?, self.json).await },
            );
        done(printed.await)
    }
}

async fn print_namespaces(mut view: Transaction, json: bool) -> Result<()> {
    let mut after: Option<Namespace> = None;
    while let Some(namespace) = view.next_namespace(after).await? {
        let text = namespace.to_string();
        let mut output = output();
        match json {
            true => writeln!(output, "{}", serde_json::Value::from(text))?,
            false => writeln!(output, "{}", escape(&text))?,
        }
        after = Some(namespace);
    }
    Ok(())
}

/// The exit code of a command whose only work is to print.
pub(crate) fn done(printed: Result<()>) -> Result<ExitCode> {
    heard(printed).map(|()| ExitCode::SUCCESS)
}
