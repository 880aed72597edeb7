-- SHA-256 of the token that opens its previews, hex; NULL: they are open. A token the server makes has 256 random bits; one
-- that a client chose is its own affair.
ALTER TABLE sandboxes ADD COLUMN preview_hash TEXT;

-- Previews that were registered, for lists: every port works without.
CREATE TABLE previews (
    id         TEXT    NOT NULL PRIMARY KEY,
    sandbox_id TEXT    NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
    port       INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (sandbox_id, port)
) STRICT;
