//! Detects a pooler between larder and the server.
//!
//! A pooler may give a client another session for each transaction. A statement that was prepared
//! in one session is unknown in another, or is a statement of another client with the same name. So
//! larder prepares no statements behind a pooler.

use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::encryption::Encryption;
use crate::error::Result;

/// Returns the server process of the session. A standby refuses serializable transactions.
const PROCESS: &str =
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SELECT pg_catalog.pg_backend_pid(); COMMIT";

/// The first bytes of a cancel request: its length, its code and the process.
const CANCEL_HEAD: usize = 12;

/// More than a cancel request takes, however long the secret behind the process is.
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

/// The process that the server, or a pooler in its place, named when the client connected.
///
/// tokio-postgres exposes it only in cancel requests. So this writes one to a pipe.
async fn named_process(client: &Client) -> Option<i32> {
    let (near, mut far) = duplex(CANCEL_MAX);
    let handshake = MakeTlsConnect::<DuplexStream>::make_tls_connect(&mut Encryption::none(), "").ok()?;
    client.cancel_token().cancel_query_raw(near, handshake).await.ok()?;
    let mut request = [0; CANCEL_HEAD];
    far.read_exact(&mut request).await.ok()?;
    let process = request.get(8..12)?.try_into().ok()?;
    Some(i32::from_be_bytes(process))
}
