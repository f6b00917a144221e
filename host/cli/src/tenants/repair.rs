//! `larder tenants repair`.

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

/// Make the lost or damaged head of a tenant anew, from its snapshots and its log
///
/// Without --yes it only prints what the head would say. Stop all hosts that have the tenant open before you repair it.
#[derive(Args)]
pub(super) struct Repair {
    #[command(flatten)]
    host: HostArguments,
    /// The tenant
    #[arg(value_parser = parse_key)]
    key: TenantKey,
    /// Write the head
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
        let outcome =
            waiting(format!("looking at the objects of {}", self.key), until_ended(repairing)).await;
        host.close().await;
        let plan = signals::closed(outcome)?;
        heard(self.print(&plan).context("the output was not written"))?;
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, plan: &Plan) -> Result<(), OutputError> {
        let mut output = output();
        writeln!(output, "snapshots that are whole, the current one last:")?;
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
        writeln!(output, "segments of the log: {}", plan.segments)?;
        match self.yes {
            true => writeln!(output, "{} has a head again", self.key),
            false => writeln!(output, "nothing was written; add --yes to write this head"),
        }
    }
}
