//! Finds out whether a pooler stands between larder and its server.
//!
//! A pooler may give a client another session for each transaction. Statements that were prepared in one are unknown in another, or
//! are those of another client: their names repeat from client to client. So nothing is prepared if there is a pooler.

use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::encryption::Encryption;
use crate::error::Result;

/// Asks for the process of the server that works for a session. A standby refuses this to a serializable transaction.
const PROCESS: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT pg_catalog.pg_backend_pid(); COMMIT";

/// A cancel request: its length and its code, then the process and its secret.
const CANCEL_BYTES: usize = 16;

/// Whether a client speaks with the server itself.
pub(crate) async fn is_direct(client: &Client) -> Result<bool> {
    let answer = client.simple_query(PROCESS).await?;
    let process = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(process.is_some() && named_process(client).await == process)
}

/// The process that the server, or a pooler in its place, named when the connection was made.
///
/// tokio-postgres tells it to nobody but the server, in a cancel request. So one is written that goes nowhere.
async fn named_process(client: &Client) -> Option<i32> {
    let (near, mut far) = duplex(CANCEL_BYTES);
    let handshake = MakeTlsConnect::<DuplexStream>::make_tls_connect(&mut Encryption::none(), "").ok()?;
    client.cancel_token().cancel_query_raw(near, handshake).await.ok()?;
    let mut request = [0; CANCEL_BYTES];
    far.read_exact(&mut request).await.ok()?;
    let process = request.get(8..12)?.try_into().ok()?;
    Some(i32::from_be_bytes(process))
}
