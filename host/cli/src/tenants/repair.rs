//! `larder tenants repair`: rebuilds the head of a tenant.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use larder_host::TenantKey;
use larder_host::larder_tenants::Repair as Plan;

use crate::output::{OutputError, heard, output};
use crate::progress::waiting;
use crate::signals::{self, until_ended};
use crate::tenants::{HostArguments, parse_key};
use crate::text::{bytes, escape, time};

/// Rebuild the lost or damaged head of a tenant from its snapshots and its log segments
///
/// Without --yes, the command only prints the head that it would write. First stop all hosts that
/// have the tenant open.
#[derive(Args)]
pub(super) struct Repair {
    #[command(flatten)]
    host: HostArguments,
    /// Tenant to repair
    #[arg(value_parser = parse_key)]
    key: TenantKey,
    /// Write the head instead of printing it
    #[arg(long)]
    yes: bool,
}

impl Repair {
    pub(super) async fn execute(self) -> Result<ExitCode> {
        let host = self.host.options()?.open().await?;
        let (remote, cache) = (host.tenants.remote(), host.tenants.cache());
        let repairing = async {
            let plan = remote.plan_repair(&self.key, cache).await?;
            if self.yes {
                remote.repair(&self.key, &plan).await?;
            }
            Ok(plan)
        };
        let outcome = waiting(format!("reading the objects of {}", self.key), until_ended(repairing)).await;
        host.close().await;
        let plan = signals::closed(outcome)?;
        heard(self.print(&plan).context("the output was not written"))?;
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, plan: &Plan) -> Result<(), OutputError> {
        let mut output = output();
        writeln!(output, "intact snapshots, the current one last:")?;
        for snapshot in plan.head.snapshots() {
            writeln!(
                output,
                "  {}  {}  {}",
                time(snapshot.taken_at),
                bytes(snapshot.bytes),
                snapshot.sha256
            )?;
        }
        for (name, error) in &plan.damaged {
            writeln!(output, "damaged: {}: {error}", escape(name))?;
        }
        writeln!(output, "log segments: {}", plan.segments)?;
        match self.yes {
            true => writeln!(output, "{} has a head again", self.key),
            false => writeln!(output, "nothing was written; add --yes to write this head"),
        }
    }
}
