//! The identity under which `larder run` runs a component.

use anyhow::{Context, Result};
use clap::Args;
use larder_host::{Slug, TenantIdentity};

#[derive(Args)]
pub(crate) struct RunIdentity {
    /// Tenant for which the component runs (an organisation)
    #[arg(long)]
    pub(crate) tenant: Option<String>,
    /// User for whom the component runs
    #[arg(long, requires = "tenant")]
    pub(crate) user: Option<String>,
    /// App for which the component runs
    #[arg(long, requires = "tenant")]
    app: Option<String>,
    /// Project of the app for which the component runs
    #[arg(long, requires = "app")]
    project: Option<String>,
}

impl RunIdentity {
    /// The identity for stores of tenants; `None` without `--tenant`.
    pub(crate) fn of_tenant(&self) -> Result<Option<TenantIdentity>> {
        let Some(tenant) = &self.tenant else { return Ok(None) };
        let slug = |option: &'static str, text: &str| Slug::new(text).context(option);
        let optional =
            |option, text: &Option<String>| text.as_ref().map(|text| slug(option, text)).transpose();
        Ok(Some(TenantIdentity {
            org: slug("--tenant", tenant)?,
            user: optional("--user", &self.user)?,
            app: optional("--app", &self.app)?,
            project: optional("--project", &self.project)?,
        }))
    }
}
