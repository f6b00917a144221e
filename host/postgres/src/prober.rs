//! Finds out whether a server that gives no answer is silent.

use std::sync::Arc;

use tokio::time::{Instant, timeout};

use crate::connector::{Connector, ListedServer};
use crate::silence::{ANSWER_MAX, Silence};

/// Asks the server of a connection.
pub(crate) struct Prober {
    connector: Connector,
    server: Arc<ListedServer>,
    is_direct: bool,
}

impl Prober {
    /// `is_direct` says that no pooler stands in between. A pooler may let a login wait for reasons of its own.
    pub(crate) fn new(connector: Connector, server: Arc<ListedServer>, is_direct: bool) -> Self {
        Self { connector, server, is_direct }
    }

    pub(crate) fn silence(&self) -> &Silence {
        &self.server.silence
    }

    /// Finds out in the background whether the server accepts logins. If it does not, and there are other servers, all
    /// connections to it close. One slow answer does not say as much, and guests can cause it.
    pub(crate) fn probe(&self) {
        if !self.is_direct || self.connector.servers_count() < 2 || !self.silence().begin_probe() {
            return;
        }
        let (connector, server) = (self.connector.clone(), self.server.clone());
        tokio::spawn(async move {
            let asked_at = Instant::now();
            let answers = timeout(ANSWER_MAX, connector.answers(&server)).await.unwrap_or(false);
            if !answers {
                tracing::warn!(host = server.options.host, "the database server does not answer");
                server.silence.begin(asked_at);
            }
            server.silence.end_probe();
        });
    }
}
