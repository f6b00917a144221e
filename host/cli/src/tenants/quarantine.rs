//! `larder tenants quarantine`: manages quarantined databases.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use larder_host::TenantError;
use larder_host::larder_tenants::{CacheFolder, Quarantined, QuarantinedRow};
use serde_json::json;

use crate::inspect::done;
use crate::memory::Exported;
use crate::output::output;
use crate::tenants::reapply::Apply;
use crate::text::{escape, json_value, time};

/// Print, export, apply or remove quarantined databases
///
/// A host quarantines a database if another host took over the tenant before the database's last
/// commits were uploaded. Each is a SQLite file. Without a subcommand, the databases are printed.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Quarantine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Subcommand)]
enum Command {
    /// Print the rows and conversations of a quarantined database as JSON, one per line
    Export(Export),
    /// Write the rows and conversations of a quarantined database to the live tenant
    Apply(Apply),
}

#[derive(Args)]
struct Export {
    /// Name of the database, as `larder tenants quarantine` prints it
    name: String,
    /// Cache directory of the host [default: the user cache directory]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

#[derive(Args)]
struct List {
    /// Cache directory of the host [default: the user cache directory]
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Remove the database NAME permanently
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
    /// Print one JSON object per line
    #[arg(long, conflicts_with = "remove")]
    json: bool,
}

type Folders = Vec<(CacheFolder, Vec<Quarantined>)>;

/// Returns the cache directories and their quarantined databases.
fn folders(cache_dir: Option<&Path>) -> Result<Folders> {
    let root = match cache_dir {
        Some(folder) => folder.to_path_buf(),
        None => CacheFolder::default_root()
            .context("cannot find the user cache directory; give the cache directory with --cache-dir")?,
    };
    let folders = CacheFolder::find(&root)?;
    if folders.is_empty() {
        bail!("{} is not a cache directory of tenants and contains none; check --cache-dir", root.display());
    }
    let open = |folder: PathBuf| {
        let folder = CacheFolder::open(&folder).map_err(|error| match error {
            TenantError::CacheInUse { folder } => {
                anyhow!("cannot open the cache directory {folder}: a host is using it; stop the host first")
            }
            error => error.into(),
        })?;
        let quarantined = folder.quarantined()?;
        Ok((folder, quarantined))
    };
    folders.into_iter().map(open).collect()
}

/// The cache directory that contains this quarantined database.
fn folder_with<'a>(folders: &'a Folders, name: &str) -> Option<&'a CacheFolder> {
    let has_it = |quarantined: &[Quarantined]| quarantined.iter().any(|found| found.name == name);
    folders.iter().find(|(_, quarantined)| has_it(quarantined)).map(|(folder, _)| folder)
}

impl Quarantine {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        match self.command {
            None => self.list.execute(),
            Some(Command::Export(export)) => done(export.print().await),
            Some(Command::Apply(apply)) => apply.execute().await,
        }
    }
}

impl Export {
    async fn print(&self) -> Result<()> {
        let folders = folders(self.cache_dir.as_deref())?;
        let folder = folder_with(&folders, &self.name).with_context(|| missing(&self.name))?;
        let store = folder.open_quarantined(&self.name).await?;
        let printed = store.for_each_row(async |row| {
            let QuarantinedRow { namespace, key, value, version, expires_at } = row;
            let (name, value) = json_value(value);
            let expires_at = expires_at.map(time);
            let row = json!({
                "namespace": namespace, "key": key, name: value, "version": version.0, "expires_at": expires_at,
            });
            Ok::<_, anyhow::Error>(writeln!(output(), "{row}")?)
        });
        printed.await?;
        let printed = store.for_each_session(async |identity, snapshot| {
            let session = Exported::new(identity, &snapshot)?;
            Ok::<_, anyhow::Error>(writeln!(output(), "{}", json!({ "conversation": session }))?)
        });
        printed.await
    }
}

fn missing(name: &str) -> String {
    format!("there is no quarantined database {name:?}; `larder tenants quarantine` prints the databases")
}

impl List {
    fn execute(self) -> Result<ExitCode> {
        let folders = folders(self.cache_dir.as_deref())?;
        match &self.remove {
            None => done(self.print(&folders)),
            Some(name) => remove(&folders, name),
        }
    }

    fn print(&self, folders: &Folders) -> Result<()> {
        let mut output = output();
        if !self.json {
            writeln!(output, "NAME\tTENANT\tSINCE\tSENT\tWRITTEN\tREASON\tDATABASE")?;
        }
        for quarantined in folders.iter().flat_map(|(_, quarantined)| quarantined) {
            let Quarantined { name, database, tenant, reason, at, sent_position, position } = quarantined;
            let (at, database) = (time(*at), database.display().to_string());
            if self.json {
                let object = json!({
                    "name": name, "tenant": tenant, "at": at, "sent_position": sent_position,
                    "position": position, "reason": reason, "database": database,
                });
                writeln!(output, "{object}")?;
                continue;
            }
            let [sent, written] = [sent_position, position]
                .map(|position| position.map_or("-".to_string(), |at| at.to_string()));
            let [name, tenant, reason, database] = [name, tenant, reason, &database].map(|text| escape(text));
            writeln!(output, "{name}\t{tenant}\t{at}\t{sent}\t{written}\t{reason}\t{database}")?;
        }
        Ok(())
    }
}

fn remove(folders: &Folders, name: &str) -> Result<ExitCode> {
    let Some(folder) = folder_with(folders, name) else {
        bail!("there is no quarantined database {name:?}; `larder tenants quarantine` prints the databases");
    };
    folder.remove_from_quarantine(name)?;
    let printed = writeln!(output(), "removed {}", escape(name));
    printed.with_context(|| format!("{name:?} was removed, but the output was not written"))?;
    Ok(ExitCode::SUCCESS)
}
