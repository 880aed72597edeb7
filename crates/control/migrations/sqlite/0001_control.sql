-- Ids are TEXT, times INTEGER microseconds since the Unix epoch, documents JSON as TEXT.

CREATE TABLE orgs (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    id           TEXT    NOT NULL PRIMARY KEY,
    org_id       TEXT    NOT NULL REFERENCES orgs (id),
    -- SHA-256 of the key, hex. The key itself is never stored: it has 256 random bits, so no salt is needed.
    hash         TEXT    NOT NULL UNIQUE,
    -- The beginning of the key, for people to recognise it by.
    prefix       TEXT    NOT NULL,
    label        TEXT,
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER,
    revoked_at   INTEGER
) STRICT;

CREATE TABLE sandboxes (
    id              TEXT    NOT NULL PRIMARY KEY,
    org_id          TEXT    NOT NULL REFERENCES orgs (id),
    node_id         TEXT    NOT NULL,
    template        TEXT    NOT NULL,
    alias           TEXT,
    isolation       TEXT    NOT NULL,
    cpu_count       INTEGER NOT NULL,
    memory_mb       INTEGER NOT NULL,
    disk_mb         INTEGER NOT NULL,
    timeout_seconds INTEGER NOT NULL,
    metadata        TEXT    NOT NULL,
    tags            TEXT    NOT NULL,
    tags_updated_at INTEGER,
    -- What the owner last asked for: running, hibernated, deleted. Only deleted is enforced; a sandbox that
    -- falls asleep or wakes by use moves `observed` alone.
    intent          TEXT    NOT NULL,
    -- What its node last reported: creating, running, hibernated, stopped, error.
    observed        TEXT    NOT NULL,
    -- The report that `observed` comes from; an older one never replaces it.
    generation      INTEGER NOT NULL,
    reason          TEXT,
    created_at      INTEGER NOT NULL,
    ended_at        INTEGER
) STRICT;

CREATE INDEX sandboxes_newest ON sandboxes (org_id, created_at, id);
CREATE INDEX sandboxes_active ON sandboxes (org_id, observed);
CREATE INDEX sandboxes_observed ON sandboxes (observed);

-- An index of the columns `metadata` and `tags` of sandboxes, written in the same transaction as they are.
CREATE TABLE sandbox_labels (
    sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    org_id     TEXT NOT NULL,
    kind       TEXT NOT NULL,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, kind, key)
) STRICT;

CREATE INDEX sandbox_labels_values ON sandbox_labels (org_id, kind, key, value);

-- Which create an Idempotency-Key stands for.
CREATE TABLE idempotency_keys (
    org_id     TEXT    NOT NULL REFERENCES orgs (id),
    key        TEXT    NOT NULL,
    -- SHA-256 of the request as it was understood, hex.
    body_hash  TEXT    NOT NULL,
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (org_id, key)
) STRICT;

CREATE INDEX idempotency_keys_sandbox ON idempotency_keys (sandbox_id);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
