//! `larder tenants show`: prints the state of a tenant in object storage.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use larder_host::TenantKey;
use larder_host::larder_tenants::{Head, LogOverview, Takeover};
use serde_json::json;

use crate::output::output;
use crate::tenants::list::head_json;
use crate::tenants::{Location, head_of, parse_key, snapshot_json};
use crate::text::{bytes, escape, time};

/// Print the state of a tenant in object storage
#[derive(Args)]
pub(super) struct Show {
    #[command(flatten)]
    location: Location,
    /// Tenant to print: ORG/users/USER, ORG/org, ORG/apps/APP or ORG/apps/APP/projects/PROJECT
    #[arg(value_parser = parse_key)]
    key: TenantKey,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let remote = self.location.remote()?;
        let head = head_of(&remote, &self.key).await?;
        let log = remote.log_overview(&self.key, &head).await?;
        let shown = if self.json { self.object(&head, &log) } else { self.text(&head, &log)? };
        write!(output(), "{shown}")?;
        Ok(ExitCode::SUCCESS)
    }

    fn object(&self, head: &Head, log: &LogOverview) -> String {
        let mut object = head_json(&self.key, head);
        if let Some(object) = object.as_object_mut() {
            let LogOverview { segments, bytes, .. } = log;
            object.insert("log".to_string(), json!({ "segments": segments, "bytes": bytes }));
            let history: Vec<_> = head.history.iter().map(snapshot_json).collect();
            object.insert("history".to_string(), json!(history));
        }
        format!("{object}\n")
    }

    fn text(&self, head: &Head, log: &LogOverview) -> Result<String> {
        let mut text = format!("{}\ngeneration {}, epoch {}\n", self.key, head.generation, head.epoch);
        if let Some(deletion) = &head.deletion {
            let (at, purge_at) = (time(deletion.at), time(deletion.purge_at));
            writeln!(
                text,
                "deleted at {at}; from {purge_at} on, `larder tenants purge` may remove its objects"
            )?;
        }
        match &head.lease {
            Some(lease) => {
                let holder = escape(&lease.holder);
                writeln!(text, "lease: held by {holder}; it expires {:?} after each renewal", lease.ttl())?;
            }
            None => writeln!(text, "lease: free")?,
        }
        for Takeover { holder, folder, epoch, .. } in &head.takeovers {
            let holder = escape(holder);
            let folder = folder.as_ref().map_or_else(String::new, |folder| format!(", {}", escape(folder)));
            writeln!(
                text,
                "epoch {epoch}: {holder} did not release the lease; its unsent commits are in its cache directory{folder}"
            )?;
        }
        match log.segments {
            0 => writeln!(text, "log: no segments after the snapshot")?,
            segments => {
                let more = if log.has_more { " and more" } else { "" };
                writeln!(text, "log: {segments} segments{more} after the snapshot, {}", bytes(log.bytes))?;
            }
        }
        if head.snapshot.is_none() {
            writeln!(text, "snapshots: none")?;
            return Ok(text);
        }
        writeln!(text, "snapshots, the current one last:")?;
        let snapshots: Vec<_> = head.snapshots().collect();
        for (number, snapshot) in (1..).zip(&snapshots) {
            let (size, stored) = (bytes(snapshot.bytes), bytes(snapshot.compressed_bytes));
            let (taken_at, sha256) = (time(snapshot.taken_at), &snapshot.sha256);
            let is_ahead = snapshots.iter().skip(number).any(|later| later.taken_at < snapshot.taken_at);
            let note = if is_ahead { "  (a clock was ahead)" } else { "" };
            let (generation, version) = (snapshot.generation, snapshot.version);
            writeln!(
                text,
                "  {taken_at}  generation {generation}  version {version}  {size}, {stored} compressed  {sha256}{note}"
            )?;
        }
        Ok(text)
    }
}
