//! Probes a server that has not responded to a call.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::time::Instant;

use crate::connector::{Connector, ListedServer};
use crate::silence::Silence;

/// Probes the server of one connection.
pub(crate) struct Prober {
    connector: Connector,
    server: Arc<ListedServer>,
    address: Option<IpAddr>,
    is_direct: bool,
}

impl Prober {
    /// `is_direct` is `true` if no pooler is between larder and the server. A pooler may delay a
    /// login for reasons of its own, so it is not probed.
    pub(crate) fn new(
        connector: Connector,
        server: Arc<ListedServer>,
        address: Option<IpAddr>,
        is_direct: bool,
    ) -> Self {
        Self { connector, server, address, is_direct }
    }

    /// Whether the options list other servers.
    pub(crate) fn has_others(&self) -> bool {
        self.connector.servers_count() > 1
    }

    pub(crate) fn silence(&self) -> &Arc<Silence> {
        &self.server.silence
    }

    /// Tests in the background whether the server accepts logins.
    ///
    /// If it does not, and there are other servers, all connections to it close. One slow response
    /// does not justify that, and guests can cause one.
    pub(crate) fn probe(&self) {
        if !self.is_direct || !self.has_others() {
            return;
        }
        let Some(probing) = self.silence().begin_probe() else { return };
        let (connector, server, address) = (self.connector.clone(), self.server.clone(), self.address);
        tokio::spawn(async move {
            let asked_at = Instant::now();
            if connector.is_unreachable(&server, address).await {
                tracing::warn!(host = server.options.host, "the database server does not respond");
                server.silence.begin(asked_at);
            } else {
                server.silence.end_doubt(asked_at);
            }
            drop(probing);
        });
    }
}
