//! `larder tenants quarantine apply`: writes a quarantined database to the live tenant.

use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use larder_host::larder_tenants::{
    PlannedRow, PlannedSession, QuarantinedStore, Reapplied, ReapplyPlan, ReapplyPolicy, ReapplyRows,
};
use larder_host::{IdentityParts, TenantKey, Version};
use serde_json::json;

use crate::output::{OutputError, complain, heard, output};
use crate::progress::waiting;
use crate::signals::{self, until_ended};
use crate::tenants::host::Host;
use crate::tenants::{HostArguments, head_of};
use crate::text::escape;

/// Write the rows and conversations of a quarantined database to the live tenant
///
/// Without --yes, the command only prints what it would write. It never deletes a row of the live
/// tenant: a row that was deleted in the quarantined database cannot be distinguished from a row
/// that was added to the live tenant later. The database stays in quarantine.
#[derive(Args)]
pub(super) struct Apply {
    #[command(flatten)]
    host: HostArguments,
    /// Name of the database, as `larder tenants quarantine` prints it
    name: String,
    #[command(flatten)]
    policy: Policy,
    /// Include rows that the host had already uploaded
    ///
    /// The live tenant may have deleted or changed these rows since.
    #[arg(long)]
    include_sent: bool,
    /// Write even if the two have different guest migrations
    ///
    /// By default, the command fails if components have applied other guest migrations in the
    /// quarantined database than in the live tenant.
    #[arg(long)]
    other_layout: bool,
    /// Write the changes instead of printing them
    #[arg(long)]
    yes: bool,
    /// Print one JSON object per row and conversation of the plan
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Policy {
    /// Write only rows and conversations that the live tenant lacks
    #[arg(long)]
    only_missing: bool,
    /// Also replace rows and conversations that differ
    #[arg(long)]
    overwrite: bool,
}

/// The largest number of rows, and of conversations, of a plan to print as text.
const PRINTED_MAX: usize = 100;

impl Apply {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let remote = self.host.location.remote()?;
        let host = self.host.options()?.open().await?;
        let applying = async {
            let quarantined = host.tenants.open_quarantined(&self.name).await?;
            let key: TenantKey = quarantined.quarantined.tenant.parse()?;
            head_of(&remote, &key).await?;
            self.apply(&host, &key, &quarantined).await
        };
        let outcome = waiting(format!("comparing {:?}", self.name), until_ended(applying)).await;
        let unwritten = host.close().await;
        for sentence in &unwritten {
            complain(sentence);
        }
        let left = signals::closed(outcome)?;
        Ok(if unwritten.is_empty() && left == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Returns the number of rows and conversations that were not written, because the live tenant
    /// changed them after the plan was made.
    async fn apply(&self, host: &Host, key: &TenantKey, quarantined: &QuarantinedStore) -> Result<usize> {
        let tenant = host.tenants.get_existing(key).await?;
        let live = tenant.store();
        let policy =
            if self.policy.overwrite { ReapplyPolicy::Overwrite } else { ReapplyPolicy::OnlyMissing };
        let rows = if self.include_sent { ReapplyRows::All } else { ReapplyRows::Unsent };
        let plan = quarantined.plan(&live, policy, rows).await?;
        heard(self.print(key, &plan).context("the output was not written"))?;
        if !plan.other_layouts.is_empty() && !self.other_layout {
            bail!(
                "components have applied other migrations in the database than in the live tenant: {}; nothing was \
                 written; write nevertheless with --other-layout",
                plan.other_layouts.iter().map(|name| escape(name)).collect::<Vec<_>>().join(", ")
            );
        }
        if !self.yes {
            return Ok(0);
        }
        match quarantined.apply(&live, &plan).await {
            Ok(done) => {
                heard(report(&done).context("the changes were written, but the output was not written"))?;
                Ok(done.changed_rows.len() + done.changed_sessions.len())
            }
            Err((done, error)) => {
                let Reapplied { rows, sessions, .. } = done;
                let what = format!(
                    "{rows} rows and {sessions} conversations were written before an error; run the command again"
                );
                Err(anyhow!(error).context(what))
            }
        }
    }

    fn print(&self, key: &TenantKey, plan: &ReapplyPlan) -> Result<(), OutputError> {
        if self.json {
            return print_json(plan);
        }
        let mut output = output();
        let missing = plan.rows.iter().filter(|row| row.live == Version::ABSENT).count();
        let replaced = plan.rows.len() - missing;
        let ReapplyPlan { sent_rows, equal_rows, kept_rows, equal_sessions, kept_sessions, .. } = plan;
        writeln!(
            output,
            "{key}: rows to add {missing}, to replace {replaced}; unchanged: already uploaded {sent_rows}, equal {equal_rows}, different {kept_rows}"
        )?;
        for PlannedRow { namespace, key, live } in plan.rows.iter().take(PRINTED_MAX) {
            let what = if *live == Version::ABSENT { "add" } else { "replace" };
            writeln!(output, "  {what}\t{}\t{}", escape(namespace), escape(key))?;
        }
        more(&plan.rows)?;
        let missing = plan.sessions.iter().filter(|session| session.is_missing()).count();
        writeln!(
            output,
            "conversations to add {missing}, to replace {}; unchanged: equal {equal_sessions}, different {kept_sessions}",
            plan.sessions.len() - missing
        )?;
        for session in plan.sessions.iter().take(PRINTED_MAX) {
            let what = if session.is_missing() { "add" } else { "replace" };
            let IdentityParts { tenant, user, session, run } = &session.identity;
            let names = [tenant, user, session, run].map(|name| escape(name)).join("\t");
            writeln!(output, "  {what}\t{names}")?;
        }
        more(&plan.sessions)?;
        match self.yes {
            true => Ok(()),
            false => writeln!(output, "nothing was written; add --yes to write these changes"),
        }
    }
}

fn more<T>(items: &[T]) -> Result<(), OutputError> {
    match items.len().saturating_sub(PRINTED_MAX) {
        0 => Ok(()),
        more => writeln!(output(), "  and {more} more; print all with --json"),
    }
}

fn print_json(plan: &ReapplyPlan) -> Result<(), OutputError> {
    let mut output = output();
    for PlannedRow { namespace, key, live } in &plan.rows {
        let live = (*live != Version::ABSENT).then_some(live.0);
        writeln!(output, "{}", json!({ "namespace": namespace, "key": key, "live_version": live }))?;
    }
    for session in &plan.sessions {
        let PlannedSession { identity: IdentityParts { tenant, user, session: of, run }, .. } = session;
        let conversation = json!({ "tenant": tenant, "user": user, "session": of, "run": run });
        writeln!(output, "{}", json!({ "conversation": conversation, "is_missing": session.is_missing() }))?;
    }
    Ok(())
}

fn report(done: &Reapplied) -> Result<(), OutputError> {
    let Reapplied { rows, sessions, changed_rows, changed_sessions, .. } = done;
    for PlannedRow { namespace, key, .. } in changed_rows {
        complain(format_args!("the row {namespace:?} {key:?} was changed meanwhile and was not written"));
    }
    for PlannedSession { identity, .. } in changed_sessions {
        complain(format_args!(
            "the conversation {:?} was changed meanwhile and was not written",
            identity.session
        ));
    }
    writeln!(output(), "wrote {rows} rows and {sessions} conversations")
}
