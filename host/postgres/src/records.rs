//! Records of conversations.

use std::sync::Arc;

use larder_core::Identity;
use larder_core::clock::UnixMillis;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::row::Version;
use larder_core::to_its_end::ToItsEnd;
use larder_core::{Error, Result};
use tokio_postgres::Row;

use crate::commit::in_time;
use crate::connections::Connections;
use crate::error;
use crate::maintenance::{READ, transaction, transaction_of};
use crate::opening;
use crate::param::{Param, Params};
use crate::rows::{checked, column, saturating, unsigned, version};
use crate::session::{Call, End, Session};

pub(crate) const LOAD: &str = "
    SELECT strategy, bytes, version, due_at, created_at, updated_at FROM {schema}.larder_memory_state
    WHERE tenant_id = $1 AND user_id = $2 AND session_id = $3 AND run_id = $4 AND kind = $5";

pub(crate) const INSERT: &str = "
    INSERT INTO {schema}.larder_memory_state
        (tenant_id, user_id, session_id, run_id, kind, strategy, bytes, version, due_at, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    ON CONFLICT DO NOTHING
    RETURNING version";

pub(crate) const UPDATE: &str = "
    UPDATE {schema}.larder_memory_state
    SET strategy = $6, bytes = $7, version = $8, due_at = $9, created_at = $10, updated_at = $11
    WHERE tenant_id = $1 AND user_id = $2 AND session_id = $3 AND run_id = $4 AND kind = $5 AND version = $12
    RETURNING version";

pub(crate) const DELETE: &str = "
    DELETE FROM {schema}.larder_memory_state
    WHERE tenant_id = $1 AND user_id = $2 AND session_id = $3 AND run_id = $4 AND kind = $5 AND version = $6
    RETURNING version";

pub(crate) const TOUCH: &str = "
    UPDATE {schema}.larder_memory_state SET version = version
    WHERE tenant_id = $1 AND user_id = $2 AND session_id = $3 AND run_id = $4 AND kind = $5 AND version = $6
    RETURNING version";

pub(crate) const LIST: &str = "
    SELECT tenant_id, user_id, session_id, run_id, kind FROM {schema}.larder_memory_state
    WHERE (tenant_id, user_id, session_id, run_id, kind) > ($1, $2, $3, $4, $5)
    ORDER BY tenant_id, user_id, session_id, run_id, kind LIMIT $6";

pub(crate) const DUE: &str = "
    SELECT tenant_id, user_id, session_id, run_id, kind FROM {schema}.larder_memory_state
    WHERE due_at <= $1 ORDER BY due_at LIMIT $2";

pub(crate) async fn load(connections: &Connections, key: &RecordKey) -> error::Result<Option<StoredRecord>> {
    let [tenant, user, session, run] = parts(&key.identity);
    let rows = transaction_of(
        &key.share(),
        connections,
        READ,
        &connections.queries().load_record,
        &[&tenant, &user, &session, &run, &key.kind],
    )
    .await?;
    rows.first().map(stored_record).transpose()
}

pub(crate) async fn write(connections: &Arc<Connections>, write: Arc<RecordWrite>) -> Result<()> {
    connections.check_open()?;
    connections.abandoned().check()?;
    let held = connections.clone();
    let work = async move {
        let mut session = held.session(&write.key.share()).await?;
        // Other commits may have been abandoned meanwhile.
        held.abandoned().check()?;
        match write_in(&mut session, &write).await {
            Err(failure) if failure.is_lost_before() => {
                held.renew(&mut session).await?;
                write_in(&mut session, &write).await
            }
            outcome => outcome,
        }
    };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

/// Runs a commit that checks that the record has this version, and changes nothing.
///
/// The server acknowledges it only after the commit that wrote the record, so the standby has
/// received that commit too. A server without that commit does not find the record. Then this fails
/// with [`Error::Conflict`].
pub(crate) async fn confirm(connections: &Arc<Connections>, key: RecordKey, version: Version) -> Result<()> {
    connections.check_open()?;
    let held = connections.clone();
    let work = async move {
        let mut session = held.session(&key.share()).await?;
        match confirm_in(&mut session, &key, version).await {
            Err(failure) if failure.is_lost_before() => {
                held.renew(&mut session).await?;
                confirm_in(&mut session, &key, version).await
            }
            outcome => outcome,
        }
    };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

async fn confirm_in(session: &mut Session, key: &RecordKey, version: Version) -> error::Result<()> {
    let queries = session.queries();
    let [tenant, user, of, run] = parts(&key.identity);
    let (at, any, zero) = (saturating(version.0), 1_i64, 0_i64);
    let empty: &[u8] = &[];
    let touched: [&dyn Param; 6] = [&tenant, &user, &of, &run, &key.kind, &at];
    let inserted: [&dyn Param; 11] =
        [&tenant, &user, &of, &run, &key.kind, &"", &empty, &any, &None::<i64>, &zero, &zero];
    let deleted: [&dyn Param; 6] = [&tenant, &user, &of, &run, &key.kind, &any];
    // If the record is absent, there is no row to touch. So this inserts one and deletes it again.
    let calls: Vec<Call<'_>> = match version {
        Version::ABSENT => vec![(&queries.insert_record, &inserted), (&queries.delete_record, &deleted)],
        _ => vec![(&queries.touch_record, &touched)],
    };
    let found = in_time(session, async |session| {
        let outcome = session.run(Some(opening::SHORT), &calls, End::Commit).await;
        outcome.map_err(|stopped| stopped.failure)
    });
    let is_found = found.await?.first().is_some_and(|rows| !rows.is_empty());
    if is_found { Ok(()) } else { Err(Error::Conflict.into()) }
}

pub(crate) async fn list(
    connections: &Connections,
    after: Option<&RecordKey>,
    max: u32,
) -> error::Result<Vec<RecordKey>> {
    let [tenant, user, session, run] = after.map_or([&[][..]; 4], |after| parts(&after.identity));
    // No kind is empty, so the list starts with the first record.
    let (kind, max) = (after.map_or("", |after| &after.kind), i64::from(max));
    keys(connections, &connections.queries().list_records, &[&tenant, &user, &session, &run, &kind, &max])
        .await
}

pub(crate) async fn due(
    connections: &Connections,
    now: UnixMillis,
    max: u32,
) -> error::Result<Vec<RecordKey>> {
    keys(connections, &connections.queries().due_records, &[&saturating(now), &i64::from(max)]).await
}

/// Writes a record. If no row matched, the record has another version, and this fails with
/// [`Error::Conflict`].
async fn write_in(session: &mut Session, write: &RecordWrite) -> error::Result<()> {
    let written = in_time(session, async |session| execute(session, write).await).await?;
    if written.is_empty() { Err(Error::Conflict.into()) } else { Ok(()) }
}

async fn execute(session: &mut Session, write: &RecordWrite) -> error::Result<Vec<Row>> {
    let RecordKey { identity, kind } = &write.key;
    let [tenant, user, of, run] = parts(identity);
    let (expected, queries) = (saturating(write.expected.0), session.queries());
    let Some(record) = &write.record else {
        let key: &Params<'_> = &[&tenant, &user, &of, &run, kind, &expected];
        return session.commit_one(opening::SHORT, (&queries.delete_record, key)).await;
    };
    let StoredRecord { strategy, bytes, version, due_at, created_at, updated_at } = record;
    let (version, due_at) = (saturating(version.0), due_at.map(saturating));
    let (created_at, updated_at) = (saturating(*created_at), saturating(*updated_at));
    let mut params: Vec<_> = Vec::with_capacity(12);
    let all: &Params<'_> =
        &[&tenant, &user, &of, &run, kind, strategy, bytes, &version, &due_at, &created_at, &updated_at];
    params.extend_from_slice(all);
    if write.expected == Version::ABSENT {
        return session.commit_one(opening::SHORT, (&queries.insert_record, &params)).await;
    }
    params.push(&expected);
    session.commit_one(opening::SHORT, (&queries.update_record, &params)).await
}

async fn keys(connections: &Connections, sql: &str, params: &Params<'_>) -> error::Result<Vec<RecordKey>> {
    transaction(connections, READ, sql, params).await?.iter().map(record_key).collect()
}

fn record_key(row: &Row) -> error::Result<RecordKey> {
    let identity = Identity::from_stored(
        column(row, "tenant_id")?,
        column(row, "user_id")?,
        column(row, "session_id")?,
        column(row, "run_id")?,
    )?;
    Ok(RecordKey { identity, kind: column(row, "kind")? })
}

fn stored_record(row: &Row) -> error::Result<StoredRecord> {
    Ok(StoredRecord {
        strategy: column(row, "strategy")?,
        bytes: column(row, "bytes")?,
        version: version(row)?,
        due_at: column::<Option<i64>>(row, "due_at")?.map(checked).transpose()?,
        created_at: unsigned(row, "created_at")?,
        updated_at: unsigned(row, "updated_at")?,
    })
}

fn parts(identity: &Identity) -> [&[u8]; 4] {
    [identity.tenant(), identity.user(), identity.session(), identity.run()].map(str::as_bytes)
}
