//! Finds out whether a server that gives no answer is silent.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::connector::{Connector, ListedServer};
use crate::silence::Silence;

/// Asks the server of a connection.
pub(crate) struct Prober {
    connector: Connector,
    server: Arc<ListedServer>,
    address: Option<IpAddr>,
    is_direct: bool,
}

impl Prober {
    /// `is_direct` says that no pooler stands in between. A pooler may let a login wait for reasons of its own.
    pub(crate) fn new(
        connector: Connector,
        server: Arc<ListedServer>,
        address: Option<IpAddr>,
        is_direct: bool,
    ) -> Self {
        Self { connector, server, address, is_direct }
    }

    /// Whether another server could be used instead.
    pub(crate) fn has_others(&self) -> bool {
        self.connector.servers_count() > 1
    }

    pub(crate) fn silence(&self) -> &Arc<Silence> {
        &self.server.silence
    }

    /// Finds out in the background whether the server accepts logins. If it does not, and there are other servers, all
    /// connections to it close. One slow answer does not say as much, and guests can cause it.
    pub(crate) fn probe(&self) {
        if !self.is_direct || !self.has_others() {
            return;
        }
        let Some(probing) = self.silence().begin_probe() else { return };
        let (connector, server, address) = (self.connector.clone(), self.server.clone(), self.address);
        tokio::spawn(async move {
            let asked_at = Instant::now();
            if connector.is_silent(&server, address).await {
                tracing::warn!(host = server.options.host, "the database server does not answer");
                server.silence.begin(asked_at);
            } else {
                server.silence.end_doubt(asked_at);
            }
            drop(probing);
        });
    }
}
