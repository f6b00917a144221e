-- Rows of every store in this schema. Names are bytes: text may hold NUL, and byte order is the order.
CREATE TABLE larder_entries (
    namespace  BYTEA NOT NULL,
    key        BYTEA NOT NULL,
    value      BYTEA NOT NULL,
    version    BIGINT NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (namespace, key)
);

-- For sweeping expired rows; most rows are permanent and not in it.
CREATE INDEX larder_entries_expiry ON larder_entries (expires_at) WHERE expires_at IS NOT NULL;

-- Where versions come from. A sequence and not a row: a row would make every two updates conflict.
CREATE SEQUENCE larder_commit_sequence;
