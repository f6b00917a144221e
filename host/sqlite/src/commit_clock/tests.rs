//! Tests of the clock, by commits that are stopped at each of their steps.

use larder_core::MovableClock;
use larder_core::chunk::{Chunk, ScanOptions};
use larder_core::commit::RowWrite;
use larder_core::commit_log::CommitLog;
use larder_core::name::{KeyRange, RowKey};
use larder_core::row::StoredValue;

use super::*;
use crate::location::Location;
use crate::row_cache::{Beginning, Moment};
use crate::{SqliteOptions, connection};

/// The clock of a process, a connection of it, and a connection that stands for another process.
fn clock(folder: &std::path::Path) -> (CommitClock, Connection, Connection) {
    let location = Arc::new(Location::resolve(&folder.join("a.db")).unwrap());
    let options = SqliteOptions::default();
    let ours = connection::open_for_larder(&location, options, connection::BUSY_TIMEOUT).unwrap();
    crate::migrate::migrate(&ours, &location, options).unwrap();
    statements::last_version(&ours).unwrap();
    let theirs = connection::open(&location, options).unwrap();
    let readers = Arc::new(Readers::new(location, options));
    // SAFETY: the connection has just read, and the tests keep it for as long as the clock.
    let clock = unsafe { CommitClock::new(readers, &ours, 1 << 20) }.unwrap();
    (clock, ours, theirs)
}

fn commit(connection: &Connection, version: u64) {
    statements::set_last_version(connection, Version(version)).unwrap();
}

/// Ends a member that needs no version. Returns the state that it leaves.
fn end_state(writing: &mut Writing<'_>) -> StateNumber {
    writing.end_state([]);
    writing.state
}

fn announce(writing: &mut Writing<'_>, expires_at: Option<UnixMillis>) {
    (writing.expires_at, writing.wrote) = (expires_at, true);
    writing.announce();
}

fn made(mut writing: Writing<'_>, versions: VersionBlock, wrote: bool) {
    (writing.versions, writing.wrote) = (versions, wrote);
    writing.made();
}

fn fill(clock: &CommitClock, row: &RowKey, moment: Moment, found: Option<&StoredValue>) {
    clock.fill(moment.state, |rows, right| rows.fill(right, row, moment, found));
}

fn fill_range(clock: &CommitClock, range: &KeyRange, chunk: &Chunk, moment: Moment) {
    assert!(clock.rows().takes(range, chunk));
    clock.fill(moment.state, |rows, right| rows.fill_range(right, range, Arc::new(chunk.clone()), moment));
}

/// Makes a commit of this process.
fn commit_here(clock: &CommitClock, ours: &Connection, version: u64) -> StateNumber {
    let mut log = CommitLog::default();
    let mut under_way = clock.begin(ours, &mut log, None).unwrap();
    let number = end_state(&mut under_way);
    announce(&mut under_way, None);
    commit(ours, version);
    made(under_way, VersionBlock::read(Version(version)), true);
    number
}

fn newest(clock: &CommitClock) -> Option<Arc<CommittedState>> {
    clock.newest(&ForwardClock::default()).map(|(state, _)| state)
}

fn saw(clock: &CommitClock, reserved: Version, mark: Option<Mark>) -> Option<Seen> {
    clock.saw(reserved, mark, &ForwardClock::default()).map(|(seen, _)| seen)
}

#[test]
fn a_state_is_the_newest_until_the_next_commit() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, theirs) = clock(folder.path());
    let first = newest(&clock).unwrap().number;
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    assert!(newest(&clock).is_none());
    let second = end_state(&mut under_way);
    announce(&mut under_way, None);
    commit(&ours, 1);
    made(under_way, VersionBlock::read(Version(1)), true);
    assert!(newest(&clock).unwrap().number > first);
    commit(&theirs, 2);
    assert!(newest(&clock).is_none());
    let seen = saw(&clock, Version(2), clock.mark()).unwrap();
    assert!(seen.is_cached && seen.state > second);
    // Right after a foreign commit, another one may follow.
    assert!(newest(&clock).is_none());
}

#[test]
fn who_commits_knows_the_versions_given_until_another_process_commits() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, theirs) = clock(folder.path());
    let given = VersionBlock { last: Version(1), reserved: Version(100) };
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    let number = end_state(&mut under_way);
    commit(&ours, 100);
    made(under_way, given, true);
    let next = clock.begin(&ours, &mut log, None).unwrap();
    assert_eq!(next.versions, given);
    drop(next);
    assert_eq!(clock.begin(&ours, &mut log, None).unwrap().versions, given);
    // The next commit continues after the versions that it finds reserved.
    commit(&theirs, 200);
    let next = clock.begin(&ours, &mut log, None).unwrap();
    assert_eq!(next.versions, VersionBlock::read(Version(200)));
    assert!(next.state > number);
}

#[test]
fn a_state_that_another_process_left_has_a_number_of_its_own_even_where_the_table_did_not_change() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, _ours, theirs) = clock(folder.path());
    let mut numbers = vec![newest(&clock).unwrap().number];
    for key in ["a", "b"] {
        // Within the block of versions that is reserved.
        theirs
            .execute("INSERT INTO larder_entries VALUES (x'', CAST(?1 AS BLOB), x'', 1, NULL)", [key])
            .unwrap();
        numbers.push(saw(&clock, Version(0), clock.mark()).unwrap().state);
    }
    assert!(numbers.is_sorted_by(|before, after| before < after), "{numbers:?}");
}

#[test]
fn a_transaction_sees_the_commit_under_way_or_the_state_before_it() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    let (before, after) = (under_way.state, end_state(&mut under_way));
    let seen = saw(&clock, Version(0), clock.mark());
    assert_eq!(seen, Some(Seen { state: before, is_cached: true }));
    announce(&mut under_way, None);
    let old = clock.mark();
    commit(&ours, 1);
    assert_eq!(saw(&clock, Version(0), old), None);
    let seen = saw(&clock, Version(1), clock.mark());
    assert_eq!(seen, Some(Seen { state: after, is_cached: false }));
    made(under_way, VersionBlock::read(Version(1)), true);
    assert_eq!(saw(&clock, Version(1), clock.mark()), Some(Seen { state: after, is_cached: true }));
}

#[test]
fn the_number_of_a_commit_that_failed_is_not_given_again() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, theirs) = clock(folder.path());
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    let failed = end_state(&mut under_way);
    announce(&mut under_way, None);
    drop(under_way);
    commit(&theirs, 1);
    assert!(saw(&clock, Version(1), clock.mark()).unwrap().state > failed);
}

#[test]
fn a_commit_of_another_process_behind_one_of_this_process_is_noticed() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, theirs) = clock(folder.path());
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    end_state(&mut under_way);
    commit(&ours, 1);
    commit(&theirs, 2);
    made(under_way, VersionBlock::read(Version(1)), true);
    assert!(newest(&clock).is_none());
}

#[test]
fn a_commit_of_another_process_behind_one_that_wrote_nothing_is_noticed() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, theirs) = clock(folder.path());
    let under_way = clock.begin(&ours, &mut log, None).unwrap();
    let given = under_way.versions;
    commit(&theirs, 1);
    made(under_way, given, false);
    assert!(newest(&clock).is_none());
}

#[test]
fn a_commit_of_another_process_is_not_taken_for_one_that_wrote_nothing() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, theirs) = clock(folder.path());
    let under_way = clock.begin(&ours, &mut log, None).unwrap();
    let (before, versions) = (under_way.state, under_way.versions);
    under_way.announce();
    commit(&theirs, 1);
    assert_eq!(saw(&clock, Version(1), clock.mark()), None);
    made(under_way, versions, false);
    assert!(saw(&clock, Version(1), clock.mark()).unwrap().state > before);
}

#[test]
fn versions_that_were_given_back_are_not_reserved() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    commit_through(&clock, &ours, &mut log, |writing| {
        writing.end_member(Version(1), []);
        writing.reserve_versions(99)
    });
    assert!(clock.has_reserved());
    commit_through(&clock, &ours, &mut log, |writing| writing.give_back_versions());
    assert!(!clock.has_reserved());
    // The next version is above the bound in the table, so the bound moves.
    commit_through(&clock, &ours, &mut log, |writing| {
        writing.end_member(Version(2), []);
        writing.reserve_versions(0)
    });
    assert_eq!(statements::last_version(&ours).unwrap(), Version(2));
}

#[test]
fn who_stands_on_a_state_reads_on_there_and_others_do_not_hold_it() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    let held = newest(&clock).unwrap();
    commit_here(&clock, &ours, 1);
    let read = held.pin().unwrap().read_in_transaction(statements::last_version);
    assert_eq!(read.unwrap().unwrap(), Version(0));
    let weak = Arc::downgrade(&held);
    drop(held);
    assert!(weak.upgrade().is_none());
    // No snapshot stands on this state, so it is not pinned.
    drop(clock.begin(&ours, &mut log, None).unwrap());
    assert!(!clock.state.lock().newest.has_pin());
}

#[test]
fn a_closed_cache_reads_nothing_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    clock.close();
    drop(ours);
    assert!(newest(&clock).is_none() && clock.mark().is_none());
}

#[test]
fn what_a_commit_rests_on_has_not_expired_for_a_snapshot_of_the_state_before_it() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    let moving = Arc::new(MovableClock::default());
    let times = ForwardClock::new(moving.clone());
    let held = clock.newest(&times).unwrap();
    let begun = times.now();
    let mut under_way = clock.begin(&ours, &mut log, Some(&times)).unwrap();
    moving.advance(Duration::from_secs(60));
    let (newest, moment) = clock.newest(&times).unwrap();
    assert_eq!(newest.number, held.0.number);
    assert!((begun..begun + 30_000).contains(&moment), "{begun} {moment}");
    assert_eq!(clock.saw(Version(0), clock.mark(), &times).unwrap().1, moment);
    end_state(&mut under_way);
    let (until, later) = (begun + 30_000, begun + 600_000);
    for (expires_at, expected) in [(None, None), (Some(until), Some(until - 1)), (Some(later), None)] {
        announce(&mut under_way, expires_at);
        let moment = clock.newest(&times).unwrap().1;
        assert!(expected.map_or(moment >= begun + 60_000, |expected| moment == expected), "{moment}");
    }
    commit(&ours, 1);
    assert!(clock.saw(Version(1), clock.mark(), &times).unwrap().1 >= begun + 60_000);
    made(under_way, VersionBlock::read(Version(1)), true);
    assert!(clock.newest(&times).unwrap().1 >= begun + 60_000);
}

fn row(key: &str) -> RowKey {
    let limits = larder_core::Limits::default();
    let namespace = larder_core::name::Namespace::new("n", &limits).unwrap();
    RowKey { namespace, key: larder_core::name::Key::new(key, &limits).unwrap() }
}

fn stored(value: &[u8], version: u64) -> StoredValue {
    StoredValue { value: value.to_vec(), version: Version(version), expires_at: None }
}

fn all_rows() -> KeyRange {
    KeyRange::prefix(row("").namespace, b"")
}

/// One row, as a scan of all rows finds it.
fn chunk(key: &[u8], version: u64) -> Chunk {
    let mut chunk = Chunk::default();
    let row = larder_core::chunk::ChunkRow { key, value: b"v", version: Version(version), expires_at: None };
    chunk.push(row).unwrap();
    chunk.exhausted = true;
    chunk
}

fn moment(state: StateNumber) -> Moment {
    Moment { state, now: 1_000 }
}

/// The version of the first row that a cached scan gives; `None` if it is not cached.
fn scanned(clock: &CommitClock, state: StateNumber) -> Option<u64> {
    let options = ScanOptions::new(9, 9_999);
    match clock.rows().beginning(&all_rows(), options, moment(state)).unwrap() {
        Beginning::Cached(found) => found.rows().next().map(|row| row.version.0),
        _ => None,
    }
}

fn got(clock: &CommitClock, key: &str, state: StateNumber) -> Option<Option<u64>> {
    clock.rows().get(&row(key), moment(state)).map(|found| found.map(|found| found.version.0))
}

#[test]
fn what_is_read_between_commits_is_cached_and_what_is_read_during_one_is_not() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    let state = newest(&clock).unwrap().number;
    fill(&clock, &row("a"), moment(state), Some(&stored(b"v", 7)));
    fill(&clock, &row("b"), moment(state), None);
    assert_eq!((got(&clock, "a", state), got(&clock, "b", state)), (Some(Some(7)), Some(None)));
    fill_range(&clock, &all_rows(), &chunk(b"a", 7), moment(state));
    assert_eq!(scanned(&clock, state), Some(7));

    // The commit has looked up which cached rows it changes, and does not change these.
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    fill(&clock, &row("c"), moment(state), Some(&stored(b"v", 7)));
    let other = KeyRange::prefix(row("").namespace, b"z");
    fill_range(&clock, &other, &chunk(b"z", 7), moment(state));
    let number = end_state(&mut under_way);
    announce(&mut under_way, None);
    commit(&ours, 1);
    made(under_way, VersionBlock::read(Version(1)), true);
    assert_eq!(got(&clock, "c", number), None);
    assert_eq!(got(&clock, "a", number), Some(Some(7)), "what was cached before holds");
    assert_eq!(scanned(&clock, number), Some(7));

    // A read of the state before the commit says nothing about the state after it.
    fill(&clock, &row("d"), moment(state), Some(&stored(b"v", 7)));
    fill_range(&clock, &other, &chunk(b"z", 7), moment(state));
    assert_eq!(got(&clock, "d", number), None);
    fill(&clock, &row("d"), moment(number), Some(&stored(b"v", 8)));
    assert_eq!(got(&clock, "d", number), Some(Some(8)));
    assert_eq!(got(&clock, "d", state), None, "the earlier state may differ");
}

#[test]
fn a_commit_changes_the_cached_rows_that_it_writes_and_forgets_the_ranges_around_them() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    let state = newest(&clock).unwrap().number;
    for key in ["a", "b", "c"] {
        fill(&clock, &row(key), moment(state), Some(&stored(b"v", 7)));
    }
    fill_range(&clock, &all_rows(), &chunk(b"a", 7), moment(state));
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    let put = RowWrite::Put { value: b"new".as_slice().into(), expires_at: None };
    under_way.note(&row("a"), &put, Version(8));
    under_way.note(&row("b"), &RowWrite::Delete, Version(8));
    under_way.note(&row("not cached"), &put, Version(8));
    let number = end_state(&mut under_way);
    announce(&mut under_way, None);
    assert_eq!(got(&clock, "a", state), Some(Some(7)), "not before it is made");
    commit(&ours, 8);
    made(under_way, VersionBlock::read(Version(8)), true);
    let after = ["a", "b", "c", "not cached"].map(|key| got(&clock, key, number));
    assert_eq!(after, [Some(Some(8)), Some(None), Some(Some(7)), None]);
    assert_eq!((got(&clock, "a", state), scanned(&clock, number)), (None, None));
}

#[test]
fn a_commit_that_failed_leaves_what_is_cached_as_it_was() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    let state = newest(&clock).unwrap().number;
    fill(&clock, &row("a"), moment(state), Some(&stored(b"v", 7)));
    fill_range(&clock, &all_rows(), &chunk(b"a", 7), moment(state));
    let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
    under_way.note(&row("a"), &RowWrite::Delete, Version(8));
    end_state(&mut under_way);
    announce(&mut under_way, None);
    drop(under_way);
    assert_eq!(newest(&clock).unwrap().number, state);
    assert_eq!((got(&clock, "a", state), scanned(&clock, state)), (Some(Some(7)), Some(7)));
    // The header shows that SQLite did not make it, so its number is free.
    assert_eq!(commit_here(&clock, &ours, 8), state.next());
}

#[test]
fn a_commit_of_another_process_empties_the_cache_once_it_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, _ours, theirs) = clock(folder.path());
    let state = newest(&clock).unwrap().number;
    assert!(!clock.has_company(Duration::from_secs(3_600)));
    fill(&clock, &row("a"), moment(state), Some(&stored(b"v", 7)));
    fill_range(&clock, &all_rows(), &chunk(b"a", 7), moment(state));
    assert!(clock.newest_at(state).is_some());
    commit(&theirs, 9);
    assert!(clock.newest_at(state).is_none(), "it is not the newest state");
    let seen = saw(&clock, Version(9), clock.mark()).unwrap().state;
    assert_eq!((got(&clock, "a", seen), scanned(&clock, seen)), (None, None));
    assert!(clock.newest_at(seen).is_some() && clock.newest_at(state).is_none());
    assert!(clock.has_company(Duration::from_secs(3_600)) && !clock.has_company(Duration::ZERO));
}

#[test]
fn a_state_is_not_given_by_its_number_while_a_commit_is_under_way() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    let state = newest(&clock).unwrap().number;
    let under_way = clock.begin(&ours, &mut log, None).unwrap();
    assert!(clock.newest_at(state).is_none());
    drop(under_way);
    assert!(clock.newest_at(state).is_some() && clock.newest_at(state.next()).is_none());
}

#[test]
fn versions_are_reserved_until_the_last_of_them_is_allocated() {
    let mut log = CommitLog::default();
    let folder = tempfile::tempdir().unwrap();
    let (clock, ours, _theirs) = clock(folder.path());
    for (last, is_reserved) in [(99, true), (100, false)] {
        let mut under_way = clock.begin(&ours, &mut log, None).unwrap();
        end_state(&mut under_way);
        announce(&mut under_way, None);
        commit(&ours, 100 + last);
        let given = VersionBlock { last: Version(100 + last), reserved: Version(200) };
        made(under_way, given, true);
        assert_eq!(clock.has_reserved(), is_reserved);
    }
}

/// Runs `work` in a transaction of this process that holds the write lock.
fn commit_through<T>(
    clock: &CommitClock,
    ours: &Connection,
    log: &mut CommitLog,
    work: impl FnOnce(&mut Writing<'_>) -> Result<T>,
) -> T {
    ours.execute_batch("BEGIN IMMEDIATE").unwrap();
    clock.commit(ours, log, None, work).unwrap()
}

#[test]
fn a_replay_changes_the_cached_rows_and_each_of_its_groups_leaves_a_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = CommitLog::default();
    let (clock, ours, _theirs) = clock(folder.path());
    let before = newest(&clock).unwrap().number;
    fill(&clock, &row("a"), moment(before), None);
    fill(&clock, &row("b"), moment(before), None);
    let groups: Vec<_> = [1, 2]
        .into_iter()
        .flat_map(|number| {
            let mut redo = larder_core::redo::RedoWriter::new(Version(number - 1));
            let put = RowWrite::Put { value: b"v".as_slice().into(), expires_at: None };
            redo.row(&row("a"), &put, Version(number));
            larder_core::redo::decode(redo.finish(Version(number)).unwrap().as_bytes()).unwrap()
        })
        .collect();
    let replayed = commit_through(&clock, &ours, &mut log, |writing| crate::redo::replay(writing, &groups));
    assert_eq!(replayed, (Version(2), 2));
    let after = newest(&clock).unwrap().number;
    assert_eq!(after, before.next().next());
    assert_eq!((got(&clock, "a", after), got(&clock, "b", after)), (Some(Some(2)), Some(None)));
    assert_eq!(got(&clock, "a", before), None, "the state before the replay does not have the row");
    let again = commit_through(&clock, &ours, &mut log, |writing| crate::redo::replay(writing, &groups));
    assert_eq!(again, (Version(2), 0), "the database holds them");
    assert_eq!(newest(&clock).unwrap().number, after);
}

#[test]
fn a_commit_that_is_refused_leaves_neither_rows_nor_versions_nor_an_entry_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = CommitLog::default();
    let (clock, ours, _theirs) = clock(folder.path());
    let before = newest(&clock).unwrap().number;
    fill(&clock, &row("a"), moment(before), None);
    let put = RowWrite::Put { value: b"v".as_slice().into(), expires_at: None };
    ours.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = clock.commit(&ours, &mut log, None, |writing| {
        writing.write_row(&row("a"), &put, Version(1))?;
        writing.end_member(Version(1), [row("a")]);
        writing.reserve_versions(10)?;
        Err::<(), _>(larder_core::Error::Conflict)
    });
    assert!(matches!(refused, Err(crate::transaction::CommitError::NotMade(larder_core::Error::Conflict))));
    ours.execute_batch("ROLLBACK").unwrap();
    assert_eq!(newest(&clock).unwrap().number, before);
    assert_eq!(got(&clock, "a", before), Some(None));
    assert!(!clock.has_reserved());
    let last = commit_through(&clock, &ours, &mut log, |writing| Ok(writing.last_version()));
    assert_eq!(last, Version(0));
}

#[test]
fn without_a_wal_index_no_version_is_reserved_and_no_state_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = CommitLog::default();
    let connection = Connection::open_in_memory().unwrap();
    connection
        .execute_batch(
            "CREATE TABLE larder_commit_sequence (last INTEGER NOT NULL);
             INSERT INTO larder_commit_sequence VALUES (3)",
        )
        .unwrap();
    let location = Arc::new(Location::resolve(&folder.path().join("a.db")).unwrap());
    let readers = Arc::new(Readers::new(location, SqliteOptions::default()));
    // SAFETY: the connection stays open for as long as the clock.
    let clock = unsafe { CommitClock::new(readers, &connection, 1 << 20) }.unwrap();
    assert!(!clock.sees_others() && newest(&clock).is_none() && clock.mark().is_none());
    for version in [4, 8] {
        commit_through(&clock, &connection, &mut log, |writing| {
            assert_eq!((writing.last_version(), writing.state()), (Version(version - 1), None));
            writing.end_member(Version(version), []);
            writing.reserve_versions(1_000)
        });
        assert_eq!(statements::last_version(&connection).unwrap(), Version(version));
        assert!(newest(&clock).is_none() && !clock.has_reserved());
        // Another process, which nothing announces.
        commit(&connection, 7);
    }
    assert!(!clock.has_company(Duration::from_secs(3_600)), "nothing shows another process");
}
