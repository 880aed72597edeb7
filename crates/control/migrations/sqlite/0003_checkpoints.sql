-- Reported by the node.
ALTER TABLE sandboxes ADD COLUMN warning TEXT;
-- When its present processes began, milliseconds.
ALTER TABLE sandboxes ADD COLUMN processes_since INTEGER;
ALTER TABLE sandboxes ADD COLUMN patch_error TEXT;
-- The checkpoint it was made from, which may be gone.
ALTER TABLE sandboxes ADD COLUMN from_checkpoint TEXT;
-- Settings.
ALTER TABLE sandboxes ADD COLUMN scaling_locked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN autoscale INTEGER NOT NULL DEFAULT 0;
-- MiB; 0 = never set.
ALTER TABLE sandboxes ADD COLUMN autoscale_min_mb INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sandboxes ADD COLUMN autoscale_max_mb INTEGER NOT NULL DEFAULT 0;

CREATE INDEX sandboxes_autoscale ON sandboxes (autoscale) WHERE autoscale <> 0;
CREATE INDEX sandboxes_from_checkpoint ON sandboxes (from_checkpoint) WHERE from_checkpoint IS NOT NULL;

CREATE TABLE checkpoints (
    id              TEXT    NOT NULL PRIMARY KEY,
    org_id          TEXT    NOT NULL REFERENCES orgs (id),
    -- May be deleted; the checkpoint outlives it.
    sandbox_id      TEXT    NOT NULL,
    node_id         TEXT    NOT NULL,
    name            TEXT    NOT NULL,
    -- As it was asked for: full, disk_only.
    kind            TEXT    NOT NULL,
    -- processing, ready, failed; deleting: gone for its owner, to be removed from its node.
    status          TEXT    NOT NULL,
    -- The report that `status` comes from; an older one never replaces it.
    generation      INTEGER NOT NULL,
    captured        INTEGER NOT NULL,
    -- What its node says it holds: disk, memory.
    holds           TEXT    NOT NULL,
    consistency     TEXT,
    pause_us        INTEGER,
    size_bytes      INTEGER NOT NULL,
    is_public       INTEGER NOT NULL,
    -- The sandbox as it was: what its node needs to make another, as JSON; NULL until it is captured.
    spec            TEXT,
    metadata        TEXT    NOT NULL,
    alias           TEXT,
    -- How many of its kind are to be left once it is ready; NULL when that is done, or was not asked for.
    keep            INTEGER,
    -- Patches made so far, deleted ones included: the last sequence number.
    patches_made    INTEGER NOT NULL DEFAULT 0,
    error           TEXT,
    failed_at       INTEGER,
    created_at      INTEGER NOT NULL,
    idempotency_key TEXT,
    body_hash       TEXT
) STRICT;

CREATE UNIQUE INDEX checkpoints_name ON checkpoints (sandbox_id, name) WHERE status <> 'deleting';
CREATE UNIQUE INDEX checkpoints_key ON checkpoints (org_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX checkpoints_newest ON checkpoints (sandbox_id, created_at, id);
CREATE INDEX checkpoints_keep ON checkpoints (keep) WHERE keep IS NOT NULL;

CREATE TABLE checkpoint_patches (
    id            TEXT    NOT NULL PRIMARY KEY,
    checkpoint_id TEXT    NOT NULL REFERENCES checkpoints (id) ON DELETE CASCADE,
    sequence      INTEGER NOT NULL,
    script        TEXT    NOT NULL,
    description   TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    UNIQUE (checkpoint_id, sequence)
) STRICT;
