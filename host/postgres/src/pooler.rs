//! Detects a pooler between larder and the server.
//!
//! A pooler may run each transaction of a client in another session. A statement that was prepared
//! in one session does not exist in another, or is another client's statement with the same name.
//! So larder prepares no statements behind a pooler.

use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::encryption::Encryption;
use crate::error::Result;

/// Queries the process ID of the session's server process. A standby refuses serializable
/// transactions, so the transaction states its isolation level.
const PROCESS: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT pg_catalog.pg_backend_pid(); COMMIT";

/// The first bytes of a cancel request: its length, its code and the process ID.
const CANCEL_HEAD: usize = 12;

/// Upper bound for the size of a cancel request, whose secret key has a variable length.
const CANCEL_MAX: usize = 1_024;

/// Whether the client is connected to the server itself.
pub(crate) async fn is_direct(client: &Client) -> Result<bool> {
    let answer = client.simple_query(PROCESS).await?;
    let process = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    });
    Ok(process.is_some() && named_process(client).await == process)
}

/// Returns the process ID that the server, or a pooler in front of it, sent at connection start.
///
/// tokio-postgres exposes it only in cancel requests, so this function writes one to an in-memory
/// pipe.
async fn named_process(client: &Client) -> Option<i32> {
    let (near, mut far) = duplex(CANCEL_MAX);
    let handshake = MakeTlsConnect::<DuplexStream>::make_tls_connect(&mut Encryption::none(), "").ok()?;
    client.cancel_token().cancel_query_raw(near, handshake).await.ok()?;
    let mut request = [0; CANCEL_HEAD];
    far.read_exact(&mut request).await.ok()?;
    let process = request.get(8..12)?.try_into().ok()?;
    Some(i32::from_be_bytes(process))
}
