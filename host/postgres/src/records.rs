//! Records of memory.

use std::sync::Arc;

use larder_core::Identity;
use larder_core::backend::Version;
use larder_core::clock::UnixMillis;
use larder_core::memory::records::{RecordKey, RecordWrite, StoredRecord};
use larder_core::to_its_end::ToItsEnd;
use larder_core::{Error, Result, Share};
use tokio_postgres::Row;

use crate::commit::in_time;
use crate::connections::Connections;
use crate::error;
use crate::maintenance::{transaction, transaction_of};
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
        opening::READ,
        &connections.queries().load_record,
        &[&tenant, &user, &session, &run, &key.kind],
    )
    .await?;
    rows.first().map(stored_record).transpose()
}

pub(crate) async fn write(connections: &Arc<Connections>, write: Arc<RecordWrite>) -> Result<()> {
    connections.check_open()?;
    let held = connections.clone();
    let work = async move {
        let mut session = held.session(&write.key.share()).await?;
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

/// Makes a commit that leaves nothing behind. The server acknowledges it after those that it stands behind in the log.
///
/// No identity has these bytes, as they are not UTF-8.
pub(crate) async fn confirm(connections: &Arc<Connections>) -> Result<()> {
    connections.check_open()?;
    let held = connections.clone();
    let work = async move {
        let mut session = held.session(&Share::host()).await?;
        held.abandoned().check()?;
        let (queries, tenant) =
            (session.queries(), [&[0xff][..], &fastrand::u128(..).to_be_bytes()].concat());
        let (tenant, empty, version): (_, &[u8], _) = (tenant.as_slice(), &[], 1_i64);
        let key: [&dyn Param; 6] = [&tenant, &empty, &empty, &empty, &"", &version];
        let row: [&dyn Param; 11] =
            [&tenant, &empty, &empty, &empty, &"", &"", &empty, &version, &None::<i64>, &0_i64, &0_i64];
        let calls: [Call<'_>; 2] = [(&queries.insert_record, &row), (&queries.delete_record, &key)];
        in_time(&mut session, async |session| {
            let outcome = session.run(Some(opening::SHORT), &calls, End::Commit).await;
            outcome.map(drop).map_err(|stopped| stopped.failure)
        })
        .await
    };
    Ok(ToItsEnd::new(connections.runtime(), work).await?)
}

pub(crate) async fn list(
    connections: &Connections,
    after: Option<&RecordKey>,
    max: u32,
) -> error::Result<Vec<RecordKey>> {
    let [tenant, user, session, run] = after.map_or([&[][..]; 4], |after| parts(&after.identity));
    // No kind is empty: nothing is left out at the beginning.
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

/// A statement that writes nothing found the record at another version.
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
    transaction(connections, opening::READ, sql, params).await?.iter().map(record_key).collect()
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
