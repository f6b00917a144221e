//! `larder tenants quarantine`: databases that could not be kept.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use larder_host::TenantError;
use larder_host::larder_tenants::{CacheFolder, Quarantined};
use serde_json::json;

use crate::inspect::done;
use crate::output::output;
use crate::text::{escape, time};

/// Print or remove the databases of a host that could not be kept
///
/// What they hold was never sent, as another host had the tenant by then. They are SQLite files, to be looked into.
#[derive(Args)]
pub(super) struct Quarantine {
    /// The host's cache folder; where it is left out, that of the user's programs
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
    /// Remove the one of this name for good
    #[arg(long, value_name = "NAME")]
    remove: Option<String>,
    /// Print a JSON object a line
    #[arg(long, conflicts_with = "remove")]
    json: bool,
}

impl Quarantine {
    pub(super) fn execute(self) -> Result<ExitCode> {
        let folders = self.folders()?;
        match &self.remove {
            None => done(self.print(&folders)),
            Some(name) => remove(&folders, name),
        }
    }

    /// The cache folders, and what is in quarantine there.
    fn folders(&self) -> Result<Vec<(CacheFolder, Vec<Quarantined>)>> {
        let root = match &self.cache_dir {
            Some(folder) => folder.clone(),
            None => CacheFolder::default_root()
                .context("nothing says where the cache folder is; say it with --cache-dir")?,
        };
        let folders = CacheFolder::find(&root)?;
        if folders.is_empty() {
            bail!("{} is no cache folder of tenants, and there is none in it", root.display());
        }
        let open = |folder: PathBuf| {
            let folder = CacheFolder::open(&folder).map_err(|error| match error {
                TenantError::CacheInUse { folder } => {
                    anyhow!("a host has the cache folder {folder} open; its quarantine can be looked into once it ends")
                }
                error => error.into(),
            })?;
            let quarantined = folder.quarantined()?;
            Ok((folder, quarantined))
        };
        folders.into_iter().map(open).collect()
    }

    fn print(&self, folders: &[(CacheFolder, Vec<Quarantined>)]) -> Result<()> {
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

fn remove(folders: &[(CacheFolder, Vec<Quarantined>)], name: &str) -> Result<ExitCode> {
    let has_it = |quarantined: &[Quarantined]| quarantined.iter().any(|found| found.name == name);
    let Some((folder, _)) = folders.iter().find(|(_, quarantined)| has_it(quarantined)) else {
        bail!("nothing in quarantine is called {name:?}; without --remove, what is there is printed");
    };
    folder.remove_from_quarantine(name)?;
    let printed = writeln!(output(), "removed {}", escape(name));
    printed.with_context(|| format!("{name:?} was removed, but the output was not written"))?;
    Ok(ExitCode::SUCCESS)
}
