-- What is kept of each conversation. Parts of an identity are bytes, as names of rows are.
CREATE TABLE larder_memory_state (
    tenant_id  BYTEA NOT NULL,
    user_id    BYTEA NOT NULL,
    session_id BYTEA NOT NULL,
    run_id     BYTEA NOT NULL,
    kind       TEXT COLLATE "C" NOT NULL,
    strategy   TEXT NOT NULL,
    bytes      BYTEA NOT NULL,
    version    BIGINT NOT NULL,
    due_at     BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, user_id, session_id, run_id, kind)
);

-- For summaries to ask for again; most conversations wait for none and are not in it.
CREATE INDEX larder_memory_state_due ON larder_memory_state (due_at) WHERE due_at IS NOT NULL;
