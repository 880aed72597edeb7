-- Values that were replaced or removed: for a while they are looked for in what hosts say. Only of secrets that a sandbox has.
-- What they were sealed for is here, as their secret may be gone.
CREATE TABLE former_secrets (
    secret_id     TEXT    NOT NULL,
    org_id        TEXT    NOT NULL,
    store_id      TEXT    NOT NULL,
    name          TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    sealed        TEXT    NOT NULL,
    allowed_hosts TEXT    NOT NULL,
    -- Microseconds since the Unix epoch.
    until         INTEGER NOT NULL,
    PRIMARY KEY (secret_id, version)
) STRICT;

-- What stood for a secret that is gone.
CREATE TABLE former_tokens (
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    token      TEXT NOT NULL,
    secret_id  TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, token)
) STRICT;

CREATE INDEX former_tokens_secret ON former_tokens (secret_id);
