CREATE TABLE secret_stores (
    id               TEXT    NOT NULL PRIMARY KEY,
    org_id           TEXT    NOT NULL REFERENCES orgs (id),
    name             TEXT    NOT NULL,
    -- Host patterns, JSON.
    egress_allowlist TEXT    NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    UNIQUE (org_id, name)
) STRICT;

CREATE TABLE secrets (
    id            TEXT    NOT NULL PRIMARY KEY,
    store_id      TEXT    NOT NULL REFERENCES secret_stores (id) ON DELETE CASCADE,
    name          TEXT    NOT NULL,
    -- Grows with every value; part of what the value is sealed for.
    version       INTEGER NOT NULL,
    -- The value, encrypted: the id of its key, a dot, base64.
    sealed        TEXT    NOT NULL,
    -- Host patterns, JSON; none stands for every host that is allowed.
    allowed_hosts TEXT    NOT NULL,
    -- Of header, query, body, JSON.
    places        TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    UNIQUE (store_id, name)
) STRICT;

-- Which stores a sandbox has, the lowest layer first.
CREATE TABLE sandbox_secret_stores (
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    layer      INTEGER NOT NULL,
    store_id   TEXT    NOT NULL REFERENCES secret_stores (id) ON DELETE CASCADE,
    PRIMARY KEY (sandbox_id, layer)
) STRICT;

CREATE INDEX sandbox_secret_stores_store ON sandbox_secret_stores (store_id);

-- What stands for a secret inside a sandbox. It ends with the secret: one that is made again under the same name is
-- another one.
CREATE TABLE sealed_tokens (
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    token      TEXT NOT NULL,
    secret_id  TEXT NOT NULL REFERENCES secrets (id) ON DELETE CASCADE,
    PRIMARY KEY (sandbox_id, name)
) STRICT;

CREATE INDEX sealed_tokens_secret ON sealed_tokens (secret_id);

-- What a sandbox itself was asked to be allowed, JSON; NULL for everything. Its stores narrow that.
ALTER TABLE sandboxes ADD COLUMN egress TEXT;
-- Narrower hosts for some of its secrets: name to patterns, JSON.
ALTER TABLE sandboxes ADD COLUMN secret_hosts TEXT;
-- The two above and the stores, of the sandbox as it was, JSON.
ALTER TABLE checkpoints ADD COLUMN access TEXT;

-- Requests that a secret was put into; one row for all of a minute.
CREATE TABLE secret_uses (
    secret_id  TEXT    NOT NULL REFERENCES secrets (id) ON DELETE CASCADE,
    sandbox_id TEXT    NOT NULL,
    host       TEXT    NOT NULL,
    -- Minutes since the Unix epoch.
    minute     INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    -- The last of them.
    used_at    INTEGER NOT NULL,
    PRIMARY KEY (secret_id, sandbox_id, host, minute)
) STRICT;

CREATE INDEX secret_uses_newest ON secret_uses (secret_id, used_at);
