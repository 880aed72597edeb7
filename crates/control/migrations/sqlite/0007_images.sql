-- What sandboxes are made from: a base and steps, built once for each isolation and size.
CREATE TABLE images (
    id           TEXT    NOT NULL PRIMARY KEY,
    org_id       TEXT    NOT NULL REFERENCES orgs (id),
    -- SHA-256 of base and steps, hex.
    content_hash TEXT    NOT NULL,
    isolation    TEXT    NOT NULL,
    -- MiB its sandboxes have at least, as its manifest says; 0 = it does not say.
    memory_mb    INTEGER NOT NULL,
    -- As it was sent, JSON. It holds the contents of files, so hardly anything reads it.
    manifest     TEXT    NOT NULL,
    -- Where a snapshot is its base: the image that was, which its name may not stand for any more.
    base_org     TEXT,
    base_image   TEXT,
    -- The manifest without long contents, for lists.
    shown        TEXT    NOT NULL,
    -- building, ready, failed.
    status       TEXT    NOT NULL,
    error        TEXT,
    -- What sandboxes are made from; NULL until it is built.
    checkpoint_id TEXT,
    -- The layer it ends in, and the template its disk is laid over.
    layer        TEXT,
    template     TEXT,
    -- Variables, JSON.
    envs         TEXT    NOT NULL,
    workdir      TEXT,
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    UNIQUE (org_id, content_hash, isolation, memory_mb)
) STRICT;

CREATE INDEX images_newest ON images (org_id, created_at, id);

-- Snapshots: names of images. The newest version is what the bare name stands for.
CREATE TABLE image_names (
    org_id     TEXT    NOT NULL REFERENCES orgs (id),
    name       TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    image_id   TEXT    NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    -- Every organisation that has no snapshot of that name finds this one.
    is_public  INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (org_id, name, version)
) STRICT;

-- Versions that were deleted: the highest of each name. A number stands for one image for ever.
CREATE TABLE image_versions (
    org_id  TEXT    NOT NULL REFERENCES orgs (id),
    name    TEXT    NOT NULL,
    deleted INTEGER NOT NULL,
    PRIMARY KEY (org_id, name)
) STRICT;

CREATE INDEX image_names_image ON image_names (image_id);
CREATE INDEX image_names_public ON image_names (name, version) WHERE is_public <> 0;

-- How far builds have come: the disk after a step, found again by everything that leads to it.
CREATE TABLE image_layers (
    org_id        TEXT    NOT NULL REFERENCES orgs (id),
    -- SHA-256 of what it starts from and of every step up to it, hex.
    key           TEXT    NOT NULL,
    checkpoint_id TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    last_used_at  INTEGER NOT NULL,
    PRIMARY KEY (org_id, key)
) STRICT;

CREATE INDEX image_layers_checkpoint ON image_layers (checkpoint_id);

-- layer, image: made by a build, and of no use once nothing above refers to it. NULL: made by its owner.
ALTER TABLE checkpoints ADD COLUMN made_for TEXT;
