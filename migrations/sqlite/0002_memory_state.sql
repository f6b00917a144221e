-- What is kept of each conversation. Parts of an identity are bytes, as names of rows are.
CREATE TABLE larder_memory_state (
    tenant_id  BLOB NOT NULL,
    user_id    BLOB NOT NULL,
    session_id BLOB NOT NULL,
    run_id     BLOB NOT NULL,
    kind       TEXT NOT NULL,
    strategy   TEXT NOT NULL,
    bytes      BLOB NOT NULL,
    version    INTEGER NOT NULL,
    due_at     INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, user_id, session_id, run_id, kind)
) STRICT;

-- For summaries to ask for again; most conversations wait for none and are not in it.
CREATE INDEX larder_memory_state_due ON larder_memory_state (due_at) WHERE due_at IS NOT NULL;
