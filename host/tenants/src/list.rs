//! Lists the tenants in object storage.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::key::{Slug, TenantKey};
use crate::remote::Remote;

/// The most tenants that [`Remote::list`] returns.
const MAX_PAGE: usize = 10_000;

impl Remote {
    /// Lists the first tenants after `after`: at most `max`, and at most 10,000.
    ///
    /// They are ordered by organisation, and within an organisation by object path. A tenant is
    /// listed once a host has taken its lease.
    ///
    /// This lists the folders of an organisation, and not the objects of tenants. It does not rely
    /// on the order in which a server lists.
    ///
    /// # Errors
    /// [`TenantError::Unavailable`](crate::TenantError::Unavailable) if object storage cannot be
    /// reached.
    pub async fn list(&self, after: Option<&TenantKey>, max: usize) -> Result<Vec<TenantKey>> {
        let max = max.min(MAX_PAGE);
        let mut keys = Vec::new();
        for org in self.slugs_in("").await? {
            if keys.len() >= max {
                break;
            }
            if after.is_some_and(|after| org < *after.org_slug()) {
                continue;
            }
            let is_after = |key: &TenantKey| after.is_none_or(|after| order(key) > order(after));
            let mut of_org: Vec<_> = self.tenants_of(&org).await?.into_iter().filter(is_after).collect();
            of_org.sort_by_cached_key(TenantKey::object_path);
            keys.extend(of_org.into_iter().take(max - keys.len()));
        }
        Ok(keys)
    }

    async fn tenants_of(&self, org: &Slug) -> Result<Vec<TenantKey>> {
        let (mut keys, top) = self.folders_in(&format!("{org}")).await?;
        if top.contains("users") {
            keys.extend(self.folders_in(&format!("{org}/users")).await?.0);
        }
        if top.contains("apps") {
            let (apps, folders) = self.folders_in(&format!("{org}/apps")).await?;
            keys.extend(apps);
            for app in folders.iter().filter(|app| Slug::new(app).is_ok()) {
                keys.extend(self.folders_in(&format!("{org}/apps/{app}/projects")).await?.0);
            }
        }
        Ok(keys)
    }

    async fn slugs_in(&self, relative: &str) -> Result<BTreeSet<Slug>> {
        let (_, folders) = self.folders_in(relative).await?;
        Ok(folders.iter().filter_map(|name| Slug::new(name).ok()).collect())
    }

    /// The tenants directly below a folder, and the names of the other folders there.
    async fn folders_in(&self, relative: &str) -> Result<(Vec<TenantKey>, BTreeSet<String>)> {
        let objects = self.objects();
        let folder = if relative.is_empty() { objects.root().clone() } else { objects.path(relative) };
        let (mut keys, mut names) = (Vec::new(), BTreeSet::new());
        for found in objects.folders(&folder).await? {
            match objects.relative(&found).and_then(TenantKey::from_object_path) {
                Some(key) => keys.push(key),
                None => names.extend(found.filename().map(str::to_string)),
            }
        }
        Ok((keys, names))
    }
}

fn order(key: &TenantKey) -> (&Slug, String) {
    (key.org_slug(), key.object_path())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;
    use object_store::path::Path as ObjectPath;

    use super::*;
    use crate::remote::RemoteOptions;

    fn key(text: &str) -> TenantKey {
        text.parse().unwrap()
    }

    async fn put(remote: &Remote, relative: &str) {
        remote.objects().store().put(&remote.objects().path(relative), "x".into()).await.unwrap();
    }

    #[tokio::test]
    async fn tenants_are_listed_in_pages_without_their_other_objects() {
        let remote =
            Remote::new(Arc::new(InMemory::new()), ObjectPath::from("pre/fix"), RemoteOptions::default())
                .unwrap();
        let names = ["acme/apps/shop", "acme/apps/shop/projects/x", "acme/org", "acme/users/ann", "b/org"];
        for name in names {
            put(&remote, &format!("{name}.db/head.json")).await;
        }
        for number in 0..100 {
            put(&remote, &format!("acme/apps/shop.db/segments/{number:020}")).await;
        }
        put(&remote, ".probe/x/head.json").await;
        put(&remote, "acme/users/UPPER.db/head.json").await;
        let mut paged = Vec::new();
        while let page = remote.list(paged.last(), 2).await.unwrap()
            && !page.is_empty()
        {
            assert!(page.len() <= 2);
            paged.extend(page);
        }
        assert_eq!(paged, names.map(key));
        assert_eq!(remote.list(None, usize::MAX).await.unwrap(), paged);
        assert_eq!(remote.list(Some(&key("acme/org")), 1).await.unwrap(), [key("acme/users/ann")]);
    }
}
