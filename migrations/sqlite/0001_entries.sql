-- Rows of every store in this database. Names are bytes: text may hold NUL, and byte order is the order.
CREATE TABLE larder_entries (
    namespace  BLOB NOT NULL,
    key        BLOB NOT NULL,
    value      BLOB NOT NULL,
    version    INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

-- For sweeping expired rows; most rows are permanent and not in it.
CREATE INDEX larder_entries_expiry ON larder_entries (expires_at) WHERE expires_at IS NOT NULL;

-- The version of the last commit, so that none is ever used twice, not even after a delete.
CREATE TABLE larder_commit_sequence (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    last INTEGER NOT NULL
) STRICT;
INSERT INTO larder_commit_sequence (id, last) VALUES (1, 0);
