-- One chain for each organisation: `seq` counts from 1 without a gap, `hash` is SHA-256 over the hash before it and the record in
-- its canonical form (docs/audit.md). `at` is in microseconds since the Unix epoch, `detail` canonical JSON.
CREATE TABLE audit (
    id      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    org     TEXT    NOT NULL,
    seq     INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    sandbox TEXT,
    kind    TEXT    NOT NULL,
    actor   TEXT    NOT NULL,
    request TEXT,
    detail  TEXT    NOT NULL,
    hash    TEXT    NOT NULL,
    UNIQUE (org, seq)
) STRICT;

CREATE INDEX audit_sandbox ON audit (org, sandbox, seq);

-- Keeps mistakes out. Who wants to change a record can remove this; the chain is what finds it.
CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'audit records are never changed');
END;

-- The last record that was removed for its age, from which on a chain is checked.
CREATE TABLE audit_anchors (
    org  TEXT    NOT NULL PRIMARY KEY,
    seq  INTEGER NOT NULL,
    hash TEXT    NOT NULL,
    mac  TEXT    NOT NULL,
    at   INTEGER NOT NULL
) STRICT;

-- How far records were sent elsewhere: the `id` of the last.
CREATE TABLE audit_cursors (
    target TEXT    NOT NULL PRIMARY KEY,
    id     INTEGER NOT NULL
) STRICT;
